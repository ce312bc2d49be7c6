"""The Hessian of a log's loss at a policy, between the tools that matter, with the unpenalised
intercepts eliminated.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.control.data.digest import Digest
from jaxsac.control.imitation.working import Point
from jaxsac.control.policy import background
from jaxsac.gibbs import rows

HIGHEST = jax.lax.Precision.HIGHEST
LARGEST = 1_000  # tools times features up to which the Hessian is formed
MAX_RECORDS = 2_000  # the mean over records is taken over at most so many of them
CG_STEPS, CG_TOLERANCE = 400, 1e-4


class LogCurvature(NamedTuple):
    """`hessian` [n, q, n, q] between n tools (None where n q is too large), which of them are in
    the `support` [n], their `weights` [n, q]; `whole`: the n tools are all there are; `signed`: the
    signed irrepresentability number over all tools.
    """

    hessian: np.ndarray | None
    support: np.ndarray
    weights: np.ndarray
    whole: bool
    signed: float
    num_records: int


def likelihood_curvature(
    key: jax.Array, data: Digest, point: Point, budget: int, mode: str
) -> LogCurvature:
    """H_jl = sum_t w_t Cov_t(1[j in a], 1[l in a]) psi_t psi_t' with the intercepts' block
    eliminated, over at most MAX_RECORDS records.

    `point` has the support for a working set. All tools of equal intercept outside it are alike
    (unless records offer their own tools), so two of each kind stand for it: nothing depends on M.
    Where records offer their own tools, all offered ones are listed. The key is consumed, for the
    choice of records.
    """
    records, q = data.num_records, point.weights.shape[1]
    chosen = np.arange(records)
    if records > MAX_RECORDS:
        chosen = np.sort(np.asarray(jax.random.permutation(key, records))[:MAX_RECORDS])
    contexts = data.contexts[chosen]
    weight = np.asarray(data.row_weights, np.float64)[chosen]
    weight = weight / weight.sum()
    others, intercept, counts, group_intercept = _representatives(data, point)
    n, size = point.tools.size + others.size, point.tools.size
    weights = np.concatenate([point.weights, np.zeros((others.size, q))])
    dtype = data.contexts.dtype
    offered = jnp.ones((n, chosen.size), bool)
    if data.slots is not None:
        table = np.zeros((data.used.size + 1, chosen.size), bool)
        slots = np.asarray(data.slots)[:, chosen]
        table[slots, np.arange(chosen.size)[None, :]] = True
        offered = jnp.asarray(table[np.concatenate([point.tools, others])])
    rates = 1 / (
        1 + np.exp(-np.concatenate([np.append(point.intercept, intercept), group_intercept]))
    )
    prior = data.prior_weight * rates * (1 - rates) * np.append(np.ones(n), counts)
    problem = _Problem(
        contexts=contexts,
        row_weights=jnp.asarray(weight, dtype),
        offered=offered,
        weights=jnp.asarray(weights, dtype),
        intercept=jnp.asarray(np.append(point.intercept, intercept), dtype),
        group_intercept=jnp.asarray(group_intercept, dtype),
        counts=jnp.asarray(counts, dtype),
        prior=jnp.asarray(prior, dtype),
    )
    support = np.arange(n) < size
    nuisance = {
        "per_tool": np.eye(n + counts.size),
        "shared": np.ones((n + counts.size, 1)),
        "none": np.zeros((n + counts.size, 0)),
    }[mode]
    whole = counts.size == 0 and n == data.num_actions
    if n * q <= LARGEST:
        hessian = np.asarray(_dense(problem, jnp.asarray(nuisance, dtype), budget), np.float64)
        return LogCurvature(hessian, support, weights, whole, float("nan"), chosen.size)
    signed = float("nan")
    if size:
        signed = float(_signed(problem, jnp.asarray(nuisance, dtype), jnp.asarray(support), budget))
    return LogCurvature(None, support, weights, whole, signed, chosen.size)


class _Problem(NamedTuple):
    contexts: jax.Array  # [N, q]
    row_weights: jax.Array  # [N], sum 1
    offered: jax.Array  # bool [n, N]
    weights: jax.Array  # [n, q]
    intercept: jax.Array  # [n]
    group_intercept: jax.Array  # [G]
    counts: jax.Array  # [G]: tools of the group that are not listed
    prior: jax.Array  # [n + G]: curvature of the intercepts' prior


def _representatives(data: Digest, point: Point):
    """(positions of listed tools outside the support, their intercepts, counts [G] of the unlisted
    rest, intercepts [G]).
    """
    outside = np.ones(data.used.size, bool)
    outside[point.tools] = False
    if data.slots is not None:
        others = np.flatnonzero(outside)
        return others, point.group_intercept[data.group[others]], np.zeros(0), np.zeros(0)
    groups = data.group_size.size
    counts = data.group_size.copy()
    np.subtract.at(counts, data.group[point.tools], 1)
    first = np.repeat(np.arange(groups), np.minimum(counts, 2).astype(int))
    counts = counts - np.minimum(counts, 2)
    # Which members are listed does not matter: positions are only counted (and one beyond the used
    # tools is an unused one).
    left = counts > 0
    return (
        np.full(first.size, data.used.size),
        point.group_intercept[first],
        counts[left],
        point.group_intercept[left],
    )


def _marginals(
    problem: _Problem, budget: int, scores: jax.Array, group_intercept: jax.Array
) -> jax.Array:
    """Marginals of the listed tools and mean numbers of the groups' tools, [n + G, N]."""
    if problem.counts.size:
        log_background, share = background.size_weights(group_intercept, problem.counts, budget)
    else:
        log_background = jnp.where(jnp.arange(budget + 1) == 0, 0.0, -jnp.inf).astype(scores.dtype)
        share = jnp.zeros((budget + 1, 0), scores.dtype)
    fits = jnp.arange(budget + 1)[:, None] + jnp.arange(budget + 1)[None, :] <= budget
    beside = jax.nn.logsumexp(jnp.where(fits, log_background[None, :], -jnp.inf), axis=1)
    scores = jnp.where(problem.offered, scores, -jnp.inf)
    joint = rows.log_size_weights(scores, budget) + beside[:, None]
    log_partition = jax.nn.logsumexp(joint, axis=0)
    own = rows.marginals(
        scores, jnp.broadcast_to(beside[:, None], joint.shape), log_partition, budget
    )
    given = jnp.where(
        fits, jnp.exp(log_background[:, None] - beside[None, :]), 0
    )  # law of the rest's size given that of the listed
    sizes = jnp.matmul(given, jnp.exp(joint - log_partition[None, :]), precision=HIGHEST)
    return jnp.concatenate(
        [own, problem.counts[:, None] * jnp.matmul(share.T, sizes, precision=HIGHEST)]
    )


