"""The objectives "imitation" and "weighted": the budgeted likelihood, its lam and its fit."""

from typing import Any

import numpy as np

from jaxsac.control.data.digest import Digest
from jaxsac.control.fits import tuning
from jaxsac.control.imitation.certificate import dual_gap, largest_norm
from jaxsac.control.imitation.solve import solve
from jaxsac.control.imitation.working import (
    FitState,
    intercepts,
    null_point,
    point_from,
    regroup,
    working_set,
)
from jaxsac.solution import Status

MAX_STEPS = 500


def lam_max(data: Digest) -> float:
    point, found = null_point(data)
    gap = dual_gap(data, working_set(data, point.tools), point, found, 0.0, 0.0)
    return largest_norm(data, gap)


LAMS = {"simulated": tuning.simulated, "theory": tuning.theory}


def fit(
    data: Digest, lam: float, *, tol: float, max_steps: int, state: FitState | None, refit: bool
) -> tuple[FitState, Status, dict[str, Any]]:
    """The penalised fit, its status and numbers; with `refit` the one on its support, by a ridge of
    1/T alone.
    """
    start = None if state is None else point_from(data, *state)
    fitted = solve(data, lam, tol=tol, max_steps=max_steps, start=start)
    stats: dict[str, Any] = {
        "lam_max": fitted.lam_max,
        "objective": fitted.gap.objective,
        **fitted.outcome.stats,
        "num_evaluations": fitted.num_evaluations,
    }
    status, data = fitted.outcome.status, fitted.data
    if refit:
        support = regroup(data, fitted.point, fitted.point.norms > 0, np.zeros(0, int))
        single, ridge = data._replace(families=None), 1 / data.task.num_records
        fitted = solve(
            single, 0.0, tol=tol, max_steps=max_steps, start=support, ridge=ridge, fixed=True
        )
        stats |= {"refit_objective": fitted.gap.objective, "refit_gap": fitted.gap.inner_gap}
        if status == Status.CONVERGED:
            status, stats["reason"] = fitted.outcome.status, fitted.outcome.stats["reason"]
    point, alive = fitted.point, fitted.point.norms > 0
    reached = FitState(data.used[point.tools[alive]], point.coef[alive], intercepts(data, point))
    return reached, status, stats
