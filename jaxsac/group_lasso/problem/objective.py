"""A problem at one lam, as the methods take it, and its pieces: predictions, gradients, curvature
products, and how large the numbers are whose rounding enters a certificate.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac.designs import Centred, Dense
from jaxsac.losses import Loss
from jaxsac.prox import Groups, Level, Penalty


class Coefficients(NamedTuple):
    """A point: `coef` [p] and `intercept`, [] or [M] for M outputs (zero without an intercept)."""

    coef: jax.Array
    intercept: jax.Array


class Objective(eqx.Module):
    """minimise F(offset + X b + intercept) + lam Σ_g w_g ‖b_g‖ + `extra`, F(z) = (1/T) Σ_t c_t
    ℓ(z_t; y_t): a `Problem` at one lam.

    With an intercept, X stands for the design minus its weighted mean over samples: the intercept
    is then orthogonal to the columns in the metric of the sample weights, so that each may take its
    own step size. `uncentre` turns the result back.
    """

    design: Any
    y: jax.Array
    groups: Groups
    lam: jax.Array
    weights: jax.Array  # w [G]
    sample_weight: jax.Array  # c [T]
    offset: jax.Array  # of the shape of the predictions
    loss: Loss
    intercept: bool = eqx.field(static=True)
    most_free: int = eqx.field(static=True)  # see `Problem`: 0 saves compiling what fits them
    free_lam: bool = eqx.field(static=True)  # whether lam may be 0, likewise
    extra: Penalty | None = None  # what the penalty has beside the norms of the groups
    # whether rounds may precede the compiled loop however small X is, where it stalled without
    hard: bool = eqx.field(static=True, default=False)

    @property
    def thresholds(self) -> jax.Array:
        return self.lam * self.weights

    @property
    def whole_penalty(self) -> Penalty:
        """The norms of the groups and what is beside them; lam multiplies the norms."""
        own = Level(self.groups, self.weights)
        if self.extra is None:
            return Penalty((own,))
        return Penalty(
            (own, *self.extra.levels), self.extra.l1, self.extra.ridge, self.extra.nonnegative
        )

    @property
    def ridge(self) -> jax.Array | None:
        return None if self.extra is None else self.extra.ridge

    @property
    def unpenalised(self) -> jax.Array:
        """Which coefficients have weights 0, bool [p]."""
        return self.whole_penalty.unpenalised(self.groups.num_coefficients)

    @property
    def free(self) -> jax.Array:
        """Which coefficients neither a norm nor a constraint holds at this lam, bool [p]."""
        held = self.extra is not None and self.extra.nonnegative
        return self.unpenalised if held else self.unpenalised | (self.lam == 0)

    @property
    def num_samples(self) -> int:
        return self.offset.shape[0]

    def zeros(self) -> Coefficients:
        dtype = self.offset.dtype
        return Coefficients(
            jnp.zeros(self.design.num_coefficients, dtype), jnp.zeros(self.offset.shape[1:], dtype)
        )

    def constant(self, intercept: jax.Array) -> jax.Array:
        """The intercept as predictions."""
        return jnp.broadcast_to(intercept[None], self.offset.shape)

    def predict(self, point: Coefficients) -> jax.Array:
        """X b + intercept, without the offset."""
        return self.design.predict(point.coef) + self.constant(point.intercept)

    def smooth_value(self, predictions: jax.Array) -> jax.Array:
        return self.loss.value(self.offset + predictions, self.y, self.sample_weight)

    def residual(self, predictions: jax.Array) -> jax.Array:
        """ρ = −∇F at the predictions."""
        return self.loss.negative_gradient(self.offset + predictions, self.y, self.sample_weight)

    def curvature_product(self, predictions: jax.Array, direction: jax.Array) -> jax.Array:
        """∇²F · direction (see `Loss.curvature_product`), both of the shape of the predictions."""
        return self.loss.curvature_product(
            self.offset + predictions, self.y, self.sample_weight, direction
        )

    def majorant(self, predictions: jax.Array) -> jax.Array | float | None:
        return self.loss.majorant(self.offset + predictions, self.y, self.sample_weight)

    def penalty(self, coef: jax.Array) -> jax.Array:
        return self.whole_penalty.value(coef, self.lam)

    def weighted_norm(self, predictions: jax.Array) -> jax.Array:
        """(Σ_t c_t ‖z_t‖²)^½."""
        squares = (predictions**2).reshape(self.num_samples, -1).sum(axis=1)
        return jnp.sqrt(jnp.sum(self.sample_weight * squares))


def with_lam(problem: Objective, lam: Any) -> Objective:
    return dataclasses.replace(problem, lam=lam)


def centre(design: Any, sample_weight: jax.Array) -> Centred:
    total = jnp.sum(sample_weight)
    return Centred(design, sample_weight / jnp.where(total == 0, 1.0, total))


def shifted(problem: Objective) -> Objective:
    """The same objective in the same (centred) coordinates, from columns less their mean: a
    constant in a column does not matter beside an intercept but to rounding.
    """
    design = uncentred(problem)
    if not problem.intercept or not isinstance(design, Dense):
        return problem
    matrix = design.matrix - jnp.mean(design.matrix, axis=0, keepdims=True)
    return dataclasses.replace(problem, design=Centred(Dense(matrix), problem.design.shares))


def uncentred(problem: Objective) -> Any:
    """The design as it was given, also where it was centred for an intercept."""
    return problem.design.design if problem.intercept else problem.design


def uncentre(problem: Objective, point: Coefficients) -> Coefficients:
    """The coefficients for the design itself."""
    if not problem.intercept:
        return point
    mean = problem.design.mean(problem.design.design.predict(point.coef))
    return Coefficients(point.coef, point.intercept - mean)


def recentre(problem: Objective, point: Coefficients) -> Coefficients:
    """The inverse of `uncentre`."""
    if not problem.intercept:
        return point
    mean = problem.design.mean(problem.design.design.predict(point.coef))
    return Coefficients(point.coef, point.intercept + mean)


def when(condition: jax.Array, compute: Any, otherwise: Any) -> Any:
    """compute() if `condition`, else `otherwise`; unlike a batched cond, a batch in which no lane
    needs it does not compute it.
    """
    return _loops.while_loop(
        lambda carry: carry[0],
        lambda carry: (jnp.zeros_like(condition), compute()),
        (condition, otherwise),
    )[1]


def spread(columns: jax.Array, coef: jax.Array) -> jax.Array:
    """(Σ_j ‖C^½ x_j‖² b_j²)^½: what the roundings of a product with X are of, from the columns'
    sizes [p] and the coefficients [p].
    """
    return jnp.sqrt(jnp.sum((columns * coef) ** 2))


def sizes(
    problem: Objective, spread: jax.Array, predictions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Errors per unit of the dtype's eps: of C^-½ ρ, so that the product of a column with ρ is off
    by ‖C^½ x_j‖ times it, and of F.

    A prediction is off by about (Σ_j x_tj² b_j²)^½ + |z_t|, ρ by its own size and by its
    curvature times that, F by ρ' δz and its terms.

    `spread` is that of the coefficients, by columns as they are stored. Errors are taken as
    independent, as in any long sum.
    """
    z = problem.offset + predictions
    weights = problem.sample_weight.reshape((-1,) + (1,) * (z.ndim - 1))
    slope = problem.num_samples * problem.weighted_norm(
        problem.residual(predictions) / jnp.where(weights > 0, weights, 1.0)
    )
    moved = spread + problem.weighted_norm(jnp.where(jnp.isfinite(z), z, 0.0))
    cancelled = problem.loss.size(z, problem.y, problem.sample_weight)
    residual = (slope + _mean_curvature(problem, predictions) * moved) / problem.num_samples
    return residual, slope * moved / problem.num_samples + cancelled


def _mean_curvature(problem: Objective, predictions: jax.Array) -> jax.Array:
    """The mean of ℓ'' over records, or its bound where outputs interact."""
    if predictions.ndim > 1 and problem.loss.curvature is not None:
        return jnp.asarray(problem.loss.curvature, predictions.dtype)
    total = jnp.sum(problem.sample_weight)
    curvatures = problem.curvature_product(predictions, jnp.ones_like(predictions))
    return problem.num_samples * jnp.sum(curvatures) / jnp.where(total == 0, 1.0, total)
