"""Single sets of tools: looked up, checked, and the best of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks, _loops
from jaxsac._arguments import integer
from jaxsac.gibbs import _knapsack
from jaxsac.gibbs._law import Expansion
from jaxsac.gibbs._problem import NO_ACTION, Problem


def checked(sets: Any, p: Problem) -> jax.Array:
    """`sets` as int32 [..., W]; ValueError for concrete ones that cannot be sets of the policy."""
    _checks.require(
        np.ndim(sets) >= 1,
        f"sets must have shape [..., W], got {list(np.shape(sets))}: one row of tool indices per"
        " set.",
    )
    sets = integer(...).take("sets", sets)
    if _checks.is_concrete(sets, p.costs, p.background, p.budget):
        _check(np.asarray(sets), p)
    return sets


def _check(sets: np.ndarray, p: Problem) -> None:
    total = p.z.shape[0] + (0 if p.background is None else int(np.sum(p.background.counts)))
    bad = (sets < NO_ACTION) | (sets >= total)
    _checks.require(
        not bad.any(),
        f"sets: a set holds the index {sets[bad][:1]}, but tools are numbered 0 to {total - 1} (and"
        f" {NO_ACTION} pads).",
    )
    ordered = np.sort(sets, axis=-1)
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    _checks.require(
        not twice.any(),
        f"sets: a set names the tool {ordered[..., 1:][twice][:1]} twice: remove duplicates.",
    )
    spent = sets >= 0
    if p.costs is not None and total:
        spent = np.where(spent, np.asarray(p.costs, np.int64)[np.maximum(sets, 0)], 0)
    spent = np.sum(spent, axis=-1)
    most, budget = int(np.max(spent, initial=0)), int(p.budget)
    what = f"{most} tools" if p.costs is None else f"total cost {most}"
    _checks.require(
        most <= budget,
        f"sets: a set has {what}, more than budget={budget}: shorten it or raise the budget.",
    )


def look_up(sets: jax.Array, p: Problem) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether each set [...] is one, with the given tools; the scores of its other tools and their
    costs, [..., W] each, 0 for what is none.
    """
    size, members = p.z.shape[0], sets != NO_ACTION
    own = (sets >= 0) & (sets < size)
    known, place = own, jnp.clip(sets, 0, max(size - 1, 0))
    held = jnp.zeros(sets.shape, bool)
    scores = jnp.zeros(sets.shape, p.z.dtype)
    costs = jnp.ones(sets.shape, jnp.int32)
    if size:
        scores, held = p.z[place], own & p.held[place]
        costs = costs if p.costs is None else p.costs[place]
    if p.background is not None and p.background.scores.shape[0]:
        ends = size + jnp.cumsum(p.background.counts, dtype=jnp.int32)
        group = jnp.minimum(jnp.searchsorted(ends, sets, side="right"), ends.shape[0] - 1)
        behind = (sets >= size) & (sets < ends[-1])
        scores = jnp.where(behind, p.background.scores[group], scores)
        known = own | behind
    absent = -jnp.arange(1, sets.shape[-1] + 1, dtype=jnp.int32)
    ordered = jnp.sort(jnp.where(members, sets, absent), axis=-1)
    valid = jnp.all(known | ~members, axis=-1)
    valid &= jnp.all(ordered[..., 1:] != ordered[..., :-1], axis=-1)
    valid &= jnp.sum(held, axis=-1, dtype=jnp.int32) == jnp.sum(p.held, dtype=jnp.int32)
    added = members & known & ~held
    return valid, jnp.where(added, scores, 0), jnp.where(added, costs, 0)


def with_given(p: Problem, sets: jax.Array) -> jax.Array:
    """`sets` int32 [N, W] with the given tools in free slots."""
    if p.given is None or p.given.shape[0] == 0:
        return sets
    given = p.given[jnp.argsort(p.given < 0, stable=True)]
    place = jnp.cumsum(sets < 0, axis=-1, dtype=jnp.int32) - 1  # among the free slots
    inside = (sets < 0) & (place < given.shape[0])
    return jnp.where(inside, given[jnp.clip(place, 0, given.shape[0] - 1)], sets)


