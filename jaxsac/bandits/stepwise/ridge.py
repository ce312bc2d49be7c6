"""The regression that is never factored, and draws from its posterior."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac._arguments import arguments, real
from jaxsac.bandits.estimate.radii import BELOW_ONE
from jaxsac.bandits.protocol import INIT, Policy, like_theta, product, raw

NUMBERS: dict[str, Any] = {
    "sigma": real(low=0, below=float("inf")),
    "delta": BELOW_ONE,
    "ridge": real(above=0, below=float("inf")),
    "bound": real(low=0, below=float("inf")),
}
_QUANTILE = 1.959964  # of the normal law at 97.5 %
_SLACK = 1e-4  # for the rounding of a determinant that has grown by just enough


class Ridge(NamedTuple):
    """Ridge regression that is never factored, with V = ridge I + Σ x x'."""

    root: jax.Array  # [d, d], root root' = V⁻¹
    variance: jax.Array  # [d], (V⁻¹)_ii up to rounding: the rows of root cost d² a step
    theta: jax.Array  # [d], the estimate
    log_det: jax.Array  # [], log det(V) − log det(ridge I)
    dropped: jax.Array  # int32 [], rewards that were no numbers


def ridge_start(dimension: int, ridge: jax.Array, dtype: Any) -> Ridge:
    """`ridge` is [], or [d] for one of each coordinate."""
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


def confidence_width(state: Ridge, sigma, delta, ridge, bound) -> jax.Array:
    """sigma √(2 log(1/delta) + log det(V) − log det(ridge I)) + √ridge bound: all times at once,
    with probability 1 − delta.

    Source: Abbasi-Yadkori, Pal and Szepesvari (2011), theorem 2, for ‖theta‖₂ ≤ bound.
    """
    return sigma * jnp.sqrt(2.0 * jnp.log(1.0 / delta) + state.log_det) + jnp.sqrt(ridge) * bound


class Stepwise(Policy):
    """What follows from ridge regression with a confidence width."""

    sigma: jax.Array | float
    delta: jax.Array | float
    ridge: jax.Array | float
    bound: jax.Array | float

    offers = real("K", "d")  # what `offer` must be, beside a function of a key

    @arguments(**INIT)
    def init(self, key: jax.Array | None = None, *, dimension: int, dtype=None) -> Any:
        return ridge_start(
            dimension, jnp.asarray(self.ridge), jnp.result_type(float) if dtype is None else dtype
        )

    def update(self, state: Any, action: jax.Array, reward: jax.Array, offer: Any = None) -> Any:
        return ridge_update(state, action, reward)

    def width(self, state: Ridge) -> jax.Array:
        cast = [
            jnp.asarray(value).astype(state.theta.dtype)
            for value in (self.sigma, self.delta, self.ridge, self.bound)
        ]
        return confidence_width(state, *cast)

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


def posterior_draw(ridge: Ridge, sigma: Any, key: jax.Array) -> jax.Array:
    """A draw [d] of theta ~ N(theta_t, sigma² V⁻¹)."""
    normal = jax.random.normal(key, ridge.theta.shape, ridge.theta.dtype)
    scale = jnp.asarray(sigma).astype(normal.dtype)
    return ridge.theta + scale * product(ridge.root, normal)


def posterior_start(key: jax.Array | None, ridge: Ridge, sigma: Any) -> ThompsonState:
    zero, numbers = jnp.int32(0), raw(key, "Thompson sampling")
    drawn = posterior_draw(ridge, sigma, jax.random.fold_in(numbers, zero))
    return ThompsonState(ridge, drawn, numbers, zero)


def posterior_interval(state: ThompsonState, sigma: Any) -> tuple[jax.Array, jax.Array]:
    scale = jnp.asarray(sigma).astype(state.drawn.dtype) * _QUANTILE
    return state.ridge.theta, scale * deviations(state.ridge)


def posterior_update(
    state: ThompsonState, sigma: Any, hold: Any, observed: tuple[Any, Any], count: Any = 1
) -> ThompsonState:
    """After `count` rewards of one action, observed = (action, their mean); a draw is kept until
    det(V) has grown by the factor 1 + hold since, for what is dropped too.
    """
    ridge = ridge_update(state.ridge, *observed, count)
    step, hold = state.step + count, jnp.asarray(hold).astype(ridge.theta.dtype)
    # What adds no information, as the origin does, would be kept for ever.
    idle = (ridge.log_det == state.ridge.log_det) & (ridge.dropped == state.ridge.dropped)
    due = idle | (ridge.log_det >= (1.0 - _SLACK) * jnp.log1p(hold))
    fresh = posterior_draw(ridge, sigma, jax.random.fold_in(state.key, step))
    ridge = ridge._replace(log_det=jnp.where(due, 0.0, ridge.log_det))
    return ThompsonState(ridge, jnp.where(due, fresh, state.drawn), state.key, step)


def kept(state: ThompsonState, hold: Any, action: jax.Array) -> jax.Array:
    """For how many more steps of `action` the draw is kept: det(V) grows by 1 + n x'V⁻¹x."""
    spread = jnp.sum(product(action, state.ridge.root) ** 2)
    grown = jnp.exp(-state.ridge.log_det) * (1.0 + jnp.asarray(hold).astype(spread.dtype)) - 1.0
    number = jnp.where(spread > 0, grown / jnp.where(spread > 0, spread, 1.0), 1.0)
    return jnp.clip(jnp.ceil(number * (1.0 - _SLACK)), 1, 2**24).astype(jnp.int32)
