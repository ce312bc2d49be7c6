"""Smooth convex losses of linear predictions, F(z) = (1/T) Σ_t c_t ℓ(z_t; y_t), each with what a
certified solver needs.

Every ℓ is ≥ 0 with infimum 0 over z, c_t ≥ 0 are sample weights, and z is [T], or [T, M] for the
losses of several outputs.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr, xlogy

from jaxsac import gibbs
from jaxsac._checks import (
    check_shape,
    integer_array,
    is_concrete,
    real_array,
    real_scalar,
    require,
    static_integer,
)
from jaxsac.prox.groups import power_of_two, safe_sqrt


class Loss(eqx.Module):
    """A loss; a pytree. A subclass gives `per_sample` (convex in z, smooth, infimum 0), and
    `curvature` where ℓ'' is bounded.

    The other methods have a general form that is right for every such loss; a subclass overrides
    one where it knows better.
    """

    @property
    def curvature(self) -> float | None:
        """A bound on ℓ'' (on the largest eigenvalue of the Hessian, with several outputs), or None
        where there is none.
        """
        return None

    @property
    def separable(self) -> bool:
        """Whether F is the mean over records of ℓ, so that its Hessian is a diagonal (of
        blocks).
        """
        return True

    @property
    def quadratic(self) -> bool:
        """Whether F is a quadratic, whose Hessian is `curvature` · c_t / T, and `negative_gradient`
        takes NumPy arrays as well.
        """
        return False

    def for_data(self, y: jax.Array, offset: jax.Array, weights: jax.Array) -> "Loss":
        """The loss with what it takes from the data, once, before anything is fitted."""
        return self

    def majorant(self, z: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array | float | None:
        """A κ with F(z + d) ≤ F(z) + <∇F(z), d> + κ/(2T) Σ_t c_t ‖d_t‖² for every d, or None where
        there is none.
        """
        return self.curvature

    def target(self, y: Any, prediction_shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """`y` as the array that the other methods take; ValueError if it does not fit."""
        return real_array("y", y, prediction_shape, dtype)

    def per_sample(self, z: jax.Array, y: jax.Array) -> jax.Array:
        """ℓ(z_t; y_t), [T]."""
        raise TypeError(f"{type(self).__name__} must define per_sample(z, y).")

    def descent(self, z: jax.Array, y: jax.Array) -> jax.Array:
        """−∂ℓ/∂z for each sample, of the shape of z."""
        return -jax.grad(lambda u: jnp.sum(self.per_sample(u, y)))(z)

    def dual_per_sample(
        self, z: jax.Array, y: jax.Array, penalised: jax.Array, scale: jax.Array
    ) -> jax.Array:
        """A lower bound of −ℓ*(−s g) − s <g, z − w>, with g = descent(z), w = `penalised`, s =
        `scale` in [0, 1]; exact at s = 1, [T].

        ℓ* is the convex conjugate. In general −ℓ*(−s g) ≥ s (ℓ(z) + <g, z>) + (1 − s) inf ℓ, for ℓ*
        is convex.
        """
        return scale * (self.per_sample(z, y) + _inner(self.descent(z, y), penalised))

    def magnitude(self, z: jax.Array, y: jax.Array) -> jax.Array:
        """The size of the terms that cancel in ℓ, [T]: their rounding error is that of ℓ."""
        return jnp.abs(self.per_sample(z, y))

    def dual_scale(
        self,
        z: jax.Array,
        y: jax.Array,
        weights: jax.Array,
        penalised: jax.Array,
        limit: jax.Array,
        ridge: jax.Array | float = 0.0,
    ) -> jax.Array:
        """The multiple s of ρ(z) at which to take the dual value, s ≤ limit."""
        return jnp.minimum(1.0, limit)

    def value(self, z: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        """F(z) = (1/T) Σ_t c_t ℓ(z_t; y_t)."""
        return jnp.sum(weights * self.per_sample(z, y)) / z.shape[0]

    def negative_gradient(self, z: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        """ρ = −∇F(z), of the shape of z."""
        return _rows(weights, z) * self.descent(z, y) / z.shape[0]

    def curvature_product(
        self, z: jax.Array, y: jax.Array, weights: jax.Array, direction: jax.Array
    ) -> jax.Array:
        """∇²F(z) · direction, or that of a quadratic model above F where the Hessian is no good
        model.
        """
        return -jax.jvp(lambda u: self.negative_gradient(u, y, weights), (z,), (direction,))[1]

    def size(self, z: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        """The size of the terms that cancel in F: their rounding error is that of F."""
        return jnp.sum(weights * self.magnitude(z, y)) / z.shape[0]

    def dual_value(
        self,
        z: jax.Array,
        y: jax.Array,
        weights: jax.Array,
        penalised: jax.Array,
        limit: jax.Array,
        ridge: jax.Array | float = 0.0,
    ) -> tuple[jax.Array, jax.Array]:
        """A multiple s ≤ limit and D(s ρ(z)) = −F*(−s ρ) − s <ρ, z − w> − ½ s² `ridge`, w =
        `penalised` the part X b of z under the penalty.

        If ‖X_g' ρ‖ limit ≤ lam w_g for all g, and ρ is orthogonal to what is unpenalised, D is a
        lower bound of the least objective; the rest of z (offset, intercept, unpenalised columns)
        enters as a constant. `ridge` is twice the value at b of a quadratic ½ Σ_j r_j b_j² in the
        objective, X' ρ then being X' ρ − r b: its conjugate at s r b is ½ s² `ridge`.
        """
        scale = self.dual_scale(z, y, weights, penalised, limit, ridge)
        return scale, jnp.sum(weights * self.dual_per_sample(z, y, penalised, scale)) / z.shape[
            0
        ] - 0.5 * scale**2 * ridge


class Squared(Loss):
    """ℓ = ½ (y − z)²; with several outputs, ½ ‖y − z‖²."""

    @property
    def curvature(self) -> float | None:
        return 1.0

    @property
    def quadratic(self) -> bool:
        return type(self) is Squared  # what is made of it may be anything

    def per_sample(self, z, y):
        return 0.5 * _inner(y - z, y - z)

    def descent(self, z, y):
        return y - z

    def dual_per_sample(self, z, y, penalised, scale):
        residual = y - z
        return scale * _inner(residual, residual + penalised) - 0.5 * scale**2 * _inner(
            residual, residual
        )

    def dual_scale(self, z, y, weights, penalised, limit, ridge=0.0):
        return jnp.clip(_best_scale(weights, y - z, y - z + penalised, ridge), -limit, limit)


class Huber(Loss):
    """ℓ = ½ r² for |r| ≤ delta, delta (|r| − ½ delta) beyond, r = y − z."""

    delta: jax.Array | float = 1.345

    @property
    def curvature(self) -> float | None:
        return 1.0

    def _clipped(self, z, y):
        delta = jnp.asarray(self.delta).astype(z.dtype)
        return y - z, jnp.clip(y - z, -delta, delta)

    def per_sample(self, z, y):
        residual, clipped = self._clipped(z, y)
        return clipped * (residual - 0.5 * clipped)

    def descent(self, z, y):
        return self._clipped(z, y)[1]

    def dual_per_sample(self, z, y, penalised, scale):
        residual, clipped = self._clipped(z, y)
        return scale * clipped * (residual + penalised) - 0.5 * scale**2 * clipped**2

    def dual_scale(self, z, y, weights, penalised, limit, ridge=0.0):
        residual, clipped = self._clipped(z, y)
        limit = jnp.minimum(1.0, limit)
        return jnp.clip(_best_scale(weights, clipped, residual + penalised, ridge), -limit, limit)


class SquareRoot(Loss):
    """F = min_{σ ≥ σ₀} Σ_t c_t r_t² / (2 T σ) + σ/2, r = y − z: (Σ c r² / T)^½ wherever that is at
    least σ₀, and smooth below.

    With it the right lam does not depend on the noise level (Belloni et al. 2011; group penalties:
    Bunea et al. 2014), and the minimising σ estimates that level. σ₀ is `floor` times the standard
    deviation of y − offset (its root mean square, if that is zero): without it a model that
    interpolates would end where F has no gradient (Ndiaye et al. 2017). `per_sample`, by which
    held-out records are judged, is ½ r².
    """

    floor: jax.Array | float = 0.01
    least: jax.Array | float = 0.0  # σ₀, in the units of y

    @property
    def separable(self) -> bool:
        return False

    def for_data(self, y, offset, weights):
        target = y - offset
        total = jnp.sum(weights)
        mean = jnp.sum(_rows(weights, target) * target, axis=0, keepdims=True) / jnp.where(
            total == 0, 1.0, total
        )
        size, spread = _mean_square_root(target, weights), _mean_square_root(target - mean, weights)
        # A constant target leaves rounding for a spread.
        spread = jnp.where(spread > 100.0 * jnp.finfo(spread.dtype).eps * size, spread, size)
        least = jnp.asarray(self.floor).astype(spread.dtype) * jnp.where(spread == 0, 1.0, spread)
        return SquareRoot(self.floor, least)

    def scale(self, z: jax.Array, y: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(Σ c r² / T)^½, and the minimising σ, which is not below σ₀."""
        root = _mean_square_root(y - z, weights)
        return root, jnp.maximum(root, jnp.asarray(self.least).astype(root.dtype))

    def majorant(self, z, y, weights):
        return (
            1.0 / self.scale(z, y, weights)[1]
        )  # F lies below the quadratic of any σ, and touches that of its own

    def per_sample(self, z, y):
        return 0.5 * _inner(y - z, y - z)

    def descent(self, z, y):
        return y - z

    def value(self, z, y, weights):
        root, sigma = self.scale(z, y, weights)
        return 0.5 * (root * (root / sigma) + sigma)

    def negative_gradient(self, z, y, weights):
        return _rows(weights, z) * (y - z) / (z.shape[0] * self.scale(z, y, weights)[1])

    def curvature_product(self, z, y, weights, direction):
        return _rows(weights, z) * direction / (z.shape[0] * self.scale(z, y, weights)[1])

    def size(self, z, y, weights):
        return self.value(z, y, weights)

    def dual_value(self, z, y, weights, penalised, limit, ridge=0.0):
        # −F*(−ν) = ν'y + ½ σ₀ (1 − T Σ ν²/c) for T Σ ν²/c ≤ 1, at ν = s ρ = s C r / (T σ).
        root, sigma = self.scale(z, y, weights)
        least, share = jnp.asarray(self.least).astype(root.dtype), root / sigma
        slope = jnp.sum(weights * _inner(y - z, y - z + penalised)) / (z.shape[0] * sigma)
        bend = least * share**2 + ridge
        limit = jnp.minimum(
            limit, jnp.where(share == 0, jnp.inf, 1.0 / jnp.where(share == 0, 1.0, share))
        )
        best = slope / jnp.where(bend == 0, 1.0, bend)
        scale = jnp.where(bend == 0, 0.0, jnp.clip(best, -limit, limit))
        return scale, scale * slope + 0.5 * least - 0.5 * scale**2 * bend