def _candidates(p: Problem, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` best scores, best first, and whose they are (fewer where there are fewer)."""
    best, index = lax.top_k(p.z, min(count, p.z.shape[0]))
    index = index.astype(jnp.int32)
    if p.background is None:
        return best, index
    counts = p.background.counts
    starts = p.z.shape[0] + jnp.cumsum(counts, dtype=jnp.int32) - counts
    member = jnp.arange(count, dtype=jnp.int32)[None, :]
    scores = jnp.where(member < counts[:, None], p.background.scores[:, None], -jnp.inf)
    best = jnp.concatenate([best, scores.reshape(-1)])
    index = jnp.concatenate([index, (starts[:, None] + member).reshape(-1)])
    best, place = lax.top_k(best, min(count, best.shape[0]))
    return best, index[place]


@jax.jit
def mode(p: Problem) -> jax.Array:
    """The best set, int32 [W]."""
    low, high = p.limits
    if p.costs is not None:
        chosen = _knapsack.mode(p)
        best, index = lax.top_k(jnp.where(chosen, p.z, -jnp.inf), min(p.width, p.z.shape[0]))
        taken, index = best > -jnp.inf, index.astype(jnp.int32)
        enough = jnp.sum(jnp.where(chosen, p.costs, 0), dtype=jnp.int32) >= low
    else:
        best, index = _candidates(p, p.width)
        available = best > -jnp.inf
        place = jnp.arange(best.shape[0], dtype=jnp.int32)
        taken = available & (place < high) & ((best > 0) | (place < low))
        enough = jnp.sum(taken, dtype=jnp.int32) >= low
    sets = jnp.pad(
        jnp.where(taken, index, NO_ACTION), (0, p.width - index.size), constant_values=NO_ACTION
    )
    return jnp.where(p.usable & enough & (high >= 0), with_given(p, sets[None])[0], NO_ACTION)


@jax.jit(static_argnums=2)
def best(p: Problem, e: Expansion | None, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` best sets, int32 [count, W], best first, and whether there are so many.

    Tool by tool, the `count` best totals of each size (or cost), with what they came from. Without
    costs only the budget + count best tools can be in any of them.
    """
    low, high = p.limits
    if p.costs is None:
        scores, index = _candidates(p, p.degree + count)
        costs = jnp.ones(scores.shape, jnp.int32)
    else:
        order = jnp.argsort(-p.z)
        scores, index, costs = p.z[order], order.astype(jnp.int32), p.costs[order]
    # At the policy's tilt totals stay small, however large the scores are.
    anchor = jnp.zeros((), p.z.dtype) if e is None else e.tilt.anchor
    slope = jnp.zeros((), p.z.dtype) if e is None else e.tilt.value
    paid = costs.astype(p.z.dtype)
    x = (scores - anchor * paid) / p.temperature - (slope - anchor / p.temperature) * paid
    degree = jnp.arange(p.degree + 1, dtype=jnp.int32)

    def add(totals, tool):
        x, cost = tool
        before = degree - cost
        shifted = jnp.where((before >= 0)[:, None], totals[jnp.maximum(before, 0)], -jnp.inf)
        return lax.top_k(jnp.concatenate([totals, shifted + x], axis=1), count)

    start = jnp.full((p.degree + 1, count), -jnp.inf, x.dtype).at[0, 0].set(0)
    totals, sources = _loops.scan(add, start, (x, costs))
    allowed = ((degree >= low) & (degree <= high) & p.usable)[:, None]
    moved = jnp.where(
        totals > -jnp.inf, totals + ((degree - high).astype(x.dtype) * slope)[:, None], -jnp.inf
    )
    totals, places = lax.top_k(jnp.where(allowed, moved, -jnp.inf).reshape(-1), count)
    found = totals > -jnp.inf

    def back(carry, tool):
        size, rank, used, sets = carry
        source, cost, index = tool
        source = source[size, rank]
        taken = (source >= count) & found
        slot = (jnp.arange(p.width, dtype=jnp.int32)[None, :] == used[:, None]) & taken[:, None]
        sets = jnp.where(slot, index, sets)
        size = size - jnp.where(taken, cost, 0)
        return (size, source % count, used + taken.astype(jnp.int32), sets), None

    used = jnp.zeros((count,), jnp.int32)
    sets = jnp.full((count, p.width), NO_ACTION, jnp.int32)
    start = (places // count, places % count, used, sets)
    (_, _, used, sets), _ = _loops.scan(back, start, (sources, costs, index), reverse=True)
    # They were found from the worst tool to the best.
    place = jnp.arange(p.width, dtype=jnp.int32)[None, :]
    sets = jnp.take_along_axis(
        sets, jnp.where(place < used[:, None], used[:, None] - 1 - place, place), 1
    )
    return jnp.where(found[:, None], with_given(p, sets), NO_ACTION), found


def require_same_items(p: Problem, q: Problem) -> None:
    same = p.z.shape == q.z.shape and p.z.dtype == q.z.dtype
    for mine, theirs in ((p.costs, q.costs), (p.background, q.background)):
        same &= (mine is None) == (theirs is None)
    if p.background is not None and q.background is not None and same:
        counts = p.background.counts, q.background.counts
        same &= counts[0].shape == counts[1].shape
    pairs = [(p.costs, q.costs)]
    if p.background is not None and q.background is not None:
        pairs.append((p.background.counts, q.background.counts))
    for mine, theirs in pairs:
        if same and mine is not None and _checks.is_concrete(mine, theirs):
            same &= bool(np.array_equal(np.asarray(mine), np.asarray(theirs)))
    _checks.require(
        same,
        "kl needs two policies on the same items: as many scores of one dtype, the same costs"
        " and counts.",
    )


def sizes_within(p: Problem, q: Problem, law: jax.Array) -> jax.Array:
    """[] bool: whether q admits all sizes (or costs) that p has; `law` [D + 1] of what p adds."""
    if p.costs is not None:
        total = jnp.arange(p.degree + 1, dtype=jnp.int32) + p.spent
        return ~jnp.any((law > 0) & ((total < q.at_least) | (total > q.budget)))
    available = jnp.sum(p.z > -jnp.inf, dtype=jnp.int32)
    if p.background is not None:
        counts = jnp.where(p.background.scores > -jnp.inf, p.background.counts, 0)
        available = available + jnp.sum(counts, dtype=jnp.int32)
    least = jnp.maximum(p.at_least, p.spent)
    most = jnp.minimum(p.budget, available + p.spent)
    return (least >= q.at_least) & (most <= q.budget)
