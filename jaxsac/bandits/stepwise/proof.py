"""Identification of the best support at little regret."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _checks, _loops
from jaxsac._arguments import arguments, real, size
from jaxsac.bandits.estimate.radii import BELOW_ONE, coordinate_radius
from jaxsac.bandits.protocol import INIT, Total, like_theta
from jaxsac.bandits.sets.action_set import (
    ActionSet,
    a_set,
    all_finite,
    check_dimension,
    no_choice,
    put,
    take,
)
from jaxsac.bandits.stepwise.sparse import OnSet


class ProofState(NamedTuple):
    """Where a run is: it explores while a coordinate waits, then plays `action`, `left` times."""

    sums: Total  # [d], of rewards over the coordinate that was played alone
    counts: jax.Array  # int32 [d], of them
    waiting: jax.Array  # bool [d], coordinates that this round has still to explore
    left: jax.Array  # int32 [], steps of the present action
    step: jax.Array  # int32 [], rewards so far
    action: jax.Array  # [d], that is exploited
    indices: jax.Array  # int32 [s], the support
    locked: jax.Array  # bool [], whether it is proved
    lock_time: jax.Array  # int32 [], steps until then; −1: not yet
    dropped: jax.Array  # int32 [], rewards that were no numbers, or of no axis where one was due


class Proof(OnSet):
    """Built by `prove_support`."""

    sigma: jax.Array | float
    delta: jax.Array | float
    tolerance: jax.Array | float
    schedule_scale: jax.Array | float

    @arguments(**INIT)
    def init(self, key: jax.Array | None = None, *, dimension: int, dtype=None) -> ProofState:
        check_dimension(self.action_set, dimension, self.sparsity)
        zeros = jnp.zeros(dimension, jnp.result_type(float) if dtype is None else dtype)
        none, counts = jnp.int32(0), jnp.zeros(dimension, jnp.int32)
        start = no_choice(self.sparsity, dimension)[0], jnp.asarray(False), none - 1, none
        useful = self.action_set.reach(dimension, zeros.dtype) != 0
        return ProofState(Total(zeros, zeros), counts, useful, none + 1, none, zeros, *start)

    def act(self, state: ProofState, offer: None = None) -> jax.Array:
        """The action [d] to play now."""
        coordinate, axes = jnp.argmax(state.waiting), self._axes(state)
        axis = jnp.where(jnp.arange(axes.shape[0]) == coordinate, axes, 0.0)
        return jnp.where(jnp.any(state.waiting), axis, state.action)

    def update(
        self, state: ProofState, action: jax.Array, reward: Any, offer: None = None, count: Any = 1
    ) -> ProofState:
        """The state after `count` rewards of one action, given by their mean: that of any axis at
        full length counts.
        """
        none = jnp.zeros_like(state.sums.value)
        action = like_theta("action", action, none, "d")
        mean, count = like_theta("reward", reward, none), jnp.asarray(count, jnp.int32)
        coordinate = jnp.argmax(jnp.abs(action))
        length, reach = action[coordinate], self._reach(state)[coordinate]
        alone = (jnp.sum(action != 0) == 1) & (jnp.abs(length) >= 0.999 * jnp.abs(reach))
        finite, exploring = all_finite((action, mean)), jnp.any(state.waiting)
        used = alone & finite
        number = count.astype(mean.dtype)
        gain = jnp.where(used, number * mean / jnp.where(alone, length, 1.0), 0.0)
        lost = ~finite | (exploring & ~used)
        state = state._replace(
            sums=state.sums.plus(none.at[coordinate].set(gain)),
            counts=state.counts.at[coordinate].add(jnp.where(used, count, 0)),
            waiting=state.waiting.at[coordinate].min(~used),
            left=jnp.where(exploring, 1, state.left - count).astype(jnp.int32),
            step=state.step + count,
            dropped=state.dropped + jnp.where(lost, count, 0),
        )
        decide = exploring & ~jnp.any(state.waiting)
        state = _loops.cond(decide, Proof._decide, lambda _, state: state, self, state)
        again = ~jnp.any(state.waiting) & (state.left <= 0)
        return state._replace(
            waiting=jnp.where(again, self._alive(state), state.waiting),
            left=jnp.where(again, 1, state.left).astype(jnp.int32),
        )

    def length(self, state: ProofState, action: jax.Array) -> jax.Array:
        """For how many steps the state's action is played."""
        return state.left

    def estimate(self, state: ProofState) -> tuple[jax.Array, jax.Array]:
        """The estimate [d] from the exploration, and the radius of each coordinate: all times and
        coordinates at once, with probability 1 − delta; infinite before a coordinate is played.
        """
        sums = state.sums.value
        number = jnp.maximum(state.counts, 1).astype(sums.dtype)
        sigma, delta = (jnp.asarray(x).astype(number.dtype) for x in (self.sigma, self.delta))
        reach = self._reach(state)
        entry = 1.0 / jnp.where(reach == 0, 1.0, reach) ** 2
        width = coordinate_radius(entry, number.shape[0], number, sigma, delta)
        theta = sums / number
        width = width + 4 * jnp.finfo(theta.dtype).eps * jnp.abs(theta)
        return theta, jnp.where(state.counts > 0, width, jnp.inf)

    def support(self, state: ProofState) -> jax.Array:
        return state.indices

    def _reach(self, state: ProofState) -> jax.Array:
        return self.action_set.reach(state.sums.value.shape[0], state.sums.value.dtype)

    def _axes(self, state: ProofState) -> jax.Array:
        """For each coordinate the multiple [d] of its unit vector that is played alone: the longest
        one, on the side that the estimate prefers where both sides are as long.
        """
        reach = self._reach(state)
        tight = 1 + 64 * float(jnp.finfo(reach.dtype).eps)
        back = jax.vmap(self.action_set.gauge)(-jnp.diag(reach)) <= tight
        return jnp.where(back & (reach * state.sums.value < 0), -reach, reach)

    def _bounds(self, state: ProofState) -> tuple[jax.Array, jax.Array]:
        """The least and largest values [d] of the scores within the radius."""
        theta, width = self.estimate(state)
        width = jnp.where(self._reach(state) == 0, 0.0, width)  # nobody can play it
        ends = self.action_set.scores(theta - width), self.action_set.scores(theta + width)
        low = jnp.where(jnp.abs(theta) <= width, 0.0, jnp.minimum(*ends))
        return low, jnp.maximum(*ends)

    def _alive(self, state: ProofState) -> jax.Array:
        """What may be among the s best [d]; once they are proved, these."""
        low, high = self._bounds(state)
        least = jnp.sort(low)[-self.sparsity]
        alive = jnp.where(state.locked, self._chosen(state), high >= least)
        return alive & (self._reach(state) != 0)

    def _chosen(self, state: ProofState) -> jax.Array:
        """Whether a coordinate [d] is of the support."""
        return put(jnp.ones(self.sparsity, bool), state.indices, state.action.shape[0])

    def _decide(self, state: ProofState) -> ProofState:
        """At the end of a round: the support, whether it is proved, and how long to exploit it."""
        state = self._lock(state)
        theta, dtype = self.estimate(state)[0], state.action.dtype
        part = self.action_set.restrict(state.indices, theta.shape[0])
        known = take(theta, state.indices)
        state = state._replace(action=put(part.argmax(known), state.indices, theta.shape[0]))
        cost = self._cost(state)
        loss = self._curvature(state, part, known) + self._rivals(state)
        longest = state.step.astype(dtype)
        scale = jnp.asarray(self.schedule_scale).astype(dtype)
        steps = jnp.where(loss * longest > cost, cost / jnp.where(loss > 0, loss, 1.0), longest)
        return state._replace(left=jnp.ceil(jnp.maximum(steps * scale, 0.0)).astype(jnp.int32))

    def _lock(self, state: ProofState) -> ProofState:
        """The support, locked once each of its scores is provably at least every other one."""
        low, high = self._bounds(state)
        chosen = self.choose(self.estimate(state)[0], None)[0]
        state = state._replace(indices=jnp.where(state.locked, state.indices, chosen))
        inside = self._chosen(state)
        rival = jnp.max(jnp.where(inside, -jnp.inf, high), initial=-jnp.inf)
        tolerance = jnp.asarray(self.tolerance).astype(low.dtype)
        locked = state.locked | (jnp.min(jnp.where(inside, low, jnp.inf)) + tolerance >= rival)
        first = locked & (state.lock_time < 0)
        return state._replace(
            locked=locked, lock_time=jnp.where(first, state.step, state.lock_time)
        )

    def _cost(self, state: ProofState) -> jax.Array:
        """What the next round loses against the action."""
        theta = self.estimate(state)[0]
        lost = jnp.sum(theta * state.action) - theta * self._axes(state)
        return jnp.sum(jnp.where(self._alive(state), lost, 0.0))

    def _curvature(self, state: ProofState, part: ActionSet, known: jax.Array) -> jax.Array:
        """What a step of the action loses on its support: to second order ½ tr(∇²f Σ)."""
        number = jnp.maximum(take(state.counts, state.indices), 1).astype(known.dtype)
        reach = take(self._reach(state), state.indices)
        sigma = jnp.asarray(self.sigma).astype(known.dtype)
        variance = sigma**2 / (number * jnp.where(reach == 0, 1.0, reach) ** 2)
        bend = jnp.diag(jax.hessian(part.support)(known))
        return jnp.maximum(0.5 * jnp.sum(bend * variance), 0.0)

    def _rivals(self, state: ProofState) -> jax.Array:
        """By how much the supports that are not excluded might be better in a step."""
        theta, width = self.estimate(state)
        scores, inside = self.action_set.scores(theta), self._chosen(state)
        weakest = jnp.argmin(jnp.where(inside, scores, jnp.inf))
        slope = self.action_set.score_slope(theta)
        ahead = jnp.maximum(scores + slope * width / 2.0 - scores[weakest], 0.0)
        ahead = jnp.sum(jnp.where(self._alive(state) & ~inside, ahead, 0.0))
        return ahead * jnp.abs(state.action[weakest]) / slope


