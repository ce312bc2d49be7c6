"""Where a law's distribution function crosses a level."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _loops

_NUM_NODES = 64  # of the quadrature in `student_quantile`
_SHIFT = 32  # beyond which these terms of a series leave rounding alone
_SERIES = (1, -1 / 8, 1 / 128, 5 / 2**10, -21 / 2**15, -399 / 2**18, 869 / 2**22, 39325 / 2**25)


def student_quantile(confidence: jax.Array, degrees: Any) -> jax.Array:
    """Quantile of Student's t at `degrees` ≥ 1 (a number, or traced and then as exact as its dtype)
    by halving φ in the law of t = √degrees tan φ:

        P(0 < t < √degrees tan φ) = Γ((degrees + 1) / 2) / (Γ(degrees / 2) √π) ∫₀^φ cos^(degrees−1)

    The integrand is smooth, and wide where the quantile is far, so that Gauss and Legendre's rule
    leaves rounding alone, for 1 degree and for millions. Its derivatives are zero.
    """
    dtype = confidence.dtype
    nodes, weights = (part.astype(dtype) for part in np.polynomial.legendre.leggauss(_NUM_NODES))
    goal, degrees = lax.stop_gradient((confidence - 0.5, degrees))
    places, scale = (1 + nodes) / 2, _half_step(degrees / 2) / math.sqrt(4 * math.pi)
    weights = (weights * scale).astype(dtype)

    def beyond(angle):
        # log cos φ, where 1 − cos φ may be rounding
        logs = jnp.log1p(-(jnp.sin(angle * places) ** 2)) / 2
        chance = angle * jnp.sum(weights * jnp.exp((degrees - 1) * logs))
        return chance >= jnp.abs(goal)

    zero, right = 0 * goal, dtype.type(math.pi / 2)
    angle = crossing(beyond, zero, zero + right, 2 * jnp.finfo(dtype).nmant)
    return jnp.sign(goal) * degrees**0.5 * jnp.tan(angle)


def _half_step(x: Any) -> Any:
    """Γ(x + ½) / Γ(x), whose logarithms would cancel: the series in 1 / (x + 32), stepped down."""
    steps, far = x + np.arange(_SHIFT, dtype=getattr(x, "dtype", float)), x + _SHIFT
    series = sum(term / far**power for power, term in enumerate(_SERIES))
    return far**0.5 * series * (steps / (steps + 0.5)).prod()


def crossing(beyond: Callable, low: jax.Array, high: jax.Array, num_steps: int) -> jax.Array:
    """The least number between `low` and `high` of which `beyond` is true, by halving."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        far = beyond(middle)
        return jnp.where(far, low, middle), jnp.where(far, middle, high)

    return _loops.fori_loop(0, num_steps, halve, (low, high))[1]
