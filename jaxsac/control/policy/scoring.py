"""Log-probabilities of many logged sets under a policy, and marginals of some tools, free of the
number of tools.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import gibbs
from jaxsac.control.data.log import Log
from jaxsac.control.policy import background
from jaxsac.control.policy.sparse import SparsePolicy
from jaxsac.gibbs import rows

BATCH = 256


def log_probabilities(policy: SparsePolicy, log: Log) -> np.ndarray:
    """log pi(a_t | psi_t) [T] for a checked log in the policy's own numbering (`policy.tools`
    None).

    The tools outside the support enter by their distinct intercepts, O(T (k + G) B) for G of them;
    where records offer their own tools, one record after the other, O(T M).
    """
    actions = np.asarray(log.actions)
    if log.available is not None:
        contexts, available = (
            jnp.asarray(log.contexts, policy.weights.dtype),
            jnp.asarray(_offered(policy, log)),
        )
        return np.asarray(_one_by_one(policy, contexts, jnp.asarray(actions), available)[0])
    listed = np.asarray(policy.positions)
    scores, rest = _explicit(policy, log, listed)
    intercept = np.asarray(policy.intercept, np.float64)
    place = np.full(intercept.size + 1, listed.size)
    place[listed] = np.arange(listed.size)
    at = np.where(actions >= 0, place[actions], listed.size)
    own = np.take_along_axis(np.pad(scores.T, ((0, 0), (0, 1))), at, axis=1)
    chosen = np.where(actions >= 0, np.where(at < listed.size, own, intercept[actions]), 0.0)
    partition = _laws(jnp.asarray(scores, policy.weights.dtype), *rest, policy.budget)[0]
    fits = (actions >= 0).sum(1) <= policy.budget
    return np.where(fits, chosen.sum(1) - np.asarray(partition), -np.inf)


def marginals(policy: SparsePolicy, log: Log, tools: np.ndarray) -> np.ndarray:
    """P(j in a | psi_t) [T, len(tools)] of the given tools, likewise."""
    if log.available is not None:
        contexts, available = (
            jnp.asarray(log.contexts, policy.weights.dtype),
            jnp.asarray(_offered(policy, log)),
        )
        return np.asarray(_one_by_one(policy, contexts, jnp.asarray(log.actions), available)[1])[
            :, tools
        ]
    listed = np.union1d(np.asarray(policy.positions), tools).astype(int)
    scores, rest = _explicit(policy, log, listed)
    found = _laws(jnp.asarray(scores, policy.weights.dtype), *rest, policy.budget)[1]
    return np.asarray(found)[np.searchsorted(listed, tools)].T


def _explicit(policy: SparsePolicy, log: Log, listed: np.ndarray):
    """Scores [len(listed), T] of the listed tools (the support among them), and the distinct
    intercepts of the others with their counts.
    """
    intercept, positions = np.asarray(policy.intercept, np.float64), np.asarray(policy.positions)
    scores = np.repeat(intercept[listed][:, None], np.shape(log.contexts)[0], axis=1)
    scores[np.searchsorted(listed, positions)] += (
        np.asarray(policy.weights, np.float64) @ np.asarray(log.contexts, np.float64).T
    )
    distinct, counts = np.unique(np.delete(intercept, listed), return_counts=True)
    dtype = policy.weights.dtype
    # In descending order, and never empty.
    return scores, (
        jnp.asarray(np.append(distinct[::-1], -1.0), dtype),
        jnp.asarray(np.append(counts[::-1], 0), dtype),
    )


def _offered(policy: SparsePolicy, log: Log) -> np.ndarray:
    """Which tools a record offers, booleans [T, M]."""
    available = np.asarray(log.available)
    if available.dtype == bool:
        return available
    table = np.zeros((available.shape[0], policy.num_actions + 1), bool)
    np.put_along_axis(table, np.where(available < 0, policy.num_actions, available), True, axis=1)
    return table[:, :-1]


@functools.partial(jax.jit, static_argnames="budget")
def _laws(explicit, scores, counts, budget: int):
    """log Z [T] and marginals [W, T] of the listed tools."""
    log_background, _ = background.size_weights(scores, counts, budget)
    fits = jnp.arange(budget + 1)[:, None] + jnp.arange(budget + 1)[None, :] <= budget
    beside = jax.nn.logsumexp(jnp.where(fits, log_background[None, :], -jnp.inf), axis=1)
    log_rest = jnp.broadcast_to(beside[:, None], (budget + 1, explicit.shape[1]))
    partition = jax.nn.logsumexp(rows.log_size_weights(explicit, budget) + log_rest, axis=0)
    return partition, rows.marginals(explicit, log_rest, partition, budget)


@jax.jit
def _one_by_one(policy: SparsePolicy, contexts, actions, available):
    def one(record):
        context, members, offered = record
        scores = policy.scores(context, offered)
        return gibbs.log_prob(members, scores, budget=policy.budget), gibbs.marginals(
            scores, budget=policy.budget
        )

    return jax.lax.map(one, (contexts, actions, available), batch_size=BATCH)
