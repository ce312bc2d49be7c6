"""A host-driven working-set method for one problem on a CPU: float32 steps on few groups, certified
over all of them.

A round chooses groups by ‖X_g' ρ‖ / (lam w_g), takes steps on them (`steps`: block descent on a
quadratic model of the loss in float32, then Newton steps on the groups that are not zero), and ends
with one product with all of X, which certifies and which chooses the next groups (`check`). Full
passes, curved losses, and block descent are compiled (`kernels`); the rest, whose sizes depend on
the data, is NumPy's (`loss`, `newton_numpy`), on slots in memory that stays where it is (`slots`).
"""

from typing import NamedTuple

import jax
import numpy as np

from jaxsac._iterate import Certificate, Outcome
from jaxsac._rounds import Progress, rounds
from jaxsac.designs import Dense
from jaxsac.group_lasso.methods.host.check import Place, check, place_at, set_up, solution
from jaxsac.group_lasso.methods.host.slots import Setup, capacity, exchanged, full
from jaxsac.group_lasso.methods.host.steps import FLOOR, Plan, entering, improve, polish
from jaxsac.group_lasso.methods.limits import Limits
from jaxsac.group_lasso.methods.loop.programs import again_after, finished
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, recentre, uncentred
from jaxsac.group_lasso.problem.record import FEW_FREE
from jaxsac.solution import Solution, Status

_FEWEST, _FIRST, _SECOND = 32, 64, 128  # violators admitted in the first two rounds
_SHARE_FIRST = 8  # one violator in so many is admitted in the first
_POLISH_BELOW = 1e-5  # relative gap at which exact Newton steps may be all that is left to do
_CYCLES = 3  # of descent in a round, at most
# Of the floor after a round that failed: a model with too little curvature steps too far.
_RAISE = 30.0
_PATIENCE = 4  # rounds without progress
_MAX_SIZE = 128  # columns of a group, whose Gram matrix is stored
_WORTHWHILE = 1 << 18  # numbers in X below which the compiled loop is as fast


class At(NamedTuple):
    """A round's place, and the floor of the curvatures of its model."""

    place: Place
    floor: float


def applies(problem: Objective) -> bool:
    """Whether this method is for a concrete problem: a separable loss of one output, a large dense
    design on a CPU, groups with a block form, few free columns, lam > 0, and nothing in the penalty
    beside the norms of the groups.
    """
    design, groups = uncentred(problem), problem.groups
    if not isinstance(design, Dense) or problem.offset.ndim != 1 or not problem.loss.separable:
        return False
    if design.matrix.size < _WORTHWHILE or problem.extra is not None or problem.free_lam:
        return False
    if (groups.labels is not None and groups.members is None) or groups.max_size > _MAX_SIZE:
        return False
    if problem.most_free > FEW_FREE:
        return False
    return next(iter(design.matrix.devices())).platform == "cpu"


def solve(problem: Objective, limits: Limits, at: Coefficients | None) -> Solution:
    """The solution from a point in centred coordinates. Where the loop stalls too, its point may be
    near enough for a round's model of the loss to hold.
    """
    tol, max_passes = float(limits.tol), int(limits.max_steps)
    found = finished(problem, limits, solve_in(problem, tol, max_passes, at))
    if int(found.status) != Status.STALLED:
        return found
    near = recentre(problem, Coefficients(found.state.coef, found.state.intercept))
    again = solve_in(problem, tol, max_passes, near)
    return again_after(found, again) if int(again.status) == Status.CONVERGED else found


@np.errstate(all="ignore")  # the status says what is not finite
def solve_in(problem: Objective, tol: float, max_passes: int, at: Coefficients | None) -> Solution:
    """The solution with the status of the last check, which need not be CONVERGED."""
    setup, place = set_up(problem, tol)
    if at is not None:
        place = place_at(setup, at)
    return jax.device_put(solution(setup, run(setup, np.asarray(problem.lam), max_passes, place)))


def run(
    setup: Setup, lam: np.ndarray, max_passes: int, place: Place, num_passes: int = 0
) -> Outcome:
    """Rounds until the certificate meets the tolerance or no longer falls, to an Outcome whose
    state is an `At`; `num_passes` have been taken, and count as its steps too.
    """
    thresholds, best, least = lam * setup.weights, np.inf, np.inf

    def useful(at: At, certificate: Certificate) -> bool:
        # The gap need not fall in every round, for its dual point may get worse while the objective
        # falls.
        nonlocal best, least
        gap, objective = float(certificate.error), float(at.place.check.objective)
        better = gap < 0.9 * best or objective < least - 0.01 * gap
        best, least = min(best, gap), min(least, objective)
        return better

    def step(at: At, progress: Progress) -> At:
        place, number = at.place, num_passes + progress.num_steps
        floor = min(1.0, _RAISE * at.floor) if progress.fruitless else at.floor
        few = int(np.clip(np.sum(place.check.norms > thresholds) // _SHARE_FIRST, _FEWEST, _FIRST))
        limit = {0: few, 1: _SECOND}.get(number, thresholds.size)
        grown = grow(setup, place, thresholds, limit)
        near = float(place.check.certificate.error) < _POLISH_BELOW * float(setup.scale)
        near = near and not progress.fruitless and grown.set is place.set
        if near and not entering(setup, place, thresholds):
            moved = polish(setup, grown, thresholds, floor)
        else:
            plan = Plan(cycles=min(number + 1, _CYCLES), exact=True, floor=floor)
            moved, _ = improve(setup, grown, thresholds, plan)
        return At(check(setup, lam, moved.set, moved.point), floor)

    ended = rounds(
        step,
        lambda at: at.place.check.certificate,
        At(place, FLOOR),
        tol=setup.tol,
        max_steps=max_passes - num_passes,
        patience=_PATIENCE,
        useful=useful,
    )
    return ended._replace(num_steps=np.int32(num_passes + ended.num_steps))


def grow(setup: Setup, place: Place, thresholds: np.ndarray, limit: int) -> Place:
    """The place with the `limit` worst groups beyond their thresholds in its set, if there are any
    outside; groups that are zero leave for them.
    """
    chosen, point, last = place
    norms = last.norms
    old = chosen.groups[chosen.used]
    outside = np.ones(len(norms), bool)
    outside[old] = False
    new = np.flatnonzero(outside & (norms > thresholds)).astype(np.int32)
    if len(new) == 0:
        return place
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
    return Place(grown, point._replace(coef=full(setup, chosen, coef)[grown.rows]), last)
