"""The sparse policy: `jaxsac.control.fit` along a path of penalties, chosen on validation records,
its support refitted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac import control
from jaxsac.route.ridge import RidgeFit, Scores, fit_ridge, tune_ridge
from jaxsac.solution import Solution, Status

_PATH_START = 0.35  # of lam_max
_PATH_FACTOR = 0.6
# Of the fits on the way; the chosen one is then solved to `control.fit`'s default.
_PATH_TOLERANCE = 2e-3
_PATIENCE = 3  # worse fits in a row that end the path
_LEAST = 1e-4  # of lam_max: where a path within a bound ends if it never goes beyond it
_FINEST = 0.98  # its least step between two penalties


class SparseFit(NamedTuple):
    """A sparse policy and where it comes from.

    * `policy`: refitted; `scores`: the same as a ridge fit.
    * `penalised`: the policy of the fit that chose the support.
    * `certificate`: of that fit.
    * `tried`: penalties and ridges, with their validation log-likelihoods.
    * `task`: what was fitted.
    """

    policy: control.SparsePolicy
    scores: RidgeFit
    penalised: control.SparsePolicy
    certificate: dict[str, Any]
    tried: list[dict[str, Any]]
    task: control.Task


def fit_sparse(
    key: jax.Array,
    task: control.Task,
    quality: Callable[[Scores], float],
    lam: str | float,
    keep: int | None,
    ridge: float,
) -> SparseFit:
    """The policy of `control.fit` with lam a number, "simulated", or "validation": the best by
    `quality` on a path of penalties.

    The path goes down from lam_max / 3 until it gets worse. The chosen penalty is solved to
    `control.fit`'s own tolerance, and its support refitted with a ridge tuned by `quality` from
    `ridge` on (or left as it is, if that is better): the group penalty shrinks what it keeps. The
    certificate belongs to the penalised fit, which chose the support.

    * `keep`: with "validation", where more tools would look at the context, the best with at most
      so many (`best_within`); None: no bound.
    * `quality`: judges a function from feature rows [n, q] to scores [n, M]; larger is better.
    """
    tried: list[dict[str, Any]] = []

    def fit(value: str | float, state: Any = None, tol: float | None = None) -> Solution:
        return control.fit(key, task, lam=value, state=state, tol=tol)

    def judged(solution: Solution) -> dict[str, Any]:
        row = {"lam": float(solution.stats["lam"]), "kept": int(solution.value.kept.size)}
        row |= {"ridge": None, "validation": quality(_unrefitted(solution.value).scores)}
        tried.append(row)
        return row

    largest, start = None, None
    if lam == "validation":
        largest = float(control.lam_max(task))
        lam, start = _best_of_path(fit, judged, largest)
    solution = fit(lam, start)
    if keep is not None and largest is not None and solution.value.support.size > keep:
        solution = best_within(keep, largest, fit, lambda found: judged(found)["validation"])
    plain, row = _unrefitted(solution.value), judged(solution)

    def refit(ridge: float, start: RidgeFit | None) -> RidgeFit:
        sizes = task.num_actions, task.budget, ridge
        given = *sizes, plain.support, start or plain
        return fit_ridge(task.log.contexts, task.log.actions, *given, weights=task.sample_weight)

    result, refits = tune_ridge(refit, quality, ridge)
    refits = [row | {"ridge": each["ridge"], "validation": each["validation"]} for each in refits]
    tried += refits
    chosen = max(refits, key=lambda each: each["validation"])
    if chosen["validation"] <= row["validation"]:
        result, chosen = plain, row
    numbers = {name: float(solution.stats[name]) for name in ("lam", "lam_max", "gap", "scale")}
    certificate = numbers | {
        "ridge": chosen["ridge"],
        "relative_gap": numbers["gap"] / numbers["scale"],
        "status": Status(int(solution.status)).name,
        "steps": int(solution.stats["num_steps"]),
        "family_share": 0.0 if task.families is None else task.families.share,
    }
    policy = control.SparsePolicy.of(
        result.support,
        result.coef,
        result.intercept,
        task.budget,
        contexts=task.log.contexts,
        dtype=solution.value.coef.dtype,
    )
    return SparseFit(policy, result, solution.value, certificate, tried, task)


def best_within(
    keep: int,
    largest: float,
    fit: Callable[[float, Any], Solution],
    quality: Callable[[Solution], float],
) -> Solution:
    """Of the fits on a path of penalties down from `largest`, where no tool looks at the context,
    the best by `quality` in which 1 to `keep` tools do; that at `largest` if there is none.

    The first fit beyond `keep` ends the path, after ever smaller steps to just above its penalty:
    worse fits do not, and few tools are not stepped over.
    """
    best, lam, factor, beyond = fit(largest, None), largest, _PATH_FACTOR, False
    most, state = -np.inf, best.state
    while factor < _FINEST and lam > _LEAST * largest:
        found = fit(factor * lam, state)
        if found.value.support.size > keep:
            beyond = True
        else:
            lam, state, value = factor * lam, found.state, quality(found)
            if found.value.support.size and value > most:
                best, most = found, value
        factor = factor**0.5 if beyond else factor
    return best


def _best_of_path(
    fit: Callable[..., Solution], judged: Callable[[Solution], dict[str, Any]], largest: float
) -> tuple[float, Any]:
    """The best penalty of a path, and a state to start its fit from."""
    best, best_state, best_value, worse = largest, None, -np.inf, 0
    value, state = _PATH_START * largest, None
    while worse < _PATIENCE:
        solution = fit(value, state, _PATH_TOLERANCE)
        row, state, worse = judged(solution), solution.state, worse + 1
        if row["validation"] > best_value:
            best, best_state, best_value, worse = row["lam"], state, row["validation"], 0
        value *= _PATH_FACTOR
    return best, best_state


def _unrefitted(policy: control.SparsePolicy) -> RidgeFit:
    coef, intercept = np.asarray(policy.coef, float), np.asarray(policy.intercept, float)
    return RidgeFit(np.asarray(policy.support), coef, intercept, float("nan"), float("nan"), 0)
