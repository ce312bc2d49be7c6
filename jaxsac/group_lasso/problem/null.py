"""The null model, in which everything penalised is zero: the scale of a gap, and the least lam at
which it is the solution.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac.group_lasso.problem.derivative import with_derivatives
from jaxsac.group_lasso.problem.free import fit_free
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, with_lam

_STEPS = 50
_HALVINGS = 30


def fit_null(problem: Objective, columns: jax.Array) -> tuple[Coefficients, jax.Array]:
    """The model with zero for everything penalised (w_g > 0), and its predictions."""
    zeros = problem.zeros()
    predictions = jnp.zeros_like(problem.offset)
    target = 4.0 * jnp.finfo(predictions.dtype).eps ** 2 * problem.smooth_value(predictions)
    free = problem.unpenalised if problem.most_free else None
    fit = fit_free(
        problem,
        zeros,
        predictions,
        free,
        columns=columns,
        target=target,
        max_steps=_STEPS,
        max_halvings=_HALVINGS,
    )
    return fit.point, fit.predictions


def null_objective(problem: Objective, predictions: jax.Array) -> jax.Array:
    """F at the null model's predictions. Where that fits exactly it is rounding: it stays above the
    rounding of the data.
    """
    return problem.smooth_value(predictions) + jnp.finfo(
        predictions.dtype
    ).eps * problem.smooth_value(jnp.zeros_like(predictions))


def refit_target(tol: Any, scale: Any) -> Any:
    """How small a decrease a refit of what is unpenalised may leave: its square root, to which the
    gap is of the first order, is to be small beside the tolerance.
    """
    return (0.0005 * tol) ** 2 * scale


def geometric(largest: Any, min_ratio: Any, num_lams: int) -> jax.Array:
    """From the largest lam to min_ratio times that."""
    powers = (
        jnp.linspace(0.0, 1.0, num_lams, dtype=largest.dtype)
        if num_lams > 1
        else jnp.zeros(1, largest.dtype)
    )
    return largest * min_ratio**powers


@jax.jit
def lam_max_of(problem: Objective) -> jax.Array:
    still = lax.stop_gradient(problem)
    null, _ = fit_null(still, jnp.sqrt(still.design.column_squares(still.sample_weight)))
    return null_pull(with_lam(problem, jnp.zeros_like(problem.lam)), null)


def null_pull(problem: Objective, null: Coefficients) -> jax.Array:
    """The largest pull at the null model, with its derivative."""
    null = with_derivatives(problem, null, support=problem.unpenalised)
    return largest_pull(problem, problem.design.adjoint(problem.residual(problem.predict(null))))


def largest_pull(problem: Objective, gradient: jax.Array) -> jax.Array:
    """max_g ‖gradient_g‖ / w_g over penalised groups, or the dual norm of another penalty."""
    return problem.whole_penalty.dual_norm(jnp.where(problem.unpenalised, 0.0, gradient))
