"""The Hessian of a log's loss at a policy, between the tools that matter, with the unpenalised
intercepts eliminated.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import gibbs
from jaxsac._linear import conjugate_gradient
from jaxsac.control.data.digest import Digest
from jaxsac.control.imitation.working import Point, to_host
from jaxsac.control.policy import background

_LARGEST = 1_000  # tools times features up to which the Hessian is formed
_MAX_RECORDS = 2_000  # the mean over records is taken over at most so many of them
_CG_STEPS, _CG_TOLERANCE = 400, 1e-4


class LogCurvature(NamedTuple):
    """The Hessian between n tools, or what is known without it."""

    hessian: np.ndarray | None  # [n, q, n, q]; None where n q is too large
    support: np.ndarray  # bool [n]: which of them are in the support
    coef: np.ndarray  # [n, q]
    whole: bool  # whether the n tools are all there are
    signed: float  # the signed irrepresentability number over all tools
    num_records: int


def likelihood_curvature(key: jax.Array | None, data: Digest, point: Point) -> LogCurvature:
    """H_jl = Σ_t w_t Cov_t(1[j ∈ a], 1[l ∈ a]) ψ_t ψ_t' with the intercepts' block eliminated, over
    at most 2,000 records: drawn by the key, which is consumed, or evenly spaced without one.

    `point` has the support for a working set. All tools of equal intercept outside it are alike
    (unless records offer their own tools), so two of each kind stand for it: nothing depends on M.
    Where records offer their own tools, all offered ones are listed.
    """
    records, (size, q), budget = data.task.num_records, point.coef.shape, data.task.budget
    dtype = data.contexts.dtype
    chosen = np.arange(records)
    if records > _MAX_RECORDS:
        chosen = np.linspace(0, records - 1, _MAX_RECORDS).astype(int)
        if key is not None:
            chosen = np.sort(np.asarray(jax.random.permutation(key, records))[:_MAX_RECORDS])
    weight = to_host(data.row_weights)[chosen]
    others, intercept, counts, group_intercept = _representatives(data, point)
    intercept, n = np.append(point.intercept, intercept), size + others.size
    coef = np.concatenate([point.coef, np.zeros((others.size, q))])
    offered = np.ones((n, chosen.size), bool)
    if data.slots is not None:
        table = np.zeros((data.used.size + 1, chosen.size), bool)
        table[np.asarray(data.slots)[:, chosen], np.arange(chosen.size)[None, :]] = True
        offered = table[np.concatenate([point.tools, others])]
    rates = 1 / (1 + np.exp(-np.concatenate([intercept, group_intercept])))
    prior = data.prior_weight * rates * (1 - rates) * np.append(np.ones(n), counts)
    listed = n + counts.size
    nuisance = {
        "per_tool": np.eye(listed),
        "shared": np.ones((listed, 1)),
        "none": np.zeros((listed, 0)),
    }[data.task.intercept]
    problem = _Problem(
        contexts=data.contexts[chosen],
        row_weights=jnp.asarray(weight / weight.sum(), dtype),
        offered=jnp.asarray(offered),
        coef=jnp.asarray(coef, dtype),
        intercept=jnp.asarray(intercept, dtype),
        group_intercept=jnp.asarray(group_intercept, dtype),
        counts=jnp.asarray(counts, dtype),
        prior=jnp.asarray(prior, dtype),
        nuisance=jnp.asarray(nuisance, dtype),
    )
    support = np.arange(n) < size
    hessian, signed = None, float("nan")
    if n * q <= _LARGEST:
        hessian = to_host(_dense(problem, budget))
    elif size:
        signed = float(_signed(problem, jnp.asarray(support), budget))
    whole = counts.size == 0 and n == data.task.num_actions
    return LogCurvature(hessian, support, coef, whole, signed, chosen.size)


class _Problem(NamedTuple):
    contexts: jax.Array  # [N, q]
    row_weights: jax.Array  # [N], sum 1
    offered: jax.Array  # bool [n, N]
    coef: jax.Array  # [n, q]
    intercept: jax.Array  # [n]
    group_intercept: jax.Array  # [G]
    counts: jax.Array  # [G]: tools of the group that are not listed
    prior: jax.Array  # [n + G]: curvature of the intercepts' prior
    nuisance: jax.Array  # [n + G, r]: the directions in which intercepts are fitted


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
        log_sizes, share = background.size_weights(group_intercept, problem.counts, budget)
    else:
        log_sizes = jnp.where(jnp.arange(budget + 1) == 0, 0.0, -jnp.inf).astype(scores.dtype)
        share = jnp.zeros((budget + 1, 0), scores.dtype)
    beside = background.beside(log_sizes)
    scores = jnp.where(problem.offered, scores, -jnp.inf)
    joint = gibbs.rows.log_size_weights(scores, budget) + beside[:, None]
    log_partition = jax.nn.logsumexp(joint, axis=0)
    own = gibbs.rows.marginals(scores, jnp.broadcast_to(beside[:, None], joint.shape), budget)
    law = jnp.exp(joint - log_partition[None, :])
    sizes = jnp.matmul(background.size_law(log_sizes), law, precision="highest")
    others = problem.counts[:, None] * jnp.matmul(share.T, sizes, precision="highest")
    return jnp.concatenate([own, others])


def _linear(problem: _Problem, budget: int):
    """(d scores [n, N], d group intercepts [G]) -> change of the marginals [n + G, N]."""
    scores = (
        jnp.matmul(problem.coef, problem.contexts.T, precision="highest")
        + problem.intercept[:, None]
    )
    return jax.linearize(
        functools.partial(_marginals, problem, budget), scores, problem.group_intercept
    )[1]


@functools.partial(jax.jit, static_argnames="budget")
def _dense(problem: _Problem, budget: int) -> jax.Array:
    (n, q), nuisance = problem.coef.shape, problem.nuisance
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
        covariance[:n, :n].reshape(n * n, records), pairs, precision="highest"
    ).reshape(n, n, q, q)
    hessian = jnp.swapaxes(hessian, 1, 2).reshape(n * q, n * q)
    cross = jnp.swapaxes(jnp.matmul(covariance[:n], psi, precision="highest"), 1, 2).reshape(
        n * q, n + groups
    )
    if nuisance.shape[1]:
        block = jnp.sum(covariance, axis=2) + jnp.diag(problem.prior)
        block = jnp.matmul(
            nuisance.T, jnp.matmul(block, nuisance, precision="highest"), precision="highest"
        )
        cross = jnp.matmul(cross, nuisance, precision="highest")
        hessian = hessian - jnp.matmul(cross, jnp.linalg.solve(block, cross.T), precision="highest")
    return (0.5 * (hessian + hessian.T)).reshape(n, q, n, q)


@functools.partial(jax.jit, static_argnames="budget")
def _signed(problem: _Problem, support: jax.Array, budget: int) -> jax.Array:
    """max_{j ∉ S} ‖H_j(S,b) H_(S,b)⁻¹ (z, 0)‖ by conjugate gradients; NaN where they do not
    converge (a singular H_SS).
    """
    n, nuisance = problem.coef.shape[0], problem.nuisance
    change = _linear(problem, budget)

    def product(v):
        theta, shift = v
        moved = jnp.matmul(nuisance, shift, precision="highest")
        scores = jnp.matmul(theta, problem.contexts.T, precision="highest") + moved[:n, None]
        changed = change(scores, moved[n:]) * problem.row_weights[None, :]
        features = jnp.matmul(changed[:n], problem.contexts, precision="highest")
        pull = jnp.sum(changed, axis=1) + problem.prior * moved
        return features, jnp.matmul(nuisance.T, pull, precision="highest")

    def restricted(v):
        features, moved = product(v)
        return jnp.where(support[:, None], features, 0), moved

    norms = jnp.sqrt(jnp.sum(problem.coef**2, axis=1))
    direction = problem.coef / jnp.where(norms > 0, norms, 1)[:, None]
    target = (
        jnp.where(support[:, None], direction, 0),
        jnp.zeros(nuisance.shape[1], problem.contexts.dtype),
    )
    found = conjugate_gradient(restricted, target, tol=_CG_TOLERANCE, max_steps=_CG_STEPS)
    features = product(found.x)[0]
    largest = jnp.max(jnp.where(support, 0, jnp.sqrt(jnp.sum(features**2, axis=1))), initial=0)
    return jnp.where(found.converged, largest, jnp.nan)


def utility_curvature(data: Digest, tools: np.ndarray, coef: np.ndarray) -> LogCurvature:
    """H_jl = (1/T) Σ_{t: j, l ∈ a_t} ψ_t ψ_t', minus that of the mean where there is a constant;
    `tools` are positions in data.used.

    Listed are the support and then the most used tools, as many as fit; an unused tool has H_jj =
    0.
    """
    contexts, q, records = (
        to_host(data.task.log.contexts),
        data.task.num_features,
        data.task.num_records,
    )
    uses = np.bincount(data.entry_tool, minlength=data.used.size)
    uses[tools] = uses.max(initial=0) + 1
    listed = np.argsort(-uses, kind="stable")[: max(_LARGEST // q, 0)]
    if listed.size < tools.size:
        inside = np.ones(tools.size, bool)
        return LogCurvature(None, inside, coef, False, float("nan"), records)
    place = np.full(data.used.size, -1)
    place[listed] = np.arange(listed.size)
    at = place[data.entry_tool]
    record, at = data.entry_record[at >= 0], at[at >= 0]
    design = np.zeros((records, listed.size, q))
    design[record, at] = contexts[record]
    design = design.reshape(records, -1)
    if data.task.intercept == "shared":
        design = design - design.mean(0)
    hessian = (design.T @ design / records).reshape(listed.size, q, listed.size, q)
    own = np.zeros((listed.size, q))
    own[place[tools]] = coef
    whole = listed.size == data.task.num_actions
    return LogCurvature(hessian, np.isin(listed, tools), own, whole, float("nan"), records)
