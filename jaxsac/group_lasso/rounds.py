"""The compiled pieces of a round of the working-set method: gather, scale, descend, Newton, refit, certify."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac._iterate import Certificate
from jaxsac.designs import Centred, Dense
from jaxsac.group_lasso.block_descent import Model, descend, eigenvalue_bounds
from jaxsac.group_lasso.certificate import gap_after_refit, violation
from jaxsac.group_lasso.free import FreeFit, fit_free
from jaxsac.group_lasso.newton import LENGTHS, admissible, compact, newton_direction, newton_steps
from jaxsac.group_lasso.null import null_objective
from jaxsac.group_lasso.problem import Coefficients, Problem, with_lam
from jaxsac.prox.groups import group_norms, safe_sqrt

_FREE_STEPS, _FREE_HALVINGS = 50, 30
_ROWS = 4  # of X, read together


class Scaled(NamedTuple):
    """h^½ X_g / unit in float32, their Gram matrices and bounds, and h^½: the quadratic model, but for what changes with the point."""

    blocks: jax.Array
    grams: jax.Array
    bounds: jax.Array
    root: jax.Array


class Point(NamedTuple):
    """Coefficients of the working set [C, q], the (centred) intercept, and the predictions [T]."""

    coef: Any
    intercept: jax.Array
    predictions: jax.Array


class Check(NamedTuple):
    """A full pass: the certificate, the objective, the largest violation of the optimality conditions, ‖X_g' ρ‖ [G], and the mean of X b."""

    certificate: Certificate
    objective: Any
    violation: Any
    norms: Any
    centre: Any


def uncentred(problem: Problem) -> Any:
    """The design as it was given, also where it was centred for an intercept."""
    return problem.design.design if problem.intercept else problem.design


