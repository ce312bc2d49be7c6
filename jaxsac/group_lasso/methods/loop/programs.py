"""The compiled loop as programs: one problem, a path, and what another method left unfinished."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks, _loops
from jaxsac.group_lasso.methods.limits import Lams, Limits
from jaxsac.group_lasso.methods.loop.batches import finish, run, set_up
from jaxsac.group_lasso.methods.loop.fista import State, start
from jaxsac.group_lasso.methods.loop.rounds import applies
from jaxsac.group_lasso.problem.free import geometric, null_pull
from jaxsac.group_lasso.problem.objective import (
    Coefficients,
    Objective,
    recentre,
    shifted,
    with_lam,
)
from jaxsac.solution import Reason, Solution, Status


@jax.jit
def solve(problem: Objective, limits: Limits, state: State | None) -> Solution:
    """The solution from a state, or from the null model, with its derivatives."""
    still, limits, state = lax.stop_gradient((problem, limits, state))
    near = shifted(still)
    setup = set_up(near, measured=not applies(near))
    if state is None:
        inner = start(setup.null)
    else:
        last = recentre(still, Coefficients(state.coef, state.intercept))
        before = recentre(still, Coefficients(state.previous_coef, state.previous_intercept))
        inner = State(*last, *before, state.momentum, state.inflation)
    return finish(problem, still, run(near, setup, *limits, inner))


def path(problem: Objective, lams: Lams, limits: Limits) -> Solution:
    """Solutions [L], each from the last, with their derivatives."""
    return _path(problem, lams.values, lams.min_ratio, limits, num_lams=lams.num)


def solve_or_again(problem: Objective, limits: Limits, state: State | None) -> Solution:
    """`solve`, and where that stalls on a small problem, from there once more by rounds: to compile
    those takes longer than most small problems take to solve.
    """
    first = solve(problem, limits, state)
    return _or_again(problem, first, lambda hard: _go_on(hard, limits, first, first.state))


def again_after(first: Solution, again: Solution) -> Solution:
    """The second attempt, which counts the steps of both."""
    steps = first.stats["num_steps"] + again.stats["num_steps"]
    return again._replace(stats={**again.stats, "num_steps": steps})


def path_or_again(problem: Objective, lams: Lams, limits: Limits) -> Solution:
    """`path`, and where that stalls on a small problem, once more by rounds."""
    first = path(problem, lams, limits)
    return _or_again(problem, first, lambda hard: again_after(first, path(hard, lams, limits)))


def _or_again(
    problem: Objective, first: Solution, again: Callable[[Objective], Solution]
) -> Solution:
    """The second attempt where a loop without rounds gave up that rounds could precede."""
    hard = dataclasses.replace(problem, hard=True)
    if applies(problem) or not applies(hard) or not _checks.is_concrete(first.status):
        return first
    stalled = np.any(np.asarray(first.stats["reason"]) == Reason.PATIENCE)
    return again(hard) if stalled else first


def _go_on(problem: Objective, limits: Limits, first: Solution, state: State | None) -> Solution:
    """`solve` with the steps that `first` has left."""
    left = limits._replace(max_steps=limits.max_steps - first.stats["num_steps"])
    return again_after(first, solve(problem, left, state))


@functools.partial(jax.jit, static_argnames="num_lams")
def _path(
    problem: Objective,
    lams: jax.Array | None,
    min_ratio: jax.Array,
    limits: Limits,
    *,
    num_lams: int,
) -> Solution:
    still, limits = lax.stop_gradient((problem, limits))
    near = shifted(still)
    setup = set_up(near, measured=True)
    if lams is None:
        largest = null_pull(with_lam(problem, jnp.zeros_like(problem.lam)), setup.null)
        lams = geometric(largest, min_ratio, num_lams)

    def one(at: State, lam: jax.Array) -> tuple[State, Solution]:
        here = with_lam(problem, lam)
        outcome = run(with_lam(near, lax.stop_gradient(lam)), setup, *limits, at)
        solution = finish(here, lax.stop_gradient(here), outcome)
        solution.stats["lam"] = lam
        end = outcome.state
        following = start(Coefficients(end.coef, end.intercept))
        return following._replace(inflation=end.inflation), solution

    return _loops.scan(one, start(setup.null), lams)[1]


def finished(problem: Objective, limits: Limits, solution: Solution) -> Solution:
    """What rounds on the host could not reach, the loop may: it goes on from there, or from the
    null model where that is not finite, and has the last word.
    """
    if int(solution.status) in (Status.CONVERGED, Status.MAX_STEPS):
        return solution
    at = solution.state if int(solution.status) == Status.STALLED else None
    return _go_on(problem, limits, solution, at)
