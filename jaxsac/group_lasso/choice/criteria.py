"""How a solution is judged: degrees of freedom, the extended Bayesian information criterion, and
how far it is from another support.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import gammaln

from jaxsac import _checks
from jaxsac._arguments import arguments, integer, real, record, size
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, recentre, with_lam
from jaxsac.group_lasso.problem.record import PROBLEM, Problem
from jaxsac.group_lasso.problem.support import degrees, indices_of, restrict
from jaxsac.group_lasso.solver import path
from jaxsac.losses import Squared, SquareRoot
from jaxsac.solution import Solution, Status


class Criterion(NamedTuple):
    """An information criterion for every lam of a path."""

    lam: jax.Array  # [L]
    score: jax.Array  # [L], in units of twice the log-likelihood
    degrees: jax.Array  # of freedom [L]
    best: jax.Array  # the lam of the least score among fits that converged, or NaN []
    solution: Solution  # the path


@arguments(problem=PROBLEM, solution=record(Solution))
def degrees_of_freedom(problem: Problem, solution: Solution) -> jax.Array:
    """The degrees of freedom of a solution, df = Σ_t ∂ẑ_t/∂y_t on its support.

    tr(X_S K^-1 X_S' C / T), K = X_S' C X_S / T + lam blockdiag(w_g/‖b_g‖ (I − b_g b_g'/‖b_g‖²)) and
    what the penalty and the intercept add. For Gaussian noise of variance σ² the expectation of df
    is Σ_t cov(ẑ_t, y_t)/σ² (Stein 1981). For other losses C is ∇²F, the usual generalisation.

    On concrete arrays only the columns of the support are touched, at a cost cubic in their number;
    traced ones form a p × p matrix.

    * `solution`: of this problem, at one lam.

    Returns: [], NaN for what is not finite.

    Raises: ValueError for the solution of a problem with another loss or intercept.

    Source: Kato (2009); Vaiter et al. (2017).
    """
    at_lam, point = _solved(problem, solution)
    return _degrees(at_lam, recentre(at_lam, point))


@arguments(problem=PROBLEM, solution=record(Solution))
def support_margin(problem: Problem, solution: Solution) -> jax.Array:
    """How far a solution is from another support: min_g |‖κ b_g + X_g' ρ‖ / (lam w_g) − 1|, κ the
    largest curvature of a column.

    For a group at zero it is 1 − ‖X_g' ρ‖ / (lam w_g), the margin of strict complementarity; for
    another, its norm in units of the step that lam w_g takes. The derivative of a solution is that
    of its support: where the margin is within the errors of the solution (say below 100 times the
    square root of its relative gap) it may be one-sided, or that of a support which is not quite
    the right one.

    * `solution`: of this problem, at one lam.

    Returns: [], without a unit, and its derivative is zero; +inf where nothing is penalised, NaN
    for what is not finite.

    Raises: ValueError for the solution of a problem with another loss or intercept.
    """
    return _margin_of(*_solved(problem, solution))


def _solved(problem: Problem, solution: Solution) -> tuple[Objective, Coefficients]:
    """The problem at the lam of its solution, and the coefficients."""
    point = problem.coefficients(solution)
    return problem.at(solution.stats["lam"]), point


@jax.jit
def _margin_of(problem: Objective, value: Coefficients) -> jax.Array:
    problem, value = lax.stop_gradient((problem, value))
    at = recentre(problem, value)
    predictions = problem.predict(at)
    pull = problem.design.adjoint(problem.residual(predictions))
    bent = problem.curvature_product(predictions, jnp.ones_like(predictions)).reshape(
        problem.num_samples, -1
    )
    curvature = jnp.max(problem.design.column_squares(jnp.max(jnp.abs(bent), axis=1)))
    pull = pull if problem.ridge is None else pull - problem.ridge * at.coef
    return problem.whole_penalty.margin(at.coef, pull, problem.lam, curvature)


@arguments(
    on_host=True,
    problem=PROBLEM,
    gamma=real(low=0),
    lams=real("L", low=0),
    num_lams=size(1),
    min_ratio=real(above=0, high=1),
    tol=real(low=0),
    max_steps=integer(low=0),
)
def ebic(
    problem: Problem,
    *,
    gamma: Any = 0.5,
    lams: Any = None,
    num_lams: int = 100,
    min_ratio: Any = 0.01,
    tol: Any = None,
    max_steps: Any = 20_000,
) -> Criterion:
    """The extended Bayesian information criterion over a path: −2 log L + df log N + 2 gamma log
    C(G, k).

    k is the number of groups that are not zero among the G that are not empty, df the exact degrees
    of freedom, N = Σ_t c_t. −2 log L is 2 T F for a loss that is a negative log-likelihood, and
    N log(Σ_t c_t r_t² / N) for "squared" and "sqrt", whose noise level is not known. Outside jit.
    Each df costs the cube of the support's coefficients: end the path where supports are no longer
    of interest.

    * `gamma`: ≥ 0: 0 is the ordinary criterion; 0.5 suits G near or above N.
    * `lams`, `num_lams`, `min_ratio`, `tol`, `max_steps`: as in `path`.

    Returns: a `Criterion`.

    Raises: as `path`; ValueError inside jit.

    Source: Chen and Chen (2008).
    """
    found = path(
        problem, lams=lams, num_lams=num_lams, min_ratio=min_ratio, tol=tol, max_steps=max_steps
    )
    every_lam = problem.at(0.0)
    points = Coefficients(found.value.coef, found.value.intercept)
    freedom = []
    for k, lam in enumerate(found.stats["lam"]):
        at_lam = with_lam(every_lam, lam)
        point = jax.tree.map(lambda leaf, k=k: leaf[k], points)
        freedom.append(_degrees(at_lam, recentre(at_lam, point)))
    freedom = jnp.stack(freedom)
    score = _scores(every_lam, points, found.stats["num_active"], freedom, gamma)
    lams = found.stats["lam"]
    return Criterion(lams, score, freedom, best_lam(lams, score, found.status), found)


def best_lam(lams: jax.Array, score: jax.Array, status: jax.Array) -> jax.Array:
    """The lam of the least score [L] among the fits [..., L] that converged, or NaN."""
    certified = jnp.all(jnp.atleast_2d(status) == Status.CONVERGED, axis=0) & ~jnp.isnan(score)
    least = jnp.argmin(jnp.where(certified, score, jnp.inf))
    return jnp.where(certified[least], lams[least], jnp.nan)


def _degrees(problem: Objective, point: Coefficients) -> jax.Array:
    if not _checks.is_concrete(problem, point):
        return _degrees_of(problem, point)
    if not np.isfinite(np.asarray(point.coef)).all():
        return jnp.full((), jnp.nan, point.coef.dtype)
    moving = ~np.asarray(problem.whole_penalty.pinned(point.coef, problem.lam))
    indices = jnp.asarray(indices_of(moving))
    return _degrees_of(
        restrict(problem, indices),
        point._replace(coef=point.coef.at[indices].get(mode="fill", fill_value=0)),
    )


_degrees_of = jax.jit(degrees)


@jax.jit
def _scores(
    problem: Objective,
    values: Coefficients,
    num_active: jax.Array,
    freedom: jax.Array,
    gamma: jax.Array,
) -> jax.Array:
    total = jnp.sum(problem.sample_weight)
    num_groups = jnp.sum(problem.groups.sizes > 0).astype(freedom.dtype)  # empty ones are no choice

    def deviance(value):
        z = problem.offset + problem.predict(recentre(problem, value))
        if not isinstance(problem.loss, Squared | SquareRoot):
            return (
                2.0 * problem.num_samples * problem.loss.value(z, problem.y, problem.sample_weight)
            )
        outputs = 1 if z.ndim == 1 else z.shape[1]
        squares = 2.0 * jnp.sum(problem.sample_weight * problem.loss.per_sample(z, problem.y))
        return outputs * total * jnp.log(squares / (outputs * total))

    active = num_active.astype(freedom.dtype)
    ways = gammaln(num_groups + 1.0) - gammaln(active + 1.0) - gammaln(num_groups - active + 1.0)
    return lax.map(deviance, values) + freedom * jnp.log(total) + 2.0 * gamma * ways
