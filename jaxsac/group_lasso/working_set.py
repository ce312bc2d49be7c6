"""A host-driven working-set method for one problem on a CPU: float32 descent on few groups, certified over all of them."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac._iterate import Certificate
from jaxsac.designs import Centred, Dense
from jaxsac.group_lasso.block_descent import Model, descend, gram_matrices
from jaxsac.group_lasso.certificate import gap_after_refit, violation
from jaxsac.group_lasso.fista import start
from jaxsac.group_lasso.free import FreeFit, fit_free
from jaxsac.group_lasso.newton import newton_direction, shorten
from jaxsac.group_lasso.problem import Coefficients, Problem
from jaxsac.losses import Squared
from jaxsac.prox.groups import group_norms, safe_sqrt
from jaxsac.solution import Solution, Status

_SMALLEST = 32  # blocks; capacities grow by 1.6 from here, so that few programs are compiled
_GROWTH = 1.6
_FIRST, _SECOND = 64, 128  # violators admitted in the first two rounds
_KEEP = 0.9  # a group stays in the set while ‖X_g' ρ‖ is above this share of lam w_g
_NEWTON_BELOW = 5e-2  # relative gap at which Newton steps begin
_POLISH_BELOW = 1e-5  # and at which they are all that is left to do
_FREE_STEPS, _FREE_HALVINGS = 50, 30
_LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.0)  # of a step; 0 takes it back
_MAX_FREE = 256  # unpenalised columns, refitted at every check
_WORTHWHILE = 1 << 18  # numbers in X below which the compiled loop is as fast
_FLOOR, _NEWTON_FLOOR = 1e-3, 1e-8  # of a record's curvature, relative to the mean: for descent, and for Newton steps
_PATIENCE = 3  # rounds without a smaller gap


class Setup(NamedTuple):
    """What does not depend on lam: the rows of coefficients of each group [G, q] (padded with p), how many groups are unpenalised,
    ‖C^½ x_j‖ [p], the size of a column, the null objective, and for a quadratic loss the square root of its curvature [T]."""

    rows: np.ndarray
    num_free: int
    columns: jax.Array
    unit: jax.Array
    scale: jax.Array
    root: jax.Array | None


class WorkingSet(NamedTuple):
    """Some groups, the unpenalised ones first, their coefficients' rows [C, q], their columns [C, q, T], and these scaled."""

    groups: np.ndarray
    rows: np.ndarray
    blocks: jax.Array
    scaled: "Scaled | None"


class Scaled(NamedTuple):
    """h^½ X_g / unit in float32, their Gram matrices and bounds, and h^½: the quadratic model, but for what changes with the point."""

    blocks: jax.Array
    grams: jax.Array
    bounds: jax.Array
    root: jax.Array


class Point(NamedTuple):
    """Coefficients of the working set [C, q], the (centred) intercept, and the predictions [T]."""

    coef: jax.Array
    intercept: jax.Array
    predictions: jax.Array


class Check(NamedTuple):
    """A full pass: the certificate, the objective, the largest violation of the optimality conditions, and ‖X_g' ρ‖ [G]."""

    certificate: Certificate
    objective: jax.Array
    violation: jax.Array
    norms: jax.Array


class Place(NamedTuple):
    """Between two rounds: the working set, the refitted point on it, and its check."""

    set: WorkingSet
    point: Point
    check: Check


def covers(problem: Problem) -> bool:
    """Whether this method is for the problem: a large dense design on a CPU, one output, groups with a block form, few free columns."""
    design = problem.design.design if isinstance(problem.design, Centred) else problem.design
    if not isinstance(design, Dense) or problem.offset.ndim != 1 or design.matrix.size < _WORTHWHILE:
        return False
    if problem.groups.labels is not None and problem.groups.members is None:
        return False
    if next(iter(design.matrix.devices())).platform != "cpu":
        return False
    free = np.asarray(problem.thresholds) == 0
    return int(free.sum()) * problem.groups.max_size <= _MAX_FREE


