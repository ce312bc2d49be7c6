"""Budgets on integer costs: the log-space programme over tools, at a tilt of so much a unit of
cost.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops
from jaxsac.gibbs import _tilt
from jaxsac.gibbs._problem import Problem
from jaxsac.gibbs._tilt import Tilt
from jaxsac.gibbs._tree import uniform

_BITS = 2.0**11  # an anchor of so many, times costs below 2^12, is exact in float32


class Tables(NamedTuple):
    """Log-probabilities of the total cost c under independent tools of log odds x: up to a factor
    E_c, the weight of the sets of that cost. Letters: M tools, D the largest total.
    """

    tilt: Tilt  # λ of a unit of cost
    left_out: jax.Array  # [M] log sigmoid(−x)
    taken: jax.Array  # [M] log sigmoid(x), plus what carries the derivative
    before: jax.Array  # [M, D + 1] before each tool
    last: jax.Array  # [D + 1] of all; −inf where no set has that cost
    base: jax.Array  # [] E_c = exp(λ c + base − number · tilt.rise) · table_c
    number: jax.Array  # [] cost of the tools with x > 0


def log_odds(p: Problem, tilt: Tilt) -> jax.Array:
    """z / temperature − λ · cost, [M]."""
    assert p.costs is not None
    costs = p.costs.astype(p.z.dtype)
    return _tilt.relative(p.z, tilt.anchor * costs, p.temperature) - tilt.offset * costs


def expand(p: Problem) -> Tables:
    """The tables of p.z [M], work M · D."""
    assert p.costs is not None
    costs, lowest = p.costs, floor(p.z.dtype)
    tilt = _choose(lax.stop_gradient(p))
    x = log_odds(p, tilt)
    finite = jnp.where(jnp.isfinite(x), x, 0)
    constant = lax.stop_gradient(finite)
    left_out = -jax.nn.softplus(constant)
    taken = -jax.nn.softplus(-constant) + (finite - constant)
    present = jnp.isfinite(x)
    left_out, taken = jnp.where(present, left_out, 0), jnp.where(present, taken, lowest)

    def step(table, entry):
        left_out, taken, cost = entry
        with_tool = taken + _shift_up(table, cost)
        table_next = _log_add(left_out + table, with_tool)
        return jnp.maximum(table_next, lowest), table

    start = jnp.full((p.degree + 1,), lowest, x.dtype).at[0].set(0)
    last, before = _loops.scan(step, start, (left_out, taken, costs))
    last = jnp.where(last > lowest / 4, last, -jnp.inf)
    above, paid = constant > 0, costs.astype(x.dtype)
    own = _tilt.relative(jnp.where(above, p.z, 0), tilt.centre * paid, p.temperature)
    base = jnp.sum(jnp.where(above, own, 0))
    base = base + jnp.sum(jnp.where(present, jnp.log1p(jnp.exp(-jnp.abs(constant))), 0))
    number = jnp.sum(jnp.where(above, paid, 0))
    return Tables(tilt, left_out, taken, before, last, *lax.stop_gradient((base, number)))


def _choose(p: Problem) -> Tilt:
    """Start where the best scores a unit of cost fill the budget."""
    assert p.costs is not None
    low, high = p.limits
    costs = p.costs.astype(p.z.dtype)
    priced = (costs > 0) & jnp.isfinite(p.z)
    rates = jnp.where(priced, p.z / jnp.where(priced, costs, 1), -jnp.inf)
    order = jnp.argsort(-rates)
    through = jnp.cumsum(jnp.where(priced, costs, 0)[order])
    limit = jnp.maximum(high, 1).astype(costs.dtype)
    place = jnp.sum(through < jnp.minimum(limit, through[-1])) if costs.shape[0] else 0
    best = rates[order][place] if costs.shape[0] else jnp.zeros((), costs.dtype)
    best = jnp.where(jnp.isfinite(best), best, 0)
    # At most the budget: no tilt that would favour the costly.
    best = jnp.where(low < high, jnp.maximum(best, 0), best)
    fraction, exponent = jnp.frexp(best)
    anchor = jnp.ldexp(jnp.round(fraction * _BITS) / _BITS, exponent)
    tilt = Tilt(anchor, jnp.zeros_like(anchor), p.temperature, _tilt.nearest(rates))
    part = _tilt.Part(log_odds(p, tilt), costs, 1.0)
    return _tilt.refine(tilt, [part], low, high)


def marginals(p: Problem, tables: Tables, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each tool [M], and of its complement [M]; `seed` [D + 1]: log of the law of the cost over
    `last`.
    """
    lowest = floor(seed.dtype)

    def step(suffix, entry):
        # suffix_c: log of what the tools after this one, and the budget, make of a prefix that
        # costs c
        left_out, taken, cost, before = entry
        with_tool = taken + _shift_down(suffix, cost)
        chosen = jnp.sum(jnp.exp(with_tool + before))
        without = left_out + suffix
        other = jnp.sum(jnp.exp(without + before))
        return jnp.maximum(_log_add(without, with_tool), lowest), (chosen, other)

    entries = (tables.left_out, tables.taken, p.costs, tables.before)
    chosen, others = _loops.scan(step, jnp.maximum(seed, lowest), entries, reverse=True)[1]
    return chosen - lax.stop_gradient(chosen - jnp.clip(chosen, 0, 1)), others


