"""Returns and their differences from paths that have been drawn, whatever the states are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops
from jaxsac.bilevel.problem import Problem, Tree


class Along(NamedTuple):
    """What n paths of H steps tell under some x and y, [..., n, H] each."""

    rewards: jax.Array
    taken: jax.Array  # log π of the actions
    scores: jax.Array  # discount^t, with the score of the dynamics up to t as its gradient


def discounts(discount: Any, horizon: int, dtype: Any) -> jax.Array:
    return jnp.asarray(discount, dtype) ** jnp.arange(horizon).astype(dtype)


def magic(log_probability: jax.Array) -> jax.Array:
    """1, with the gradient of the log-probability."""
    return jnp.exp(log_probability - lax.stop_gradient(log_probability))


def _others(gains: jax.Array) -> jax.Array:
    """The mean gain of the other paths at each time, a baseline: what does not depend on a path's
    own actions changes no mean of its scores, and lowers their spread.
    """
    gains = lax.stop_gradient(gains)
    every = jnp.sum(gains, axis=-2, keepdims=True)
    return (every - gains) / max(gains.shape[-2] - 1, 1)


def mean_return(along: Along, temperature: Any) -> jax.Array:
    """Mean return with entropy bonus; its gradient is the policy gradient."""
    rewards, taken, scores = along
    gains = rewards - jnp.asarray(temperature, rewards.dtype) * taken
    baseline = _others(gains)
    scored = scores * magic(jnp.cumsum(taken, axis=-1)) * (gains - baseline)
    return jnp.mean(jnp.sum(scored + lax.stop_gradient(scores) * baseline, axis=-1))


def sampled_problem(
    draw: Callable[[Tree, Tree, Any], Any],
    along: Callable[[Tree, Tree, Any], Along],
    upper: Callable[[Tree, Tree, Any], jax.Array],
    *,
    reweighted: bool,
) -> Problem:
    """The lower level −`mean_return` of paths `draw(x, y, noise)`, with `along(x, y, path)`, on
    batches (noise, temperature).
    """

    def lower(x, y, batch):
        noise, temperature = batch
        path = lax.stop_gradient(draw(x, y, noise))
        return -mean_return(along(x, y, path), temperature)

    def lower_difference(x, y, step, batch):
        noise, temperature = batch
        moved = jax.tree.map(
            lambda leaf, change: leaf + change if eqx.is_array(leaf) else leaf, y, step
        )
        path = lax.stop_gradient(draw(x, y, noise))
        base = lax.stop_gradient(along(x, y, path).taken)

        def parts(x, y):
            rewards, taken, scores = along(x, y, path)
            gains = rewards - temperature * taken
            return gains - _others(gains), taken, jnp.cumsum(taken - base, axis=-1), scores

        def objective(y):  # `lower` on the paths of the base policy, up to a constant
            gains, _, log_ratio, scores = parts(x, y)
            return -jnp.mean(jnp.sum(scores * gains * jnp.exp(log_ratio), axis=-1))

        def change(x):  # objective at `moved` less objective at y, without cancellation
            gains, taken, log_ratio, scores = parts(x, moved)
            return -jnp.mean(
                jnp.sum(
                    scores * (gains * jnp.expm1(log_ratio) - temperature * (taken - base)), axis=-1
                )
            )

        def by_weights():
            in_y = jax.tree.map(
                jnp.subtract, eqx.filter_grad(objective)(moved), eqx.filter_grad(objective)(y)
            )
            return jax.tree.leaves((eqx.filter_grad(change)(x), in_y))

        def together(pair):
            return lower(pair[0], pair[1], batch)

        def by_common_numbers():
            at_moved = eqx.filter_grad(together)((x, moved))
            return jax.tree.leaves(
                jax.tree.map(jnp.subtract, at_moved, eqx.filter_grad(together)((x, y)))
            )

        weights = jnp.exp(parts(x, moved)[2][..., -1])
        enough = jnp.sum(weights) ** 2 >= 0.5 * weights.size * jnp.sum(weights**2)
        leaves = _loops.cond(enough, by_weights, by_common_numbers)
        num_x = len(jax.tree.leaves(eqx.filter(x, eqx.is_inexact_array)))
        return leaves[:num_x], leaves[num_x:]

    def sampled_upper(x, y, batch):
        return upper(x, y, batch[0])

    return Problem(sampled_upper, lower, lower_difference=lower_difference if reweighted else None)
