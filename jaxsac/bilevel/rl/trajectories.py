"""Bilevel RL from sampled trajectories."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _checks, _loops
from jaxsac._arguments import arguments, choice, function, real, record
from jaxsac.bilevel.problem import Problem, Tree
from jaxsac.bilevel.rl.policies import LogPolicy, Model, softmax_policy
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
        # the last entry is 1 up to rounding, and is left out so that no draw falls off the end
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


def _discounts(mdp: MDP, horizon: int, dtype: Any) -> jax.Array:
    return jnp.asarray(mdp.discount, dtype) ** jnp.arange(horizon).astype(dtype)


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


def _magic(log_probability: jax.Array) -> jax.Array:
    """1, with the gradient of the log-probability."""
    return jnp.exp(log_probability - lax.stop_gradient(log_probability))


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
    taken = _along(log_probs, path)
    gains = _along(reward, path) - jnp.asarray(temperature, reward.dtype) * taken
    weights = _magic(jnp.cumsum(taken, axis=1) + _log_dynamics(mdp, path))
    return jnp.mean(
        jnp.sum(_discounts(mdp, gains.shape[1], gains.dtype)[None, :] * gains * weights, axis=1)
    )


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

    * `model`, `log_policy`: as in `policy_problem`.
    * `upper`: (x, log π, uniforms) -> a sampled scalar with the right gradient, such as
      −sampled_return(...).
    * `pairing`: of the copies' trajectories. "reweighted": one set, drawn by the unperturbed policy
      and reweighted for the perturbed one by exp(log ratio); the standard deviation of the
      difference over σ stays O(1) as σ falls. Where the effective sample size is below n / 2, the
      other pairing is used. "common": each policy draws its own with the same uniforms; deviation
      O(σ^−½). (Independent trajectories: O(1 / σ).)
    """

    def lower(x, y, batch):
        uniforms, temperature = batch
        mdp, reward = model(x)
        return -sampled_return(uniforms, mdp, reward, log_policy(y), temperature)

    def sampled_upper(x, y, batch):
        return upper(x, log_policy(y), batch[0])

    def lower_difference(x, y, step, batch):
        uniforms, temperature = batch
        moved = jax.tree.map(
            lambda leaf, change: leaf + change if eqx.is_array(leaf) else leaf, y, step
        )
        base = lax.stop_gradient(log_policy(y))
        path = rollout(uniforms, lax.stop_gradient(model(x)[0]), base)
        base_taken = _along(base, path)

        def parts(x, y):
            mdp, reward = model(x)
            taken = _along(log_policy(y), path)
            scores = _discounts(mdp, taken.shape[1], taken.dtype)[None, :] * _magic(
                _log_dynamics(mdp, path)
            )
            return (
                _along(reward, path) - temperature * taken,
                taken,
                jnp.cumsum(taken - base_taken, axis=1),
                scores,
            )

        def objective(y):  # `lower` on the paths of the base policy
            gains, _, log_ratio, scores = parts(x, y)
            return -jnp.mean(jnp.sum(scores * gains * jnp.exp(log_ratio), axis=1))

        def change(x):  # objective at `moved` less objective at y, without cancellation
            gains, taken, log_ratio, scores = parts(x, moved)
            return -jnp.mean(
                jnp.sum(
                    scores * (gains * jnp.expm1(log_ratio) - temperature * (taken - base_taken)),
                    axis=1,
                )
            )

        def reweighted():
            in_y = jax.tree.map(
                jnp.subtract, eqx.filter_grad(objective)(moved), eqx.filter_grad(objective)(y)
            )
            return jax.tree.leaves((eqx.filter_grad(change)(x), in_y))

        def together(pair):
            return lower(pair[0], pair[1], batch)

        def common():
            at_moved = eqx.filter_grad(together)((x, moved))
            return jax.tree.leaves(
                jax.tree.map(jnp.subtract, at_moved, eqx.filter_grad(together)((x, y)))
            )

        weights = jnp.exp(parts(x, moved)[2][:, -1])
        enough = jnp.sum(weights) ** 2 >= 0.5 * weights.shape[0] * jnp.sum(weights**2)
        leaves = _loops.cond(enough, reweighted, common)
        num_x = len(jax.tree.leaves(eqx.filter(x, eqx.is_inexact_array)))
        return leaves[:num_x], leaves[num_x:]

    return Problem(
        sampled_upper, lower, lower_difference=lower_difference if pairing == "reweighted" else None
    )
