"""What is learned: a table over histograms, and the Solutions that bound nothing but it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, either, integer, key, record
from jaxsac._iterate import Certificate, Outcome
from jaxsac.solution import Solution, register, verdict
from jaxsac.subsample_q.data.histograms import enumerate_counts, enumerate_products
from jaxsac.subsample_q.data.kinds import TypedModel
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.data.sampling import check_state, draw_row

_TIE = 16  # ulp of the values within which actions are equally good
# What `bounds` are on: the best value of the k agents (then its mean over samples is one on n),
# that where rewards, choices or an adversary couple the agents, the gain, the value of one policy,
# or nothing.
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
    """What k sampled agents learn, over G global states, N histograms of L local states, A actions;
    of E types, N products of one histogram for each, the last type running fastest.

    Ties go to the lowest action within 16 ulp of the largest value. Under the average criterion q
    and value are relative, value[0, 0] = 0.
    """

    q: jax.Array  # [G, N, A]; −inf where an action is not allowed
    value: jax.Array  # [G, N], max_a q; max_a min_b q of pairs (a, b) with an adversary's reply
    policy: jax.Array  # int32 [G, N]
    bounds: Bounds  # on the value, [G, N]
    histograms: jax.Array  # int32 [N, L]; of types [N, E, L]
    meaning: Meaning  # how many agents were sampled, and what the bounds are on; no array

    @arguments(
        key=key(),
        global_state=integer(low=0),
        local_states=integer("n", low=0),
        counts=either(integer("L", low=0), integer("E", "L", low=0)),
    )
    def act(
        self, key: jax.Array, global_state: Any, local_states: Any = None, *, counts: Any = None
    ) -> jax.Array:
        """The action, int32 [], for one fresh sample of the agents.

        * `key`: consumed.
        * `local_states`: int32 [n], the states of all agents (of one type); or
        * `counts`: int32 [L], of types [E, L], the agents in each state.

        Returns: −1 for traced states that do not exist.

        Raises: ValueError for both or none of them, and for known states that do not exist or have
        fewer agents than are sampled.
        """
        return draw_action(self, key, *observed(self, global_state, local_states, counts))


def observed(table: Any, global_state: Any, local_states: Any, counts: Any) -> tuple:
    """The global state, the counts [L] or [E, L], and whether there is such a state."""
    shape = (table.policy.shape[0], *table.histograms.shape[1:])
    _checks.require(
        (local_states is None) != (counts is None), "local_states or counts: give one of them."
    )
    _checks.require(
        counts is not None or len(shape) == 2, "local_states has no types: give counts [E, L]."
    )
    inside: Any = True
    if counts is None:
        L = shape[1]
        held = integer("n", low=0, below="L").take("local_states", local_states, L=L)
        inside = jnp.all((held >= 0) & (held < L))
        counts = jnp.zeros(L, jnp.int32).at[held].add(1)
    state = integer(low=0, below="G").take("global_state", global_state, G=shape[0])
    return state, counts, inside & check_state((state, counts), shape, table.meaning.ks)


@jax.jit
def draw_action(
    table: Any, key: jax.Array, global_state: Any, counts: Any, valid: Any
) -> jax.Array:
    """The table's action for a sample of `counts`, int32 []; −1 where there is no such state."""
    chosen = table.policy[global_state, draw_row(key, counts, table.meaning.ks)]
    return jnp.where(valid, chosen, -1)


def chances_of(answer: Any, num_actions: int, dtype: Any) -> jax.Array:
    """What a rule says, an action or chances [A], as chances [A]; NaN for an action that there is
    not.
    """
    answer = jnp.asarray(answer)
    if jnp.issubdtype(answer.dtype, jnp.floating):
        _checks.check_shape("policy's chances", answer, (num_actions,))
        return answer.astype(dtype)
    _checks.check_shape("policy's action", answer, ())
    exists = (answer >= 0) & (answer < num_actions)
    chosen = jax.nn.one_hot(answer, num_actions, dtype=dtype)
    return jnp.where(exists, chosen, jnp.nan)


def table_sizes(table: Any) -> dict[str, int]:
    return {"G": table.policy.shape[-2], "A": table.q.shape[-1], "L": table.histograms.shape[-1]}


