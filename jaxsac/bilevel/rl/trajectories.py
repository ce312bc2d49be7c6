"""Bilevel RL from sampled trajectories."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _checks, _loops
from jaxsac._arguments import arguments, choice, function, real, record
from jaxsac.bilevel.problem import Problem, Tree
from jaxsac.bilevel.rl.estimators import Along, discounts, magic, mean_return, sampled_problem
from jaxsac.bilevel.rl.policies import LogPolicy, Model, restricted, softmax_policy
from jaxsac.bilevel.rl.tabular import MDP, checked
from jaxsac.solution import register

_ROUNDING = 1e-4  # what rows may miss of one without an end


@register
class Trajectories(NamedTuple):
    """n trajectories of H steps in a tabular process; −1 from where an episode has ended."""

    states: jax.Array  # int32 [n, H]
    actions: jax.Array  # int32 [n, H]


@arguments(uniforms=real("n", "2 H", low=0, high=1), mdp=record(MDP), log_probs=real("S", "A"))
def rollout(uniforms: jax.Array, mdp: MDP, log_probs: jax.Array) -> Trajectories:
    """n trajectories of H steps by inverse distribution functions; with the same uniforms similar
    policies go alike.

    * `uniforms`: [n, 2 H] in [0, 1); `mdp`: an `MDP`; `log_probs`: [S, A] of the policy.

    No trajectory begins (all is −1) where one of them holds a NaN.
    """
    _checks.require(
        uniforms.shape[1] % 2 == 0,
        f"uniforms must have two numbers a step, got {uniforms.shape[1]} in a row.",
    )
    horizon = uniforms.shape[1] // 2
    mdp = checked(mdp, log_probs, log_probs)
    policy = jnp.cumsum(jnp.exp(log_probs), axis=1)
    transition = jnp.cumsum(mdp.transition, axis=2)

    def draw(cumulative, uniform):
        # in units of the whole, which is 1 up to rounding: no draw falls off the end, or on a last
        # entry of chance zero
        whole = cumulative[:, -1]
        uniform = uniform * jnp.where(whole < 1 - _ROUNDING, 1.0, whole)
        return jnp.sum(uniform[:, None] >= cumulative[:, :-1], axis=1, dtype=jnp.int32)

    def move(state, pair):
        action_uniform, state_uniform = pair
        action = draw(policy[state], action_uniform)
        chances = transition[state, action]
        reached = chances[:, -1]
        ended = (state < 0) | ((reached < 1 - _ROUNDING) & (state_uniform >= reached))
        following = jnp.where(ended, -1, draw(chances, state_uniform))
        return following, (state, jnp.where(state < 0, -1, action))

    initial = jnp.broadcast_to(
        jnp.cumsum(mdp.initial)[None, :], (uniforms.shape[0], mdp.initial.shape[0])
    )
    unknown = jnp.isnan(sum(map(jnp.sum, (uniforms, policy, transition, mdp.initial))))
    first = jnp.where(unknown, -1, draw(initial, uniforms[:, 0]))
    # the state drawn after the last action is never used, and neither is the number wrapped round
    # for it
    pairs = (
        uniforms[:, 1 : 2 * horizon : 2].T,
        jnp.roll(uniforms, -1, axis=1)[:, 1 : 2 * horizon : 2].T,
    )
    _, (states, actions) = _loops.scan(move, first, pairs)
    return Trajectories(states.T, actions.T)


def _along(table: jax.Array, path: Trajectories) -> jax.Array:
    """table[state, action] [n, H]; 0 where the episode has ended, NaN where it never began."""
    ended = jnp.where(path.states[:, :1] >= 0, 0.0, jnp.nan).astype(table.dtype)
    return jnp.where(path.states >= 0, table[path.states, path.actions], ended)


def _log_dynamics(mdp: MDP, path: Trajectories) -> jax.Array:
    """Sum of log P over the transitions up to each step, [n, H]; only its gradient, the score, is
    of use.
    """
    states, actions = path
    before, action, after = states[:, :-1], actions[:, :-1], states[:, 1:]
    moves = mdp.transition[before, action, after]
    ends = 1 - jnp.sum(mdp.transition, axis=2)[before, action]
    moves = jnp.where(after >= 0, moves, jnp.where(before >= 0, ends, 1.0))
    chances = jnp.concatenate([mdp.initial[states[:, :1]], moves], axis=1)
    return jnp.cumsum(
        jnp.where(chances > 0, jnp.log(jnp.where(chances > 0, chances, 1.0)), 0.0), axis=1
    )


def _told(mdp: MDP, reward: jax.Array, log_probs: jax.Array, path: Trajectories) -> Along:
    rewards = _along(reward, path)
    scores = discounts(mdp.discount, rewards.shape[1], rewards.dtype)[None, :] * magic(
        _log_dynamics(mdp, path)
    )
    return Along(rewards, _along(log_probs, path), scores)


@arguments(
    uniforms=real("n", "2 H", low=0, high=1),
    mdp=record(MDP),
    reward=real("S", "A"),
    log_probs=real("S", "A"),
    temperature=real(low=0),
)
def sampled_return(
    uniforms: jax.Array, mdp: MDP, reward: jax.Array, log_probs: jax.Array, temperature: Any = 0.0
) -> jax.Array:
    """Mean discounted return of n sampled trajectories, with entropy bonus; its gradient is the
    policy gradient.

        mean_i Σ_{t<H} discount^t [reward(s, a) − temperature log π(a|s)] · 1_t

    where 1_t is 1, with the score of the path up to t as its gradient. Unbiased for the return
    truncated at H, value and gradient (of any order), in the reward, the policy and the dynamics.
    Truncation leaves out at most discount^H max|reward| / (1 − discount).

    * `uniforms`: [n, 2 H] in [0, 1), which draw the trajectories; the rest as in `policy_value`.

    Source: Foerster et al. 2018 (DiCE); Gaur et al., section 3.
    """
    mdp = checked(mdp, reward, log_probs)
    path = rollout(uniforms, lax.stop_gradient(mdp), lax.stop_gradient(log_probs))
    return mean_return(_told(mdp, reward, log_probs, path), temperature)


@arguments(
    model=function("x -> (MDP, reward [S, A])"),
    upper=function("(x, log π, uniforms) -> scalar"),
    log_policy=function("y -> log π [S, A]"),
    pairing=choice("reweighted", "common"),
)
def sampled_policy_problem(
    model: Model,
    upper: Callable[[Tree, jax.Array, jax.Array], jax.Array],
    *,
    log_policy: LogPolicy = softmax_policy,
    pairing: str = "reweighted",
) -> Problem:
    """`policy_problem` from trajectories: `batch = (uniforms [n, 2 H], temperature)` goes to
    `step`, and all copies share it.

    * `model`, `log_policy`: as in `policy_problem`; with C contexts, uniforms [C, n, 2 H].
    * `upper`: (x, log π, uniforms) -> a sampled scalar with the right gradient, such as
      −sampled_return(...).
    * `pairing`: of the copies' trajectories. "reweighted": one set, drawn by the unperturbed policy
      and reweighted for the perturbed one by exp(log ratio); the standard deviation of the
      difference over σ stays O(1) as σ falls. Where the effective sample size is below n / 2, the
      other pairing is used. "common": each policy draws its own with the same uniforms; deviation
      O(σ^−½). (Independent trajectories: O(1 / σ).)
    """

    def process(x):
        mdp, reward = model(x)
        reward = jnp.asarray(reward)
        check = checked if reward.ndim == 2 else jax.vmap(checked)
        return check(mdp, reward), reward

    def policy(x, y):
        return restricted(lax.stop_gradient(process(x)[0]), log_policy(y))

    def of_contexts(function, log_probs):
        return function if log_probs.ndim == 2 else jax.vmap(function)

    def draw(x, y, uniforms):
        mdp, log_probs = lax.stop_gradient((process(x)[0], policy(x, y)))
        return of_contexts(rollout, log_probs)(uniforms, mdp, log_probs)

    def told(x, y, path):
        log_probs = policy(x, y)
        return of_contexts(_told, log_probs)(*process(x), log_probs, path)

    return sampled_problem(
        draw,
        told,
        lambda x, y, uniforms: upper(x, policy(x, y), uniforms),
        reweighted=pairing == "reweighted",
    )
