"""The recurrence over the tools, with the rows as the vector axis.

For scores z [W, N] (W tools, N rows) the weight of all sets of exactly r tools in row t is the
elementary symmetric polynomial h_r(t) = e_r(exp z_1t, …, exp z_Wt), h_r ← h_r + exp(z_jt) h_(r−1).
The carry is a tuple of B + 1 vectors, so that each step is a handful of fused vector operations on
a block of rows that stays in cache. Everything else in the row (other tools) enters through
`log_rest` [B + 1, N]: log_rest[r] is the log weight of all that may accompany r of the W tools, so
that log Z_t = log Σ_r h_r(t) exp(log_rest[r, t]).

Degree r has a unit of its own, the product of the row's r largest weights: in it every coefficient
lies between 1 and the number of sets, whatever the scores. The tools above the B-th largest score
(at most B − 1, the head) enter last, one by one; all others have weights of at most 1 in units of
that score. Nobody asks which tools they are, so ties do no harm.

The derivative of log h_r in z_j is w_j g_(r−1) / h_r, with g the polynomial of the other tools. Of
a tool outside the head g is the quotient by 1 + w_j t, g_r = h_r − w_j g_(r−1): each product that
is taken away is at most r times h_r, because one of the B largest weights may stand for w_j in any
of its sets; so no table and no loop is needed while 2^B roundings may pass. Above that, and for the
head, it is the adjoint of the recurrence, all terms positive.
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
_QUOTIENTS = 8  # the largest budget at which the others' polynomial is a quotient


@arguments(scores=real("W", "N"), budget=size())
def log_size_weights(scores: jax.Array, budget: int) -> jax.Array:
    """log e_r(exp z) for r = 0, …, B as [B + 1, N], from scores [W, N]; −inf scores are absent
    tools. O(W B N), no table; differentiable (reverse mode).
    """
    return _log_size_weights(scores, budget)


@arguments(scores=real("W", "N"), budget=size(), log_rest=real("budget + 1", "N"))
def marginals(scores: jax.Array, log_rest: jax.Array, budget: int) -> jax.Array:
    """P_t(tool j is chosen) as [W, N], given log_rest [B + 1, N]; 0 where no set may be chosen."""
    logs, saved = _forward(scores, budget)
    logs = logs + log_rest
    top = jnp.max(logs, axis=0)
    mass = jnp.exp(logs - jnp.where(top == -jnp.inf, 0, top)[None, :])
    total = jnp.sum(mass, axis=0)
    return jnp.maximum(_pull(budget, saved, mass / jnp.where(total == 0, 1, total)[None, :])[0], 0)


@arguments(scores=real("W", "N"), budget=size(), log_rest=real("budget + 1", "N"))
def log_partition(scores: jax.Array, log_rest: jax.Array, budget: int) -> jax.Array:
    """log Z [N] = log Σ_r e_r(exp z) exp(log_rest[r]) from scores [W, N] and log_rest [B + 1, N];
    differentiable in both (reverse mode).
    """
    return jax.nn.logsumexp(_log_size_weights(scores, budget) + log_rest, axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _log_size_weights(scores: jax.Array, budget: int) -> jax.Array:
    return _forward(scores, budget)[0]


def _forward(scores, budget):
    """The logarithms, and what the derivative needs: the tail's coefficients, the units."""

    def block(scores):
        best = jnp.stack(_largest(scores, budget))
        return jnp.concatenate(
            [jnp.stack(_polynomial(_weights(scores, _units(best).base), budget)[0]), best]
        )

    found = _by_blocks(block, scores)
    units = _units(found[budget + 1 :])
    values = _multiply_head(units, list(found[: budget + 1]))[0]
    logs = [_safe_log(v) + unit for v, unit in zip(values, _through(units), strict=True)]
    return jnp.stack(logs), (scores, found)


