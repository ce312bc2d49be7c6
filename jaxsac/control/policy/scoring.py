"""Log-probabilities of many logged sets under a policy, and marginals of some tools, free of the
number of tools.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import gibbs
from jaxsac.control.data.log import Log, offered
from jaxsac.control.policy import background
from jaxsac.control.policy.sparse import SparsePolicy

_BATCH = 256


def log_probabilities(policy: SparsePolicy, log: Log) -> np.ndarray:
    """log π(a_t | ψ_t) [T] for a checked log in the policy's own numbering (`policy.tools` None).

    The tools outside the support enter by their distinct intercepts, O(T (k + G) B) for G of them;
    where records offer their own tools, one record after the other, O(T M).
    """
    if log.available is not None:
        return _one_by_one(policy, log)[0]
    actions, listed = np.asarray(log.actions), np.asarray(policy.positions)
    scores, rest = _explicit(policy, log, listed)
    intercept = np.asarray(policy.intercept, np.float64)
    place = np.full(intercept.size + 1, listed.size)
    place[listed] = np.arange(listed.size)
    at = np.where(actions >= 0, place[actions], listed.size)
    own = np.take_along_axis(np.pad(scores.T, ((0, 0), (0, 1))), at, axis=1)
    chosen = np.where(actions >= 0, np.where(at < listed.size, own, intercept[actions]), 0.0)
    partition = _laws(jnp.asarray(scores, policy.coef.dtype), *rest, policy.budget)[0]
    fits = (actions >= 0).sum(1) <= policy.budget
    return np.where(fits, chosen.sum(1) - np.asarray(partition), -np.inf)


def marginals(policy: SparsePolicy, log: Log, tools: np.ndarray) -> np.ndarray:
    """P(j ∈ a | ψ_t) [T, len(tools)] of the given tools, likewise."""
    if log.available is not None:
        return _one_by_one(policy, log)[1][:, tools]
    listed = np.union1d(np.asarray(policy.positions), tools).astype(int)
    scores, rest = _explicit(policy, log, listed)
    found = _laws(jnp.asarray(scores, policy.coef.dtype), *rest, policy.budget)[1]
    return np.asarray(found)[np.searchsorted(listed, tools)].T


def _explicit(policy: SparsePolicy, log: Log, listed: np.ndarray):
    """Scores [len(listed), T] of the listed tools (the support among them), and the distinct
    intercepts of the others with their counts.
    """
    intercept, positions = np.asarray(policy.intercept, np.float64), np.asarray(policy.positions)
    contexts = np.asarray(log.contexts, np.float64)
    scores = np.repeat(intercept[listed][:, None], contexts.shape[0], axis=1)
    scores[np.searchsorted(listed, positions)] += np.asarray(policy.coef, np.float64) @ contexts.T
    distinct, counts = np.unique(np.delete(intercept, listed), return_counts=True)
    dtype = policy.coef.dtype
    # In descending order, and never empty.
    return scores, (
        jnp.asarray(np.append(distinct[::-1], -1.0), dtype),
        jnp.asarray(np.append(counts[::-1], 0), dtype),
    )


@functools.partial(jax.jit, static_argnames="budget")
def _laws(explicit, scores, counts, budget: int):
    """log Z [T] and marginals [W, T] of the listed tools."""
    beside = background.beside(background.size_weights(scores, counts, budget)[0])
    log_rest = jnp.broadcast_to(beside[:, None], (budget + 1, explicit.shape[1]))
    partition = jax.nn.logsumexp(gibbs.rows.log_size_weights(explicit, budget) + log_rest, axis=0)
    return partition, gibbs.rows.marginals(explicit, log_rest, budget)


def _one_by_one(policy: SparsePolicy, log: Log) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [T] and all marginals [T, M]."""
    contexts = jnp.asarray(log.contexts, policy.coef.dtype)
    found = _of_records(
        policy, contexts, jnp.asarray(log.actions), jnp.asarray(offered(log, policy.num_actions))
    )
    return np.asarray(found[0]), np.asarray(found[1])


@jax.jit
def _of_records(policy: SparsePolicy, contexts, actions, available):
    def one(record):
        context, members, possible = record
        scores = policy.scores(context, possible)
        return gibbs.log_prob(members, scores, budget=policy.budget), gibbs.marginals(
            scores, budget=policy.budget
        )

    return jax.lax.map(one, (contexts, actions, available), batch_size=_BATCH)
