"""Samples of k of n agents, in counts: exact draws, exact weights, and the lift from k-agent to
n-agent histograms; moves of all of them, at a cost that does not grow with their number.
"""

import bisect
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, _loops
from jaxsac._arguments import anything, arguments, either, integer, parts, real, record, size
from jaxsac.solution import Solution
from jaxsac.subsample_q.data.histograms import (
    check_size,
    enumerate_counts,
    graded_rank,
    num_histograms,
    removals,
)


def agents_of(num_rows: int, num_states: int) -> int:
    """The k of a table with `num_rows` histograms over `num_states` states (1 where every k gives
    one histogram).
    """
    every = range(1, num_rows if num_states > 1 else 1)
    k = 1 + bisect.bisect_left(every, num_rows, key=lambda k: num_histograms(k, num_states))
    _checks.require(
        num_histograms(k, num_states) == num_rows,
        f"values have {num_rows} columns, which are no set of histograms over num_states ="
        f" {num_states} states.",
    )
    return k


STATE = parts(
    global_state=integer(low=0, below="G"),
    counts=either(integer("L", low=0), integer("E", "L", low=0)),
)  # (s_g, counts), of types (s_g, counts of each)


def check_state(
    initial: Any,
    shape: tuple[int, ...],
    ks: tuple[int, ...],
    num_agents: Any = None,
    dtype: Any = None,
) -> Any:
    """Whether `initial`, converted as `STATE`, has at least ks agents (of each type), as many as
    `num_agents`, and a global state that exists, for shape = (G, L) or (G, E, L): bool []. What is
    known to be wrong is refused.
    """
    global_state, counts = initial
    _checks.require(
        counts.shape == shape[1:],
        f"initial: counts must have shape {list(shape[1:])}, got {list(counts.shape)}.",
    )
    wanted = ks if counts.ndim == 2 else ks[0]
    given = _checks.is_concrete(counts)
    total = np.asarray(counts).sum(axis=-1, dtype=np.int64) if given else None
    limit = 2**24 if dtype == np.float32 else 2**31 - 1
    if num_agents is not None and _checks.is_concrete(num_agents):
        _checks.require(
            bool(np.all(np.asarray(num_agents) < limit)),
            f"num_agents={num_agents} is beyond what {dtype} counts exactly ({limit}): use"
            " float64.",
        )
        _checks.require(
            bool(np.all(np.asarray(num_agents) >= wanted)),
            f"the table samples k={wanted} agents, more than num_agents={num_agents}: solve for a"
            " smaller k.",
        )
        _checks.require(
            total is None or bool(np.all(total == np.asarray(num_agents))),
            f"initial counts sum to {total}, not to num_agents={num_agents}.",
        )
    _checks.require(
        total is None or bool(np.all(total >= wanted)),
        f"the table samples k={wanted} agents, more than the {total} of initial.",
    )
    _checks.require(
        total is None or bool(np.all(total < limit)),
        f"initial counts sum to {total}, beyond what {dtype} counts exactly ({limit}): use"
        " float64.",
    )
    if _checks.is_concrete(initial, num_agents):
        return np.bool_(True)
    sums = jnp.cumsum(counts, axis=-1, dtype=jnp.int32)  # the first that wraps is negative
    total = sums[..., -1]
    fits = (total >= np.asarray(wanted, np.int32)) & (total < limit)
    fits &= True if num_agents is None else total == num_agents
    exists = (global_state >= 0) & (global_state < shape[0])
    return exists & jnp.all(counts >= 0) & jnp.all(sums >= 0) & jnp.all(fits)


def sample_weights(counts: jax.Array, ks: tuple[int, ...], dtype: Any) -> jax.Array:
    """P(sample = h) of the products h of one histogram for each type, for counts [L] or [E, L]:
    [N].
    """
    rows = counts.reshape(len(ks), -1)
    each = [hypergeometric_weights(row, k, dtype) for row, k in zip(rows, ks, strict=True)]
    return functools.reduce(lambda left, right: (left[:, None] * right[None]).reshape(-1), each)


def draw_row(key: jax.Array, counts: jax.Array, ks: tuple[int, ...]) -> jax.Array:
    """Position of a sample of ks agents of `counts`, [L] or [E, L], among those products: int32."""
    rows = counts.reshape(len(ks), -1)
    keys, position = jax.random.split(key, len(ks)), jnp.int32(0)
    for own, row, k in zip(keys, rows, ks, strict=True):
        drawn = draw_counts(own, row, k)
        position = position * num_histograms(k, rows.shape[1]) + graded_rank(drawn[:-1], k)
    return position


