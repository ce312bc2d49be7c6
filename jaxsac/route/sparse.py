"""The sparse policy: `jaxsac.control.fits.fit` along a path of penalties, chosen on validation records,
its support refitted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac import control
from jaxsac.route.ridge import RidgeFit, Scores, fit_ridge, tune_ridge
from jaxsac.solution import Status

PATH_START = 0.35  # of lam_max
PATH_FACTOR = 0.6
PATH_TOLERANCE = (
    2e-3  # of the fits on the way; the chosen one is then solved to `control.fit`'s default
)
PATIENCE = 3  # worse fits in a row that end the path
NEAR = 0.98  # of the tools that may be kept: near enough
REFINEMENTS = 4


class SparseFit(NamedTuple):
    """The policy (refitted), its scores as a ridge fit, the certificate of the fit that chose the
    support, what was tried, and that fit.
    """

    policy: control.SparsePolicy
    scores: RidgeFit
    certificate: dict[str, Any]
    tried: list[dict[str, Any]]
    penalised: control.SparsePolicy


def fit_sparse(
    key: jax.Array,
    features: np.ndarray,
    actions: np.ndarray,
    num_tools: int,
    budget: int,
    *,
    lam: str | float,
    keep: int,
    ridge: float,
    quality: Callable[[Scores], float],
    start: control.FitState | None = None,
    families: np.ndarray | None = None,
    family_share: float = 0.0,
) -> SparseFit:
    """The policy of `control.fit` with lam a number, "simulated", or "validation": the best by
    `quality` on a path of penalties.

    The path goes down from lam_max / 3 until it gets worse, or until more than `keep` tools would
    be kept; then it is refined between the last two until nearly `keep` tools are. The chosen
    penalty is solved to `control.fit`'s own tolerance, and its support refitted with a ridge tuned
    by `quality` from `ridge` on (or left as it is, if that is better): the group penalty shrinks
    what it keeps. The certificate belongs to the penalised fit, which chose the support. `start`:
    where that fit begins (an earlier router's parameters). `families` int [M] and `family_share`:
    as in `control.fit`.
    """
    log = control.Log(features, actions, np.ones(len(features)))
    tried: list[dict[str, Any]] = []
    shape: dict[str, Any] = {
        "num_actions": num_tools,
        "budget": budget,
        "families": families,
        "family_share": family_share,
    }

    def fit(value, state=None, tol=None):
        return control.fit(key, log, lam=value, state=state, tol=tol, **shape)

    def judged(solution) -> dict[str, Any]:
        value = quality(_unrefitted(solution.value).scores)
        tried.append(
            {
                "lam": float(solution.stats["lam"]),
                "kept": int(solution.value.kept.size),
                "ridge": None,
                "validation": value,
            }
        )
        return tried[-1]

    if lam == "validation":
        lam, state = _best_of_path(fit, judged, float(control.lam_max(log, **shape)), keep)
        solution = fit(lam, state)
    else:
        solution = fit(lam, start)
    plain = _unrefitted(solution.value)
    row = judged(solution)

    def refit(ridge: float, start: RidgeFit | None) -> RidgeFit:
        return fit_ridge(
            features, actions, num_tools, budget, ridge, support=plain.support, start=start or plain
        )

    result, refits = tune_ridge(refit, quality, ridge)
    refits = [
        {
            "lam": row["lam"],
            "kept": row["kept"],
            "ridge": each["ridge"],
            "validation": each["validation"],
        }
        for each in refits
    ]
    tried += refits
    chosen = max(refits, key=lambda each: each["validation"])
    if chosen["validation"] <= row["validation"]:
        result, chosen = plain, row
    stats = solution.stats
    certificate = {
        "lam": float(stats["lam"]),
        "lam_max": float(stats["lam_max"]),
        "gap": float(stats["gap"]),
        "ridge": chosen["ridge"],
        "relative_gap": float(stats["gap"] / stats["scale"]),
        "status": Status(int(solution.status)).name,
        "steps": int(stats["num_steps"]),
        "family_share": 0.0 if families is None else float(family_share),
    }
    return SparseFit(
        _policy(result, features, solution.value, budget),
        result,
        certificate,
        tried,
        solution.value,
    )


def _best_of_path(fit, judged, largest: float, keep: int) -> tuple[float, Any]:
    """The best penalty of a path with at most `keep` kept tools, and a state to start its fit
    from.
    """
    value, state, best, best_state, worse = PATH_START * largest, None, None, None, 0
    few, many = (largest, 0), None  # (lam, kept) on either side of `keep`
    refinements = 0
    while worse < PATIENCE and refinements <= REFINEMENTS and few[1] < NEAR * keep:
        solution = fit(value, state, PATH_TOLERANCE)
        kept = int(solution.value.kept.size)
        if kept <= keep:
            state, few = solution.state, (value, kept)
            row = judged(solution)
            if best is None or row["validation"] > best["validation"]:
                best, best_state, worse = row, state, 0
            else:
                worse += 1
        else:
            many = (value, kept)
        if many is None:
            value *= PATH_FACTOR
        else:
            # The number of kept tools is close to linear in the logarithm of the penalty.
            share = float(np.clip((0.99 * keep - few[1]) / (many[1] - few[1]), 0.1, 0.9))
            value = few[0] * (many[0] / few[0]) ** share
            refinements += 1
    if (
        best is None
    ):  # keep is too small for every fit tried: the null model, with its most frequent tools
        return largest, None
    return best["lam"], best_state


def _unrefitted(policy: control.SparsePolicy) -> RidgeFit:
    arrays = (
        np.asarray(policy.support),
        np.asarray(policy.coef, float),
        np.asarray(policy.intercept, float),
    )
    return RidgeFit(*arrays, objective=float("nan"), gradient=float("nan"), evaluations=0)


def _policy(
    result: RidgeFit, features: np.ndarray, fitted: control.SparsePolicy, budget: int
) -> control.SparsePolicy:
    """The policy of refitted scores; its background is found in the training contexts."""
    return control.SparsePolicy.of(
        result.support,
        result.weights,
        result.intercept,
        budget,
        contexts=features,
        dtype=fitted.coef.dtype,
    )
