"""When to trust the kept tools: everything that a log can say about a fitted policy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac.control.data.digest import digest
from jaxsac.control.data.log import Log
from jaxsac.control.data.record_weights import effective_sample_size
from jaxsac.control.fits import tuning, utility
from jaxsac.control.fits.fit import FitState, _prepare, _Problem, _warm_start, fit
from jaxsac.control.imitation import solve as imitation
from jaxsac.control.imitation.certificate import certify
from jaxsac.control.imitation.working import (
    Point,
    evaluate_point,
    null_point,
    regroup,
    to_host,
    working_set,
)
from jaxsac.control.policy.scoring import log_probabilities
from jaxsac.control.policy.sparse import SparsePolicy
from jaxsac.control.trust import conditions
from jaxsac.control.trust.diagnosis import Diagnosis, signatures
from jaxsac.control.trust.duplicates import near_duplicates
from jaxsac.control.trust.log_curvature import LogCurvature, likelihood_curvature, utility_curvature
from jaxsac.control.trust.resampling import growth, support_stability

DUPLICATE_THRESHOLD = 0.9


def diagnose(
    policy: SparsePolicy,
    log: Log,
    *,
    lam: float | None = None,
    truth: Any = None,
    num_resamples: int = 20,
    key: jax.Array | None = None,
    objective: str = "imitation",
    intercept: str | None = None,
    smoothing: float = 1.0,
    weighting: str = "advantage",
    advantage_scale: float | None = None,
    clip: float = 10.0,
    families: Any = None,
    family_share: float = 0.5,
) -> Diagnosis:
    """Judge a fitted policy on the log that it was fitted to; `print` the result, or draw it with
    `.plot(axes)`.

    With g_j the gradient of the loss of `fit` in theta_j, S the support and H the Hessian with the
    intercepts eliminated, the record has the witness margin 1 - max_{j not in S} ||g_j|| / lam
    (uniqueness, never truth), the same margin at a known support `truth` (int, any order; there > 0
    implies that no other tool is kept), irrepresentability, beta-min ratio and bounds on restricted
    strong convexity of `irrepresentability`, `signal_threshold` and `restricted_curvature` at H,
    uses per tool, near-duplicate tools and the families they suggest, the multiplier quantile of
    the gradient noise, the effective sample size, the support over half samples and nested shares
    of the records, and the failure signatures found, with advice. `Diagnosis` lists the fields.

    * `policy`: a full policy (`solution.value`, not `.pruned()`) of M tools over q features; `log`:
      T records in the same numbering.
    * `lam`: of the fit; None reads it off the gradient norms on the support, which are all lam at
      the penalised optimum. At a policy that was refitted they are not: the margin is then NaN, so
      pass the penalised fit. With an empty support, pass lam.
    * `num_resamples`: fits of half samples, rounded up to pairs; 0 skips them and the nested fits
      (the costly part). `key`: of the half samples, the multipliers and the choice of records for
      H; None is `jax.random.key(0)`. It is consumed.
    * `objective`, `intercept` and the rest: as given to `fit`; `intercept` None reads it off the
      policy. With `families` pass lam, which no gradient norm shows then; the margin is NaN, and
      irrepresentability and beta-min are those of the penalty without families.

    H is formed where tools x features allow it (k up to about 1,000 / q): two tools of every kind
    outside the support stand for all that have the same intercept, so that M does not matter;
    beyond, only the signed irrepresentability is computed, by conjugate gradients. Runs on the host
    on concrete arrays. ValueError for a pruned policy, a policy of other features, and what `fit`
    refuses.

    Source: conditions A3-A5 and the primal-dual witness of arXiv 2601.08271; Meinshausen & Bühlmann
    2010 for the half samples.
    """
    _checks.require(
        policy.tools is None,
        "policy must be the full one (solution.value): a pruned policy lacks the tools to judge it by.",
    )
    if intercept is None and objective != "utility":
        intercepts = np.asarray(policy.intercept)
        intercept = (
            "none"
            if not intercepts.any()
            else "shared"
            if np.ptp(intercepts) == 0 and intercepts.size > 1
            else "per_tool"
        )
    options = {
        "num_actions": policy.num_actions,
        "budget": policy.budget,
        "objective": objective,
        "intercept": intercept,
        "smoothing": smoothing,
        "weighting": weighting,
        "advantage_scale": advantage_scale,
        "clip": clip,
        "families": families,
        "family_share": family_share,
    }
    problem = _prepare(log, *(options[name] for name in _PREPARED))
    _checks.require(
        policy.weights.shape[1] == problem.data.feature_sums.shape[1],
        f"policy has {policy.weights.shape[1]} features and log.contexts {problem.data.feature_sums.shape[1]}: pass the log of its fit.",
    )
    draw_key, curvature_key, half_key, growth_key = jax.random.split(
        jax.random.key(0) if key is None else key, 4
    )
    state = FitState(
        np.asarray(policy.support),
        np.asarray(policy.weights, float),
        np.asarray(policy.intercept, float),
    )
    judge = _judge_utility if objective == "utility" else _judge_likelihood
    norms, curvature, noise, oracle = judge(problem, state, draw_key, curvature_key, lam, truth)
    on_support = norms[state.tools]
    inferred = float(np.median(on_support)) if on_support.size else float("nan")
    known = inferred if lam is None else float(lam)
    stationarity = (
        float(np.max(np.abs(on_support / known - 1), initial=0.0)) if known > 0 else float("nan")
    )
    outside = np.delete(norms, state.tools)
    tight = stationarity < 0.05 and problem.families is None
    margin = 1 - float(outside.max(initial=0.0)) / known if tight else float("nan")
    numbers = _conditions(curvature, known)
    stability = grown = None
    if num_resamples > 0 and known > 0:

        def again(part: Log, at: float) -> SparsePolicy:
            return fit(draw_key, part, lam=at, state=state, tol=1e-3, **options).value

        def value(found: SparsePolicy, part: Log) -> np.ndarray:
            return _value(found, part, objective)

        stability = support_stability(
            half_key,
            problem.log,
            known,
            policy.num_actions,
            again,
            num_resamples + num_resamples % 2,
        )
        grown = growth(growth_key, problem.log, known, again, value)
    uses = np.zeros(policy.num_actions, int)
    np.add.at(uses, problem.data.used[problem.data.entry_tool], 1)
    diagnosis = Diagnosis(
        support=state.tools,
        norms=norms,
        lam=known,
        stationarity=stationarity,
        witness_margin=margin,
        oracle_margin=oracle,
        uses=uses,
        records=problem.data.num_records,
        features=policy.weights.shape[1],
        effective_sample_size=effective_sample_size(problem.weights),
        noise=noise,
        duplicates=near_duplicates(problem.data, DUPLICATE_THRESHOLD),
        stability=stability,
        growth=grown,
        signatures=(),
        **numbers,
    )
    return diagnosis._replace(signatures=signatures(diagnosis))


_PREPARED = (
    "num_actions",
    "budget",
    "objective",
    "intercept",
    "smoothing",
    "weighting",
    "advantage_scale",
    "clip",
    "families",
    "family_share",
)


def _judge_likelihood(problem: _Problem, state: FitState, draw_key, curvature_key, lam, truth):
    """Gradient norms [M], the curvature, the noise, and the oracle's margin."""
    data, budget, mode = problem.data, problem.budget, problem.mode
    named = state.tools if truth is None else np.union1d(state.tools, np.asarray(truth, int))
    if not np.isin(
        named, data.used
    ).all():  # a tool without a use here, in the support or the truth: list all tools one by one
        data = digest(
            problem.log,
            problem.weights,
            data.num_actions,
            budget,
            data.prior_weight * data.num_records,
            everyone=True,
        )
    start = _warm_start(data, state, mode)

    def norms_at(point: Point) -> tuple[Point, np.ndarray]:
        working = working_set(data, point.tools)
        point, found = evaluate_point(data, working, point, budget, mode)
        certificate = certify(data, working, point, found, 0.0, 0.0, budget, mode)
        norms = np.full(data.num_actions, certificate.unused_norm)
        norms[data.used] = certificate.norms
        return point, norms

    point, norms = norms_at(start)
    curvature = likelihood_curvature(curvature_key, data, point, budget, mode)
    found = null_point(data, budget, mode)[1]
    noise = tuning.simulated(draw_key, data, found, budget) / tuning.MARGIN
    oracle = float("nan")
    if truth is not None:
        at = float(np.median(norms[state.tools])) if lam is None else float(lam)
        inside = np.unique(np.asarray(truth, int))
        null = null_point(data, budget, mode)[0]
        restricted = regroup(data, null, np.zeros(0, bool), np.searchsorted(data.used, inside))
        tol = 1e-9 if data.contexts.dtype == jnp.float64 else 1e-5
        best = imitation.solve(
            data, at, budget=budget, mode=mode, tol=tol, max_steps=500, start=restricted, fixed=True
        )
        oracle = 1 - float(np.delete(norms_at(best.point)[1], inside).max(initial=0.0)) / at
    return norms, curvature, noise, oracle


