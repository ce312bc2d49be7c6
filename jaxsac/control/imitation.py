"""The imitation fit: a working set of tools, the rest as a background, a duality gap over all M tools.

    minimise  (1/T) sum_t c_t [A_B(z_t) - sum_{j in a_t} z_tj] + (s/T) [A_B(b) - <m, b>] + lam sum_j ||theta_j||,   z_tj = <theta_j, psi_t> + b_j

The second term is the prior record: s (`smoothing`) records without a context whose tools are uniformly m_j = m_0/M. It is the conjugate prior of the
intercepts: it makes their optimum finite (a tool that nobody used would otherwise go to minus infinity), moves the others by a share s/T, and adds
no weight per tool, so that a million unused tools weigh as much as s/T of one record.

Dual bound. With R = residuals w_t (1[j in a_t] - mu_tj), s = min(1, lam / max_j ||sum_t R_tj psi_t||) and mu_t' = (1 - s) 1_a + s mu_t, convexity of the
conjugate (minus the entropy, hence <= 0) gives D >= s sum_t w_t H(mu_t). Intercepts are unpenalised, so a feasible point needs sum_t R_tj = 0 for
every j: what is left of it, G_j, is put on the prior record, which has no context and so no penalty to meet: its means become a mixture of its own,
of m, and of a share tau of any point of the polytope {0 <= x <= 1, sum x <= B}; tau = max_j of what non-negativity, x <= 1 and the budget ask for. Hence
D >= s sum_t w_t H(mu_t) + s (1 - tau) w_0 H(mu_0), exactly feasible, for all M tools.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsac.control import step
from jaxsac.control.digest import Digest
from jaxsac.control.likelihood import Evaluation, Working, evaluate
from jaxsac.solution import Status


class Point(NamedTuple):
    """A sparse iterate on the host: `tools` positions in digest.used, with their parameters; one intercept per group for the rest."""

    tools: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray
    group_intercept: np.ndarray


class Certificate(NamedTuple):
    objective: float
    gap: float
    rounding: float
    intercept_share: float  # tau
    norms: np.ndarray  # gradient norms of the used tools
    unused_norm: float


class Fitted(NamedTuple):
    point: Point
    certificate: Certificate
    status: Status
    scale: float
    num_steps: int
    num_rounds: int
    num_evaluations: int
    lam_max: float


def capacity(size: int) -> int:
    """Working sets are padded to these sizes, so that few shapes are compiled."""
    bucket = 16
    while bucket < size:
        bucket = bucket * 2 if bucket < 64 else bucket + 64
    return bucket


def working_set(data: Digest, tools: np.ndarray) -> Working:
    dtype = data.contexts.dtype
    width = capacity(tools.size)
    counts = data.group_size.copy()
    np.subtract.at(counts, data.group[tools], 1)
    pad = width - tools.size
    target = data.frequency[tools] + data.prior_use
    groups = group_capacity(counts.size)
    return Working(
        feature_sums=jnp.asarray(np.pad(data.feature_sums[tools], ((0, pad), (0, 0))), dtype),
        target=jnp.asarray(np.pad(target, (0, pad)), dtype),
        present=jnp.asarray(np.arange(width) < tools.size),
        counts=jnp.asarray(_pad_groups(counts, groups, 0.0), dtype),
        group_target=jnp.asarray(_pad_groups(data.group_frequency + data.prior_use, groups, 0.5), dtype),
    )


def group_capacity(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def _pad_groups(values: np.ndarray, groups: int, fill: float) -> np.ndarray:
    """Room for more groups before the last one, which holds the unused tools."""
    return np.concatenate([values[:-1], np.full(groups - values.size, fill), values[-1:]])


def _evaluate(data: Digest, working: Working, point: Point, budget: int, mode: str) -> Evaluation:
    dtype = data.contexts.dtype
    pad = working.present.size - point.tools.size
    weights = jnp.asarray(np.pad(point.weights, ((0, pad), (0, 0))), dtype)
    intercept = jnp.asarray(np.pad(point.intercept, (0, pad)), dtype)
    group_intercept = jnp.asarray(_pad_groups(point.group_intercept, working.counts.size, 0.0), dtype)
    return evaluate(data.contexts, data.row_weights, working, weights, intercept, group_intercept, budget=budget, mode=mode)


def null_point(data: Digest, budget: int, mode: str, start: np.ndarray | None = None) -> tuple[Point, Evaluation]:
    """No weights, intercepts fitted. All rows are alike then, so one with the mean context stands for them: O(G B), free of T."""
    weights = np.asarray(data.row_weights, np.float64)
    total = weights[1:].sum()
    mean_context = weights @ np.asarray(data.contexts, np.float64) / total
    dtype = data.contexts.dtype
    small = data._replace(
        contexts=jnp.asarray(np.stack([np.zeros_like(mean_context), mean_context]), dtype),
        row_weights=jnp.asarray([weights[0], total], dtype),
    )
    q = data.contexts.shape[1]
    empty = np.zeros(0, int)
    if start is None:
        if mode == "per_tool":
            rate = (data.group_frequency + data.prior_use) / (weights[0] + total)
            start = np.log(rate) - np.log1p(-rate)
        elif mode == "shared":
            rate = min(max(data.mean_size, 0.5), data.num_actions - 0.5) / data.num_actions
            start = np.full(data.group_frequency.size, np.log(rate) - np.log1p(-rate))
        else:
            start = np.zeros(data.group_frequency.size)
    point = Point(empty, np.zeros((0, q)), np.zeros(0), start)
    working = working_set(small, empty)
    found = _evaluate(small, working, point, budget, mode)
    groups = _unpad_groups(np.asarray(found.group_intercept, np.float64), data.group_frequency.size)
    return point._replace(group_intercept=groups), found


def _unpad_groups(values: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([values[: size - 1], values[-1:]])


def gradient_norms(data: Digest, found: Evaluation, tools: np.ndarray) -> tuple[np.ndarray, float]:
    """||gradient_j|| of every used tool and of the unused ones (one number): O(U q), whatever M."""
    common = np.asarray(found.common_gradient, np.float64)
    common = _unpad_groups(common, data.group_frequency.size)
    gradient = common[data.group] - data.feature_sums
    gradient[tools] = np.asarray(found.weight_gradient, np.float64)[: tools.size]
    unused = float(np.linalg.norm(common[-1])) if data.group_size[-1] > 0 else 0.0
    return np.sqrt(np.einsum("uq,uq->u", gradient, gradient)), unused


def certify(data: Digest, working: Working, point: Point, found: Evaluation, lam: float, budget: int, mode: str) -> Certificate:
    """The duality gap over all M tools at a point, from one evaluation."""
    norms, unused = gradient_norms(data, found, point.tools)
    largest = max(float(norms.max(initial=0.0)), unused)
    objective = float(found.value) + lam * float(np.linalg.norm(point.weights, axis=1).sum())
    scaling = min(1.0, lam / largest) if largest > 0 else 1.0
    prior_weight = float(data.row_weights[0])
    size = point.tools.size
    tau = 0.0
    if mode != "none":
        own = np.asarray(found.intercept_gradient, np.float64)[:size]
        groups = np.asarray(found.group_gradient, np.float64)
        counts = np.asarray(working.counts, np.float64)
        live = counts > 0
        excess = own.sum() + counts @ groups
        reach = min(budget, data.num_actions)
        prior_size = float(found.prior_size)
        with np.errstate(divide="ignore", invalid="ignore"):
            if mode == "per_tool":
                gradient = np.concatenate([own, groups[live]])
                prior = np.concatenate(
                    [np.asarray(found.prior_use, np.float64)[:size], np.asarray(found.group_prior_use, np.float64)[live]]
                )
                room = np.where(gradient > 0, gradient / prior, -gradient / (1 - prior))
                tau = (
                    max(0.0, float(np.max(room, initial=0.0)), -excess / (reach - prior_size) if reach < data.num_actions else 0.0)
                    / prior_weight
                )
            else:
                tau = max(excess / prior_size, -excess / (reach - prior_size)) / prior_weight
    if not np.isfinite(tau):
        tau = np.inf
    dual = scaling * (float(found.entropy) + (1 - tau) * float(found.prior_entropy)) if tau <= 1 else 0.0
    eps = float(jnp.finfo(data.contexts.dtype).eps)
    rounding = 8 * eps * (abs(float(found.value)) + abs(float(found.entropy)) + 1)
    return Certificate(objective, max(objective - dual, 0.0) if np.isfinite(objective) else np.nan, rounding, tau, norms, unused)


def solve(
    data: Digest, lam: float, *, budget: int, mode: str, tol: float, max_steps: int, start: Point | None = None, verbose: bool = False
) -> Fitted:
    """Fit at one lam, from the null model or from `start`."""
    null, null_found = null_point(data, budget, mode)
    null_working = working_set(data, null.tools)
    null_norms, null_unused = gradient_norms(data, null_found, null.tools)
    lam_max = max(float(null_norms.max(initial=0.0)), null_unused)
    scale = float(null_found.value)
    if start is None or start.tools.size == 0:
        candidates = np.argsort(-null_norms, kind="stable")[:8]
        tools = np.sort(candidates[null_norms[candidates] > lam])
        point = _enlarge(data, null, tools)
    else:
        point = start
    del null_working
    steps = evaluations = rounds = 0
    status = Status.MAX_STEPS
    best: Certificate | None = None
    while True:
        rounds += 1
        working = working_set(data, point.tools)
        found = _evaluate(data, working, point, budget, mode)
        evaluations += 1
        point = _absorb(point, found, data)
        certificate = certify(data, working, point, found, lam, budget, mode)
        model, age = None, 0
        while True:
            if verbose:
                print(
                    rounds,
                    steps,
                    evaluations,
                    point.tools.size,
                    f"obj {certificate.objective:.10f} relgap {certificate.gap / scale:.2e} tau {certificate.intercept_share:.1e}",
                )
            if not np.isfinite(certificate.objective):
                status = Status.NONFINITE
                break
            if certificate.gap + certificate.rounding <= tol * scale:
                status = Status.CONVERGED
                break
            if steps >= max_steps:
                break
            outside = np.ones(data.used.size, bool)
            outside[point.tools] = False
            violators = np.flatnonzero(outside & (certificate.norms > lam))
            inner = _restricted_gap(certificate, found, point, lam)
            if violators.size and inner < 0.3 * certificate.gap:
                break
            if model is None or age >= 4:
                floor = jnp.where(working.present, working.target, 0)
                model = step.curvature(data.contexts, data.row_weights, found.marginals, floor * (0 if steps > 8 else 1), mode=mode)
                age = 0
            width = working.present.size
            weights = jnp.asarray(np.pad(point.weights, ((0, width - point.tools.size), (0, 0))), data.contexts.dtype)
            move, intercept_move, decrease = step.direction(
                weights, found.weight_gradient, found.intercept_gradient, model, jnp.asarray(lam, data.contexts.dtype), mode=mode
            )
            move = np.asarray(move, np.float64)[: point.tools.size]
            intercept_move = np.asarray(intercept_move, np.float64)[: point.tools.size]
            decrease = float(decrease)
            length, accepted = 1.0, False
            while length > 1e-4:
                trial = point._replace(weights=point.weights + length * move, intercept=point.intercept + length * intercept_move)
                trial_found = _evaluate(data, working, trial, budget, mode)
                evaluations += 1
                objective = float(trial_found.value) + lam * float(np.linalg.norm(trial.weights, axis=1).sum())
                if objective <= certificate.objective + 1e-4 * length * decrease + certificate.rounding:
                    accepted = True
                    break
                length /= 2
            steps += 1
            age += 1
            if not accepted:
                status = Status.STALLED
                break
            if length < 1:
                model = None
            point, found = _absorb(trial, trial_found, data), trial_found
            certificate = certify(data, working, point, found, lam, budget, mode)
        best = certificate
        if status != Status.MAX_STEPS or steps >= max_steps:
            break
        keep = (np.linalg.norm(point.weights, axis=1) > 0) | (certificate.norms[point.tools] > 0.9 * lam)
        room = max(16, int(keep.sum()))
        violators = violators[np.argsort(-certificate.norms[violators], kind="stable")][:room]
        point = _regroup(data, point, keep, np.sort(violators))
    alive = np.linalg.norm(point.weights, axis=1) > 0
    assert best is not None
    return Fitted(_regroup(data, point, alive, np.zeros(0, int)), best, status, scale, steps, rounds, evaluations, lam_max)


def _restricted_gap(certificate: Certificate, found: Evaluation, point: Point, lam: float) -> float:
    """The gap of the problem on the working set alone."""
    largest = float(certificate.norms[point.tools].max(initial=0.0))
    scaling = min(1.0, lam / largest) if largest > 0 else 1.0
    tau = min(certificate.intercept_share, 1.0)
    return certificate.objective - scaling * (float(found.entropy) + (1 - tau) * float(found.prior_entropy))


def _absorb(point: Point, found: Evaluation, data: Digest) -> Point:
    """Take over the intercepts that the evaluation has optimised."""
    groups = _unpad_groups(np.asarray(found.group_intercept, np.float64), data.group_frequency.size)
    return point._replace(intercept=np.asarray(found.intercept, np.float64)[: point.tools.size], group_intercept=groups)


def _enlarge(data: Digest, point: Point, tools: np.ndarray) -> Point:
    q = data.feature_sums.shape[1]
    return Point(tools, np.zeros((tools.size, q)), point.group_intercept[data.group[tools]], point.group_intercept)


def _regroup(data: Digest, point: Point, keep: np.ndarray, new: np.ndarray) -> Point:
    """Keep some of the working set and add new tools, which start at no weights and at their group's intercept."""
    tools = np.concatenate([point.tools[keep], new])
    weights = np.concatenate([point.weights[keep], np.zeros((new.size, point.weights.shape[1]))])
    intercept = np.concatenate([point.intercept[keep], point.group_intercept[data.group[new]]])
    order = np.argsort(tools, kind="stable")
    return Point(tools[order], weights[order], intercept[order], point.group_intercept)
