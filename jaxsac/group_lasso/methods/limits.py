"""What every method is given beside the problem, and how each is known in `stats["method"]`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxsac._arguments import tolerance
from jaxsac.group_lasso.problem.free import geometric, lam_max_of
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, recentre, with_lam
from jaxsac.solution import Solution

METHODS = ("working_sets", "columns", "loop")  # in order of preference
WORKING_SETS, COLUMNS, LOOP = range(3)


class Limits(NamedTuple):
    """The tolerance [], relative to the scale, and how many steps may be taken for each lam []."""

    tol: jax.Array
    max_steps: jax.Array

    @staticmethod
    def of(tol: Any, max_steps: Any, dtype: Any) -> "Limits":
        return Limits(tolerance(tol, dtype), jnp.asarray(max_steps))


class Lams(eqx.Module):
    """The lams of a path [L], or None for `num` of them from lam_max to `min_ratio` lam_max."""

    values: jax.Array | None
    min_ratio: jax.Array
    num: int = eqx.field(static=True)


def one_after_another(
    problem: Objective, lams: Lams, solve: Callable[[Objective, Coefficients | None], Solution]
) -> Solution:
    """The path whose solution at a lam is `solve(problem, at)`, from where the last one ended."""
    values, found, at = lams.values, [], None
    if values is None:
        values = geometric(lam_max_of(problem), lams.min_ratio, lams.num)
    for lam in values:
        answer = solve(with_lam(problem, lam), at)
        found.append(answer._replace(stats={**answer.stats, "lam": lam}))
        at = recentre(problem, answer.value)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
