"""Thompson sampling on a sparse set."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsac import _checks
from jaxsac._arguments import arguments, real, size
from jaxsac.bandits.protocol import INIT, product
from jaxsac.bandits.sets.action_set import ActionSet, a_set, check_dimension, largest
from jaxsac.bandits.stepwise.ridge import SLACK, Posterior, ThompsonState, ridge_start
from jaxsac.bandits.stepwise.sparse import OnSet

_SHRINKAGE = 1e-4  # of the flat prior's estimate after one reward: V is never singular
_UNKNOWN = 0.01  # share of the flat prior in what is known of a coordinate, ridge_i (V⁻¹)_ii


class Thompson(OnSet, Posterior):
    """Built by `thompson`."""

    prior_scale: jax.Array | float | None

    @arguments(**INIT)
    def init(self, key: jax.Array | None = None, *, dimension: int, dtype=None) -> ThompsonState:
        check_dimension(self.action_set, dimension)
        dtype = jnp.result_type(float) if dtype is None else dtype
        return self.start(key, ridge_start(dimension, self._ridge(dimension, dtype), dtype))

    def _ridge(self, dimension: int, dtype: Any) -> jax.Array:
        if self.prior_scale is not None:
            return (jnp.asarray(self.sigma) / self.prior_scale) ** 2
        reach = self.action_set.reach(dimension, dtype)
        return _SHRINKAGE * jnp.where(reach == 0, largest(reach), reach) ** 2

    def _unknown(self, state: ThompsonState) -> jax.Array:
        """The coordinates [d] of which the flat prior says more than the rewards do."""
        variance = state.ridge.variance
        share = self._ridge(variance.shape[0], variance.dtype) * variance
        return (self.prior_scale is None) & (share > _UNKNOWN)

    def act(
        self, state: ThompsonState, offer: Any = None, key: jax.Array | None = None
    ) -> jax.Array:
        """The greedy action [d] of the state's draw, or of a fresh one with `key`: for several
        actions before their rewards come. With the flat prior every axis that the rewards do not
        tell from the others is played first.
        """
        drawn = state.drawn if key is None else self.draw(state.ridge, key)
        action = self.choose(drawn, offer)[1]
        if self.prior_scale is not None:
            return action
        reach = self.offered(offer, drawn).reach(drawn.shape[0], drawn.dtype)
        unseen = self._unknown(state) & (reach != 0)
        order = jnp.arange(drawn.shape[0], 0, -1, dtype=drawn.dtype)
        if key is not None:
            order = jax.random.uniform(jax.random.fold_in(key, 1), order.shape, order.dtype, 1, 2)
        first = jnp.arange(drawn.shape[0]) == jnp.argmax(jnp.where(unseen, order, 0.0))
        return jnp.where(jnp.any(unseen), jnp.where(first, reach, 0.0), action)

    def length(self, state: ThompsonState, action: jax.Array) -> jax.Array:
        """For how many steps the state's draw is kept, if they all play `action`: det(V) grows by
        1 + n x'V⁻¹x.
        """
        spread = jnp.sum(product(action, state.ridge.root) ** 2)
        hold = jnp.asarray(self.hold).astype(spread.dtype)
        grown = jnp.exp(-state.ridge.log_det) * (1.0 + hold) - 1.0
        number = jnp.where(spread > 0, grown / jnp.where(spread > 0, spread, 1.0), 1.0)
        return jnp.clip(jnp.ceil(number * (1.0 - SLACK)), 1, 2**24).astype(jnp.int32)

    def estimate(self, state: ThompsonState) -> tuple[jax.Array, jax.Array]:
        """The mean [d] of the posterior, and 1.96 of its standard deviations; infinite for a
        coordinate of which the rewards say nothing, if the prior is flat.
        """
        theta, width = super().estimate(state)
        return theta, jnp.where(self._unknown(state), jnp.inf, width)

    def support(self, state: ThompsonState) -> jax.Array:
        return self.choose(state.ridge.theta, None)[0]


@arguments(
    action_set=a_set,
    sparsity=size(1, "d"),
    sigma=real(low=0, below=float("inf")),
    prior_scale=real(above=0, below=float("inf")),
    hold=real(low=0, below=float("inf")),
)
def thompson(
    action_set: ActionSet, *, sparsity: int, sigma: Any, prior_scale: Any = None, hold: Any = 0.0
) -> Thompson:
    """Thompson sampling on a sparse set: draw theta ~ N(theta_t, sigma² V⁻¹), V = Σ x x' + the
    prior's, and play the draw's greedy action. The algorithm to begin with: it needs no horizon, no
    bound on theta and no gap.

    * `sparsity`: s, static.
    * `sigma`: ≥ 0, the scale of the noise that it believes in, in units of the reward.
    * `prior_scale`: None for a flat prior, which is independent of the units of theta: it plays
      every axis that past rewards do not tell from the others once, and then knows a proper
      posterior. Or the standard deviation > 0 of the prior N(0, prior_scale² I); one that is much
      too small locks the algorithm in, and then sigma must be > 0.
    * `hold`: ≥ 0; a draw is kept until det(V) has grown by the factor 1 + hold: for ⌈hold n⌉ steps
      of an action that was played n times before, at least one, so that `simulate` needs of the
      order of d log(T) / hold draws for T steps. The regret grew by nothing in 2,000 steps; in
      50,000, with 0.02 by a tenth to a third on a ball and by a fifth on a box, with 0.3 by a
      quarter to two fifths and to three to four times: a draw that wrongly leaves a coordinate out
      teaches nothing of it while it is kept. Leave it at 0 on a stream.

    For draws from the true prior the Bayesian regret on any set whose best action is found is of
    order d sigma √T up to logarithms. For the flat prior the theorems are frequentist, of order
    d^(3/2) √T, and need draws that are wider than these by √d: for these the rate is measured, not
    proved. Where the greedy support need not be the best one (ellipsoids, polytopes) not even that:
    the regret against the best action may grow linearly.

    Its `offer` is the mask [d] of available coordinates, the `ActionSet` of the step, or None.

    Source: Thompson (1933); Abbasi-Yadkori, Pal and Szepesvari (2011) for rare switching; Russo and
    Van Roy (2014), Agrawal and Goyal (2013), Abeille and Lazaric (2017) for the theorems.
    """
    _checks.require(
        prior_scale is None or not _checks.is_concrete(sigma) or bool(sigma > 0),
        "sigma must be > 0 with a prior_scale: without noise the flat prior is enough.",
    )
    return Thompson(
        action_set=action_set, sparsity=sparsity, sigma=sigma, prior_scale=prior_scale, hold=hold
    )
