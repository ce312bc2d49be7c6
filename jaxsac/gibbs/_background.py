"""Generating polynomials as log-ratios of successive coefficients, u_r = log(e_r / e_(r−1)), and
the polynomial of groups of equal scores.

The coefficients of a product of real-rooted factors are log-concave, so the ratios fall with r, and
the largest term of a product of two polynomials at degree r is the sum of the r largest of their
ratios together: all that is exponentiated is relative to that term.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _loops


class Background(NamedTuple):
    """Groups of tools that share a score: counts[c] tools of score scores[c]."""

    scores: jax.Array  # [C]
    counts: jax.Array  # [C] int32


def unreachable(dtype) -> float:
    """The ratio that leads to a coefficient 0; finite, so that no difference is NaN."""
    return float(jnp.finfo(dtype).min) / 2**20


def background_ratios(background: Background, budget: int) -> jax.Array:
    """Ratios [budget] of Π_c (1 + exp(score_c) t)^count_c; binomials by (count − r + 1) / r.
    Does not depend on the counts' sizes.
    """
    dtype = background.scores.dtype
    degree = np.arange(1, budget + 1).astype(dtype)

    def step(ratios, group):
        score, count = group
        count = count.astype(dtype)
        present = (degree <= count) & jnp.isfinite(score)
        binomial = jnp.log(jnp.maximum(count - degree + 1, 1) / degree)
        own = jnp.where(
            present, jnp.where(jnp.isfinite(score), score, 0) + binomial, unreachable(dtype)
        )
        return multiply(ratios, own), None

    start = jnp.full((budget,), unreachable(dtype), dtype)
    return _loops.scan(step, start, background)[0]


def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    """The ratios [B] of the product of two polynomials with the ratios `left` and `right` [B], both
    falling.
    """
    budget = left.shape[0]
    degree = np.arange(budget + 1)[None, :]
    index = np.arange(budget)[:, None]
    # Term i of degree r takes i factors from the left. Going from i to i + 1 multiplies it by
    # exp(left_(i+1) − right_(r−i)), falling in i.
    change = jnp.where(
        index < degree, left[:, None] - right[np.clip(degree - index - 1, 0, budget - 1)], 0
    )
    earlier = np.tri(budget + 1, budget, -1, dtype=left.dtype)
    below = jnp.matmul(earlier, jnp.minimum(change, 0), precision="highest")
    above = jnp.matmul(1 - earlier, jnp.maximum(change, 0), precision="highest")
    terms = jnp.exp(below - above)  # relative to the largest of each degree
    sums = jnp.log(jnp.sum(jnp.where(np.arange(budget + 1)[:, None] <= degree, terms, 0), axis=0))
    merged = lax.sort(jnp.concatenate([left, right]))[::-1][:budget]
    reachable = merged > unreachable(left.dtype) / 2
    return jnp.where(reachable, merged + sums[1:] - sums[:-1], unreachable(left.dtype))
