"""Exact samples of budgeted Gibbs policies (Gumbel top-k draws from another distribution,
Plackett–Luce).
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _checks, _loops
from jaxsac.gibbs import _knapsack
from jaxsac.gibbs._arguments import Problem, problem, width
from jaxsac.gibbs._cardinality import size_law
from jaxsac.gibbs._polynomial import Polynomial, expand
from jaxsac.gibbs._tail import elementary

_BATCH = 8  # the part of the sets proposed at a time is one in so many
_ROUNDS = 256  # rejection rounds before the sets still missing are drawn tool by tool
_PAIRS = 32  # set sizes up to which duplicates are found by comparing pairs


def sample(
    key: jax.Array,
    z: Any,
    budget: int,
    num_samples: int,
    *,
    exactly: bool = False,
    costs: Any = None,
    temperature: Any = 1.0,
) -> jax.Array:
    """Independent exact draws from the Gibbs policy over budgeted sets.

    Set sizes come from their law; then the largest scores (the head) one by one with the
    conditional probabilities of the partition function's own table; the remaining tools by
    independent draws from the tail's weights, redrawn until distinct. With K head scores the
    expected number of colliding pairs is at most B (B − 1) / (8 (K − B + 1)); K = B + B (B − 1) / 4
    bounds it by 1/2, and so the expected number of proposals by 2. Sets still missing after many
    rounds are drawn tool by tool from the exact conditional probabilities. O(M B) work and O(M +
    B³) memory once, then O(B³) work a sample; with `costs`, O(M · budget + M · num_samples · W).

    * `key`: a random key; it is consumed.
    * `num_samples`: ≥ 0; static.
    * `z`, `budget`, `exactly`, `costs`, `temperature`: as in `log_partition`.

    Returns: int32 [num_samples, W], padded with −1 (`NO_ACTION`). W is `budget`; with `costs` the
    size of the largest set that they allow (M where the costs are traced). Order within a row means
    nothing. All −1 where no set is feasible, and where a score is NaN or +inf.
    """
    p = problem(z, budget, exactly, costs, None, temperature)
    return _sample(key, p, _checks.static_integer("num_samples", num_samples, 0), width(p))


@partial(jax.jit, static_argnums=(2, 3))
def _sample(key: jax.Array, p: Problem, num_samples: int, width: int) -> jax.Array:
    p = p.cold()
    size, budget = p.z.shape[0], p.budget
    if p.costs is not None:
        return _knapsack.sample(key, p.z, p.costs, budget, p.exactly, num_samples, width)
    usable = jnp.all(p.z < jnp.inf)
    if budget == 0 or size == 0 or num_samples == 0:
        return jnp.full((num_samples, budget), -1, jnp.int32)
    tools = jnp.arange(size, dtype=jnp.int32)[None, :]
    if budget >= size:
        if p.exactly:
            taken = jnp.broadcast_to(jnp.all(p.z > -jnp.inf), (num_samples, size))
        else:
            taken = (
                jax.random.uniform(key, (num_samples, size), p.z.dtype)
                < jax.nn.sigmoid(p.z)[None, :]
            )
        sets = jnp.where(taken, tools, -1)
        sets = jnp.concatenate(
            [sets, jnp.full((num_samples, budget - size), -1, jnp.int32)], axis=1
        )
    else:
        sets = _constrained(
            key, p.z, budget, p.exactly, num_samples, head_entries(size, budget), _ROUNDS
        )
    return jnp.where(usable, sets, -1)


def head_entries(size: int, budget: int) -> int:
    """Head entries for at most 2 expected proposals; all scores where that leaves only a short
    tail.
    """
    enough = budget + math.ceil(budget * (budget - 1) / 4)
    return size if size <= 2 * enough else enough


def _constrained(key, z, budget, exactly, num_samples, head, rounds):
    polynomial = expand(z, budget, head)
    value, law = size_law(polynomial.centre, polynomial.units, polynomial.values, exactly)
    size_key, head_key, tail_key = jax.random.split(key, 3)
    sizes = jax.random.categorical(size_key, jnp.log(law), shape=(num_samples,)).astype(jnp.int32)
    sizes = jnp.where(value.rest > -jnp.inf, sizes, 0)  # −inf: infeasible; NaN: bad scores
    remaining, chosen = _draw_head(head_key, polynomial, sizes)
    if head < z.shape[0]:
        chosen = _draw_tail(tail_key, polynomial, remaining, chosen, rounds)
    return chosen


def _draw_head(
    key: jax.Array, polynomial: Polynomial, sizes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Go through the head backwards: entry k is in a set that still has r tools to choose with
    probability take_kr e_(r−1) / e_r.

    The tool that is the r-th still to choose goes to column r − 1, so that the tail's tools get the
    first columns.
    """
    count, budget = polynomial.keep.shape[0], polynomial.keep.shape[1] - 1
    with_entry = polynomial.take[:, 1:] * polynomial.steps[:, :-1]
    either = with_entry + polynomial.keep[:, 1:] * polynomial.steps[:, 1:]
    probability = jnp.concatenate(
        [jnp.zeros((count, 1), either.dtype), with_entry / jnp.where(either > 0, either, 1)], axis=1
    )
    columns = jnp.arange(1, budget + 1, dtype=jnp.int32)[None, :]

    def step(carry, entry):
        remaining, chosen = carry
        number, index, probability = entry
        uniform = jax.random.uniform(
            jax.random.fold_in(key, number), remaining.shape, probability.dtype
        )
        take = uniform < probability[remaining]
        chosen = jnp.where(take[:, None] & (columns == remaining[:, None]), index, chosen)
        return (remaining - take.astype(jnp.int32), chosen), None

    start = (sizes, jnp.full((sizes.shape[0], budget), -1, jnp.int32))
    entries = (jnp.arange(count, dtype=jnp.int32), polynomial.head, probability)
    return _loops.scan(step, start, entries, reverse=True)[0]