@arguments(
    action_set=a_set,
    sparsity=size(1, "d"),
    sigma=real(low=0, below=float("inf")),
    delta=BELOW_ONE,
    tolerance=real(low=0, below=float("inf")),
    schedule_scale=real(low=0, below=float("inf")),
)
def prove_support(
    action_set: ActionSet,
    *,
    sparsity: int,
    sigma: Any,
    delta: Any = 0.05,
    tolerance: Any = 0.0,
    schedule_scale: Any = 1.0,
) -> Proof:
    """Identify the best support with confidence, at a small part of the regret of `apsee`.

    Rounds play the unit vectors of all coordinates that may still be among the s best, on the side
    that the estimate prefers, and then the best action of the estimate for as long as its own loss
    stays below what a round costs, at most for as long as all before. The support is locked once
    each of its scores is provably at least every other one; from then on only it is explored. With
    probability 1 − delta the locked support is a best one:

        |theta_i − estimate_i| ≤ (sigma / |reach_i|) √(2 log(π² d n_i² / (3 delta)) / n_i)

    at all times, n_i the times that coordinate i was played alone.

    * `action_set`: a `ranked` one (Ball, LpBall, Box, `Masked` ones of these) whose scores are
      convex in each coordinate and 0 at 0.
    * `sparsity`: s, static.
    * `sigma`: ≥ 0, a bound on the sub-Gaussian scale of the noise.
    * `delta`: in (0, 1), the chance of a wrong lock.
    * `tolerance`: ≥ 0, in units of a score; lock when no other coordinate can be better by more.
      With 0, ties that noise hides are never decided; coordinates without gain need no ranking.
    * `schedule_scale`: ≥ 0, multiplies the steps of exploitation. The price of the small regret is
      a late lock; 0 explores alone and locks soonest.

    Run it with `simulate`, whose `Run` has the lock and its time, or on a stream; there is no
    `offer`.

    Raises: ValueError for other sets and numbers out of range.

    Source: the confidence set and the support of arXiv 2605.10151, Lemma 2, with the stopping rule
    of Kalyanakrishnan, Tewari, Auer and Stone (2012) and the elimination of Even-Dar, Mannor and
    Mansour (2006).
    """
    _checks.require(
        action_set.ranked,
        "prove_support needs an action_set on which the largest scores are the best support (Ball,"
        " LpBall, Box): use apsee_greedy.",
    )
    return Proof(
        action_set=action_set,
        sparsity=sparsity,
        sigma=sigma,
        delta=delta,
        tolerance=tolerance,
        schedule_scale=schedule_scale,
    )
