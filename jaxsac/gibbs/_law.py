"""What a policy's polynomial says: log Z, the law of the size, marginals and entropies, with their
rules of differentiation.

An `Expansion` is a cache and a constant of differentiation: log Z is differentiated by marginals,
and marginals by the program that makes them, expansion included.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac.gibbs import _knapsack
from jaxsac.gibbs._knapsack import Tables
from jaxsac.gibbs._polynomial import (
    Binomials,
    Polynomial,
    adjoint,
    binomials,
    convolve,
    expand as polynomial,
    product,
)
from jaxsac.gibbs._problem import Problem
from jaxsac.gibbs._tilt import Tilt, choose, relative


class Expansion(NamedTuple):
    """Size (or cost) r has the weight exp(r · centre + base + (r − number) · rise + log_values_r),
    with the tilt's centre (over the temperature) and rise, whose sum is λ.
    """

    tilt: Tilt
    own: Polynomial | Tables | None  # None where there are no tools but the background's
    groups: Binomials | None
    log_values: jax.Array  # [D + 1] a constant of differentiation
    grown: jax.Array  # [D + 1] 1, with the derivative of exp(log_values) over itself
    base: jax.Array  # []
    number: jax.Array  # [] near the sizes that matter, so that large numbers cancel exactly


class LogPartition(NamedTuple):
    """log Z = size · centre + rest. Kept apart, differences from log Z stay exact when all scores
    share a huge offset.
    """

    centre: jax.Array  # [] a score over the temperature; a constant of differentiation
    size: jax.Array  # [] the likeliest size (or cost), as a float; a constant of differentiation
    rest: jax.Array  # []


class Means(NamedTuple):
    """Expectations under the policy, of what is not given."""

    chosen: jax.Array  # [M] marginals
    left_out: jax.Array  # [M] 1 − marginals, precise where they are near 1
    groups: jax.Array  # [C] number of each group's tools, minus `likeliest`
    likeliest: jax.Array  # [C] a constant of differentiation
    law: jax.Array  # [D + 1] of the size (or cost); [1] where the budget never binds
    excess: jax.Array  # [] mean size (or cost) minus LogPartition.size


def expand(p: Problem) -> Expansion | None:
    """The policy's polynomial; None where the budget never binds."""
    if p.free:
        return None
    if p.costs is not None:
        tables = _knapsack.expand(p)
        logs = jnp.where(tables.last > -jnp.inf, tables.last, 0)
        grown = jnp.exp(logs - lax.stop_gradient(logs))
        logs = lax.stop_gradient(tables.last)
        return Expansion(tables.tilt, tables, None, logs, grown, tables.base, tables.number)
    own = polynomial(p) if p.z.shape[0] and p.degree else None
    if own is None:
        nothing = jnp.full((1,), -jnp.inf, p.z.dtype)
        mass = jnp.zeros((2,), p.z.dtype)
        tilt = choose(
            nothing, (mass[0], mass[1]), lax.stop_gradient(p.background), p.temperature, *p.limits
        )
        tilt = lax.stop_gradient(tilt)
        values = jnp.zeros((p.degree + 1,), p.z.dtype).at[0].set(1)
        base = number = jnp.zeros((), p.z.dtype)
    else:
        tilt, values, base, number = own.tilt, own.values, own.base, own.number
    groups = None
    if p.background is not None:
        groups = binomials(p.background, tilt, p.temperature, p.degree)
        values = convolve(values, product(_one(values), groups.values))
        base, number = base + jnp.sum(groups.base), number + jnp.sum(groups.likeliest)
    base, number = lax.stop_gradient((base, number))
    # What is as small as this does not matter at the tilt.
    positive = values > 4 * jnp.finfo(values.dtype).tiny
    constant = lax.stop_gradient(jnp.where(positive, values, 1))
    grown = 1 + jnp.where(positive, values - constant, 0) / constant
    logs = jnp.where(positive, jnp.log(constant), -jnp.inf)
    return Expansion(tilt, own, groups, logs, grown, base, number)