def capacity(count: int) -> int:
    size = float(_SMALLEST)
    while size < count:
        size *= _GROWTH
    return int(size)


def _rows(problem: Problem) -> np.ndarray:
    groups = problem.groups
    if groups.members is not None:
        return np.asarray(groups.members)
    return np.arange(groups.num_coefficients, dtype=np.int32).reshape(groups.num_groups, groups.max_size)


def _matrix(problem: Problem) -> jax.Array:
    return (problem.design.design if isinstance(problem.design, Centred) else problem.design).matrix


@jax.jit
def _column_norms(matrix: jax.Array, weights: jax.Array) -> jax.Array:
    """(Σ_t c_t x_tj²)^½, row by row: a reduction over the long axis would be slow on CPUs."""
    squares = lax.fori_loop(0, matrix.shape[0], lambda t, total: total + weights[t] * matrix[t] ** 2, jnp.zeros_like(matrix[0]))
    return jnp.sqrt(squares)


@jax.jit
def _gather(matrix: jax.Array, rows: jax.Array) -> jax.Array:
    """The columns of some groups, [C, q, T]; zeros where padded."""
    return matrix.T.at[rows].get(mode="fill", fill_value=0)


def _centred(problem: Problem, predictions: jax.Array) -> jax.Array:
    return predictions - problem.design.mean(predictions) if problem.intercept else predictions


def _predict(problem: Problem, blocks: jax.Array, coef: jax.Array) -> jax.Array:
    return _centred(problem, jnp.dot(coef.reshape(-1), blocks.reshape(-1, blocks.shape[2]), precision="highest"))


def _products(blocks: jax.Array, vector: jax.Array) -> jax.Array:
    """X_g' v for each block, [C, q]."""
    return jnp.dot(blocks.reshape(-1, blocks.shape[2]), vector, precision="highest").reshape(blocks.shape[:2])


class Refit(NamedTuple):
    """A point whose unpenalised part is at its best, the share of its predictions under the penalty, and what the refit left undone."""

    point: Point
    penalised: jax.Array
    remaining: jax.Array


@functools.partial(jax.jit, static_argnames="num_free")
def _refit(problem: Problem, columns: jax.Array, target: jax.Array, blocks, rows, point: Point, *, num_free: int) -> Refit:
    """Recompute the predictions and refit the first `num_free` blocks and the intercept."""
    predictions = _predict(problem, blocks, point.coef) + point.intercept
    if num_free == 0 and not problem.intercept:
        return Refit(point._replace(predictions=predictions), predictions, jnp.zeros_like(target))
    free_rows = rows[:num_free].reshape(-1)
    design = Dense(blocks[:num_free].reshape(-1, blocks.shape[2]).T)
    here = dataclasses.replace(problem, design=Centred(design, problem.design.shares) if problem.intercept else design)
    fit = fit_free(
        here,
        Coefficients(point.coef[:num_free].reshape(-1), point.intercept),
        predictions,
        jnp.ones(free_rows.shape, bool) if num_free else None,
        columns=columns.at[free_rows].get(mode="fill", fill_value=0),
        target=target,
        max_steps=_FREE_STEPS,
        max_halvings=_FREE_HALVINGS,
    )
    penalised = fit.predictions - fit.point.intercept
    coef = point.coef
    if num_free:
        penalised = penalised - here.design.predict(fit.point.coef)
        coef = coef.at[:num_free].set(fit.point.coef.reshape(num_free, blocks.shape[1]))
    return Refit(Point(coef, fit.point.intercept, fit.predictions), penalised, fit.remaining)


