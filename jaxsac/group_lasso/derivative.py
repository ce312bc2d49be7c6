"""Derivatives of the solution by the implicit function theorem, on its support only."""

import jax
import jax.numpy as jnp

from jaxsac._implicit import conjugate_gradient, implicit
from jaxsac.group_lasso.problem import Coefficients, Problem
from jaxsac.prox import group_norms


def with_derivatives(problem: Problem, point: Coefficients, support: jax.Array | None = None) -> Coefficients:
    """`point` with its derivative with respect to every array in `problem`.

    On the groups with b_g ≠ 0 (and on those without a penalty, and the intercept) the solution solves
    −X_g' ρ + lam w_g b_g / ‖b_g‖ = 0; elsewhere it is locally 0. That is the derivative wherever ‖X_g' ρ‖ < lam w_g strictly on the rest,
    and a one-sided one at the kinks. `support` [p] overrides which coefficients move.
    """
    if support is None:
        norms = group_norms(point.coef, problem.groups)
        support = problem.groups.spread((norms > 0) | (problem.thresholds == 0))
    return implicit(_equation, conjugate_gradient, point, (problem, jax.lax.stop_gradient(support)))


def _equation(point: Coefficients, params: tuple[Problem, jax.Array]) -> Coefficients:
    problem, support = params
    coef = jnp.where(support, point.coef, 0.0)
    residual = problem.residual(problem.predict(Coefficients(coef, point.intercept)))
    norms = group_norms(coef, problem.groups)
    zero = norms == 0
    pull = problem.groups.spread(jnp.where(zero, 0.0, problem.thresholds / jnp.where(zero, 1.0, norms)))
    equation = jnp.where(support, coef * pull - problem.design.adjoint(residual), point.coef)
    return Coefficients(equation, -jnp.sum(residual, axis=0) if problem.intercept else point.intercept)
