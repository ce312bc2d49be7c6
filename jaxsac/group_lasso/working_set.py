"""A host-driven working-set method for one problem on a CPU: float32 steps on few groups, certified over all of them.

A round chooses groups by ‖X_g' ρ‖ / (lam w_g), takes block descent steps on a quadratic model of the loss in float32 (`block_descent`),
then Newton steps on the groups that are not zero (`host_newton`), and ends with one product with all of X, which certifies and which
chooses the next groups. Full passes, what asks the loss, and block descent are compiled (`rounds`); the rest, whose sizes depend on the
data, is NumPy's, on slots in memory that stays where it is (`slots`).
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac._iterate import Certificate
from jaxsac.designs import Dense
from jaxsac.group_lasso import rounds
from jaxsac.group_lasso.fista import State
from jaxsac.group_lasso.host_newton import newton_direction, newton_steps
from jaxsac.group_lasso.newton import admissible
from jaxsac.group_lasso.null import refit_target
from jaxsac.group_lasso.problem import Coefficients, Problem
from jaxsac.group_lasso.quadratic import LENGTHS, Point, best_step, intercept_change, model_target, over_root, uncentred, without_mean
from jaxsac.group_lasso.rounds import Refit
from jaxsac.group_lasso.slots import (
    Setup,
    WorkingSet,
    capacity,
    combined,
    exchanged,
    full,
    make,
    model_on,
    modelled,
    products,
    sizes_of,
    visited,
    working_set,
)
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
_NEAR = 0.9  # of its threshold: a group below it, and zero, is not visited
_FLOOR = 1e-3  # of a record's curvature, relative to its bound
_RAISE = 30.0  # of the floor after a round that failed: a model with too little curvature steps too far
_PATIENCE = 4  # rounds without progress
_MAX_FREE = 256  # unpenalised columns, refitted at every check
_MAX_SIZE = 128  # columns of a group, whose Gram matrix is stored
_WORTHWHILE = 1 << 18  # numbers in X below which the compiled loop is as fast


class Check(NamedTuple):
    """A full pass: the certificate, the objective, the largest violation of the optimality conditions, ‖X_g' ρ‖ [G], and the mean of X b."""

    certificate: Certificate
    objective: Any
    violation: Any
    norms: Any
    centre: Any


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
    design, groups = uncentred(problem), problem.groups
    if not isinstance(design, Dense) or problem.offset.ndim != 1 or design.matrix.size < _WORTHWHILE:
        return False
    if (groups.labels is not None and groups.members is None) or groups.max_size > _MAX_SIZE or float(problem.lam) == 0:
        return False
    if next(iter(design.matrix.devices())).platform != "cpu":
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
    matrix = np.asarray(uncentred(problem).matrix)
    nothing = np.zeros(len(matrix), weights.dtype)
    at_zero = float(rounds.value(problem, nothing)) if len(free) or problem.intercept else 0.0
    target = np.asarray(4.0 * at_zero * np.finfo(weights.dtype).eps ** 2, weights.dtype)
    later: Any = np.ones((), weights.dtype)  # what the null model will tell, and does not matter to it; nor does its lam
    setup = Setup(problem, tol, matrix, rows, weights, len(free), columns=later, bound=later, unit=later, scale=later, target=target)
    chosen = working_set(setup, free)
    zeros = Point(np.zeros(chosen.rows.shape, weights.dtype), np.zeros((), weights.dtype), nothing)
    points, at = _refitted(setup, chosen, [zeros])
    columns, gradients = rounds.first_pass(problem, at.predictions)
    scale, unit, bound = map(np.asarray, rounds.scales(problem, columns, at.predictions[0]))
    target = np.asarray(refit_target(tol, float(scale)), weights.dtype)
    setup = setup._replace(columns=np.asarray(columns), bound=bound, unit=unit, scale=scale, target=target)
    (place,) = _certified(setup, np.asarray(problem.lam)[None], chosen, points, at, gradients)
    return setup, place


def place_at(setup: Setup, at: Coefficients) -> Place:
    """A checked start from coefficients [p] in centred coordinates."""
    spread = np.append(np.asarray(at.coef), np.zeros(1, at.coef.dtype))
    free = setup.weights == 0
    matter = (spread[setup.rows] != 0).any(axis=1) & ~free
    chosen = working_set(setup, np.concatenate([np.flatnonzero(free), np.flatnonzero(matter)]).astype(np.int32))
    point = Point(spread[chosen.rows], np.asarray(at.intercept), np.asarray(setup.problem.offset))  # the check recomputes the predictions
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
            place, _ = improve(setup, grown, thresholds, cycles=min(num_passes + 1, _CYCLES), exact=True, floor=floor)
        place = check(setup, lam, place.set, place.point)
        num_passes += 1


