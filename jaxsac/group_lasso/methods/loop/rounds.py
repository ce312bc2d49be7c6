"""The working-set method as one compiled loop, for traced problems: rounds on the quadratic model
in float32, certified in between.

A round minimises the model over the groups that are not zero or should not be, in the order of
‖X_g' ρ‖ / (lam w_g): block descent, then Newton steps on the support. It then moves as far as the
objective falls. Unlike the host's form it keeps a float32 copy of all columns, so that no group is
ever left out; only the Newton steps gather columns, to a fixed capacity, and a wider support goes
without them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops
from jaxsac._iterate import Certificate, Outcome, iterate
from jaxsac.designs import Dense
from jaxsac.group_lasso.model.descent import Model, descend, gram_matrices, nonzero_order
from jaxsac.group_lasso.model.newton import CG_TOLERANCE, admissible, newton_direction, newton_step
from jaxsac.group_lasso.model.quadratic import (
    LENGTHS,
    Point,
    best_step,
    column_unit,
    intercept_change,
    model_target,
    roots,
    without_mean,
)
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, uncentred
from jaxsac.prox import Groups
from jaxsac.prox.groups import safe_sqrt

_ROUNDS = 10
_PATIENCE = 4  # rounds without progress
_SWEEPS = 2  # over the model in a round
_CYCLES = (
    3  # of extrapolated descent in a sweep, at most; none in the first round, one more in each
)
_FLOOR = 1e-6  # of a record's curvature, relative to its bound
_WORTHWHILE = 1 << 15  # numbers in X below which the plain loop compiles sooner and runs as fast
_GATHERED = 1 << 24  # numbers in the support's columns, at most


class Scaled(NamedTuple):
    """h^½ X_g / unit in float32, their Gram matrices and bounds, and h^½: the quadratic model, but
    for what changes with the point.
    """

    blocks: jax.Array
    grams: jax.Array
    bounds: jax.Array
    root: jax.Array


def applies(problem: Objective) -> bool:
    """Whether this method is for the problem: a dense design that is not tiny (or a problem that is
    hard), groups in blocks, nothing else in the penalty.
    """
    design = uncentred(problem)
    if not isinstance(design, Dense) or (design.matrix.size < _WORTHWHILE and not problem.hard):
        return False
    blocks = problem.groups.labels is None or problem.groups.members is not None
    return blocks and problem.extra is None and problem.loss.separable


def run_rounds(
    problem: Objective,
    columns: jax.Array,
    fixed: Scaled | None,
    start: Coefficients,
    certify: Callable[[Coefficients], Certificate],
    tol: jax.Array,
    max_rounds: jax.Array,
) -> Outcome:
    """Rounds from `start` until the certificate meets the tolerance or a few were of no use; the
    state is `Coefficients`. `fixed` is what `fixed_model` says.
    """
    groups = problem.groups
    blocks, unit = _blocks(problem), column_unit(problem, columns)

    def step(state: tuple[Point, jax.Array]) -> tuple[Point, jax.Array]:
        point, num_rounds = state
        scaled = _model_at(problem, blocks, unit, point.predictions) if fixed is None else fixed
        residual = problem.residual(point.predictions)
        target = model_target(problem.intercept, scaled.root, residual, problem.thresholds, unit)
        begin = (point.coef / target.step).astype(jnp.float32)
        model = Model(scaled.blocks, scaled.grams, scaled.bounds, target.thresholds)
        end = minimise(model, begin, target.residual, jnp.minimum(num_rounds, _CYCLES))
        # Differences of float32 numbers, so that what did not move does not move by a rounding;
        # what became zero becomes exactly that.
        direction = jnp.where(
            end == 0, -point.coef, (end - begin).astype(point.coef.dtype) * target.step
        )
        moved = problem.design.predict(flat(groups, direction))
        point = advance(problem, scaled.root, problem.thresholds, point, direction, moved)
        return polish(problem, scaled, unit, point), num_rounds + 1

    def certificate(state: tuple[Point, jax.Array]) -> Certificate:
        return certify(Coefficients(flat(groups, state[0].coef), state[0].intercept))

    first = Point(groups.blocks(start.coef), start.intercept, problem.predict(start))
    ended = iterate(
        step,
        certificate,
        (first, jnp.int32(0)),
        tol=tol,
        max_steps=jnp.minimum(_ROUNDS, max_rounds),
        patience=_PATIENCE,
    )
    point = ended.state[0]
    return ended._replace(state=Coefficients(flat(groups, point.coef), point.intercept))


def fixed_model(problem: Objective, columns: jax.Array) -> Scaled | None:
    """The model of a quadratic loss, the same at all points; None where it changes."""
    if not problem.loss.quadratic:
        return None
    return _model_at(
        problem, _blocks(problem), column_unit(problem, columns), jnp.zeros_like(problem.offset)
    )


def _blocks(problem: Objective) -> jax.Array:
    """X_g' [G, q, T]."""
    return jax.vmap(problem.groups.blocks, out_axes=2)(uncentred(problem).matrix)


def _model_at(
    problem: Objective, blocks: jax.Array, unit: jax.Array, predictions: jax.Array
) -> Scaled:
    root = roots(problem, predictions, jnp.asarray(_FLOOR, predictions.dtype))
    scaled = scale_blocks(problem, blocks, root, unit)
    grams, bounds = gram_matrices(lax.optimization_barrier(scaled))
    return Scaled(scaled, grams, bounds, root)


