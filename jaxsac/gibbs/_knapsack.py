"""Log-partition function and marginals for budgets on integer costs: the log-space programme over
tools.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _loops


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def log_partition(z: jax.Array, costs: jax.Array, budget: int, exactly: bool) -> jax.Array:
    """log Σ_a exp(Σ_{j ∈ a} z_j) over sets of total cost ≤ budget (= budget with `exactly`);
    z, costs [M]. Work M · budget.
    """
    return _total(z, costs, prefix_tables(z, costs, budget)[0], exactly)


@log_partition.defjvp
def _log_partition_jvp(budget, exactly, primals, tangents):
    z, costs = primals
    value, marginals = log_partition_and_marginals(z, costs, budget, exactly)
    return value, jnp.sum(marginals * tangents[0])


def log_partition_and_marginals(
    z: jax.Array, costs: jax.Array, budget: int, exactly: bool
) -> tuple[jax.Array, jax.Array]:
    final, tables = prefix_tables(z, costs, budget)
    value = _total(z, costs, final, exactly)
    feasible = value > -jnp.inf
    allowed = np.arange(budget + 1) >= (budget if exactly else 0)
    seed = jnp.where(allowed & feasible, -jnp.where(feasible, value, 0), floor(z.dtype))

    def step(suffix, entry):
        # suffix_c: log of what the tools after this one, and the budget, make of a prefix that
        # costs c
        score, cost, table = entry
        with_tool = score + _shift_down(suffix, cost, budget)
        marginal = jnp.sum(jnp.exp(with_tool + table))
        return jnp.logaddexp(suffix, jnp.maximum(with_tool, floor(z.dtype))), marginal

    _, marginals = _loops.scan(step, seed, (z, costs, tables), reverse=True)
    return value, jnp.where(jnp.isnan(value), jnp.nan, marginals)


def prefix_tables(z: jax.Array, costs: jax.Array, budget: int) -> tuple[jax.Array, jax.Array]:
    """E_c = log of the sum over sets of total cost exactly c: of all tools [budget + 1], and before
    each tool [M, budget + 1].
    """
    lowest = floor(z.dtype)

    def step(table, entry):
        score, cost = entry
        with_tool = jnp.maximum(score + _shift_up(table, cost, budget), lowest)
        return jnp.logaddexp(table, with_tool), table

    start = jnp.full((budget + 1,), lowest, z.dtype).at[0].set(0)
    return _loops.scan(step, start, (z, costs))


def mode(z: jax.Array, costs: jax.Array, budget: int, exactly: bool) -> jax.Array:
    """Which tools the best set holds, as booleans [M]: ties go to the lowest index, and a score ≤ 0
    is taken only where it must be.
    """
    lowest = floor(z.dtype)

    def value(best, entry):
        score, cost = entry
        with_tool = jnp.maximum(score + _shift_up(best, cost, budget), lowest)
        return jnp.maximum(best, with_tool), best

    # best_c: the largest score that the tools after this one can make of exactly (at most) the
    # budget c.
    start = jnp.full((budget + 1,), lowest if exactly else 0.0, z.dtype).at[0].set(0)
    final, bests = _loops.scan(value, start, (z, costs), reverse=True)

    def choose(left, entry):
        score, cost, best = entry
        with_tool = score + _shift_up(best, cost, budget)[left]
        take = (with_tool > lowest / 4) & (
            (with_tool > best[left]) | ((with_tool == best[left]) & (score > 0))
        )
        return jnp.where(take, left - cost, left), take

    _, chosen = _loops.scan(choose, jnp.asarray(budget, jnp.int32), (z, costs, bests))
    feasible = (final[-1] > lowest / 4) & jnp.all(z < jnp.inf) & jnp.all(costs >= 0)
    return chosen & feasible


def sample(
    key: jax.Array,
    z: jax.Array,
    costs: jax.Array,
    budget: int,
    exactly: bool,
    num_samples: int,
    width: int,
) -> jax.Array:
    """Exact draws, int32 [num_samples, width] padded with −1: a total cost, then tool by tool from
    the last.
    """
    final, tables = prefix_tables(z, costs, budget)
    value = _total(z, costs, final, exactly)
    cost_key, tool_key = jax.random.split(key)
    if exactly:
        total = jnp.full((num_samples,), budget, jnp.int32)
    else:
        total = jax.random.categorical(cost_key, final, shape=(num_samples,)).astype(jnp.int32)
    slots = jnp.arange(width, dtype=jnp.int32)[None, :]

    def step(carry, entry):
        left, count, sets = carry
        index, score, cost, table = entry
        with_tool = score + _shift_up(table, cost, budget)
        probability = jax.nn.sigmoid(with_tool - table)[left]
        take = (
            jax.random.uniform(jax.random.fold_in(tool_key, index), left.shape, z.dtype)
            < probability
        )
        sets = jnp.where(take[:, None] & (slots == count[:, None]), index, sets)
        return (left - jnp.where(take, cost, 0), count + take.astype(jnp.int32), sets), None

    start = (total, jnp.zeros_like(total), jnp.full((num_samples, width), -1, jnp.int32))
    (_, _, sets), _ = _loops.scan(
        step, start, (jnp.arange(z.shape[0], dtype=jnp.int32), z, costs, tables), reverse=True
    )
    return jnp.where(value > -jnp.inf, sets, -1)


def floor(dtype) -> float:
    """Stands for log 0: finite, so that no difference is NaN."""
    return float(jnp.finfo(dtype).min) / 16


def _total(z, costs, table, exactly):
    value = table[-1] if exactly else jax.nn.logsumexp(table)
    value = jnp.where(value > floor(z.dtype) / 4, value, -jnp.inf)
    return jnp.where(jnp.all(z < jnp.inf) & jnp.all(costs >= 0), value, jnp.nan)


def _shift_up(table, cost, budget):
    """table_(c − cost), log 0 where c < cost."""
    position = jnp.arange(budget + 1, dtype=jnp.int32) - cost
    return jnp.where(
        (position >= 0) & (cost >= 0), table[jnp.clip(position, 0, budget)], floor(table.dtype)
    )


def _shift_down(suffix, cost, budget):
    """suffix_(c + cost), log 0 where c + cost > budget."""
    position = jnp.arange(budget + 1, dtype=jnp.int32) + jnp.minimum(cost, budget + 1)
    return jnp.where(
        (position <= budget) & (cost >= 0),
        suffix[jnp.clip(position, 0, budget)],
        floor(suffix.dtype),
    )
