"""The primal-dual witness at a support that is known, as it is in a simulation: what it shows of
the solution on all tools.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _checks, designs, group_lasso
from jaxsac._arguments import anything, arguments, real, record
from jaxsac.prox import group_norms
from jaxsac.solution import register


@register
class Witness(NamedTuple):
    """The restricted solution and its dual feasibility."""

    margin: jax.Array  # []
    coef: jax.Array  # [p]
    intercept: jax.Array  # []
    status: jax.Array  # int32 []: of the restricted solve


@arguments(
    problem=record(group_lasso.Problem),
    support=anything("booleans [G]"),
    lam=real(low=0),
    tol=real(low=0),
)
def oracle_witness(
    problem: group_lasso.Problem, support: Any, lam: Any, *, tol: Any = None
) -> Witness:
    """Solve the group lasso on the groups of `support` alone and see whether the others would stay
    out.

        margin = 1 − max_{g ∉ S} ‖X_g' ρ‖₂ / (lam w_g),    ρ = −∇F at the minimiser of
                                                          F + lam Σ_{g ∈ S} w_g ‖b_g‖

    * `problem`: a `group_lasso.Problem` of one output with a matrix X. `support` bool [G]. lam > 0,
      `tol`: as in `group_lasso.solve`.

    A margin > 0 implies that every solution on all groups is supported in S. With S the truth, that
    is: no irrelevant tool is kept. At a *fitted* support the margin is positive by construction (it
    is then a check that the fit is unique, and says nothing about the truth: it is positive on pure
    noise). Pure, to be jitted and vmapped over problems.

    Returns: a `Witness`; its margin is 1 where S holds every group, −∞ or NaN for lam = 0.

    Raises: ValueError for a support that is not bool [G], and a design that is no matrix.

    Source: the primal-dual witness of arXiv 2601.08271, theorem 4.6; Wainwright 2009.
    """
    groups = problem.groups
    support = _checks.boolean_array("support", support, (groups.num_groups,))
    _checks.require(isinstance(problem.X, designs.Dense), "problem.X must be a matrix.")
    mask, X = groups.spread(support), problem.X.matrix
    inside = dataclasses.replace(problem, X=jnp.where(mask[None, :], X, 0))
    found = group_lasso.solve(inside, lam=lam, tol=tol)
    coef, intercept = jnp.where(mask, found.value.coef, 0), found.value.intercept
    z = problem.offset + jnp.matmul(X, coef, precision="highest") + intercept
    rho = problem.loss.negative_gradient(z, problem.y, problem.sample_weight)
    pull = group_norms(jnp.matmul(rho, X, precision="highest"), groups) / problem.weights
    margin = 1 - jnp.max(jnp.where(support, 0, pull)) / lam
    return Witness(margin, coef, intercept, found.status)
