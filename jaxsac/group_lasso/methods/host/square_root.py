"""The square-root loss by alternation: its best σ at fixed coefficients is explicit, and at fixed σ
it is least squares with lam σ.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxsac.group_lasso.methods.host.rounds import solve_on_host
from jaxsac.group_lasso.methods.loop.fista import State
from jaxsac.group_lasso.problem.record import Coefficients, Problem, recentre, with_lam
from jaxsac.losses import Squared

_MAX_ROUNDS = 30
_INNER = 0.05  # tolerance of the least squares, relative to that of the whole


def scaled_on_host(
    problem: Problem, tol: float, max_passes: int, at: Coefficients | None
) -> State | None:
    """Coefficients from which the problem is certified at once, or nearly: F(z) ≤ ‖y − z‖² / (2 T
    σ) + σ/2, with equality at the best σ.

    `at` are coefficients in centred coordinates; None starts from zero. (Sun & Zhang 2012; Ndiaye
    et al. 2017.)
    """
    squares = dataclasses.replace(problem, loss=Squared())
    null = float(_sigma(problem, _centred_zeros(problem)))
    sigma, passes, state = null if at is None else float(_sigma(problem, at)), 0, None
    before: tuple[float, float] | None = None
    for _ in range(_MAX_ROUNDS):
        here = with_lam(squares, problem.lam * jnp.asarray(sigma, problem.lam.dtype))
        # A dual point to be shrunk by 1 − δ costs the squares δ lam Ω and the square root, whose
        # dual is linear, δ of the whole.
        solution = solve_on_host(here, _INNER * tol * sigma / null, max_passes - passes, at)
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


def _centred_zeros(problem: Problem) -> Coefficients:
    """Zero, with the intercept that fits best."""
    zeros = problem.zeros()
    return (
        zeros._replace(intercept=problem.design.mean(problem.y - problem.offset))
        if problem.intercept
        else zeros
    )


@jax.jit
def _sigma(problem: Problem, at: Coefficients) -> Any:
    loss: Any = problem.loss  # a SquareRoot
    return loss.scale(problem.offset + problem.predict(at), problem.y, problem.sample_weight)[1]
