"""The compiled pieces of the host's working-set method: full passes over X, certificates, block
descent; few programs, of few sizes. And what asks the loss for NumPy arrays: in NumPy where it is
quadratic, for then no program need be called; else compiled.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac._iterate import Certificate
from jaxsac.designs import Centred, Dense
from jaxsac.group_lasso.methods.host.trace import traced
from jaxsac.group_lasso.model import descent, quadratic
from jaxsac.group_lasso.model.quadratic import LENGTHS, column_unit, over_root
from jaxsac.group_lasso.problem.certificate import Pulls, gap_from
from jaxsac.group_lasso.problem.free import fit_free, null_objective
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, uncentred, with_lam
from jaxsac.prox import group_norms

_FREE_STEPS, _FREE_HALVINGS = 50, 30
_ROWS = 4  # of X, read together


class Refit(NamedTuple):
    """Points [B] whose unpenalised part is at its best: the coefficients of the unpenalised groups
    [B, F, q], the intercepts, the predictions [B, T], the share of those under the penalty, what
    the refit left undone, and the mean of X b, which the intercept of the design as it was given
    lacks.
    """

    free: Any
    intercept: Any
    predictions: Any
    penalised: Any
    remaining: Any
    centre: Any


@traced
@jax.jit
def first_pass(problem: Objective, predictions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(Σ_t c_t x_tj²)^½ [p] and −∇F, [1, p], at predictions [1, T].

    Together, for to read X takes longer than to compute; row by row, for a reduction over the long
    axis would be slow on CPUs.
    """
    matrix, weights, residual = (
        uncentred(problem).matrix,
        problem.sample_weight,
        problem.residual(predictions[0]),
    )
    if problem.intercept:  # the products of the centred columns, from those as they were given
        residual = residual - problem.design.shares * jnp.sum(residual)

    def add(t, sums):
        squares, products = sums
        return squares + weights[t] * matrix[t] ** 2, products + residual[t] * matrix[t]

    zeros = jnp.zeros_like(matrix[0])
    squares, products = lax.fori_loop(0, matrix.shape[0], add, (zeros, zeros), unroll=_ROWS)
    return jnp.sqrt(squares), products[None]


@traced
@jax.jit
def gradients(problem: Objective, predictions: jax.Array) -> jax.Array:
    """−∇F, [B, p], at predictions [B, T]: one pass over X."""
    return jax.vmap(lambda at: problem.design.adjoint(problem.residual(at)))(predictions)


