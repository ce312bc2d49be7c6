"""How large the numbers are whose rounding enters a certificate; multiply by the dtype's eps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsac.group_lasso.problem.objective import Objective


class Sizes(NamedTuple):
    """Errors per unit of eps. `residual`: of C^-½ ρ, so that the product of a column with ρ is off
    by ‖C^½ x_j‖ times it. `value`: of F.
    """

    residual: jax.Array
    value: jax.Array


def spread(columns: jax.Array, coef: jax.Array) -> jax.Array:
    """(Σ_j ‖C^½ x_j‖² b_j²)^½: what the roundings of a product with X are of, from the columns'
    sizes [p] and the coefficients [p].
    """
    return jnp.sqrt(jnp.sum((columns * coef) ** 2))


def sizes(problem: Objective, spread: jax.Array, predictions: jax.Array) -> Sizes:
    """A prediction is off by about (Σ_j x_tj² b_j²)^½ + |z_t|, ρ by its own size and by its
    curvature times that, F by ρ' δz and its terms.

    `spread` is that of the coefficients, by columns as they are stored. Errors are taken as
    independent, as in any long sum.
    """
    z = problem.offset + predictions
    weights = problem.sample_weight.reshape((-1,) + (1,) * (z.ndim - 1))
    slope = problem.num_samples * problem.weighted_norm(
        problem.residual(predictions) / jnp.where(weights > 0, weights, 1.0)
    )
    moved = spread + problem.weighted_norm(jnp.where(jnp.isfinite(z), z, 0.0))
    cancelled = problem.loss.size(z, problem.y, problem.sample_weight)
    residual = (slope + _mean_curvature(problem, predictions) * moved) / problem.num_samples
    return Sizes(residual, slope * moved / problem.num_samples + cancelled)


def _mean_curvature(problem: Objective, predictions: jax.Array) -> jax.Array:
    """The mean of ℓ'' over records, or its bound where outputs interact."""
    if predictions.ndim > 1 and problem.loss.curvature is not None:
        return jnp.asarray(problem.loss.curvature, predictions.dtype)
    total = jnp.sum(problem.sample_weight)
    curvatures = problem.curvature_product(predictions, jnp.ones_like(predictions))
    return problem.num_samples * jnp.sum(curvatures) / jnp.where(total == 0, 1.0, total)
