"""Exponential tilts. A policy over sets is that of independent tools, each chosen with odds exp(z_j
− λ), given their number: whatever λ is, the law of the sets of r tools is the same. With a λ that
makes about as many tools likely as the budget admits, the probabilities of the sizes that matter
stay in the range of any float, and nothing larger than 1 is ever exponentiated.

A tilt is a constant of differentiation. It is kept as a score (the anchor) and an offset from it:
differences of scores are exact, however large the scores are, and are divided by the temperature
after they were taken.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _loops
from jaxsac.gibbs._problem import Groups

_ROUNDS = 40


class Tilt(NamedTuple):
    """λ = anchor / temperature + offset."""

    anchor: jax.Array  # [] before the temperature
    offset: jax.Array  # []
    temperature: jax.Array  # []
    centre: jax.Array  # [] the score nearest to 0 of those that matter; before the temperature

    @property
    def rise(self) -> jax.Array:
        """λ − centre / temperature."""
        return _in_range((self.anchor - self.centre) / self.temperature + self.offset)

    @property
    def value(self) -> jax.Array:
        return _in_range(self.anchor / self.temperature + self.offset)

    def of(self, z: jax.Array, temperature: jax.Array) -> jax.Array:
        """Log odds z / temperature − λ of scores z [...]; −inf stays."""
        return relative(z, self.anchor, temperature) - self.offset


def _in_range(x: jax.Array) -> jax.Array:
    """Such that differences of sizes times it are finite: a temperature may be very small."""
    most = float(jnp.finfo(x.dtype).max) / 2**24
    return jnp.clip(x, -most, most)


@jax.custom_jvp
def relative(z: jax.Array, anchor: jax.Array, temperature: jax.Array) -> jax.Array:
    """(z − anchor) / temperature, with the derivative of z / temperature."""
    return (0.5 * z - 0.5 * anchor) / temperature * 2  # halves do not overflow


@relative.defjvp
def _relative_jvp(primals, tangents):
    z, _, temperature = primals
    finite = jnp.isfinite(z)
    cold = jnp.where(finite, z, 0) / temperature
    tangent = (tangents[0] - cold * tangents[2]) / temperature
    return relative(*primals), jnp.where(finite, tangent, 0)


@jax.custom_jvp
def chances(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(1, exp x) over the larger of them, a constant of differentiation: so derivatives have only
    terms ≥ 0.
    """
    return jnp.exp(jnp.minimum(-x, 0)), jnp.exp(jnp.minimum(x, 0))


@chances.defjvp
def _chances_jvp(primals, tangents):
    left_out, taken = chances(*primals)
    return (left_out, taken), (jnp.zeros_like(taken), taken * tangents[0])


def choose(
    ordered: jax.Array,
    tail: tuple[jax.Array, jax.Array],
    groups: Groups | None,
    temperature: jax.Array,
    low: jax.Array,
    high: jax.Array,
) -> Tilt:
    """A tilt for between `low` and `high` tools that makes from a fifth to one and a half times as
    many likely: enough for budgets up to some thirty.

    `ordered` [K]: the largest scores, largest first; `tail`: Σ exp((z − reference) / temperature)
    of the others, and the reference, at most the least of `ordered`.
    """
    low, high = (limit.astype(ordered.dtype) for limit in (low, high))
    counts = jnp.ones(ordered.shape, ordered.dtype)
    if groups is not None:
        ordered = jnp.concatenate([ordered, groups.scores])
        counts = jnp.concatenate([counts, groups.counts.astype(ordered.dtype)])
        order = jnp.argsort(-ordered)
        ordered, counts = ordered[order], counts[order]
    counts = jnp.where(ordered > -jnp.inf, counts, 0)
    through = jnp.cumsum(counts)
    mass, reference = tail

    def threshold(size):
        """The score of the size-th tool, and by how much all behind it outweigh `size` of it."""
        size = jnp.maximum(size, 1)
        position = jnp.sum(through < jnp.minimum(size, through[-1]))
        score = ordered[jnp.minimum(position, ordered.shape[0] - 1)]
        score = jnp.where(jnp.isfinite(score), score, 0)
        behind = jnp.clip(through - size, 0, counts)
        weights = jnp.exp(jnp.where(behind > 0, jnp.minimum(ordered - score, 0) / temperature, 0))
        rest = mass * jnp.exp(jnp.minimum(reference - score, 0) / temperature)
        total = jnp.sum(behind * weights) + rest
        return score, jnp.log(jnp.maximum(total * (np.e / size), 1))

    anchor, offset = threshold(high)
    least_anchor, least_offset = threshold(low)
    # No tilt at all where sizes between the limits are likely without.
    zero = -anchor / temperature
    least = jnp.where(low > 0, (least_anchor - anchor) / temperature + least_offset, jnp.inf)
    offset = jnp.maximum(offset, jnp.minimum(zero, least))
    none = offset == zero
    return Tilt(
        jnp.where(none, 0, anchor),
        jnp.where(none, 0, offset),
        temperature,
        _in_range(nearest(ordered) / temperature) * temperature,
    )


