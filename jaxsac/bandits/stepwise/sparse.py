"""Step-wise algorithms on sparse sets: the optimistic index, and the phased schedule where
coordinates come and go.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxsac import _checks, _loops
from jaxsac.bandits.sets.action_set import ActionSet, put, take
from jaxsac.bandits.sets.supports import benchmark_value
from jaxsac.bandits.stepwise.arms import Ridge, Stepwise, checked_numbers, product


class OnSet(eqx.Module):
    """What the algorithms on a sparse set share; `offer` is the mask [d] of available coordinates,
    or None for all.
    """

    action_set: ActionSet
    sparsity: int = eqx.field(static=True)

    __hash__ = object.__hash__  # its bound methods go through `jax.jit`, which hashes them

    def choose(self, theta: jax.Array, offer: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """The greedy support [s] for theta and the best action [d] on it."""
        indices = self.action_set.greedy(theta, self.sparsity, offer).indices
        part = self.action_set.restrict(indices, theta.shape[0])
        return indices, put(part.argmax(take(theta, indices)), indices, theta.shape[0])

    def benchmark(self, theta, offer, benchmark: str, alpha) -> jax.Array:
        """The reward of a step that regret is measured against."""
        return benchmark_value(self.action_set, theta, self.sparsity, benchmark, alpha, offer)


class OptimisticGreedy(OnSet, Stepwise):
    """Built by `optimistic_greedy`."""

    num_rounds: int = eqx.field(static=True)

    def act(self, state: Ridge, offer: jax.Array | None = None) -> jax.Array:
        width, axes = self.width(state), jnp.eye(state.theta.shape[0], dtype=state.theta.dtype)

        def index(x):
            return jnp.sum(state.theta * x) + width * jnp.sqrt(jnp.sum(product(x, state.root) ** 2))

        def climb(_, x):
            back = product(x, state.root)
            size = jnp.sqrt(jnp.sum(back**2))
            slope = state.theta + width * jnp.sum(state.root * back[None, :], axis=1) / jnp.where(
                size > 0, size, 1.0
            )
            return self.choose(slope, offer)[1]

        ends = jax.vmap(lambda start: _loops.fori_loop(0, self.num_rounds, climb, start))(
            jnp.concatenate([axes, -axes])
        )
        return ends[jnp.argmax(jax.vmap(index)(ends))]

    def support(self, state: Ridge) -> jax.Array:
        return self.choose(state.theta, None)[0]


class AdaptiveState(NamedTuple):
    """Where an online run is."""

    sums: jax.Array  # [d], of exploration rewards by coordinate
    counts: jax.Array  # int32 [d], of them
    owed: jax.Array  # int32 [d], visits that each coordinate waits for
    cycle: jax.Array  # int32 [], from 1
    left: jax.Array  # int32 [], steps of the exploitation


class AdaptiveGreedy(OnSet):
    """Built by `adaptive_greedy`."""

    schedule_scale: jax.Array | float
    power: float = eqx.field(static=True)

    def init(self, key: jax.Array | None = None, *, dimension: int, dtype=None) -> AdaptiveState:
        dtype = jnp.result_type(float) if dtype is None else dtype
        zeros, none = jnp.zeros(dimension, dtype), jnp.zeros(dimension, jnp.int32)
        return AdaptiveState(zeros, none, none + 1, jnp.int32(1), self._length(jnp.int32(1), dtype))

    def _length(self, cycle, dtype):
        return jnp.ceil(
            jnp.asarray(self.schedule_scale).astype(dtype)
            * cycle.astype(dtype) ** self.power
            * (1 - 1e-6)
        ).astype(jnp.int32)

    def _estimate(self, state):
        reach = self.action_set.reach(state.sums.shape[0], state.sums.dtype)
        weight = jnp.maximum(state.counts, 1).astype(reach.dtype) * jnp.where(
            reach == 0, 1.0, reach
        )
        return jnp.where(reach == 0, 0.0, state.sums / weight), reach

    def _due(self, state, offer):
        """The coordinate to explore now and whether there is one: the available one that waits for
        most visits, then the lowest.
        """
        owed = state.owed if offer is None else jnp.where(offer, state.owed, 0)
        return jnp.argmax(owed), jnp.any(owed > 0)

    def act(self, state: AdaptiveState, offer: jax.Array | None = None) -> jax.Array:
        estimate, reach = self._estimate(state)
        coordinate, explore = self._due(state, offer)
        return jnp.where(
            explore,
            jnp.zeros_like(reach).at[coordinate].set(reach[coordinate]),
            self.choose(estimate, offer)[1],
        )

    def update(
        self,
        state: AdaptiveState,
        action: jax.Array,
        reward: jax.Array,
        offer: jax.Array | None = None,
    ) -> AdaptiveState:
        coordinate, explore = self._due(state, offer)
        seen = jnp.where(explore, 1, 0).astype(jnp.int32)
        left = state.left - (1 - seen)
        ended = left <= 0
        cycle = jnp.where(ended, state.cycle + 1, state.cycle)
        return AdaptiveState(
            state.sums.at[coordinate].add(
                jnp.where(explore, jnp.asarray(reward).astype(state.sums.dtype), 0.0)
            ),
            state.counts.at[coordinate].add(seen),
            state.owed.at[coordinate].add(-seen) + jnp.where(ended, 1, 0).astype(jnp.int32),
            cycle,
            jnp.where(ended, self._length(cycle, state.sums.dtype), left),
        )

    def support(self, state: AdaptiveState) -> jax.Array:
        return self.choose(self._estimate(state)[0], None)[0]


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

    Its `offer` is the mask [d] of available coordinates, or None.
    """
    sparsity, num_rounds = (
        _checks.static_integer("sparsity", sparsity, 1),
        _checks.static_integer("num_rounds", num_rounds, 1),
    )
    numbers = checked_numbers(sigma, delta, ridge, bound)
    return OptimisticGreedy(
        action_set=action_set, sparsity=sparsity, num_rounds=num_rounds, **numbers
    )


def adaptive_greedy(
    action_set: ActionSet, *, sparsity: int, schedule_scale=1.0, schedule_power: float | None = None
) -> AdaptiveGreedy:
    """The phased schedule when coordinates come and go: every cycle owes each coordinate one
    exploration, paid when it is available, and has ⌈k c^q⌉ steps of the greedy action on what is
    available. The support cannot be frozen, so nothing is verified.

    * `schedule_scale`: k.
    * `schedule_power`: q, static; by default 1 on strongly convex sets and 1/2 elsewhere.

    Its `offer` is the mask bool [d] of the step (None: all); regret is against the best action on
    the offered coordinates.

    Source: arXiv 2605.10151, Appendix E.
    """
    power = (
        (1.0 if action_set.strongly_convex else 0.5)
        if schedule_power is None
        else float(schedule_power)
    )
    return AdaptiveGreedy(
        action_set=action_set,
        sparsity=_checks.static_integer("sparsity", sparsity, 1),
        schedule_scale=schedule_scale,
        power=power,
    )
