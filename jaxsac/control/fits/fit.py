"""From a log to a sparse policy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac.control.data.digest import Digest, digest
from jaxsac.control.data.families import Families, Split, checked_families
from jaxsac.control.data.log import Log, checked
from jaxsac.control.data.record_weights import effective_sample_size, record_weights
from jaxsac.control.fits import tuning, utility
from jaxsac.control.imitation import solve as imitation
from jaxsac.control.imitation.certificate import certify
from jaxsac.control.imitation.working import Point, null_point, regroup, working_set
from jaxsac.control.policy.sparse import SparsePolicy
from jaxsac.solution import Solution, Status

OBJECTIVES = ("imitation", "weighted", "utility")
INTERCEPTS = ("per_tool", "shared", "none")
LAMS = ("simulated", "theory", "scaled")


class FitState(NamedTuple):
    """Where a later fit may start, on this log or another: tools int32 [k], weights [k, q],
    intercept [M].
    """

    tools: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray


def fit(
    key: jax.Array,
    log: Log,
    *,
    num_actions: int,
    budget: int,
    objective: str = "imitation",
    lam: Any = "simulated",
    intercept: str | None = None,
    refit: bool = False,
    smoothing: float = 1.0,
    weighting: str = "advantage",
    advantage_scale: float | None = None,
    clip: float = 10.0,
    families: Any = None,
    family_share: float = 0.5,
    tol: float | None = None,
    max_steps: int | None = None,
    state: FitState | None = None,
) -> Solution:
    """Learn which few of M tools look at the context, from T logged records.

    With z_tj = <theta_j, psi_t> + b_j and A_B(z) = log sum_{|a| <= B} exp sum_{j in a} z_j,
    objective "imitation" minimises

        (1/T) sum_t c_t [A_B(z_t) - sum_{j in a_t} z_tj] + (s/T) sum_j [softplus(b_j) - m b_j] + lam
        sum_j ||theta_j||_2,    c_t = 1,

    "weighted" the same with weights c_t of mean 1, and "utility" (1/2T) sum_t (u_t - sum_{j in a_t}
    <theta_j, psi_t> - constant)^2 + the same penalty.

    * `log`: a `Log` of concrete arrays; fit drives its loop on the host (compiled kernels at a few
      padded sizes), so it is called outside jit and vmap. `num_actions` M, `budget` B >= 1 (B >= M
      is no budget).
    * `lam`: a number > 0, in units of the gradient norm; "simulated", 1.1 x the 95 % quantile of
      the largest gradient norm under Gaussian multipliers (500 draws, pilot = null model);
      "theory", 2 sigma_g (sqrt(q/T) + sqrt(2 log M / T)); for "utility" also "scaled", tuning-free:
      the simulation for noise of unit variance times the standard deviation of the fit's own
      residuals, both found together (the scaled lasso, Sun & Zhang 2012). Contexts are used as they
      are: scaling them is the caller's choice, and `lam` scales with them.
    * `intercept`: unpenalised. "per_tool" (default) b_j of each tool; "shared" one b; "none" b = 0,
      the paper's model. For "utility": "shared" (default) is the constant, "none" leaves it out.
    * `smoothing` s > 0: the intercepts' conjugate prior, s records without a context in which every
      tool is used with the same probability m = (mean set size) / M. It keeps every intercept
      finite (a tool that no record uses would go to minus infinity) at a total weight of s records,
      however many tools there are; the others move by a share s/T.
    * `weighting` of "weighted": "advantage", c_t ∝ exp((u_t - mean u)/advantage_scale) (None: their
      standard deviation), or "propensity", c_t ∝ max(u_t, 0)/p_t; each cut at `clip` times its
      mean, then scaled to mean 1. stats["effective_sample_size"] = (sum c)^2 / sum c^2.
    * `families`: None, or int [M], the family of each tool (negative: none). The penalty is then
      lam [(1 - r) sum_j ||theta_j|| + r sum_F ||theta_F||], r = `family_share` in [0, 1), theta_F
      all weights of the family's tools together: once one of them is kept the others follow more
      easily, and a family that does not matter goes as one. A tool without a family is penalised as
      ever, by lam ||theta_j||.
    * `refit`: fit once more on the support without the penalty, with (1/2T) sum_j ||theta_j||^2
      instead, a standard normal prior that keeps it finite.
    * `tol` relative to stats["scale"], the objective of the null model; None is 1e-6 in float64,
      1e-4 in float32. `max_steps`: None is 500 (20,000 for "utility"). `state`: that of another
      solution, for a warm start.

    Returns a `Solution`: a `SparsePolicy`; the status; stats lam, lam_max, objective, gap, scale,
    num_steps, effective_sample_size and, if asked, refit_objective and refit_gap, for "utility"
    also constant. CONVERGED: the duality gap over all M tools, plus a bound on its rounding, is at
    most tol x scale.

    Defined: a context of zeros (it teaches the intercepts alone); a tool used once; repeated tools
    in a record (a set: they count once); B above every recorded size; a record without tools; equal
    columns. ValueError, naming the records: an empty log, NaN or infinite data, tools out of range,
    records with more than B tools, propensities outside (0, 1], tools used where they were not
    available. The key is consumed.

    Source: the estimator of arXiv 2601.08271; the multiplier simulation, the block-wise Newton
    steps and the dual certificate are classical constructions.
    """
    own = weighting, advantage_scale, clip, families, family_share
    problem = _prepare(log, num_actions, budget, objective, intercept, smoothing, *own)
    data, log, mode = problem.data, problem.log, problem.mode
    dtype = data.contexts.dtype
    tol = float(tol) if tol is not None else (1e-6 if dtype == jnp.float64 else 1e-4)
    _checks.require(tol >= 0, f"tol must be >= 0, got {tol:g}.")
    max_steps = (
        int(max_steps) if max_steps is not None else (20_000 if objective == "utility" else 500)
    )
    chosen = _lam(key, problem, lam)
    run = _fit_utility if objective == "utility" else _fit_likelihood
    tools, weights, intercepts, status, stats = run(
        problem, chosen, tol, max_steps, state, bool(refit)
    )
    background = (
        _background(np.asarray(log.contexts), tools, weights, intercepts, problem.budget)
        if mode == "per_tool"
        else tools[:0]
    )
    policy = SparsePolicy(
        positions=jnp.asarray(tools, jnp.int32),
        weights=jnp.asarray(weights, dtype),
        intercept=jnp.asarray(intercepts, dtype),
        background=jnp.asarray(background, jnp.int32),
        tools=None,
        budget=problem.budget,
    )
    stats = {
        "lam": chosen,
        **stats,
        "effective_sample_size": effective_sample_size(problem.weights),
    }
    stats = {
        name: jnp.asarray(value, jnp.int32 if name.startswith("num") else dtype)
        for name, value in stats.items()
    }
    return Solution(
        policy, jnp.asarray(int(status), jnp.int32), stats, FitState(tools, weights, intercepts)
    )


def lam_max(
    log: Log,
    *,
    num_actions: int,
    budget: int,
    objective: str = "imitation",
    intercept: str | None = None,
    smoothing: float = 1.0,
    weighting: str = "advantage",
    advantage_scale: float | None = None,
    clip: float = 10.0,
    families: Any = None,
    family_share: float = 0.5,
) -> jax.Array:
    """The least lam at which no tool looks at the context: max_j ||gradient_j|| (with families
    their dual norm) at the null model, whose intercepts are fitted, []. Keywords as in `fit`.
    """
    own = weighting, advantage_scale, clip, families, family_share
    problem = _prepare(log, num_actions, budget, objective, intercept, smoothing, *own)
    data, split = problem.data, problem.split(problem.data)
    if objective == "utility":
        return jnp.asarray(
            utility.lam_max(data, problem.log, intercept=problem.mode == "shared", families=split),
            data.contexts.dtype,
        )
    point, found = null_point(data, problem.budget, problem.mode)
    certificate = certify(
        data, working_set(data, point.tools), point, found, 0.0, 0.0, problem.budget, problem.mode
    )
    return jnp.asarray(imitation.largest_norm(certificate, split), data.contexts.dtype)


def simulated_lam(
    key: jax.Array,
    log: Log,
    *,
    num_actions: int,
    budget: int,
    objective: str = "imitation",
    intercept: str | None = None,
    smoothing: float = 1.0,
    weighting: str = "advantage",
    advantage_scale: float | None = None,
    clip: float = 10.0,
    families: Any = None,
    family_share: float = 0.5,
) -> jax.Array:
    """The lam that `fit(lam="simulated")` takes, []: 1.1 x the 95 % quantile, over 500 draws of
    Gaussian multipliers, of the largest gradient norm at the null model. Keywords as in `fit`; the
    key is consumed.
    """
    own = weighting, advantage_scale, clip, families, family_share
    problem = _prepare(log, num_actions, budget, objective, intercept, smoothing, *own)
    return jnp.asarray(_lam(key, problem, "simulated"), problem.data.contexts.dtype)


class _Problem(NamedTuple):
    log: Log
    data: Digest
    weights: np.ndarray
    budget: int
    objective: str
    mode: str
    families: Families | None = None

    def split(self, data: Digest) -> Split | None:
        return None if self.families is None else self.families.of(data.used)


def _prepare(
    log,
    num_actions,
    budget,
    objective,
    intercept,
    smoothing,
    weighting,
    advantage_scale,
    clip,
    families=None,
    family_share=0.5,
) -> _Problem:
    num_actions = _checks.static_integer("num_actions", num_actions, 1)
    budget = _checks.static_integer("budget", budget, 1)
    _checks.choice("objective", objective, OBJECTIVES)
    mode = (
        intercept if intercept is not None else ("shared" if objective == "utility" else "per_tool")
    )
    _checks.choice("intercept", mode, INTERCEPTS)
    smoothing = float(smoothing)
    _checks.require(
        0 < smoothing < np.inf,
        f"smoothing must be > 0 and finite, got {smoothing:g}: without it an unused tool has no intercept.",
    )
    log, together = (
        checked(log, num_actions, budget),
        checked_families(families, family_share, num_actions),
    )
    if objective == "utility":
        log = log._replace(
            available=None
        )  # which sets could have been chosen says nothing about the utility of the one that was
    budget = min(budget, num_actions)
    weights = np.ones(np.shape(log.contexts)[0])
    if objective == "weighted":
        weights = record_weights(log, weighting, advantage_scale, clip)
    if objective == "utility":
        _checks.require(
            mode != "per_tool",
            'intercept must be "shared" or "none" for objective="utility": for a constant per tool, add a feature of ones.',
        )
        _checks.require(log.utilities is not None, 'objective="utility" needs log.utilities.')
    prior = smoothing if mode != "none" and objective != "utility" else 0.0
    return _Problem(
        log,
        digest(log, weights, num_actions, budget, prior),
        weights,
        budget,
        objective,
        mode,
        together,
    )


def _lam(key, problem: _Problem, lam: Any) -> float:
    if not isinstance(lam, str):
        lam = float(lam)
        _checks.require(
            0 < lam < np.inf,
            f"lam must be > 0 and finite, got {lam:g}: refit=True removes the shrinkage on the support.",
        )
        return lam
    _checks.choice("lam", lam, LAMS)
    _checks.require(
        lam != "scaled" or problem.objective == "utility",
        'lam="scaled" is for objective="utility", which has a noise level.',
    )
    data, with_constant, split = problem.data, problem.mode == "shared", problem.split(problem.data)
    if problem.objective == "utility":
        if lam == "simulated":
            chosen = utility.simulated(
                key, data, problem.log, intercept=with_constant, families=split
            )
        elif lam == "scaled":
            chosen = utility.scaled(key, data, problem.log, intercept=with_constant, families=split)
        else:
            chosen = utility.theory(data, problem.log, intercept=with_constant)
    else:
        found = null_point(data, problem.budget, problem.mode)[1]
        simulate = lam == "simulated"
        chosen = (
            tuning.simulated(key, data, found, problem.budget, split)
            if simulate
            else tuning.theory(data, found, problem.budget)
        )
    return max(
        chosen, float(np.finfo(np.float32).tiny)
    )  # a log of zero contexts has no noise to measure


def _fit_likelihood(
    problem: _Problem, lam: float, tol: float, max_steps: int, state: FitState | None, refit: bool
):
    data, budget, mode = problem.data, problem.budget, problem.mode
    start = None if state is None else _warm_start(data, state, mode)
    options: dict[str, Any] = {"budget": budget, "mode": mode, "tol": tol, "max_steps": max_steps}
    fitted = imitation.solve(data, lam, start=start, families=problem.split(data), **options)
    if fitted.status is None:
        # Even tools that nobody used look at the context at this lam (few tools, no intercepts of
        # their own): list them one by one.
        reached = FitState(
            data.used[fitted.point.tools], fitted.point.weights, _intercepts(data, fitted.point)
        )
        data = digest(
            problem.log,
            problem.weights,
            data.num_actions,
            budget,
            data.prior_weight * data.num_records,
            everyone=True,
        )
        fitted = imitation.solve(
            data,
            lam,
            start=_warm_start(data, reached, mode),
            families=problem.split(data),
            **options,
        )
    status = fitted.status
    assert status is not None
    stats: dict[str, Any] = {
        "lam_max": fitted.lam_max,
        "objective": fitted.certificate.objective,
        "gap": fitted.certificate.gap,
        "scale": fitted.scale,
        "num_steps": fitted.num_steps,
        "num_evaluations": fitted.num_evaluations,
    }
    if refit:
        support = regroup(data, fitted.point, fitted.point.norms > 0, np.zeros(0, int))
        again = imitation.solve(
            data, 0.0, start=support, ridge=1 / data.num_records, fixed=True, **options
        )
        stats |= {
            "refit_objective": again.certificate.objective,
            "refit_gap": again.certificate.inner_gap,
        }
        assert again.status is not None
        status = status if status != Status.CONVERGED else again.status
        fitted = again
    point = fitted.point
    alive = point.norms > 0
    return (
        data.used[point.tools[alive]],
        point.weights[alive],
        _intercepts(data, point),
        status,
        stats,
    )


def _intercepts(data: Digest, point: Point) -> np.ndarray:
    """One number per tool, [M]."""
    intercepts = np.full(data.num_actions, point.group_intercept[-1])
    intercepts[data.used] = point.group_intercept[data.group]
    intercepts[data.used[point.tools]] = point.intercept
    return intercepts


def _fit_utility(
    problem: _Problem, lam: float, tol: float, max_steps: int, state: FitState | None, refit: bool
):
    data, log, constant = problem.data, problem.log, problem.mode == "shared"
    start = None
    if state is not None:
        known = np.isin(state.tools, data.used)
        start = (np.searchsorted(data.used, state.tools[known]), state.weights[known])
    split = problem.split(data)
    fitted = utility.solve(
        data,
        log,
        lam,
        intercept=constant,
        tol=tol,
        max_steps=max_steps,
        start=start,
        families=split,
    )
    status, stats = (
        fitted.status,
        {"lam_max": utility.lam_max(data, log, intercept=constant, families=split), **fitted.stats},
    )
    if refit:
        fitted = utility.refit(
            data,
            log,
            fitted,
            intercept=constant,
            ridge=1 / data.num_records,
            tol=tol,
            max_steps=max_steps,
        )
        stats |= fitted.stats
        status = status if status != Status.CONVERGED else fitted.status
    stats["constant"] = fitted.constant
    return data.used[fitted.tools], fitted.weights, np.zeros(data.num_actions), status, stats


def _warm_start(data: Digest, state: FitState, mode: str) -> Point:
    """A point of this problem from another fit's: tools that this log does not use are dropped,
    groups take their members' mean intercept.
    """
    _checks.require(
        state.intercept.shape == (data.num_actions,)
        and state.weights.shape[1] == data.feature_sums.shape[1],
        f"state belongs to another problem: it has {state.intercept.size} tools and {state.weights.shape[1]} features.",
    )
    intercept = state.intercept if mode != "none" else np.zeros(data.num_actions)
    known = np.isin(state.tools, data.used)
    tools = np.searchsorted(data.used, state.tools[known])
    groups = data.group_size.size
    outside = np.ones(data.used.size, bool)
    outside[tools] = False
    sums = np.bincount(data.group[outside], intercept[data.used[outside]], groups)
    counts = np.bincount(data.group[outside], minlength=groups)
    unused = np.ones(data.num_actions, bool)
    unused[data.used] = False
    unused[state.tools] = False
    fallback = float(intercept[unused][0]) if unused.any() else float(intercept.mean())
    group_intercept = np.where(counts > 0, sums / np.maximum(counts, 1), fallback)
    return Point(
        tools,
        state.weights[known].astype(np.float64),
        intercept[data.used[tools]].astype(np.float64),
        group_intercept,
    )


def _background(
    contexts: np.ndarray,
    support: np.ndarray,
    weights: np.ndarray,
    intercept: np.ndarray,
    budget: int,
) -> np.ndarray:
    """Tools outside the support among the `budget` best of some logged context: their order never
    changes, so only the first few can be.
    """
    outside = intercept.copy()
    outside[support] = -np.inf
    first = np.argsort(-outside, kind="stable")[: min(budget, intercept.size - support.size)]
    scores = contexts @ weights.T + intercept[support]
    above = (
        np.stack([(scores >= outside[tool]).sum(1) for tool in first], axis=1)
        if first.size
        else np.zeros((1, 0))
    )
    reached = (above + np.arange(first.size) < budget).any(0)
    return np.sort(first[reached])
