"""What is learned: a table over histograms, and the Solutions that bound nothing but it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxsac._arguments import record
from jaxsac._iterate import Certificate, Outcome
from jaxsac.solution import Solution, register, verdict
from jaxsac.subsample_q.data.histograms import enumerate_counts
from jaxsac.subsample_q.data.model import Model

_TIE = 16  # ulp of the values within which actions are equally good
# What `bounds` are on: the best value of the k agents (then its mean over samples is one on n),
# that where rewards or choices couple the agents, the gain, the value of one policy, or nothing.
MEANINGS = ("optimum", "coupled", "gain", "policy", "nothing")


@register
class Meaning(eqx.Module):
    """What the numbers of a table are."""

    ks: tuple[int, ...] = eqx.field(static=True)  # agents sampled, of each type
    bounds: str = eqx.field(static=True)  # of MEANINGS


@register
class Bounds(NamedTuple):
    """lower ≤ V* ≤ upper (MacQueen); under the average criterion of the gain."""

    lower: jax.Array  # [G, N]; average: []
    upper: jax.Array  # [G, N]; average: []


@register
class QTable(NamedTuple):
    """What k sampled agents learn, over G global states, N histograms of L local states, A actions.

    Ties go to the lowest action within 16 ulp of the largest value. Under the average criterion q
    and value are relative, value[0, 0] = 0.
    """

    q: jax.Array  # [G, N, A]
    value: jax.Array  # [G, N], max_a q
    policy: jax.Array  # int32 [G, N]
    bounds: Bounds  # on the value, [G, N]
    histograms: jax.Array  # int32 [N, L]
    meaning: Meaning  # how many agents were sampled, and what the bounds are on; no array


def table_sizes(table: Any) -> dict[str, int]:
    return {"G": table.policy.shape[-2], "A": table.q.shape[-1], "L": table.histograms.shape[-1]}


TABLE = record(QTable, sizes=table_sizes)


def stage_rewards(model: Model, k: int) -> jax.Array:
    """r_g(s_g, a) + (1/k) ⟨h, r_l(s_g)⟩: [G, N, A]."""
    counts = jnp.asarray(enumerate_counts(k, model.num_local_states), model.dtype)
    local = model.local_reward if model.local_reward.ndim == 3 else model.local_reward[:, None, :]
    mean = jnp.einsum("gal,nl->gna", local, counts, precision="highest") / k
    return model.global_reward[:, None, :] + mean


def tie_of(value: jax.Array) -> jax.Array:
    """What counts as rounding between values of that size."""
    return _TIE * jnp.finfo(value.dtype).eps * jnp.max(jnp.abs(value))


def greedy(q: jax.Array, scale: Any = 0.0) -> jax.Array:
    """The lowest action within rounding of the best one, for values of at least `scale`, int32."""
    best = jnp.max(q, axis=-1, keepdims=True)
    tie = jnp.maximum(tie_of(best), tie_of(jnp.asarray(scale, q.dtype)))
    return jnp.argmax(q >= best - tie, axis=-1).astype(jnp.int32)


@jax.custom_jvp
def best_of(q: jax.Array) -> jax.Array:
    """max_a q [..., A]. Its derivative is that of one best action, which no rounding can miss: that
    of `jnp.max` asks where q equals the maximum, and a compiler may compute q twice.
    """
    return jnp.max(q, axis=-1)


@best_of.defjvp
def _best_of_jvp(primals, tangents):
    (q,), (moved,) = primals, tangents
    chosen = jnp.argmax(q, axis=-1, keepdims=True)
    return best_of(q), jnp.take_along_axis(moved, chosen, axis=-1)[..., 0]


def largest_value(model: Model) -> jax.Array:
    """max|r| / (1 − discount), which no discounted value exceeds: []."""
    return model.max_reward() / (1 - model.discount)


def trivial_bounds(model: Model, value: jax.Array) -> Bounds:
    """±max|r| / (1 − discount): all that is known of V* without an exact operator."""
    most = jnp.broadcast_to(largest_value(model), value.shape)
    return Bounds(-most, most)


def trivial_table(model: Model, k: int, q: jax.Array) -> QTable:
    """The table of q [G, N, A] with those bounds."""
    value = best_of(q)
    counts = jnp.asarray(enumerate_counts(k, model.num_local_states))
    meaning = Meaning((k,), "optimum")
    return QTable(q, value, greedy(q), trivial_bounds(model, value), counts, meaning)


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
