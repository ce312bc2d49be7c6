"""Execution on n agents: fresh samples of k each step, the reward of all n, in counts (cost free of
n) or agent by agent (for checks).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _loops
from jaxsac._arguments import arguments, integer, key, size
from jaxsac.solution import register
from jaxsac.subsample_q.data.histograms import graded_rank
from jaxsac.subsample_q.data.model import MODEL, Model
from jaxsac.subsample_q.data.sampling import (
    STATE,
    check_state,
    draw_counts,
    draw_state,
    move_counts,
)
from jaxsac.subsample_q.exact.table import TABLE


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


class Start(NamedTuple):
    """Where a run begins."""

    global_state: jax.Array  # int32 []
    population: jax.Array  # int32, counts or states of the agents
    valid: jax.Array  # bool [], whether there is such a state


def rollout(
    key: jax.Array,
    step: Callable[[jax.Array, jax.Array, jax.Array], Stage],
    start: Start,
    discount: jax.Array,
    horizon: int,
) -> Run:
    """`horizon` times step(key, global state, population); a discounted sum of what they pay, NaN
    from a start that does not exist.
    """
    unknown = jnp.where(start.valid, 0, jnp.nan).astype(discount.dtype)

    def advance(carried, key):
        global_state, population, factor, total = carried
        stage = step(key, global_state, population)
        after = stage.global_state, stage.population
        reward = stage.reward + unknown
        record = reward, global_state, stage.counts, stage.action
        return (*after, factor * discount, total + factor * reward), record

    one = jnp.ones_like(discount)
    carry = (jnp.asarray(start.global_state), start.population, one, 0 * one)
    carried, record = _loops.scan(advance, carry, jax.random.split(key, horizon))
    rewards, states, counts, actions = record
    return Run(rewards, states, counts, actions, carried[-1])


def started(table: Any, dtype: Any, num_agents: Any, initial: Any) -> Start:
    """The start of a run of `table`'s policy on num_agents, or a ValueError."""
    ks = table.meaning.ks
    ks = ks if np.ndim(initial[1]) == 2 else ks[0]
    valid = check_state(initial, table.policy.shape[0], ks, num_agents, dtype)
    state, counts = initial
    return Start(state, counts, valid)


def shares_of(counts: jax.Array, dtype: Any) -> jax.Array:
    """Counts [..., L] as parts of their sum."""
    total = jnp.sum(counts, axis=-1, keepdims=True, dtype=jnp.int32)
    return counts.astype(dtype) / total.astype(dtype)


@arguments(
    key=key(), model=MODEL, table=TABLE, num_agents=integer(low=1), horizon=size(1), initial=STATE
)
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

    Returns: a `Run`. Its derivatives are those of the rewards alone: the draws jump with the
    transitions.

    Raises: ValueError for k > num_agents, counts that do not sum to it, and more agents than the
    dtype counts exactly (2^24 in float32). From a traced state that does not exist rewards are NaN.

    Source: arXiv 2403.00222, algorithm 2.
    """
    start = started(table, model.dtype, num_agents, initial)
    return _simulate(key, model, table.policy, start, horizon, table.meaning.ks[0])


@functools.partial(jax.jit, static_argnames=("horizon", "k"))
def _simulate(key, model, policy, start, horizon, k):
    def step(key, global_state, counts):
        sample_key, move_key = jax.random.split(key)
        sampled = draw_counts(sample_key, counts, k)
        action = policy[global_state, graded_rank(sampled[:-1], k)]
        reward = stage_reward(model, global_state, counts, action)
        moved = move(move_key, model, global_state, counts, action)
        return Stage(action, reward, counts, *moved)

    return rollout(key, step, start, model.discount, horizon)


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


@arguments(key=key(), model=MODEL, table=TABLE, num_agents=size(1), horizon=size(1), initial=STATE)
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
    start = started(table, model.dtype, num_agents, initial)
    states = jnp.arange(model.num_local_states, dtype=jnp.int32)
    agents = jnp.repeat(states, start.population, total_repeat_length=num_agents)
    start = start._replace(population=agents)
    return _simulate_agents(key, model, table.policy, start, horizon, table.meaning.ks[0])


@functools.partial(jax.jit, static_argnames=("horizon", "k"))
def _simulate_agents(key, model, policy, start, horizon, k):
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

    return rollout(key, step, start, model.discount, horizon)
