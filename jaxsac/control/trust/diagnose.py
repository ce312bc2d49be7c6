"""When to trust the kept tools: everything that a log can say about a fitted policy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, integer, key, real, record, size
from jaxsac.control.data.digest import Digest, digest
from jaxsac.control.data.log import Log
from jaxsac.control.data.sample_weight import effective_sample_size
from jaxsac.control.data.task import Task, sizes
from jaxsac.control.fits import likelihood, tuning, utility
from jaxsac.control.fits.fit import fit
from jaxsac.control.imitation.certificate import dual_gap
from jaxsac.control.imitation.solve import solve
from jaxsac.control.imitation.working import (
    FitState,
    Point,
    evaluate_point,
    null_point,
    point_from,
    regroup,
    to_host,
    working_set,
)
from jaxsac.control.policy.scoring import log_probabilities
from jaxsac.control.policy.sparse import SparsePolicy
from jaxsac.control.trust import conditions
from jaxsac.control.trust.diagnosis import STATIONARY, Diagnosis, signatures
from jaxsac.control.trust.duplicates import near_duplicates
from jaxsac.control.trust.log_curvature import LogCurvature, likelihood_curvature, utility_curvature
from jaxsac.control.trust.resampling import growth, support_stability
from jaxsac.solution import Solution

_DUPLICATE_THRESHOLD = 0.9
_RESAMPLE_TOL = 1e-3
_SINGULAR = 1e-9  # least eigenvalue on the support, over the largest entry of the Hessian


@arguments(
    on_host=True,
    task=record(Task, sizes=sizes),
    answer=record(SparsePolicy, Solution),
    key=key(),
    lam=real(above=0, below=np.inf),
    truth=integer("any", low=0, below="M"),
    num_resamples=size(),
)
def diagnose(
    task: Task,
    answer: Solution | SparsePolicy,
    *,
    key: jax.Array | None = None,
    lam: float | None = None,
    truth: Any = None,
    num_resamples: int = 20,
) -> Diagnosis:
    """Judge a fitted policy on the log that it was fitted to; `print` the result, or draw it with
    `.plot(axes)`.

    With g_j the gradient of the loss of `fit` in θ_j, S the support and H the Hessian with the
    intercepts eliminated, the record has the witness margin 1 − max_{j ∉ S} ‖g_j‖ / lam
    (uniqueness, never truth), the same margin at a known support `truth` (int, any order; there > 0
    implies that no other tool is kept), irrepresentability, beta-min ratio and bounds on restricted
    strong convexity of `control.conditions` at H, uses per tool, near-duplicate tools and the
    families they suggest, the multiplier quantile of the gradient noise, the effective sample size,
    the support over half samples and nested shares of the records, and the failure signatures
    found, with advice. `Diagnosis` lists the fields.

    * `task`: that of the fit. `answer`: its solution, or a full policy (not `.pruned()`).
    * `key`: of the half samples, the multipliers and the choice of records for H; it is consumed.
      None leaves out what has to be drawn: noise, stability and growth.
    * `lam`: None is that of the solution; of a policy alone it is read off the gradient norms on
      the support, which are all lam at the penalised optimum (with families, or with an empty
      support, pass it). At a policy that was refitted they are not: the margin is then NaN, so pass
      the penalised fit.
    * `num_resamples`: fits of half samples, rounded up to pairs; 0 skips them and the nested fits
      (the costly part).

    With families the margin is NaN, and irrepresentability and beta-min are those of the penalty
    without families. H is formed where tools × features allow it (k up to about 1,000 / q): two
    tools of every kind outside the support stand for all that have the same intercept, so that M
    does not matter; beyond, only the signed irrepresentability is computed, by conjugate gradients.
    Runs on the host.

    Raises: ValueError for an answer to another task, a pruned policy, one of other tools or
    features.

    Source: conditions A3–A5 and the primal-dual witness of arXiv 2601.08271; Meinshausen & Bühlmann
    2010 for the half samples.
    """
    policy = answer.value if isinstance(answer, Solution) else answer
    _require_answer(task, policy)
    if lam is None and isinstance(answer, Solution):
        lam = float(answer.stats["lam"])
    keys: Any = [None] * 4 if key is None else jax.random.split(key, 4)
    state = FitState(np.asarray(policy.support), to_host(policy.coef), to_host(policy.intercept))
    # Gradients and their conditions are those of the penalty without families.
    data = digest(task)._replace(families=None)
    inside = None if truth is None else np.unique(np.asarray(truth, int))
    judge = _judge_utility if task.objective == "utility" else _judge_likelihood
    norms, curvature, noise, oracle = judge(data, state, keys, lam, inside)
    on_support = norms[state.tools]
    known = lam if lam is not None else _level(on_support)
    stationarity = float("nan")
    if known > 0:
        stationarity = float(np.max(np.abs(on_support / known - 1), initial=0.0))
    outside = np.delete(norms, state.tools)
    tight = stationarity < STATIONARY and task.families is None
    stability = grown = None
    if key is not None and num_resamples > 0 and known > 0:

        def again(part: Log, at: float) -> SparsePolicy:
            part_task = task.with_log(part)
            return fit(keys[0], part_task, lam=at, state=state, tol=_RESAMPLE_TOL).value

        def value(found: SparsePolicy, part: Log) -> np.ndarray:
            return _value(found, part, task.objective)

        pairs = num_resamples + num_resamples % 2
        stability = support_stability(keys[2], task.log, known, task.num_actions, again, pairs)
        grown = growth(keys[3], task.log, known, again, value)
    uses = np.zeros(task.num_actions, int)
    np.add.at(uses, data.used[data.entry_tool], 1)
    diagnosis = Diagnosis(
        support=state.tools,
        norms=norms,
        lam=known,
        stationarity=stationarity,
        witness_margin=1 - float(outside.max(initial=0.0)) / known if tight else float("nan"),
        oracle_margin=oracle,
        uses=uses,
        records=task.num_records,
        features=task.num_features,
        effective_sample_size=float(effective_sample_size(np.asarray(task.sample_weight))),
        noise=noise,
        duplicates=near_duplicates(data, _DUPLICATE_THRESHOLD),
        stability=stability,
        growth=grown,
        signatures=(),
        **_conditions(curvature, known),
    )
    return diagnosis._replace(signatures=signatures(diagnosis))


def _require_answer(task: Task, policy: Any) -> None:
    _checks.require(
        isinstance(policy, SparsePolicy) and policy.tools is None,
        "answer must be a solution of `fit` or its full policy: a pruned one lacks the tools to"
        " judge it by.",
    )
    meaning = policy.meaning or task.meaning
    _checks.require(
        meaning == task.meaning,
        f"the answer was fitted to objective={meaning[0]!r} with intercept={meaning[1]!r}, the task"
        f" has {task.objective!r} and {task.intercept!r}: pass the task of its fit.",
    )
    shape = (policy.num_actions, policy.coef.shape[1])
    _checks.require(
        shape == (task.num_actions, task.num_features),
        f"the policy has {shape[0]} tools and {shape[1]} features, the task {task.num_actions} and"
        f" {task.num_features}: pass the task of its fit.",
    )


_Judged = tuple[np.ndarray, LogCurvature, float, float]  # ‖g_j‖ [M], H, noise, oracle margin


def _judge_likelihood(data: Digest, state: FitState, keys, lam, truth) -> _Judged:
    named = state.tools if truth is None else np.union1d(state.tools, truth)
    if not np.isin(named, data.used).all():  # a tool without a use here: list all one by one
        data = digest(data.task, everyone=True)._replace(families=None)

    def norms_at(point: Point) -> tuple[Point, np.ndarray]:
        working = working_set(data, point.tools)
        point, found = evaluate_point(data, working, point)
        gap = dual_gap(data, working, point, found, 0.0, 0.0)
        norms = np.full(data.task.num_actions, gap.unused_norm)
        norms[data.used] = gap.norms
        return point, norms

    point, norms = norms_at(point_from(data, *state))
    curvature = likelihood_curvature(keys[1], data, point)
    oracle = float("nan")
    if truth is not None:
        lam = _level(norms[state.tools]) if lam is None else lam
        null = null_point(data)[0]
        only = regroup(data, null, np.zeros(0, bool), np.searchsorted(data.used, truth))
        tol = 1e-9 if data.contexts.dtype == jnp.float64 else 1e-5
        best = solve(data, lam, tol=tol, max_steps=likelihood.MAX_STEPS, start=only, fixed=True)
        oracle = _margin(norms_at(best.point)[1], truth, lam)
    return norms, curvature, _noise(tuning.simulated, keys[0], data), oracle


def _judge_utility(data: Digest, state: FitState, keys, lam, truth) -> _Judged:
    contexts = to_host(data.task.log.contexts)
    known = np.isin(state.tools, data.used)
    tools, coef = np.searchsorted(data.used, state.tools[known]), state.coef[known]

    def norms_at(tools: np.ndarray, coef: np.ndarray) -> np.ndarray:
        residual = utility.residual(data, tools, coef) / data.task.num_records
        pulled = residual[data.entry_record, None] * contexts[data.entry_record]
        columns = [np.bincount(data.entry_tool, column, data.used.size) for column in pulled.T]
        norms = np.zeros(data.task.num_actions)
        norms[data.used] = np.sqrt(np.sum(np.square(columns), axis=0))
        return norms

    norms = norms_at(tools, coef)
    curvature = utility_curvature(data, tools, coef)
    oracle = float("nan")
    if truth is not None:
        lam = _level(norms[state.tools]) if lam is None else lam
        actions = np.asarray(data.task.log.actions)
        actions = np.where(np.isin(actions, truth), actions, -1)
        part = digest(data.task.with_log(data.task.log._replace(actions=actions)))
        part = part._replace(families=None)
        best = utility.solve(part, lam, 1e-9)
        places = np.searchsorted(data.used, part.used[best.tools])
        oracle = _margin(norms_at(places, best.coef), truth, lam)
    return norms, curvature, _noise(utility.simulated, keys[0], data), oracle


def _level(on_support: np.ndarray) -> float:
    """The lam of a penalised optimum, from the gradient norms on its support."""
    return float(np.median(on_support)) if on_support.size else float("nan")


def _margin(norms: np.ndarray, inside: np.ndarray, lam: float) -> float:
    return 1 - float(np.delete(norms, inside).max(initial=0.0)) / lam


def _noise(simulated, key: jax.Array | None, data: Digest) -> float:
    return float("nan") if key is None else simulated(key, data) / tuning.MARGIN


def _conditions(curvature: LogCurvature, lam: float) -> dict[str, Any]:
    names = (
        "irrepresentability_norm", "signal_ratio", "curvature_lower", "curvature_upper",
        "curvature_support",
    )  # fmt: skip
    found: dict[str, Any] = dict.fromkeys(names, float("nan"))
    found |= {"irrepresentability": curvature.signed, "curvature_records": curvature.num_records}
    if curvature.hessian is None or not curvature.support.any():
        return found
    hessian, support = jnp.asarray(curvature.hessian), jnp.asarray(curvature.support)
    coef = jnp.asarray(curvature.coef, hessian.dtype)
    bounds = conditions.restricted_curvature(hessian, support, whole=curvature.whole)
    found |= {"curvature_lower": float(bounds.lower), "curvature_upper": float(bounds.upper)}
    found |= {"curvature_support": float(bounds.upper_support)}
    # More coefficients than the records can tell apart: no inverse, and no condition that needs
    # one.
    if float(bounds.upper_support) <= _SINGULAR * float(jnp.max(jnp.abs(hessian))):
        return found
    alike = conditions.irrepresentability(hessian, support, coef)
    found |= {
        "irrepresentability": float(alike.signed),
        "irrepresentability_norm": float(alike.norm),
    }
    if lam > 0:
        smallest = float(jnp.min(jnp.linalg.norm(coef[curvature.support], axis=1)))
        found["signal_ratio"] = smallest / float(conditions.signal_threshold(hessian, support, lam))
    return found


def _value(policy: SparsePolicy, log: Log, objective: str) -> np.ndarray:
    """What a held-out record is worth: log π(a | ψ), or minus half the squared error of its utility
    (around its mean).
    """
    if objective != "utility":
        return log_probabilities(policy, log)
    coef = np.zeros((policy.num_actions + 1, policy.coef.shape[1]))
    coef[np.asarray(policy.support)] = np.asarray(policy.coef)
    prediction = np.einsum("twq,tq->t", coef[np.asarray(log.actions)], to_host(log.contexts))
    error = to_host(log.utilities) - prediction
    return -0.5 * (error - error.mean()) ** 2
