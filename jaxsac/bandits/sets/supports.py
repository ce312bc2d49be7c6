"""Which support is best: greedy, exact, and how far greedy may be from exact."""

import math
from functools import partial
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks
from jaxsac._arguments import arguments, real, size
from jaxsac.bandits.sets.action_set import ActionSet, Selection, a_set

_MAX_SUPPORTS = 1_000_000
_CHUNK = 256


_PROBLEM = {"action_set": a_set, "theta": real("d"), "sparsity": size(1, "d")}


def cast(action_set: ActionSet, dtype) -> ActionSet:
    """The set with its numbers as arrays of `dtype`: one trace for all kinds of numbers."""

    def leaf(value):
        array = jnp.asarray(value)
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.number) else array

    return jax.tree.map(leaf, action_set)


@arguments(**_PROBLEM)
def greedy_support(action_set: ActionSet, theta: jax.Array, sparsity: int) -> Selection:
    """Choose a support by adding, `sparsity` times, the coordinate i that maximises f(S + i) = max
    ⟨theta, x⟩ over x ∈ X supported in S + i.

    `theta` [d]. Ties go to the lowest index. Exact on balls, l_p balls, boxes, the cross-polytope
    and the simplex. A NaN in theta gives a NaN value. Source: arXiv 2605.10151, Algorithm 2;
    Nemhauser, Wolsey and Fisher (1978).
    """
    return _greedy(cast(action_set, theta.dtype), theta, sparsity)


@partial(jax.jit, static_argnames="sparsity")
def _greedy(action_set, theta, sparsity):
    return action_set.greedy(theta, sparsity)


@arguments(**_PROBLEM)
def best_support(action_set: ActionSet, theta: jax.Array, sparsity: int) -> Selection:
    """The support of `sparsity` coordinates of largest f, exactly: greedy where that is exact, else
    by visiting all of them.

    `theta` [d]; `indices` ascend where all are visited, and ties go to the first in that order.
    Above a million supports the answer is a ValueError: `branch_and_bound` may reach further. The
    `gap` is the lead over the second best support (as in `greedy_support` where that is exact).
    """
    return _best(cast(action_set, theta.dtype), theta, sparsity)


@partial(jax.jit, static_argnames="sparsity")
def _best(action_set, theta, sparsity):
    dimension = theta.shape[0]
    if action_set.greedy_is_exact or sparsity == 1:
        return action_set.greedy(theta, sparsity)
    count = math.comb(dimension, sparsity)
    _checks.require(
        count <= _MAX_SUPPORTS,
        f"sparsity {sparsity} makes {count} supports, too many to visit: use greedy_support, or"
        " branch_and_bound outside jit; in a simulation, benchmark='greedy', or what"
        " branch_and_bound returns.",
    )
    rows = combinations(range(dimension), sparsity)
    supports = jnp.asarray(np.fromiter(rows, np.dtype((np.int32, sparsity)), count))

    def evaluate(indices):
        return action_set.restrict(indices, dimension).support(theta[indices])

    values = lax.map(evaluate, supports, batch_size=min(_CHUNK, count))
    best = jnp.argmax(values)
    rest = jnp.where(jnp.arange(count) == best, -jnp.inf, values)
    gap = (
        (values[best] - rest[jnp.argmax(rest)]).astype(theta.dtype)
        if count > 1
        else jnp.asarray(jnp.inf, theta.dtype)
    )
    return Selection(
        supports[best], jnp.zeros(dimension, bool).at[supports[best]].set(True), values[best], gap
    )