def _linear(problem: _Problem, budget: int):
    """(d scores [n, N], d group intercepts [G]) -> change of the marginals [n + G, N]."""
    scores = (
        jnp.matmul(problem.weights, problem.contexts.T, precision=HIGHEST)
        + problem.intercept[:, None]
    )
    return jax.linearize(
        functools.partial(_marginals, problem, budget), scores, problem.group_intercept
    )[1]


@functools.partial(jax.jit, static_argnames="budget")
def _dense(problem: _Problem, nuisance: jax.Array, budget: int) -> jax.Array:
    n, q = problem.weights.shape
    groups, records = problem.counts.size, problem.contexts.shape[0]
    change = _linear(problem, budget)
    basis = jnp.eye(n + groups, dtype=problem.contexts.dtype)

    def column(e):
        return change(jnp.broadcast_to(e[:n, None], (n, records)), e[n:])

    covariance = (
        jax.lax.map(column, basis) * problem.row_weights[None, None, :]
    )  # [n + G, n + G, N]
    psi = problem.contexts
    pairs = (psi[:, :, None] * psi[:, None, :]).reshape(records, q * q)
    hessian = jnp.matmul(
        covariance[:n, :n].reshape(n * n, records), pairs, precision=HIGHEST
    ).reshape(n, n, q, q)
    hessian = jnp.swapaxes(hessian, 1, 2).reshape(n * q, n * q)
    cross = jnp.swapaxes(jnp.matmul(covariance[:n], psi, precision=HIGHEST), 1, 2).reshape(
        n * q, n + groups
    )
    if nuisance.shape[1]:
        block = jnp.sum(covariance, axis=2) + jnp.diag(problem.prior)
        block = jnp.matmul(
            nuisance.T, jnp.matmul(block, nuisance, precision=HIGHEST), precision=HIGHEST
        )
        cross = jnp.matmul(cross, nuisance, precision=HIGHEST)
        hessian = hessian - jnp.matmul(cross, jnp.linalg.solve(block, cross.T), precision=HIGHEST)
    return (0.5 * (hessian + hessian.T)).reshape(n, q, n, q)