@jax.jit
def first_pass(problem: Problem, predictions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(Σ_t c_t x_tj²)^½ [p] and −∇F, [1, p], at predictions [1, T].

    Together, for to read X takes longer than to compute; row by row, for a reduction over the long axis would be slow on CPUs.
    """
    matrix, weights, residual = uncentred(problem).matrix, problem.sample_weight, problem.residual(predictions[0])
    if problem.intercept:  # the products of the centred columns, from those as they were given
        residual = residual - problem.design.shares * jnp.sum(residual)

    def add(t, sums):
        squares, products = sums
        return squares + weights[t] * matrix[t] ** 2, products + residual[t] * matrix[t]

    zeros = jnp.zeros_like(matrix[0])
    squares, products = lax.fori_loop(0, matrix.shape[0], add, (zeros, zeros), unroll=_ROWS)
    return jnp.sqrt(squares), products[None]


@jax.jit
def gradients(problem: Problem, predictions: jax.Array) -> jax.Array:
    """−∇F, [B, p], at predictions [B, T]: one pass over X."""
    return jax.vmap(lambda at: problem.design.adjoint(problem.residual(at)))(predictions)


@jax.jit
def gather(matrix: jax.Array, rows: jax.Array) -> jax.Array:
    """The columns of some groups, [C, q, T]; zeros where padded."""
    return matrix.T.at[rows].get(mode="fill", fill_value=0)


@functools.partial(jax.jit, donate_argnums=0)
def put(arrays: Any, fresh: Any, slots: jax.Array) -> Any:
    """Arrays [C, ...] with the rows `fresh` [F, ...] at `slots` [F] (C or more: nowhere), in place."""
    return jax.tree.map(lambda array, rows: array.at[slots].set(rows, mode="drop"), arrays, fresh)


@functools.partial(jax.jit, static_argnames="size")
def widen(arrays: Any, *, size: int) -> Any:
    """Arrays [C, ...] with zeros up to [size, ...]."""
    return jax.tree.map(lambda array: jnp.zeros((size, *array.shape[1:]), array.dtype).at[: len(array)].set(array), arrays)


def _centred(problem: Problem, predictions: jax.Array) -> jax.Array:
    return predictions - problem.design.mean(predictions) if problem.intercept else predictions


def _combined(blocks: jax.Array, coef: jax.Array) -> jax.Array:
    return jnp.dot(coef.reshape(-1), blocks.reshape(-1, blocks.shape[2]), precision="highest")


def _predict(problem: Problem, blocks: jax.Array, coef: jax.Array) -> jax.Array:
    return _centred(problem, _combined(blocks, coef))


def _products(blocks: jax.Array, vector: jax.Array) -> jax.Array:
    """X_g' v for each block, [C, q]."""
    return jnp.dot(blocks.reshape(-1, blocks.shape[2]), vector, precision="highest").reshape(blocks.shape[:2])


class Refit(NamedTuple):
    """A point whose unpenalised part is at its best, the share of its predictions under the penalty, what the refit left undone, and the
    mean of X b, which the intercept of the design as it was given lacks. Of several points with a leading axis [B]."""

    point: Point
    penalised: jax.Array
    remaining: jax.Array
    centre: jax.Array


@functools.partial(jax.jit, static_argnames="num_free")
def refit(problem: Problem, target: jax.Array, blocks: jax.Array, points: tuple[Point, ...], *, num_free: int) -> Refit:
    """Recompute the predictions and refit the first `num_free` blocks and the intercept, of several points at once; lam does not matter."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    return jax.vmap(lambda point: _refit(problem, target, blocks, point, num_free))(stacked)


def _refit(problem: Problem, target: jax.Array, blocks: jax.Array, point: Point, num_free: int) -> Refit:
    predictions = _predict(problem, blocks, point.coef) + point.intercept
    if num_free == 0 and not problem.intercept:
        return Refit(point._replace(predictions=predictions), predictions, jnp.zeros_like(target), jnp.zeros_like(target))
    free = blocks[:num_free].reshape(-1, blocks.shape[2])
    design = Dense(free.T)
    here = dataclasses.replace(problem, design=Centred(design, problem.design.shares) if problem.intercept else design)
    fit = fit_free(
        here,
        Coefficients(point.coef[:num_free].reshape(-1), point.intercept),
        predictions,
        jnp.ones(len(free), bool) if num_free else None,
        columns=jnp.sqrt(jnp.sum(problem.sample_weight[None] * free**2, axis=1)),
        target=target,
        max_steps=_FREE_STEPS,
        max_halvings=_FREE_HALVINGS,
    )
    penalised = fit.predictions - fit.point.intercept
    coef = point.coef
    if num_free:
        penalised = penalised - here.design.predict(fit.point.coef)
        coef = coef.at[:num_free].set(fit.point.coef.reshape(num_free, blocks.shape[1]))
    centre = problem.design.mean(_combined(blocks, coef)) if problem.intercept else jnp.zeros_like(target)
    return Refit(Point(coef, fit.point.intercept, fit.predictions), penalised, fit.remaining, centre)


@jax.jit
def certify(problem: Problem, lams: jax.Array, columns: jax.Array, scale: jax.Array, coefs: jax.Array, at: Refit, gradients: jax.Array) -> Check:
    """The certificates of refitted points [B], each at its own lam, whose coefficients are `coefs`, and −∇F `gradients`, both [B, p]."""

    def one(lam: jax.Array, coef: jax.Array, at: Refit, gradient: jax.Array) -> Check:
        here = with_lam(problem, lam)
        predictions = at.point.predictions
        residual = here.residual(predictions)
        objective = here.smooth_value(predictions) + here.penalty(coef)
        fit = FreeFit(Coefficients(coef, at.point.intercept), predictions, at.remaining)
        certificate = gap_after_refit(here, objective, fit, at.penalised, gradient, columns=columns, scale=scale)
        return Check(certificate, objective, violation(here, coef, residual, gradient), group_norms(gradient, here.groups), at.centre)

    return jax.vmap(one)(lams, coefs, at, gradients)


@jax.jit
def roots(problem: Problem, predictions: jax.Array, floor: jax.Array) -> jax.Array:
    """h^½, h = ∇²F (a diagonal), kept above `floor` times its bound (its mean, where it has none); `floor` = 1 majorises F."""
    curvature = problem.curvature_product(predictions, jnp.ones_like(predictions))
    if problem.loss.curvature is not None:
        bound = problem.loss.curvature * problem.sample_weight / problem.num_samples
    else:
        total = jnp.sum(problem.sample_weight)
        bound = problem.sample_weight * (jnp.sum(curvature) / jnp.where(total > 0, total, 1.0))
    return jnp.where(problem.sample_weight > 0, jnp.sqrt(jnp.maximum(curvature, floor * bound)), 0.0)


@jax.jit
def scale_blocks(problem: Problem, blocks: jax.Array, root: jax.Array, unit: jax.Array) -> jax.Array:
    """h^½ (x − its mean) / unit in float32; the mean, if there is an intercept, in the metric h, in which the intercept drops out."""
    if problem.intercept:
        shares = root**2 / jnp.sum(root**2)
        blocks = blocks - _products(blocks, shares)[:, :, None]
    return (blocks * (root / unit)[None, None]).astype(jnp.float32)


@jax.jit
def grams_of(blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A_g A_g' [C, q, q] and their eigenvalue bounds. One after another, for a batched product copies all blocks; and in a program of its own,
    for XLA would fuse into the product what makes them."""
    grams = lax.map(lambda block: jnp.dot(block, block.T, precision="highest"), blocks)
    return grams, eigenvalue_bounds(grams)


class Target(NamedTuple):
    """The residual of the model in float32, and the units: b = (coefficient of the model) · step."""

    residual: jax.Array
    step: jax.Array
    thresholds: jax.Array


def model_target(problem: Problem, root: jax.Array, residual: jax.Array, thresholds: jax.Array, unit: jax.Array) -> Target:
    scaled = jnp.where(root > 0, without_mean(problem, root, residual) / jnp.where(root > 0, root, 1.0), 0.0)
    size = jnp.max(jnp.abs(scaled)) * jnp.sqrt(jnp.asarray(scaled.shape[0], scaled.dtype))
    size = jnp.where(size > 0, size, 1.0)
    return Target((scaled / size).astype(jnp.float32), size / unit, (thresholds / (unit * size)).astype(jnp.float32))


def without_mean(problem: Problem, root: jax.Array, residual: jax.Array) -> jax.Array:
    """ρ after the model's best change of the intercept."""
    if not problem.intercept:
        return residual
    return residual - root**2 * (jnp.sum(residual) / jnp.sum(root**2))


def advance(problem: Problem, root, thresholds, point: Point, direction, moved: jax.Array, *, noise: float = 0.0) -> Point:
    """The best of a few lengths of a step, the intercept following as the model has it; the longest within `noise` · eps of the best.

    `moved` are the predictions of the direction.
    """
    if problem.intercept:
        weights = root**2
        shift = (jnp.sum(problem.residual(point.predictions)) - jnp.sum(weights * moved)) / jnp.sum(weights)
    else:
        shift = jnp.zeros_like(point.intercept)
    moved = moved + shift

    def value(length):
        norms = safe_sqrt(jnp.sum((point.coef + length * direction) ** 2, axis=1))
        return problem.smooth_value(point.predictions + length * moved) + jnp.sum(thresholds * norms)

    lengths = jnp.asarray(LENGTHS, moved.dtype)
    values = jax.vmap(value)(lengths)
    best = jnp.min(jnp.where(jnp.isnan(values), jnp.inf, values))
    length = lengths[jnp.argmax(values <= best + noise * jnp.finfo(values.dtype).eps * jnp.abs(best))]  # the first of those
    still = (length == 0) | ~jnp.isfinite(best)  # for NaN times 0 is NaN
    return jax.tree.map(lambda old, step: jnp.where(still, old, old + length * step), point, Point(direction, shift, moved))


class Descended(NamedTuple):
    """Where descent on the model began and ended [C, q], the residual there [T], in the units of `target`, and the target."""

    start: jax.Array
    end: jax.Array
    residual: jax.Array
    target: Target


@jax.jit
def descent_step(problem: Problem, scaled: Scaled, unit, thresholds, point: Point, ahead: jax.Array, order, count, cycles) -> Descended:
    """Descent on the model at `point`, from the coefficients `ahead` [C, q]."""
    target = model_target(problem, scaled.root, problem.residual(point.predictions), thresholds, unit)
    model = Model(scaled.blocks, scaled.grams, scaled.bounds, target.thresholds)
    start = (point.coef / target.step).astype(jnp.float32)
    jump = (ahead / target.step).astype(jnp.float32) - start
    flat = scaled.blocks.reshape(-1, scaled.blocks.shape[2])
    residual = lax.cond(jnp.any(jump != 0), lambda: target.residual - jump.reshape(-1) @ flat, lambda: target.residual)
    end, residual = descend(model, start + jump, residual, order, count, cycles)
    return Descended(start, end, residual, target)


@jax.jit
def supporting(scaled: Scaled, thresholds: jax.Array, coef: jax.Array, support: jax.Array) -> tuple[Model, jax.Array]:
    """The model and the coefficients on the groups listed in `support` [S] (padded with −1), contiguous: for many products."""
    row = jnp.where(support < 0, len(coef), support)
    return compact(Model(scaled.blocks, scaled.grams, scaled.bounds, thresholds), support), coef.at[row].get(mode="fill", fill_value=0)


model_newton_steps = jax.jit(newton_steps)


@jax.jit
def arrive(
    problem: Problem, scaled: Scaled, unit, thresholds, point: Point, descended: Descended, end: jax.Array, residual: jax.Array
) -> tuple[Point, jax.Array]:
    """From the model back to the problem: as far towards the model's `end` as the objective falls; and ‖X_g' ρ‖ [C] at that end, roughly."""
    root, step = scaled.root, descended.target.step
    # Differences of float32 numbers, so that what did not move does not move by a rounding; what became zero becomes exactly that.
    direction = jnp.where(end == 0, -point.coef, (end - descended.start).astype(step.dtype) * step)
    fallen = (descended.target.residual - residual).astype(step.dtype) * (step * unit)
    moved = _centred(problem, jnp.where(root > 0, fallen / jnp.where(root > 0, root, 1.0), 0.0))
    pulls = (scaled.blocks.reshape(-1, len(residual)) @ residual).reshape(end.shape).astype(step.dtype)
    norms = safe_sqrt(jnp.sum(pulls**2, axis=1)) * (step * unit**2)
    return advance(problem, root, thresholds, point, direction, moved, noise=16.0), norms


@jax.jit
def exact_newton_step(problem: Problem, blocks, root, few: Model, unit, thresholds, point: Point, support) -> Point:
    """A Newton step with the gradient, and the predictions it is of, in the arrays' own dtype: float32's end at a gap of about 1e-6."""
    point = point._replace(predictions=_predict(problem, blocks, point.coef) + point.intercept)
    residual = problem.residual(point.predictions)
    norms = safe_sqrt(jnp.sum(point.coef**2, axis=1, keepdims=True))
    pull = point.coef / jnp.where(norms == 0, 1.0, norms)
    pulled = _products(blocks, without_mean(problem, root, residual))
    moving = (norms > 0) | (thresholds == 0)[:, None]
    descent = jnp.where(moving, pulled - thresholds[:, None] * pull, 0.0)
    size = jnp.max(jnp.abs(descent)) * jnp.sqrt(jnp.asarray(descent.size, descent.dtype))
    size = jnp.where(size > 0, size, 1.0)
    target = model_target(problem, root, residual, thresholds, unit)
    row = jnp.where(support < 0, blocks.shape[0], support)

    def part(array):
        return array.astype(jnp.float32).at[row].get(mode="fill", fill_value=0)

    model = few._replace(thresholds=part(target.thresholds))
    found = newton_direction(model, part(point.coef / target.step), part(descent / size)).astype(descent.dtype) * (size / unit**2)
    direction = admissible(point.coef, jnp.zeros_like(point.coef).at[row].set(found, mode="drop"), thresholds)
    # A step that improves the gradient need not show in the objective.
    return advance(problem, root, thresholds, point, direction, _predict(problem, blocks, direction), noise=16.0)


@jax.jit
def scales(problem: Problem, columns: jax.Array, null: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The null objective, `null` being its predictions, and the size of a column."""
    return null_objective(problem, null), column_unit(problem, columns)


def column_unit(problem: Problem, columns: jax.Array) -> jax.Array:
    """The root mean square of the largest column: what the model's columns are divided by."""
    largest = jnp.max(columns) / jnp.sqrt(jnp.asarray(problem.num_samples, columns.dtype))
    return jnp.where(largest > 0, largest, 1.0)


@jax.jit
def nothing(problem: Problem, rows: jax.Array) -> tuple[Point, jax.Array]:
    """The point zero on a working set, and its smooth value."""
    dtype = problem.offset.dtype
    zeros = Point(jnp.zeros(rows.shape, dtype), jnp.zeros((), dtype), jnp.zeros_like(problem.offset))
    return zeros, problem.smooth_value(zeros.predictions)
