"""The exact distribution over budgeted sets of tools: partition function, marginals, entropy,
divergence, modes and samples.
"""

from jaxsac.gibbs import rows as rows
from jaxsac.gibbs._problem import NO_ACTION as NO_ACTION
from jaxsac.gibbs.estimators import expected as expected, straight_through as straight_through
from jaxsac.gibbs.functions import (
    entropy as entropy,
    kl as kl,
    log_partition as log_partition,
    log_prob as log_prob,
    marginals as marginals,
    mode as mode,
    sample as sample,
)
from jaxsac.gibbs.policy import Policy as Policy
