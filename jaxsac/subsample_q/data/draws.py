"""Draws of states and of counts of agents; the cost does not grow with the number of agents."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _loops
from jaxsac.subsample_q.data.histograms import enumerate_counts, graded_rank


def by_inversion(cumulative: jax.Array, tickets: jax.Array) -> jax.Array:
    """States int32 [...] of cumulative chances [..., S] (broadcast) and uniforms [...]."""
    scaled = tickets * cumulative[..., -1]
    count = cumulative.shape[-1]
    passed = [(scaled >= cumulative[..., s]).astype(jnp.int32) for s in range(count)]
    return jnp.minimum(sum(passed[1:], passed[0]), count - 1)


def draw_state(key: jax.Array, chances: jax.Array) -> jax.Array:
    """One state, int32 [], of `chances` [S]."""
    return by_inversion(jnp.cumsum(chances), jax.random.uniform(key, (), chances.dtype))


def draw_counts(key: jax.Array, counts: jax.Array, k: int) -> jax.Array:
    """Histogram int32 [L] of k agents drawn uniformly without replacement from `counts` int32 [L]:
    one agent at a time, whatever n is.
    """
    states = jnp.arange(counts.shape[0], dtype=jnp.int32)
    left = jnp.sum(counts, dtype=jnp.int32) - jnp.arange(k, dtype=jnp.int32)
    tickets = jax.random.randint(key, (k,), 0, jnp.maximum(left, 1), jnp.int32)

    def draw(i, carried):
        remaining, drawn = carried
        state = jnp.sum(tickets[i] >= jnp.cumsum(remaining, dtype=jnp.int32), dtype=jnp.int32)
        one = (states == state).astype(jnp.int32)
        return remaining - one, drawn + one

    return _loops.fori_loop(0, k, draw, (counts, jnp.zeros_like(counts)))[1]


def split(key: jax.Array, counts: jax.Array, chances: jax.Array) -> jax.Array:
    """Independent Multinomial(counts_j, chances[j]) draws of every row j: int32 [R, T], by
    conditional binomials for all j at once.

    Not by `jax.random.multinomial`, which takes a tenth longer here.
    """
    T = chances.shape[1]
    # P(agent goes to t | not to an earlier one); the tails are summed backwards, so that they
    # vanish exactly where the chances do
    tails = jnp.cumsum(chances[:, ::-1], axis=1)[:, ::-1]
    conditional = jnp.where(tails > 0, jnp.minimum(chances / jnp.where(tails > 0, tails, 1), 1), 0)
    remaining, parts = counts, []
    for t, subkey in zip(range(T - 1), jax.random.split(key, max(T - 1, 1)), strict=False):
        going = binomial(subkey, remaining, conditional[:, t])
        parts.append(going)
        remaining = remaining - going
    return jnp.stack([*parts, remaining], axis=1)


def move_counts(key: jax.Array, counts: jax.Array, kernel: jax.Array) -> jax.Array:
    """Counts int32 [L] after every agent of `counts` [R] has moved by its row of `kernel` [R, L]."""
    return jnp.sum(split(key, counts, kernel), axis=0, dtype=jnp.int32)


def binomial(key: jax.Array, count: jax.Array, chance: jax.Array) -> jax.Array:
    """Binomial(count, chance) draws as int32, 0 ≤ draw ≤ count."""
    draw = jax.random.binomial(key, count.astype(chance.dtype), chance, dtype=chance.dtype)
    return jnp.clip(draw.astype(jnp.int32), 0, count)


def agent_states(k: int, L: int) -> np.ndarray:
    """The k local states of each histogram, int32 [N, k]."""
    table = enumerate_counts(k, L)
    states = np.tile(np.arange(L, dtype=np.int32), len(table))
    return np.repeat(states, table.reshape(-1)).reshape(len(table), k)


def histogram_index(states: jax.Array, k: int, L: int) -> jax.Array:
    """Index of the histogram of `states` int32 [..., k]: int32 [...]."""
    counts = [jnp.sum(states == j, axis=-1, dtype=jnp.int32) for j in range(L - 1)]
    none = jnp.zeros((*states.shape[:-1], 0), jnp.int32)
    return graded_rank(jnp.stack(counts, axis=-1) if counts else none, k)
