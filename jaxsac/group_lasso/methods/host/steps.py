"""Steps on a working set between two checks, on the host: descent and Newton steps on the quadratic
model in float32, and exact Newton steps.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxsac.group_lasso.methods.host import kernels
from jaxsac.group_lasso.methods.host.check import Place
from jaxsac.group_lasso.methods.host.slots import (
    Setup,
    WorkingSet,
    combined,
    make,
    model_on,
    modelled,
    products,
    sizes_of,
    visited,
)
from jaxsac.group_lasso.methods.host.trace import traced
from jaxsac.group_lasso.model import newton_numpy
from jaxsac.group_lasso.model.newton import admissible
from jaxsac.group_lasso.model.quadratic import (
    LENGTHS,
    Point,
    Target,
    best_step,
    intercept_change,
    model_target,
    over_root,
    without_mean,
)
from jaxsac.group_lasso.problem.objective import Objective

_NEWTON_STEPS = 6  # in float32, at most
_EXACT_STEPS = 2
# Of the tolerance, for what Newton steps leave of a gradient; and the least that float32 can tell.
_SHARE, _FINEST = 0.6, 1e-6
_BEFORE_EXACT = 10.0  # times as much may be left before an exact step
_NEAR = 0.9  # of its threshold: a group below it, and zero, is not visited
# Where at most one group of a set in so many is not zero, the set probably has all that are needed.
_FEW = 4
# Of the null objective, that float32 steps may cost; and of the tolerance, at most.
_BLUR, _SPARE = float(np.finfo(np.float32).eps), 0.1
FLOOR = 1e-3  # of a record's curvature, relative to its bound

newton_direction = traced(newton_numpy.newton_direction)
newton_steps = traced(newton_numpy.newton_steps)


class Plan(NamedTuple):
    """How a round goes: extrapolated cycles of its descent, whether a Newton step with an exact
    gradient ends it, the floor of the model's curvatures, the coefficients to start from where they
    are not the point's own [C, q], and whether the model of the last round will do for the descent.
    """

    cycles: int
    exact: bool
    floor: float = FLOOR
    ahead: np.ndarray | None = None
    stale: bool = False


class Candidates(NamedTuple):
    """What a round knows of each slot [C] before it moves: its threshold, ‖X_g' ρ‖ over that, the
    coefficients to start from [C, q], and which must be moved: not zero there, or unpenalised.
    """

    thresholds: np.ndarray
    strength: np.ndarray
    start: np.ndarray
    held: np.ndarray


class Walk(NamedTuple):
    """A way on the model, whose `target` is that of ρ [T] at a point: where it began and has come
    to [C, q], in float32, and r there [T].
    """

    slope: np.ndarray
    target: Target
    start: np.ndarray
    end: np.ndarray
    residual: np.ndarray


def improve(
    setup: Setup, place: Place, thresholds: np.ndarray, plan: Plan
) -> tuple[Place, np.ndarray]:
    """Descent on the quadratic model, and Newton steps on its support and on the groups that may
    enter it, in float32; then a Newton step with an exact gradient, if planned or needed. Returns
    the place and, roughly, ρ there.

    `place` is checked, but for groups that have come in with zeros, or comes from `roughly`, at
    another lam. `thresholds` are lam w [G]. Newton steps go as far as the tolerance asks, but
    loosely in a first round whose set will not do.
    """
    quadratic = setup.problem.loss.quadratic
    slots = _candidates(place, thresholds, plan.ahead)
    chosen, walk = _down(setup, place, slots, plan)
    point, reached = place.point, walk.end * walk.target.step
    if not quadratic:  # the model is made anew where the descent ended
        point, _ = _arrived(setup, chosen, slots.thresholds, point, walk)
        chosen = modelled(chosen, kernels.roots(setup.problem, point.predictions, plan.floor))
        reached = point.coef

    wanted = _wanted(setup, place, slots, thresholds, reached)
    exact = plan.exact or not quadratic or wanted < _FINEST
    # Those that descent leaves at zero may be beyond their thresholds again after the Newton steps
    # on the others.
    expected = reached.any(axis=1) | slots.held | (slots.strength > 1.0)
    if not quadratic:
        make(setup, chosen, expected)
        walk = _begun(setup, chosen, slots.thresholds, point, point.coef)
    accuracy = max(_BEFORE_EXACT * wanted if exact else wanted, _FINEST)
    walk = _stepped(walk, chosen, expected, accuracy)

    point, slope = _arrived(setup, chosen, slots.thresholds, point, walk)
    if exact:
        point = _exact_steps(setup, chosen, slots.thresholds, point, 1)
    return Place(chosen, point, place.check), slope


def _candidates(place: Place, thresholds: np.ndarray, ahead: np.ndarray | None) -> Candidates:
    chosen, point, last = place
    own = np.where(chosen.used, thresholds[chosen.groups], 0)
    relative = last.norms[chosen.groups] / np.where(own > 0, own, 1)
    start = point.coef if ahead is None else ahead
    held = start.any(axis=1) | (chosen.used & (own == 0))
    return Candidates(own, np.where(chosen.used, relative, -np.inf), start, held)


def _down(setup: Setup, place: Place, slots: Candidates, plan: Plan) -> tuple[WorkingSet, Walk]:
    """Descent over the slots that may move, the strongest first; and the set with its model."""
    chosen, point, _ = place
    quadratic = setup.problem.loss.quadratic
    matter = slots.held | point.coef.any(axis=1) | (slots.strength > _NEAR)
    order = np.argsort(np.where(matter, -slots.strength, np.inf)).astype(np.int32)
    order = order[: np.count_nonzero(matter)]
    if chosen.root is None or not (quadratic or plan.stale):
        chosen = modelled(chosen, kernels.roots(setup.problem, point.predictions, plan.floor))
    make(setup, chosen, chosen.used if quadratic else matter)
    cycles = plan.cycles or None if quadratic else plan.cycles
    walk = _begun(setup, chosen, slots.thresholds, point, slots.start)
    return chosen, _descended(walk, chosen, order, cycles)


def _wanted(
    setup: Setup, place: Place, slots: Candidates, thresholds: np.ndarray, reached: np.ndarray
) -> float:
    """How far Newton steps are to go: see `_accuracy`."""
    penalised = slots.thresholds > 0
    first, beyond = not place.point.coef[penalised].any(), place.check.norms > thresholds
    if first and not _complete(place.set, beyond, reached[penalised]):
        return 1.0
    return _accuracy(setup, slots.thresholds, reached)


def _complete(chosen: WorkingSet, beyond: np.ndarray, coef: np.ndarray) -> bool:
    """Whether the set is likely to have all groups that are needed: all that are `beyond` their
    thresholds [G], or many more than are not zero in the coefficients `coef` of those with a
    penalty.
    """
    outside = beyond.copy()
    outside[chosen.groups[chosen.used]] = False
    return not outside.any() or bool(_FEW * np.count_nonzero(coef.any(axis=1)) <= len(coef))


def roughly(place: Place, slope: np.ndarray) -> Place:
    """The place with ‖X_g' ρ‖ of the set's groups as the model has them, `slope` being ρ there,
    until a pass says better: of its check only these norms are new.
    """
    chosen, used, norms = place.set, place.set.used, place.check.norms.copy()
    norms[chosen.groups[used]] = sizes_of(products(chosen.blocks, slope))[used]
    return place._replace(check=place.check._replace(norms=norms))


def _begun(
    setup: Setup, chosen: WorkingSet, thresholds: np.ndarray, point: Point, begin: np.ndarray
) -> Walk:
    """To the model at a point, and there to the coefficients `begin`."""
    assert chosen.root is not None
    slope = kernels.residual(setup.problem, point.predictions)
    target = model_target(setup.problem.intercept, chosen.root, slope, thresholds, setup.unit)
    start = (point.coef / target.step).astype(np.float32)
    if begin is point.coef:
        return Walk(slope, target, start, start, target.residual)
    end = (begin / target.step).astype(np.float32)
    return Walk(slope, target, start, end, target.residual - combined(chosen.scaled, end - start))


def _descended(walk: Walk, chosen: WorkingSet, order: np.ndarray, cycles: int | None) -> Walk:
    """Block descent over the slots `order`, with `cycles` extrapolations (None: a program without
    them).
    """
    if len(order) == 0:
        return walk
    scaled, bounds = visited(chosen)
    size = len(walk.end)
    room = len(bounds) - size
    end, order_ = (
        np.pad(walk.end, ((0, room), (0, 0))),
        np.pad(order, (0, len(bounds) - len(order))),
    )
    count, cycles_ = np.int32(len(order)), None if cycles is None else np.int32(cycles)
    end, residual = kernels.descend(
        scaled,
        bounds,
        np.pad(walk.target.thresholds, (0, room)),
        end,
        walk.residual,
        order_,
        count,
        cycles_,
    )
    return walk._replace(end=np.asarray(end)[:size], residual=np.asarray(residual))


def _stepped(walk: Walk, chosen: WorkingSet, support: np.ndarray, accuracy: float) -> Walk:
    """Newton steps on the slots marked in `support` [C]."""
    slots = _listed(chosen, support)
    own, residual = newton_steps(
        model_on(chosen, slots, walk.target.thresholds),
        walk.end[slots],
        walk.residual,
        accuracy,
        _NEWTON_STEPS,
    )
    end = walk.end.copy()
    end[slots] = own
    return walk._replace(end=end, residual=residual)


def _arrived(
    setup: Setup, chosen: WorkingSet, thresholds: np.ndarray, point: Point, walk: Walk
) -> tuple[Point, np.ndarray]:
    """Back from the model: as far towards the end of the way as the objective falls. And h^½ r at
    that end, in ρ's units.
    """
    root, (slope, target, start, end, residual) = chosen.root, walk
    assert root is not None
    # Differences of float32 numbers, so that what did not move does not move by a rounding; what
    # became zero becomes exactly that.
    direction = np.where(end == 0, -point.coef, (end - start) * target.step)
    fallen = (target.residual - residual) * (target.step * setup.unit)
    moved = _centred(setup.problem, over_root(root, fallen))
    slope_there = root * residual * (target.step * setup.unit)
    # What a group that has just come in brings may be less than what float32 steps on the others
    # blur.
    slack = min(_BLUR, _SPARE * setup.tol) * float(setup.scale)
    return _advance(setup, root, thresholds, point, slope, direction, moved, slack), slope_there


def _advance(
    setup: Setup,
    root: Any,
    thresholds: Any,
    point: Point,
    slope: Any,
    direction: Any,
    moved: Any,
    slack: float = 0.0,
) -> Point:
    """The best of a few lengths of a step, the intercept following as the model has it. `slope` is
    ρ at the point, `moved` the predictions of the direction. `slack`: see `best_step`.
    """
    shift = intercept_change(setup.problem.intercept, root, slope, moved)
    moved = moved + shift
    lengths = np.asarray(LENGTHS, moved.dtype)
    norms = sizes_of(point.coef + lengths[:, None, None] * direction)
    values = kernels.values_along(setup.problem, root, slope, point.predictions, moved)
    length, still = best_step(values + norms @ thresholds, slack)
    if still:
        return point
    return Point(
        point.coef + length * direction,
        point.intercept + length * shift,
        point.predictions + length * moved,
    )


def polish(setup: Setup, place: Place, thresholds: np.ndarray, floor: float) -> Place:
    """Newton steps with exact gradients, and nothing else."""
    chosen, point, last = place
    own = np.where(chosen.used, thresholds[chosen.groups], 0)
    if chosen.root is None or not setup.problem.loss.quadratic:
        chosen = modelled(chosen, kernels.roots(setup.problem, point.predictions, floor))
    make(setup, chosen, point.coef.any(axis=1) | (own == 0))
    return Place(chosen, _exact_steps(setup, chosen, own, point, _EXACT_STEPS), last)


def _exact_steps(
    setup: Setup, chosen: WorkingSet, thresholds: np.ndarray, point: Point, num_steps: int
) -> Point:
    """Newton steps with the gradient, and the predictions it is of, in the arrays' own dtype:
    float32 ends at a gap of about 1e-6.
    """
    problem, root = setup.problem, chosen.root
    assert root is not None
    support = _listed(chosen, point.coef.any(axis=1) | (chosen.used & (thresholds == 0)))
    few, own = model_on(chosen, support, thresholds), thresholds[support]
    for _ in range(num_steps):
        coef = point.coef[support]
        point = point._replace(
            predictions=_centred(problem, combined(chosen.blocks, point.coef)) + point.intercept
        )
        slope = kernels.residual(problem, point.predictions)
        norms = sizes_of(coef)
        pull = (own / np.where(norms == 0, 1, norms))[:, None] * coef
        descent = (
            products(chosen.blocks, without_mean(problem.intercept, root, slope))[support] - pull
        )
        descent[(norms == 0) & (own > 0)] = 0
        size = np.max(np.abs(descent), initial=0)
        size = size if size > 0 else 1.0
        target = model_target(problem.intercept, root, slope, own, setup.unit)
        model = few._replace(thresholds=target.thresholds)
        found = newton_direction(
            model, (coef / target.step).astype(np.float32), (descent / size).astype(np.float32)
        )
        direction = np.zeros_like(point.coef)
        direction[support] = admissible(coef, found * (size / setup.unit**2), own)
        # Their sum in float32 will do to find a length: predictions are recomputed after it.
        moved = over_root(
            root,
            combined(few.blocks, (direction[support] / target.step).astype(np.float32))
            * (target.step * setup.unit),
        )
        point = _advance(setup, root, thresholds, point, slope, direction, _centred(problem, moved))
    return point


def _listed(chosen: WorkingSet, marked: np.ndarray) -> np.ndarray:
    """The marked slots; or all, which are no copy, where most are marked and the model is made on
    all.
    """
    slots = np.flatnonzero(marked)
    many = 4 * len(slots) > 3 * len(marked) and bool(
        np.all(chosen.store.made[: len(marked)] | ~chosen.used)
    )
    return np.arange(len(marked)) if many else slots


def _centred(problem: Objective, predictions: np.ndarray) -> np.ndarray:
    return (
        predictions - predictions @ np.asarray(problem.design.shares)
        if problem.intercept
        else predictions
    )


def entering(setup: Setup, place: Place, thresholds: np.ndarray) -> bool:
    """Whether a group of the set that is zero is so far beyond its threshold that it matters to the
    tolerance.
    """
    chosen, point, last = place
    own = np.where(chosen.used, thresholds[chosen.groups], 0.0)
    zero = (own > 0) & ~point.coef.any(axis=1)
    beyond = last.norms[chosen.groups[zero]] / own[zero] - 1.0
    return bool(np.max(beyond, initial=0.0) > _accuracy(setup, own, point.coef))


def _accuracy(setup: Setup, thresholds: np.ndarray, coef: np.ndarray) -> float:
    """How far, relative to its threshold, a group's gradient may be off for a gap of the tolerance.

    The gap is of the first order in it: the dual point shrinks by the worst of these, and its value
    by that share of the penalty.
    """
    penalty = float(thresholds @ sizes_of(coef))
    return _SHARE * setup.tol * float(setup.scale) / penalty if penalty > 0 else 1.0
