"""Accelerated proximal gradient with gradient-based restart (Beck & Teboulle 2009; O'Donoghue &
Candès 2015).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsac.designs.maps import largest_eigenvalue, squared_norm
from jaxsac.group_lasso.problem.objective import Coefficients, Objective
from jaxsac.solution import register

_MARGIN = 1.02  # power iteration gives a lower bound; the check of every step mends the rest


@register
class State(NamedTuple):
    """What continues a run: this point and the one before, in the units of the design as it was
    given.
    """

    coef: jax.Array  # [p]
    intercept: jax.Array  # [], or [M]
    previous_coef: jax.Array  # [p]
    previous_intercept: jax.Array  # [], or [M]
    momentum: jax.Array  # ≥ 1 []
    inflation: jax.Array  # of the step's curvature []


def start(point: Coefficients) -> State:
    """A run that begins at the point."""
    one = jnp.ones((), point.coef.dtype)
    return State(*point, *point, one, one)


class Iterate(NamedTuple):
    """State of the loop: two points, their predictions, momentum t, and the factor on the
    curvature.
    """

    point: Coefficients
    predictions: jax.Array
    previous: Coefficients
    previous_predictions: jax.Array
    momentum: jax.Array
    inflation: jax.Array


class Curvature(NamedTuple):
    """Lipschitz constants of the gradient in the coefficients and in the intercept, and ‖C^½
    X‖₂.
    """

    coef: jax.Array
    intercept: jax.Array
    norm: jax.Array


def state_of(at: Iterate) -> State:
    return State(*at.point, *at.previous, at.momentum, at.inflation)


def measure_curvature(problem: Objective, null: jax.Array) -> Curvature:
    """The constants of the loss's quadratic majorant at the predictions `null`, or of its Hessian
    there, to be backtracked from.
    """
    norm = jnp.sqrt(squared_norm(problem.design, problem.sample_weight))
    bound = problem.majorant(null)
    if bound is not None:
        share = bound / problem.num_samples
        of_coef, of_intercept = share * norm**2, share * jnp.sum(problem.sample_weight)
    else:

        def product(v):
            return problem.design.adjoint(
                problem.curvature_product(null, problem.design.predict(v))
            )

        of_coef = largest_eigenvalue(product, problem.design.num_coefficients, problem.offset.dtype)
        ones = problem.constant(jnp.ones_like(problem.offset[0]))
        of_intercept = jnp.max(jnp.sum(problem.curvature_product(null, ones), axis=0))

    def positive(number):
        return jnp.where(number == 0, 1.0, _MARGIN * number)

    return Curvature(positive(of_coef), positive(of_intercept), norm)


def allowed(problem: Objective, coef: jax.Array) -> jax.Array:
    """The nearest coefficients that the constraints allow."""
    return (
        jnp.maximum(coef, 0.0) if problem.extra is not None and problem.extra.nonnegative else coef
    )


def begin(problem: Objective, state: State) -> Iterate:
    """The state with its predictions; what the constraints forbid is brought back."""
    last = Coefficients(allowed(problem, state.coef), state.intercept)
    previous = Coefficients(allowed(problem, state.previous_coef), state.previous_intercept)
    return Iterate(
        last,
        problem.predict(last),
        previous,
        problem.predict(previous),
        state.momentum,
        state.inflation,
    )


def fista_step(problem: Objective, curvature: Curvature, at: Iterate) -> Iterate:
    """One step. A step that turns out too long for the curvature met on it is taken back, and the
    next ones are shorter.
    """
    momentum = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * at.momentum**2))
    ahead = (at.momentum - 1.0) / momentum

    def extrapolate(new, old):
        return new + ahead * (new - old)

    start = jax.tree.map(extrapolate, at.point, at.previous)
    start_predictions = extrapolate(at.predictions, at.previous_predictions)
    residual = problem.residual(start_predictions)
    of_coef, of_intercept = at.inflation * curvature.coef, at.inflation * curvature.intercept

    coef = problem.whole_penalty.prox(
        start.coef + problem.design.adjoint(residual) / of_coef, problem.lam, 1.0 / of_coef
    )
    intercept = (
        start.intercept + jnp.sum(residual, axis=0) / of_intercept
        if problem.intercept
        else start.intercept
    )
    point = Coefficients(coef, intercept)
    predictions = problem.predict(point)

    step = jax.tree.map(jnp.subtract, point, start)
    allowed = of_coef * jnp.sum(step.coef**2) + of_intercept * jnp.sum(step.intercept**2)
    met, noise = _curvature_met(problem, curvature, residual, start_predictions, predictions, point)
    good = met <= allowed + noise
    growth = jnp.where(
        jnp.isfinite(met),
        jnp.clip(1.05 * met / jnp.where(allowed > 0, allowed, 1.0), 1.1, 10.0),
        10.0,
    )
    inflation = jnp.where(good, at.inflation, at.inflation * growth)

    # Restart when the step and the momentum disagree: <start − point, point − last point> > 0, in
    # the metric of the steps.
    turn = jax.tree.map(lambda s, new, old: jnp.sum(-s * (new - old)), step, point, at.point)
    restart = of_coef * turn.coef + of_intercept * turn.intercept > 0
    taken = Iterate(
        point, predictions, at.point, at.predictions, jnp.where(restart, 1.0, momentum), inflation
    )
    refused = Iterate(
        at.point, at.predictions, at.point, at.predictions, jnp.ones_like(momentum), inflation
    )
    return jax.tree.map(lambda yes, no: jnp.where(good, yes, no), taken, refused)


def _curvature_met(problem, curvature, residual, start, end, point):
    """Twice the second-order part of F along the step, and what rounding may add to it."""
    eps = jnp.finfo(end.dtype).eps
    bound = problem.majorant(start)
    if bound is not None:
        share = bound / problem.num_samples
        sizes = problem.weighted_norm(end) ** 2 + curvature.norm**2 * jnp.sum(point.coef**2)
        return share * problem.weighted_norm(end - start) ** 2, share * (16.0 * eps) ** 2 * sizes
    before, after = problem.smooth_value(start), problem.smooth_value(end)
    noise = 32.0 * eps * (jnp.abs(before) + jnp.abs(after))
    met = 2.0 * (after - before + jnp.sum(residual * (end - start)))
    # no step to an infinite objective is good
    return met, jnp.where(jnp.isfinite(noise), noise, 0.0)
