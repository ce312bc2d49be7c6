"""Groups of tools that share a score, as polynomials: binomials at the tilt of the policy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _loops
from jaxsac.gibbs._problem import Groups
from jaxsac.gibbs._tilt import Tilt, relative


class Binomials(NamedTuple):
    """(1 + exp(x) t)^count of each of C groups: coefficient r is a constant times values_r. What is
    exponentiated is relative to the largest coefficient; it does not depend on the counts' sizes.
    """

    values: jax.Array  # [C, D + 1], of sum 1
    likeliest: jax.Array  # [C] number of tools
    log_choices: jax.Array  # [C] the constant's logarithm − x · likeliest
    base: jax.Array  # [C] the constant's logarithm is base − likeliest · tilt.rise


def binomials(groups: Groups, tilt: Tilt, temperature: jax.Array, degree: int) -> Binomials:
    x = tilt.of(groups.scores, temperature)
    constant = lax.stop_gradient(jnp.where(jnp.isfinite(x), x, 0))
    counts = groups.counts.astype(x.dtype)[:, None]
    degrees = np.arange(degree + 1).astype(x.dtype)[None, :]
    choices = jnp.log(
        jnp.maximum(counts - degrees[:, 1:] + 1, 1) / degrees[:, 1:]
    )  # C(n, r) / C(n, r−1)
    reachable = (degrees <= counts) & ((degrees == 0) | jnp.isfinite(x)[:, None])
    logs = jnp.cumsum(choices + constant[:, None], axis=1)
    logs = jnp.concatenate([jnp.zeros_like(counts), logs], axis=1)
    logs = jnp.where(reachable, logs, -jnp.inf)
    place = jnp.argmax(logs, axis=1)[:, None]
    top = jnp.take_along_axis(logs, place, axis=1)
    values = jnp.exp(logs - top)
    total = jnp.sum(values, axis=1)
    likeliest = place.astype(x.dtype)
    between = degrees[:, 1:] <= likeliest
    log_choices = jnp.sum(jnp.where(between, choices, 0), axis=1) + jnp.log(total)
    above = relative(jnp.where(jnp.isfinite(x), groups.scores, 0), tilt.centre, temperature)[
        :, None
    ]
    moved = jnp.where(jnp.isfinite(x), x, 0) - constant  # 0, and it carries the derivative
    growth = jnp.exp(degrees * moved[:, None])
    return Binomials(
        jnp.where(reachable, values / total[:, None] * growth, 0),
        likeliest[:, 0],
        log_choices,
        lax.stop_gradient(log_choices + jnp.where(likeliest > 0, likeliest * above, 0)[:, 0]),
    )


def product(values: jax.Array, factors: jax.Array) -> jax.Array:
    """The product of `values` [D + 1] and of `factors` [C, D + 1], up to degree D."""
    return _loops.scan(lambda total, factor: (convolve(total, factor), None), values, factors)[0]


def convolve(left: jax.Array, right: jax.Array) -> jax.Array:
    """Σ_i left_i right_(r−i), [D + 1]."""
    return jnp.matmul(left, _shifted(right), precision="highest")


def correlate(left: jax.Array, right: jax.Array) -> jax.Array:
    """Σ_r left_r right_(r−i), [D + 1]: the adjoint of `convolve`."""
    return jnp.matmul(_shifted(right), left, precision="highest")


def _shifted(values: jax.Array) -> jax.Array:
    """[i, r] = values_(r−i), 0 for r < i."""
    size = values.shape[0]
    shift = np.arange(size)[None, :] - np.arange(size)[:, None]
    return jnp.where(shift >= 0, values[np.maximum(shift, 0)], 0)
