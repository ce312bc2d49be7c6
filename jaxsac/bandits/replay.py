"""The value of an algorithm on a log of choices among finite offers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac._arguments import arguments, key, real, record
from jaxsac.bandits.phased.schedule import same
from jaxsac.bandits.protocol import Policy
from jaxsac.solution import register


@register
class Replay(NamedTuple):
    """What an algorithm would have earned, from n records of others' choices."""

    value: jax.Array  # [], the mean reward of the accepted records; NaN without any
    standard_error: jax.Array  # [], of the value
    accepted: jax.Array  # bool [n], records that stand for a step of the algorithm
    state: Any  # the algorithm's after the last of them


@arguments(
    key=key(),
    policy=record(Policy),
    offers=real("n", "K", "d"),
    actions=real("n", "d"),
    rewards=real("n"),
    propensities=real("n", above=0, high=1),
)
@jax.jit
def replay(
    key: jax.Array,
    policy: Policy,
    offers: jax.Array,
    actions: jax.Array,
    rewards: jax.Array,
    propensities: jax.Array,
) -> Replay:
    """Run an algorithm on a log: it is given a record's offer, and where it chooses the logged
    action, the record is accepted with probability min p / p and the algorithm learns from it.

        P(a record is accepted | the past, its offer) = min p

    for each choice of the algorithm, so that the accepted records are what it would have met had it
    chosen itself, for as many steps: unbiased for rewards and offers that do not depend on the
    past, except that min p is that of the log.

    * `key`: consumed.
    * `policy`: plays offered arms, as `lin_ucb` and `lin_ts` do.
    * `offers`: [n, K, d], the arms of each record.
    * `actions`: [n, d], the arm that was chosen; `rewards`: [n], a NaN is never accepted.
    * `propensities`: [n], in (0, 1], the probability with which it was chosen.

    Returns: a `Replay`. About n min p records are accepted.

    Source: Li, Chu, Langford and Wang (2011) for uniform propensities; Dudik, Erhan, Langford and
    Li (2012).
    """
    start_key, key = jax.random.split(key)
    state = policy.init(start_key, dimension=actions.shape[1], dtype=actions.dtype)
    level = jax.random.uniform(key, rewards.shape, rewards.dtype) * propensities
    likely = (level <= jnp.min(propensities)) & jnp.isfinite(rewards)

    def step(state: Any, record: Any) -> tuple[Any, jax.Array]:
        offer, action, reward, likely = record
        accepted = likely & same(action, policy.act(state, offer))
        after = policy.update(state, action, reward, offer)
        return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), after, state), accepted

    state, accepted = _loops.scan(step, state, (offers, actions, rewards, likely))
    number = jnp.sum(accepted).astype(rewards.dtype)
    value = jnp.sum(jnp.where(accepted, rewards, 0.0)) / number
    spread = jnp.sum(jnp.where(accepted, rewards - value, 0.0) ** 2) / (number - 1.0)
    return Replay(value, jnp.sqrt(spread / number), accepted, state)