def _judge_utility(problem: _Problem, state: FitState, draw_key, curvature_key, lam, truth):
    data, log = problem.data, problem.log
    constant = problem.mode == "shared"
    contexts = to_host(log.contexts)
    tools = np.searchsorted(data.used, state.tools[np.isin(state.tools, data.used)])
    weights = state.weights[np.isin(state.tools, data.used)]

    def norms_at(tools: np.ndarray, weights: np.ndarray) -> np.ndarray:
        full = np.zeros((data.used.size, contexts.shape[1]))
        full[tools] = weights
        contributions = np.einsum("eq,eq->e", full[data.entry_tool], contexts[data.entry_record])
        residual = to_host(log.utilities) - np.bincount(
            data.entry_record, contributions, data.num_records
        )
        residual = (residual - residual.mean() * constant) / data.num_records
        pulled = residual[data.entry_record, None] * contexts[data.entry_record]
        gradient = np.stack(
            [np.bincount(data.entry_tool, column, data.used.size) for column in pulled.T], axis=1
        )
        norms = np.zeros(data.num_actions)
        norms[data.used] = np.sqrt((gradient**2).sum(1))
        return norms

    norms = norms_at(tools, weights)
    curvature = utility_curvature(data, contexts, tools, weights, constant)
    noise = utility.simulated(draw_key, data, log, intercept=constant) / tuning.MARGIN
    oracle = float("nan")
    if truth is not None:
        at = float(np.median(norms[state.tools])) if lam is None else float(lam)
        inside = np.unique(np.asarray(truth, int))
        actions = np.asarray(log.actions)
        actions = np.where(np.isin(actions, inside), actions, -1)
        only = log._replace(actions=actions)
        part = digest(only, problem.weights, data.num_actions, problem.budget, 0.0)
        best = utility.solve(
            part, only, at, intercept=constant, tol=1e-9, max_steps=20_000, start=None
        )
        oracle = (
            1
            - float(
                np.delete(
                    norms_at(np.searchsorted(data.used, part.used[best.tools]), best.weights),
                    inside,
                ).max(initial=0.0)
            )
            / at
        )
    return norms, curvature, noise, oracle