def grow(setup: Setup, place: Place, thresholds: np.ndarray, limit: int) -> tuple[WorkingSet, Point]:
    """The set with the `limit` worst groups beyond their thresholds, if there are any outside; groups that are zero leave for them."""
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
) -> tuple[Place, np.ndarray]:
    """Descent on the quadratic model with `cycles` extrapolations, from the coefficients `ahead`, and Newton steps on its support
    and on the groups that may enter it, all in float32; then a Newton step with an exact gradient if `exact`, or if it is needed. Returns the
    place and, roughly, ρ there.

    `place` is checked, but for groups that have come in with zeros, or comes from `roughly`, at another lam. `stale`: the model of
    the last round will do for the descent.
    """
    chosen, point, last = place
    used = chosen.used
    thresholds = np.where(used, thresholds[chosen.groups], 0)
    quadratic = isinstance(setup.problem.loss, Squared)
    wanted = _accuracy(thresholds, place, setup.tol * float(setup.scale))
    exact = exact or not quadratic or wanted < _FINEST
    accuracy = max(_BEFORE_EXACT * wanted if exact else wanted, _FINEST)
    strength = np.where(used, last.norms[chosen.groups] / np.where(thresholds > 0, thresholds, 1), -np.inf)
    begin = point.coef if ahead is None else ahead
    nonzero, free = begin.any(axis=1), used & (thresholds == 0)
    matter = nonzero | point.coef.any(axis=1) | (strength > _NEAR) | free
    order = np.argsort(np.where(matter, -strength, np.inf)).astype(np.int32)[: np.count_nonzero(matter)]
    # Those that descent leaves at zero may be beyond their thresholds again after the Newton steps on the others.
    expected = nonzero | (strength > 1.0) | free
    if chosen.root is None or not (quadratic or stale):
        chosen = modelled(chosen, _root(setup, point, floor))
    make(setup, chosen, used if quadratic else matter)
    if quadratic:
        point, slope = _turn(setup, chosen, thresholds, point, begin, order, cycles or None, expected, accuracy)
    else:
        point, _ = _turn(setup, chosen, thresholds, point, begin, order, cycles, None, accuracy)
        chosen = modelled(chosen, _root(setup, point, floor))
        make(setup, chosen, expected | point.coef.any(axis=1))
        point, slope = _turn(setup, chosen, thresholds, point, point.coef, order[:0], None, expected, accuracy)
    if exact:
        point = _exact_steps(setup, chosen, thresholds, point, 1)
    return Place(chosen, point, last), slope


def roughly(place: Place, slope: np.ndarray) -> Place:
    """The place with ‖X_g' ρ‖ of the set's groups as the model has them, `slope` being ρ there, until a pass says better."""
    chosen, used, norms = place.set, place.set.used, place.check.norms.copy()
    norms[chosen.groups[used]] = sizes_of(products(chosen.blocks, slope))[used]
    return place._replace(check=place.check._replace(norms=norms))


def _turn(
    setup: Setup,
    chosen: WorkingSet,
    thresholds: np.ndarray,
    point: Point,
    begin: np.ndarray,
    order: np.ndarray,
    cycles: int | None,
    expected: np.ndarray | None,
    accuracy: float,
) -> tuple[Point, Any]:
    """To the model, down there from the coefficients `begin` over the slots `order`, by Newton steps on the support and on what is `expected` in
    it (None: no such steps), and back: as far towards the model's end as the objective falls. And h^½ r at that end, in ρ's units."""
    problem, root = setup.problem, chosen.root
    assert root is not None
    slope = np.asarray(rounds.residual(problem, point.predictions))
    target = model_target(problem.intercept, root, slope, thresholds, setup.unit)
    start = (point.coef / target.step).astype(np.float32)
    end, residual = start, target.residual
    if begin is not point.coef:
        end = (begin / target.step).astype(np.float32)
        residual = residual - combined(chosen.scaled, end - start)
    if len(order):
        scaled, bounds = visited(chosen)
        room = len(bounds) - len(end)
        padded = np.pad(end, ((0, room), (0, 0))), np.pad(order, (0, len(bounds) - len(order)))
        count, cycles_ = np.int32(len(order)), None if cycles is None else np.int32(cycles)
        descended = rounds.descend(scaled, bounds, np.pad(target.thresholds, (0, room)), padded[0], residual, padded[1], count, cycles_)
        end, residual = np.asarray(descended[0])[: len(end)], np.asarray(descended[1])
    if expected is not None:
        support = _listed(chosen, expected | end.any(axis=1))
        own, residual = newton_steps(model_on(chosen, support, target.thresholds), end[support], residual, accuracy, _NEWTON_STEPS)
        end = end.copy()
        end[support] = own
    # Differences of float32 numbers, so that what did not move does not move by a rounding; what became zero becomes exactly that.
    direction = np.where(end == 0, -point.coef, (end - start) * target.step)
    fallen = (target.residual - residual) * (target.step * setup.unit)
    moved = _centred(problem, over_root(root, fallen))
    slope_there = root * residual * (target.step * setup.unit)
    return _advance(setup, root, thresholds, point, slope, direction, moved), slope_there


