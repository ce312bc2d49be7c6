"""The duality gap of a point, recomputed from its coefficients alone, with a bound on what rounding
may hide in it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac._iterate import Certificate
from jaxsac.group_lasso.problem.free import fit_free
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, sizes, spread, when
from jaxsac.prox import group_norms

# Multiples of eps, twice what hundreds of random problems needed.
_OF_VALUES = 4.0
_OF_PULL = 2.0
_OF_WHOLE = 0.25  # of a dual value that is linear in its scale
_OF_ROOT = 8.0  # of a dual norm that is found by Newton steps
_FREE_STEPS = 6


class Pulls(NamedTuple):
    """What a gap takes of the coefficients [p] and of X' ρ [p]."""

    penalty: jax.Array  # lam Ω(b)
    ridge: Any  # ridge ‖b‖²
    spread: jax.Array  # see `objective.spread`
    worst: jax.Array  # Ω*(X' ρ − ridge b) over what is penalised
    bound: jax.Array  # of Ω* of the columns' sizes, over what is penalised


def duality_gap(
    problem: Objective,
    point: Coefficients,
    *,
    columns: jax.Array,
    scale: jax.Array,
    target: jax.Array,
) -> Certificate:
    """The gap P(b) − D(s ρ) between the objective and a dual value, so that P(b) − min P ≤ gap, up
    to rounding.

    ρ = −∇F at predictions whose unpenalised part is refitted, which makes it orthogonal to that
    part; s ≤ lam w_g / ‖X_g' ρ‖ for all g. What the refit leaves undone (`FreeFit.remaining`) is
    added to the gap. `columns` are ‖C^½ x_j‖ [p], and `target` is the remaining decrease at which
    the refit may end.
    """
    predictions = problem.predict(point)
    objective = problem.smooth_value(predictions) + problem.penalty(point.coef)

    free = problem.free if problem.most_free or problem.free_lam else None
    fit = fit_free(
        problem, point, predictions, free, columns=columns, target=target, max_steps=_FREE_STEPS
    )
    penalised = fit.predictions - problem.constant(fit.point.intercept)
    if free is not None and problem.ridge is None:  # a ridge holds the free columns too
        penalised = penalised - when(
            jnp.any(free),
            lambda: problem.design.predict(jnp.where(free, fit.point.coef, 0.0)),
            jnp.zeros_like(predictions),
        )

    # In general s Ω*(X' ρ − ridge b) ≤ lam, Ω* being the dual norm of all that lam multiplies; the
    # ridge is one more quadratic loss.
    gradient = problem.design.adjoint(problem.residual(fit.predictions))
    gradient = gradient if problem.ridge is None else gradient - problem.ridge * fit.point.coef
    norms = problem.whole_penalty
    pulls = Pulls(
        penalty=problem.penalty(fit.point.coef),
        ridge=0.0 if problem.ridge is None else problem.ridge * jnp.sum(fit.point.coef**2),
        spread=spread(columns, fit.point.coef),
        worst=norms.dual_norm(jnp.where(problem.free, 0.0, gradient)),
        bound=norms.dual_norm_bound(jnp.where(problem.free, 0.0, columns)),
    )
    return gap_from(problem, objective, fit.predictions, fit.remaining, penalised, pulls, scale)


def gap_from(
    problem: Objective,
    objective: jax.Array,
    predictions: jax.Array,
    remaining: jax.Array,
    penalised: jax.Array,
    pulls: Pulls,
    scale: jax.Array,
) -> Certificate:
    """`objective` minus the dual value at refitted `predictions`, and what rounding may hide in the
    difference.
    """
    worst, ridge = pulls.worst, pulls.ridge
    limit = jnp.where(worst == 0, jnp.inf, problem.lam / jnp.where(worst == 0, 1.0, worst))
    _, bound = problem.loss.dual_value(
        problem.offset + predictions, problem.y, problem.sample_weight, penalised, limit, ridge
    )
    gap = jnp.maximum(objective - bound, 0.0)
    # ρ is orthogonal to the unpenalised part U but for what the refit left, and the bound lacks (U'
    # ρ)'(u* − u): at most the product of the two in the norm of the Hessian, remaining^½ and a
    # distance, (2 P)^½ at the most.
    gap = gap + remaining + 2.0 * jnp.sqrt(remaining * (scale + gap))

    # Rounding moves the two values, and through X' ρ the scale s, by as much of s ρ' X b = lam Ω(b)
    # as X_g' ρ is off relative to lam w_g (of the whole dual value, where that is linear in s).
    info = jnp.finfo(gap.dtype)
    of_residual, of_value = sizes(problem, pulls.spread, predictions)
    pull = pulls.bound * of_residual
    pull = jnp.where(problem.lam == 0, 0.0, pull / jnp.where(problem.lam == 0, 1.0, problem.lam))
    pull = pull if problem.extra is None else pull + _OF_ROOT
    lever = pulls.penalty + 0.5 * ridge
    lever = lever if problem.loss.separable else lever + _OF_WHOLE * jnp.abs(bound)
    rounding = info.eps * (
        _OF_VALUES * (jnp.abs(objective) + jnp.abs(bound) + of_value) + _OF_PULL * pull * lever
    )
    # Squares that underflow would look like a gap of 0.
    rounding = rounding + jnp.where(of_residual > 0, 8.0 * info.tiny, 0.0)
    return Certificate(gap, rounding, scale)


def violation(problem: Objective, point: Coefficients) -> jax.Array:
    """The largest violation of the optimality conditions, in units of the gradient.

    b_g ≠ 0: ‖X_g' ρ − lam w_g b_g/‖b_g‖‖; b_g = 0: max(0, ‖X_g' ρ‖ − lam w_g); intercept: |Σ_t
    ρ_t|. The largest.

    In general the distance of X' ρ from the subgradients of the penalty, by groups.
    """
    residual = problem.residual(problem.predict(point))
    gradient = problem.design.adjoint(residual)
    left = problem.whole_penalty.violation(point.coef, gradient, problem.lam)
    worst = jnp.max(group_norms(left, problem.groups))
    return (
        jnp.maximum(worst, jnp.max(jnp.abs(jnp.sum(residual, axis=0))))
        if problem.intercept
        else worst
    )
