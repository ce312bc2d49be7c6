"""The quadratic model of the loss at a point, in float32 on columns scaled by h^½, h = ∇²F: what
both forms of the working-set method share.

Where no loss is asked, a formula serves NumPy arrays, which the host's form works on, as well as
traced ones.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.group_lasso.problem.objective import Objective

LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.0)  # of a step; 0 takes it back
_MOST = 1e30  # a threshold that holds any group at zero, and is finite in float32
_NOISE = 16.0  # multiples of eps that objectives may differ by


class Point(NamedTuple):
    """Coefficients of some groups [C, q], the (centred) intercept, and the predictions [T]."""

    coef: Any
    intercept: Any
    predictions: Any


class Target(NamedTuple):
    """The residual of the model in float32, and the units: b = (coefficient of the model) ·
    step.
    """

    residual: Any
    step: Any
    thresholds: Any


def namespace(array: Any) -> Any:
    """`numpy` for its arrays and scalars, else `jax.numpy`."""
    return np if isinstance(array, (np.ndarray, np.generic)) else jnp


def column_unit(problem: Objective, columns: jax.Array) -> jax.Array:
    """The root mean square of the largest column: what the model's columns are divided by."""
    largest = jnp.max(columns) / jnp.sqrt(jnp.asarray(problem.num_samples, columns.dtype))
    return jnp.where(largest > 0, largest, 1.0)


def roots(problem: Objective, predictions: jax.Array, floor: jax.Array) -> jax.Array:
    """h^½, h = ∇²F (a diagonal), kept above `floor` times its bound (its mean, where it has none);
    `floor` = 1 majorises F.
    """
    curvature = problem.curvature_product(predictions, jnp.ones_like(predictions))
    if problem.loss.curvature is not None:
        bound = problem.loss.curvature * problem.sample_weight / problem.num_samples
    else:
        total = jnp.sum(problem.sample_weight)
        bound = problem.sample_weight * (jnp.sum(curvature) / jnp.where(total > 0, total, 1.0))
    return jnp.where(
        problem.sample_weight > 0, jnp.sqrt(jnp.maximum(curvature, floor * bound)), 0.0
    )


def model_target(intercept: bool, root: Any, residual: Any, thresholds: Any, unit: Any) -> Target:
    xp = namespace(residual)
    scaled = over_root(root, without_mean(intercept, root, residual))
    size = xp.max(xp.abs(scaled)) * xp.sqrt(xp.asarray(scaled.shape[0], scaled.dtype))
    size = xp.where(size > 0, size, 1.0)
    return Target(
        (scaled / size).astype(xp.float32),
        size / unit,
        xp.minimum(thresholds / (unit * size), _MOST).astype(xp.float32),
    )


def over_root(root: Any, vector: Any) -> Any:
    """h^-½ v; 0 where h is."""
    xp = namespace(vector)
    return xp.where(root > 0, vector / xp.where(root > 0, root, 1.0), 0.0)


def without_mean(intercept: bool, root: Any, residual: Any) -> Any:
    """ρ after the model's best change of the intercept."""
    return residual - root**2 * (residual.sum() / (root**2).sum()) if intercept else residual


def intercept_change(intercept: bool, root: Any, residual: Any, moved: Any) -> Any:
    """How far the intercept follows, as the model has it, where the predictions change by `moved`
    and ρ is `residual`.
    """
    if not intercept:
        return namespace(moved).zeros((), moved.dtype)
    return (residual.sum() - (root**2 * moved).sum()) / (root**2).sum()


def best_step(values: Any, slack: float = 0.0) -> tuple[Any, Any]:
    """Of the objectives `values` [L] at LENGTHS the longest length whose objective is within
    `slack`, or within rounding, of the best; and whether to stay instead.
    """
    xp = namespace(values)
    best = xp.min(xp.where(xp.isnan(values), xp.inf, values))
    near = xp.maximum(
        xp.asarray(slack, values.dtype), _NOISE * xp.finfo(values.dtype).eps * xp.abs(best)
    )
    first = xp.argmax(values <= best + near)
    length = xp.asarray(LENGTHS, values.dtype)[first]
    return length, (length == 0) | ~xp.isfinite(best)