def _advance(setup: Setup, root: Any, thresholds: Any, point: Point, slope: Any, direction: Any, moved: Any) -> Point:
    """The best of a few lengths of a step, the intercept following as the model has it. `slope` is ρ at the point, `moved` the predictions of
    the direction."""
    shift = intercept_change(setup.problem.intercept, root, slope, moved)
    moved = moved + shift
    lengths = np.asarray(LENGTHS, moved.dtype)
    norms = sizes_of(point.coef + lengths[:, None, None] * direction)
    length, still = best_step(np.asarray(rounds.values_along(setup.problem, point.predictions, moved)) + norms @ thresholds)
    if still:
        return point
    return Point(point.coef + length * direction, point.intercept + length * shift, point.predictions + length * moved)


def polish(setup: Setup, place: Place, thresholds: np.ndarray, floor: float) -> Place:
    """Newton steps with exact gradients, and nothing else."""
    chosen, point, last = place
    own = np.where(chosen.used, thresholds[chosen.groups], 0)
    if chosen.root is None or not isinstance(setup.problem.loss, Squared):
        chosen = modelled(chosen, _root(setup, point, floor))
    make(setup, chosen, point.coef.any(axis=1) | (own == 0))
    return Place(chosen, _exact_steps(setup, chosen, own, point, _EXACT_STEPS), last)


def _exact_steps(setup: Setup, chosen: WorkingSet, thresholds: np.ndarray, point: Point, num_steps: int) -> Point:
    """Newton steps with the gradient, and the predictions it is of, in the arrays' own dtype: float32 ends at a gap of about 1e-6."""
    problem, root = setup.problem, chosen.root
    assert root is not None
    support = _listed(chosen, point.coef.any(axis=1) | (chosen.used & (thresholds == 0)))
    few, own = model_on(chosen, support, thresholds), thresholds[support]
    for _ in range(num_steps):
        coef = point.coef[support]
        point = point._replace(predictions=_centred(problem, combined(chosen.blocks, point.coef)) + point.intercept)
        slope = np.asarray(rounds.residual(problem, point.predictions))
        norms = sizes_of(coef)
        pull = (own / np.where(norms == 0, 1, norms))[:, None] * coef
        descent = products(chosen.blocks, without_mean(problem.intercept, root, slope))[support] - pull
        descent[(norms == 0) & (own > 0)] = 0
        size = np.max(np.abs(descent), initial=0)
        size = size if size > 0 else 1.0
        target = model_target(problem.intercept, root, slope, own, setup.unit)
        model = few._replace(thresholds=target.thresholds)
        found = newton_direction(model, (coef / target.step).astype(np.float32), (descent / size).astype(np.float32))
        direction = np.zeros_like(point.coef)
        direction[support] = admissible(coef, found * (size / setup.unit**2), own)
        # Their sum in float32 will do to find a length: predictions are recomputed after it.
        moved = over_root(root, combined(few.blocks, (direction[support] / target.step).astype(np.float32)) * (target.step * setup.unit))
        point = _advance(setup, root, thresholds, point, slope, direction, _centred(problem, moved))
    return point


def _listed(chosen: WorkingSet, marked: np.ndarray) -> np.ndarray:
    """The marked slots; or all, which are no copy, where most are marked and the model is made on all."""
    slots = np.flatnonzero(marked)
    many = 4 * len(slots) > 3 * len(marked) and bool(np.all(chosen.store.made[: len(marked)] | ~chosen.used))
    return np.arange(len(marked)) if many else slots


def _root(setup: Setup, at: Point, floor: float) -> np.ndarray:
    """h^½ of the loss at a point."""
    return np.asarray(rounds.roots(setup.problem, at.predictions, np.asarray(floor, setup.weights.dtype)))


def _centred(problem: Problem, predictions: np.ndarray) -> np.ndarray:
    return predictions - predictions @ np.asarray(problem.design.shares) if problem.intercept else predictions


