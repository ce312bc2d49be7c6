"""Gibbs policies over budgeted sets of tools: exact partition function, marginals, entropy,
divergence, mode and sampling.
"""

from jaxsac.gibbs import rows as rows
from jaxsac.gibbs.estimators import expected as expected, straight_through as straight_through
from jaxsac.gibbs.partition import (
    entropy as entropy,
    kl as kl,
    log_partition as log_partition,
    marginals as marginals,
)
from jaxsac.gibbs.sampling import sample as sample
from jaxsac.gibbs.sets import NO_ACTION as NO_ACTION, log_prob as log_prob, mode as mode
