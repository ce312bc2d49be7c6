"""The square-root loss by alternation: its best σ at fixed coefficients is explicit, and at fixed σ
it is least squares with lam σ.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxsac.group_lasso.methods.host import rounds
from jaxsac.group_lasso.methods.limits import SQUARE_ROOT, Lams, Limits, one_after_another
from jaxsac.group_lasso.methods.loop import programs
from jaxsac.group_lasso.methods.loop.fista import State
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, recentre, with_lam
from jaxsac.losses import Squared
from jaxsac.solution import Solution

_MAX_ROUNDS = 30
_INNER = 0.05  # tolerance of the least squares, relative to that of the whole


def applies(problem: Objective) -> bool:
    """Whether this method is for a concrete problem: one for working sets, but for its loss."""
    return not problem.loss.separable and rounds.fits(problem)


def solve(problem: Objective, limits: Limits, at: Coefficients | None) -> Solution:
    """The solution from a point in centred coordinates. Whatever the status, it is the loop's."""
    solution = programs.solve(problem, limits, _scaled(problem, limits, at))
    return solution._replace(stats={**solution.stats, "method": jnp.int32(SQUARE_ROOT)})


def solve_path(problem: Objective, lams: Lams, limits: Limits) -> Solution:
    """Solutions [L], each from the last."""
    return one_after_another(problem, lams, lambda here, at: solve(here, limits, at))


def _scaled(problem: Objective, limits: Limits, at: Coefficients | None) -> State | None:
    """Coefficients from which the problem is certified at once, or nearly: F(z) ≤ ‖y − z‖² / (2 T
    σ) + σ/2, with equality at the best σ.

    `at` are coefficients in centred coordinates; None starts from zero. (Sun & Zhang 2012; Ndiaye
    et al. 2017.)
    """
    tol, max_passes = float(limits.tol), int(limits.max_steps)
    squares = dataclasses.replace(problem, loss=Squared())
    null = float(_sigma(problem, _centred_zeros(problem)))
    sigma, passes, state = null if at is None else float(_sigma(problem, at)), 0, None
    before: tuple[float, float] | None = None
    for _ in range(_MAX_ROUNDS):
        here = with_lam(squares, problem.lam * jnp.asarray(sigma, problem.lam.dtype))
        # A dual point to be shrunk by 1 − δ costs the squares δ lam Ω and the square root, whose
        # dual is linear, δ of the whole.
        solution = rounds.solve_in(here, _INNER * tol * sigma / null, max_passes - passes, at)
        at, state = recentre(problem, solution.value), solution.state
        passes += int(solution.stats["num_steps"])
        best = float(_sigma(problem, at))
        change = best - sigma
        # A dual point for σ is feasible for the square root after division by best / σ: what it
        # loses is of first order in the change.
        if abs(change) <= 0.1 * tol * null or passes >= max_passes or not best > 0:
            break
        # The fixed point by secants, from the second round on; σ may well change by the same factor
        # again.
        following = best
        if before is not None and before[1] != change:
            secant = sigma - change * (sigma - before[0]) / (change - before[1])
            following = secant if abs(secant - best) <= 4.0 * abs(change) and secant > 0 else best
        before, sigma = (sigma, change), following
    return state


def _centred_zeros(problem: Objective) -> Coefficients:
    """Zero, with the intercept that fits best."""
    zeros = problem.zeros()
    return (
        zeros._replace(intercept=problem.design.mean(problem.y - problem.offset))
        if problem.intercept
        else zeros
    )


@jax.jit
def _sigma(problem: Objective, at: Coefficients) -> Any:
    loss: Any = problem.loss  # a SquareRoot
    return loss.scale(problem.offset + problem.predict(at), problem.y, problem.sample_weight)[1]