def _entering(place: Place, thresholds: np.ndarray, error: float) -> bool:
    """Whether a group of the set that is zero is so far beyond its threshold that it matters to a gap of `error`."""
    chosen, point, last = place
    own = np.where(chosen.used, thresholds[chosen.groups], 0.0)
    zero = (own > 0) & ~point.coef.any(axis=1)
    beyond = last.norms[chosen.groups[zero]] / own[zero] - 1.0
    return bool(np.max(beyond, initial=0.0) > _accuracy(own, place, error))


def _accuracy(thresholds: np.ndarray, place: Place, error: float) -> float:
    """How far, relative to its threshold, a group's gradient may be off for a gap of `error`.

    The gap is of the first order in it: the dual point shrinks by the worst of these, and its value by that share of the penalty.
    """
    penalty = float(thresholds @ sizes_of(place.point.coef))
    return _SHARE * error / penalty if penalty > 0 else 1.0


def check(setup: Setup, lam: np.ndarray, chosen: WorkingSet, point: Point) -> Place:
    """Refit what is unpenalised and certify: one pass over X."""
    return checks(setup, lam[None], chosen, [point])[0]


def checks(setup: Setup, lams: np.ndarray, chosen: WorkingSet, points: list[Point]) -> list[Place]:
    """Points at several lams [B] refitted and certified in one pass."""
    # What is certified is what is returned: an empty slot returns nothing.
    returned = [point._replace(coef=np.where(chosen.used[:, None], point.coef, 0)) for point in points]
    refitted, at = _refitted(setup, chosen, returned)
    return _certified(setup, lams, chosen, refitted, at, rounds.gradients(setup.problem, at.predictions))


def _refitted(setup: Setup, chosen: WorkingSet, points: list[Point]) -> tuple[list[Point], Refit]:
    """The points with predictions recomputed and what is unpenalised at its best."""
    problem, count = setup.problem, setup.num_free
    coefs, intercepts = np.stack([point.coef for point in points]), np.stack([point.intercept for point in points])
    predictions = combined(chosen.blocks, coefs)
    if count or problem.intercept:
        blocks = chosen.blocks[:count]
        at = rounds.refit(problem, setup.target, blocks, coefs[:, :count], intercepts, predictions, num_free=count)
        at = jax.tree.map(np.asarray, at)
        coefs[:, :count] = at.free
    else:
        nothing = np.zeros_like(intercepts)
        at = Refit(coefs[:, :0], intercepts, predictions, predictions, nothing, nothing)
    return [Point(*leaves) for leaves in zip(coefs, at.intercept, at.predictions, strict=True)], at


def _certified(setup: Setup, lams: np.ndarray, chosen: WorkingSet, points: list[Point], at: Refit, gradients: jax.Array) -> list[Place]:
    sizes = np.append(setup.columns, np.zeros_like(setup.columns[:1]))[chosen.rows]
    coefs = np.stack([point.coef for point in points])
    of_groups, weights = sizes_of(coefs), np.where(chosen.used, setup.weights[chosen.groups], 0)
    spreads = np.sqrt(np.sum((coefs * sizes) ** 2, axis=(1, 2)))
    without = at._replace(free=None)  # of another shape for every problem
    found = rounds.certify(setup.problem, lams, setup.scale, setup.bound, of_groups @ weights, spreads, without, gradients)
    found, slopes = jax.tree.map(np.asarray, found), np.asarray(gradients)
    places = []
    for k, (lam, point) in enumerate(zip(lams, points, strict=True)):
        # b_g = 0: how far ‖X_g' ρ‖ is beyond the threshold; else how far X_g' ρ is from the penalty's gradient.
        beyond = np.maximum(found.norms[k] - lam * setup.weights, 0)
        held = np.flatnonzero(of_groups[k] > 0)
        rows = chosen.rows[held]
        pull = np.where(rows < slopes.shape[1], slopes[k].take(rows, mode="clip"), 0)
        away = sizes_of(pull - (lam * weights[held] / of_groups[k, held])[:, None] * point.coef[held])
        beyond[chosen.groups[held]] = away
        violation = np.maximum(np.max(beyond), found.unbalanced[k])
        certificate = Certificate(*(leaf[k] for leaf in found.certificate))
        places.append(Place(chosen, point, Check(certificate, found.objective[k], violation, found.norms[k], at.centre[k])))
    return places


def solution(setup: Setup, ended: Run) -> Solution:
    """The answer in NumPy arrays, the intercept that of the design as it was given, not centred."""
    chosen, point, last = ended.place
    coef: Any = full(setup, chosen, point.coef)[:-1]
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
        "num_active": np.sum((point.coef != 0).any(axis=1)),
    }
    return Solution(Coefficients(coef, intercept), status, stats, State(coef, intercept, coef, intercept, one, one))
