"""The tools outside the working set: record-free scores, grouped where they are equal, so that
their number never enters the cost.
"""

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac.gibbs._polynomial import convolve


def size_weights(scores: jax.Array, counts: jax.Array, budget: int) -> tuple[jax.Array, jax.Array]:
    """log e_r, r = 0..B, of a multiset in which counts[g] tools score scores[g], and what one tool
    of each group contributes.

    scores, counts [G], scores in roughly decreasing order. Returns log e [B + 1] (−∞ where there
    are fewer than r tools) and share [B + 1, G] = exp(scores[g]) e_{r−1}(all but one tool of g) /
    e_r: the probability that it is in a set of r.

    Head and tail: the 2B first copies multiply in one by one; the rest enters by B power sums and
    Newton's identities, which are stable once the head holds B items no smaller than any of the
    tail. Leaving one out: by products without it in the head, by e_r(all but g) = e_r − w_g
    e_{r−1}(all but g) in the tail, for the same reason. O(G B + B³), whatever the counts.
    """
    dtype = scores.dtype
    head_size = 2 * budget
    ends = jnp.cumsum(counts)
    starts = ends - counts
    tail_counts = counts - jnp.clip(head_size - starts, 0, counts)
    copies = jnp.arange(head_size, dtype=dtype)
    owner = jnp.minimum(jnp.searchsorted(ends, copies, side="right"), scores.shape[0] - 1)

    live = counts > 0
    present = copies < ends[-1]
    # Units: the mean of the B first scores (so that e_B is of order 1), or more where the tail's
    # mass asks for it (e_r <= mass^r / r!).
    first = present[:budget]
    mean = jnp.sum(jnp.where(first, scores[owner[:budget]], 0)) / jnp.maximum(
        jnp.sum(first), 1
    ).astype(dtype)
    in_tail = tail_counts > 0
    mass = jax.nn.logsumexp(
        jnp.where(in_tail, scores, -jnp.inf), b=jnp.where(in_tail, tail_counts, 0)
    )
    unit = jnp.maximum(mean, mass - jnp.log(jnp.asarray(budget / jnp.e, dtype)))
    weights = jnp.where(live, jnp.exp(jnp.where(live, scores - unit, 0)), 0)

    def power_sum(power, _):
        return power * tail_weights, jnp.sum(tail_counts * power)

    tail_weights = jnp.where(in_tail, weights, 0)
    sums = _loops.scan(power_sum, tail_weights, None, budget)[1]
    tail = _newton_identities(sums)  # [B + 1]

    # Products of the head: row k leaves copy k out, the last row is the whole head.
    factors = jnp.where(present, weights[owner], 0)

    def multiply(polynomials, item):
        factor, index = item
        factor = jnp.where(jnp.arange(head_size + 1) == index, 0, factor)
        return polynomials.at[:, 1:].add(factor[:, None] * polynomials[:, :-1]), None

    ones = jnp.zeros((head_size + 1, budget + 1), dtype).at[:, 0].set(1)
    heads = _loops.scan(multiply, ones, (factors, jnp.arange(head_size)))[0]
    products = convolve(heads, tail)
    degrees = jnp.arange(budget + 1, dtype=dtype)
    whole = jnp.where(degrees <= ends[-1], products[-1], 0)

    def leave_out(rest, value):
        rest = jnp.maximum(value - weights * rest, 0)
        return rest, rest

    # [B, G]: e_{r−1} without one tool of the group; in the head, without the group's first copy
    others = _loops.scan(leave_out, jnp.zeros_like(weights), whole[:-1])[1]
    in_head = starts < head_size
    from_head = products[jnp.clip(starts, 0, head_size - 1).astype(jnp.int32), :-1].T
    others = jnp.where(in_head[None, :], from_head, others)
    positive = whole > 0
    share = weights[None, :] * others / jnp.where(positive[1:], whole[1:], 1)[:, None]
    share = jnp.where(positive[1:, None] & live[None, :], share, 0)
    log_sizes = jnp.where(
        positive, jnp.log(jnp.where(positive, whole, 1)) + degrees * unit, -jnp.inf
    )
    return log_sizes, jnp.concatenate([jnp.zeros((1, scores.shape[0]), dtype), share])


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


def _newton_identities(sums: jax.Array) -> jax.Array:
    """e_0..e_B from power sums p_1..p_B: e_r = (1/r) Σ_i (−1)^(i−1) e_{r−i} p_i, never below 0."""
    budget, dtype = sums.shape[0], sums.dtype
    index = jnp.arange(budget)
    signed = sums * jnp.where(index % 2 == 0, 1, -1).astype(dtype)

    def step(polynomial, r):
        earlier = jnp.where(index < r, polynomial[jnp.clip(r - 1 - index, 0, budget)], 0)
        return polynomial.at[r].set(
            jnp.maximum(jnp.sum(earlier * signed) / r.astype(dtype), 0)
        ), None

    return _loops.scan(
        step, jnp.zeros((budget + 1,), dtype).at[0].set(1), jnp.arange(1, budget + 1)
    )[0]
