"""Budgeted Gibbs policies for many rows and few tools: the rows are the vector axis, and other
tools enter through the weight of all that may accompany a set.
"""

from jaxsac.gibbs.rows.recurrence import (
    log_partition as log_partition,
    log_size_weights as log_size_weights,
    marginals as marginals,
)
