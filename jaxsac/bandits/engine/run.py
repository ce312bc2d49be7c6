"""What a simulation is given, what it records, and its noise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac.bandits.phased.schedule import Plan
from jaxsac.solution import register

BLOCK = 8  # cycles of noise that are drawn together


@register
class Run(NamedTuple):
    """What a simulation recorded; K times and s coordinates."""

    regret: jax.Array  # [K], cumulative, without noise; may be negative against a lower benchmark
    times: jax.Array  # int32 [K], steps
    locked: jax.Array  # bool [], whether a support was locked
    lock_time: jax.Array  # int32 [], after how many steps; −1: never
    support: jax.Array  # int32 [s] ascending, the locked one, or the last one chosen; −1: none


class Trial(NamedTuple):
    """What may differ between the trials of one compiled simulation."""

    key: jax.Array
    theta: jax.Array  # [d]
    sigma: jax.Array  # []
    horizon: jax.Array  # int32 []
    times: jax.Array  # int32 [K]
    alpha: jax.Array  # []
    offer: Any  # what every step makes available, if it is the same


class Setting(NamedTuple):
    """What is compiled in."""

    benchmark: str
    noise: str | Callable[[jax.Array, tuple[int, ...]], jax.Array]
    draws: str
    engine: str
    draw: Callable[[jax.Array], Any] | None  # makes the offers, where they are not given


class Problem(NamedTuple):
    """What one lane of a phased algorithm simulates."""

    key: jax.Array
    theta: jax.Array  # [d]
    sigma: jax.Array  # []
    horizon: jax.Array  # int32 []
    times: jax.Array  # int32 [K]
    plan: Plan
    optimum: jax.Array  # [], the benchmark's reward of a step


def draw_noise(noise: Any, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Noise of scale 1: sub-Gaussian with constant 1 for the named ones."""
    if callable(noise):
        return jnp.asarray(noise(key, shape)).astype(dtype)
    if noise == "gaussian":
        return jax.random.normal(key, shape, dtype)
    if noise == "rademacher":
        return jax.random.rademacher(key, shape, dtype)
    return jax.random.uniform(key, shape, dtype, -(3.0**0.5), 3.0**0.5)


def noise_block(noise: Any, key: jax.Array, block: jax.Array, width: int, dtype: Any) -> jax.Array:
    """Noise [BLOCK, width] of the cycles BLOCK block + 1, ..., the same however lanes are batched
    and whichever engine asks.
    """
    return draw_noise(noise, jax.random.fold_in(key, block), (BLOCK, width), dtype)
