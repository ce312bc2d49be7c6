"""Execution on n agents: fresh samples of k each step, the reward of all n, in counts (cost free of
n) or agent by agent (for checks).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks
from jaxsac.subsample_q.data.histograms import graded_rank
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.data.sampling import agents_of, draw_counts
from jaxsac.subsample_q.solver import QTable


class Run(NamedTuple):
    """One trajectory of H steps: rewards [H], global_states int32 [H], counts int32 [H, L], actions
    int32 [H], discounted return [].
    """

    rewards: jax.Array
    global_states: jax.Array
    counts: jax.Array
    actions: jax.Array
    discounted_return: jax.Array


def simulate(
    key: jax.Array,
    model: Model,
    table: QTable,
    num_agents: Any,
    horizon: int,
    initial: tuple[Any, Any],
) -> Run:
    """Execute the policy of k sampled agents on num_agents of them for `horizon` steps, in counts:
    the cost does not grow with num_agents.

    Each step draws k agents uniformly without replacement, independently of the past (exact
    hypergeometric draw), acts by the table's policy, pays r_g + (1/n) <counts, r_l> on all n, and
    moves all n (exact multinomial draws from binomials). `initial` is (global state, counts int32
    [L] that sum to num_agents). Batch with jax.vmap or run_trials; the same key gives different k
    common random numbers. The key is consumed. Bad input: ValueError for k > num_agents, counts
    that do not sum to it, and more agents than the dtype counts exactly (2^24 in float32). Source:
    arXiv 2403.00222, algorithm 2.
    """
    L = model.num_local_states
    global_state, counts = checked_start(model, table, num_agents, initial)
    k = agents_of(table.policy.shape[1], L)
    return _simulate(
        key, model, table.policy, global_state, counts, _checks.static_integer("horizon", horizon, 1), k
    )


def checked_start(
    model: Model, table: Any, num_agents: Any, initial: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array]:
    """`initial` as arrays, checked against the number of agents and the k of the table."""
    L = model.num_local_states
    k = agents_of(table.policy.shape[1], L)
    counts = _checks.integer_array("initial counts", initial[1], (L,))
    if _checks.is_concrete(num_agents):
        _checks.require(
            k <= num_agents,
            f"the table samples k={k} agents, more than num_agents={num_agents}: solve for a smaller k.",
        )
        limit = 2**24 if model.dtype == jnp.float32 else 2**31 - 1
        _checks.require(
            num_agents < limit,
            f"num_agents={num_agents} is beyond what {model.dtype} counts exactly ({limit}): use float64.",
        )
        if _checks.is_concrete(initial[1]):
            given = np.asarray(initial[1])
            _checks.require(
                int(given.sum()) == num_agents,
                f"initial counts sum to {int(given.sum())}, not to num_agents={num_agents}.",
            )
            _checks.require(bool((given >= 0).all()), "initial counts must not be negative.")
    return _checks.integer_array("initial global state", jnp.asarray(initial[0], jnp.int32), ()), counts


@functools.partial(jax.jit, static_argnames=("horizon", "k"))
def _simulate(key, model, policy, global_state, counts, horizon, k):
    L = model.num_local_states

    def step(carried, key):
        global_state, counts, factor, total = carried
        sample_key, move_key = jax.random.split(key)
        sampled = draw_counts(sample_key, counts, k)
        action = policy[global_state, graded_rank(sampled[: L - 1], k)]
        reward = stage_reward(model, global_state, counts, action)
        moved = move(move_key, model, global_state, counts, action)
        return (*moved, factor * model.discount, total + factor * reward), (
            reward,
            global_state,
            counts,
            action,
        )

    zero = jnp.zeros((), model.dtype)
    carried, record = lax.scan(
        step, (global_state, counts, zero + 1, zero), jax.random.split(key, horizon)
    )
    return Run(*record, carried[-1])


def stage_reward(
    model: Model, global_state: jax.Array, counts: jax.Array, action: jax.Array
) -> jax.Array:
    """r_g(s_g, a) + (1/n) <counts, r_l(s_g)> of one stage, []."""
    local = (
        model.local_reward[global_state, action]
        if model.local_reward.ndim == 3
        else model.local_reward[global_state]
    )
    shares = counts.astype(model.dtype) / jnp.sum(counts, dtype=jnp.int32).astype(model.dtype)
    return model.global_reward[global_state, action] + jnp.vdot(shares, local, precision="highest")


def move(
    key: jax.Array, model: Model, global_state: jax.Array, counts: jax.Array, action: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The next global state and counts."""
    global_key, local_key = jax.random.split(key)
    after = move_global(global_key, model.global_transition[global_state, action])
    kernel = (
        model.local_transition[global_state, action]
        if model.action_drives_agents
        else model.local_transition[global_state]
    )
    return after, jnp.sum(split(local_key, counts, kernel), axis=0, dtype=jnp.int32)


