"""Losses of numbers and counts."""

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from jaxsac import _checks
from jaxsac._arguments import arguments, real
from jaxsac.losses.protocol import Loss, inner, rows
from jaxsac.prox.groups import power_of_two, safe_sqrt
from jaxsac.solution import register


@register
class Squared(Loss):
    """ℓ = ½ (y − z)²; with several outputs, ½ ‖y − z‖²."""

    @property
    def curvature(self) -> float | None:
        return 1.0

    @property
    def quadratic(self) -> bool:
        return type(self) is Squared  # what is made of it may be anything

    def per_sample(self, z, y):
        return 0.5 * inner(y - z, y - z)

    def descent(self, z, y):
        return y - z

    def dual_per_sample(self, z, y, penalised, scale):
        residual = y - z
        return scale * inner(residual, residual + penalised) - 0.5 * scale**2 * inner(
            residual, residual
        )

    def dual_scale(self, z, y, sample_weight, penalised, limit, ridge=0.0):
        return jnp.clip(_best_scale(sample_weight, y - z, y - z + penalised, ridge), -limit, limit)


@register
@arguments(delta=real(above=0, own=True))
class Huber(Loss):
    """ℓ = ½ r² for |r| ≤ delta, delta (|r| − ½ delta) beyond, r = y − z."""

    delta: jax.Array | float = 1.345  # [] > 0, in the units of y; traced: a sweep is one program

    @property
    def curvature(self) -> float | None:
        return 1.0

    def _clipped(self, z, y):
        delta = jnp.where(self.delta >= 0, self.delta, jnp.nan).astype(z.dtype)
        return y - z, jnp.clip(y - z, -delta, delta)

    def per_sample(self, z, y):
        residual, clipped = self._clipped(z, y)
        return clipped * (residual - 0.5 * clipped)

    def descent(self, z, y):
        return self._clipped(z, y)[1]

    def dual_per_sample(self, z, y, penalised, scale):
        residual, clipped = self._clipped(z, y)
        return scale * clipped * (residual + penalised) - 0.5 * scale**2 * clipped**2

    def dual_scale(self, z, y, sample_weight, penalised, limit, ridge=0.0):
        residual, clipped = self._clipped(z, y)
        limit = jnp.minimum(1.0, limit)
        return jnp.clip(
            _best_scale(sample_weight, clipped, residual + penalised, ridge), -limit, limit
        )


