"""Execution on n agents: fresh samples of k each step, the reward of all n, in counts (cost free of
n) or agent by agent (for checks).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, _loops
from jaxsac.solution import register
from jaxsac.subsample_q.data.histograms import graded_rank
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.data.sampling import agents_of, draw_counts, draw_state, move_counts
from jaxsac.subsample_q.exact.table import value_of


@register
class Run(NamedTuple):
    """One trajectory of H steps, in counts of agents."""

    rewards: jax.Array  # [H]
    global_states: jax.Array  # int32 [H]
    counts: jax.Array  # int32 [H, L]; of E types [H, E, L]
    actions: jax.Array  # int32 [H], global ones
    discounted_return: jax.Array  # []


class Stage(NamedTuple):
    """What happens in one step."""

    action: jax.Array  # int32 []
    reward: jax.Array  # []
    counts: jax.Array  # int32 [..., L], before the move
    global_state: jax.Array  # int32 [], after it
    population: jax.Array  # counts or states of the agents, after it


def rollout(
    key: jax.Array,
    step: Callable[[jax.Array, jax.Array, jax.Array], Stage],
    global_state: jax.Array,
    population: jax.Array,
    discount: jax.Array,
    horizon: int,
) -> Run:
    """`horizon` times step(key, global state, population); a discounted sum of what they pay."""

    def advance(carried, key):
        global_state, population, factor, total = carried
        stage = step(key, global_state, population)
        after = stage.global_state, stage.population
        record = stage.reward, global_state, stage.counts, stage.action
        return (*after, factor * discount, total + factor * stage.reward), record

    one = jnp.ones_like(discount)
    start = (global_state, population, one, 0 * one)
    carried, record = _loops.scan(advance, start, jax.random.split(key, horizon))
    rewards, states, counts, actions = record
    return Run(rewards, states, counts, actions, carried[-1])


def checked_start(
    dtype: Any, num_local_states: int, table: Any, num_agents: Any, initial: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array, int]:
    """`initial` as arrays, and the k of the table, checked against the number of agents."""
    k = agents_of(table.value.shape[1], num_local_states)
    counts = _checks.integer_array("initial counts", initial[1], (num_local_states,))
    if _checks.is_concrete(num_agents):
        _checks.require(
            k <= num_agents,
            f"the table samples k={k} agents, more than num_agents={num_agents}: solve for a"
            " smaller k.",
        )
        limit = 2**24 if dtype == jnp.float32 else 2**31 - 1
        _checks.require(
            num_agents < limit,
            f"num_agents={num_agents} is beyond what {dtype} counts exactly ({limit}): use"
            " float64.",
        )
        if _checks.is_concrete(initial[1]):
            given = np.asarray(initial[1])
            _checks.require(
                int(given.sum()) == num_agents,
                f"initial counts sum to {int(given.sum())}, not to num_agents={num_agents}.",
            )
            _checks.require(bool((given >= 0).all()), "initial counts must not be negative.")
    return start_state(initial), counts, k


def start_state(initial: tuple[Any, Any]) -> jax.Array:
    """The global state of `initial`, int32 []."""
    return _checks.integer_array("initial global state", jnp.asarray(initial[0], jnp.int32), ())


def shares_of(counts: jax.Array, dtype: Any) -> jax.Array:
    """Counts [..., L] as parts of their sum."""
    total = jnp.sum(counts, axis=-1, keepdims=True, dtype=jnp.int32)
    return counts.astype(dtype) / total.astype(dtype)


def simulate(
    key: jax.Array,
    model: Model,
    table: Any,
    num_agents: Any,
    horizon: int,
    initial: tuple[Any, Any],
) -> Run:
    """Execute the policy of k sampled agents on num_agents of them, in counts: the cost does not
    grow with num_agents.

    Each step draws k agents uniformly without replacement, independently of the past (exact
    hypergeometric draw), acts by the table's policy, pays r_g + (1/n) ⟨counts, r_l⟩ on all n, and
    moves all n (exact multinomial draws from binomials). Batch with `jax.vmap` or `run_trials`; the
    same key gives different k common random numbers.

    * `key`: consumed.
    * `table`: a `QTable`, or its Solution.
    * `horizon`: steps, static.
    * `initial`: (global state, counts int32 [L] that sum to num_agents).

    Returns: a `Run`.

    Raises: ValueError for k > num_agents, counts that do not sum to it, and more agents than the
    dtype counts exactly (2^24 in float32).

    Source: arXiv 2403.00222, algorithm 2.
    """
    table = value_of(table)
    start, counts, k = checked_start(
        model.dtype, model.num_local_states, table, num_agents, initial
    )
    horizon = _checks.static_integer("horizon", horizon, 1)
    return _simulate(key, model, table.policy, start, counts, horizon, k)


@functools.partial(jax.jit, static_argnames=("horizon", "k"))
def _simulate(key, model, policy, global_state, counts, horizon, k):
    def step(key, global_state, counts):
        sample_key, move_key = jax.random.split(key)
        sampled = draw_counts(sample_key, counts, k)
        action = policy[global_state, graded_rank(sampled[:-1], k)]
        reward = stage_reward(model, global_state, counts, action)
        moved = move(move_key, model, global_state, counts, action)
        return Stage(action, reward, counts, *moved)

    return rollout(key, step, global_state, counts, model.discount, horizon)


def stage_reward(
    model: Model, global_state: jax.Array, counts: jax.Array, action: jax.Array
) -> jax.Array:
    """r_g(s_g, a) + (1/n) ⟨counts, r_l(s_g)⟩ of one stage, []."""
    local = model.local_reward[global_state]
    local = local[action] if local.ndim == 2 else local
    mean = jnp.vdot(shares_of(counts, model.dtype), local, precision="highest")
    return model.global_reward[global_state, action] + mean


def move(
    key: jax.Array, model: Model, global_state: jax.Array, counts: jax.Array, action: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The next global state and counts."""
    global_key, local_key = jax.random.split(key)
    after = draw_state(global_key, model.global_transition[global_state, action])
    return after, move_counts(local_key, counts, _kernel(model, global_state, action))


