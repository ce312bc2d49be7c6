"""Gibbs policies over budgeted sets of tools: exact partition function, marginals, entropy,
divergence, mode and sampling.
"""

from jaxsac.gibbs.partition import entropy as entropy
from jaxsac.gibbs.partition import kl as kl
from jaxsac.gibbs.partition import log_partition as log_partition
from jaxsac.gibbs.partition import marginals as marginals
from jaxsac.gibbs.sampling import sample as sample
from jaxsac.gibbs.sets import NO_ACTION as NO_ACTION
from jaxsac.gibbs.sets import log_prob as log_prob
from jaxsac.gibbs.sets import mode as mode
