"""A host-driven working-set method for one problem on a CPU: float32 steps on few groups, certified over all of them.

A round chooses groups by ‖X_g' ρ‖ / (lam w_g), takes block descent steps on a quadratic model of the loss in float32 (`block_descent`),
then Newton steps on the groups that are not zero (`newton`), and ends with one product with all of X, which certifies and which chooses the
next groups (`rounds`). The number of groups is padded to a few capacities, so that few programs are compiled.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac.designs import Dense
from jaxsac.group_lasso import rounds
from jaxsac.group_lasso.problem import Coefficients, Problem
from jaxsac.group_lasso.rounds import Check, Point, Scaled, uncentred
from jaxsac.losses import Squared
from jaxsac.solution import Solution, Status

_SMALLEST = 32  # capacity; the next ones are half as large again
_FIRST, _SECOND = 64, 128  # violators admitted in the first two rounds
_NEWTON_BELOW = 0.1  # relative gap at which Newton steps begin
_POLISH_BELOW = 1e-5  # and at which they are all that is left to do
_NEWTON_STEPS = 2
_CYCLES = 3  # of descent in a round, at most
_FLOOR, _NEWTON_FLOOR = 1e-3, 1e-8  # of a record's curvature, relative to its bound: for descent, and for Newton steps
_RAISE = 30.0  # of the floor after a round that failed: a model with too little curvature steps too far
_PATIENCE = 4  # rounds without progress
_MAX_FREE = 256  # unpenalised columns, refitted at every check
_MAX_SIZE = 128  # columns of a group, whose Gram matrix is stored
_WORTHWHILE = 1 << 18  # numbers in X below which the compiled loop is as fast


class Setup(NamedTuple):
    """What does not depend on lam: the rows of coefficients of each group [G, q] (padded with p), how many groups are unpenalised,
    ‖C^½ x_j‖ [p], the size of a column, the null objective, and for a quadratic loss the square root of its curvature [T]."""

    rows: np.ndarray
    num_free: int
    columns: jax.Array
    unit: jax.Array | np.ndarray
    scale: jax.Array | np.ndarray
    root: jax.Array | None


class WorkingSet(NamedTuple):
    """Some groups, the unpenalised ones first, their rows of coefficients [C, q], their columns [C, q, T], and these scaled if that lasts."""

    groups: np.ndarray
    rows: np.ndarray
    blocks: jax.Array
    scaled: Scaled | None


class Place(NamedTuple):
    """Between two rounds: the working set, the refitted point on it, and its check."""

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
    if not isinstance(uncentred(problem), Dense) or problem.offset.ndim != 1 or _matrix(problem).size < _WORTHWHILE:
        return False
    groups = problem.groups
    if (groups.labels is not None and groups.members is None) or groups.max_size > _MAX_SIZE:
        return False
    if next(iter(_matrix(problem).devices())).platform != "cpu":
        return False
    return int(np.sum(np.asarray(problem.thresholds) == 0)) * groups.max_size <= _MAX_FREE


def solve_on_host(problem: Problem, tol: float, max_passes: int, at: Coefficients | None) -> Solution:
    """The solution of a problem that `covers` accepts; with the status of the last check, which need not be CONVERGED."""
    setup, place = set_up(problem)
    if at is not None:
        place = place_at(problem, setup, tol, at)
    return solution(problem, setup, run(problem, setup, tol, max_passes, place))


def set_up(problem: Problem) -> tuple[Setup, Place]:
    """The null model, which gives the scale, and its check."""
    groups = problem.groups
    if groups.members is not None:
        rows = np.asarray(groups.members)
    else:
        rows = np.arange(groups.num_coefficients, dtype=np.int32).reshape(groups.num_groups, groups.max_size)
    free = np.flatnonzero(np.asarray(problem.weights) == 0).astype(np.int32)
    columns = rounds.column_norms(_matrix(problem), problem.sample_weight)
    # What is not known yet, the scale and the size of a column, does not matter to the null model.
    empty = np.ones((), columns.dtype)
    setup = Setup(rows, len(free), columns, empty, empty, None)
    chosen = working_set(problem, setup, free)
    zeros, at_zero = rounds.nothing(problem, chosen.rows)
    target = np.asarray(4.0 * float(at_zero), columns.dtype) * np.finfo(columns.dtype).eps ** 2
    place = check(problem, setup._replace(scale=at_zero), chosen, zeros, target)
    scale, unit, root = rounds.scales(problem, columns, place.point.predictions, at_zero)
    return Setup(rows, len(free), columns, unit, scale, root if isinstance(problem.loss, Squared) else None), place


def place_at(problem: Problem, setup: Setup, tol: float, at: Coefficients) -> Place:
    """A checked start from coefficients [p] in centred coordinates."""
    spread = np.append(np.asarray(at.coef), np.zeros(1, at.coef.dtype))
    free = np.asarray(problem.weights) == 0
    matter = (spread[setup.rows] != 0).any(axis=1) & ~free
    chosen = working_set(problem, setup, np.concatenate([np.flatnonzero(free), np.flatnonzero(matter)]).astype(np.int32))
    point = Point(spread[chosen.rows], at.intercept, problem.offset)  # the check recomputes the predictions
    return check(problem, setup, chosen, point, refit_target(setup, tol))


def run(problem: Problem, setup: Setup, tol: float, max_passes: int, place: Place, num_passes: int = 0) -> Run:
    """Rounds until the certificate meets the tolerance or no longer falls."""
    thresholds = np.asarray(problem.thresholds)
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
        if gap + rounding <= tol * scale:
            return Run(place, num_passes, Status.CONVERGED)
        if gap <= rounding or since >= _PATIENCE:
            return Run(place, num_passes, Status.STALLED)
        if num_passes >= max_passes:
            return Run(place, num_passes, Status.MAX_STEPS)
        limit = {0: _FIRST, 1: _SECOND}.get(num_passes, thresholds.size)
        chosen, point = grow(problem, setup, place, thresholds, limit)
        polish = gap < _POLISH_BELOW * scale and since == 0 and chosen is place.set
        point = improve(
            problem,
            setup,
            chosen,
            point,
            np.asarray(place.check.norms),
            floor=floor,
            cycles=0 if polish else min(num_passes + 1, _CYCLES),
            newton_steps=_NEWTON_STEPS if gap < _NEWTON_BELOW * scale else 0,
        )
        place = check(problem, setup, chosen, point, refit_target(setup, tol))
        num_passes += 1


def grow(problem: Problem, setup: Setup, place: Place, thresholds: np.ndarray, limit: int) -> tuple[WorkingSet, Point]:
    """The set with the `limit` worst groups beyond their thresholds, if there are any outside; groups that are zero leave for them."""
    chosen, point, check = place
    norms = np.asarray(check.norms)
    old = chosen.groups
    outside = np.ones(len(norms), bool)
    outside[old] = False
    new = np.flatnonzero(outside & (norms > thresholds)).astype(np.int32)
    if len(new) == 0:
        return chosen, point
    strength = norms / np.where(thresholds > 0, thresholds, np.inf)
    if len(new) > limit:
        new = new[np.argpartition(-strength[new], limit)[:limit]]
    coef = np.asarray(point.coef)
    needed = np.concatenate([old[(coef[: len(old)] != 0).any(axis=1) | (thresholds[old] == 0) | (strength[old] > 1.0)], new])
    # What is left of the capacity goes to the next strongest, so that the set changes less often.
    rest = strength.copy()
    rest[needed] = -1.0
    extra = capacity(problem, len(needed)) - len(needed)
    if extra < np.sum(rest >= 0):
        more = np.argpartition(-rest, extra)[:extra]
    else:
        more = np.flatnonzero(rest >= 0)
    grown = working_set(problem, setup, np.concatenate([needed, more]).astype(np.int32))
    return grown, point._replace(coef=full(setup, chosen, coef)[grown.rows])


def improve(
    problem: Problem, setup: Setup, chosen: WorkingSet, point: Point, norms: np.ndarray, *, cycles: int, newton_steps: int, floor: float = _FLOOR
) -> Point:
    """Descent with `cycles` extrapolations (0: none at all), then Newton steps on the support."""
    groups, size = chosen.groups, len(chosen.rows)
    thresholds = np.asarray(problem.thresholds)[groups]
    own = _padded(thresholds, size, 0.0)

    def model(least: float) -> Scaled:
        if chosen.scaled is not None:
            return chosen.scaled
        return _model(problem, setup, chosen.blocks, rounds.roots(problem, point.predictions, np.asarray(least, own.dtype)))

    if cycles:
        order = _padded(np.argsort(-norms[groups] / np.where(thresholds > 0, thresholds, 1.0)).astype(np.int32), size, 0)
        count = np.int32(len(groups))
        point = rounds.descent_step(problem, chosen.blocks, model(floor), setup.unit, own, point, order, count, np.int32(cycles))
    if newton_steps:
        moving = (np.asarray(point.coef) != 0).any(axis=1)
        moving[: len(groups)] |= thresholds == 0
        support = np.flatnonzero(moving).astype(np.int32)
        support = _padded(support, capacity(problem, len(support)), -1)
        scaled = model(_NEWTON_FLOOR)
        few = rounds.supporting(scaled, own, support)
        for _ in range(newton_steps):
            point = rounds.newton_step(problem, chosen.blocks, scaled.root, few, setup.unit, own, point, support)
    return point


def check(problem: Problem, setup: Setup, chosen: WorkingSet, point: Point, target: Any) -> Place:
    """Refit what is unpenalised and certify: one pass over X."""
    at = rounds.refit(problem, setup.columns, target, chosen.blocks, chosen.rows, point, num_free=setup.num_free)
    coef = full(setup, chosen, at.point.coef)[:-1]
    without = at._replace(point=at.point._replace(coef=None))  # of another shape in every set
    return Place(chosen, at.point, rounds.certify(problem, setup.columns, setup.scale, coef, without))


def refit_target(setup: Setup, tol: float) -> np.ndarray:
    # The refit's gradient counts to the first order: its square, not the decrease itself, is to be small beside the tolerance.
    return np.asarray((0.0005 * tol) ** 2 * float(setup.scale), setup.columns.dtype)


def solution(problem: Problem, setup: Setup, ended: Run) -> Solution:
    chosen, point, check = ended.place
    coef = full(setup, chosen, point.coef)[:-1]
    return rounds.answer(problem, chosen.blocks, coef, point, check, np.int32(ended.num_passes), np.int32(ended.status))


def working_set(problem: Problem, setup: Setup, groups: np.ndarray) -> WorkingSet:
    selected = np.full((capacity(problem, len(groups)), setup.rows.shape[1]), problem.groups.num_coefficients, np.int32)
    selected[: len(groups)] = setup.rows[groups]
    blocks = rounds.gather(_matrix(problem), selected)
    scaled = None if setup.root is None else _model(problem, setup, blocks, setup.root)
    return WorkingSet(groups, selected, blocks, scaled)


def capacity(problem: Problem, count: int) -> int:
    size = _SMALLEST
    while size < count:
        size += size // 2
    return min(size, problem.groups.num_groups)


def full(setup: Setup, chosen: WorkingSet, coef: jax.Array | np.ndarray) -> np.ndarray:
    """Coefficients of the working set [C, q] as those of all columns, [p + 1]; the last is 0."""
    spread = np.zeros(setup.columns.shape[0] + 1, coef.dtype)
    spread[chosen.rows] = coef
    spread[-1] = 0.0
    return spread


def _model(problem: Problem, setup: Setup, blocks: jax.Array, root: jax.Array) -> Scaled:
    scaled = rounds.scale_blocks(problem, blocks, root, setup.unit)
    grams, bounds = rounds.grams_of(scaled)
    return Scaled(scaled, grams, bounds, root)


def _padded(numbers: np.ndarray, size: int, fill: Any) -> np.ndarray:
    return np.concatenate([numbers, np.full(size - len(numbers), fill, numbers.dtype)])


def _matrix(problem: Problem) -> jax.Array:
    return uncentred(problem).matrix
