"""Sampling k of n agents without replacement, in counts: exact draws, exact weights, and the lift
from k-agent to n-agent histograms.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _checks
from jaxsac.subsample_q.data.histograms import check_size, enumerate_counts, num_histograms, removals


def agents_of(num_rows: int, num_states: int) -> int:
    """The k of a table with `num_rows` histograms over `num_states` states (1 where every k gives
    one histogram).
    """
    k = 1
    while num_histograms(k, num_states) < num_rows:
        k += 1
    _checks.require(
        num_histograms(k, num_states) == num_rows,
        f"{num_rows} rows are no set of histograms over {num_states} states.",
    )
    return k


def draw_counts(key: jax.Array, counts: jax.Array, k: int) -> jax.Array:
    """Histogram int32 [L] of k agents drawn uniformly without replacement from `counts` int32 [L]:
    one agent at a time, whatever n is.
    """
    num_states = counts.shape[0]
    left = jnp.sum(counts, dtype=jnp.int32) - jnp.arange(k, dtype=jnp.int32)
    tickets = jax.random.randint(key, (k,), 0, jnp.maximum(left, 1), jnp.int32)

    def draw(i, carried):
        remaining, drawn = carried
        state = jnp.sum(tickets[i] >= jnp.cumsum(remaining, dtype=jnp.int32), dtype=jnp.int32)
        one = (jnp.arange(num_states, dtype=jnp.int32) == state).astype(jnp.int32)
        return remaining - one, drawn + one

    return lax.fori_loop(0, k, draw, (counts, jnp.zeros_like(counts)))[1]


def hypergeometric_weights(counts: jax.Array, k: int, dtype: Any) -> jax.Array:
    """P(sample = h) = prod_j C(counts_j, h_j) / C(n, k) for every histogram h of k agents: [N].
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


def lift(values: Any, num_states: int, num_agents: int) -> jax.Array:
    """Mean of a k-agent table over the samples of every n-agent histogram: values [G, N_k] to [G,
    N_n], n = num_agents ≥ k.

        (lift V)(s_g, h_n) = sum_{h_k} Hyp(h_k; h_n) V(s_g, h_k)

    Applied to V_k* it is the upper bound U_k ≥ V_n*, and a good `initial` for a larger k. One agent
    at a time, exactly: (lift V)(h) = sum_j (h_j / m) V(h - e_j) from m-1 to m agents, so it is
    linear and costs L N_m a step.
    """
    values = jnp.asarray(values)
    k = agents_of(values.shape[-1], num_states)
    num_agents = _checks.static_integer("num_agents", num_agents, k)
    check_size(num_agents, num_states, 8 * values.shape[0])
    if num_states == 1:
        return values
    for m in range(k + 1, num_agents + 1):
        counts = enumerate_counts(m, num_states)
        share = jnp.asarray(counts / m, values.dtype)
        parts = [
            share[None, :, j] * values[:, removals(m, num_states, j)] for j in range(num_states)
        ]
        values = sum(parts[1:], parts[0])
    return values
