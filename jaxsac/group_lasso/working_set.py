"""A host-driven working-set method for one problem on a CPU: float32 steps on few groups, certified over all of them.

A round chooses groups by ‖X_g' ρ‖ / (lam w_g), takes block descent steps on a quadratic model of the loss in float32 (`block_descent`),
then Newton steps on the groups that are not zero (`newton`), and ends with one product with all of X, which certifies and which chooses the
next groups (`rounds`). The groups worked on sit in slots (`slots`), of a few sizes, so that few programs are compiled.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac.designs import Dense
from jaxsac.group_lasso import rounds
from jaxsac.group_lasso.block_descent import Model
from jaxsac.group_lasso.fista import State
from jaxsac.group_lasso.null import refit_target
from jaxsac.group_lasso.problem import Coefficients, Problem
from jaxsac.group_lasso.rounds import Check, Point, Refit, Scaled, uncentred
from jaxsac.group_lasso.slots import Setup, WorkingSet, capacity, exchanged, full, matrix, model, padded, working_set
from jaxsac.losses import Squared
from jaxsac.solution import Solution, Status

_FEWEST, _FIRST, _SECOND = 32, 64, 128  # violators admitted in the first two rounds
_SHARE_FIRST = 8  # one violator in so many is admitted in the first
_POLISH_BELOW = 1e-5  # relative gap at which exact Newton steps may be all that is left to do
_NEWTON_STEPS = 6  # in float32, at most
_EXACT_STEPS = 2
_CYCLES = 3  # of descent in a round, at most
_SHARE, _FINEST = 0.6, 1e-6  # of the tolerance, for what Newton steps leave of a gradient; and the least that float32 can tell
_BEFORE_EXACT = 10.0  # times as much may be left before an exact step
_LARGE = 162  # groups of a support: for fewer the Newton steps cost so little that their programs are what counts
_NEAR = 0.9  # of its threshold: a group below it, and zero, is not visited
_FLOOR = 1e-3  # of a record's curvature, relative to its bound
_RAISE = 30.0  # of the floor after a round that failed: a model with too little curvature steps too far
_PATIENCE = 4  # rounds without progress
_MAX_FREE = 256  # unpenalised columns, refitted at every check
_MAX_SIZE = 128  # columns of a group, whose Gram matrix is stored
_WORTHWHILE = 1 << 18  # numbers in X below which the compiled loop is as fast


class Place(NamedTuple):
    """The working set, the point on it, and the last check: of this point if it was refitted; else of an earlier one, with rough norms."""

    set: WorkingSet
    point: Point
    check: Check


class Run(NamedTuple):
    """Where a run ended, the passes over X that it took, and its status."""

    place: Place
    num_passes: int
    status: Status


def covers(problem: Problem) -> bool:
    """Whether this method is for the problem: a large dense design on a CPU, one output, groups with a block form, few free columns."""
    if not isinstance(uncentred(problem), Dense) or problem.offset.ndim != 1 or matrix(problem).size < _WORTHWHILE:
        return False
    groups = problem.groups
    if (groups.labels is not None and groups.members is None) or groups.max_size > _MAX_SIZE or float(problem.lam) == 0:
        return False
    if next(iter(matrix(problem).devices())).platform != "cpu":
        return False
    return int(np.sum(np.asarray(problem.weights) == 0)) * groups.max_size <= _MAX_FREE


@np.errstate(all="ignore")  # the status says what is not finite
def solve_on_host(problem: Problem, tol: float, max_passes: int, at: Coefficients | None) -> Solution:
    """The solution of a problem that `covers` accepts; with the status of the last check, which need not be CONVERGED."""
    setup, place = set_up(problem, tol)
    if at is not None:
        place = place_at(setup, at)
    return jax.device_put(solution(setup, run(setup, np.asarray(problem.lam), max_passes, place)))


def set_up(problem: Problem, tol: float) -> tuple[Setup, Place]:
    """The null model, which gives the scale, and its check."""
    groups, weights = problem.groups, np.asarray(problem.weights)
    if groups.members is not None:
        rows = np.asarray(groups.members)
    else:
        rows = np.arange(groups.num_coefficients, dtype=np.int32).reshape(groups.num_groups, groups.max_size)
    free = np.flatnonzero(weights == 0).astype(np.int32)
    empty = np.ones((), weights.dtype)  # for what is not known yet, and does not matter to the null model; nor does its lam
    setup = Setup(problem, tol, rows, weights, len(free), empty, empty, empty, empty)
    chosen = working_set(setup, free)
    zeros, at_zero = rounds.nothing(problem, chosen.rows)
    target = np.asarray(4.0 * float(at_zero), weights.dtype) * np.finfo(weights.dtype).eps ** 2
    at = rounds.refit(problem, target, chosen.blocks, (zeros,), num_free=setup.num_free)
    columns, gradients = rounds.first_pass(problem, at.point.predictions)
    scale, unit = rounds.scales(problem, columns, at.point.predictions[0])
    target = np.asarray(refit_target(tol, float(scale)), weights.dtype)
    setup = setup._replace(columns=columns, unit=unit, scale=scale, target=target)
    (place,) = _certified(setup, np.asarray(problem.lam)[None], chosen, at, gradients)
    return setup, place


def place_at(setup: Setup, at: Coefficients) -> Place:
    """A checked start from coefficients [p] in centred coordinates."""
    spread = np.append(np.asarray(at.coef), np.zeros(1, at.coef.dtype))
    free = setup.weights == 0
    matter = (spread[setup.rows] != 0).any(axis=1) & ~free
    chosen = working_set(setup, np.concatenate([np.flatnonzero(free), np.flatnonzero(matter)]).astype(np.int32))
    point = Point(spread[chosen.rows], at.intercept, setup.problem.offset)  # the check recomputes the predictions
    return check(setup, np.asarray(setup.problem.lam), chosen, point)


def run(setup: Setup, lam: np.ndarray, max_passes: int, place: Place, num_passes: int = 0) -> Run:
    """Rounds until the certificate meets the tolerance or no longer falls."""
    thresholds = lam * setup.weights
    scale = float(setup.scale)
    best, least, since, floor = np.inf, np.inf, 0, _FLOOR
    while True:
        gap, rounding = float(place.check.certificate.error), float(place.check.certificate.rounding)
        # The gap need not fall in every round, for its dual point may get worse while the objective falls.
        objective = float(place.check.objective)
        since = 0 if gap < 0.9 * best or objective < least - 0.01 * gap else since + 1
        best, least = min(best, gap), min(least, objective)
        floor = min(1.0, _RAISE * floor) if since else floor
        if not np.isfinite(gap + rounding):
            return Run(place, num_passes, Status.NONFINITE)
        if gap + rounding <= setup.tol * scale:
            return Run(place, num_passes, Status.CONVERGED)
        if gap <= rounding or since >= _PATIENCE:
            return Run(place, num_passes, Status.STALLED)
        if num_passes >= max_passes:
            return Run(place, num_passes, Status.MAX_STEPS)
        few = int(np.clip(np.sum(place.check.norms > thresholds) // _SHARE_FIRST, _FEWEST, _FIRST))
        limit = {0: few, 1: _SECOND}.get(num_passes, thresholds.size)
        chosen, point = grow(setup, place, thresholds, limit)
        near = gap < _POLISH_BELOW * scale and since == 0 and chosen is place.set
        grown = Place(chosen, point, place.check)
        if near and not _entering(place, thresholds, setup.tol * scale):
            place = polish(setup, grown, thresholds, floor)
        else:
            place = improve(setup, grown, thresholds, cycles=min(num_passes + 1, _CYCLES), exact=True, floor=floor)
        place = check(setup, lam, place.set, place.point)
        num_passes += 1


def grow(setup: Setup, place: Place, thresholds: np.ndarray, limit: int) -> tuple[WorkingSet, Point]:
    """The set with the `limit` worst groups beyond their thresholds, if there are any outside; groups that are zero leave for them."""
    chosen, point, last = place
    norms = np.asarray(last.norms)
    old = chosen.groups[chosen.used]
    outside = np.ones(len(norms), bool)
    outside[old] = False
    new = np.flatnonzero(outside & (norms > thresholds)).astype(np.int32)
    if len(new) == 0:
        return chosen, point
    strength = norms / np.where(thresholds > 0, thresholds, np.inf)
    if len(new) > limit:
        new = new[np.argpartition(-strength[new], limit)[:limit]]
    coef = np.asarray(point.coef)
    needed = np.concatenate([old[(coef[chosen.used] != 0).any(axis=1) | (thresholds[old] == 0) | (strength[old] > 1.0)], new])
    # What is left of the next finer size goes to the next strongest, so that the set changes less often.
    rest = strength.copy()
    rest[needed] = -1.0
    extra = capacity(setup, len(needed)) - len(needed)
    if extra < np.sum(rest >= 0):
        more = np.argpartition(-rest, extra)[:extra]
    else:
        more = np.flatnonzero(rest >= 0)
    grown = exchanged(setup, chosen, np.concatenate([needed, more]).astype(np.int32))
    return grown, point._replace(coef=full(setup, chosen, coef)[grown.rows])


def improve(
    setup: Setup,
    place: Place,
    thresholds: np.ndarray,
    *,
    cycles: int,
    exact: bool,
    ahead: np.ndarray | None = None,
    stale: bool = False,
    floor: float = _FLOOR,
) -> Place:
    """Descent on the quadratic model with `cycles` extrapolations, from the coefficients `ahead`, and Newton steps on its support
    and on the groups that may enter it, all in float32; then a Newton step with an exact gradient if `exact`, or if it is needed.

    `place` is checked, but for groups that have come in with zeros, or comes from this function, at another lam. `stale`: the model of
    the last round will do for the descent.
    """
    problem, (chosen, point, last) = setup.problem, place
    used, norms = chosen.used, np.asarray(last.norms)
    thresholds = np.where(used, thresholds[chosen.groups], 0.0)
    quadratic = isinstance(problem.loss, Squared)
    wanted = _accuracy(thresholds, place, setup.tol * float(setup.scale))
    exact = exact or not quadratic or wanted < _FINEST
    accuracy = np.float32(max(_BEFORE_EXACT * wanted if exact else wanted, _FINEST))

    def turn(at: Point, begin: Any, visited: int, cycles: np.int32 | None, newton: bool) -> tuple[Point, Any]:
        """To the model, down there, and back."""
        scaled = chosen.scaled
        assert scaled is not None
        descended = rounds.descent_step(problem, scaled, setup.unit, thresholds, at, begin, order, np.int32(visited), cycles)
        end, residual = descended.end, descended.residual
        if newton:
            moving = expected | (np.asarray(end) != 0).any(axis=1)
            few, coef, support = _supporting(setup, scaled, descended.target.thresholds, end, moving)
            coef, residual = rounds.model_newton_steps(few, coef, residual, accuracy, np.int32(_NEWTON_STEPS))
            end, real = np.array(end), support >= 0
            end[support[real]] = np.asarray(coef)[real]
        return rounds.arrive(problem, scaled, setup.unit, thresholds, at, descended, end, residual)

    if chosen.scaled is None or not (quadratic or stale):
        chosen = _modelled(setup, chosen, point, floor)
    strength = np.where(used, norms[chosen.groups] / np.where(thresholds > 0, thresholds, 1.0), -np.inf)
    begin = point.coef if ahead is None else ahead
    nonzero, free = (np.asarray(begin) != 0).any(axis=1), used & (thresholds == 0)
    matter = nonzero | (np.asarray(point.coef) != 0).any(axis=1) | (strength > _NEAR) | free
    order, count = np.argsort(np.where(matter, -strength, np.inf)).astype(np.int32), int(matter.sum())
    # Those that descent leaves at zero may be beyond their thresholds again after the Newton steps on the others.
    expected = nonzero | (strength > 1.0) | free
    if quadratic:
        point, pulls = turn(point, begin, count, np.int32(cycles) if cycles else None, True)
    else:
        point, _ = turn(point, begin, count, np.int32(cycles), False)
        chosen = _modelled(setup, chosen, point, floor)
        point, pulls = turn(point, point.coef, 0, np.int32(0), True)
    if exact:
        point = _exact_steps(setup, chosen, thresholds, point, 1)
    rough = norms.copy()
    rough[chosen.groups[used]] = np.asarray(pulls)[used]
    return Place(chosen, point, last._replace(norms=rough))


def polish(setup: Setup, place: Place, thresholds: np.ndarray, floor: float) -> Place:
    """Newton steps with exact gradients, and nothing else."""
    chosen, point, last = place
    if chosen.scaled is None or not isinstance(setup.problem.loss, Squared):
        chosen = _modelled(setup, chosen, point, floor)
    own = np.where(chosen.used, thresholds[chosen.groups], 0.0)
    return Place(chosen, _exact_steps(setup, chosen, own, point, _EXACT_STEPS), last)


def _modelled(setup: Setup, chosen: WorkingSet, at: Point, floor: float) -> WorkingSet:
    """The set with the model of the loss at a point."""
    root = rounds.roots(setup.problem, at.predictions, np.asarray(floor, setup.weights.dtype))
    return chosen._replace(scaled=model(setup, chosen.blocks, root))


def _exact_steps(setup: Setup, chosen: WorkingSet, thresholds: np.ndarray, point: Point, num_steps: int) -> Point:
    scaled = chosen.scaled
    assert scaled is not None
    moving = (np.asarray(point.coef) != 0).any(axis=1) | (chosen.used & (thresholds == 0))
    nothing = np.zeros(point.coef.shape, np.float32)  # exact steps have thresholds and coefficients of their own
    few, _, support = _supporting(setup, scaled, nothing[:, 0], nothing, moving)
    for _ in range(num_steps):
        point = rounds.exact_newton_step(setup.problem, chosen.blocks, scaled.root, few, setup.unit, thresholds, point, support)
    return point


def _supporting(setup: Setup, scaled: Scaled, thresholds: Any, coef: Any, moving: np.ndarray) -> tuple[Model, Any, np.ndarray]:
    """The model and the coefficients of the slots marked in `moving` [C], and their numbers [S]; of all slots, and no copy, where that is as many."""
    support = np.flatnonzero(moving).astype(np.int32)
    size = capacity(setup, len(support), coarse_below=_LARGE)
    if size >= len(moving):
        return Model(scaled.blocks, scaled.grams, scaled.bounds, thresholds), coef, np.arange(len(moving), dtype=np.int32)
    support = padded(support, size, -1)
    return *rounds.supporting(scaled, thresholds, coef, support), support


def _entering(place: Place, thresholds: np.ndarray, error: float) -> bool:
    """Whether a group of the set that is zero is so far beyond its threshold that it matters to a gap of `error`."""
    chosen, point, last = place
    own = np.where(chosen.used, thresholds[chosen.groups], 0.0)
    zero = (own > 0) & (np.asarray(point.coef) == 0).all(axis=1)
    beyond = np.asarray(last.norms)[chosen.groups[zero]] / own[zero] - 1.0
    return bool(np.max(beyond, initial=0.0) > _accuracy(own, place, error))


def _accuracy(thresholds: np.ndarray, place: Place, error: float) -> float:
    """How far, relative to its threshold, a group's gradient may be off for a gap of `error`.

    The gap is of the first order in it: the dual point shrinks by the worst of these, and its value by that share of the penalty.
    """
    penalty = float(thresholds @ np.linalg.norm(np.asarray(place.point.coef), axis=1))
    return _SHARE * error / penalty if penalty > 0 else 1.0


def check(setup: Setup, lam: np.ndarray, chosen: WorkingSet, point: Point) -> Place:
    """Refit what is unpenalised and certify: one pass over X."""
    return checks(setup, lam[None], chosen, [point])[0]


def checks(setup: Setup, lams: np.ndarray, chosen: WorkingSet, points: list[Point]) -> list[Place]:
    """Points at several lams [B] refitted and certified in one pass."""
    # What is certified is what is returned: an empty slot returns nothing.
    returned = tuple(point._replace(coef=np.where(chosen.used[:, None], point.coef, setup.weights.dtype.type(0))) for point in points)
    at = rounds.refit(setup.problem, setup.target, chosen.blocks, returned, num_free=setup.num_free)
    return _certified(setup, lams, chosen, at, rounds.gradients(setup.problem, at.point.predictions))


def _certified(setup: Setup, lams: np.ndarray, chosen: WorkingSet, at: Refit, gradients: jax.Array) -> list[Place]:
    refitted = jax.tree.map(np.asarray, at.point)
    coefs = np.stack([full(setup, chosen, coef)[:-1] for coef in refitted.coef])
    without = at._replace(point=at.point._replace(coef=None))  # of another shape in every set
    certified = rounds.certify(setup.problem, lams, setup.columns, setup.scale, coefs, without, gradients)
    certified = jax.tree.map(np.asarray, certified)

    def one(k: int) -> Place:
        return Place(chosen, *jax.tree.map(lambda leaf: leaf[k], (refitted, certified)))

    return [one(k) for k in range(len(lams))]


def solution(setup: Setup, ended: Run) -> Solution:
    """The answer in NumPy arrays, the intercept that of the design as it was given, not centred."""
    chosen, point, last = ended.place
    coef: Any = full(setup, chosen, np.asarray(point.coef))[:-1]
    intercept: Any = np.asarray(point.intercept - last.centre)
    status: Any = np.int32(ended.status)
    one: Any = np.ones((), coef.dtype)
    error, rounding, scale = last.certificate
    stats = {
        "objective": last.objective,
        "gap": error,
        "rounding": rounding,
        "scale": scale,
        "num_steps": np.int32(ended.num_passes),
        "kkt": last.violation,
        "num_active": np.sum((np.asarray(point.coef) != 0).any(axis=1)),
    }
    return Solution(Coefficients(coef, intercept), status, stats, State(coef, intercept, coef, intercept, one, one))
