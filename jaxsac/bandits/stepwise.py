"""Algorithms that decide at every step: LinUCB and LinTS on finite arms, the optimistic index on
sparse sets, time-varying sets.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _checks
from jaxsac.bandits.sets.action_set import ActionSet
from jaxsac.bandits.sets.composed import Masked
from jaxsac.bandits.sets.supports import best_support
from jaxsac.bandits.estimate.radii import check_numbers


class Ridge(NamedTuple):
    """Ridge regression that is never factored: `root` [d, d] with root root' = V^-1, V = ridge I +
    sum x x', the estimate `theta` [d] and `log_det` = log det(V) - log det(ridge I).
    """

    root: jax.Array
    theta: jax.Array
    log_det: jax.Array


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b in full precision: the root is updated for ever, and errors of ten bits would stay in
    it.
    """
    return jnp.matmul(a, b, precision="highest")


def ridge_start(dimension: int, ridge: jax.Array, dtype) -> Ridge:
    ridge = jnp.asarray(ridge).astype(dtype)
    return Ridge(
        jnp.eye(dimension, dtype=dtype) / jnp.sqrt(ridge),
        jnp.zeros(dimension, dtype),
        jnp.zeros((), dtype),
    )


def ridge_update(state: Ridge, x: jax.Array, reward: jax.Array) -> Ridge:
    """One observation in O(d^2): (V + x x')^-1 = R (I - w w' / (1 + w'w)) R' with w = R'x, I - g w
    w' a root of the middle.
    """
    w = _product(x, state.root)
    size = jnp.sum(w**2)
    back = jnp.sum(state.root * w[None, :], axis=1)
    theta = state.theta + back * (
        (jnp.asarray(reward).astype(x.dtype) - jnp.sum(x * state.theta)) / (1.0 + size)
    )
    small = size < 1e-6
    shrink = jnp.where(small, 0.5, (1.0 - 1.0 / jnp.sqrt(1.0 + size)) / jnp.where(small, 1.0, size))
    return Ridge(
        state.root - shrink * back[:, None] * w[None, :], theta, state.log_det + jnp.log1p(size)
    )


def confidence_width(state: Ridge, sigma, delta, ridge, bound) -> jax.Array:
    """sigma sqrt(2 log(1/delta) + log det(V) / det(ridge I)) + sqrt(ridge) bound: all times at once
    with probability 1 - delta.

    Source: Abbasi-Yadkori, Pal and Szepesvari (2011), theorem 2, for ||theta||_2 <= bound.
    """
    return sigma * jnp.sqrt(2.0 * jnp.log(1.0 / delta) + state.log_det) + jnp.sqrt(ridge) * bound


class _Stepwise(eqx.Module):
    """`init(key, dimension=, dtype=)`, `act(state, offer)`, `update(state, action, reward, offer)`:
    pure functions for online use, replay and `simulate`. `offer` is what the step makes available.
    """

    sigma: jax.Array | float
    delta: jax.Array | float
    ridge: jax.Array | float
    bound: jax.Array | float

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


class LinUCB(_Stepwise):
    """Built by `lin_ucb`."""

    def act(self, state: Ridge, offer: jax.Array) -> jax.Array:
        index = _product(offer, state.theta) + self.width(state) * jnp.sqrt(
            jnp.sum(_product(offer, state.root) ** 2, axis=1)
        )
        return offer[jnp.argmax(index)]

    def benchmark(self, theta, offer, benchmark: str, alpha) -> jax.Array:
        return _best_arm(theta, offer, benchmark, alpha)

    def support(self, state) -> jax.Array:
        return jnp.zeros(0, jnp.int32)


class ThompsonState(NamedTuple):
    ridge: Ridge
    key: jax.Array
    step: jax.Array


class LinTS(_Stepwise):
    """Built by `lin_ts`."""

    def init(self, key: jax.Array | None = None, *, dimension: int, dtype=None) -> ThompsonState:
        _checks.require(key is not None, "lin_ts draws at random: pass a key to init.")
        return ThompsonState(super().init(dimension=dimension, dtype=dtype), key, jnp.int32(0))  # pyright: ignore[reportArgumentType]

    def act(self, state: ThompsonState, offer: jax.Array) -> jax.Array:
        fit = state.ridge
        normal = jax.random.normal(
            jax.random.fold_in(state.key, state.step), fit.theta.shape, fit.theta.dtype
        )
        drawn = fit.theta + jnp.asarray(self.sigma).astype(fit.theta.dtype) * jnp.sum(
            fit.root * normal[None, :], axis=1
        )
        return offer[jnp.argmax(_product(offer, drawn))]

    def update(
        self, state: ThompsonState, action: jax.Array, reward: jax.Array, offer: Any = None
    ) -> ThompsonState:
        return ThompsonState(ridge_update(state.ridge, action, reward), state.key, state.step + 1)

    def benchmark(self, theta, offer, benchmark: str, alpha) -> jax.Array:
        return _best_arm(theta, offer, benchmark, alpha)

    def support(self, state) -> jax.Array:
        return jnp.zeros(0, jnp.int32)


def _best_arm(theta, offer, benchmark, alpha):
    best = jnp.max(_product(offer, theta))
    return alpha * best if benchmark == "alpha" else best