class Logistic(Loss):
    """ℓ = log(1 + e^{−y z}) for y = ±1."""

    @property
    def curvature(self) -> float | None:
        return 0.25

    def target(self, y, prediction_shape, dtype):
        y = real_array("y", y, prediction_shape, dtype)
        if is_concrete(y):
            known = np.asarray(y)
            signs = bool(np.all((np.abs(known) == 1) | np.isnan(known)))
            require(
                signs,
                "y must be +1 or -1 for the logistic loss: pass 2 * y - 1 for labels 0 and 1.",
            )
        return y

    def per_sample(self, z, y):
        return jnp.where(jnp.abs(y) == 1, jax.nn.softplus(-y * z), jnp.nan)

    def descent(self, z, y):
        return y * jax.nn.sigmoid(-y * z)

    def dual_per_sample(self, z, y, penalised, scale):
        share = scale * jax.nn.sigmoid(-y * z)
        rest = jax.nn.sigmoid(y * z) + (1.0 - scale) * jax.nn.sigmoid(
            -y * z
        )  # 1 − share without cancellation
        return entr(share) + entr(rest) - share * y * (z - penalised)


class Poisson(Loss):
    """ℓ = e^z − y z − (y − y log y) for counts y ≥ 0: half the deviance, log-link. No curvature
    bound: solvers backtrack.
    """

    def target(self, y, prediction_shape, dtype):
        y = real_array("y", y, prediction_shape, dtype)
        if is_concrete(y):
            require(not bool(np.any(np.asarray(y) < 0)), "y must be >= 0 for the Poisson loss.")
        return y

    def per_sample(self, z, y):
        # Counts that are not counts have no loss: NaN, which a solver reports as NONFINITE.
        return jnp.where(y >= 0, jnp.exp(z) - y * z - (y - xlogy(y, y)), jnp.nan)

    def descent(self, z, y):
        return y - jnp.exp(z)

    def dual_per_sample(self, z, y, penalised, scale):
        rate = (1.0 - scale) * y + scale * jnp.exp(z)
        return (
            rate
            - xlogy(rate, rate)
            - (y - xlogy(y, y))
            - scale * (y - jnp.exp(z)) * (z - penalised)
        )

    def magnitude(self, z, y):
        return jnp.exp(z) + jnp.abs(y * z) + jnp.abs(xlogy(y, y))


