"""Derivatives of the solution by the implicit function theorem, on its support only."""

import jax
from jax import lax

from jaxsac._implicit import implicit
from jaxsac.group_lasso.problem import Coefficients, Problem
from jaxsac.group_lasso.support import equation, newton_solve, polished


def with_derivatives(problem: Problem, point: Coefficients, support: jax.Array | None = None) -> Coefficients:
    """`point` with its derivative with respect to every array in `problem`.

    On the coefficients that no kink holds at zero (and the intercept) the solution solves −X' ρ + the gradient of the penalty = 0;
    elsewhere it is locally 0. That is the derivative wherever ‖X_g' ρ‖ < lam w_g strictly on the rest, and a one-sided one at the kinks.
    It is taken at the point after Newton steps, so that its error is that of rounding and not that of the tolerance to which `point` was
    found. `support` [p] overrides which coefficients move.
    """
    if support is None:
        support = ~problem.whole_penalty.pinned(point.coef, problem.lam)
    return _attached(problem, lax.stop_gradient(support), jax.tree.map(lax.stop_gradient, point))


@jax.custom_jvp
def _attached(problem: Problem, support: jax.Array, point: Coefficients) -> Coefficients:
    return point


@_attached.defjvp
def _attached_jvp(primals, tangents):
    problem, support, point = primals
    exact = polished(lax.stop_gradient(problem), lax.stop_gradient(point), support)

    def solution(problem):
        return implicit(equation, newton_solve, exact, (problem, support))

    # Attached again, so that higher derivatives are right.
    return _attached(problem, support, point), jax.jvp(solution, (problem,), (tangents[0],))[1]
