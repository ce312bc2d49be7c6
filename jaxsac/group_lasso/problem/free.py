"""The unpenalised part: the intercept and the groups without a penalty, fitted by damped Newton
steps while the rest stays. Alone it is the null model: the scale of a gap, and the least lam at
which everything else is zero.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops
from jaxsac._linear import conjugate_gradient
from jaxsac.group_lasso.problem.objective import (
    Coefficients,
    Objective,
    sizes,
    spread,
    when,
    with_lam,
)
from jaxsac.group_lasso.problem.support import with_derivatives

_MAX_CG_STEPS = 100
_CG_TOLERANCE, _CG_ENOUGH = 1e-3, 0.1  # of the gradient, that a step may leave
_NULL_STEPS = 50
_NULL_HALVINGS = 30


class FreeFit(NamedTuple):
    """Coefficients, their predictions, and how much the objective can still fall in the unpenalised
    directions.
    """

    point: Coefficients
    predictions: jax.Array
    remaining: jax.Array


class _Carry(NamedTuple):
    fit: FreeFit
    running: jax.Array
    steps: jax.Array


def fit_free(
    problem: Objective,
    point: Coefficients,
    predictions: jax.Array,
    free: jax.Array | None,
    *,
    columns: jax.Array,
    target: jax.Array,
    max_steps: int,
    max_halvings: int = 0,
) -> FreeFit:
    """Minimise F, and the ridge, over the intercept and over the coefficients marked in `free` [p]
    (None: none), starting at `point`.

    `columns` are ‖C^½ x_j‖ [p]. Ends when a Newton step promises less than `target`, or after
    `max_steps`. A step that does not lower F is halved up to `max_halvings` times, then refused.
    `remaining` is that promise, the squared Newton decrement; where conjugate gradients could not
    solve for the step it is the whole objective. Costs nothing where nothing is free.
    """
    if free is None and not problem.intercept:
        return FreeFit(point, predictions, jnp.zeros_like(target))
    any_free = None if free is None else jnp.any(free)
    mask = jnp.zeros_like(point.coef) if free is None else free.astype(predictions.dtype)
    eps = jnp.finfo(predictions.dtype).eps

    def column_step(fit, residual):
        at = fit.predictions

        def product(v):
            bent = problem.design.adjoint(
                problem.curvature_product(at, problem.design.predict(mask * v))
            )
            return mask * (bent if problem.ridge is None else bent + problem.ridge * v)

        pull = problem.design.adjoint(residual)
        gradient = mask * (pull if problem.ridge is None else pull - problem.ridge * fit.point.coef)
        # What rounding leaves of a gradient that should vanish; below it there is nothing to solve.
        floor = (
            eps
            * jnp.sqrt(jnp.sum((mask * columns) ** 2))
            * sizes(problem, spread(columns, fit.point.coef), at)[0]
        )
        step, solved = _newton_step(product, gradient, floor)
        return Coefficients(step, jnp.zeros_like(point.intercept)), jnp.vdot(gradient, step), solved

    def energy(predictions, coef):
        smooth = problem.smooth_value(predictions)
        return smooth if problem.ridge is None else smooth + 0.5 * problem.ridge * jnp.sum(coef**2)

    def intercept_step(residual, at):
        gradient = jnp.sum(residual, axis=0)

        def product(v):
            return jnp.sum(problem.curvature_product(at, problem.constant(v)), axis=0)

        if gradient.ndim == 0:
            slope = product(jnp.ones_like(gradient))
            step = gradient / jnp.where(slope > 0, slope, 1.0)
            return step, gradient * step
        # A shift of all outputs may not matter at all: what rounding leaves of the gradient along
        # it is no direction to go.
        step, _ = _newton_step(
            product, gradient, 8.0 * eps * jnp.max(jnp.sum(jnp.abs(residual), axis=0))
        )
        return step, jnp.vdot(gradient, step)

    def advance(carry: _Carry) -> _Carry:
        fit = carry.fit
        residual = problem.residual(fit.predictions)
        nothing = (
            Coefficients(jnp.zeros_like(point.coef), jnp.zeros_like(point.intercept)),
            jnp.zeros_like(target),
            jnp.asarray(True),
        )
        direction, promise, solved = (
            nothing
            if any_free is None
            else when(any_free, lambda: column_step(fit, residual), nothing)
        )
        if problem.intercept:
            shift, gain = intercept_step(residual, fit.predictions)
            direction, promise = Coefficients(direction.coef, shift), promise + gain
        value = energy(fit.predictions, fit.point.coef)
        moved = problem.constant(direction.intercept)
        if any_free is not None:
            moved = moved + when(
                any_free,
                lambda: problem.design.predict(direction.coef),
                jnp.zeros_like(predictions),
            )
        running = promise > target

        def fits(size):
            # Small steps change F by less than its rounding, and are the good ones.
            there = energy(fit.predictions + size * moved, fit.point.coef + size * direction.coef)
            return there <= value + 8.0 * eps * jnp.abs(value)

        size = jnp.where(running, jnp.ones_like(target), 0.0)
        if max_halvings:
            least = 0.5**max_halvings
            size = _loops.while_loop(
                lambda size: (size > least) & ~fits(size), lambda size: 0.5 * size, size
            )
        size = jnp.where(fits(size), size, 0.0)
        point_ = jax.tree.map(lambda old, step: old + size * step, fit.point, direction)
        remaining = jnp.where(solved, jnp.abs(promise), jnp.maximum(jnp.abs(promise), value))
        return _Carry(
            FreeFit(point_, fit.predictions + size * moved, remaining),
            running & (size > 0),
            carry.steps + 1,
        )

    running = jnp.asarray(True) if problem.intercept or any_free is None else any_free
    start = _Carry(FreeFit(point, predictions, jnp.zeros_like(target)), running, jnp.int32(0))
    return _loops.while_loop(lambda c: c.running & (c.steps < max_steps), advance, start).fit


def without_free(
    problem: Objective, predictions: jax.Array, residual: jax.Array, free: jax.Array | None
) -> jax.Array:
    """What refitting the unpenalised part leaves of a change of ρ: residual − H U (U' H U)^-1 U'
    residual, H = ∇²F at the predictions.
    """
    if free is None and not problem.intercept:
        return residual
    zeros = problem.zeros()
    mask = jnp.zeros_like(zeros.coef) if free is None else free.astype(zeros.coef.dtype)

    def up(direction: Coefficients) -> jax.Array:
        moved = problem.constant(direction.intercept)
        return moved if free is None else moved + problem.design.predict(mask * direction.coef)

    def down(vector: jax.Array) -> Coefficients:
        pulled = zeros.coef if free is None else mask * problem.design.adjoint(vector)
        return Coefficients(
            pulled, jnp.sum(vector, axis=0) if problem.intercept else zeros.intercept
        )

    def product(direction: Coefficients) -> Coefficients:
        return down(problem.curvature_product(predictions, up(direction)))

    moved = conjugate_gradient(product, down(residual), max_steps=_MAX_CG_STEPS).x
    return residual - problem.curvature_product(predictions, up(moved))


def _newton_step(
    product: Callable[[jax.Array], jax.Array], gradient: jax.Array, floor: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Solve product(step) = gradient to 0.1 %; also whether at most 10 % of it, or `floor`, is
    left.
    """
    found = conjugate_gradient(
        product, gradient, tol=_CG_TOLERANCE, floor=floor, max_steps=_MAX_CG_STEPS
    )
    enough = jnp.maximum(_CG_ENOUGH * jnp.linalg.norm(gradient), floor)
    return found.x, jnp.linalg.norm(found.residual) <= enough


def fit_null(problem: Objective, columns: jax.Array) -> tuple[Coefficients, jax.Array]:
    """The model with zero for everything penalised (w_g > 0), and its predictions."""
    zeros = problem.zeros()
    predictions = jnp.zeros_like(problem.offset)
    target = 4.0 * jnp.finfo(predictions.dtype).eps ** 2 * problem.smooth_value(predictions)
    free = problem.unpenalised if problem.most_free else None
    fit = fit_free(
        problem,
        zeros,
        predictions,
        free,
        columns=columns,
        target=target,
        max_steps=_NULL_STEPS,
        max_halvings=_NULL_HALVINGS,
    )
    return fit.point, fit.predictions


def null_objective(problem: Objective, predictions: jax.Array) -> jax.Array:
    """F at the null model's predictions. Where that fits exactly it is rounding: it stays above the
    rounding of the data.
    """
    return problem.smooth_value(predictions) + jnp.finfo(
        predictions.dtype
    ).eps * problem.smooth_value(jnp.zeros_like(predictions))


def refit_target(tol: Any, scale: Any) -> Any:
    """How small a decrease a refit of what is unpenalised may leave: its square root, to which the
    gap is of the first order, is to be small beside the tolerance.
    """
    return (0.0005 * tol) ** 2 * scale


def geometric(largest: Any, min_ratio: Any, num_lams: int) -> jax.Array:
    """From the largest lam to min_ratio times that."""
    powers = (
        jnp.linspace(0.0, 1.0, num_lams, dtype=largest.dtype)
        if num_lams > 1
        else jnp.zeros(1, largest.dtype)
    )
    return largest * min_ratio**powers


@jax.jit
def lam_max_of(problem: Objective) -> jax.Array:
    still = lax.stop_gradient(problem)
    null, _ = fit_null(still, jnp.sqrt(still.design.column_squares(still.sample_weight)))
    return null_pull(with_lam(problem, jnp.zeros_like(problem.lam)), null)


def null_pull(problem: Objective, null: Coefficients) -> jax.Array:
    """The largest pull at the null model, with its derivative."""
    null = with_derivatives(problem, null, support=problem.unpenalised)
    return largest_pull(problem, problem.design.adjoint(problem.residual(problem.predict(null))))


def largest_pull(problem: Objective, gradient: jax.Array) -> jax.Array:
    """max_g ‖gradient_g‖ / w_g over penalised groups, or the dual norm of another penalty."""
    return problem.whole_penalty.dual_norm(jnp.where(problem.unpenalised, 0.0, gradient))