TABLE = record(QTable, sizes=table_sizes)


def local_kernels(model: Any) -> Any:
    """Transitions of the types, [E, G or G A, L, L]; of NumPy where they are known, which nothing
    has to compute.
    """
    kernels, L = model.local_transition, model.num_local_states
    kernels = np.asarray(kernels) if _checks.is_concrete(kernels) else kernels
    return kernels.reshape(getattr(model, "num_types", 1), -1, L, L)


def local_rewards(model: Any) -> tuple[jax.Array, jax.Array]:
    """Rewards [E, G, A or 1, L] and shares [E] of the types."""
    reward, L = model.local_reward, model.num_local_states
    shares = model.shares if isinstance(model, TypedModel) else jnp.ones(1, model.dtype)
    return reward.reshape(shares.shape[0], model.num_global_states, -1, L), shares


def stage_rewards(model: Any, *ks: int) -> jax.Array:
    """r_g(s_g, a) + Σ_e shares_e ⟨h_e, r_l(e, s_g)⟩ / k_e: [G, N, A]."""
    reward, shares = local_rewards(model)
    counts = jnp.asarray(enumerate_products(ks, model.num_local_states), model.dtype)
    weights = shares / jnp.asarray(ks, model.dtype)
    own = jnp.einsum("e,egal,nel->gna", weights, reward, counts, precision="highest")
    return model.global_reward[:, None, :] + own


def of_each_state(model: Any, function: Callable[..., Any], listed: jax.Array) -> jax.Array:
    """function(s_g, z) for every global state and each of the M counts z that are listed:
    [G, M, ...].
    """
    states = jnp.arange(model.num_global_states, dtype=jnp.int32)
    return jax.vmap(lambda g: jax.vmap(lambda z: function(g, z))(listed))(states)


def permitted(q: jax.Array, allowed: jax.Array | None) -> jax.Array:
    """q [G, N, A], −inf where an action is not allowed [G, A]."""
    return q if allowed is None else jnp.where(allowed[:, None, :], q, -jnp.inf)


def ended(value: jax.Array, terminal: jax.Array | None) -> jax.Array:
    """value [G, ...], 0 where it ends."""
    if terminal is None:
        return value
    return jnp.where(terminal.reshape(-1, *[1] * (value.ndim - 1)), 0, value)


def tie_of(value: jax.Array) -> jax.Array:
    """What counts as rounding between values of that size."""
    return _TIE * jnp.finfo(value.dtype).eps * jnp.max(jnp.abs(value))


def greedy(q: jax.Array, scale: Any = 0.0, replies: int = 1) -> jax.Array:
    """The lowest action within rounding of the best one, for values of at least `scale`, with the
    worst of its `replies`: int32.
    """
    if replies > 1:
        pairs = _pairs(q, replies)
        chosen = greedy(jnp.min(pairs, axis=-1), scale)
        worst = jnp.argmin(
            jnp.take_along_axis(pairs, chosen[..., None, None], axis=-2)[..., 0, :], -1
        )
        return chosen * replies + worst.astype(jnp.int32)
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


def best_against(q: jax.Array, replies: int) -> jax.Array:
    """max_a min_b q [..., A] of actions that are pairs a · replies + b."""
    return best_of(q if replies == 1 else -best_of(-_pairs(q, replies)))


def _pairs(q: jax.Array, replies: int) -> jax.Array:
    return q.reshape(*q.shape[:-1], -1, replies)


def largest_value(model: Model) -> jax.Array:
    """max|r| / (1 − discount), which no discounted value exceeds: []."""
    return model.max_reward() / (1 - model.discount)


def trivial_table(model: Model, k: int, q: jax.Array) -> QTable:
    """The table of q [G, N, A] with the bounds ±max|r| / (1 − discount): all that is known of V*
    without an exact operator.
    """
    q = permitted(q, model.allowed)
    value = best_of(q)
    most = jnp.broadcast_to(largest_value(model), value.shape)
    counts = jnp.asarray(enumerate_counts(k, model.num_local_states))
    return QTable(q, value, greedy(q), Bounds(-most, most), counts, Meaning((k,), "optimum"))


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