def _conditions(curvature: LogCurvature, lam: float) -> dict[str, Any]:
    nan = float("nan")
    found = {
        "irrepresentability": curvature.signed,
        "irrepresentability_norm": nan,
        "signal_ratio": nan,
        "curvature_lower": nan,
        "curvature_upper": nan,
        "curvature_support": nan,
        "curvature_records": curvature.num_records,
    }
    if curvature.hessian is None or not curvature.support.any():
        return found
    hessian, support, weights = (
        jnp.asarray(array) for array in (curvature.hessian, curvature.support, curvature.weights)
    )
    weights = weights.astype(hessian.dtype)
    bounds = conditions.restricted_curvature(hessian, support, whole=curvature.whole)
    found |= {"curvature_lower": float(bounds.lower), "curvature_upper": float(bounds.upper)}
    found |= {"curvature_support": float(bounds.upper_support)}
    # More coefficients than the records can tell apart: no inverse, and no condition that needs
    # one.
    if float(bounds.upper_support) <= 1e-9 * float(jnp.max(jnp.abs(hessian))):
        return found
    alike = conditions.irrepresentability(hessian, support, weights)
    found |= {
        "irrepresentability": float(alike.signed),
        "irrepresentability_norm": float(alike.norm),
    }
    if lam > 0:
        smallest = float(jnp.min(jnp.linalg.norm(weights[curvature.support], axis=1)))
        found["signal_ratio"] = smallest / float(conditions.signal_threshold(hessian, support, lam))
    return found


def _value(policy: SparsePolicy, log: Log, objective: str) -> np.ndarray:
    """What a held-out record is worth: log pi(a | psi), or minus half the squared error of its
    utility (around its mean).
    """
    if objective != "utility":
        return log_probabilities(policy, log)
    weights = np.zeros((policy.num_actions + 1, policy.weights.shape[1]))
    weights[np.asarray(policy.support)] = np.asarray(policy.weights)
    prediction = np.einsum("twq,tq->t", weights[np.asarray(log.actions)], to_host(log.contexts))
    error = to_host(log.utilities) - prediction
    return -0.5 * (error - error.mean()) ** 2
