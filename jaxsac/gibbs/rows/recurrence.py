"""The recurrence over the tools, with the rows as the vector axis.

For scores z [W, N] (W tools, N rows) the weight of all sets of exactly r tools in row t is the
elementary symmetric polynomial h_r(t) = e_r(exp z_1t, …, exp z_Wt), h_r ← h_r + exp(z_jt) h_(r−1).
The carry is a tuple of B + 1 vectors, so that each step is a handful of fused vector operations on
a block of rows that stays in cache. Everything else in the row (other tools) enters through
`log_rest` [B + 1, N]: log_rest[r] is the log weight of all that may accompany r of the W tools, so
that log Z_t = log Σ_r h_r(t) exp(log_rest[r, t]).

A row is scaled by its largest score (or by nothing, if that is negative). Where a coefficient is
lost by that, a block of rows is done again with a unit for each degree, the product of the row's r
largest weights: in it every coefficient lies between 1 and the number of sets, whatever the scores.
The tools above the B-th largest score (at most B − 1, the head) then enter last, one by one; all
others have weights of at most 1 in units of that score. Nobody asks which tools they are, so ties
do no harm.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops
from jaxsac._arguments import arguments, real, size

# Rows per block: W · (B + 1) · _BLOCK numbers of prefix table stay near the second-level cache.
_BLOCK = 512


@arguments(scores=real("W", "N"), budget=size())
def log_size_weights(scores: jax.Array, budget: int) -> jax.Array:
    """log e_r(exp z) for r = 0, …, B as [B + 1, N], from scores [W, N]; −inf scores are absent
    tools. O(W B N), no table.
    """

    def block(units_of, scores):
        units = units_of(scores, budget)
        values = _polynomial(_weights(scores, units.base), budget)[0]
        values = _multiply_head(units, values)[0]
        logs = [_safe_log(v) + unit for v, unit in zip(values, _through(units), strict=True)]
        return jnp.stack(logs), _lost(scores, values)

    return _by_blocks(functools.partial(_either, block), scores)


@arguments(scores=real("W", "N"), budget=size(), log_rest=real("budget + 1", "N"))
def marginals(scores: jax.Array, log_rest: jax.Array, budget: int) -> jax.Array:
    """P_t(tool j is chosen) as [W, N], given log_rest [B + 1, N]: the adjoint of the recurrence,
    all terms positive.
    """

    def block(units_of, scores, log_rest):
        units = units_of(scores, budget)
        weights = _weights(scores, units.base)
        last, prefixes = _polynomial(weights, budget, keep=True)
        values, steps = _multiply_head(units, last)
        logs = [
            jnp.where(value > 0, rest + unit, -jnp.inf)
            for value, rest, unit in zip(values, log_rest, _through(units), strict=True)
        ]
        top = functools.reduce(jnp.maximum, logs)
        adjoint = [jnp.exp(log - jnp.where(top == -jnp.inf, 0, top)) for log in logs]
        mass = sum(w * value for w, value in zip(adjoint, values, strict=True))
        adjoint = [w / jnp.where(mass == 0, 1, mass) for w in adjoint]
        adjoint, head = _unwind_head(units, steps, adjoint)

        def step(adjoint, item):
            weight, prefix = item
            chosen = adjoint[1] * prefix[0]
            for r in range(2, budget + 1):
                chosen = chosen + adjoint[r] * prefix[r - 1]
            lower = tuple(adjoint[r] + weight * adjoint[r + 1] for r in range(budget))
            return (*lower, adjoint[budget]), weight * chosen

        if budget == 0:
            return jnp.zeros_like(weights), jnp.asarray(False)
        chosen = _loops.scan(step, tuple(adjoint), (weights, prefixes), reverse=True)[1]
        for score, own in zip(units.of, head, strict=False):
            here = (scores == score[None, :]) & (scores > units.base[None, :])
            chosen = jnp.where(here, own[None, :], chosen)
        return chosen, _lost(scores, values)

    return _by_blocks(functools.partial(_either, block), scores, log_rest)


@arguments(scores=real("W", "N"), budget=size(), log_rest=real("budget + 1", "N"))
def log_partition(scores: jax.Array, log_rest: jax.Array, budget: int) -> jax.Array:
    """log Z [N] = log Σ_r e_r(exp z) exp(log_rest[r]) from scores [W, N] and log_rest [B + 1, N];
    differentiable in both (reverse mode).
    """
    return _log_partition(scores, log_rest, budget)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _log_partition(scores: jax.Array, log_rest: jax.Array, budget: int) -> jax.Array:
    return jax.nn.logsumexp(log_size_weights(scores, budget) + log_rest, axis=0)


def _log_partition_forward(scores, log_rest, budget):
    log_sizes = log_size_weights(scores, budget)
    value = jax.nn.logsumexp(log_sizes + log_rest, axis=0)
    return value, (scores, log_rest, log_sizes, value)


def _log_partition_backward(budget, saved, cotangent):
    scores, log_rest, log_sizes, value = saved
    size_law = jnp.exp(log_sizes + log_rest - value[None, :])
    own = marginals(scores, log_rest, budget)
    return cotangent[None, :] * own, cotangent[None, :] * size_law


_log_partition.defvjp(_log_partition_forward, _log_partition_backward)


class _Units(NamedTuple):
    """Of the degrees 1, …, B, largest first, and of all tools outside the head; [N] each."""

    of: tuple[jax.Array, ...]
    base: jax.Array
    head: bool  # whether tools may be above `base`


def _either(block, *arrays: jax.Array) -> jax.Array:
    """`block` with one unit for all degrees; with their own where that loses any."""
    found, lost = block(_flat, *arrays)
    return _loops.cond(lost, lambda *arrays: block(_sorted, *arrays)[0], lambda *_: found, *arrays)


def _lost(scores: jax.Array, values) -> jax.Array:
    """Whether a coefficient of any row is so small that parts of it may have vanished."""
    there = jnp.sum(scores > -jnp.inf, axis=0, dtype=jnp.int32)
    least = jnp.finfo(scores.dtype).tiny / jnp.finfo(scores.dtype).eps
    return jnp.any(jnp.stack([(v < least) & (there >= r) for r, v in enumerate(values)]))


def _through(units: _Units) -> list[jax.Array]:
    """The logarithms of the units of degrees 0, …, B."""
    return list(itertools.accumulate(units.of, initial=units.base * 0))


def _flat(scores: jax.Array, budget: int) -> _Units:
    offset = jnp.maximum(jnp.max(scores, axis=0, initial=0.0), 0.0)
    return _Units((offset,) * budget, offset, False)


def _sorted(scores: jax.Array, budget: int) -> _Units:
    nothing = jnp.full(scores.shape[1:], -jnp.inf, scores.dtype)

    def insert(best, score):
        kept = []
        for one in best:
            kept.append(jnp.maximum(one, score))
            score = jnp.minimum(one, score)
        return tuple(kept), None

    start = (nothing + 0 * jnp.sum(scores[:0], axis=0),) * budget
    best = _loops.scan(insert, start, lax.stop_gradient(scores))[0]
    base = nothing
    for one in best:
        base = jnp.where(one > -jnp.inf, one, base)
    base = jnp.where(base > -jnp.inf, base, 0)
    return _Units(tuple(jnp.where(one > -jnp.inf, one, base) for one in best), base, True)


def _weights(scores: jax.Array, base: jax.Array) -> jax.Array:
    """exp(z − base) of the tools outside the head, 0 for the head."""
    above = scores - base[None, :]
    return jnp.where(above > 0, 0, jnp.exp(jnp.minimum(above, 0)))


def _head_factors(units: _Units):
    """Of each head tool: whether there is one, and by what degrees 0, …, B are kept and taken."""
    budget = len(units.of)
    for k in range(1, budget if units.head else 1):
        score = units.of[k - 1]
        there = score > units.base
        above = jnp.exp(units.base - score)
        keep = [1.0] * k + [jnp.where(there, above, 1)] * (budget + 1 - k)
        lower = [jnp.exp(score - units.of[r - 1]) for r in range(1, k)]
        take = [0.0, *lower, *([1.0] * (budget + 1 - k))]
        yield keep, [jnp.where(there, factor, 0) for factor in take]


def _multiply_head(units: _Units, values):
    """The values with the head, and those before each of its tools."""
    steps = []
    for keep, take in _head_factors(units):
        steps.append(values)
        grown = [keep[r] * values[r] + take[r] * values[r - 1] for r in range(1, len(values))]
        values = [values[0], *grown]
    return values, steps


def _unwind_head(units: _Units, steps, adjoint):
    """The adjoint of `_multiply_head`: in the values before, and the head's marginals."""
    head = []
    for (keep, take), before in zip(
        reversed(list(_head_factors(units))), reversed(steps), strict=True
    ):
        degrees = range(1, len(adjoint))
        head.append(sum(adjoint[r] * take[r] * before[r - 1] for r in degrees))
        moved = [adjoint[r + 1] * take[r + 1] for r in range(len(adjoint) - 1)]
        adjoint = [
            keep[r] * adjoint[r] + (moved[r] if r < len(moved) else 0) for r in range(len(adjoint))
        ]
    return adjoint, head[::-1]


