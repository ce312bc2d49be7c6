"""LinUCB and Thompson sampling on finite arms, and the regression that is never factored."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, key, real, size
from jaxsac.bandits.estimate.radii import BELOW_ONE
from jaxsac.bandits.sets.action_set import known

NUMBERS: dict[str, Any] = {
    "sigma": real(low=0, below=float("inf")),
    "delta": BELOW_ONE,
    "ridge": real(above=0, below=float("inf")),
    "bound": real(low=0, below=float("inf")),
}
INIT: dict[str, Any] = {
    "key": key(),
    "dimension": size(1),
    "dtype": anything("a floating dtype; None: the default of JAX"),
}


class Ridge(NamedTuple):
    """Ridge regression that is never factored, with V = ridge I + Σ x x'."""

    root: jax.Array  # [d, d], root root' = V⁻¹
    theta: jax.Array  # [d], the estimate
    log_det: jax.Array  # [], log det(V) − log det(ridge I)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b in full precision: the root is updated for ever, and errors of ten bits would stay in
    it.
    """
    return jnp.matmul(a, b, precision="highest")


def like_theta(name: str, value: Any, theta: jax.Array, *shape: Any) -> jax.Array:
    """An argument of `act` or `update` in the dtype and the dimension of the estimate."""
    return real(*shape).take(name, value, theta.dtype, d=theta.shape[0])


def ridge_start(dimension: int, ridge: jax.Array, dtype) -> Ridge:
    ridge = jnp.asarray(ridge).astype(dtype)
    return Ridge(
        jnp.eye(dimension, dtype=dtype) / jnp.sqrt(ridge),
        jnp.zeros(dimension, dtype),
        jnp.zeros((), dtype),
    )


def ridge_update(state: Ridge, x: jax.Array, reward: jax.Array) -> Ridge:
    """One observation in O(d²): (V + x x')⁻¹ = R (I − w w' / (1 + w'w)) R' with w = R'x, and
    I − g w w' a root of the middle.
    """
    x = like_theta("action", x, state.theta, "d")
    reward = like_theta("reward", reward, state.theta)
    w = product(x, state.root)
    size = product(w, w)
    back = product(state.root, w)
    theta = state.theta + back * ((reward - product(x, state.theta)) / (1.0 + size))
    small = size < 1e-6  # where the difference below would cancel; its limit is 1/2
    shrink = jnp.where(small, 0.5, (1.0 - 1.0 / jnp.sqrt(1.0 + size)) / jnp.where(small, 1.0, size))
    return Ridge(
        state.root - shrink * back[:, None] * w[None, :], theta, state.log_det + jnp.log1p(size)
    )


def confidence_width(state: Ridge, sigma, delta, ridge, bound) -> jax.Array:
    """sigma √(2 log(1/delta) + log det(V) − log det(ridge I)) + √ridge bound: all times at once,
    with probability 1 − delta.

    Source: Abbasi-Yadkori, Pal and Szepesvari (2011), theorem 2, for ‖theta‖₂ ≤ bound.
    """
    return sigma * jnp.sqrt(2.0 * jnp.log(1.0 / delta) + state.log_det) + jnp.sqrt(ridge) * bound


class Stepwise(eqx.Module):
    """`init(key, dimension=, dtype=)`, `act(state, offer)`, `update(state, action, reward, offer)`:
    pure functions for online use, replay and `simulate`. `offer` is what the step makes available.
    """

    sigma: jax.Array | float
    delta: jax.Array | float
    ridge: jax.Array | float
    bound: jax.Array | float

    offers = real("K", "d")  # what `offer` must be, beside a function of a key

    __hash__ = object.__hash__  # its bound methods go through `jax.jit`, which hashes them

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


class LinUCB(Stepwise):
    """Built by `lin_ucb`."""

    def act(self, state: Ridge, offer: jax.Array) -> jax.Array:
        arms = like_theta("offer", offer, state.theta, "K", "d")
        index = product(arms, state.theta) + self.width(state) * jnp.sqrt(
            jnp.sum(product(arms, state.root) ** 2, axis=1)
        )
        return known(arms[jnp.argmax(index)], index)

    def benchmark(self, theta, offer, benchmark: str, alpha) -> jax.Array:
        return _best_arm(theta, offer, benchmark, alpha)

    def support(self, state) -> jax.Array:
        return jnp.zeros(0, jnp.int32)


class ThompsonState(NamedTuple):
    """The posterior, and where its draws are."""

    ridge: Ridge
    key: jax.Array
    step: jax.Array  # int32 []


class LinTS(Stepwise):
    """Built by `lin_ts`."""

    @arguments(**INIT)
    def init(self, key: jax.Array | None = None, *, dimension: int, dtype=None) -> ThompsonState:
        _checks.require(key is not None, "lin_ts draws at random: pass a key to init.")
        return ThompsonState(super().init(dimension=dimension, dtype=dtype), key, jnp.int32(0))  # pyright: ignore[reportArgumentType]

    def act(self, state: ThompsonState, offer: jax.Array) -> jax.Array:
        fit = state.ridge
        arms = like_theta("offer", offer, fit.theta, "K", "d")
        normal = jax.random.normal(
            jax.random.fold_in(state.key, state.step), fit.theta.shape, fit.theta.dtype
        )
        drawn = fit.theta + jnp.asarray(self.sigma).astype(fit.theta.dtype) * product(
            fit.root, normal
        )
        index = product(arms, drawn)
        return known(arms[jnp.argmax(index)], index)

    def update(
        self, state: ThompsonState, action: jax.Array, reward: jax.Array, offer: Any = None
    ) -> ThompsonState:
        return ThompsonState(ridge_update(state.ridge, action, reward), state.key, state.step + 1)

    def benchmark(self, theta, offer, benchmark: str, alpha) -> jax.Array:
        return _best_arm(theta, offer, benchmark, alpha)

    def support(self, state) -> jax.Array:
        return jnp.zeros(0, jnp.int32)


def _best_arm(theta, offer, benchmark, alpha):
    best = jnp.max(product(like_theta("offer", offer, theta, "K", "d"), theta))
    return alpha * best if benchmark == "alpha" else best


@arguments(**NUMBERS)
def lin_ucb(*, sigma, delta=0.05, ridge=1.0, bound=1.0) -> LinUCB:
    """LinUCB with one shared parameter: play the arm of largest ⟨a, theta_t⟩ + width_t ‖a‖_{V⁻¹}
    among the offered arms [K, d]. O(K d²) a step, no factorisation.

    * `sigma`: scale of the noise; `delta`: chance that the width fails, in (0, 1).
    * `ridge`: > 0; `bound`: ≥ ‖theta‖₂.

    Source: Abbasi-Yadkori, Pal and Szepesvari (2011).
    """
    return LinUCB(sigma=sigma, delta=delta, ridge=ridge, bound=bound)


@arguments(sigma=NUMBERS["sigma"], ridge=NUMBERS["ridge"])
def lin_ts(*, sigma, ridge=1.0) -> LinTS:
    """Thompson sampling: draw theta ~ N(theta_t, sigma² V⁻¹) and play its best arm among the
    offered arms [K, d]. The posterior of a Gaussian prior of variance sigma² / ridge; O(K d + d²) a
    step. The draw of a state is the same until a reward comes.

    Source: Agrawal and Goyal (2013).
    """
    return LinTS(sigma=sigma, delta=0.05, ridge=ridge, bound=1.0)