@jax.jit
def _certify(problem: Problem, columns: jax.Array, scale: jax.Array, coef: jax.Array, refit: Refit) -> Check:
    """One product with all of X: the certificate of the refitted point, whose coefficients are `coef` [p]."""
    predictions = refit.point.predictions
    residual = problem.residual(predictions)
    gradient = problem.design.adjoint(residual)
    objective = problem.smooth_value(predictions) + problem.penalty(coef)
    fit = FreeFit(Coefficients(coef, refit.point.intercept), predictions, refit.remaining)
    certificate = gap_after_refit(problem, objective, fit, refit.penalised, gradient, columns=columns, scale=scale)
    return Check(certificate, objective, violation(problem, coef, residual, gradient), group_norms(gradient, problem.groups))


def _check(problem: Problem, setup: Setup, chosen: WorkingSet, point: Point, target: Any, scale: Any) -> Place:
    refit = _refit(problem, setup.columns, target, chosen.blocks, chosen.rows, point, num_free=setup.num_free)
    coef = full(setup, chosen, refit.point.coef)[:-1]
    small = refit._replace(point=refit.point._replace(coef=None))
    return Place(chosen, refit.point, _certify(problem, setup.columns, scale, coef, small))


@jax.jit
def _roots(problem: Problem, predictions: jax.Array, floor: jax.Array) -> jax.Array:
    """h^½, h = ∇²F (a diagonal), kept above `floor` times its mean where a record counts."""
    curvature = problem.curvature_product(predictions, jnp.ones_like(predictions))
    counts = problem.sample_weight > 0
    mean = jnp.sum(curvature) / jnp.maximum(jnp.sum(counts.astype(curvature.dtype)), 1.0)
    return jnp.where(counts, jnp.sqrt(jnp.maximum(curvature, floor * mean)), 0.0)


@jax.jit
def _scaled(problem: Problem, blocks: jax.Array, root: jax.Array, unit: jax.Array) -> jax.Array:
    """h^½ (x − its mean) / unit in float32; the mean, if there is an intercept, in the metric h, in which the intercept drops out."""
    if problem.intercept:
        shares = root**2 / jnp.sum(root**2)
        blocks = blocks - _products(blocks, shares)[:, :, None]
    return (blocks * (root / unit)[None, None]).astype(jnp.float32)


_grams = jax.jit(gram_matrices)


class _Target(NamedTuple):
    """The residual of the model in float32, and the units: b = (coefficient of the model) · step."""

    residual: jax.Array
    step: jax.Array
    thresholds: jax.Array


def _target(problem: Problem, root: jax.Array, residual: jax.Array, thresholds: jax.Array, unit: jax.Array) -> _Target:
    scaled = jnp.where(root > 0, _without_mean(problem, root, residual) / jnp.where(root > 0, root, 1.0), 0.0)
    size = jnp.max(jnp.abs(scaled)) * jnp.sqrt(jnp.asarray(scaled.shape[0], scaled.dtype))
    size = jnp.where(size > 0, size, 1.0)
    return _Target((scaled / size).astype(jnp.float32), size / unit, (thresholds / (unit * size)).astype(jnp.float32))


def _without_mean(problem: Problem, root: jax.Array, residual: jax.Array) -> jax.Array:
    """ρ after the model's best change of the intercept."""
    if not problem.intercept:
        return residual
    return residual - root**2 * (jnp.sum(residual) / jnp.sum(root**2))


def _advance(problem: Problem, blocks, root, thresholds, point: Point, direction, *, noise: float = 0.0) -> Point:
    """The best of a few lengths of a step, the intercept following as the model has it; the longest within `noise` · eps of the best."""
    moved = _predict(problem, blocks, direction)
    if problem.intercept:
        weights = root**2
        shift = (jnp.sum(problem.residual(point.predictions)) - jnp.sum(weights * moved)) / jnp.sum(weights)
    else:
        shift = jnp.zeros_like(point.intercept)
    moved = moved + shift

    def value(length):
        norms = safe_sqrt(jnp.sum((point.coef + length * direction) ** 2, axis=1))
        return problem.smooth_value(point.predictions + length * moved) + jnp.sum(thresholds * norms)

    lengths = jnp.asarray(_LENGTHS, moved.dtype)
    values = jax.vmap(value)(lengths)
    best = jnp.min(jnp.where(jnp.isnan(values), jnp.inf, values))
    length = lengths[jnp.argmax(values <= best + noise * jnp.finfo(values.dtype).eps * jnp.abs(best))]  # the first of those
    still = length == 0
    return jax.tree.map(
        lambda old, step: jnp.where(still, old, old + length * step), point, Point(direction, shift, moved)
    )


