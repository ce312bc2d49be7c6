"""Sparse linear bandits: parameters, matrices of action sets, and real ratings."""

from jaxsac.problems.bandits.parameters import (
    Ratings as Ratings,
    ratings_model as ratings_model,
    separated_parameter as separated_parameter,
    unit_diagonal_matrix as unit_diagonal_matrix,
)
