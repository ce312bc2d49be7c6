"""The tools outside the working set: record-free scores, grouped where they are equal, so that
their number never enters the cost.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops
from jaxsac.gibbs._polynomial import convolve

_multiply = jax.vmap(convolve)  # row by row, [G, D + 1]


def size_weights(scores: jax.Array, counts: jax.Array, budget: int) -> tuple[jax.Array, jax.Array]:
    """log e_r, r = 0..B, of a multiset in which counts[g] tools score scores[g], and what one tool
    of each group contributes.

    scores, counts [G], scores in roughly decreasing order. Returns log e [B + 1] (−∞ where there
    are fewer than r tools) and share [B + 1, G] = exp(scores[g]) e_{r−1}(all but one tool of g) /
    e_r: the probability that it is in a set of r.

    The groups' polynomials, binomials, are multiplied from both ends. All terms are positive.
    O(G B²), whatever the counts.
    """
    live = counts > 0
    scores = jnp.where(live, scores, 0)
    # Units: the mean of the B first scores (so that e_B is of order 1), or more where the mass of
    # the others asks for it (e_r <= mass^r / r!).
    first = jnp.clip(budget - (jnp.cumsum(counts) - counts), 0, counts)
    mean = first @ scores / jnp.maximum(jnp.sum(first), 1)
    mass = jax.nn.logsumexp(scores, b=counts - first)
    unit = lax.stop_gradient(jnp.maximum(mean, mass - jnp.log(budget / jnp.e)))
    weights = jnp.where(live, jnp.exp(scores - unit), 0)
    whole, beside_each = _product(_binomials(weights, counts, budget))
    others = _multiply(beside_each, _binomials(weights, jnp.maximum(counts - 1, 0), budget))
    positive = whole > 0
    safe = jnp.where(positive, whole, 1)
    share = jnp.where(positive[1:, None], weights[None, :] * others[:, :-1].T / safe[1:, None], 0)
    degrees = jnp.arange(budget + 1, dtype=scores.dtype)
    log_sizes = jnp.where(positive, jnp.log(safe) + degrees * unit, -jnp.inf)
    return log_sizes, jnp.pad(share, ((1, 0), (0, 0)))


def _binomials(weights: jax.Array, counts: jax.Array, degree: int) -> jax.Array:
    """The coefficients of (1 + w t)^count of each group, [G, D + 1]."""
    degrees = jnp.arange(1, degree + 1, dtype=weights.dtype)
    ratios = (
        jnp.maximum(counts[:, None] - degrees[None, :] + 1, 0) / degrees[None, :] * weights[:, None]
    )
    return jnp.pad(jnp.cumprod(ratios, axis=1), ((0, 0), (1, 0)), constant_values=1)


def _product(factors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The product [D + 1] of the factors [G, D + 1], and for each of them that of the others."""

    def step(before, factor):
        return _multiply(before, factor), before

    ends = jnp.zeros((2, factors.shape[1]), factors.dtype).at[:, 0].set(1)
    both = jnp.stack([factors, factors[::-1]], axis=1)
    ends, before = _loops.scan(step, ends, both)
    return ends[0], _multiply(before[:, 0], before[::-1, 1])


def beside(log_sizes: jax.Array) -> jax.Array:
    """From log e [B + 1]: log weight of all backgrounds that fit beside i other tools, [B + 1]."""
    return jax.nn.logsumexp(jnp.where(_fits(log_sizes), log_sizes[None, :], -jnp.inf), axis=1)


def size_law(log_sizes: jax.Array) -> jax.Array:
    """From log e [B + 1]: the law of the background's size given the number of other tools, [B + 1,
    B + 1], sizes first.
    """
    law = jnp.exp(log_sizes[:, None] - beside(log_sizes)[None, :])
    return jnp.where(_fits(log_sizes), law, 0)


def _fits(log_sizes: jax.Array) -> jax.Array:
    sizes = jnp.arange(log_sizes.shape[0])
    return sizes[:, None] + sizes[None, :] < log_sizes.shape[0]
