"""What ends an iteration, and what its residual says about the answer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsac.subsample_q.exact.table import Bounds

_DAMPING = 0.9  # of a sweep under the average criterion: 1 would not settle on periodic chains


class Criterion(NamedTuple):
    """The residual T V − V, and what it means: the answer is within reach · residual of T V."""

    average: bool  # the gain per step, in place of the discounted value
    span: bool  # MacQueen's bounds, from the range of the residual; else its largest size
    discount: jax.Array  # []; average: 1
    reach: jax.Array  # [], discount / (1 − discount); average: 1
    scale: jax.Array  # [], the size that makes `tol` relative

    @classmethod
    def of(cls, discount: jax.Array, largest_reward: jax.Array, *, average: bool, stopping: str):
        one = jnp.ones_like(discount)
        left = one if average else 1 - discount
        discount = one if average else discount
        span = average or stopping == "span"
        return cls(average, span, discount, discount / left, largest_reward * (1 / left))

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

    def centre(self, value: jax.Array, low: jax.Array, high: jax.Array) -> tuple[jax.Array, Bounds]:
        """What to add to the value of the last sweep, and the bounds (average: on the gain)."""
        if self.average:
            return -value[0, 0], Bounds(low, high)
        shift = self.reach * (low + high) / 2
        width = self.reach * (high - low) / 2
        return shift, Bounds(value + shift - width, value + shift + width)
