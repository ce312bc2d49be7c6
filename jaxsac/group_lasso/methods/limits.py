"""What every method is given beside the problem, and how each is known in `stats["method"]`."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _checks
from jaxsac.group_lasso.problem.null import geometric, lam_max_of
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, recentre, with_lam
from jaxsac.solution import Solution


class Code(enum.IntEnum):
    """The methods in order of preference."""

    WORKING_SETS = 0
    SQUARE_ROOT = 1
    COLUMNS = 2
    LOOP = 3


METHODS = tuple(code.name.lower() for code in Code)


class Limits(NamedTuple):
    """The tolerance [], relative to the scale, and how many steps may be taken for each lam []."""

    tol: jax.Array
    max_steps: jax.Array

    @staticmethod
    def of(tol: Any, max_steps: Any, dtype: Any) -> "Limits":
        if _checks.is_concrete(max_steps):
            _checks.static_integer("max_steps", max_steps, 0)
        return Limits(_checks.tolerance(tol, dtype), jnp.asarray(max_steps, jnp.int32))


class Lams(NamedTuple):
    """The lams of a path [L], or None for `num` of them from lam_max to `min_ratio` lam_max."""

    values: jax.Array | None
    min_ratio: jax.Array
    num: int

    def known(self, problem: Objective) -> jax.Array:
        if self.values is not None:
            return self.values
        return geometric(lam_max_of(problem), self.min_ratio, self.num)


def one_after_another(
    problem: Objective, lams: Lams, solve: Callable[[Objective, Coefficients | None], Solution]
) -> Solution:
    """The path whose solution at a lam is `solve(problem, at)`, from where the last one ended."""
    found, at = [], None
    for lam in lams.known(problem):
        answer = solve(with_lam(problem, lam), at)
        found.append(answer._replace(stats={**answer.stats, "lam": lam}))
        at = recentre(problem, answer.value)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