@jax.jit
def _descent_step(problem: Problem, blocks, scaled: Scaled, unit, thresholds, point: Point, order, count, cycles) -> Point:
    residual = problem.residual(point.predictions)
    target = _target(problem, scaled.root, residual, thresholds, unit)
    model = Model(scaled.blocks, scaled.grams, scaled.bounds, target.thresholds)
    start = (point.coef / target.step).astype(jnp.float32)
    end, _ = descend(model, start, target.residual, order, count, cycles)
    # Differences of float32 numbers, so that what did not move does not move by a rounding; what became zero becomes exactly that.
    direction = jnp.where(end == 0, -point.coef, (end - start).astype(point.coef.dtype) * target.step)
    return _advance(problem, blocks, scaled.root, thresholds, point, direction)


@jax.jit
def _newton_step(problem: Problem, blocks, scaled: Scaled, unit, thresholds, point: Point, support) -> Point:
    residual = problem.residual(point.predictions)
    norms = safe_sqrt(jnp.sum(point.coef**2, axis=1, keepdims=True))
    pull = point.coef / jnp.where(norms == 0, 1.0, norms)
    pulled = _products(blocks, _without_mean(problem, scaled.root, residual))
    moving = (norms > 0) | (thresholds == 0)[:, None]
    descent = jnp.where(moving, pulled - thresholds[:, None] * pull, 0.0)
    size = jnp.max(jnp.abs(descent)) * jnp.sqrt(jnp.asarray(descent.size, descent.dtype))
    size = jnp.where(size > 0, size, 1.0)
    target = _target(problem, scaled.root, residual, thresholds, unit)
    model = Model(scaled.blocks, scaled.grams, scaled.bounds, target.thresholds)
    found = newton_direction(model, (point.coef / target.step).astype(jnp.float32), (descent / size).astype(jnp.float32), support)
    direction = shorten(point.coef, found.astype(descent.dtype) * (size / unit**2), thresholds)
    # A step that improves the gradient need not show in the objective.
    return _advance(problem, blocks, scaled.root, thresholds, point, direction, noise=16.0)