def _pull(budget, saved, cotangent):
    """Σ_r cotangent_r · (derivative of log h_r) by the scores, [W, N]."""

    def block(scores, found, cotangent):
        units, tail = _units(found[budget + 1 :]), list(found[: budget + 1])
        values, steps = _multiply_head(units, tail)
        adjoint = [
            jnp.where(value > 0, share / jnp.where(value > 0, value, 1), 0)
            for value, share in zip(values, cotangent, strict=True)
        ]
        inner, head = _unwind_head(units, steps, adjoint)
        weights = _weights(scores, units.base)
        if budget > _QUOTIENTS:
            chosen = _adjoint(weights, inner, budget)
        else:
            chosen, others = jnp.zeros_like(weights), jnp.ones_like(weights)
            for r, (value, unit) in enumerate(zip(values[1:], units.of, strict=True), 1):
                scaled = weights * jnp.exp(units.base - unit)[None, :]
                chosen = chosen + scaled * others * adjoint[r][None, :]
                others = value[None, :] - scaled * others
        for score, own in zip(units.of, head, strict=False):
            here = (scores == score[None, :]) & (scores > units.base[None, :])
            chosen = jnp.where(here, own[None, :], chosen)
        return chosen

    return (_by_blocks(block, *saved, cotangent),)


_log_size_weights.defvjp(_forward, _pull)


def _adjoint(weights, adjoint, budget):
    prefixes = _polynomial(weights, budget, keep=True)[1]

    def step(adjoint, item):
        weight, prefix = item
        chosen = sum(adjoint[r] * prefix[r - 1] for r in range(1, budget + 1))
        lower = tuple(adjoint[r] + weight * adjoint[r + 1] for r in range(budget))
        return (*lower, adjoint[budget]), weight * chosen

    return _loops.scan(step, tuple(adjoint), (weights, prefixes), reverse=True)[1]


class _Units(NamedTuple):
    """Of the degrees 1, …, B, largest first, and of all tools outside the head; [N] each."""

    of: tuple[jax.Array, ...]
    base: jax.Array


def _units(best: jax.Array) -> _Units:
    """From the B largest scores of each row [B, N], −inf where there are fewer."""
    base = jnp.min(jnp.where(best > -jnp.inf, best, jnp.inf), axis=0, initial=jnp.inf)
    base = jnp.where(base < jnp.inf, base, 0)
    return _Units(tuple(jnp.where(one > -jnp.inf, one, base) for one in best), base)


def _through(units: _Units) -> list[jax.Array]:
    """The logarithms of the units of degrees 0, …, B."""
    return list(itertools.accumulate(units.of, initial=units.base * 0))


def _largest(scores: jax.Array, budget: int) -> list[jax.Array]:
    """The B largest scores of each row, equal ones as often as they are there; −inf beyond."""
    found, value = [], jnp.max(scores, axis=0, initial=-jnp.inf)
    left = jnp.sum(scores == value[None, :], axis=0)
    for _ in range(budget):
        found.append(value)
        next_one = jnp.max(
            jnp.where(scores < value[None, :], scores, -jnp.inf), axis=0, initial=-jnp.inf
        )
        value = jnp.where(left > 1, value, next_one)
        left = jnp.where(left > 1, left - 1, jnp.sum(scores == next_one[None, :], axis=0))
    return found


def _weights(scores: jax.Array, base: jax.Array) -> jax.Array:
    """exp(z − base) of the tools outside the head, 0 for the head."""
    above = scores - base[None, :]
    return jnp.where(above > 0, 0, jnp.exp(jnp.minimum(above, 0)))


def _head_factors(units: _Units):
    """Of each head tool: whether there is one, and by what degrees 0, …, B are kept and taken."""
    budget = len(units.of)
    for k in range(1, budget):
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
    width = -(-rows // blocks)
    padded = [jnp.pad(a, ((0, 0), (0, blocks * width - rows))) for a in arrays]
    stacked = tuple(a.reshape(a.shape[0], blocks, width).transpose(1, 0, 2) for a in padded)
    out = lax.map(lambda block: function(*block), stacked)
    return out.transpose(1, 0, 2).reshape(out.shape[1], blocks * width)[:, :rows]


def _safe_log(x: jax.Array) -> jax.Array:
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1)), -jnp.inf)
