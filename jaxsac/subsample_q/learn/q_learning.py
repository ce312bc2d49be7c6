"""Q-learning, from a generative model and from a recorded trajectory of n agents."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsac import _checks, _loops
from jaxsac._arguments import arguments, either, integer, key, real, record, size
from jaxsac.solution import Solution
from jaxsac.subsample_q.data.histograms import check_size, enumerate_counts
from jaxsac.subsample_q.data.kinds import PLAIN_MODEL
from jaxsac.subsample_q.data.model import Model, check_discount
from jaxsac.subsample_q.data.sampling import agent_states, by_inversion, histogram_index
from jaxsac.subsample_q.exact.table import (
    Bounds,
    Meaning,
    QTable,
    best_of,
    largest_value,
    stage_rewards,
    trivial_table,
    uncertified,
)
from jaxsac.subsample_q.learn.recording import Trajectory, recorded


@arguments(
    key=key(),
    model=PLAIN_MODEL,
    k=size(1),
    num_updates=integer(low=0),
    initial=either(real("G", "N", "A"), record(Solution)),
)
def q_learning(
    key: jax.Array, model: Model, k: int, num_updates: int, *, initial: Any = None
) -> Solution:
    """Asynchronous Q-learning on k agents from a generative model: one uniformly drawn (s_g, h, a)
    at a time.

        Q(s, a) += step · (r + discount max_a' Q(s', a') − Q(s, a)),
        step = H / (H + visits(s, a)),   H = 1 / (1 − discount)

    * `key`: consumed.
    * `num_updates`: may be traced.
    * `initial`: a first q [G, N, A], or a Solution.

    Returns: a Solution of a `QTable` whose state is q. It never certifies itself (MAX_STEPS;
    stats["error"] is the trivial bound); stats["visits"] int32 [G, N, A].

    Source: the surrogate of arXiv 2403.00222, and the rescaled linear step of Qu and Wierman 2020.
    """
    check_discount(model)
    G, A = model.num_global_states, model.num_actions
    shape = (G, check_size(k, model.num_local_states, 16 * G * A), A)
    initial = initial.state if isinstance(initial, Solution) else initial
    start = jnp.zeros(shape, model.dtype) if initial is None else initial
    _checks.require(
        getattr(start, "shape", None) == shape and start.dtype == model.dtype,
        f"initial must be the q of another call, {model.dtype} {list(shape)}.",
    )
    return _q_learning(key, model, start, jnp.asarray(num_updates), k=k)


@functools.partial(jax.jit, static_argnames="k")
def _q_learning(key, model, start, num_updates, *, k):
    G, N, A = start.shape
    L = model.num_local_states
    agents = jnp.asarray(agent_states(k, L))
    rewards, horizon = stage_rewards(model, k), 1 / (1 - model.discount)
    global_cumulative = jnp.cumsum(model.global_transition, axis=-1)
    local_cumulative = jnp.cumsum(model.local_transition, axis=-1)

    def update(t, carried):
        q, visits = carried
        where_key, ticket_key = jax.random.split(jax.random.fold_in(key, t))
        position = jax.random.randint(where_key, (), 0, G * N * A, jnp.int32)
        g, n, a = position // (N * A), position // A % N, position % A
        tickets = jax.random.uniform(ticket_key, (k + 1,), model.dtype)
        rows = local_cumulative[g, a] if model.action_drives_agents else local_cumulative[g]
        after = by_inversion(global_cumulative[g, a], tickets[k])
        moved = histogram_index(by_inversion(rows[agents[n]], tickets[:k]), k, L)
        ahead = q[after, moved]
        if model.allowed is not None:
            ahead = jnp.where(model.allowed[after], ahead, -jnp.inf)
        target = rewards[g, n, a] + model.discount * jnp.max(ahead)
        return td_update(q, visits, (g, n, a), target, horizon)

    none = jnp.zeros(start.shape, jnp.int32)
    q, visits = _loops.fori_loop(0, num_updates, update, (start, none))
    scale = largest_value(model)
    error = scale + jnp.max(jnp.abs(q))
    return uncertified(trivial_table(model, k, q), error, scale, num_updates, q, visits=visits)


def td_update(q, visits, where, target, horizon):
    """One step of Q-learning at `where`, with the rescaled linear step size."""
    step = horizon / (horizon + visits[where].astype(q.dtype))
    return q.at[where].add(step * (target - q[where])), visits.at[where].add(1)


@arguments(
    key=key(),
    trajectory=record(Trajectory),
    k=size(1),
    num_global_states=size(1),
    num_local_states=size(1),
    num_actions=size(1),
    discount=real(low=0, below=1),
    num_passes=size(1),
)
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
    """Off-policy tabular Q-learning on k of the n recorded agents: ⌊n/k⌋ disjoint samples at each
    step, drawn afresh in every pass.

    A sample Δ is counted at t and again, the same agents, at t+1, with reward r_g + mean over Δ of
    r_l; the update is that of `q_learning`, from the worst that was recorded, lasting for ever, so
    that nothing is preferred because it was never tried. The behaviour policy must try every
    action.

    * `key`: consumed.
    * `k`, `num_global_states`, `num_local_states`, `num_actions`, `num_passes`: static.
    * `discount`: in [0, 1).

    Returns: a Solution of a `QTable` that ends MAX_STEPS, with infinite bounds (nothing is known of
    what was never recorded; stats["error"] is the largest number). Its q is −inf where nothing was
    recorded, and so is the value of a state without any record, whose policy, 0, is no advice:
    stats["visits"] int32 [G, N, A] counts the records. The state is q.

    Raises: ValueError for more than n agents, and for concrete states or actions out of range.

    Source: the off-policy extension of arXiv 2412.00661, appendix I.
    """
    sizes = (num_global_states, num_local_states, num_actions)
    check_size(k, sizes[1], 16 * sizes[0] * sizes[2])
    data = recorded(trajectory, sizes)
    n = data.local_states.shape[1]
    _checks.require(k <= n, f"k={k} exceeds the {n} recorded agents.")
    discount = jnp.asarray(discount, data.global_rewards.dtype)
    return _learn(key, data, discount, k=k, sizes=sizes, passes=num_passes)


@functools.partial(jax.jit, static_argnames=("k", "sizes", "passes"))
def _learn(key, data, discount, *, k, sizes, passes):
    G, L, A = sizes
    counts = jnp.asarray(enumerate_counts(k, L))
    T, n = data.local_rewards.shape
    groups, horizon = n // k, 1 / (1 - discount)

    def step(carried, index):
        time = index % T
        order = jax.random.permutation(jax.random.fold_in(key, index), n)
        order = order[: groups * k].reshape(groups, k)
        before = histogram_index(data.local_states[time][order], k, L)
        after = histogram_index(data.local_states[time + 1][order], k, L)
        rewards = data.global_rewards[time] + jnp.mean(data.local_rewards[time][order], axis=-1)

        def update(group, carried):
            q, visits = carried
            best = jnp.max(q[data.global_states[time + 1], after[group]])
            where = (data.global_states[time], before[group], data.actions[time])
            return td_update(q, visits, where, rewards[group] + discount * best, horizon)

        return _loops.fori_loop(0, groups, update, carried), None

    worst = jnp.min(data.global_rewards + jnp.min(data.local_rewards, axis=1)) * horizon
    start = jnp.broadcast_to(worst, (G, len(counts), A))
    start = (start, jnp.zeros(start.shape, jnp.int32))
    (q, visits), _ = _loops.scan(step, start, jnp.arange(passes * T, dtype=jnp.int32))
    unknown = jnp.where(jnp.all(jnp.isfinite(q)), jnp.finfo(q.dtype).max, jnp.nan)
    q = jnp.where(visits > 0, q, jnp.where(jnp.isnan(q), q, -jnp.inf))
    value = best_of(q)
    infinite, policy = jnp.full_like(value, jnp.inf), jnp.argmax(q, axis=-1).astype(jnp.int32)
    meaning = Meaning((k,), "nothing")
    table = QTable(q, value, policy, Bounds(-infinite, infinite), counts, meaning)
    local = jnp.mean(jnp.abs(data.local_rewards), axis=1)
    scale = jnp.max(jnp.abs(data.global_rewards) + local) * horizon
    steps = passes * T * groups
    return uncertified(table, unknown.astype(q.dtype), scale, steps, q, visits=visits)
