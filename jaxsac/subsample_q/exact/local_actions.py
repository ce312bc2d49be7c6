"""Local agents who act too: the controller chooses a global action and, for every state, how many
of its agents take each local action.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks
from jaxsac._arguments import arguments, integer, real, record, size
from jaxsac.solution import Solution, register
from jaxsac.subsample_q.data.histograms import (
    check_size,
    enumerate_counts,
    graded_rank,
    largest_k,
    num_histograms,
)
from jaxsac.subsample_q.data.model import LOCAL_ACTION_MODEL, LocalActionModel, check_discount
from jaxsac.subsample_q.exact.iteration.fixed_point import (
    INITIAL,
    Settings,
    Surrogate,
    differentiable,
    fixed_point,
)
from jaxsac.subsample_q.exact.operator.forms.dense import dense_kernel
from jaxsac.subsample_q.exact.table import Bounds, Meaning, best_of, greedy, table_sizes, tie_of

_TABLE_LIMIT = 2**31  # bytes of kernels from assignments to histograms


@register
class AssignmentTable(NamedTuple):
    """Over N histograms and the M assignments z of k agents to (local state, local action). Ties:
    the lowest z, then the lowest a.
    """

    q: jax.Array  # [G, M, A]
    value: jax.Array  # [G, N], the maximum over a and over the z of each histogram
    policy: jax.Array  # int32 [G, N], global action of that maximum
    assignment: jax.Array  # int32 [G, N, L, B], how many of each state take each action there
    bounds: Bounds  # on the value, [G, N]
    histograms: jax.Array  # int32 [N, L]
    assignments: jax.Array  # int32 [M, L, B]
    meaning: Meaning  # how many agents were sampled, and what the bounds are on; no array


ASSIGNMENT_TABLE = record(AssignmentTable, sizes=table_sizes)


@arguments(
    model=LOCAL_ACTION_MODEL, k=size(1), tol=real(low=0), max_steps=integer(low=0), initial=INITIAL
)
def solve_local_actions(
    model: LocalActionModel,
    k: int,
    *,
    tol: Any = None,
    max_steps: Any = 100_000,
    initial: Any = None,
) -> Solution:
    """Solve the k-agent problem with local actions exactly.

        Q(s_g, z, a) = r(s_g, z, a)
            + discount E[ max over a' and the z' of h' of Q(s_g', z', a') | s_g, z, a ]

    for all M = C(k+LB−1, LB−1) assignments z, with one dense kernel [M, N] for each s_g. k = n is
    the full problem.

    * `tol`, `max_steps`, `initial` [G, N]: as in `solve`.

    Returns: a Solution of an `AssignmentTable`, status and stats as in `solve`; a state without an
    allowed assignment ends NONFINITE. `upper_bound` and `lift` apply to the bounds, unless the
    model has share_reward or allowed. Differentiable in the arrays of the model (implicitly, the
    policy kept fixed), batched by `jax.vmap`.

    Raises: ValueError for k < 1 and for kernels beyond 2 GiB, with the k that fits.

    Source: arXiv 2412.00661, algorithm 1 (m → ∞).
    """
    base, B, L = model.base, model.num_local_actions, model.num_local_states
    G, itemsize = base.num_global_states, base.dtype.itemsize
    check_discount(base)
    M = check_size(k, L * B, itemsize * G * 4 * base.num_actions)

    def bytes_of(k):
        return G * num_histograms(k, L * B) * num_histograms(k, L) * itemsize

    fits = largest_k(k, lambda k: bytes_of(k) <= _TABLE_LIMIT)
    _checks.require(
        bytes_of(k) <= _TABLE_LIMIT,
        f"k={k} agents with {L} states and {B} actions each have {M:,} assignments:"
        f" {bytes_of(k) / 2**30:,.1f} GiB of kernels. k={fits} fits; so do fewer states or"
        " actions.",
    )
    settings = Settings.of((G, num_histograms(k, L)), base.dtype, tol, max_steps, initial)
    return _solve(model, settings, k=k)


@functools.partial(jax.jit, static_argnames="k")
def _solve(model, settings, *, k):
    frozen = jax.tree.map(lax.stop_gradient, model)
    settings = settings._replace(initial=lax.stop_gradient(settings.initial))
    found = fixed_point(_surrogate(frozen, k), None, settings)
    found = differentiable(found, lambda model: _surrogate(model, k), model)
    q, value = found.q, found.value
    assignments, belongs = _assignments(k, model.num_local_states, model.num_local_actions)
    first = _first(jnp.max(q, axis=-1), value, _possible(model, assignments), belongs)
    policy = greedy(jnp.take_along_axis(q, first[..., None], axis=1), found.stats["scale"])
    listed = jnp.asarray(assignments)
    histograms = jnp.asarray(enumerate_counts(k, model.num_local_states))
    alone = model.share_reward is None and model.allowed is None
    meaning = Meaning((k,), "optimum" if alone else "coupled")
    table = AssignmentTable(
        q, value, policy, listed[first], found.bounds, histograms, listed, meaning
    )
    return Solution(table, found.status, found.stats, value)


def _first(best: jax.Array, value: jax.Array, possible: jax.Array, belongs: np.ndarray):
    """The lowest possible assignment of each histogram whose `best` [G, M] is, within rounding, the
    value [G, N]: int32 [G, N].
    """
    good = possible & (best >= value[:, belongs] - tie_of(value))
    order = jnp.arange(belongs.size, dtype=jnp.int32)
    ranked = jnp.where(good, order, order.size - 1)
    return jax.vmap(lambda row: jax.ops.segment_min(row, belongs, num_segments=value.shape[1]))(
        ranked
    )


def _assignments(k: int, L: int, B: int) -> tuple[np.ndarray, np.ndarray]:
    """Assignments int32 [M, L, B] and the index of the histogram of each."""
    assignments = enumerate_counts(k, L * B).reshape(-1, L, B)
    return assignments, graded_rank(assignments.sum(axis=2)[:, :-1].astype(np.int32), k)


def _surrogate(model: LocalActionModel, k: int) -> Surrogate:
    base, L = model.base, model.num_local_states
    assignments, _ = _assignments(k, L, model.num_local_actions)
    possible = _possible(model, assignments)
    kernels = jax.vmap(lambda kernel: dense_kernel(kernel, k))(model.pair_kernels())  # [G, M, N]
    rewards = _rewards(model, k, assignments)

    def expect(values):
        mixed = jnp.einsum("gac,cn->gan", base.global_transition, values, precision="highest")
        return jnp.einsum("gmn,gan->gma", kernels, mixed, precision="highest")

    def value_of(q):
        return _best_assignment(best_of(q), possible, k, L, model.num_local_actions)

    return Surrogate(rewards, expect, value_of, base.discount)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _best_assignment(best: jax.Array, possible: jax.Array, k: int, L: int, B: int) -> jax.Array:
    """The maximum of `best` [G, M] over the possible assignments of each histogram, [G, N]; its
    derivative is that of one of them, as in `best_of`.
    """
    best, number = jnp.where(possible, best, -jnp.inf), num_histograms(k, L)
    belongs = _assignments(k, L, B)[1]
    return jax.vmap(lambda row: jax.ops.segment_max(row, belongs, num_segments=number))(best)


@_best_assignment.defjvp
def _best_assignment_jvp(k, L, B, primals, tangents):
    best, possible = primals
    value = _best_assignment(best, possible, k, L, B)
    first = _first(best, value, possible, _assignments(k, L, B)[1])
    return value, jnp.take_along_axis(tangents[0], first, axis=1)


def _possible(model: LocalActionModel, assignments: np.ndarray) -> jax.Array:
    """Which assignments are allowed, [G, M]."""
    allowed = model.allowed
    if allowed is None:
        return jnp.ones((model.base.num_global_states, len(assignments)), bool)
    return _each(model, lambda g, z: jnp.asarray(allowed(g, z), bool), jnp.asarray(assignments))


def _rewards(model: LocalActionModel, k: int, assignments: np.ndarray) -> jax.Array:
    """Stage rewards [G, M, A]."""
    shares = jnp.asarray(assignments, model.base.dtype) / k
    own = jnp.einsum("gbl,mlb->gm", model.base.local_reward, shares, precision="highest")
    if model.share_reward is not None:
        own = own + _each(model, model.share_reward, shares)
    return model.base.global_reward[:, None, :] + own[..., None]


def _each(model: LocalActionModel, function, listed: jax.Array) -> jax.Array:
    """function(s_g, z) for every global state and every z that is listed, [G, M]."""
    states = jnp.arange(model.base.num_global_states, dtype=jnp.int32)
    return jax.vmap(lambda g: jax.vmap(lambda z: function(g, z))(listed))(states)
