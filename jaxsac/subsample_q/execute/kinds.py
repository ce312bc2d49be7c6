"""Execution on agents of several types, and on agents who act too."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, integer, key, size
from jaxsac.subsample_q.data.histograms import (
    additions,
    enumerate_counts,
    graded_rank,
    num_histograms,
)
from jaxsac.subsample_q.data.model import (
    LOCAL_ACTION_MODEL,
    TYPED_MODEL,
    LocalActionModel,
    TypedModel,
)
from jaxsac.subsample_q.data.sampling import (
    STATE,
    TYPED_STATE,
    draw_counts,
    draw_state,
    hypergeometric_weights,
    move_counts,
    split,
)
from jaxsac.subsample_q.exact.agent_types import TYPED_TABLE, table_ks
from jaxsac.subsample_q.exact.local_actions import ASSIGNMENT_TABLE
from jaxsac.subsample_q.execute.simulation import Run, Stage, rollout, shares_of, started


@arguments(
    key=key(),
    model=TYPED_MODEL,
    table=TYPED_TABLE,
    ks=anything("E integers ≥ 1: agents sampled of each type"),
    num_agents=integer("E", low=1),
    horizon=size(1),
    initial=TYPED_STATE,
)
def simulate_types(
    key: jax.Array,
    model: TypedModel,
    table: Any,
    ks: Sequence[int],
    num_agents: Any,
    horizon: int,
    initial: tuple[Any, Any],
) -> Run:
    """Execute the policy of ks[e] sampled agents of each type on num_agents[e] of them, in counts:
    as `simulate`. The reward weighs types by model.shares, not by num_agents: keep them equal.

    * `key`: consumed.
    * `table`: a `TypedTable`, or its Solution.
    * `initial`: (global state, counts int32 [E, L] whose rows sum to num_agents).

    Returns: a `Run` with counts [H, E, L].

    Raises: ValueError for k_e > num_agents[e] and counts that do not sum to num_agents.
    """
    sizes = table_ks(table, ks)
    start = started(table, model.dtype, num_agents, initial)
    return _simulate_types(key, model, table.policy, start, horizon, sizes)


@functools.partial(jax.jit, static_argnames=("horizon", "ks"))
def _simulate_types(key, model, policy, start, horizon, ks):
    E, L = start.population.shape

    def step(key, global_state, counts):
        global_key, *keys = jax.random.split(key, 1 + 2 * E)
        position = jnp.int32(0)
        for e, k in enumerate(ks):
            sampled = draw_counts(keys[e], counts[e], k)
            position = position * num_histograms(k, L) + graded_rank(sampled[:-1], k)
        action = policy[global_state, position]
        shares = shares_of(counts, model.shares.dtype)
        local = jnp.sum(shares * model.local_reward[:, global_state], axis=1)
        reward = model.global_reward[global_state, action] + jnp.vdot(
            model.shares, local, precision="highest"
        )
        after = draw_state(global_key, model.global_transition[global_state, action])
        kernels = model.local_transition[:, global_state]
        moved = [move_counts(keys[E + e], counts[e], kernels[e]) for e in range(E)]
        return Stage(action, reward, counts, after, jnp.stack(moved))

    return rollout(key, step, start, model.discount, horizon)


@arguments(
    key=key(),
    model=LOCAL_ACTION_MODEL,
    table=ASSIGNMENT_TABLE,
    num_agents=integer(low=1),
    horizon=size(1),
    initial=STATE,
)
def simulate_local_actions(
    key: jax.Array,
    model: LocalActionModel,
    table: Any,
    num_agents: Any,
    horizon: int,
    initial: tuple[Any, Any],
) -> Run:
    """Execute the policy of k agents on num_agents, in counts; every agent samples for itself, and
    the cost does not grow with num_agents.

    The global action is the policy's for one fresh sample of k agents. An agent in state s samples
    k − 1 of the others, and takes action b with the chance assignment[s, b] / h_s of the histogram
    h of the sample and itself: given the counts, agents choose independently, and the chances are
    summed exactly over all samples.

    * `key`: consumed.
    * `table`: an `AssignmentTable`, or its Solution.
    * `horizon`, `initial`: as in `simulate`.

    Returns: a `Run`.

    Raises: ValueError as `simulate`, and for a model with `allowed` (agents who choose alone cannot
    keep to it).

    Source: arXiv 2412.00661, algorithm 2.
    """
    _checks.require(
        model.allowed is None,
        "allowed restricts joint assignments, which agents who choose independently do not keep.",
    )
    B = model.num_local_actions
    _checks.require(
        table.assignment.shape[-1] == B,
        f"table must have B = {B} local actions, got {table.assignment.shape[-1]}.",
    )
    start = started(table, model.dtype, num_agents, initial)
    return _simulate_local_actions(
        key, model, table.policy, table.assignment, start, horizon, table.meaning.ks[0]
    )


@functools.partial(jax.jit, static_argnames=("horizon", "k"))
def _simulate_local_actions(key, model, policy, assignment, start, horizon, k):
    base, L, dtype = model.base, model.num_local_states, model.base.dtype
    kernels, states = model.pair_kernels(), jnp.arange(L, dtype=jnp.int32)
    others = jnp.asarray(enumerate_counts(k - 1, L))
    with_me = np.stack([additions(k, L, s) for s in range(L)])

    def chances(global_state, counts, state):
        """P(action | an agent in `state`), [B]; any where nobody is."""
        without = jnp.maximum(counts - (states == state).astype(jnp.int32), 0)
        weights = hypergeometric_weights(without, k - 1, dtype)
        taken = assignment[global_state, with_me[state], state].astype(dtype)
        share = taken / (others[:, state] + 1).astype(dtype)[:, None]
        return jnp.matmul(weights, share, precision="highest")

    def step(key, global_state, counts):
        sample_key, choice_key, global_key, local_key = jax.random.split(key, 4)
        action = policy[global_state, graded_rank(draw_counts(sample_key, counts, k)[:-1], k)]
        choices = jnp.stack([chances(global_state, counts, s) for s in range(L)])
        taken = split(choice_key, counts, choices)  # [L, B]
        shares = shares_of(taken.reshape(-1), dtype).reshape(taken.shape)
        local = jnp.vdot(shares, base.local_reward[global_state].T, precision="highest")
        reward = base.global_reward[global_state, action] + local
        if model.share_reward is not None:
            reward = reward + model.share_reward(global_state, shares)
        after = draw_state(global_key, base.global_transition[global_state, action])
        moved = move_counts(local_key, taken.reshape(-1), kernels[global_state])
        return Stage(action, reward, counts, after, moved)

    return rollout(key, step, start, base.discount, horizon)