def polish(problem: Objective, scaled: Scaled, unit: jax.Array, point: Point) -> Point:
    """A Newton step with a gradient in the arrays' own dtype: what float32 makes of a residual ends
    at a gap of about 1e-8.
    """
    residual = problem.residual(point.predictions)
    target = model_target(problem.intercept, scaled.root, residual, problem.thresholds, unit)
    model = Model(scaled.blocks, scaled.grams, scaled.bounds, target.thresholds)
    order = jnp.arange(len(scaled.blocks), dtype=jnp.int32)
    few, row, enough = _support(model, point.coef, order)
    norms = safe_sqrt(jnp.sum(point.coef**2, axis=1, keepdims=True))
    pull = problem.thresholds[:, None] * point.coef / jnp.where(norms == 0, 1.0, norms)
    pulled = problem.groups.blocks(
        problem.design.adjoint(without_mean(problem.intercept, scaled.root, residual))
    )
    moving = ((norms > 0) | (problem.thresholds == 0)[:, None]) & enough
    descent = jnp.where(moving, pulled - pull, 0.0)
    size = jnp.max(jnp.abs(descent))
    size = jnp.where(size > 0, size, 1.0)

    def part(array):
        return array.astype(jnp.float32).at[row].get(mode="fill", fill_value=0)

    found = newton_direction(few, part(point.coef / target.step), part(descent / size)).astype(
        descent.dtype
    ) * (size / unit**2)
    direction = admissible(
        point.coef, jnp.zeros_like(point.coef).at[row].set(found, mode="drop"), problem.thresholds
    )
    moved = problem.design.predict(flat(problem.groups, direction))
    return advance(problem, scaled.root, problem.thresholds, point, direction, moved)


def scale_blocks(
    problem: Objective, blocks: jax.Array, root: jax.Array, unit: jax.Array
) -> jax.Array:
    """h^½ (x − its mean) / unit in float32; the mean, if there is an intercept, in the metric h, in
    which the intercept drops out.
    """
    if problem.intercept:
        shares = root**2 / jnp.sum(root**2)
        means = jnp.dot(blocks.reshape(-1, blocks.shape[2]), shares, precision="highest")
        blocks = blocks - means.reshape(*blocks.shape[:2], 1)
    return (blocks * (root / unit)[None, None]).astype(jnp.float32)


def advance(
    problem: Objective,
    root: jax.Array,
    thresholds: jax.Array,
    point: Point,
    direction: jax.Array,
    moved: jax.Array,
) -> Point:
    """The best of a few lengths of a step, the intercept following as the model has it. `moved` are
    the predictions of the direction.
    """
    shift = intercept_change(problem.intercept, root, problem.residual(point.predictions), moved)

    def value(length):
        norms = safe_sqrt(jnp.sum((point.coef + length * direction) ** 2, axis=1))
        return problem.smooth_value(point.predictions + length * (moved + shift)) + jnp.sum(
            thresholds * norms
        )

    length, still = best_step(jax.vmap(value)(jnp.asarray(LENGTHS, moved.dtype)))
    # NaN times 0 is NaN.
    return jax.tree.map(
        lambda old, step: jnp.where(still, old, old + length * step),
        point,
        Point(direction, shift, moved + shift),
    )


def minimise(model: Model, coef: jax.Array, residual: jax.Array, cycles: jax.Array) -> jax.Array:
    """Coefficients [G, q] near the minimum of the model, from `coef` with residual [T]."""
    return _loops.fori_loop(
        0, _SWEEPS, lambda _, carry: _sweep(model, carry[0], carry[1], cycles), (coef, residual)
    )[0]


def _sweep(
    model: Model, coef: jax.Array, residual: jax.Array, cycles: jax.Array
) -> tuple[jax.Array, jax.Array]:
    num_groups, size, num_samples = model.blocks.shape
    pulls = safe_sqrt(
        jnp.sum(
            (model.blocks.reshape(-1, num_samples) @ residual).reshape(num_groups, size) ** 2,
            axis=1,
        )
    )
    needed = (pulls > model.thresholds) | jnp.any(coef != 0, axis=1) | (model.thresholds == 0)
    strength = pulls / jnp.where(model.thresholds > 0, model.thresholds, 1.0)
    order = jnp.argsort(jnp.where(needed, -strength, jnp.inf)).astype(jnp.int32)
    coef, residual = descend(model, coef, residual, order, jnp.sum(needed, dtype=jnp.int32), cycles)

    few, row, enough = _support(model, coef, order)
    own = coef.at[row].get(mode="fill", fill_value=0)
    # Where there is no room for all, none of a direction is asked.
    own, residual = newton_step(
        few, own, residual, jnp.where(enough, jnp.float32(CG_TOLERANCE), jnp.float32(jnp.inf))
    )
    return coef.at[row].set(own, mode="drop"), residual


def _support(model: Model, coef: jax.Array, order: jax.Array) -> tuple[Model, jax.Array, jax.Array]:
    """The model on the groups that are not zero or have no threshold, their rows in `coef` (padded
    with G), and whether all found room.
    """
    num_groups, size, num_samples = model.blocks.shape
    capacity = max(1, min(num_groups, 2 * num_samples // size, _GATHERED // (size * num_samples)))
    held = jnp.where((model.thresholds == 0)[:, None], jnp.ones_like(coef), coef)
    support, found = nonzero_order(held, order, jnp.int32(num_groups))
    room = jnp.arange(capacity, dtype=jnp.int32) < found
    row = jnp.where(room, support[:capacity], num_groups)
    few = Model(*(array.at[row].get(mode="fill", fill_value=0) for array in model))
    return few, row, found <= capacity


def flat(groups: Groups, blocks: jax.Array) -> jax.Array:
    """[G, q] as [p]: the inverse of `groups.blocks`."""
    if groups.labels is None:
        return blocks.reshape(-1)
    return (
        jnp.zeros(groups.num_coefficients, blocks.dtype)
        .at[jnp.asarray(groups.members)]
        .set(blocks, mode="drop")
    )
