"""What ends an iteration, and what its residual says about the answer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac.subsample_q.exact.table import Bounds

_DAMPING = 0.9  # of a sweep under the average criterion: 1 would not settle on periodic chains
_OUTLIERS = 100  # times the distance of ordinary stages from the best one, what counts at most


class Criterion(NamedTuple):
    """The residual T V − V, and what it means: the answer is within reach · residual of T V."""

    average: bool  # the gain per step, in place of the discounted value
    span: bool  # MacQueen's bounds, from the range of the residual; else its largest size
    ends: bool  # at terminal states, where the value is known
    discount: jax.Array  # []; average: 1
    reach: jax.Array  # [], discount / (1 − discount), or the time to come (`ends`); average: 1
    time: jax.Array  # [G, 1] or [], the same at each global state
    scale: jax.Array  # [], the size that makes `tol` relative

    @classmethod
    def of(
        cls, discount: jax.Array, best: jax.Array, time: Any, *, average: bool, stopping: str
    ) -> "Criterion":
        """`best` [G, N] is what the best action pays at once in each state, `time` [G] the longest
        expected time to the end, or None.
        """
        one, ends = jnp.ones_like(discount), time is not None
        known = (discount >= 0) & ((discount <= 1) if ends else (discount < 1))
        discount = one if average else jnp.where(known, discount, jnp.nan)
        left = 1 / jnp.max(time) if ends else one if average else 1 - discount
        span = average or (stopping == "span" and not ends)
        reach = jnp.max(time) - 1 if ends else discount / left
        at = jnp.maximum(time - 1, 0)[:, None] if ends else reach
        return cls(average, span, ends, discount, reach, at, typical_range(best) * (1 / left))

    def half_width(self, low: jax.Array, high: jax.Array) -> jax.Array:
        """Bound on the error, for a residual between `low` and `high`."""
        size = (high - low) / 2 if self.span else jnp.maximum(jnp.abs(low), jnp.abs(high))
        return self.reach * size

    def damp(self, before: jax.Array, after: jax.Array) -> jax.Array:
        """What a sweep from `before` to `after` leaves: under the average criterion a part of the
        way, and relative values.
        """
        if not self.average:
            return after
        moved = (1 - _DAMPING) * before + _DAMPING * after
        return moved - moved[0, 0]

    def centre(
        self, value: jax.Array, low: jax.Array, high: jax.Array, rounding: jax.Array
    ) -> tuple[jax.Array, Bounds]:
        """What to add to the value of the last sweep, and the bounds (average: on the gain)."""
        if self.average:
            return -value[0, 0], Bounds(low - rounding, high + rounding)
        if self.ends:
            least = value + self.time * jnp.minimum(low, 0) - rounding
            return 0 * low, Bounds(least, value + self.time * jnp.maximum(high, 0) + rounding)
        shift = self.reach * (low + high) / 2
        width = self.reach * (high - low) / 2 + rounding
        return shift, Bounds(value + shift - width, value + shift + width)


_PART = 0.01  # of a step, by which `expected_time` may be short before it is corrected
_MOST = 1_000_000  # steps that it takes


def expected_time(model: Any) -> jax.Array:
    """The longest (discounted) expected time to a terminal state under any choice of allowed
    actions, from above: [G], 0 at those states.

    For w with w' = 1 + discount max_a E w ≤ w + δ, δ < 1, w / (1 − δ) is an upper bound, for
    1 + discount max_a E w / (1 − δ) ≤ (1 − δ + w + δ − 1) / (1 − δ).
    """

    def ahead(time):
        after = jnp.einsum("gac,c->ga", model.global_transition, time, precision="highest")
        after = after if model.allowed is None else jnp.where(model.allowed, after, 0)
        return jnp.where(model.terminal, 0, 1 + model.discount * jnp.max(after, axis=1))

    def step(carried):
        _, time, count = carried
        return time, ahead(time), count + 1

    def going(carried):
        before, time, count = carried
        return (jnp.max(time - before) > _PART) & (count < _MOST)

    none = 0 * jnp.sum(model.global_transition, axis=(1, 2))
    time = _loops.while_loop(going, step, (none - 1, none, jnp.int32(0)))[1]
    short = jnp.max(ahead(time) - time)
    return jnp.where(short < 1, time / (1 - short), jnp.nan)


def typical_range(best: jax.Array) -> jax.Array:
    """Half the range of `best`, the stage rewards of the best actions, [] — or the size of the
    largest of them where that is more, up to 100 times the range, for no iteration beats its
    rounding. What no good choice meets has no say in it: an action that pays −10^9 is not in
    `best`, and few states, or many, that pay so are cut to 100 times the distance from the top that
    nine of ten lower ones exceed.
    """
    top = jnp.max(best)
    size, below = jnp.max(jnp.abs(best)), jnp.ravel(top - best)
    differ = below > 64 * jnp.finfo(best.dtype).eps * size
    order = jnp.sort(jnp.where(differ, below, jnp.inf))
    tenth = order[jnp.sum(differ, dtype=jnp.int32) // 10]
    spread = jnp.minimum(jnp.max(below) / 2, _OUTLIERS * tenth)
    level = jnp.minimum(jnp.abs(top), _OUTLIERS * spread)
    return jnp.where(jnp.any(differ), jnp.maximum(spread, level), size)
