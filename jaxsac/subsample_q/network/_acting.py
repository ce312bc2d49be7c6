"""A network, or a rule, that acts on n agents of an environment."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, either, function, key, record, size
from jaxsac.solution import register
from jaxsac.subsample_q.execute.simulation import Stage, rollout
from jaxsac.subsample_q.network._learning import Environment, QNetwork


@register
class EnvironmentRun(NamedTuple):
    """One trajectory of H steps on n agents of an environment."""

    rewards: jax.Array  # [H]
    global_states: Any  # leading axis [H]
    actions: jax.Array  # int32 [H]
    discounted_return: jax.Array  # []
    last: Any  # (global state, local states with leading axis [n]) after it


@arguments(
    key=key(),
    network=record(QNetwork),
    environment=record(Environment),
    global_state=anything("a global state of the environment"),
    local_states=anything("local states with a leading axis [n]"),
    k=size(1),
)
def act(
    key: jax.Array,
    network: Any,
    environment: Environment,
    global_state: Any,
    local_states: Any,
    k: int,
) -> jax.Array:
    """The best action of the network for k of the n agents, drawn afresh without replacement:
    int32 [].

    * `key`: consumed.
    * `network`: a `QNetwork` or its Solution.
    * `global_state`, `local_states`: of the environment, the latter with a leading axis [n].
    * `k`: static, at most n.

    Raises: ValueError for k > n.
    """
    leaves = jax.tree.leaves(local_states)
    n = leaves[0].shape[0] if leaves and jnp.ndim(leaves[0]) else 0
    _checks.require(k <= n, f"k={k} exceeds the {n} local_states: sample fewer.")
    drawn = jax.random.choice(key, n, (k,), replace=False)
    seen = jax.tree.map(lambda leaf: jnp.asarray(leaf)[drawn], local_states)
    features = environment.describe(global_state, seen)
    weights = jnp.full(k, 1 / k, features[1].dtype)
    return environment.best(global_state, network(*features, weights, k))


@arguments(
    key=key(),
    environment=record(Environment),
    policy=either(record(QNetwork), function("(key, s_g, local states) -> action")),
    horizon=size(1),
    initial=anything("(s_g, local states with a leading axis [n])"),
    k=size(1),
)
def simulate(
    key: jax.Array,
    environment: Environment,
    policy: Any | Callable[..., Any],
    horizon: int,
    initial: tuple[Any, Any],
    *,
    k: int | None = None,
) -> EnvironmentRun:
    """Execute a policy on the n agents of `initial`, with the reward of all of them.

    * `key`: consumed.
    * `policy`: a `QNetwork` or its Solution, which acts on `k` agents that are drawn afresh at each
      step; or a rule of your own, a function of (key, global state, local states) that gives an
      action, int32 [].
    * `horizon`: steps, static.
    * `initial`: (global state, local states with a leading axis [n]).
    * `k`: agents that the network sees, static.

    Returns: an `EnvironmentRun`; batch with `jax.vmap`, compile with `jax.jit`.

    Raises: ValueError for a network without `k`, and k > n.

    Source: arXiv 2403.00222, algorithm 2.
    """
    _checks.require(
        isinstance(initial, tuple) and len(initial) == 2,
        "initial must be a tuple of a global state and local states.",
    )
    learnt = isinstance(policy, QNetwork)
    _checks.require(k is not None or not learnt, "k: say how many agents the network samples.")
    start = jax.tree.map(jnp.asarray, initial)
    n = jax.tree.leaves(start[1])[0].shape[0]
    dtype = jax.eval_shape(environment.describe, start[0], start[1])[1].dtype
    discount, weights = jnp.asarray(environment.discount, dtype), jnp.full(n, 1 / n, dtype)

    def step(key, state, agents):
        act_key, move_key = jax.random.split(key)
        if k is not None and learnt:
            action = act(act_key, policy, environment, state, agents, k)
        else:
            action = policy(act_key, state, agents)
        reward = environment.rewards(state, agents, weights)[action]
        return Stage(action, reward, None, *environment.move(move_key, state, agents, action))

    run, last = rollout(key, step, start, True, discount, horizon)
    return EnvironmentRun(run.rewards, run.global_states, run.actions, run.discounted_return, last)
