"""A host-driven working-set method for one problem on a CPU: float32 steps on few groups, certified
over all of them.

A round chooses groups by ‖X_g' ρ‖ / (lam w_g), takes steps on them (`host_steps`: block descent on
a quadratic model of the loss in float32, then Newton steps on the groups that are not zero), and
ends with one product with all of X, which certifies and which chooses the next groups
(`host_check`). Full passes, curved losses, and block descent are compiled (`rounds`); the rest,
whose sizes depend on the data, is NumPy's (`host_loss`, `host_newton`), on slots in memory that
stays where it is (`slots`).
"""

from typing import NamedTuple

import jax
import numpy as np

from jaxsac.designs import Dense
from jaxsac.group_lasso.methods.host.check import Place, check, place_at, set_up, solution, verdict
from jaxsac.group_lasso.methods.host.slots import Setup, WorkingSet, capacity, exchanged, full
from jaxsac.group_lasso.methods.host.steps import FLOOR, entering, improve, polish
from jaxsac.group_lasso.model.quadratic import Point, uncentred
from jaxsac.group_lasso.problem.record import Coefficients, Problem
from jaxsac.solution import Solution, Status

_FEWEST, _FIRST, _SECOND = 32, 64, 128  # violators admitted in the first two rounds
_SHARE_FIRST = 8  # one violator in so many is admitted in the first
_POLISH_BELOW = 1e-5  # relative gap at which exact Newton steps may be all that is left to do
_CYCLES = 3  # of descent in a round, at most
_RAISE = (
    30.0  # of the floor after a round that failed: a model with too little curvature steps too far
)
_PATIENCE = 4  # rounds without progress
_MAX_FREE = 256  # unpenalised columns, refitted at every check
_MAX_SIZE = 128  # columns of a group, whose Gram matrix is stored
_WORTHWHILE = 1 << 18  # numbers in X below which the compiled loop is as fast


class Run(NamedTuple):
    """Where a run ended, the passes over X that it took, and its status."""

    place: Place
    num_passes: int
    status: Status


def covers(problem: Problem) -> bool:
    """Whether this method is for the problem: a large dense design on a CPU, one output, groups
    with a block form, few free columns.
    """
    design, groups = uncentred(problem), problem.groups
    if (
        not isinstance(design, Dense)
        or problem.offset.ndim != 1
        or design.matrix.size < _WORTHWHILE
    ):
        return False
    if (
        (groups.labels is not None and groups.members is None)
        or groups.max_size > _MAX_SIZE
        or float(problem.lam) == 0
    ):
        return False
    if next(iter(design.matrix.devices())).platform != "cpu":
        return False
    return int(np.sum(np.asarray(problem.weights) == 0)) * groups.max_size <= _MAX_FREE


@np.errstate(all="ignore")  # the status says what is not finite
def solve_on_host(
    problem: Problem, tol: float, max_passes: int, at: Coefficients | None
) -> Solution:
    """The solution of a problem that `covers` accepts; with the status of the last check, which
    need not be CONVERGED.
    """
    setup, place = set_up(problem, tol)
    if at is not None:
        place = place_at(setup, at)
    return jax.device_put(solution(setup, *run(setup, np.asarray(problem.lam), max_passes, place)))


def run(setup: Setup, lam: np.ndarray, max_passes: int, place: Place, num_passes: int = 0) -> Run:
    """Rounds until the certificate meets the tolerance or no longer falls."""
    thresholds = lam * setup.weights
    scale = float(setup.scale)
    best, least, since, floor = np.inf, np.inf, 0, FLOOR
    while True:
        gap, rounding = (
            float(place.check.certificate.error),
            float(place.check.certificate.rounding),
        )
        # The gap need not fall in every round, for its dual point may get worse while the objective
        # falls.
        objective = float(place.check.objective)
        since = 0 if gap < 0.9 * best or objective < least - 0.01 * gap else since + 1
        best, least = min(best, gap), min(least, objective)
        floor = min(1.0, _RAISE * floor) if since else floor
        status = verdict(
            gap, rounding, setup.tol * scale, since < _PATIENCE, num_passes < max_passes
        )
        if status is not None:
            return Run(place, num_passes, status)
        few = int(np.clip(np.sum(place.check.norms > thresholds) // _SHARE_FIRST, _FEWEST, _FIRST))
        limit = {0: few, 1: _SECOND}.get(num_passes, thresholds.size)
        chosen, point = grow(setup, place, thresholds, limit)
        near = gap < _POLISH_BELOW * scale and since == 0 and chosen is place.set
        grown = Place(chosen, point, place.check)
        if near and not entering(setup, place, thresholds):
            place = polish(setup, grown, thresholds, floor)
        else:
            place, _ = improve(
                setup,
                grown,
                thresholds,
                cycles=min(num_passes + 1, _CYCLES),
                exact=True,
                floor=floor,
            )
        place = check(setup, lam, place.set, place.point)
        num_passes += 1


def grow(
    setup: Setup, place: Place, thresholds: np.ndarray, limit: int
) -> tuple[WorkingSet, Point]:
    """The set with the `limit` worst groups beyond their thresholds, if there are any outside;
    groups that are zero leave for them.
    """
    chosen, point, last = place
    norms = last.norms
    old = chosen.groups[chosen.used]
    outside = np.ones(len(norms), bool)
    outside[old] = False
    new = np.flatnonzero(outside & (norms > thresholds)).astype(np.int32)
    if len(new) == 0:
        return chosen, point
    strength = norms / np.where(thresholds > 0, thresholds, np.inf)
    if len(new) > limit:
        new = new[np.argpartition(-strength[new], limit)[:limit]]
    coef = point.coef
    needed = np.concatenate(
        [
            old[
                (coef[chosen.used] != 0).any(axis=1)
                | (thresholds[old] == 0)
                | (strength[old] > 1.0)
            ],
            new,
        ]
    )
    # What is left of the next finer size goes to the next strongest, so that the set changes less
    # often.
    rest = strength.copy()
    rest[needed] = -1.0
    extra = capacity(setup, len(needed)) - len(needed)
    if extra < np.sum(rest >= 0):
        more = np.argpartition(-rest, extra)[:extra]
    else:
        more = np.flatnonzero(rest >= 0)
    grown = exchanged(setup, chosen, np.concatenate([needed, more]).astype(np.int32))
    return grown, point._replace(coef=full(setup, chosen, coef)[grown.rows])