@jax.jit
def _scales(problem: Problem, columns: jax.Array, null: jax.Array, at_zero: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The null objective, above the rounding of the data, and the size of a column."""
    largest = jnp.max(columns) / jnp.sqrt(jnp.asarray(problem.num_samples, columns.dtype))
    return problem.smooth_value(null) + jnp.finfo(null.dtype).eps * at_zero, jnp.where(largest > 0, largest, 1.0)


@jax.jit
def _value_at_zero(problem: Problem) -> jax.Array:
    return problem.smooth_value(jnp.zeros_like(problem.offset))


def set_up(problem: Problem) -> tuple[Setup, Place]:
    """The null model, which gives the scale, and its check."""
    rows = _rows(problem)
    free = np.flatnonzero(np.asarray(problem.weights) == 0).astype(np.int32)
    columns = _column_norms(_matrix(problem), problem.sample_weight)
    dtype = problem.offset.dtype
    at_zero = _value_at_zero(problem)
    setup = Setup(rows, len(free), columns, jnp.ones((), dtype), at_zero, None)
    chosen = _working_set(problem, setup, free)
    zeros = Point(jnp.zeros(chosen.rows.shape, dtype), jnp.zeros((), dtype), jnp.zeros_like(problem.offset))
    place = _check(problem, setup, chosen, zeros, at_zero * float(4.0 * jnp.finfo(dtype).eps ** 2), at_zero)
    scale, unit = _scales(problem, columns, place.point.predictions, at_zero)
    root = _roots(problem, place.point.predictions, jnp.zeros((), dtype)) if isinstance(problem.loss, Squared) else None
    return Setup(rows, len(free), columns, unit, scale, root), place


def _working_set(problem: Problem, setup: Setup, groups: np.ndarray) -> WorkingSet:
    size, width = capacity(len(groups)), setup.rows.shape[1]
    selected = np.full((size, width), problem.groups.num_coefficients, np.int32)
    selected[: len(groups)] = setup.rows[groups]
    blocks = _gather(_matrix(problem), selected)
    chosen = WorkingSet(groups, selected, blocks, None)
    return chosen if setup.root is None else chosen._replace(scaled=_model(problem, setup, blocks, setup.root))


def _model(problem: Problem, setup: Setup, blocks: jax.Array, root: jax.Array) -> Scaled:
    scaled = _scaled(problem, blocks, root, setup.unit)
    grams, bounds = _grams(scaled)
    return Scaled(scaled, grams, bounds, root)


def _padded(numbers: np.ndarray, size: int, fill: Any) -> np.ndarray:
    return np.concatenate([numbers, np.full(size - len(numbers), fill, numbers.dtype)])


def full(setup: Setup, chosen: WorkingSet, coef: jax.Array | np.ndarray) -> np.ndarray:
    """Coefficients of the working set as those of all columns, [p + 1]; the last is 0."""
    spread = np.zeros(setup.columns.shape[0] + 1, coef.dtype)
    spread[chosen.rows] = coef
    spread[-1] = 0.0
    return spread


def run(problem: Problem, setup: Setup, tol: float, max_passes: int, place: Place, trace: Any = None) -> tuple[Place, int, Status]:
    """Rounds of: choose the set, descend on it, Newton on its support, check over all groups."""
    thresholds = np.asarray(problem.thresholds)
    scale = float(setup.scale)
    target = np.asarray((0.0005 * tol) ** 2 * scale, thresholds.dtype)
    best, since, passes = np.inf, 0, 0
    while True:
        chosen, point, check = place
        gap, rounding = float(check.certificate.error), float(check.certificate.rounding)
        if trace is not None:
            trace(passes, gap / scale, len(chosen.groups))
        since = 0 if gap < 0.9 * best else since + 1
        best = min(best, gap)
        if not np.isfinite(gap + rounding):
            return place, passes, Status.NONFINITE
        if gap + rounding <= tol * scale:
            return place, passes, Status.CONVERGED
        if gap <= rounding or since >= _PATIENCE:
            return place, passes, Status.STALLED
        if passes >= max_passes:
            return place, passes, Status.MAX_STEPS
        limit = {0: _FIRST, 1: _SECOND}.get(passes, thresholds.size)
        chosen, point, grown = _grow(problem, setup, place, thresholds, limit)
        point = _improve(problem, setup, chosen, point, np.asarray(check.norms), thresholds, gap / scale, min(passes + 1, 3), grown or since > 0)
        place = _check(problem, setup, chosen, point, target, setup.scale)
        passes += 1


def _grow(problem: Problem, setup: Setup, place: Place, thresholds, limit) -> tuple[WorkingSet, Point, bool]:
    """The set with the `limit` worst violators from outside; those inside that no longer matter leave when others come."""
    chosen, point, check = place
    norms = np.asarray(check.norms)
    outside = np.ones(len(norms), bool)
    outside[chosen.groups] = False
    new = np.flatnonzero(outside & (norms > thresholds)).astype(np.int32)
    if len(new) == 0:
        return chosen, point, False
    if len(new) > limit:
        new = new[np.argpartition(-norms[new] / thresholds[new], limit)[:limit]]
    coef, old = np.asarray(point.coef), chosen.groups
    keep = (coef[: len(old)] != 0).any(axis=1) | (norms[old] > _KEEP * thresholds[old])
    grown = _working_set(problem, setup, np.concatenate([old[keep], new]))
    spread = full(setup, chosen, coef)
    return grown, point._replace(coef=jnp.asarray(spread[grown.rows])), True


def _improve(problem: Problem, setup: Setup, chosen: WorkingSet, point: Point, norms, thresholds, relative, cycles, grown) -> Point:
    groups, size = chosen.groups, len(chosen.rows)
    own = _padded(thresholds[groups], size, 0.0)
    scaled = chosen.scaled

    def model(floor):
        root = _roots(problem, point.predictions, np.asarray(floor, own.dtype))
        return _model(problem, setup, chosen.blocks, root)

    if relative > _POLISH_BELOW or grown:
        strength = norms[groups] / np.where(own[: len(groups)] > 0, own[: len(groups)], 1.0)
        order = _padded(np.argsort(-strength).astype(np.int32), size, 0)
        point = _descent_step(
            problem, chosen.blocks, scaled or model(_FLOOR), setup.unit, own, point, order, np.int32(len(groups)), np.int32(cycles)
        )
    if relative < _NEWTON_BELOW:
        support = np.flatnonzero((np.asarray(point.coef) != 0).any(axis=1) | (np.arange(size) < np.sum(own[: len(groups)] == 0))).astype(np.int32)
        support = _padded(support, capacity(len(support)), -1)
        for _ in range(2):
            point = _newton_step(problem, chosen.blocks, scaled or model(_NEWTON_FLOOR), setup.unit, own, point, support)
    return point


@jax.jit
def _answer(problem: Problem, blocks: jax.Array, coef: jax.Array, point: Point) -> tuple[Coefficients, jax.Array]:
    """The coefficients [p] with the intercept of the design as it is, not centred, and how many groups are not zero."""
    raw = jnp.dot(point.coef.reshape(-1), blocks.reshape(-1, blocks.shape[2]), precision="highest")
    intercept = point.intercept - problem.design.mean(raw) if problem.intercept else point.intercept
    num_active = jnp.sum(problem.groups.sum((coef != 0).astype(jnp.int32)) > 0)
    return Coefficients(coef, intercept), num_active


def _solution(problem: Problem, setup: Setup, place: Place, passes: int, status: Status) -> Solution:
    value, num_active = _answer(problem, place.set.blocks, full(setup, place.set, place.point.coef)[:-1], place.point)
    error, rounding, scale = place.check.certificate
    stats = {
        "objective": place.check.objective,
        "gap": error,
        "rounding": rounding,
        "scale": scale,
        "num_steps": jnp.int32(passes),
        "kkt": place.check.violation,
        "num_active": num_active,
    }
    return Solution(value, jnp.int32(status), stats, start(value))


def solve_on_host(problem: Problem, tol: float, max_passes: int, at: Coefficients | None) -> Solution:
    """The solution of a problem that `covers` accepts; with the status of the last check, which need not be CONVERGED."""
    setup, place = set_up(problem)
    if at is not None:
        place = _place(problem, setup, at, tol)
    return _solution(problem, setup, *run(problem, setup, tol, max_passes, place))


def _place(problem: Problem, setup: Setup, at: Coefficients, tol: float) -> Place:
    """A start from coefficients [p] in centred coordinates."""
    spread = np.append(np.asarray(at.coef), np.zeros(1, at.coef.dtype))
    weights = np.asarray(problem.weights)
    matters = (spread[setup.rows] != 0).any(axis=1) & (weights > 0)
    groups = np.concatenate([np.flatnonzero(weights == 0), np.flatnonzero(matters)]).astype(np.int32)
    chosen = _working_set(problem, setup, groups)
    point = Point(jnp.asarray(spread[chosen.rows]), at.intercept, jnp.zeros_like(problem.offset))
    target = np.asarray((0.0005 * tol) ** 2 * float(setup.scale), spread.dtype)
    return _check(problem, setup, chosen, point, target, setup.scale)