def size_law(p: Problem, e: Expansion) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The likeliest size [], log Σ_r exp((r − size) λ + log_values_r) [], and the law [D + 1]."""
    low, high = p.limits
    degree = jnp.arange(p.degree + 1, dtype=jnp.int32)
    logs = jnp.where((degree >= low) & (degree <= high), e.log_values, -jnp.inf)
    slope = e.tilt.value
    degree = degree.astype(logs.dtype)
    size = jnp.argmax(logs + (degree - high.astype(logs.dtype)) * slope).astype(logs.dtype)
    exponents = logs + jnp.where(logs > -jnp.inf, (degree - size) * slope, 0)
    top = jnp.max(exponents)
    masses = jnp.exp(exponents - jnp.where(jnp.isfinite(top), top, 0)) * e.grown
    total = jnp.sum(masses)
    rest = jnp.where(jnp.isfinite(top), top, 0) + jnp.log(total)
    return size, rest, masses / jnp.where(total > 0, total, 1)


@jax.custom_jvp
def log_partition(p: Problem, e: Expansion | None) -> LogPartition:
    """log Z of all that may be added to the given tools: −inf where there is no feasible set, NaN
    where the problem is not usable.
    """
    if e is None:
        zero = jnp.zeros((), p.z.dtype)
        found = LogPartition(zero, zero, jnp.sum(jax.nn.softplus(_cold(p))))
    else:
        size, rest, _ = size_law(p, e)
        rest = rest + ((size - e.number) * e.tilt.rise + e.base)
        found = LogPartition(e.tilt.centre / e.tilt.temperature, size, rest)
    return found._replace(rest=jnp.where(p.usable, found.rest, jnp.nan))


@log_partition.defjvp
def _log_partition_jvp(primals, tangents):
    p, e = primals
    value, mean = log_partition(p, e), means(p, e)
    tangent = jnp.sum(mean.chosen * _cold_tangent(p.z, p, tangents[0].z, tangents[0]))
    if p.background is not None:
        scores = tangents[0].background.scores
        moved = _cold_tangent(p.background.scores, p, scores, tangents[0])
        tangent = tangent + jnp.sum((mean.groups + mean.likeliest) * moved)
    zero = jnp.zeros_like(tangent)
    return value, LogPartition(zero, zero, tangent)


def _cold(p: Problem) -> jax.Array:
    """z / temperature, whose derivative is 0 where z is −inf, not NaN."""
    return relative(p.z, jnp.zeros((), p.z.dtype), p.temperature)


def _cold_tangent(z, p, moved, tangents):
    return jax.jvp(relative, (z, z * 0, p.temperature), (moved, z * 0, tangents.temperature))[1]


@jax.custom_jvp
def means(p: Problem, e: Expansion | None) -> Means:
    return _means(p, e)


@means.defjvp
def _means_jvp(primals, tangents):
    def anew(p):
        return _means(p, None if primals[1] is None else expand(p))

    return jax.jvp(anew, primals[:1], tangents[:1])  # one expansion for both


def _means(p: Problem, e: Expansion | None) -> Means:
    if e is None:
        cold = _cold(p)
        found = Means(
            jax.nn.sigmoid(cold),
            jax.nn.sigmoid(-cold),
            cold[:0],
            cold[:0],
            jnp.ones((1,), cold.dtype),
            jnp.zeros((), cold.dtype),
        )
        found = found._replace(excess=jnp.sum(found.chosen))
    else:
        found = _expanded_means(p, e)
    return jax.tree.map(lambda x: jnp.where(p.usable, x, jnp.nan), found)


def _expanded_means(p: Problem, e: Expansion) -> Means:
    size, rest, law = size_law(p, e)
    degree = np.arange(p.degree + 1).astype(law.dtype)
    excess = jnp.sum(law * (degree - size))
    # The law over the values, without a division by what may be very small.
    seed = jnp.where(
        law > jnp.finfo(law.dtype).tiny, (degree - size) * e.tilt.value - rest, -jnp.inf
    )
    if isinstance(e.own, Tables):
        chosen, left_out = _knapsack.marginals(p, e.own, seed)
        return Means(chosen, left_out, law[:0], law[:0], law, excess)
    cotangent = jnp.exp(seed)
    groups = likeliest = law[:0]
    if e.groups is not None:
        likeliest = e.groups.likeliest
        own = _one(law) if e.own is None else e.own.values

        def joint(own, factors):
            return convolve(own, product(_one(own), factors))

        pull = jax.vjp(joint, own, e.groups.values)[1]
        cotangent, factors = pull(cotangent)
        number = degree[None, :] - likeliest[:, None]
        groups = jnp.sum(number * e.groups.values * factors, axis=1)
    if e.own is None:
        return Means(jnp.zeros_like(p.z), jnp.ones_like(p.z), groups, likeliest, law, excess)
    chosen, others = adjoint(e.own, cotangent)
    left_out = (1 - chosen).at[e.own.head].set(jnp.where(rest > -jnp.inf, others, 1))
    # The value is clamped, its derivative is not.
    chosen = chosen - lax.stop_gradient(chosen - jnp.clip(chosen, 0, 1))
    return Means(chosen, left_out, groups, likeliest, law, excess)


def cross_entropy(shift: jax.Array, mean: Means, q: Problem, e: Expansion | None) -> jax.Array:
    """−Σ_a p(a) log q(a) of p with these means, whose mean size is `shift` from q's likeliest.

    By differences only: of the sizes, and of each tool from being surely chosen or left out, so
    that neither offsets nor forced tools cost digits.
    """
    rest = log_partition(q, e).rest
    rest = jnp.where(jnp.isfinite(rest), rest, 0)
    carried = rest - lax.stop_gradient(rest)  # 0, and it carries the derivative of log Z
    if e is None:
        return jnp.sum(_surprise(_cold(q), mean.chosen, mean.left_out)) + carried
    result = lax.stop_gradient(size_law(q, e)[1]) - e.tilt.value * shift + carried
    if isinstance(e.own, Tables):
        result = result + jnp.sum(
            _surprise(_knapsack.log_odds(q, e.own.tilt), mean.chosen, mean.left_out)
        )
    elif e.own is not None:
        head, x = e.own.head, e.tilt.of(q.z, q.temperature)
        tail = mean.chosen.at[head].set(0)
        result = result - jnp.sum(jnp.where(tail > 0, tail * jnp.where(tail > 0, x, 0), 0))
        surprise = _surprise(x[head], mean.chosen[head], mean.left_out[head], False)
        result = result + e.own.powers + jnp.sum(surprise)
    if e.groups is not None and q.background is not None:
        x = e.tilt.of(q.background.scores, q.temperature)
        finite = jnp.isfinite(x)
        number = mean.groups + (mean.likeliest - e.groups.likeliest)
        used = mean.groups + mean.likeliest > 0
        missing = jnp.where(used, jnp.inf, 0)
        x = jnp.where(finite, x, 0)
        moved = e.groups.likeliest * (x - lax.stop_gradient(x))
        surprise = jnp.where(finite, -number * x - moved, missing)
        result = result + jnp.sum(e.groups.log_choices + surprise)
    return result


def _surprise(
    x: jax.Array, chosen: jax.Array, left_out: jax.Array, normalised: bool = True
) -> jax.Array:
    """softplus(x) − x · chosen, the cross-entropy of an independent choice with log odds x, whose
    softplus is a constant of differentiation; not `normalised`, max(x, 0) in its place.
    """
    finite = jnp.where(jnp.isfinite(x), x, 0)
    constant = lax.stop_gradient(finite)
    positive = constant > 0
    size = jnp.log1p(jnp.exp(-jnp.abs(constant))) if normalised else jnp.zeros_like(constant)
    above = finite * left_out - (finite - constant)
    value = size + jnp.where(positive, above, -finite * chosen)
    missing = jnp.where(chosen > 0, jnp.where(x == -jnp.inf, jnp.inf, jnp.nan), 0)
    return jnp.where(jnp.isfinite(x), value, missing)


def _one(like: jax.Array) -> jax.Array:
    return jnp.zeros_like(like).at[0].set(1)
