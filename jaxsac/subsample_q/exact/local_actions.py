"""Local agents who act too: the controller chooses a global action and, for every state, how many
of its agents take each local action.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, integer, key, record
from jaxsac.solution import register
from jaxsac.subsample_q.data.histograms import (
    additions,
    check_size,
    enumerate_counts,
    graded_rank,
    largest_k,
    num_histograms,
)
from jaxsac.subsample_q.data.kinds import LocalActionModel
from jaxsac.subsample_q.data.sampling import by_inversion, draw_parts, hypergeometric_weights
from jaxsac.subsample_q.exact.iteration.fixed_point import FixedPoint, Surrogate
from jaxsac.subsample_q.exact.operator.forms.dense import dense_kernel
from jaxsac.subsample_q.exact.table import (
    Bounds,
    Meaning,
    QTable,
    best_of,
    draw_action,
    ended,
    greedy,
    observed,
    of_each_state,
    table_sizes,
    tie_of,
)

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

    @arguments(
        key=key(),
        global_state=integer(low=0),
        local_states=integer("n", low=0),
        counts=integer("L", low=0),
    )
    def act(
        self, key: jax.Array, global_state: Any, local_states: Any = None, *, counts: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """The global action, int32 [], for one fresh sample of the agents, and the actions of the
        agents, each for a sample of its own.

        * `key`: consumed.
        * `local_states`: int32 [n], the states of all agents: then their actions are int32 [n]; or
        * `counts`: int32 [L], the agents in each state: then int32 [L, B], how many of each state
          take each action.

        Returns: −1 for traced states that do not exist.

        Raises: as `QTable.act`.
        """
        state, held, valid = observed(self, global_state, local_states, counts)
        key, own_key = jax.random.split(key)
        action = draw_action(self, key, state, held, valid)
        chances = local_chances(self, state, held)
        if local_states is None:
            taken = draw_parts(own_key, held, chances)
        else:
            cumulative = jnp.cumsum(chances, axis=1)[local_states]
            tickets = jax.random.uniform(own_key, local_states.shape, chances.dtype)
            taken = by_inversion(cumulative, tickets)
        return action, jnp.where(valid, taken, -1)


ANY_TABLE = record(QTable, AssignmentTable, sizes=table_sizes)


def local_chances(table: AssignmentTable, global_state: Any, counts: jax.Array) -> jax.Array:
    """The chance of each action of an agent in each state, who samples k − 1 of the others: [L, B];
    any where nobody is.

    An agent in s takes b with the chance assignment[s, b] / h_s of the histogram h of the sample
    and itself: given the counts agents choose independently, and the chances are summed exactly
    over all samples.
    """
    (k,), L, dtype = table.meaning.ks, counts.shape[0], table.value.dtype
    others = jnp.asarray(enumerate_counts(k - 1, L))
    states = jnp.arange(L, dtype=jnp.int32)

    def chances(state):
        without = jnp.maximum(counts - (states == state).astype(jnp.int32), 0)
        weights = hypergeometric_weights(without, k - 1, dtype)
        taken = table.assignment[global_state, additions(k, L, state), state].astype(dtype)
        share = taken / (others[:, state] + 1).astype(dtype)[:, None]
        return jnp.matmul(weights, share, precision="highest")

    return jnp.stack([chances(state) for state in range(L)])


def check_kernels(model: LocalActionModel, k: int) -> None:
    """Refuse kernels beyond 2 GiB, one dense [M, N] for each s_g."""
    B, L, G = model.num_local_actions, model.num_local_states, model.num_global_states
    itemsize = model.dtype.itemsize
    M = check_size(k, L * B, itemsize * G * 4 * model.num_actions)

    def bytes_of(k):
        return G * num_histograms(k, L * B) * num_histograms(k, L) * itemsize

    fits = largest_k(k, lambda k: bytes_of(k) <= _TABLE_LIMIT)
    _checks.require(
        bytes_of(k) <= _TABLE_LIMIT,
        f"k={k} agents with {L} states and {B} actions each have {M:,} assignments:"
        f" {bytes_of(k) / 2**30:,.1f} GiB of kernels. k={fits} fits; so do fewer states or"
        " actions.",
    )


def assignment_table(
    model: LocalActionModel, k: int, found: FixedPoint, meaning: Meaning
) -> AssignmentTable:
    """The table of what was found for k agents."""
    q, value = found.q, found.value
    assignments, belongs = assignments_of(k, model.num_local_states, model.num_local_actions)
    first = _first(jnp.max(q, axis=-1), value, possible(model, assignments), belongs)
    policy = greedy(jnp.take_along_axis(q, first[..., None], axis=1), found.stats["scale"])
    listed = jnp.asarray(assignments)
    histograms = jnp.asarray(enumerate_counts(k, model.num_local_states))
    return AssignmentTable(
        q, value, policy, listed[first], found.bounds, histograms, listed, meaning
    )


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


def assignments_of(k: int, L: int, B: int) -> tuple[np.ndarray, np.ndarray]:
    """Assignments int32 [M, L, B] and the index of the histogram of each."""
    assignments = enumerate_counts(k, L * B).reshape(-1, L, B)
    return assignments, graded_rank(assignments.sum(axis=2)[:, :-1].astype(np.int32), k)


def surrogate(model: LocalActionModel, k: int) -> Surrogate:
    """Of agents who act: Q(s_g, z, a) for all M assignments z; one dense kernel for each s_g."""
    base, L = model.base, model.num_local_states
    assignments, _ = assignments_of(k, L, model.num_local_actions)
    listed = possible(model, assignments)
    kernels = jax.vmap(lambda kernel: dense_kernel(kernel, k))(model.pair_kernels())  # [G, M, N]
    rewards = _rewards(model, k, assignments)

    def expect(values):
        mixed = jnp.einsum("gac,cn->gan", base.global_transition, values, precision="highest")
        return jnp.einsum("gmn,gan->gma", kernels, mixed, precision="highest")

    def value_of(q):
        best = _best_assignment(best_of(q), listed, k, L, model.num_local_actions)
        return ended(best, model.terminal)

    return Surrogate(rewards, expect, value_of, base.discount)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _best_assignment(best: jax.Array, possible: jax.Array, k: int, L: int, B: int) -> jax.Array:
    """The maximum of `best` [G, M] over the possible assignments of each histogram, [G, N]; its
    derivative is that of one of them, as in `best_of`.
    """
    best, number = jnp.where(possible, best, -jnp.inf), num_histograms(k, L)
    belongs = assignments_of(k, L, B)[1]
    return jax.vmap(lambda row: jax.ops.segment_max(row, belongs, num_segments=number))(best)


@_best_assignment.defjvp
def _best_assignment_jvp(k, L, B, primals, tangents):
    best, possible = primals
    value = _best_assignment(best, possible, k, L, B)
    first = _first(best, value, possible, assignments_of(k, L, B)[1])
    return value, jnp.take_along_axis(tangents[0], first, axis=1)


def possible(model: LocalActionModel, assignments: np.ndarray) -> jax.Array:
    """Which assignments are allowed, [G, M]."""
    joint, allowed = model.joint, model.allowed
    if joint is not None:
        return of_each_state(
            model, lambda g, z: jnp.asarray(joint(g, z), bool), jnp.asarray(assignments)
        )
    if allowed is not None:
        return jnp.all(jnp.asarray(assignments == 0)[None] | allowed[:, None], axis=(2, 3))
    return jnp.ones((model.num_global_states, len(assignments)), bool)


def _rewards(model: LocalActionModel, k: int, assignments: np.ndarray) -> jax.Array:
    """Stage rewards [G, M, A]."""
    shares = jnp.asarray(assignments, model.dtype) / k
    own = jnp.einsum("gbl,mlb->gm", model.base.local_reward, shares, precision="highest")
    if model.share_reward is not None:
        own = own + ended(of_each_state(model, model.share_reward, shares), model.terminal)
    return model.base.global_reward[:, None, :] + own[..., None]