class Multinomial(Loss):
    """ℓ = log Σ_j e^{z_j} − z_y for classes y in [0, M), z [T, M]."""

    @property
    def curvature(self) -> float | None:
        return 0.5

    def target(self, y, prediction_shape, dtype):
        require(
            len(prediction_shape) == 2,
            "the multinomial loss needs predictions [T, M]: pass X as designs.multi_output(features, M).",
        )
        y = integer_array("y", y, prediction_shape[:1])
        if is_concrete(y):
            inside = bool(np.all((np.asarray(y) >= 0) & (np.asarray(y) < prediction_shape[1])))
            require(inside, f"y must hold classes in [0, {prediction_shape[1]}).")
        return y

    def per_sample(self, z, y):
        return (
            jax.nn.logsumexp(z, axis=1)
            - jnp.take_along_axis(z, y[:, None], axis=1, mode="fill")[:, 0]
        )

    def descent(self, z, y):
        return jax.nn.one_hot(y, z.shape[1], dtype=z.dtype) - jax.nn.softmax(z, axis=1)

    def dual_per_sample(self, z, y, penalised, scale):
        target = jax.nn.one_hot(y, z.shape[1], dtype=z.dtype)
        probability = jax.nn.softmax(z, axis=1)
        mixed = (1.0 - scale) * target + scale * probability
        return jnp.sum(entr(mixed), axis=1) - scale * _inner(target - probability, z - penalised)

    def magnitude(self, z, y):
        return jnp.log(z.shape[1] + 1.0) + jnp.max(
            jnp.where(jnp.isfinite(z), jnp.abs(z), 0.0), axis=1
        )


