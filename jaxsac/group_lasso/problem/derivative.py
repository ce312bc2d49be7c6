"""Derivatives of the solution by the implicit function theorem, on its support only."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac._implicit import implicit
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, recentre, uncentre
from jaxsac.group_lasso.problem.support import (
    equation,
    indices_of,
    newton_solve,
    polished,
    restrict,
)
from jaxsac.solution import Solution, Status


def with_derivatives(
    problem: Objective, point: Coefficients, support: jax.Array | None = None
) -> Coefficients:
    """`point` with its derivative with respect to every array in `problem`.

    On the coefficients that no kink holds at zero (and the intercept) the solution solves −X' ρ +
    the gradient of the penalty = 0; elsewhere it is locally 0. That is the derivative wherever
    ‖X_g' ρ‖ < lam w_g strictly on the rest, and a one-sided one at the kinks. It is taken at the
    point after Newton steps, so that its error is that of rounding and not that of the tolerance to
    which `point` was found. `support` [p] overrides which coefficients move.
    """
    if support is None:
        support = ~problem.whole_penalty.pinned(point.coef, problem.lam)
    return _attached(problem, lax.stop_gradient(support), jax.tree.map(lax.stop_gradient, point))


@jax.custom_jvp
def _attached(problem: Objective, support: jax.Array, point: Coefficients) -> Coefficients:
    return point


@_attached.defjvp
def _attached_jvp(primals, tangents):
    problem, support, point = primals
    exact = polished(lax.stop_gradient(problem), lax.stop_gradient(point), support)

    def solution(problem):
        return implicit(equation, newton_solve, exact, (problem, support))

    # Attached again, so that higher derivatives are right.
    return _attached(problem, support, point), jax.jvp(solution, (problem,), (tangents[0],))[1]


def carrying(point: Coefficients, status: jax.Array) -> Coefficients:
    """The point, or NaN where a run was NONFINITE: no kink pins that, so that its derivatives are
    NaN as well.
    """
    unit = jnp.where(status == Status.NONFINITE, jnp.nan, 1.0).astype(point.coef.dtype)
    return jax.tree.map(lambda leaf: leaf * unit, point)


def differentiable(problem: Objective, solution: Solution) -> Solution:
    """A solution found on the host for the values of `problem`, with derivatives that touch the
    columns of its support alone.
    """
    still = lax.stop_gradient(problem)
    coef = solution.value.coef
    indices = jnp.asarray(indices_of(~np.asarray(still.whole_penalty.pinned(coef, still.lam))))
    value, objective = _on_support(problem, indices, solution.value)
    return solution._replace(value=value, stats={**solution.stats, "objective": objective})


@jax.jit
def _on_support(
    problem: Objective, indices: jax.Array, value: Coefficients
) -> tuple[Coefficients, jax.Array]:
    small = restrict(problem, indices)
    part = Coefficients(value.coef.at[indices].get(mode="fill", fill_value=0), value.intercept)
    part = with_derivatives(small, recentre(lax.stop_gradient(small), part))
    objective = small.smooth_value(small.predict(part)) + small.penalty(part.coef)
    moved = uncentre(small, part)
    return Coefficients(
        jnp.zeros_like(value.coef).at[indices].set(moved.coef, mode="drop"), moved.intercept
    ), objective
