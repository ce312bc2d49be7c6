"""The primal-dual witness at a support that is known, as it is in a simulation: what it shows of
the solution on all tools.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _checks, group_lasso
from jaxsac.losses import Loss, resolve
from jaxsac.prox import Groups, group_norms
from jaxsac.solution import register


@register
class Witness(NamedTuple):
    """The restricted solution and its dual feasibility."""

    margin: jax.Array  # []
    coef: jax.Array  # [p]
    intercept: jax.Array  # []
    status: jax.Array  # int32 []: of the restricted solve


def oracle_witness(
    X: Any,
    y: Any,
    groups: Groups,
    support: Any,
    lam: Any,
    *,
    loss: str | Loss = "squared",
    weights: Any = None,
    intercept: bool = False,
    tol: Any = None,
) -> Witness:
    """Solve the group lasso on the groups of `support` alone and see whether the others would stay
    out.

        margin = 1 − max_{g ∉ S} ‖X_g' ρ‖₂ / (lam w_g),    ρ = −∇F at the minimiser of
                                                          F + lam Σ_{g ∈ S} w_g ‖b_g‖

    * X [T, p], y [T], `groups` over p, `support` bool [G], lam > 0; the keywords are those of
      `group_lasso.solve`.

    A margin > 0 implies that every solution on all groups is supported in S. With S the truth, that
    is: no irrelevant tool is kept. At a *fitted* support the margin is positive by construction (it
    is then a check that the fit is unique, and says nothing about the truth: it is positive on pure
    noise). Pure, to be jitted and vmapped over problems.

    Returns: a `Witness`; its margin is 1 where S holds every group, −∞ or NaN for lam = 0.

    Source: the primal-dual witness of arXiv 2601.08271, theorem 4.6; Wainwright 2009.
    """
    X = _checks.real_array("X", X, ("T", "p"))
    support = jnp.asarray(support)
    _checks.require(support.dtype == bool, f"support must be booleans [G], got {support.dtype}.")
    _checks.check_shape("support", support, (groups.num_groups,))
    mask = groups.spread(support)
    solution = group_lasso.solve(
        jnp.where(mask[None, :], X, 0),
        y,
        groups,
        lam,
        loss=loss,
        weights=weights,
        intercept=intercept,
        tol=tol,
    )
    coef = jnp.where(mask, solution.value.coef, 0)
    loss = resolve(loss)
    prediction = jnp.matmul(X, coef, precision="highest") + solution.value.intercept
    target = loss.target(y, prediction.shape, X.dtype)
    pull = group_norms(
        jnp.matmul(
            loss.negative_gradient(prediction, target, jnp.ones_like(prediction)),
            X,
            precision="highest",
        ),
        groups,
    )
    if weights is not None:
        weights = (
            jnp.sqrt(groups.sizes.astype(X.dtype))
            if isinstance(weights, str)
            else jnp.asarray(weights, X.dtype)
        )
        pull = pull / weights
    lam = jnp.asarray(lam, X.dtype)
    margin = 1 - jnp.max(jnp.where(support, 0, pull)) / lam
    return Witness(margin, coef, solution.value.intercept, solution.status)
