"""What is learned: a table over histograms, and the Solutions that bound nothing but it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac._iterate import Certificate, Outcome
from jaxsac.solution import Solution, register, verdict
from jaxsac.subsample_q.data.histograms import enumerate_counts
from jaxsac.subsample_q.data.model import Model

_TIE = 16  # ulp of the scale within which actions are equally good


@register
class Bounds(NamedTuple):
    """lower ≤ V* ≤ upper (MacQueen); under the average criterion of the gain."""

    lower: jax.Array  # [G, N]; average: []
    upper: jax.Array  # [G, N]; average: []


@register
class QTable(NamedTuple):
    """What k sampled agents learn, over G global states, N histograms of L local states, A actions.

    Ties go to the lowest action within 16 ulp of the scale. Under the average criterion q and value
    are relative, value[0, 0] = 0.
    """

    q: jax.Array  # [G, N, A]
    value: jax.Array  # [G, N], max_a q
    policy: jax.Array  # int32 [G, N]
    bounds: Bounds  # on the value, [G, N]
    histograms: jax.Array  # int32 [N, L]


def value_of(answer: Any) -> Any:
    """The value of a Solution; what is none is a value itself."""
    return answer.value if isinstance(answer, Solution) else answer


def stage_rewards(model: Model, k: int) -> jax.Array:
    """r_g(s_g, a) + (1/k) ⟨h, r_l(s_g)⟩: [G, N, A]."""
    counts = jnp.asarray(enumerate_counts(k, model.num_local_states), model.dtype)
    local = model.local_reward if model.local_reward.ndim == 3 else model.local_reward[:, None, :]
    mean = jnp.einsum("gal,nl->gna", local, counts, precision="highest") / k
    return model.global_reward[:, None, :] + mean


def tie_of(dtype: Any, scale: Any) -> Any:
    """What counts as rounding between values of that scale."""
    return _TIE * jnp.finfo(dtype).eps * scale


def greedy(q: jax.Array, scale: Any) -> jax.Array:
    """The lowest action within 16 ulp of `scale` of the best one, int32."""
    tie = tie_of(q.dtype, scale)
    return jnp.argmax(q >= jnp.max(q, axis=-1, keepdims=True) - tie, axis=-1).astype(jnp.int32)


def largest_value(model: Model) -> jax.Array:
    """max|r| / (1 − discount), which no discounted value exceeds: []."""
    return model.max_reward() / (1 - model.discount)


def trivial_bounds(model: Model, value: jax.Array) -> Bounds:
    """±max|r| / (1 − discount): all that is known of V* without an exact operator."""
    most = jnp.broadcast_to(largest_value(model), value.shape)
    return Bounds(-most, most)


def trivial_table(model: Model, k: int, q: jax.Array) -> QTable:
    """The table of q [G, N, A] with those bounds."""
    value = jnp.max(q, axis=-1)
    counts = jnp.asarray(enumerate_counts(k, model.num_local_states))
    return QTable(q, value, greedy(q, largest_value(model)), trivial_bounds(model, value), counts)


def uncertified(
    value: Any, error: jax.Array, scale: jax.Array, num_steps: Any, state: Any, **stats: Any
) -> Solution:
    """The Solution of a method that takes `num_steps` steps and does not know when to stop.

    `error`: all that is known of its distance from the answer, NaN where it diverged.
    """
    certificate = Certificate(error, jnp.zeros_like(error), scale)
    status = verdict(certificate, 0.0, progress=True, more=False)
    outcome = Outcome(state, certificate, status, jnp.asarray(num_steps, jnp.int32))
    return Solution(value, status, outcome.stats | stats, state)