@functools.partial(jax.jit, static_argnames="budget")
def _signed(problem: _Problem, nuisance: jax.Array, support: jax.Array, budget: int) -> jax.Array:
    """max_j not in S ||H_j(S,b) H_(S,b)^-1 (z, 0)|| by conjugate gradients; NaN where they do not
    converge (a singular H_SS).
    """
    n = problem.weights.shape[0]
    change = _linear(problem, budget)

    def product(v):
        theta, shift = v
        moved = jnp.matmul(nuisance, shift, precision=HIGHEST)
        scores = jnp.matmul(theta, problem.contexts.T, precision=HIGHEST) + moved[:n, None]
        change_ = change(scores, moved[n:]) * problem.row_weights[None, :]
        features = jnp.matmul(change_[:n], problem.contexts, precision=HIGHEST)
        return features, jnp.matmul(
            nuisance.T, jnp.sum(change_, axis=1) + problem.prior * moved, precision=HIGHEST
        )

    def restricted(v):
        features, moved = product(v)
        return jnp.where(support[:, None], features, 0), moved

    norms = jnp.sqrt(jnp.sum(problem.weights**2, axis=1))
    direction = jnp.where(
        support[:, None], problem.weights / jnp.where(norms > 0, norms, 1)[:, None], 0
    )
    target = (direction, jnp.zeros(nuisance.shape[1], problem.contexts.dtype))
    found, _ = jax.scipy.sparse.linalg.cg(restricted, target, tol=CG_TOLERANCE, maxiter=CG_STEPS)
    features, moved = product(found)
    error = jnp.sqrt(
        jnp.sum(jnp.where(support[:, None], features - direction, 0) ** 2) + jnp.sum(moved**2)
    )
    largest = jnp.max(jnp.where(support, 0, jnp.sqrt(jnp.sum(features**2, axis=1))), initial=0)
    return jnp.where(error <= 10 * CG_TOLERANCE * jnp.sqrt(jnp.sum(direction**2)), largest, jnp.nan)


def utility_curvature(
    data: Digest, contexts: np.ndarray, tools: np.ndarray, weights: np.ndarray, constant: bool
) -> LogCurvature:
    """H_jl = (1/T) sum_{t: j, l in a_t} psi_t psi_t', minus that of the mean where there is a
    constant; `tools` are positions in data.used.

    Listed are the support and then the most used tools, as many as LARGEST allows; an unused tool
    has H_jj = 0.
    """
    q = contexts.shape[1]
    uses = np.bincount(data.entry_tool, minlength=data.used.size)
    uses[tools] = uses.max(initial=0) + 1
    listed = np.argsort(-uses, kind="stable")[: max(LARGEST // q, 0)]
    if listed.size < tools.size:
        return LogCurvature(
            None, np.ones(tools.size, bool), weights, False, float("nan"), data.num_records
        )
    place = np.full(data.used.size, -1)
    place[listed] = np.arange(listed.size)
    inside = place[data.entry_tool] >= 0
    design = np.zeros((data.num_records, listed.size, q))
    design[data.entry_record[inside], place[data.entry_tool[inside]]] = contexts[
        data.entry_record[inside]
    ]
    design = design.reshape(data.num_records, -1)
    if constant:
        design = design - design.mean(0)
    hessian = (design.T @ design / data.num_records).reshape(listed.size, q, listed.size, q)
    own = np.zeros((listed.size, q))
    own[place[tools]] = weights
    whole = listed.size == data.num_actions
    return LogCurvature(hessian, np.isin(listed, tools), own, whole, float("nan"), data.num_records)
