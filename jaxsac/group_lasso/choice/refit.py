"""The fit on the support of a solution, without the bias of the penalty."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxsac import _checks
from jaxsac._arguments import arguments, integer, real, record
from jaxsac.group_lasso.problem.record import PROBLEM, LinearModel, Problem
from jaxsac.group_lasso.solver import solve
from jaxsac.prox import group_norms
from jaxsac.solution import Solution

_LAM = 1e12  # in units of lam_max: nothing that keeps a weight moves


@arguments(
    problem=PROBLEM,
    solution=record(Solution, LinearModel),
    tol=real(low=0),
    max_steps=integer(low=0),
)
def refit(
    problem: Problem, solution: Solution | LinearModel, *, tol: Any = None, max_steps: Any = 20_000
) -> Solution:
    """The unpenalised fit on the groups that are not zero in a solution: argmin F(offset + X b +
    intercept) + ½ ridge ‖b‖² over b with that support.

    Solves with weight 0 on those groups and a lam that holds the others at zero, by damped Newton
    steps. The problem's own weights do not matter; its penalty may only be a ridge, which makes the
    fit unique where there are more coefficients than records
    (`dataclasses.replace(problem, penalty=Penalty(ridge=r))` says one for the refit alone).

    * `solution`: of this problem, or its value.
    * `tol`, `max_steps`: as in `solve`.

    Returns: a `Solution`, certified as every one.

    Raises: ValueError for the solution of a problem with another loss or intercept, and for another
    penalty.
    """
    value = problem.coefficients(solution)
    penalty = problem.penalty
    _checks.require(
        penalty is None or (penalty.l1 is None and not penalty.levels and not penalty.nonnegative),
        "refit's penalty may only be a ridge: say another with dataclasses.replace(problem,"
        " penalty=...).",
    )
    chosen = group_norms(value.coef, problem.groups) > 0
    plain = problem.at(0.0)
    pull = plain.design.adjoint(plain.residual(jnp.zeros_like(plain.offset)))
    largest = jnp.max(group_norms(pull, problem.groups))
    free = dataclasses.replace(problem, weights=jnp.where(chosen, 0.0, 1.0).astype(problem.dtype))
    lam = _LAM * jnp.maximum(largest, jnp.finfo(largest.dtype).tiny)
    return solve(free, lam, tol=tol, max_steps=max_steps)
