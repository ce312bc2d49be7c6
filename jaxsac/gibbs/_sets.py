"""Single sets of tools: looked up, checked, the best of them, and exact draws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks, _loops
from jaxsac._arguments import integer
from jaxsac.gibbs import _knapsack, _law, _tree
from jaxsac.gibbs._knapsack import Tables
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


@jax.jit(static_argnums=3)
def sample(key: jax.Array, p: Problem, e: Expansion | None, num_samples: int) -> jax.Array:
    """Sets int32 [num_samples, W], padded with −1."""
    feasible = _law.log_partition(p, e).rest > -jnp.inf
    width = p.width
    size = p.z.shape[0]
    nothing = jnp.full((num_samples, width), NO_ACTION, jnp.int32)
    if num_samples == 0 or width == 0 or (size == 0 and p.background is None):
        return nothing
    size_key, tool_key, group_key, alike_key = jax.random.split(key, 4)
    if e is None:
        chance = jax.nn.sigmoid(p.z / p.temperature)
        taken = _tree.uniform(tool_key, (num_samples, size), p.z.dtype) < chance[None, :]
        sets = jnp.where(taken, jnp.arange(size, dtype=jnp.int32)[None, :], NO_ACTION)
        sets = jnp.pad(sets, ((0, 0), (0, width - size)), constant_values=NO_ACTION)
    else:
        law = _law.means(p, e).law
        if isinstance(e.own, Tables):
            sets = _knapsack.sample(tool_key, p, e.own, law, (num_samples, width))
        else:
            sizes = jax.random.categorical(size_key, jnp.log(law), shape=(num_samples,))
            sizes = jnp.where(jnp.sum(law) > 0, sizes.astype(jnp.int32), 0)
            number, groups = sizes, None
            if e.groups is not None and e.groups.values.shape[0]:
                factors = e.groups.values
                own = jnp.zeros((p.degree + 1,), p.z.dtype).at[0].set(1)
                own = own if e.own is None else e.own.values
                number, groups = _tree.split(group_key, own, factors, sizes)
            sets = nothing
            if e.own is not None:
                tree = _tree.grow(jax.nn.sigmoid(e.tilt.of(p.z, p.temperature)), p.degree)
                sets = _tree.draw(tool_key, tree, number, width)
            if groups is not None and p.background is not None:
                alike = _tree.draw_alike(alike_key, p.background, groups, number, width)
                sets = jnp.where(alike >= 0, alike + size, sets)
        sets = jnp.where(feasible, sets, NO_ACTION)
    if p.given is not None:
        sets = with_given(p, sets)
        sets = jnp.where(feasible, sets, NO_ACTION)
    return jnp.where(p.usable, sets, NO_ACTION)


def indicators(sets: jax.Array, num_tools: int, dtype: Any) -> jax.Array:
    """Sets int32 [..., W] as vectors of 0 and 1, [..., M]; tools beyond M are left out."""
    flat = sets.reshape(-1, sets.shape[-1])
    rows = jnp.arange(flat.shape[0])[:, None]
    places = jnp.where(flat == NO_ACTION, num_tools, flat)
    found = jnp.zeros((flat.shape[0], num_tools), dtype).at[rows, places].set(1, mode="drop")
    return found.reshape((*sets.shape[:-1], num_tools))


def require_same_items(p: Problem, q: Problem) -> None:
    (mine, theirs), (kind, other_kind) = zip(*map(_items, (p, q)), strict=True)
    same = kind == other_kind and all(
        not _checks.is_concrete(a, b) or np.array_equal(np.asarray(a), np.asarray(b))
        for a, b in zip(mine, theirs, strict=True)
    )
    _checks.require(
        same,
        "kl needs two policies on the same items: as many scores of one dtype, the same costs"
        " and counts.",
    )


def _items(p: Problem) -> tuple[list[jax.Array], Any]:
    """The costs and counts of a policy, and what else its items are known by."""
    known = p.costs, None if p.background is None else p.background.counts
    leaves, structure = jax.tree.flatten(known)
    return leaves, (structure, p.z.shape, p.z.dtype, [leaf.shape for leaf in leaves])


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