def _kernel(model: Model, global_state: jax.Array, action: jax.Array) -> jax.Array:
    """[L, L], by which the local agents move."""
    kernel = model.local_transition[global_state]
    return kernel[action] if model.action_drives_agents else kernel


def simulate_agents(
    key: jax.Array,
    model: Model,
    table: Any,
    num_agents: int,
    horizon: int,
    initial: tuple[Any, Any],
) -> Run:
    """What `simulate` does, agent by agent: n states instead of counts. Slow; an independent check
    of the draws. The key is consumed.
    """
    table = value_of(table)
    L = model.num_local_states
    start, counts, k = checked_start(model.dtype, L, table, num_agents, initial)
    n = _checks.static_integer("num_agents", num_agents, 1)
    agents = jnp.repeat(jnp.arange(L, dtype=jnp.int32), counts, total_repeat_length=n)
    horizon = _checks.static_integer("horizon", horizon, 1)
    return _simulate_agents(key, model, table.policy, start, agents, horizon, k)


@functools.partial(jax.jit, static_argnames=("horizon", "k"))
def _simulate_agents(key, model, policy, global_state, agents, horizon, k):
    states = jnp.arange(model.num_local_states, dtype=jnp.int32)

    def histogram(agents):
        return jnp.sum(agents[:, None] == states[None, :], axis=0, dtype=jnp.int32)

    def step(key, global_state, agents):
        sample_key, global_key, local_key = jax.random.split(key, 3)
        sampled = histogram(jax.random.permutation(sample_key, agents)[:k])
        counts = histogram(agents)
        action = policy[global_state, graded_rank(sampled[:-1], k)]
        reward = stage_reward(model, global_state, counts, action)
        chances = jnp.log(model.global_transition[global_state, action])
        after = jax.random.categorical(global_key, chances).astype(jnp.int32)
        kernel = jnp.log(_kernel(model, global_state, action))
        moved = jax.random.categorical(local_key, kernel[agents], shape=agents.shape)
        return Stage(action, reward, counts, after, moved.astype(jnp.int32))

    return rollout(key, step, global_state, agents, model.discount, horizon)