def nearest(scores: jax.Array) -> jax.Array:
    """The number nearest to 0 between the least and the largest finite score; 0 without any."""
    finite = jnp.isfinite(scores)
    least = jnp.min(scores, initial=jnp.inf, where=finite)
    most = jnp.max(scores, initial=-jnp.inf, where=finite)
    return jnp.where(jnp.any(finite), jnp.clip(jnp.zeros_like(least), least, most), 0)


class Part(NamedTuple):
    """Tools with log odds x − cost · (the offset's change), `counts` of each."""

    x: jax.Array  # [N] at the anchor
    costs: jax.Array | float  # [N]
    counts: jax.Array | float  # [N]


def parts(tilt: Tilt, z: jax.Array, groups: Groups | None) -> list[Part]:
    found = [Part(relative(z, tilt.anchor, tilt.temperature), 1.0, 1.0)]
    if groups is not None:
        x = relative(groups.scores, tilt.anchor, tilt.temperature)
        found.append(Part(x, 1.0, groups.counts.astype(x.dtype)))
    return found


def refine(tilt: Tilt, tools: list[Part], low: jax.Array, high: jax.Array) -> Tilt:
    """The tilt at which the mean size (or cost) is `high`, or `low`, or between them without any:
    to one and a half standard deviations, or so. Newton's method.
    """
    dtype = tilt.offset.dtype
    low, high = low.astype(dtype), high.astype(dtype)
    zero = -tilt.anchor / tilt.temperature

    def total(terms):
        return jnp.asarray(sum(jnp.sum(term) for term in terms), dtype)

    available = total(jnp.where(t.x > -jnp.inf, t.costs * t.counts, 0) for t in tools)

    def step(state):
        offset, _, rounds = state
        taken = [jax.nn.sigmoid(t.x - t.costs * offset) for t in tools]
        mean = total(t.costs * t.counts * p for t, p in zip(tools, taken, strict=True))
        spread = [t.counts * p * (1 - p) for t, p in zip(tools, taken, strict=True)]
        variance = total(t.costs * t.costs * s for t, s in zip(tools, spread, strict=True))
        cost = jnp.sqrt(variance / jnp.maximum(total(spread), 1e-3))  # of one that may move
        down = (offset > zero) | (mean > high)
        up = (offset < zero) | (mean < low)
        target = jnp.where(down, high, jnp.where(up, low, mean))
        target = jnp.clip(target, 0.5, jnp.maximum(available - 0.5, 0.5))
        near = jnp.abs(mean - target) <= 1 + 0.5 * jnp.sqrt(variance)
        most = 2 / jnp.maximum(cost, 1)
        move = jnp.clip((mean - target) / jnp.maximum(variance, 1e-3), -most, most)
        moved = jnp.where((offset - zero) * (offset + move - zero) < 0, zero, offset + move)
        return jnp.where(near, offset, moved), near, rounds + 1

    offset = _loops.while_loop(
        lambda state: ~state[1] & (state[2] < _ROUNDS), step, (tilt.offset, jnp.asarray(False), 0)
    )[0]
    return lax.stop_gradient(tilt._replace(offset=offset))