class _Inverse(NamedTuple):
    """Weights cumulated in two levels: a float32 sum over all tools would round rare ones away.
    Block b holds the tools b, b + blocks, …
    """

    blocks: jax.Array  # [blocks]
    within: jax.Array  # [block size, blocks]
    weights: jax.Array  # [M]


def _inverse(weights: jax.Array) -> _Inverse:
    size = weights.shape[0]
    block = 1 << math.ceil(math.log2(size) / 2)
    padded = jnp.concatenate([weights, jnp.zeros((-size % block,), weights.dtype)]).reshape(
        block, -1
    )
    total, within = _cumulate(padded)
    return _Inverse(_cumulate(total)[1], within, weights)


def _cumulate(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums and cumulated sums along the first axis, in a loop: `jnp.cumsum` is slow to compile on
    CPUs.
    """

    def step(total, row):
        return total + row, total + row

    return _loops.scan(step, jnp.zeros(rows.shape[1:], rows.dtype), rows)


def _propose(
    key: jax.Array, inverse: _Inverse, shape: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Independent draws from the weights, and whether each has a weight > 0 (rounding may land on
    one that has none).
    """
    outer, inner = jax.random.uniform(key, (2, *shape), inverse.weights.dtype)
    size, blocks = inverse.within.shape
    block = _bisect(lambda i: inverse.blocks[i], blocks, outer * inverse.blocks[-1])
    target = inner * inverse.within[-1, block]
    index = _bisect(lambda i: inverse.within[i, block], size, target) * blocks + block
    index = jnp.minimum(index, inverse.weights.shape[0] - 1)
    return index, inverse.weights[index] > 0


def _bisect(value, size: int, target: jax.Array) -> jax.Array:
    """The number of i < size − 1 with value(i) ≤ target, for rising values."""

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        right = value(middle) <= target
        return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

    low = jnp.zeros(target.shape, jnp.int32)
    bounds = (low, jnp.full_like(low, size - 1))
    return _loops.fori_loop(0, (size - 1).bit_length(), halve, bounds)[0]


def _draw_tail(
    key: jax.Array, polynomial: Polynomial, remaining: jax.Array, chosen: jax.Array, rounds: int
) -> jax.Array:
    """Fill the first `remaining` columns of each row with distinct tail entries, with probability ∝
    the product of their weights.
    """
    num_samples, budget = chosen.shape
    inverse = _inverse(polynomial.weights)
    columns = jnp.arange(budget, dtype=jnp.int32)[None, :]
    batch = min(num_samples, max(64, num_samples // _BATCH))

    def propose(state):
        round, pending, chosen = state
        due, rows = lax.top_k(pending.astype(jnp.float32), batch)  # the first that are pending
        index, positive = _propose(jax.random.fold_in(key, round), inverse, (batch, budget))
        inside = columns < remaining[rows][:, None]
        accepted = (due > 0) & _distinct(index, inside) & jnp.all(positive | ~inside, axis=1)
        chosen = chosen.at[rows].set(jnp.where(accepted[:, None] & inside, index, chosen[rows]))
        return round + 1, pending.at[rows].set((due > 0) & ~accepted), chosen

    def one_by_one(state):
        round, pending, chosen = state
        row = jnp.argmax(pending)
        tools = _draw_conditionally(jax.random.fold_in(key, round), polynomial, remaining[row])
        return (
            round + 1,
            pending.at[row].set(False),
            chosen.at[row].set(jnp.where(tools >= 0, tools, chosen[row])),
        )

    state = _loops.while_loop(
        lambda s: (s[0] < rounds) & jnp.any(s[1]), propose, (0, remaining > 0, chosen)
    )
    return _loops.while_loop(lambda s: jnp.any(s[1]), one_by_one, state)[2]


def _distinct(index: jax.Array, inside: jax.Array) -> jax.Array:
    """Whether the entries of each row that are `inside` differ."""
    size = index.shape[1]
    if size <= _PAIRS:
        same = jnp.zeros(index.shape[:1], bool)
        for shift in range(1, size):
            same |= jnp.any(
                (index[:, shift:] == index[:, :-shift]) & inside[:, shift:], axis=1
            )  # the insides are the first columns
        return ~same
    outside = -jnp.arange(1, size + 1, dtype=index.dtype)[None, :]
    ordered = jnp.sort(jnp.where(inside, index, outside), axis=1)
    return jnp.all(ordered[:, 1:] != ordered[:, :-1], axis=1)


def _draw_conditionally(key: jax.Array, polynomial: Polynomial, count: jax.Array) -> jax.Array:
    """One set of `count` tail tools, [B] padded with −1: each from its exact conditional
    probability given those before it. O(M B²).
    """
    budget = polynomial.units.shape[0]

    def step(r, carry):
        weights, tools = carry
        scaled = weights / polynomial.level
        coefficients = elementary(weights, 1 / polynomial.level, budget)

        def divide(
            d, others
        ):  # e_d of all the others, for every entry: e_d(all) − w e_(d−1)(others)
            return jnp.where(d < count - r, coefficients[d] - scaled * others, others)

        others = _loops.fori_loop(0, budget, divide, jnp.zeros_like(scaled))
        index = jax.random.categorical(
            jax.random.fold_in(key, r), jnp.log(jnp.maximum(scaled * others, 0))
        ).astype(jnp.int32)
        due = r < count
        weights = weights.at[index].multiply(jnp.where(due, 0, 1).astype(weights.dtype))
        return weights, tools.at[r].set(jnp.where(due, index, -1))

    start = (polynomial.weights, jnp.full((budget,), -1, jnp.int32))
    return _loops.fori_loop(0, budget, step, start)[1]