@arguments(on_host=True, **_PROBLEM, max_nodes=size(1))
def branch_and_bound(
    action_set: ActionSet, theta: jax.Array, sparsity: int, *, max_nodes: int = 100_000
) -> tuple[Selection, int]:
    """The best support by branch and bound, and the number of nodes it looked at; runs on the host.

    A node fixes some coordinates in and some out; f of everything not out bounds it, because f
    grows with the support. Raises `RuntimeError` after `max_nodes` nodes.
    """
    action_set = cast(action_set, theta.dtype)
    dimension = theta.shape[0]
    order = np.argsort(-np.abs(np.asarray(theta)), kind="stable")
    best = _greedy(action_set, theta, sparsity)
    incumbent, best_mask = float(best.value), np.asarray(best.mask)
    slack = 16.0 * float(jnp.finfo(theta.dtype).eps)
    # Coordinates in, number of decided coordinates in `order`.
    stack, nodes = [(np.zeros(dimension, bool), 0)], 0
    while stack:
        if nodes >= max_nodes:
            raise RuntimeError(
                f"branch and bound needs more than max_nodes = {max_nodes} nodes: raise it, or use"
                " greedy_support."
            )
        chunk = [stack.pop() for _ in range(min(_CHUNK, len(stack)))]
        nodes += len(chunk)
        children = []
        for chosen, level in chunk:
            with_it = chosen.copy()
            with_it[order[level]] = True
            children += [(with_it, level + 1), (chosen, level + 1)]
        upper = np.zeros((2 * _CHUNK, dimension), bool)
        for row, (chosen, level) in enumerate(children):
            upper[row] = chosen
            if chosen.sum() < sparsity:
                upper[row, order[level:]] = True
        values, sizes = np.asarray(_values(action_set, theta, upper)), upper.sum(axis=1)
        # What holds more coordinates is still to be divided, what holds fewer is no support.
        for row, child in enumerate(children):
            if sizes[row] == sparsity and values[row] > incumbent:
                incumbent, best_mask = float(values[row]), upper[row].copy()
            elif sizes[row] > sparsity and values[row] > incumbent * (1.0 + slack):
                stack.append(child)
    indices = jnp.asarray(np.flatnonzero(best_mask), jnp.int32)
    return Selection(
        indices,
        jnp.asarray(best_mask),
        jnp.asarray(incumbent, theta.dtype),
        jnp.asarray(jnp.nan, theta.dtype),
    ), nodes


@jax.jit
def _values(action_set, theta, masks):
    return jax.vmap(lambda mask: action_set.support(theta, mask))(masks)


@arguments(on_host=True, **_PROBLEM)
def submodularity_ratio(action_set: ActionSet, theta: jax.Array, sparsity: int) -> float:
    """min of Σ_{i∈S} (f(L + i) − f(L)) / (f(L + S) − f(L)) over disjoint L, S with |L|, |S| ≤ s, by
    brute force on the host.

    Greedy reaches at least 1 − exp(−ratio) of the best f (Das and Kempe, 2011); the ratio is at
    least 1 for submodular f. Ratios 0/0 count as 1. For d ≤ 12. A NaN in theta gives NaN.
    """
    dimension = theta.shape[0]
    _checks.require(
        dimension <= 12,
        f"theta must have d <= 12 coordinates, got {dimension}: the brute force visits 3^d pairs of"
        " supports.",
    )
    codes = np.arange(2**dimension)
    masks = (codes[:, None] >> np.arange(dimension)) & 1 > 0
    f = np.asarray(_values(cast(action_set, theta.dtype), theta, masks), np.float64)
    if not np.all(np.isfinite(f)):
        return float("nan")
    sizes = masks.sum(1)
    tiny = 100.0 * float(jnp.finfo(theta.dtype).eps) * max(f.max(), 1e-300)
    least = np.inf
    for base in codes[sizes <= sparsity]:
        single = f[base | (1 << np.arange(dimension))] - f[base]
        added = codes[(codes & base == 0) & (sizes <= sparsity) & (sizes > 0)]
        gain = f[base | added] - f[base]
        real = gain > tiny
        if real.any():
            least = min(
                least, float(np.min((masks[added[real]] @ np.maximum(single, 0.0)) / gain[real]))
            )
    return least if np.isfinite(least) else 1.0


def benchmark_of(
    action_set: ActionSet, theta: jax.Array, sparsity: int, benchmark: str, alpha: Any
) -> Selection:
    """What regret is measured against; its value is the reward of a step."""
    if benchmark == "greedy":
        return action_set.greedy(theta, sparsity)
    best = _best(cast(action_set, theta.dtype), theta, sparsity)
    return best._replace(value=alpha * best.value) if benchmark == "alpha" else best
