"""Local agents who act too: the controller chooses a global action and, for every state, how many
of its agents take each local action.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks
from jaxsac.solution import Solution, register
from jaxsac.subsample_q.data.histograms import (
    check_size,
    enumerate_counts,
    graded_rank,
    num_histograms,
)
from jaxsac.subsample_q.data.model import LocalActionModel, check_discount
from jaxsac.subsample_q.exact.iteration.fixed_point import (
    Settings,
    Surrogate,
    differentiable,
    fixed_point,
)
from jaxsac.subsample_q.exact.operator.forms.dense import dense_kernel
from jaxsac.subsample_q.exact.table import Bounds, greedy, tie_of

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


def solve_local_actions(
    model: LocalActionModel, k: int, *, tol=None, max_steps=100_000, initial=None
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
    k = _checks.static_integer("k", k, 1)
    base, B, L = model.base, model.num_local_actions, model.num_local_states
    G, itemsize = base.num_global_states, base.dtype.itemsize
    check_discount(base)
    M = check_size(k, L * B, itemsize * G * 4 * base.num_actions)

    def size(k):
        return G * num_histograms(k, L * B) * num_histograms(k, L) * itemsize

    fits = k
    while fits > 1 and size(fits) > _TABLE_LIMIT:
        fits -= 1
    _checks.require(
        size(k) <= _TABLE_LIMIT,
        f"k={k} agents with {L} states and {B} actions each have {M:,} assignments:"
        f" {size(k) / 2**30:,.1f} GiB of kernels. k={fits} fits; so do fewer states or actions.",
    )
    settings = Settings.of((G, num_histograms(k, L)), base.dtype, tol, max_steps, initial)
    return _solve(model, settings, k=k)


@functools.partial(jax.jit, static_argnames="k")
def _solve(model, settings, *, k):
    frozen = jax.tree.map(lax.stop_gradient, model)
    settings = settings._replace(initial=lax.stop_gradient(settings.initial))
    found = fixed_point(_surrogate(frozen, k), None, settings)
    found = differentiable(found, lambda model: _surrogate(model, k), model)
    q, value, scale = found.q, found.value, found.stats["scale"]

    assignments, belongs = _assignments(k, model.num_local_states, model.num_local_actions)
    order = jnp.arange(len(assignments), dtype=jnp.int32)
    good = _possible(model, assignments) & (
        jnp.max(q, axis=-1) >= value[:, belongs] - tie_of(q.dtype, scale)
    )  # [G, M]
    ranked = jnp.where(good, order, order.size - 1)
    first = jax.vmap(lambda row: jax.ops.segment_min(row, belongs, num_segments=value.shape[1]))(
        ranked
    )
    policy = greedy(jnp.take_along_axis(q, first[..., None], axis=1), scale)
    listed = jnp.asarray(assignments)
    histograms = jnp.asarray(enumerate_counts(k, model.num_local_states))
    table = AssignmentTable(q, value, policy, listed[first], found.bounds, histograms, listed)
    return Solution(table, found.status, found.stats, value)


def _assignments(k: int, L: int, B: int) -> tuple[np.ndarray, np.ndarray]:
    """Assignments int32 [M, L, B] and the index of the histogram of each."""
    assignments = enumerate_counts(k, L * B).reshape(-1, L, B)
    return assignments, graded_rank(assignments.sum(axis=2)[:, :-1].astype(np.int32), k)


def _surrogate(model: LocalActionModel, k: int) -> Surrogate:
    base, L = model.base, model.num_local_states
    assignments, belongs = _assignments(k, L, model.num_local_actions)
    possible = _possible(model, assignments)
    kernels = jax.vmap(lambda kernel: dense_kernel(kernel, k))(model.pair_kernels())  # [G, M, N]
    rewards = _rewards(model, k, assignments)

    def expect(values):
        mixed = jnp.einsum("gac,cn->gan", base.global_transition, values, precision="highest")
        return jnp.einsum("gmn,gan->gma", kernels, mixed, precision="highest")

    def value_of(q):
        best = jnp.where(possible, jnp.max(q, axis=-1), -jnp.inf)
        number = num_histograms(k, L)
        return jax.vmap(lambda row: jax.ops.segment_max(row, belongs, num_segments=number))(best)

    largest = jnp.max(jnp.abs(jnp.where(possible[..., None], rewards, 0)))
    return Surrogate(rewards, expect, value_of, base.discount, largest)


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