def _polynomial(weights: jax.Array, budget: int, *, keep: bool = False):
    """Coefficients 0, …, B of Π_j (1 + w_j t) as a tuple of row vectors; with `keep` also those
    before each factor.
    """
    one = weights[0] * 0 + 1 if weights.shape[0] else jnp.ones(weights.shape[1:], weights.dtype)
    start = (one,) + (one * 0,) * budget

    def step(sizes, weight):
        grown = (sizes[0], *(sizes[r] + weight * sizes[r - 1] for r in range(1, budget + 1)))
        return grown, (sizes if keep else None)

    return _loops.scan(step, start, weights)


def _by_blocks(function, *arrays: jax.Array) -> jax.Array:
    """`function` over blocks of _BLOCK columns, so that its working set stays in cache; the last
    axis is padded and cut again.
    """
    rows = arrays[0].shape[-1]
    if rows <= _BLOCK:
        return function(*arrays)
    blocks = -(-rows // _BLOCK)
    padded = [jnp.pad(a, ((0, 0), (0, blocks * _BLOCK - rows))) for a in arrays]
    stacked = tuple(a.reshape(a.shape[0], blocks, _BLOCK).transpose(1, 0, 2) for a in padded)
    out = lax.map(lambda block: function(*block), stacked)
    return out.transpose(1, 0, 2).reshape(out.shape[1], blocks * _BLOCK)[:, :rows]


def _safe_log(x: jax.Array) -> jax.Array:
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1)), -jnp.inf)
