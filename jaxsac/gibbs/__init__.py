"""Gibbs policies over budgeted sets of tools: exact partition function, marginals, entropy, divergence, mode and sampling."""

from jaxsac.gibbs.partition import log_partition as log_partition
from jaxsac.gibbs.partition import marginals as marginals