class _OnSet(eqx.Module):
    """What the algorithms on a sparse set share; `offer` is the mask [d] of available coordinates,
    or None for all.
    """

    action_set: ActionSet
    sparsity: int = eqx.field(static=True)

    def choose(self, theta: jax.Array, offer: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """The greedy support [s] for theta and the best action [d] on it."""
        dimension = theta.shape[0]
        indices = self.action_set.greedy(theta, self.sparsity, offer).indices
        part = jnp.where(indices >= 0, theta[indices], 0.0).astype(theta.dtype)
        action = self.action_set.restrict(indices, dimension).argmax(part)
        return indices, jnp.zeros_like(theta).at[jnp.where(indices >= 0, indices, dimension)].set(
            action, mode="drop"
        )

    def benchmark(self, theta, offer, benchmark: str, alpha) -> jax.Array:
        if benchmark == "greedy":
            best = self.action_set.greedy(theta, self.sparsity, offer).value
        else:
            best = best_support(
                self.action_set if offer is None else Masked(self.action_set, offer),
                theta,
                self.sparsity,
            ).value
        return alpha * best if benchmark == "alpha" else best


class OptimisticGreedy(_OnSet, _Stepwise):
    """Built by `optimistic_greedy`."""

    num_rounds: int = eqx.field(static=True)

    def act(self, state: Ridge, offer: jax.Array | None = None) -> jax.Array:
        width, axes = self.width(state), jnp.eye(state.theta.shape[0], dtype=state.theta.dtype)

        def index(x):
            return jnp.sum(state.theta * x) + width * jnp.sqrt(
                jnp.sum(_product(x, state.root) ** 2)
            )

        def climb(x, _):
            back = _product(x, state.root)
            size = jnp.sqrt(jnp.sum(back**2))
            slope = state.theta + width * jnp.sum(state.root * back[None, :], axis=1) / jnp.where(
                size > 0, size, 1.0
            )
            return self.choose(slope, offer)[1], None

        ends = jax.vmap(lambda start: lax.scan(climb, start, length=self.num_rounds)[0])(
            jnp.concatenate([axes, -axes])
        )
        return ends[jnp.argmax(jax.vmap(index)(ends))]

    def support(self, state: Ridge) -> jax.Array:
        return self.choose(state.theta, None)[0]


class AdaptiveState(NamedTuple):
    """Sums and numbers of exploration rewards by coordinate [d], how many visits are owed to each,
    the cycle, and its steps left.
    """

    sums: jax.Array
    counts: jax.Array
    owed: jax.Array
    cycle: jax.Array
    left: jax.Array


class AdaptiveGreedy(_OnSet):
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


def _numbers(sigma, delta, ridge, bound) -> dict[str, Any]:
    dtype = jnp.result_type(float)
    check_numbers(dtype, sigma=sigma, delta=delta)
    _checks.real_scalar("ridge", ridge, dtype, 0, strict=True)
    _checks.real_scalar("bound", bound, dtype, 0)
    return {"sigma": sigma, "delta": delta, "ridge": ridge, "bound": bound}


def lin_ucb(*, sigma, delta=0.05, ridge=1.0, bound=1.0) -> LinUCB:
    """LinUCB with one shared parameter: play the arm of largest <a, theta_t> + width_t ||a||_{V^-1}
    among the offered arms [K, d].

    `bound` >= ||theta||_2, `ridge` > 0; the width is that of `confidence_width`. O(K d^2) a step,
    no factorisation. Source: Abbasi-Yadkori, Pal and Szepesvari (2011).
    """
    return LinUCB(**_numbers(sigma, delta, ridge, bound))


def lin_ts(*, sigma, ridge=1.0) -> LinTS:
    """Thompson sampling: draw theta ~ N(theta_t, sigma^2 V^-1) and play its best arm among the
    offered arms [K, d].

    The posterior of a Gaussian prior of variance sigma^2 / ridge. O(K d + d^2) a step. Source:
    Agrawal and Goyal (2013).
    """
    return LinTS(**_numbers(sigma, 0.05, ridge, 1.0))


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
    """LinUCB on a sparse set: play the x of largest <theta_t, x> + width_t ||x||_{V^-1} that an
    ascent finds.

    The index is convex, so from every axis `num_rounds` (static) steps x <- greedy action of its
    slope climb it; the best of the 2 d ends is played. A local search, so optimism is not
    guaranteed: a baseline. `bound` >= ||theta||_2. `offer`: the mask [d] of available coordinates,
    or None.
    """
    sparsity, num_rounds = (
        _checks.static_integer("sparsity", sparsity, 1),
        _checks.static_integer("num_rounds", num_rounds, 1),
    )
    numbers = _numbers(sigma, delta, ridge, bound)
    return OptimisticGreedy(
        action_set=action_set, sparsity=sparsity, num_rounds=num_rounds, **numbers
    )


def adaptive_greedy(
    action_set: ActionSet, *, sparsity: int, schedule_scale=1.0, schedule_power: float | None = None
) -> AdaptiveGreedy:
    """The phased schedule when coordinates come and go: every cycle owes each coordinate one
    exploration, paid when it is available, and has ceil(k c^q) steps of the greedy action on what
    is available.

    `offer` is the mask bool [d] of the step (None: all); q = 1 on strongly convex sets and 1/2
    elsewhere unless `schedule_power` (static) is given. The support cannot be frozen, so nothing is
    verified. Regret is against the best action on the offered coordinates. Source: arXiv
    2605.10151, Appendix E.
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