@traced
@jax.jit
def scales(
    problem: Objective, columns: jax.Array, null: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The null objective, `null` being its predictions, the size of a column, and `Pulls.bound`."""
    bound = problem.whole_penalty.dual_norm_bound(jnp.where(problem.unpenalised, 0.0, columns))
    return null_objective(problem, null), column_unit(problem, columns), bound


@traced
@functools.partial(jax.jit, static_argnames="num_free")
def refit(
    problem: Objective,
    target: jax.Array,
    blocks: jax.Array,
    coefs: jax.Array,
    intercepts: jax.Array,
    sums: jax.Array,
    *,
    num_free: int,
) -> Refit:
    """Refit the `num_free` unpenalised groups, whose columns are `blocks` [F, q, T], and the
    intercept, of several points: their coefficients of those groups [B, F, q], intercepts [B], and
    X b [B, T] `sums`, not centred; lam does not matter.
    """
    free = blocks.reshape(-1, blocks.shape[2])
    design = Dense(free.T)
    here = dataclasses.replace(
        problem, design=Centred(design, problem.design.shares) if problem.intercept else design
    )

    def one(coef: jax.Array, intercept: jax.Array, own: jax.Array) -> Refit:
        mean = problem.design.mean(own) if problem.intercept else jnp.zeros_like(target)
        fit = fit_free(
            here,
            Coefficients(coef.reshape(-1), intercept),
            own - mean + intercept,
            jnp.ones(len(free), bool) if num_free else None,
            columns=jnp.sqrt(jnp.sum(problem.sample_weight[None] * free**2, axis=1)),
            target=target,
            max_steps=_FREE_STEPS,
            max_halvings=_FREE_HALVINGS,
        )
        penalised, centre = fit.predictions - fit.point.intercept, mean
        if num_free:
            penalised = penalised - here.design.predict(fit.point.coef)
            if problem.intercept:
                centre = mean + problem.design.mean(
                    design.predict(fit.point.coef - coef.reshape(-1))
                )
        return Refit(
            fit.point.coef.reshape(coef.shape),
            fit.point.intercept,
            fit.predictions,
            penalised,
            fit.remaining,
            centre,
        )

    return jax.vmap(one)(coefs, intercepts, sums)


@traced
@jax.jit
def certify(
    problem: Objective,
    lams: jax.Array,
    scale: jax.Array,
    bound: jax.Array,
    penalties: jax.Array,
    spreads: jax.Array,
    at: Refit,
    gradients: jax.Array,
) -> tuple[Certificate, jax.Array, jax.Array, jax.Array]:
    """The certificates of refitted points [B], each at its own lam, with Σ_g w_g ‖b_g‖ `penalties`,
    and −∇F `gradients` [B, p]; the objectives, ‖X_g' ρ‖ [B, G], and |Σ_t ρ_t| if there is an
    intercept.
    """
    penalised_groups = problem.weights > 0

    def one(lam, penalty, spread, at: Refit, gradient):
        here = with_lam(problem, lam)
        norms = group_norms(gradient, here.groups)
        worst = jnp.max(
            jnp.where(penalised_groups, norms / jnp.where(penalised_groups, here.weights, 1.0), 0.0)
        )
        objective = here.smooth_value(at.predictions) + lam * penalty
        pulls = Pulls(lam * penalty, 0.0, spread, worst, bound)
        certificate = gap_from(
            here, objective, at.predictions, at.remaining, at.penalised, pulls, scale
        )
        unbalanced = (
            jnp.abs(jnp.sum(here.residual(at.predictions)))
            if problem.intercept
            else jnp.zeros_like(lam)
        )
        return certificate, objective, norms, unbalanced

    return jax.vmap(one)(lams, penalties, spreads, at, gradients)


@jax.jit
def value(problem: Objective, predictions: jax.Array) -> jax.Array:
    return problem.smooth_value(predictions)


@jax.jit
def _residual(problem: Objective, predictions: jax.Array) -> jax.Array:
    return problem.residual(predictions)


@jax.jit
def _values_along(problem: Objective, predictions: jax.Array, moved: jax.Array) -> jax.Array:
    """F at LENGTHS of a step by which the predictions change by `moved`, [L]."""
    lengths = jnp.asarray(LENGTHS, moved.dtype)
    return jax.vmap(lambda length: problem.smooth_value(predictions + length * moved))(lengths)


_roots = jax.jit(quadratic.roots)


@traced
def residual(problem: Objective, predictions: np.ndarray) -> np.ndarray:
    """ρ = −∇F at predictions [T]."""
    if not problem.loss.quadratic:
        return np.asarray(_residual(problem, predictions))
    at: Any = np.asarray(problem.offset) + predictions
    targets: Any = np.asarray(problem.y)
    weights: Any = np.asarray(problem.sample_weight)
    return np.asarray(problem.loss.negative_gradient(at, targets, weights))


@traced
def roots(problem: Objective, predictions: np.ndarray, floor: float) -> np.ndarray:
    """See `quadratic.roots`."""
    weights = np.asarray(problem.sample_weight)
    if not problem.loss.quadratic:
        return np.asarray(_roots(problem, predictions, np.asarray(floor, weights.dtype)))
    return np.sqrt(problem.loss.curvature * weights / len(weights))


@traced
def values_along(
    problem: Objective,
    root: np.ndarray,
    slope: np.ndarray,
    predictions: np.ndarray,
    moved: np.ndarray,
) -> np.ndarray:
    """F at LENGTHS of a step by which the predictions change by `moved`, `slope` being ρ where it
    begins, [L].
    """
    if not problem.loss.quadratic:
        return np.asarray(_values_along(problem, predictions, moved))
    # F is ½ ‖h^-½ ρ‖², and ρ falls by h m times the length.
    left = over_root(root, slope) - np.asarray(LENGTHS, moved.dtype)[:, None] * (root * moved)
    return 0.5 * (left * left).sum(axis=1)


@traced
@jax.jit
def descend(
    blocks, bounds, thresholds, coef, residual, order, count, cycles
) -> tuple[jax.Array, jax.Array]:
    """`descent.descend` on the model, whose Gram matrices it does not need."""
    model = descent.Model(blocks, None, bounds, thresholds)
    return descent.descend(model, coef, residual, order, count, cycles)
