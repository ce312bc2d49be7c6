"""LinUCB and Thompson sampling on finite arms."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsac._arguments import arguments, real
from jaxsac.bandits.protocol import INIT, Policy, like_theta, product
from jaxsac.bandits.sets.action_set import known
from jaxsac.bandits.stepwise.ridge import (
    NUMBERS,
    Posterior,
    Ridge,
    Stepwise,
    ThompsonState,
    ridge_start,
)


class OnArms(Policy):
    """What the algorithms on finite arms share; `offer` is the arms [K, d]."""

    offers = real("K", "d")  # what `offer` must be, beside a function of a key

    def benchmark(self, theta, offer, benchmark: str, alpha) -> jax.Array:
        best = jnp.max(product(like_theta("offer", offer, theta, "K", "d"), theta))
        return alpha * best if benchmark == "alpha" else best

    def support(self, state) -> jax.Array:
        return jnp.zeros(0, jnp.int32)


class LinUCB(OnArms, Stepwise):
    """Built by `lin_ucb`."""

    def act(self, state: Ridge, offer: Any = None) -> jax.Array:
        arms = like_theta("offer", offer, state.theta, "K", "d")
        index = product(arms, state.theta) + self.width(state) * jnp.sqrt(
            jnp.sum(product(arms, state.root) ** 2, axis=1)
        )
        return known(arms[jnp.argmax(index)], index)


class LinTS(OnArms, Posterior):
    """Built by `lin_ts`."""

    ridge: jax.Array | float

    @arguments(**INIT)
    def init(self, key: jax.Array | None = None, *, dimension: int, dtype=None) -> ThompsonState:
        return self.start(key, ridge_start(dimension, self.ridge, dtype))

    def act(
        self, state: ThompsonState, offer: Any = None, key: jax.Array | None = None
    ) -> jax.Array:
        drawn = state.drawn if key is None else self.draw(state.ridge, key)
        arms = like_theta("offer", offer, drawn, "K", "d")
        index = product(arms, drawn)
        return known(arms[jnp.argmax(index)], index)


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
    return LinTS(sigma=sigma, hold=0.0, ridge=ridge)
