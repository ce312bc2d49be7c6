"""The regression that is never factored, and draws from its posterior."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _checks
from jaxsac._arguments import arguments, real
from jaxsac.bandits.estimate.radii import BELOW_ONE
from jaxsac.bandits.protocol import INIT, Policy, like_theta, product

NUMBERS: dict[str, Any] = {
    "sigma": real(low=0, below=float("inf")),
    "delta": BELOW_ONE,
    "ridge": real(above=0, below=float("inf")),
    "bound": real(low=0, below=float("inf")),
}
_QUANTILE = 1.959964  # of the normal law at 97.5 %
SLACK = 1e-4  # for the rounding of a determinant that has grown by just enough


class Ridge(NamedTuple):
    """Ridge regression that is never factored, with V = ridge I + Σ x x'."""

    root: jax.Array  # [d, d], root root' = V⁻¹
    variance: jax.Array  # [d], (V⁻¹)_ii up to rounding: the rows of root cost d² a step
    theta: jax.Array  # [d], the estimate
    log_det: jax.Array  # [], log det(V) − log det(ridge I)
    dropped: jax.Array  # int32 [], rewards that were no numbers


def ridge_start(dimension: int, ridge: Any, dtype: Any) -> Ridge:
    """`ridge` is [], or [d] for one of each coordinate; `dtype` None: the default of JAX."""
    dtype = jnp.result_type(float) if dtype is None else dtype
    ridge = jnp.broadcast_to(jnp.asarray(ridge).astype(dtype), (dimension,))
    zeros = jnp.zeros(dimension, dtype)
    root = jnp.diag(1.0 / jnp.sqrt(ridge))
    return Ridge(root, 1.0 / ridge, zeros, jnp.zeros((), dtype), jnp.int32(0))


def ridge_update(state: Ridge, x: jax.Array, reward: jax.Array, count: Any = 1.0) -> Ridge:
    """One observation in O(d²), or the mean `reward` of `count` ones of the same action: (V + x
    x')⁻¹ = R (I − w w' / (1 + w'w)) R' with w = R'x, and I − g w w' a root of the middle.
    """
    x = like_theta("action", x, state.theta, "d")
    reward = like_theta("reward", reward, state.theta)
    known = jnp.isfinite(reward) & jnp.all(jnp.isfinite(x))
    # With w = 0 nothing below changes.
    w = jnp.where(known, product(x, state.root), 0.0)
    x, reward = jnp.where(known, x, 0.0), jnp.where(known, reward, 0.0)
    size = jnp.asarray(count).astype(x.dtype) * product(w, w)
    back = product(state.root, w)
    step = jnp.asarray(count).astype(x.dtype) / (1.0 + size)
    theta = state.theta + back * ((reward - product(x, state.theta)) * step)
    small = size < 1e-6  # where the difference below would cancel; its limit is 1/2
    shrink = jnp.where(small, 0.5, (1.0 - 1.0 / jnp.sqrt(1.0 + size)) / jnp.where(small, 1.0, size))
    shrink = shrink * jnp.asarray(count).astype(x.dtype)
    return Ridge(
        state.root - shrink * back[:, None] * w[None, :],
        state.variance - step * back**2,
        theta,
        state.log_det + jnp.log1p(size),
        state.dropped + jnp.where(known, 0, count).astype(jnp.int32),
    )


def deviations(state: Ridge) -> jax.Array:
    """√(V⁻¹)_ii, [d]."""
    return jnp.sqrt(jnp.sum(state.root**2, axis=1))


class Stepwise(Policy):
    """What follows from ridge regression with a confidence width."""

    sigma: jax.Array | float
    delta: jax.Array | float
    ridge: jax.Array | float
    bound: jax.Array | float

    @arguments(**INIT)
    def init(self, key: jax.Array | None = None, *, dimension: int, dtype=None) -> Any:
        return ridge_start(dimension, self.ridge, dtype)

    def update(self, state: Any, action: jax.Array, reward: jax.Array, offer: Any = None) -> Any:
        return ridge_update(state, action, reward)

    def width(self, state: Ridge) -> jax.Array:
        """sigma √(2 log(1/delta) + log det(V) − log det(ridge I)) + √ridge bound: all times at
        once, with probability 1 − delta.

        Source: Abbasi-Yadkori, Pal and Szepesvari (2011), theorem 2, for ‖theta‖₂ ≤ bound.
        """
        sigma, delta, ridge, bound = (
            jnp.asarray(value).astype(state.theta.dtype)
            for value in (self.sigma, self.delta, self.ridge, self.bound)
        )
        spread = jnp.sqrt(2.0 * jnp.log(1.0 / delta) + state.log_det)
        return sigma * spread + jnp.sqrt(ridge) * bound

    def estimate(self, state: Any) -> tuple[jax.Array, jax.Array]:
        """The ridge estimate [d], and how far each coordinate may be from it: all times and
        coordinates at once, with probability 1 − delta.
        """
        return state.theta, self.width(state) * deviations(state)


class ThompsonState(NamedTuple):
    """The posterior, and the draw that is played."""

    ridge: Ridge  # its log_det counts from the draw
    drawn: jax.Array  # [d], from the posterior of its time
    key: jax.Array  # uint32, the numbers of a key
    step: jax.Array  # int32 [], updates so far


class Posterior(Policy):
    """What follows from draws of theta ~ N(theta_t, sigma² V⁻¹)."""

    sigma: jax.Array | float
    hold: jax.Array | float  # a draw is kept until det(V) has grown by the factor 1 + hold

    def start(self, key: jax.Array | None, ridge: Ridge) -> ThompsonState:
        _checks.require(key is not None, "Thompson sampling draws at random: pass a key to init.")
        assert key is not None
        zero, numbers = jnp.int32(0), jax.random.key_data(key)  # which any serialiser takes
        return ThompsonState(
            ridge, self.draw(ridge, jax.random.fold_in(numbers, zero)), numbers, zero
        )

    def draw(self, ridge: Ridge, key: jax.Array) -> jax.Array:
        normal = jax.random.normal(key, ridge.theta.shape, ridge.theta.dtype)
        scale = jnp.asarray(self.sigma).astype(normal.dtype)
        return ridge.theta + scale * product(ridge.root, normal)

    def update(
        self,
        state: ThompsonState,
        action: jax.Array,
        reward: Any,
        offer: Any = None,
        count: Any = 1,
    ) -> ThompsonState:
        """The state after `count` rewards of any one action, given by their mean; they may come
        late, in any order. A draw is kept for what is dropped too.
        """
        ridge = ridge_update(state.ridge, action, reward, count)
        step, hold = state.step + count, jnp.asarray(self.hold).astype(ridge.theta.dtype)
        # What adds no information, as the origin does, would be kept for ever.
        idle = (ridge.log_det == state.ridge.log_det) & (ridge.dropped == state.ridge.dropped)
        due = idle | (ridge.log_det >= (1.0 - SLACK) * jnp.log1p(hold))
        fresh = self.draw(ridge, jax.random.fold_in(state.key, step))
        ridge = ridge._replace(log_det=jnp.where(due, 0.0, ridge.log_det))
        return ThompsonState(ridge, jnp.where(due, fresh, state.drawn), state.key, step)

    def estimate(self, state: ThompsonState) -> tuple[jax.Array, jax.Array]:
        """The mean [d] of the posterior, and 1.96 of its standard deviations."""
        scale = jnp.asarray(self.sigma).astype(state.drawn.dtype) * _QUANTILE
        return state.ridge.theta, scale * deviations(state.ridge)
