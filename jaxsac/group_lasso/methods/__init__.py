"""Ways to solve a problem, in one table: the first that applies is taken."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax

from jaxsac import _checks
from jaxsac.group_lasso.methods import columns
from jaxsac.group_lasso.methods.host import path, rounds
from jaxsac.group_lasso.methods.limits import (
    COLUMNS,
    LOOP,
    METHODS as METHODS,
    WORKING_SETS,
    Lams,
    Limits,
)
from jaxsac.group_lasso.methods.loop import programs, rounds as compiled_rounds
from jaxsac.group_lasso.methods.loop.fista import State
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, recentre
from jaxsac.group_lasso.problem.support import differentiable
from jaxsac.solution import Solution


class Method(NamedTuple):
    """A way to solve.

    * `name`: as in `METHODS`.
    * `applies(problem, concrete)`: whether it is for such a problem, by what is static: shapes,
      dtype, platform, which parts there are, and whether all numbers are known.
    * `solve(problem, limits, state)`: a certified `Solution` with derivatives.
    * `path(problem, lams, limits)`: the same with a leading axis, of a problem whose lam is not
      asked.
    """

    name: str
    applies: Callable[[Objective, bool], bool]
    solve: Callable[[Objective, Limits, State | None], Solution]
    path: Callable[[Objective, Lams, Limits], Solution]


def _by_values(solve: Callable[[Objective, Limits, Coefficients | None], Solution]) -> Any:
    """Solves for the known values of what is differentiated; the derivative is that of the support,
    and attached to the answer.
    """

    def attached(problem: Objective, limits: Limits, state: State | None) -> Solution:
        still = values_of(problem)
        point = None if state is None else Coefficients(state.coef, state.intercept)
        solution = solve(still, limits, None if point is None else recentre(still, point))
        return solution if still is problem else differentiable(problem, solution)

    return attached


TABLE = (
    Method(
        METHODS[WORKING_SETS],
        lambda problem, concrete: concrete and rounds.applies(problem),
        _by_values(rounds.solve),
        path.solve_path,
    ),
    Method(
        METHODS[COLUMNS],
        lambda problem, concrete: concrete and columns.applies(problem),
        _by_values(columns.solve),
        columns.solve_path,
    ),
    Method(
        METHODS[LOOP],
        lambda problem, concrete: True,
        programs.solve_or_again,
        programs.path_or_again,
    ),
)


def values_of(tree: Any) -> Any:
    """Without derivatives. Outside jit the values that are differentiated are known: they are
    solved on the host as any others.
    """
    return tree if _checks.is_concrete(tree) else lax.stop_gradient(tree)  # the other takes time


def choose(problem: Objective, *others: Any) -> Method:
    """The method for a problem; `others` is what else decides whether all is known."""
    concrete = _checks.is_concrete(problem, *others)
    return next(method for method in TABLE if method.applies(problem, concrete))


def apart(problem: Objective, *others: Any) -> bool:
    """Whether problems like this one, that share X, are better solved one after another than as a
    batch: by working sets, which differ, or on few columns.
    """
    rounds_first = compiled_rounds.applies(problem) and jax.default_backend() == "cpu"
    return rounds_first or choose(problem, *others).name != METHODS[LOOP]
