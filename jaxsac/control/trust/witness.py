"""The primal-dual witness at a support that is known, as it is in a simulation: what it shows of
the solution on all tools.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import group_lasso
from jaxsac._checks import check_shape, real_array, require
from jaxsac.losses import Loss, resolve
from jaxsac.prox import Groups, group_norms


class Witness(NamedTuple):
    """The restricted solution and its dual feasibility: `margin` [], `coef` [p], `intercept` [],
    and the `status` of the restricted solve.
    """

    margin: jax.Array
    coef: jax.Array
    intercept: jax.Array
    status: jax.Array


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

        margin = 1 - max_{g not in S} ||X_g' rho||_2 / (lam w_g),   rho = -grad F at the minimiser
        of F + lam sum_{g in S} w_g ||b_g||

    X [T, p], y [T], `groups` over p, support booleans [G], lam > 0; the keywords are those of
    `group_lasso.solve`. A margin > 0 implies that every solution on all groups is supported in S.
    With S the truth, that is: no irrelevant tool is kept. At a *fitted* support the margin is
    positive by construction (it is then a check that the fit is unique, and says nothing about the
    truth: it is positive on pure noise). 1 where S holds every group; -inf or NaN for lam = 0.
    Pure, to be jitted and vmapped over problems.

    Source: the primal-dual witness of arXiv 2601.08271, theorem 4.6; Wainwright 2009.
    """
    X = real_array("X", X, ("T", "p"))
    support = jnp.asarray(support)
    require(support.dtype == bool, f"support must be booleans [G], got {support.dtype}.")
    check_shape("support", support, (groups.num_groups,))
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