def hypergeometric_weights(counts: jax.Array, k: int, dtype: Any) -> jax.Array:
    """P(sample = h) = Π_j C(counts_j, h_j) / C(n, k) for every histogram h of k agents: [N].

    Sums of logarithms: n may be 10^9.
    """
    draws = jnp.arange(k, dtype=dtype)
    ratios = (counts[:, None].astype(dtype) - draws[None, :]) / (draws[None, :] + 1)
    logs = jnp.concatenate(
        [
            jnp.zeros((counts.shape[0], 1), dtype),
            jnp.cumsum(jnp.log(jnp.maximum(ratios, 0)), axis=1),
        ],
        axis=1,
    )
    table = enumerate_counts(k, counts.shape[0])
    log_weight = sum(logs[j, table[:, j]] for j in range(counts.shape[0]))
    weights = jnp.exp(log_weight - jnp.max(log_weight))
    return weights / jnp.sum(weights)


@arguments(values=either(real("G", "N"), record(Solution)), num_states=size(1), num_agents=size(1))
def lift(values: Any, num_states: int, num_agents: int) -> jax.Array:
    """Mean of a k-agent table over the samples of every n-agent histogram.

        (lift V)(s_g, h_n) = Σ_{h_k} Hyp(h_k; h_n) V(s_g, h_k)

    Applied to V_k* it is the upper bound U_k ≥ V_n*, and a good `initial` for a larger k. One agent
    at a time, exactly: (lift V)(h) = Σ_j (h_j / m) V(h − e_j) from m−1 to m agents, so it is linear
    and costs L N_m a step.

    * `values`: [G, N_k], a value or the Solution that has it.
    * `num_agents`: n ≥ k, static.

    Returns: [G, N_n].

    Raises: ValueError for a number of columns that no k has, n < k, and tables that take more than
    16 GiB, for all numbers of agents up to n together.
    """
    values = values.value.value if isinstance(values, Solution) else values
    k = agents_of(values.shape[-1], num_states)
    _checks.require(
        num_agents >= k, f"num_agents must be ≥ {k}, which values have, got {num_agents}."
    )
    check_size(num_agents, num_states, 8 * values.shape[0], "num_agents")
    if num_states == 1:
        return values
    check_size(num_agents, num_states, 8, "num_agents", with_smaller=True)
    for m in range(k + 1, num_agents + 1):
        counts = enumerate_counts(m, num_states)
        share = jnp.asarray(counts / m, values.dtype)
        parts = [
            share[None, :, j] * values[:, removals(m, num_states, j)] for j in range(num_states)
        ]
        values = sum(parts[1:], parts[0])
    return values


@arguments(
    global_state=integer(low=0), shares=anything("shares [L] ≥ 0 of the agents"), num_agents=size(1)
)
def population_state(global_state: int, shares: Any, num_agents: int) -> tuple[int, np.ndarray]:
    """An initial state (s_g, counts int32 [L]) whose counts are num_agents · shares, rounded to the
    largest remainders; on the host.

    * `shares`: [L], ≥ 0, divided by their sum.
    """
    try:
        shares = np.asarray(shares, np.float64)
    except (TypeError, ValueError):
        shares = np.zeros(0)
    _checks.require(
        shares.ndim == 1 and bool(np.all(shares >= 0)) and 0 < np.sum(shares) < np.inf,
        "shares must be one number ≥ 0 for each local state, with a sum that is > 0 and finite.",
    )
    shares = shares / np.sum(shares)
    counts = np.floor(shares * num_agents).astype(np.int32)
    order = np.argsort(counts - shares * num_agents, kind="stable")
    counts[order[: num_agents - counts.sum()]] += 1
    return global_state, counts


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


def draw_parts(key: jax.Array, counts: jax.Array, chances: jax.Array) -> jax.Array:
    """Independent Multinomial(counts_j, chances[j]) draws of every row j: int32 [R, T], by
    conditional binomials for all j at once.

    Not by `jax.random.multinomial`, which draws the last part too, though it is what remains.
    """
    T = chances.shape[1]
    # P(agent goes to t | not to an earlier one); the tails are summed backwards, so that they
    # vanish exactly where the chances do
    tails = jnp.cumsum(chances[:, ::-1], axis=1)[:, ::-1]
    conditional = jnp.where(tails > 0, jnp.minimum(chances / jnp.where(tails > 0, tails, 1), 1), 0)

    def draw(remaining, step):
        going = binomial(step[0], remaining, step[1])
        return remaining - going, going

    steps = jax.random.split(key, max(T - 1, 1))[: T - 1], conditional[:, :-1].T
    rest, parts = _loops.scan(draw, counts, steps)
    return jnp.concatenate([parts, rest[None]]).T


def move_counts(key: jax.Array, counts: jax.Array, kernel: jax.Array) -> jax.Array:
    """Counts int32 [L] after every agent of `counts` [R] moved by its row of `kernel` [R, L]."""
    return jnp.sum(draw_parts(key, counts, kernel), axis=0, dtype=jnp.int32)


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