def move_global(key: jax.Array, chances: jax.Array) -> jax.Array:
    """The next global state, int32, drawn from `chances` [G]."""
    cumulative = jnp.cumsum(chances)
    ticket = jax.random.uniform(key, (), chances.dtype) * cumulative[-1]
    return jnp.minimum(jnp.sum(ticket >= cumulative, dtype=jnp.int32), chances.shape[0] - 1)


def split(key: jax.Array, counts: jax.Array, chances: jax.Array) -> jax.Array:
    """Independent Multinomial(counts_j, chances[j]) draws of every row j: int32 [R, T], by
    conditional binomials for all j at once.
    """
    T = chances.shape[1]
    # P(agent goes to t | not to an earlier one); the tails are summed backwards, so that they
    # vanish exactly where the chances do
    tails = jnp.cumsum(chances[:, ::-1], axis=1)[:, ::-1]
    conditional = jnp.where(tails > 0, jnp.minimum(chances / jnp.where(tails > 0, tails, 1), 1), 0)
    remaining, parts = counts, []
    for t, subkey in zip(range(T - 1), jax.random.split(key, max(T - 1, 1)), strict=False):
        going = binomial(subkey, remaining, conditional[:, t])
        parts.append(going)
        remaining = remaining - going
    return jnp.stack([*parts, remaining], axis=1)


def binomial(key: jax.Array, count: jax.Array, chance: jax.Array) -> jax.Array:
    """Binomial(count, chance) draws as int32, 0 ≤ draw ≤ count."""
    draw = jax.random.binomial(key, count.astype(chance.dtype), chance, dtype=chance.dtype)
    return jnp.clip(draw.astype(jnp.int32), 0, count)


@functools.partial(jax.jit, static_argnames=("horizon", "k"))
def _simulate_agents(key, model, policy, global_state, agents, horizon, k):
    L, n = model.num_local_states, agents.shape[0]

    def histogram(states):
        return jnp.sum(
            states[:, None] == jnp.arange(L, dtype=jnp.int32)[None, :], axis=0, dtype=jnp.int32
        )

    def step(carried, key):
        global_state, agents, factor, total = carried
        sample_key, global_key, local_key = jax.random.split(key, 3)
        sampled = histogram(jax.random.permutation(sample_key, agents)[:k])
        counts = histogram(agents)
        action = policy[global_state, graded_rank(sampled[: L - 1], k)]
        reward = stage_reward(model, global_state, counts, action)
        kernel = (
            model.local_transition[global_state, action]
            if model.action_drives_agents
            else model.local_transition[global_state]
        )
        after = jax.random.categorical(
            global_key, jnp.log(model.global_transition[global_state, action])
        ).astype(jnp.int32)
        moved = jax.random.categorical(local_key, jnp.log(kernel)[agents], shape=(n,)).astype(
            jnp.int32
        )
        return (after, moved, factor * model.discount, total + factor * reward), (
            reward,
            global_state,
            counts,
            action,
        )

    zero = jnp.zeros((), model.dtype)
    carried, record = lax.scan(
        step, (global_state, agents, zero + 1, zero), jax.random.split(key, horizon)
    )
    return Run(*record, carried[-1])


def simulate_agents(
    key: jax.Array,
    model: Model,
    table: QTable,
    num_agents: int,
    horizon: int,
    initial: tuple[Any, Any],
) -> Run:
    """What `simulate` does, agent by agent: n states instead of counts. Slow; an independent check
    of the draws. The key is consumed.
    """
    global_state, counts = checked_start(model, table, num_agents, initial)
    n = _checks.static_integer("num_agents", num_agents, 1)
    agents = jnp.repeat(
        jnp.arange(model.num_local_states, dtype=jnp.int32), counts, total_repeat_length=n
    )
    k = agents_of(table.policy.shape[1], model.num_local_states)
    return _simulate_agents(
        key, model, table.policy, global_state, agents, _checks.static_integer("horizon", horizon, 1), k
    )
