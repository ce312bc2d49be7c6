"""What is learned: a table over histograms, and the Solutions that bound nothing but it."""

from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp

from jaxsac._iterate import Certificate, Outcome
from jaxsac.solution import Solution, verdict
from jaxsac.subsample_q.data.histograms import enumerate_counts
from jaxsac.subsample_q.data.model import Model

_TIE = 16  # ulp of the scale within which actions are equally good


class Bounds(NamedTuple):
    """lower ≤ V* ≤ upper (MacQueen); under the average criterion of the gain."""

    lower: jax.Array  # [G, N]; average: []
    upper: jax.Array  # [G, N]; average: []


class QTable(NamedTuple):
    """What k sampled agents learn, over G global states, N histograms of L local states, A actions.

    Ties go to the lowest action within 16 ulp of the scale. Under the average criterion q and value
    are relative, value[0, 0] = 0.
    """

    q: jax.Array  # [G, N, A]
    value: jax.Array  # [G, N], max_a q
    policy: jax.Array  # int32 [G, N]
    bounds: Bounds
    histograms: jax.Array  # int32 [N, L]


for record in (Bounds, QTable):
    jax.export.register_namedtuple_serialization(
        record, serialized_name=f"jaxsac.subsample_q.{record.__name__}"
    )


def value_of(answer: Any) -> Any:
    """The value of a Solution; what is none is a value itself."""
    return answer.value if isinstance(answer, Solution) else answer


def local_rewards(model: Model, k: int) -> jax.Array:
    """(1/k) ⟨h, local_reward⟩: [G, N, 1], or [G, N, A] where the reward depends on the action."""
    counts = jnp.asarray(enumerate_counts(k, model.num_local_states), model.dtype)
    rewards = model.local_reward if model.local_reward.ndim == 3 else model.local_reward[:, None, :]
    return jnp.einsum("gal,nl->gna", rewards, counts, precision="highest") / k


def stage_rewards(model: Model, k: int) -> jax.Array:
    """global_reward + local_rewards: [G, N, 1 or A]."""
    return model.global_reward[:, None, :] + local_rewards(model, k)


def greedy(q: jax.Array, scale: Any) -> jax.Array:
    """The lowest action within 16 ulp of `scale` of the best one, int32."""
    tie = _TIE * jnp.finfo(q.dtype).eps * scale
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
