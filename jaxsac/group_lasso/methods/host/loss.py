"""What asks the loss, from the host, for NumPy arrays: in NumPy where it is quadratic, for then no
program need be called; else compiled.
"""

from typing import Any

import numpy as np

from jaxsac.group_lasso.methods.host import kernels
from jaxsac.group_lasso.methods.host.trace import traced
from jaxsac.group_lasso.model.quadratic import LENGTHS, over_root
from jaxsac.group_lasso.problem.objective import Objective


@traced
def residual(problem: Objective, predictions: np.ndarray) -> np.ndarray:
    """ρ = −∇F at predictions [T]."""
    if not problem.loss.quadratic:
        return np.asarray(kernels.residual(problem, predictions))
    at: Any = np.asarray(problem.offset) + predictions
    targets: Any = np.asarray(problem.y)
    weights: Any = np.asarray(problem.sample_weight)
    return np.asarray(problem.loss.negative_gradient(at, targets, weights))


@traced
def roots(problem: Objective, predictions: np.ndarray, floor: float) -> np.ndarray:
    """See `quadratic.roots`."""
    weights = np.asarray(problem.sample_weight)
    if not problem.loss.quadratic:
        return np.asarray(kernels.roots(problem, predictions, np.asarray(floor, weights.dtype)))
    return np.sqrt(problem.loss.curvature * weights / len(weights))


@traced
def values_along(
    problem: Objective,
    root: np.ndarray,
    slope: np.ndarray,
    predictions: np.ndarray,
    moved: np.ndarray,
) -> np.ndarray:
    """F at LENGTHS of a step by which the predictions change by `moved`, `slope` being ρ where it
    begins, [L].
    """
    if not problem.loss.quadratic:
        return np.asarray(kernels.values_along(problem, predictions, moved))
    # F is ½ ‖h^-½ ρ‖², and ρ falls by h m times the length.
    left = over_root(root, slope) - np.asarray(LENGTHS, moved.dtype)[:, None] * (root * moved)
    return 0.5 * (left * left).sum(axis=1)
