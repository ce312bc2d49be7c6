"""What every algorithm can do on a stream: `step` and `fit` follow from three methods."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac._arguments import anything, arguments, key, real, size
from jaxsac.solution import Hashable

INIT: dict[str, Any] = {
    "key": key(),
    "dimension": size(1),
    "dtype": anything("a floating dtype; None: the default of JAX"),
}


class Total(NamedTuple):
    """A running sum that rounding does not spoil, however long it is (Kahan 1965)."""

    value: jax.Array
    rest: jax.Array  # what rounding has added to it

    def plus(self, gain: jax.Array) -> "Total":
        gain = gain - self.rest
        value = self.value + gain
        return Total(value, (value - self.value) - gain)


class Policy(Hashable):
    """An algorithm on a stream; all methods are pure functions, for `jax.jit`, `lax.scan` and
    `simulate`.

    * `init(key, dimension=, dtype=)`: the state before anything is known.
    * `act(state, offer)`: the action [d] to play; the same one until a reward comes.
    * `update(state, action, reward, offer)`: the state after one more reward; a NaN is counted as
      dropped and teaches nothing. `offer` is what the step makes available.
    """

    def init(self, key: jax.Array | None = None, *, dimension: int, dtype=None) -> Any:
        raise TypeError(f"{type(self).__name__} must define init(key, dimension=, dtype=).")

    def act(self, state: Any, offer: Any = None) -> jax.Array:
        raise TypeError(f"{type(self).__name__} must define act(state, offer).")

    def update(self, state: Any, action: Any, reward: jax.Array, offer: Any = None) -> Any:
        raise TypeError(f"{type(self).__name__} must define update(state, action, reward, offer).")

    def estimate(self, state: Any) -> tuple[jax.Array, jax.Array]:
        """The estimate of theta [d], and the half width [d] of an interval for each coordinate;
        infinite where nothing is known.
        """
        raise TypeError(f"{type(self).__name__} has no estimate.")

    def step(self, state: Any, reward: Any, offer: Any = None) -> tuple[Any, jax.Array]:
        """The state after `reward` for the action that `act(state, offer)` names, and the next
        action [d]. With a NaN there is no reward, as at first, and the state stays as it is. The
        offer is the same for both: where it changes, use `act` and `update`.
        """
        after = self.update(state, self.act(state, offer), reward, offer)
        none = jnp.isnan(reward)
        state = jax.tree.map(lambda old, new: jnp.where(none, old, new), state, after)
        return state, self.act(state, offer)

    @arguments(actions=real("n", "d"), rewards=real("n"), key=key())
    def fit(self, actions: Any, rewards: Any, key: jax.Array | None = None) -> Any:
        """The state after a log of n actions and rewards, whoever chose them."""
        state = self.init(key, dimension=actions.shape[1], dtype=actions.dtype)
        return _loops.scan(
            lambda state, record: (self.update(state, *record), None), state, (actions, rewards)
        )[0]


def like_theta(name: str, value: Any, theta: jax.Array, *shape: Any) -> jax.Array:
    """An argument of `act` or `update` in the dtype and the dimension of the estimate."""
    return real(*shape).take(name, value, theta.dtype, d=theta.shape[0])


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b in full precision: what is updated for ever would keep errors of ten bits."""
    return jnp.matmul(a, b, precision="highest")
