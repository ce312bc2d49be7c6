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

from jaxsac import _checks
from jaxsac._implicit import implicit
from jaxsac.solution import Solution
from jaxsac.subsample_q.exact.operator.forms.dense import dense_kernel
from jaxsac.subsample_q.data.histograms import (
    additions,
    check_size,
    enumerate_counts,
    graded_rank,
    num_histograms,
)
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.data.sampling import agents_of, draw_counts, hypergeometric_weights
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
    k = _checks.static_integer("k", k, 1)
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
    _checks.require(
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


