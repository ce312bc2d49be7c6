"""Parameters, action sets' matrices and data for sparse linear bandits: arrays only."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, choice, key, real, size


@arguments(
    key=key(),
    dimension=size(1),
    ridge=real(low=0),
    dtype=anything("a floating dtype; None: the default of JAX"),
)
def unit_diagonal_matrix(
    key: jax.Array, dimension: int, *, ridge: float = 0.5, dtype=None
) -> jax.Array:
    """M M' / d + ridge I for Gaussian M [d, d], rescaled to a unit diagonal: the matrix of an
    ellipsoid. The key is consumed.
    """
    dtype = jnp.result_type(float) if dtype is None else dtype
    factor = jax.random.normal(key, (dimension, dimension), dtype)
    matrix = jnp.matmul(factor, factor.T, precision="highest") / dimension + ridge * jnp.eye(
        dimension, dtype=dtype
    )
    scale = 1.0 / jnp.sqrt(jnp.diag(matrix))
    return matrix * scale[:, None] * scale[None, :]


@arguments(
    dimension=size(2),
    sparsity=size(1),
    gap=real(),
    kind=choice("standard", "adversarial"),
    dtype=anything("a floating dtype; None: the default of JAX"),
)
def separated_parameter(
    dimension: int, sparsity: int, *, gap: float = 0.4, kind: str = "standard", dtype=None
) -> jax.Array:
    """Magnitudes [d] in descending order with |θ|₍ₛ₎ − |θ|₍ₛ₊₁₎ = gap.

    "standard" spreads them, from 1 down to 0.7 and from 0.7 - gap down to 0; "adversarial" crowds
    them within 0.01 steps on both sides of the gap, where the order is hard to tell and the support
    is not.
    """
    _checks.require(
        0 < sparsity < dimension,
        f"a gap needs 0 < sparsity < dimension, got {sparsity} and {dimension}.",
    )
    dtype = jnp.result_type(float) if dtype is None else dtype
    low = 0.7 - gap
    if kind == "standard":
        return jnp.concatenate(
            [
                jnp.linspace(1.0, 0.7, sparsity, dtype=dtype),
                jnp.linspace(low, 0.0, dimension - sparsity, dtype=dtype),
            ]
        )
    top = 0.7 + 0.01 * np.arange(sparsity - 1, -1, -1)
    rest = np.maximum(low - 0.01 * np.arange(dimension - sparsity), 0.0)
    return jnp.asarray(np.concatenate([top, rest]), dtype)


class Ratings(NamedTuple):
    """A linear model of ratings, and real noise around it."""

    theta: jax.Array  # [d] per genre, on centred ratings
    residuals: jax.Array  # [N] of mean 0 and variance 1
    scale: float  # their standard deviation in the data


@arguments(
    on_host=True,
    indicators=real("N", "d", low=0, high=1),
    ratings=real("N", above=-np.inf, below=np.inf),
    dtype=anything("a floating dtype; None: the default of JAX"),
)
def ratings_model(indicators: np.ndarray, ratings: np.ndarray, dtype=None) -> Ratings:
    """Least squares of centred `ratings` [N] on genre `indicators` [N, d]: real taste, and real
    noise around it.
    """
    dtype = jnp.result_type(float) if dtype is None else dtype
    indicators, ratings = np.asarray(indicators, np.float64), np.asarray(ratings, np.float64)
    centred = ratings - ratings.mean()
    theta = np.linalg.lstsq(indicators, centred, rcond=None)[0]
    residuals = centred - indicators @ theta
    scale = float(residuals.std())
    return Ratings(
        jnp.asarray(theta, dtype),
        jnp.asarray((residuals - residuals.mean()) / (scale or 1.0), dtype),
        scale,
    )