class BudgetedGibbs(Loss):
    """ℓ = log Z(z_t) − Σ_{j ∈ a_t} z_tj: the negative log-likelihood of the set a_t under the
    budgeted Gibbs policy with scores z_t [M].

    y = a [T, W] int32, padded with −1. `budget`, `exactly` and `costs` are those of
    `jaxsac.gibbs.log_partition`.
    """

    budget: int = eqx.field(static=True)
    exactly: bool = eqx.field(static=True, default=False)
    costs: tuple[int, ...] | None = eqx.field(static=True, default=None)

    @property
    def curvature(self) -> float | None:
        if self.costs is None:
            return 0.5
        largest = int(np.searchsorted(np.cumsum(np.sort(self.costs)), self.budget, side="right"))
        return 0.5 * max(largest, 1)

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "exactly": self.exactly,
            "costs": None if self.costs is None else jnp.asarray(self.costs, jnp.int32),
        }

    def target(self, y, prediction_shape, dtype):
        advice = "the budgeted Gibbs loss needs predictions [T, M]: pass X as designs.multi_output(features, M)."
        require(len(prediction_shape) == 2, advice)
        y = integer_array("y", y, (prediction_shape[0], "W"))
        if is_concrete(y):
            known = np.asarray(y)
            require(
                known.size == 0 or known.max() < prediction_shape[1],
                f"y must hold actions below {prediction_shape[1]}, padded with -1.",
            )
            ordered = np.sort(known, axis=1)
            twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
            require(
                not twice.any(), "y lists an action twice in one row: list it once, pad with -1."
            )
            cost = (
                (known >= 0).sum(axis=1)
                if self.costs is None
                else np.where(known >= 0, np.asarray(self.costs)[known], 0).sum(axis=1)
            )
            fits = (cost == self.budget) if self.exactly else (cost <= self.budget)
            require(
                bool(fits.all()),
                f"y has {int((~fits).sum())} rows outside the budget {self.budget}: drop them or raise the budget.",
            )
        return y

    def per_sample(self, z, y):
        log_partition = jax.vmap(
            lambda scores: gibbs.log_partition(scores, self.budget, **self._options)
        )(z)
        chosen = jnp.take_along_axis(z, jnp.where(y < 0, 0, y), axis=1)
        return log_partition - jnp.sum(jnp.where(y < 0, 0.0, chosen), axis=1)

    def descent(self, z, y):
        marginals = jax.vmap(lambda scores: gibbs.marginals(scores, self.budget, **self._options))(
            z
        )
        rows = jnp.arange(z.shape[0], dtype=jnp.int32)[:, None]
        return (-marginals).at[rows, jnp.where(y < 0, z.shape[1], y)].add(1.0, mode="drop")

    def magnitude(self, z, y):
        chosen = jnp.take_along_axis(z, jnp.where(y < 0, 0, y), axis=1)
        return 8.0 * (
            jnp.abs(self.per_sample(z, y)) + jnp.sum(jnp.where(y < 0, 0.0, jnp.abs(chosen)), axis=1)
        )


