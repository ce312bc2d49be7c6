"""Local agents who act too: the controller chooses a global action and, for every state, how many
of its agents take each local action.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac._checks import require, static_integer
from jaxsac._implicit import implicit
from jaxsac.solution import Solution
from jaxsac.subsample_q.dense import dense_kernel
from jaxsac.subsample_q.histograms import (
    additions,
    check_size,
    enumerate_counts,
    graded_rank,
    num_histograms,
)
from jaxsac.subsample_q.model import Model
from jaxsac.subsample_q.sampling import agents_of, draw_counts, hypergeometric_weights
from jaxsac.subsample_q.simulate import Run, checked_start, move_global, split
from jaxsac.subsample_q.solver import (
    Bounds,
    Objective,
    check_discount,
    fixed_point,
    krylov,
    solver_arguments,
)

_TABLE_LIMIT = 2**31  # bytes of kernels from assignments to histograms


class LocalActionModel(eqx.Module):
    """A `Model` whose n exchangeable local agents each take an action b of their own, as in
    SUBSAMPLE-MFQ (arXiv 2412.00661).

        s_g' ~ global_transition[s_g, a, .]       s_i' ~ local_transition[s_g, b_i, s_i, .]
        independently, given the current s_g reward = global_reward[s_g, a] + (1/n) sum_i
        local_reward[s_g, b_i, s_i] + share_reward(s_g, z/n)

    Shapes (G, A, L as in `Model`, B local actions): local_transition [G, B, L, L], local_reward [G,
    B, L]; z int32 [L, B] counts the agents of each state that take each action. Two optional
    functions, pure and made once (each is a part of the trace): share_reward(s_g, shares [L, B]) ->
    [], a reward of the shares that need not be linear in them (U_k is then no upper bound), and
    allowed(s_g, z) -> bool, which assignments there are (at least one for every state and
    histogram). Bad input as for `Model`.
    """

    base: Model
    share_reward: Callable[..., Any] | None = eqx.field(static=True)
    allowed: Callable[..., Any] | None = eqx.field(static=True)

    def __init__(
        self,
        global_transition: Any,
        local_transition: Any,
        global_reward: Any,
        local_reward: Any,
        discount: Any,
        share_reward: Callable[..., Any] | None = None,
        allowed: Callable[..., Any] | None = None,
    ):
        require(
            np.ndim(local_transition) == 4,
            f"local_transition must have shape [G, B, L, L], got {list(np.shape(local_transition))}.",
        )
        G, B, L, _ = np.shape(local_transition)
        require(
            np.shape(local_reward) == (G, B, L),
            f"local_reward must have shape [G, B, L] = {[G, B, L]}, got {list(np.shape(local_reward))}.",
        )
        # The checks and the normalisation of a plain model whose action drives the agents, for the
        # agents' part ...
        stay = jnp.broadcast_to(
            jnp.eye(G, dtype=jnp.asarray(global_transition).dtype)[:, None], (G, B, G)
        )
        local = Model(stay, local_transition, jnp.zeros((G, B), stay.dtype), local_reward, discount)
        # ... and of a plain one for the global part.
        plain = Model(
            global_transition,
            local.local_transition[:, 0],
            global_reward,
            local.local_reward[:, 0],
            discount,
        )
        self.base = eqx.tree_at(
            lambda m: (m.local_transition, m.local_reward),
            plain,
            (local.local_transition, local.local_reward),
        )
        self.share_reward, self.allowed = share_reward, allowed

    @property
    def num_local_actions(self) -> int:
        return self.base.local_transition.shape[-3]

    @property
    def num_local_states(self) -> int:
        return self.base.local_transition.shape[-1]

    def pair_kernels(self) -> jax.Array:
        """P(s' | s_g, (s, b)): [G, L B, L], pairs numbered s B + b."""
        G, B, L, _ = self.base.local_transition.shape
        return self.base.local_transition.transpose(0, 2, 1, 3).reshape(G, L * B, L)


class AssignmentTable(NamedTuple):
    """q [G, M, A] over the M assignments z of k agents to (state, local action), value [G, N] its
    maximum over a and over the z of each histogram, the maximiser as policy int32 [G, N] (global
    action) and assignment int32 [G, N, L, B] (how many of each state take each action), bounds,
    histograms int32 [N, L] and assignments int32 [M, L, B]. Ties: the lowest z, then the lowest a.
    """

    q: jax.Array
    value: jax.Array
    policy: jax.Array
    assignment: jax.Array
    bounds: Bounds
    histograms: jax.Array
    assignments: jax.Array


def solve_local_actions(
    model: LocalActionModel,
    k: int,
    *,
    tol: Any = None,
    max_steps: Any = 100_000,
    initial: Any = None,
) -> Solution:
    """Solve the k-agent problem with local actions exactly.

        Q(s_g, z, a) = r(s_g, z, a) + discount E[ max over a' and the z' of h' of Q(s_g', z', a') |
        s_g, z, a ]

    for all M = C(k+LB-1, LB-1) assignments z, with one dense kernel [M, N] for each s_g. k = n is
    the full problem. Returns Solution(AssignmentTable, status, stats, state) with tol, status and
    stats as in `solve`; a state without an allowed assignment ends NONFINITE. `upper_bound` and
    `lift` apply to the bounds, unless the model has share_reward or allowed. Differentiable in the
    arrays of the model (implicitly, the policy kept fixed), batched by jax.vmap. ValueError for k <
    1 and for kernels beyond 2 GiB, with the k that fits. Source: arXiv 2412.00661, algorithm 1 (m →
    ∞).
    """
    k = static_integer("k", k, 1)
    base, B, L = model.base, model.num_local_actions, model.num_local_states
    check_discount(base, "discounted")
    M = check_size(k, L * B, base.dtype.itemsize * base.num_global_states * 4 * base.num_actions)

    def size(k):
        return (
            base.num_global_states
            * num_histograms(k, L * B)
            * num_histograms(k, L)
            * base.dtype.itemsize
        )

    fits = k
    while fits > 1 and size(fits) > _TABLE_LIMIT:
        fits -= 1
    require(
        size(k) <= _TABLE_LIMIT,
        f"k={k} agents with {L} states and {B} actions each have {M:,} assignments: {size(k) / 2**30:,.1f} GiB of kernels. "
        f"k={fits} fits; so do fewer states or actions.",
    )
    return _solve(model, k, *solver_arguments(base, k, tol, max_steps, 0, initial))


def _pairs(k: int, L: int, B: int) -> tuple[np.ndarray, np.ndarray]:
    """Assignments int32 [M, L, B] and the index of the histogram of each."""
    assignments = enumerate_counts(k, L * B).reshape(-1, L, B)
    return assignments, graded_rank(assignments.sum(axis=2)[:, :-1].astype(np.int32), k)


@functools.partial(jax.jit, static_argnames="k")
def _solve(model, k, tol, max_steps, evaluation_sweeps, initial):
    frozen = jax.tree.map(lax.stop_gradient, model)
    N = initial.shape[1]
    assignments, belongs = _pairs(k, model.num_local_states, model.num_local_actions)
    order = jnp.arange(assignments.shape[0], dtype=jnp.int32)

    def value_of(q):
        best = jnp.where(_possible(model, assignments), jnp.max(q, axis=-1), -jnp.inf)
        return jax.vmap(lambda row: jax.ops.segment_max(row, belongs, num_segments=N))(best)

    possible, kernels = _possible(model, assignments), _kernels(frozen, k)
    rewards = _rewards(frozen, k, assignments)
    solution = fixed_point(
        frozen.base,
        k,
        lambda values: _expect(frozen, kernels, values),
        None,
        (tol, max_steps, evaluation_sweeps, lax.stop_gradient(initial)),
        criterion="discounted",
        method="anderson",
        stopping="span",
        objective=Objective(
            rewards, value_of, jnp.max(jnp.abs(jnp.where(possible[..., None], rewards, 0)))
        ),
    )

    def residual(q, model):
        return (
            _rewards(model, k, assignments)
            + model.base.discount * _expect(model, _kernels(model, k), value_of(q))
            - q
        )

    table = solution.value
    q = implicit(residual, krylov, table.q, model, symmetric=False)
    value = value_of(q)
    tie = 16 * jnp.finfo(q.dtype).eps * solution.stats["scale"]
    good = possible & (jnp.max(q, axis=-1) >= value[:, belongs] - tie)  # [G, M]
    first = jax.vmap(
        lambda row: jax.ops.segment_min(
            jnp.where(row, order, order.size - 1), belongs, num_segments=N
        )
    )(good)
    best = jnp.take_along_axis(q, first[..., None], axis=1)
    policy = jnp.argmax(best >= jnp.max(best, axis=-1, keepdims=True) - tie, axis=-1).astype(
        jnp.int32
    )
    moved = value - lax.stop_gradient(value)  # zero, with the derivative of the value
    bounds = Bounds(table.bounds.lower + moved, table.bounds.upper + moved)
    listed = jnp.asarray(assignments)
    result = AssignmentTable(q, value, policy, listed[first], bounds, table.histograms, listed)
    return solution._replace(value=result, state=value)


def _kernels(model: LocalActionModel, k: int) -> jax.Array:
    return jax.vmap(lambda kernel: dense_kernel(kernel, k))(model.pair_kernels())  # [G, M, N]


def _expect(model: LocalActionModel, kernels: jax.Array, values: jax.Array) -> jax.Array:
    mixed = jnp.einsum("gac,cn->gan", model.base.global_transition, values, precision="highest")
    return jnp.einsum("gmn,gan->gma", kernels, mixed, precision="highest")


def _global_states(model: LocalActionModel) -> jax.Array:
    return jnp.arange(model.base.num_global_states, dtype=jnp.int32)


def _possible(model: LocalActionModel, assignments: np.ndarray) -> jax.Array:
    """Which assignments are allowed, [G, M]."""
    allowed = model.allowed
    if allowed is None:
        return jnp.ones((model.base.num_global_states, len(assignments)), bool)
    listed = jnp.asarray(assignments)
    return jax.vmap(lambda g: jax.vmap(lambda z: jnp.asarray(allowed(g, z), bool))(listed))(
        _global_states(model)
    )


def _rewards(model: LocalActionModel, k: int, assignments: np.ndarray) -> jax.Array:
    """Stage rewards [G, M, A]."""
    shares, share_reward = jnp.asarray(assignments, model.base.dtype) / k, model.share_reward
    own = jnp.einsum("gbl,mlb->gm", model.base.local_reward, shares, precision="highest")
    if share_reward is not None:
        own = own + jax.vmap(lambda g: jax.vmap(lambda z: share_reward(g, z))(shares))(
            _global_states(model)
        )
    return model.base.global_reward[:, None, :] + own[..., None]


def simulate_local_actions(
    key: jax.Array,
    model: LocalActionModel,
    table: AssignmentTable,
    num_agents: Any,
    horizon: int,
    initial: tuple[Any, Any],
) -> Run:
    """Execute the policy of k agents on num_agents, in counts; every agent samples for itself, and
    the cost does not grow with num_agents.

    The global action is the policy's for one fresh sample of k agents. An agent in state s samples
    k - 1 of the others, and takes action b with the chance assignment[s, b] / h_s of the histogram
    h of the sample and itself: given the counts, agents choose independently, and the chances are
    summed exactly over all samples. Returns a `Run` whose actions are the global ones. The key is
    consumed. Bad input: as in `simulate`, and a ValueError for a model with `allowed` (agents who
    choose alone cannot keep to it). Source: arXiv 2412.00661, algorithm 2.
    """
    require(
        model.allowed is None,
        "allowed restricts joint assignments, which agents who choose independently do not keep.",
    )
    start, counts = checked_start(model.base, table, num_agents, initial)
    k = agents_of(table.value.shape[1], model.num_local_states)
    return _simulate(
        key,
        model,
        table.policy,
        table.assignment,
        start,
        counts,
        static_integer("horizon", horizon, 1),
        k,
    )


@functools.partial(jax.jit, static_argnames=("horizon", "k"))
def _simulate(key, model, policy, assignment, global_state, counts, horizon, k):
    base, L, B = model.base, model.num_local_states, model.num_local_actions
    kernels = model.pair_kernels()
    others = jnp.asarray(enumerate_counts(k - 1, L))
    with_me = np.stack([additions(k, L, s) for s in range(L)])

    def chances(global_state, counts, state):
        """P(action | an agent in `state`), [B]; any where nobody is."""
        without = jnp.maximum(
            counts - (jnp.arange(L, dtype=jnp.int32) == state).astype(jnp.int32), 0
        )
        weights = hypergeometric_weights(without, k - 1, base.dtype)
        share = (
            assignment[global_state, with_me[state], state].astype(base.dtype)
            / (others[:, state] + 1).astype(base.dtype)[:, None]
        )
        return jnp.matmul(weights, share, precision="highest")

    def step(carried, key):
        global_state, counts, factor, total = carried
        sample_key, choice_key, global_key, local_key = jax.random.split(key, 4)
        action = policy[global_state, graded_rank(draw_counts(sample_key, counts, k)[: L - 1], k)]
        taken = split(
            choice_key, counts, jnp.stack([chances(global_state, counts, s) for s in range(L)])
        )  # [L, B]
        shares = taken.astype(base.dtype) / jnp.sum(counts, dtype=jnp.int32).astype(base.dtype)
        reward = base.global_reward[global_state, action] + jnp.vdot(
            shares, base.local_reward[global_state].T, precision="highest"
        )
        if model.share_reward is not None:
            reward = reward + model.share_reward(global_state, shares)
        after = move_global(global_key, base.global_transition[global_state, action])
        moved = jnp.sum(
            split(local_key, taken.reshape(L * B), kernels[global_state]), axis=0, dtype=jnp.int32
        )
        return (after, moved, factor * base.discount, total + factor * reward), (
            reward,
            global_state,
            counts,
            action,
        )

    zero = jnp.zeros((), base.dtype)
    carried, record = lax.scan(
        step, (global_state, counts, zero + 1, zero), jax.random.split(key, horizon)
    )
    return Run(*record, carried[-1])