@register
@arguments(floor=real(above=0, own=True), least=real(low=0, own=True))
class SquareRoot(Loss):
    """F = min_{σ ≥ σ₀} Σ_t c_t r_t² / (2 T σ) + σ/2, r = y − z: (Σ c r² / T)^½ wherever that is at
    least σ₀, and smooth below.

    With it the right lam does not depend on the noise level (Belloni et al. 2011; group penalties:
    Bunea et al. 2014), and the minimising σ estimates that level. σ₀ is `floor` times the standard
    deviation of y − offset (its root mean square, if that is zero): without it a model that
    interpolates would end where F has no gradient (Ndiaye et al. 2017). `per_sample`, by which
    held-out records are judged, is ½ r².
    """

    floor: jax.Array | float = 0.01  # [] > 0
    least: jax.Array | float = 0.0  # [] σ₀, in the units of y

    @property
    def separable(self) -> bool:
        return False

    def for_data(self, y, offset, sample_weight):
        target = y - offset
        total = jnp.sum(sample_weight)
        mean = jnp.sum(rows(sample_weight, target) * target, axis=0, keepdims=True) / jnp.where(
            total == 0, 1.0, total
        )
        size, spread = (
            _mean_square_root(target, sample_weight),
            _mean_square_root(target - mean, sample_weight),
        )
        # A constant target leaves rounding for a spread.
        spread = jnp.where(spread > 100.0 * jnp.finfo(spread.dtype).eps * size, spread, size)
        floor = jnp.where(self.floor > 0, self.floor, jnp.nan).astype(spread.dtype)
        least = floor * jnp.where(spread == 0, 1.0, spread)
        return SquareRoot(self.floor, least)

    def scale(
        self, z: jax.Array, y: jax.Array, sample_weight: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(Σ c r² / T)^½, and the minimising σ, which is not below σ₀."""
        root = _mean_square_root(y - z, sample_weight)
        return root, jnp.maximum(root, jnp.asarray(self.least).astype(root.dtype))

    def majorant(self, z, y, sample_weight):
        # F lies below the quadratic of any σ, and touches that of its own.
        return 1.0 / self.scale(z, y, sample_weight)[1]

    def per_sample(self, z, y):
        return 0.5 * inner(y - z, y - z)

    def descent(self, z, y):
        return y - z

    def value(self, z, y, sample_weight):
        # not the root times itself, which has no curvature at r = 0
        scale, square = _mean_square(y - z, sample_weight, self.least)
        sigma = self.scale(z, y, sample_weight)[1]
        return 0.5 * ((scale * square) * (scale / sigma) + sigma)

    def negative_gradient(self, z, y, sample_weight):
        return rows(sample_weight, z) * (y - z) / (z.shape[0] * self.scale(z, y, sample_weight)[1])

    def curvature_product(self, z, y, sample_weight, direction):
        return (
            rows(sample_weight, z) * direction / (z.shape[0] * self.scale(z, y, sample_weight)[1])
        )

    def size(self, z, y, sample_weight):
        return self.value(z, y, sample_weight)

    def dual_value(self, z, y, sample_weight, penalised, limit, ridge=0.0):
        # −F*(−ν) = ν'y + ½ σ₀ (1 − T Σ ν²/c) for T Σ ν²/c ≤ 1, at ν = s ρ = s C r / (T σ).
        root, sigma = self.scale(z, y, sample_weight)
        least, share = jnp.asarray(self.least).astype(root.dtype), root / sigma
        slope = jnp.sum(sample_weight * inner(y - z, y - z + penalised)) / (z.shape[0] * sigma)
        bend = least * share**2 + ridge
        limit = jnp.minimum(
            limit, jnp.where(share == 0, jnp.inf, 1.0 / jnp.where(share == 0, 1.0, share))
        )
        best = slope / jnp.where(bend == 0, 1.0, bend)
        scale = jnp.where(bend == 0, 0.0, jnp.clip(best, -limit, limit))
        return scale, scale * slope + 0.5 * least - 0.5 * scale**2 * bend


@register
class Poisson(Loss):
    """ℓ = e^z − y z − (y − y log y) for counts y ≥ 0: half the deviance, log-link. No curvature
    bound: solvers backtrack.
    """

    def target(self, y, prediction_shape, dtype):
        y = real(*prediction_shape).take("y", y, dtype)
        _checks.require_known(lambda y: ~(y < 0), "y must be >= 0 for the Poisson loss.", y)
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


def _best_scale(
    sample_weight: jax.Array, direction: jax.Array, target: jax.Array, ridge: jax.Array | float
) -> jax.Array:
    """argmax_s Σ_t c_t (s <d_t, target_t> − ½ s² ‖d_t‖²) − ½ s² T ridge, and 1 where d and ridge
    are 0.
    """
    squares = jnp.sum(sample_weight * inner(direction, direction)) + direction.shape[0] * ridge
    zero = squares == 0
    return jnp.where(
        zero, 1.0, jnp.sum(sample_weight * inner(direction, target)) / jnp.where(zero, 1.0, squares)
    )


def _mean_square(
    residual: jax.Array, sample_weight: jax.Array, least: jax.Array | float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """A power of two s near the largest |r| or `least`, and Σ_t c_t ‖r_t / s‖² / T."""
    size = jnp.max(jnp.abs(jax.lax.stop_gradient(residual)), initial=0.0)
    least = jax.lax.stop_gradient(jnp.asarray(least)).astype(size.dtype)
    scale, inverse = power_of_two(jnp.maximum(size, least))
    small = residual * inverse
    return scale, jnp.sum(sample_weight * inner(small, small)) / residual.shape[0]


def _mean_square_root(residual: jax.Array, sample_weight: jax.Array) -> jax.Array:
    """(Σ_t c_t ‖r_t‖² / T)^½, with the gradient 0 at r = 0."""
    scale, square = _mean_square(residual, sample_weight)
    return scale * safe_sqrt(square)
