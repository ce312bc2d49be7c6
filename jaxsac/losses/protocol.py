"""What a certified solver needs of a loss F(z) = (1/T) Σ_t c_t ℓ(z_t; y_t).

Every ℓ is ≥ 0 with infimum 0 over z, c_t ≥ 0 are sample weights, and z is [T], or [T, M] for
the losses of several outputs.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxsac import _checks
from jaxsac._arguments import real


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

    def for_data(self, y: jax.Array, offset: jax.Array, sample_weight: jax.Array) -> "Loss":
        """The loss with what it takes from the data, once, before anything is fitted."""
        return self

    def majorant(
        self, z: jax.Array, y: jax.Array, sample_weight: jax.Array
    ) -> jax.Array | float | None:
        """A κ with F(z + d) ≤ F(z) + <∇F(z), d> + κ/(2T) Σ_t c_t ‖d_t‖² for every d, or None where
        there is none.
        """
        return self.curvature

    def target(self, y: Any, prediction_shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """`y` as the array that the other methods take; ValueError if it does not fit."""
        return real(*prediction_shape).take("y", y, dtype)

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
        return scale * (self.per_sample(z, y) + inner(self.descent(z, y), penalised))

    def magnitude(self, z: jax.Array, y: jax.Array) -> jax.Array:
        """The size of the terms that cancel in ℓ, [T]: their rounding error is that of ℓ."""
        return jnp.abs(self.per_sample(z, y))

    def dual_scale(
        self,
        z: jax.Array,
        y: jax.Array,
        sample_weight: jax.Array,
        penalised: jax.Array,
        limit: jax.Array,
        ridge: jax.Array | float = 0.0,
    ) -> jax.Array:
        """The multiple s of ρ(z) at which to take the dual value, s ≤ limit."""
        return jnp.minimum(1.0, limit)

    def value(self, z: jax.Array, y: jax.Array, sample_weight: jax.Array) -> jax.Array:
        """F(z) = (1/T) Σ_t c_t ℓ(z_t; y_t)."""
        return jnp.sum(sample_weight * self.per_sample(z, y)) / z.shape[0]

    def negative_gradient(self, z: jax.Array, y: jax.Array, sample_weight: jax.Array) -> jax.Array:
        """ρ = −∇F(z), of the shape of z."""
        return rows(sample_weight, z) * self.descent(z, y) / z.shape[0]

    def curvature_product(
        self, z: jax.Array, y: jax.Array, sample_weight: jax.Array, direction: jax.Array
    ) -> jax.Array:
        """∇²F(z) · direction, or that of a quadratic model above F where the Hessian is no good
        model.
        """

        def gradient(z):
            return self.negative_gradient(z, y, sample_weight)

        return -jax.jvp(gradient, (z,), (direction,))[1]

    def size(self, z: jax.Array, y: jax.Array, sample_weight: jax.Array) -> jax.Array:
        """The size of the terms that cancel in F: their rounding error is that of F."""
        return jnp.sum(sample_weight * self.magnitude(z, y)) / z.shape[0]

    def dual_value(
        self,
        z: jax.Array,
        y: jax.Array,
        sample_weight: jax.Array,
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
        scale = self.dual_scale(z, y, sample_weight, penalised, limit, ridge)
        each = self.dual_per_sample(z, y, penalised, scale)
        return scale, jnp.sum(sample_weight * each) / z.shape[0] - 0.5 * scale**2 * ridge


def rows(sample_weight: jax.Array, z: jax.Array) -> jax.Array:
    """Weights [T] with the rank of z."""
    _checks.check_shape("sample_weight", sample_weight, z.shape[:1])
    return sample_weight.reshape((-1,) + (1,) * (z.ndim - 1))


def inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """Σ over outputs of a b, [T]; a term 0 · ∞ (an unavailable output) counts 0."""
    product = a * jnp.where((a == 0) & jnp.isinf(b), 0.0, b)
    return product if product.ndim == 1 else jnp.sum(product, axis=1)
