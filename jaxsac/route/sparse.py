"""The sparse policy: `jaxsac.control.fit` along a path of penalties, chosen on validation records, its support refitted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import control
from jaxsac.route.ridge import RidgeFit, fit_ridge
from jaxsac.solution import Status

PATH_FACTOR = 0.85
PATH_TOLERANCE = 1e-4  # of the fits on the way; the chosen one is then solved to `control.fit`'s default
PATIENCE = 4

Judge = Callable[[Callable[[np.ndarray], np.ndarray]], float]
"""How well scores do on validation records: takes a function from feature rows [n, q] to scores [n, M]; larger is better."""


class SparseFit(NamedTuple):
    """The policy (refitted), its scores as a ridge fit, the certificate of the fit that chose the support, and what was tried."""

    policy: control.SparsePolicy
    scores: RidgeFit
    certificate: dict[str, Any]
    tried: list[dict[str, Any]]
    state: Any


def fit_sparse(
    key: jax.Array,
    features: np.ndarray,
    actions: np.ndarray,
    num_tools: int,
    budget: int,
    *,
    lam: str | float,
    keep: int,
    ridges: tuple[float, ...],
    judge: Judge,
) -> SparseFit:
    """Fit with lam a number, "simulated", or "validation": the best validated of a path that ends where more than `keep` tools would be kept.

    The support is then refitted with a ridge chosen among `ridges` by the same judge (or left as it is, if that is better): the group penalty shrinks
    what it keeps. The certificate belongs to the penalised fit, which chose the support.
    """
    log = control.Log(features, actions, np.ones(len(features)))
    tried = []

    def fit(value, state=None, tol=None):
        return control.fit(key, log, num_actions=num_tools, budget=budget, lam=value, state=state, tol=tol)

    def judged(solution):
        result = _unrefitted(solution.value)
        row = {"lam": float(solution.stats["lam"]), "kept": int(solution.value.kept.size), "ridge": None, "validation": judge(result.scores)}
        tried.append(row)
        return result, row

    if lam == "validation":
        value = 0.7 * float(control.lam_max(log, num_actions=num_tools, budget=budget))
        best, since, state = None, 0, None
        while since < PATIENCE:
            solution = fit(value, state, PATH_TOLERANCE)
            state = solution.state
            if solution.value.kept.size > keep:
                break
            _, row = judged(solution)
            best, since = (row, 0) if best is None or row["validation"] > best["validation"] else (best, since + 1)
            best_state = state if since == 0 else best_state
            value *= PATH_FACTOR
        if best is None:
            solution = fit(value, state)
        else:
            solution = fit(best["lam"], best_state)
    else:
        solution = fit(lam)
    result, row = judged(solution)
    chosen = row
    for ridge in ridges:
        refitted = fit_ridge(features, actions, num_tools, budget, ridge, support=np.asarray(solution.value.support), start=result)
        row = row | {"ridge": ridge, "validation": judge(refitted.scores)}
        tried.append(row)
        if row["validation"] > chosen["validation"]:
            result, chosen = refitted, row
    stats = solution.stats
    certificate = {
        "lam": float(stats["lam"]),
        "lam_max": float(stats["lam_max"]),
        "gap": float(stats["gap"]),
        "ridge": chosen["ridge"],
        "relative_gap": float(stats["gap"] / stats["scale"]),
        "status": Status(int(solution.status)).name,
        "steps": int(stats["num_steps"]),
    }
    return SparseFit(_policy(result, features, solution.value, budget), result, certificate, tried, solution.state)


def _unrefitted(policy: control.SparsePolicy) -> RidgeFit:
    arrays = (np.asarray(policy.support), np.asarray(policy.weights, float), np.asarray(policy.intercept, float))
    return RidgeFit(*arrays, objective=float("nan"), gradient=float("nan"), evaluations=0)


def _policy(result: RidgeFit, features: np.ndarray, fitted: control.SparsePolicy, budget: int) -> control.SparsePolicy:
    """The policy of refitted scores. Its background: tools outside the support that are among the B best of some training context."""
    outside = result.intercept.copy()
    outside[result.support] = -np.inf
    first = np.argsort(-outside, kind="stable")[: min(budget, outside.size - result.support.size)]
    scores = features @ result.weights.T + result.intercept[result.support]
    above = (scores[:, :, None] >= outside[first]).sum(axis=1)
    reached = (above + np.arange(first.size) < budget).any(axis=0)
    return control.SparsePolicy(
        positions=jnp.asarray(result.support, jnp.int32),
        weights=jnp.asarray(result.weights, fitted.weights.dtype),
        intercept=jnp.asarray(result.intercept, fitted.intercept.dtype),
        background=jnp.asarray(np.sort(first[reached]), jnp.int32),
        tools=None,
        budget=budget,
    )