def mode(p: Problem) -> jax.Array:
    """Which tools the best set holds, as booleans [M]: ties go to the lowest index, and a score ≤ 0
    is taken only where it must be.
    """
    z, costs, lowest = p.z, p.costs, floor(p.z.dtype)
    low, high = p.limits

    def value(best, entry):
        score, cost = entry
        with_tool = jnp.maximum(score + _shift_up(best, cost), lowest)
        return jnp.maximum(best, with_tool), best

    # best_c: the largest score that the tools after this one can make of c, less what need not be
    # spent.
    degree = jnp.arange(p.degree + 1, dtype=jnp.int32)
    start = jnp.where(degree <= high - low, jnp.zeros((), z.dtype), lowest)
    final, bests = _loops.scan(value, start, (z, costs), reverse=True)
    best = jnp.where(high >= low, final[jnp.clip(high, 0, p.degree)], lowest)

    def choose(left, entry):
        score, cost, best = entry
        with_tool = score + _shift_up(best, cost)[left]
        take = (with_tool > lowest / 4) & (
            (with_tool > best[left]) | ((with_tool == best[left]) & (score > 0))
        )
        return jnp.where(take, left - cost, left), take

    chosen = _loops.scan(choose, jnp.clip(high, 0, p.degree), (z, costs, bests))[1]
    return chosen & (best > lowest / 4) & p.usable


def sample(key: jax.Array, p: Problem, tables: Tables, law: jax.Array, shape: tuple[int, int]):
    """Exact draws, int32 [num_samples, W] padded with −1: a total cost, then tool by tool from the
    last.
    """
    cost_key, tool_key = jax.random.split(key)
    total = jax.random.categorical(cost_key, jnp.log(law), shape=shape[:1]).astype(jnp.int32)
    slots = jnp.arange(shape[1], dtype=jnp.int32)[None, :]

    def step(carry, entry):
        left, count, sets = carry
        index, left_out, taken, cost, table = entry
        with_tool = taken + _shift_up(table, cost)
        probability = jax.nn.sigmoid(with_tool - (left_out + table))[left]
        take = uniform(jax.random.fold_in(tool_key, index), left.shape, law.dtype) < probability
        sets = jnp.where(take[:, None] & (slots == count[:, None]), index, sets)
        return (left - jnp.where(take, cost, 0), count + take.astype(jnp.int32), sets), None

    start = (total, jnp.zeros_like(total), jnp.full(shape, -1, jnp.int32))
    index = jnp.arange(p.z.shape[0], dtype=jnp.int32)
    entries = (index, tables.left_out, tables.taken, p.costs, tables.before)
    return _loops.scan(step, start, entries, reverse=True)[0][2]


def number_law(p: Problem, tables: Tables, law: jax.Array) -> jax.Array:
    """The law of the number of tools added, [W + 1], of tables by number and cost: work M · W ·
    D.
    """
    lowest, number = floor(law.dtype), p.width

    def step(table, entry):
        left_out, taken, cost = entry
        shifted = jax.vmap(lambda row: _shift_up(row, cost))(table[:-1])
        with_tool = jnp.concatenate([jnp.full((1, law.size), lowest, law.dtype), taken + shifted])
        return jnp.maximum(_log_add(left_out + table, with_tool), lowest), None

    start = jnp.full((number + 1, law.size), lowest, law.dtype).at[0, 0].set(0)
    table = _loops.scan(step, start, (tables.left_out, tables.taken, p.costs))[0]
    reached = jnp.isfinite(tables.last)
    shares = jnp.exp(table - jnp.where(reached, tables.last, 0)[None, :])
    return jnp.matmul(jnp.where(reached[None, :], shares, 0), law, precision="highest")


def _log_add(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(exp a + exp b) of finite numbers, with derivatives of every order also where a = b: there
    those of `jnp.logaddexp` beyond the first are wrong in jax 0.10.1.
    """
    swap = a < b
    high, low = jnp.where(swap, b, a), jnp.where(swap, a, b)
    return high + jnp.log1p(jnp.exp(low - high))


def floor(dtype) -> float:
    """Stands for log 0: finite, so that no difference is NaN."""
    return float(jnp.finfo(dtype).min) / 16


def _shift_up(table, cost):
    """table_(c − cost), log 0 where c < cost."""
    budget = table.shape[0] - 1
    position = jnp.arange(budget + 1, dtype=jnp.int32) - cost
    return jnp.where(
        (position >= 0) & (cost >= 0), table[jnp.clip(position, 0, budget)], floor(table.dtype)
    )


def _shift_down(suffix, cost):
    """suffix_(c + cost), log 0 where c + cost > budget."""
    budget = suffix.shape[0] - 1
    position = jnp.arange(budget + 1, dtype=jnp.int32) + jnp.minimum(cost, budget + 1)
    return jnp.where(
        (position <= budget) & (cost >= 0),
        suffix[jnp.clip(position, 0, budget)],
        floor(suffix.dtype),
    )
