"""When a phased algorithm locks its support, and how long it then exploits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac.bandits.estimate.radii import KINDS

FOREVER = 2**30  # longer than any horizon

Number = jax.Array | float


def scheduled(algorithm: Any, cycle: jax.Array) -> jax.Array:
    """⌈schedule_scale cycle^schedule_power⌉ steps, an int32; guarded against a power that rounding
    lifts above a whole number.
    """
    scale = jnp.asarray(algorithm.schedule_scale)
    length = scale * cycle.astype(scale.dtype) ** algorithm.schedule_power
    length = jnp.ceil(length * (1.0 - 4.0 * float(jnp.finfo(scale.dtype).eps)))
    return jnp.minimum(length, float(FOREVER)).astype(jnp.int32)


def forever(algorithm: Any, cycle: jax.Array) -> jax.Array:
    """All the steps that are left."""
    return jnp.int32(FOREVER)


def unscaled(algorithm: Any, dimension: int, dtype: Any) -> jax.Array:
    """Of what is not compared with a radius."""
    return jnp.ones((), dtype)


class Rule(NamedTuple):
    """When a phased algorithm locks its support, and how long it then exploits.

    * `verify(plan, estimate, cycle, within)`: whether the estimate [d] at the end of
      `cycle` (int32) may be locked, and its support [s] where finding that out has found it (else
      None). None: nothing is ever locked, and every cycle exploits.
    * `length(algorithm, cycle)`: steps of exploitation.
    * `sensitivity(algorithm, dimension, dtype)`: by how much a score or a value f(S)
      moves at most when the estimate moves by one unit of the radius.
    * `gap(action_set, theta, sparsity)`: the lead of the best support, and that support or None;
      None where nothing is proved.
    * `radii`: what `radius` may be.
    """

    verify: Any
    length: Callable[[Any, jax.Array], jax.Array]
    sensitivity: Callable[..., jax.Array] = unscaled
    gap: Any = None
    radii: tuple[str, ...] = KINDS
