"""Step-wise algorithms on sparse sets: the optimistic index, and the phased schedule where
coordinates come and go.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac._arguments import arguments, real, size
from jaxsac.bandits.phased.rule import scheduled
from jaxsac.bandits.phased.schedule import same
from jaxsac.bandits.protocol import INIT, Policy, Total, like_theta, product
from jaxsac.bandits.sets.action_set import ActionSet, a_set, check_dimension, known, put, take
from jaxsac.bandits.sets.composed import A_MASK, Masked
from jaxsac.bandits.sets.supports import benchmark_of
from jaxsac.bandits.stepwise.ridge import NUMBERS, Ridge, Stepwise


class OnSet(Policy):
    """What the algorithms on a sparse set share; `offer` is the mask [d] of available coordinates,
    the `ActionSet` of the step, or None for the algorithm's own.
    """

    action_set: ActionSet
    sparsity: int = eqx.field(static=True)

    offers = A_MASK

    def offered(self, offer: Any, theta: jax.Array) -> ActionSet:
        """The set that is played from."""
        offer = self.action_set if offer is None else offer
        if not isinstance(offer, ActionSet):
            mask = A_MASK.take("offer", offer, theta.dtype, d=theta.shape[0])
            offer = Masked(self.action_set, mask)
        check_dimension(offer, theta.shape[0])
        return offer

    def choose(self, theta: jax.Array, offer: Any) -> tuple[jax.Array, jax.Array]:
        """The greedy support [s] for theta and the best action [d] on it."""
        action_set = self.offered(offer, theta)
        indices = action_set.greedy(theta, self.sparsity).indices
        part = action_set.restrict(indices, theta.shape[0])
        action = put(part.argmax(take(theta, indices)), indices, theta.shape[0])
        return indices, known(action, theta)

    def benchmark(self, theta, offer, benchmark: str, alpha) -> jax.Array:
        """The reward of a step that regret is measured against."""
        action_set = self.offered(offer, theta)
        return benchmark_of(action_set, theta, self.sparsity, benchmark, alpha).value


class OptimisticGreedy(OnSet, Stepwise):
    """Built by `optimistic_greedy`."""

    num_rounds: int = eqx.field(static=True)

    def act(self, state: Ridge, offer: Any = None) -> jax.Array:
        width, axes = self.width(state), jnp.eye(state.theta.shape[0], dtype=state.theta.dtype)

        def index(x):
            return product(state.theta, x) + width * jnp.sqrt(jnp.sum(product(x, state.root) ** 2))

        def climb(_, x):
            back = product(x, state.root)
            size = jnp.sqrt(jnp.sum(back**2))
            slope = state.theta + width * product(state.root, back) / jnp.where(size > 0, size, 1.0)
            return self.choose(slope, offer)[1]

        ends = jax.vmap(lambda start: _loops.fori_loop(0, self.num_rounds, climb, start))(
            jnp.concatenate([axes, -axes])
        )
        return ends[jnp.argmax(jax.vmap(index)(ends))]

    def support(self, state: Ridge) -> jax.Array:
        return self.choose(state.theta, None)[0]


class AdaptiveState(NamedTuple):
    """Where an online run is."""

    sums: Total  # [d], of the rewards of the exploration times the lengths of its axes
    squares: Total  # [d], of these lengths
    owed: jax.Array  # int32 [d], visits that each coordinate waits for
    cycle: jax.Array  # int32 [], from 1
    left: jax.Array  # int32 [], steps of the exploitation
    dropped: jax.Array  # int32 [], rewards that were no numbers, or of no axis where one was due


class AdaptiveGreedy(OnSet):
    """Built by `adaptive_greedy`."""

    schedule_scale: jax.Array | float
    schedule_power: float = eqx.field(static=True)

    @arguments(**INIT)
    def init(self, key: jax.Array | None = None, *, dimension: int, dtype=None) -> AdaptiveState:
        check_dimension(self.action_set, dimension)
        dtype = jnp.result_type(float) if dtype is None else dtype
        zeros, none = jnp.zeros(dimension, dtype), jnp.zeros(dimension, jnp.int32)
        sums, first = Total(zeros, zeros), jnp.int32(1)
        return AdaptiveState(sums, sums, none + 1, first, scheduled(self, first), jnp.int32(0))

    def _estimate(self, state):
        squares = state.squares.value
        return state.sums.value / jnp.where(squares > 0, squares, 1.0)

    def _due(self, state, offer):
        """How long the axes [d] are now, the coordinate to explore and whether there is one: the
        available one that waits for most visits, then the lowest.
        """
        sums = state.sums.value
        reach = self.offered(offer, sums).reach(sums.shape[0], sums.dtype)
        owed = jnp.where(reach == 0, 0, state.owed)
        return reach, jnp.argmax(owed), jnp.any(owed > 0)

    def act(self, state: AdaptiveState, offer: Any = None) -> jax.Array:
        reach, coordinate, explore = self._due(state, offer)
        named = jnp.zeros_like(reach).at[coordinate].set(reach[coordinate])
        return jnp.where(explore, named, self.choose(self._estimate(state), offer)[1])

    def update(
        self, state: AdaptiveState, action: jax.Array, reward: jax.Array, offer: Any = None
    ) -> AdaptiveState:
        """The state after `reward` for `action` [d], None for the one that `act` named for the same
        offer. While something is due, the reward of any axis at full length counts, and others are
        dropped; the rewards of the exploitation teach nothing.
        """
        none = jnp.zeros_like(state.sums.value)
        reach, coordinate, explore = self._due(state, offer)
        reward = like_theta("reward", reward, none)
        known = finite = jnp.isfinite(reward)
        if action is not None:
            action = like_theta("action", action, none, "d")
            coordinate = jnp.argmax(jnp.abs(action))
            known &= same(action, none.at[coordinate].set(reach[coordinate]))
        length = reach[coordinate]
        known &= jnp.isfinite(length) & (length != 0)  # what has no length was not explored
        seen = jnp.where(explore & known, 1, 0).astype(jnp.int32)
        left = state.left - jnp.where(explore, 0, 1).astype(jnp.int32)
        ended = left <= 0
        cycle = jnp.where(ended, state.cycle + 1, state.cycle)
        return AdaptiveState(
            state.sums.plus(none.at[coordinate].set(jnp.where(seen > 0, length * reward, 0.0))),
            state.squares.plus(none.at[coordinate].set(jnp.where(seen > 0, length**2, 0.0))),
            state.owed.at[coordinate].add(-seen) + jnp.where(ended, 1, 0).astype(jnp.int32),
            cycle,
            jnp.where(ended, scheduled(self, cycle), left),
            state.dropped + jnp.where(~finite | (explore & ~known), 1, 0).astype(jnp.int32),
        )

    def estimate(self, state: AdaptiveState) -> tuple[jax.Array, jax.Array]:
        """The estimate [d] from the exploration; the half widths are infinite, since the algorithm
        does not know the noise.
        """
        estimate = self._estimate(state)
        return estimate, jnp.full_like(estimate, jnp.inf)

    def support(self, state: AdaptiveState) -> jax.Array:
        return self.choose(self._estimate(state), None)[0]


@arguments(action_set=a_set, sparsity=size(1, "d"), **NUMBERS, num_rounds=size(1))
def optimistic_greedy(
    action_set: ActionSet,
    *,
    sparsity: int,
    sigma,
    delta=0.05,
    ridge=1.0,
    bound=1.0,
    num_rounds: int = 10,
) -> OptimisticGreedy:
    """LinUCB on a sparse set: play the x of largest ⟨theta_t, x⟩ + width_t ‖x‖_{V⁻¹} that an ascent
    finds.

    The index is convex, so from every axis `num_rounds` steps x ← greedy action of its slope climb
    it; the best of the 2 d ends is played. A local search, so optimism is not guaranteed: a
    baseline.

    * `sparsity`, `num_rounds`: static.
    * `sigma`, `delta`, `ridge`, `bound`: as in `lin_ucb`.

    Its `offer` is the mask [d] of available coordinates, the `ActionSet` of the step, or None.
    """
    return OptimisticGreedy(
        action_set=action_set,
        sparsity=sparsity,
        num_rounds=num_rounds,
        sigma=sigma,
        delta=delta,
        ridge=ridge,
        bound=bound,
    )


@arguments(
    action_set=a_set,
    sparsity=size(1, "d"),
    schedule_scale=real(low=0, below=float("inf")),
    schedule_power=real(low=0, below=float("inf")),
)
def adaptive_greedy(
    action_set: ActionSet, *, sparsity: int, schedule_scale=1.0, schedule_power: float | None = None
) -> AdaptiveGreedy:
    """The phased schedule when coordinates come and go: every cycle owes each coordinate one
    exploration, paid when it is available, and has ⌈k c^q⌉ steps of the greedy action on what is
    available. The support cannot be frozen, so nothing is verified.

    * `schedule_scale`: k.
    * `schedule_power`: q, static; by default 1 on strongly convex sets and 1/2 elsewhere.

    Its `offer` is the mask [d] of the step, or its `ActionSet` with axes and limits of its own, or
    None; the estimate is Σ b_i r / Σ b_i² over the axes b_i e_i that were explored. Regret is
    against the best action that is offered.

    Source: arXiv 2605.10151, Appendix E.
    """
    if schedule_power is None:
        schedule_power = 1.0 if action_set.strongly_convex else 0.5
    return AdaptiveGreedy(
        action_set=action_set,
        sparsity=sparsity,
        schedule_scale=schedule_scale,
        schedule_power=float(schedule_power),
    )