def huber(delta: float | jax.Array = 1.345) -> Huber:
    """The Huber loss with threshold delta > 0, in the units of y; traced, so that a sweep compiles
    once.
    """
    return Huber(real_scalar("delta", delta, jnp.result_type(float), 0.0, strict=True))


def square_root(floor: float | jax.Array = 0.01) -> SquareRoot:
    """The square-root loss whose σ does not fall below `floor` > 0 times the standard deviation of
    the targets; traced.
    """
    return SquareRoot(real_scalar("floor", floor, jnp.result_type(float), 0.0, strict=True))


def budgeted_gibbs(budget: int, *, exactly: bool = False, costs: Any = None) -> BudgetedGibbs:
    """The likelihood of sets |a| ≤ budget (`exactly`: = budget; `costs`: integer costs [M], total ≤
    budget).
    """
    fixed = None
    if costs is not None:
        require(is_concrete(costs), "costs bound the curvature and must be concrete integers.")
        require(not exactly, "exactly=True is for budgets without costs.")
        array = np.asarray(costs)
        require(
            array.ndim == 1 and bool(np.issubdtype(array.dtype, np.integer)),
            "costs must be integers of shape [M].",
        )
        fixed = tuple(array.tolist())
    return BudgetedGibbs(static_integer("budget", budget, 0), bool(exactly), fixed)


_BY_NAME = {
    "squared": Squared,
    "logistic": Logistic,
    "huber": Huber,
    "sqrt": SquareRoot,
    "poisson": Poisson,
    "multinomial": Multinomial,
}


def resolve(loss: str | Loss) -> Loss:
    """The loss of that name, or `loss` itself; ValueError for an unknown name."""
    if isinstance(loss, Loss):
        return loss
    known = isinstance(loss, str) and loss in _BY_NAME
    require(
        known,
        f"loss must be one of {', '.join(map(repr, _BY_NAME))} or a losses.Loss (such as budgeted_gibbs(budget)), got {loss!r}.",
    )
    return _BY_NAME[loss]()


def _rows(weights: jax.Array, z: jax.Array) -> jax.Array:
    """Weights [T] with the rank of z."""
    check_shape("sample_weight", weights, z.shape[:1])
    return weights.reshape((-1,) + (1,) * (z.ndim - 1))


def _inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """Σ over outputs of a b, [T]; a term 0 · ∞ (an unavailable output) counts 0."""
    product = a * jnp.where((a == 0) & jnp.isinf(b), 0.0, b)
    return product if product.ndim == 1 else jnp.sum(product, axis=1)


def _best_scale(
    weights: jax.Array, direction: jax.Array, target: jax.Array, ridge: jax.Array | float
) -> jax.Array:
    """argmax_s Σ_t c_t (s <d_t, target_t> − ½ s² ‖d_t‖²) − ½ s² T ridge, and 1 where d and ridge
    are 0.
    """
    squares = jnp.sum(weights * _inner(direction, direction)) + direction.shape[0] * ridge
    zero = squares == 0
    return jnp.where(
        zero, 1.0, jnp.sum(weights * _inner(direction, target)) / jnp.where(zero, 1.0, squares)
    )


def _mean_square_root(residual: jax.Array, weights: jax.Array) -> jax.Array:
    """(Σ_t c_t ‖r_t‖² / T)^½ at any scale of the dtype, with the gradient 0 at r = 0."""
    scale, inverse = power_of_two(jnp.max(jnp.abs(jax.lax.stop_gradient(residual)), initial=0.0))
    small = residual * inverse
    return scale * safe_sqrt(jnp.sum(weights * _inner(small, small)) / residual.shape[0])
