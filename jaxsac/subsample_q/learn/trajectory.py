"""Learning from a recorded trajectory of n agents, without a model: several disjoint samples of k
agents at every step.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks
from jaxsac.solution import Solution, Status
from jaxsac.subsample_q.data.histograms import check_size, enumerate_counts
from jaxsac.subsample_q.learn import histogram_index, td_update
from jaxsac.subsample_q.solver import Bounds, QTable, greedy


class Trajectory(NamedTuple):
    """T recorded steps of n agents: global_states int32 [T+1], local_states int32 [T+1, n], actions
    int32 [T], global_rewards [T], local_rewards [T, n]. The stage reward is global_rewards + mean
    of local_rewards.
    """

    global_states: Any
    local_states: Any
    actions: Any
    global_rewards: Any
    local_rewards: Any


def learn_from_trajectory(
    key: jax.Array,
    trajectory: Trajectory,
    k: int,
    num_global_states: int,
    num_local_states: int,
    num_actions: int,
    discount: Any,
    *,
    num_passes: int = 1,
) -> Solution:
    """Off-policy tabular Q-learning on k of the n recorded agents: floor(n/k) disjoint samples at
    each step, drawn afresh in every pass.

    A sample Δ is counted at t and again, the same agents, at t+1, with reward r_g + mean over Δ of
    r_l; the update is that of `q_learning`. The behaviour policy must try every action. Returns
    Solution(QTable, MAX_STEPS, stats, state) with infinite bounds (nothing is known of what was
    never recorded); stats["visits"] int32 [G, N, A] tells where the table is empty. States or
    actions out of range are a ValueError when concrete. The key is consumed. Source: the off-policy
    extension of arXiv 2412.00661, appendix I.
    """
    k = _checks.static_integer("k", k, 1)
    passes = _checks.static_integer("num_passes", num_passes, 1)
    names = {
        "num_global_states": num_global_states,
        "num_local_states": num_local_states,
        "num_actions": num_actions,
    }
    sizes = tuple(_checks.static_integer(name, size, 1) for name, size in names.items())
    rewards = _checks.real_array("global_rewards", trajectory.global_rewards, ("T",))
    T, n = rewards.shape[0], jnp.shape(trajectory.local_states)[-1]
    _checks.require(k <= n, f"k={k} exceeds the {n} recorded agents.")
    check_size(k, sizes[1], 16 * sizes[0] * sizes[2])
    data = Trajectory(
        _checks.integer_array("global_states", trajectory.global_states, (T + 1,)),
        _checks.integer_array("local_states", trajectory.local_states, (T + 1, n)),
        _checks.integer_array("actions", trajectory.actions, (T,)),
        rewards,
        _checks.real_array("local_rewards", trajectory.local_rewards, (T, n), rewards.dtype),
    )
    for name, size in zip(("global_states", "local_states", "actions"), sizes, strict=True):
        if _checks.is_concrete(recorded := getattr(trajectory, name)):
            numbers = np.asarray(recorded)
            _checks.require(
                bool(np.all((numbers >= 0) & (numbers < size))),
                f"{name} must lie in 0..{size - 1}.",
            )
    return _learn(
        key,
        data,
        _checks.real_scalar("discount", discount, rewards.dtype, 0.0),
        k=k,
        sizes=sizes,
        passes=passes,
    )


@functools.partial(jax.jit, static_argnames=("k", "sizes", "passes"))
def _learn(key, data, discount, *, k, sizes, passes):
    G, L, A = sizes
    N = len(enumerate_counts(k, L))
    T, n = data.local_rewards.shape
    groups = n // k
    horizon = 1 / (1 - discount)

    def step(carried, index):
        time = index % T
        order = jax.random.permutation(jax.random.fold_in(key, index), n)[: groups * k].reshape(
            groups, k
        )
        before = histogram_index(data.local_states[time][order], k, L)
        after = histogram_index(data.local_states[time + 1][order], k, L)
        rewards = data.global_rewards[time] + jnp.mean(data.local_rewards[time][order], axis=-1)

        def update(group, carried):
            q, visits = carried
            target = rewards[group] + discount * jnp.max(
                q[data.global_states[time + 1], after[group]]
            )
            return td_update(
                q,
                visits,
                (data.global_states[time], before[group], data.actions[time]),
                target,
                horizon,
            )

        return lax.fori_loop(0, groups, update, carried), None

    start = (jnp.zeros((G, N, A), discount.dtype), jnp.zeros((G, N, A), jnp.int32))
    (q, visits), _ = lax.scan(step, start, jnp.arange(passes * T, dtype=jnp.int32))
    value = jnp.max(q, axis=-1)
    infinite = jnp.full_like(value, jnp.inf)
    table = QTable(
        q,
        value,
        greedy(q, jnp.zeros((), q.dtype)),
        Bounds(-infinite, infinite),
        jnp.asarray(enumerate_counts(k, L)),
    )
    status = jnp.where(
        jnp.all(jnp.isfinite(q)), jnp.int32(Status.MAX_STEPS), jnp.int32(Status.NONFINITE)
    )
    return Solution(
        table, status, {"num_steps": jnp.int32(passes * T * groups), "visits": visits}, q
    )
