"""The tools outside the working set: record-free scores, grouped where they are equal, so that their number never enters the cost."""

import jax
import jax.numpy as jnp


def log_size_weights(scores: jax.Array, counts: jax.Array, budget: int) -> jax.Array:
    """log e_r, r = 0..B, of a multiset in which counts[i] tools score scores[i]; scores [G] in roughly decreasing order, counts [G] real.

    Head and tail: the 2B first copies by the exact recurrence, the rest by B power sums and Newton's identities, which are stable once the head
    holds B items that are no smaller than any of the tail. O(G B), whatever the counts. Differentiable in the scores.
    """
    dtype = scores.dtype
    head_size = 2 * budget
    ends = jnp.cumsum(counts)
    taken = jnp.clip(head_size - (ends - counts), 0, counts)
    tail = counts - taken
    copies = jnp.arange(head_size, dtype=dtype)
    owner = jnp.minimum(jnp.searchsorted(ends, copies, side="right"), scores.shape[0] - 1)
    present = copies < ends[-1]

    live = counts > 0
    top = jax.lax.stop_gradient(jnp.max(jnp.where(live, scores, -jnp.inf)))
    top = jnp.where(jnp.isfinite(top), top, 0)
    mass = jnp.sum(jnp.where(live, counts * jnp.exp(jnp.where(live, scores - top, 0)), 0))
    # Units in which all tools together weigh B/e (so that e_r <= (B/e)^r / r! peaks near 1), but no single one weighs more than 1.
    unit = jax.lax.stop_gradient(top + jnp.maximum(jnp.log(jnp.maximum(mass, 1e-30)) - jnp.log(budget / jnp.e + 1e-30).astype(dtype), 0))
    weights = jnp.where(live, jnp.exp(jnp.where(live, scores - unit, 0)), 0)

    sums, power = [], weights
    for _ in range(budget):
        sums.append(jnp.sum(tail * power))
        power = power * weights
    sums = jnp.stack(sums) if budget else jnp.zeros((0,), dtype)
    polynomial = _newton_identities(sums, budget)

    def multiply(polynomial, weight):
        return polynomial + weight * jnp.concatenate([jnp.zeros((1,), dtype), polynomial[:-1]]), None

    polynomial = jax.lax.scan(multiply, polynomial, jnp.where(present, weights[owner], 0))[0]
    degrees = jnp.arange(budget + 1, dtype=dtype)
    positive = (polynomial > 0) & (degrees <= ends[-1])
    return jnp.where(positive, jnp.log(jnp.where(positive, polynomial, 1)) + degrees * unit, -jnp.inf)


def _newton_identities(sums: jax.Array, budget: int) -> jax.Array:
    """e_0..e_B from power sums p_1..p_B: e_r = (1/r) sum_i (-1)^(i-1) e_(r-i) p_i, never below zero."""
    dtype = sums.dtype
    index = jnp.arange(budget)
    signed = sums * jnp.where(index % 2 == 0, 1, -1).astype(dtype)

    def step(r, polynomial):
        earlier = jnp.where(index < r, polynomial[jnp.clip(r - 1 - index, 0, budget)], 0)
        value = jnp.sum(earlier * signed) / r.astype(dtype)
        return polynomial.at[r].set(jnp.maximum(value, 0))

    start = jnp.zeros((budget + 1,), dtype).at[0].set(1)
    return jax.lax.scan(lambda p, r: (step(r, p), None), start, jnp.arange(1, budget + 1))[0]
