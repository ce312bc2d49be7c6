"""Learning on k agents from samples of the model: the paper's m-sample operator, and asynchronous
Q-learning from a generative model.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks
from jaxsac.solution import Solution, Status
from jaxsac.subsample_q.data.histograms import check_size, enumerate_counts, graded_rank
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.operators import BACKENDS
from jaxsac.subsample_q.solver import (
    Bounds,
    QTable,
    bellman_q,
    check_discount,
    fixed_point,
    greedy,
    local_rewards,
    solver_arguments,
)


def learn(
    key: jax.Array,
    model: Model,
    k: int,
    num_samples: int,
    *,
    resample: str = "once",
    share_local: bool = False,
    tol: Any = None,
    max_steps: Any = None,
) -> Solution:
    """Learn on k agents with the paper's operator, whose expectation is a mean of m = num_samples
    draws for each state and action.

        (T_{k,m} Q)(s_g, h, a) = r(s_g, h, a) + (discount / m) sum_{l ≤ m} max_a' Q(s_g^l, h^l, a')

    resample="once": the draws are made once and used in every sweep, so that T_{k,m} is a
    contraction and its fixed point is returned (CONVERGED as in `solve`, for that fixed point).
    "per_sweep": fresh draws for each of `max_steps` sweeps (200 by default), averaged with step 1 /
    (1 + (1-discount) t); that has no fixed point and ends as MAX_STEPS. share_local=True uses the
    same local draws for every action (unbiased). The distance from the exact table falls as
    m^(-1/2); `value.bounds` are the trivial ±max|r|/(1-discount). int32 draws take 4 G N A m bytes.
    Not differentiable: the draws jump with the transitions; use `solve`. The key is consumed.
    Source: arXiv 2403.00222, algorithm 1.
    """
    k = _checks.static_integer("k", k, 1)
    m = _checks.static_integer("num_samples", num_samples, 1)
    _checks.choice("resample", resample, ("once", "per_sweep"))
    check_discount(model, "discounted")
    G, A = model.num_global_states, model.num_actions
    check_size(k, model.num_local_states, 4 * G * A * m)
    max_steps = (100_000 if resample == "once" else 200) if max_steps is None else max_steps
    arguments = solver_arguments(model, k, tol, max_steps, 0, None)
    return _learn(key, model, *arguments, k=k, m=m, resample=resample, share_local=share_local)


@functools.partial(jax.jit, static_argnames=("k", "m", "resample", "share_local"))
def _learn(key, model, tol, max_steps, evaluation_sweeps, initial, *, k, m, resample, share_local):
    model = jax.tree.map(lax.stop_gradient, model)

    def expect(values, draws):
        return jnp.mean(values.reshape(-1)[draws], axis=-1)

    if resample == "once":
        draws = draw_successors(key, model, k, m, share_local)
        solution = fixed_point(
            model,
            k,
            lambda values: expect(values, draws),
            None,
            (tol, max_steps, evaluation_sweeps, initial),
            criterion="discounted",
            method="anderson",
            stopping="span",
        )
    else:
        solution = _per_sweep(
            key,
            model,
            k,
            initial,
            max_steps,
            lambda key, values: expect(values, draw_successors(key, model, k, m, share_local)),
        )
    solution.stats["backend"] = jnp.int32(BACKENDS.index("sampled"))
    return solution._replace(
        value=solution.value._replace(bounds=trivial_bounds(model, solution.value.value))
    )


def _per_sweep(key, model, k, initial, max_steps, expect):
    def sweep(t, q):
        step = 1 / (1 + (1 - model.discount) * t.astype(model.dtype))
        fresh = bellman_q(
            model, k, expect(jax.random.fold_in(key, t), jnp.max(q, axis=-1)), model.discount
        )
        return q + step * (fresh - q)

    start = jnp.broadcast_to(initial[..., None], (*initial.shape, model.num_actions))
    q = lax.fori_loop(0, max_steps, sweep, start)
    status = jnp.where(
        jnp.all(jnp.isfinite(q)), jnp.int32(Status.MAX_STEPS), jnp.int32(Status.NONFINITE)
    )
    table = make_table(model, k, q)
    return Solution(
        table,
        status,
        {"num_steps": max_steps, "scale": model.max_reward() / (1 - model.discount)},
        table.value,
    )


def trivial_bounds(model: Model, value: jax.Array) -> Bounds:
    """±max|r| / (1 - discount): all that is known of V* without an exact operator."""
    most = jnp.broadcast_to(model.max_reward() / (1 - model.discount), value.shape)
    return Bounds(-most, most)


def make_table(model: Model, k: int, q: jax.Array) -> QTable:
    tie = 16 * jnp.finfo(q.dtype).eps * model.max_reward() / (1 - model.discount)
    value = jnp.max(q, axis=-1)
    return QTable(
        q,
        value,
        greedy(q, tie),
        trivial_bounds(model, value),
        jnp.asarray(enumerate_counts(k, model.num_local_states)),
    )


def draw_successors(key: jax.Array, model: Model, k: int, m: int, share_local: bool) -> jax.Array:
    """Positions s_g' · N + h' of m successors of every (s_g, h, a): int32 [G, N, A, m]."""
    G, A, L = model.num_global_states, model.num_actions, model.num_local_states
    N = len(enumerate_counts(k, L))
    kernels = (
        model.local_transition
        if model.action_drives_agents
        else jnp.repeat(model.local_transition[:, None], A, axis=1)
    )
    agents = agent_states(k, L)
    pairs = jnp.arange(G * A, dtype=jnp.int32)

    def one(pair):
        g, a = pair // A, pair % A
        global_key = jax.random.fold_in(jax.random.fold_in(key, pair), 0)
        shared = jnp.where(jnp.bool_(share_local), g * A, pair)
        local_key = jax.random.fold_in(jax.random.fold_in(key, shared), 1)
        tickets = jax.random.uniform(local_key, (N, m, k), model.dtype)
        states = _invert(jnp.cumsum(kernels[g, a], axis=-1)[agents][:, None], tickets)
        after = _invert(
            jnp.broadcast_to(jnp.cumsum(model.global_transition[g, a]), (N, m, G)),
            jax.random.uniform(global_key, (N, m), model.dtype),
        )
        return after * N + histogram_index(states, k, L)

    return lax.map(one, pairs).reshape(G, A, N, m).transpose(0, 2, 1, 3)


def _invert(cumulative: jax.Array, tickets: jax.Array) -> jax.Array:
    """States drawn by inversion: cumulative [..., S] (broadcast) and uniforms [...], int32
    [...].
    """
    scaled = tickets * cumulative[..., -1]
    count = cumulative.shape[-1]
    passed = [(scaled >= cumulative[..., s]).astype(jnp.int32) for s in range(count)]
    return jnp.minimum(sum(passed[1:], passed[0]), count - 1)


def agent_states(k: int, L: int) -> np.ndarray:
    """The k local states of each histogram, int32 [N, k]."""
    table = enumerate_counts(k, L)
    return np.repeat(np.tile(np.arange(L, dtype=np.int32), len(table)), table.reshape(-1)).reshape(
        len(table), k
    )


def histogram_index(states: jax.Array, k: int, L: int) -> jax.Array:
    """Index of the histogram of `states` int32 [..., k]: int32 [...]."""
    counts = [jnp.sum(states == j, axis=-1, dtype=jnp.int32) for j in range(L - 1)]
    return graded_rank(
        jnp.stack(counts, axis=-1) if counts else jnp.zeros((*states.shape[:-1], 0), jnp.int32), k
    )


def q_learning(
    key: jax.Array, model: Model, k: int, num_updates: int, *, initial: Any = None
) -> Solution:
    """Asynchronous Q-learning on k agents from a generative model: one uniformly drawn (s_g, h, a)
    at a time.

        Q(s, a) += step · (r + discount max_a' Q(s', a') - Q(s, a)),   step = H / (H + visits(s,
        a)),   H = 1 / (1 - discount)

    Returns Solution(QTable, MAX_STEPS, stats, state): it never certifies itself; stats["visits"]
    int32 [G, N, A]; `initial` is a q. The key is consumed. Source: the surrogate of arXiv
    2403.00222, and the rescaled linear step of Qu and Wierman 2020.
    """
    k = _checks.static_integer("k", k, 1)
    check_discount(model, "discounted")
    size = check_size(k, model.num_local_states, 16 * model.num_global_states * model.num_actions)
    shape = (model.num_global_states, size, model.num_actions)
    start = jnp.zeros(shape, model.dtype) if initial is None else jnp.asarray(initial, model.dtype)
    _checks.require(
        start.shape == shape, f"initial must have shape {list(shape)}, got {list(start.shape)}."
    )
    return _q_learning(key, model, start, jnp.asarray(num_updates, jnp.int32), k=k)


@functools.partial(jax.jit, static_argnames="k")
def _q_learning(key, model, start, num_updates, *, k):
    G, N, A = start.shape
    L, dtype = model.num_local_states, model.dtype
    agents = jnp.asarray(agent_states(k, L))
    rewards = model.global_reward[:, None, :] + jnp.broadcast_to(local_rewards(model, k), (G, N, A))
    horizon = 1 / (1 - model.discount)
    global_cumulative = jnp.cumsum(model.global_transition, axis=-1)
    local_cumulative = jnp.cumsum(model.local_transition, axis=-1)

    def update(t, carried):
        q, visits = carried
        where_key, ticket_key = jax.random.split(jax.random.fold_in(key, t))
        position = jax.random.randint(where_key, (), 0, G * N * A, jnp.int32)
        g, n, a = position // (N * A), position // A % N, position % A
        tickets = jax.random.uniform(ticket_key, (k + 1,), dtype)
        rows = local_cumulative[g, a] if model.action_drives_agents else local_cumulative[g]
        after = _invert(global_cumulative[g, a], tickets[k])
        moved = histogram_index(_invert(rows[agents[n]], tickets[:k]), k, L)
        target = rewards[g, n, a] + model.discount * jnp.max(q[after, moved])
        return td_update(q, visits, (g, n, a), target, horizon)

    q, visits = lax.fori_loop(0, num_updates, update, (start, jnp.zeros(start.shape, jnp.int32)))
    status = jnp.where(
        jnp.all(jnp.isfinite(q)), jnp.int32(Status.MAX_STEPS), jnp.int32(Status.NONFINITE)
    )
    return Solution(
        make_table(model, k, q), status, {"num_steps": num_updates, "visits": visits}, q
    )


def td_update(q, visits, where, target, horizon):
    """One step of Q-learning at `where`, with the rescaled linear step size."""
    step = horizon / (horizon + visits[where].astype(q.dtype))
    return q.at[where].add(step * (target - q[where])), visits.at[where].add(1)
