"""A small partially observed problem over many tools, with exact beliefs, and compressors that lose
a measured part of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsac._arguments import arguments, function, key, real, record, size


class ToolPOMDP(NamedTuple):
    """S hidden states, O observations, k tools that matter (of M in all; the others change nothing
    and are worth `idle`).
    """

    transition: jax.Array  # [k + 1, S, S] of each tool, the last that of the others
    observation: jax.Array  # [S, O]
    reward: jax.Array  # [k + 1, S]
    discount: jax.Array  # []


class Episode(NamedTuple):
    """An episode of H steps, with exact beliefs and those shown."""

    beliefs: jax.Array  # [H, S] exact
    seen: jax.Array  # [H, S] what the policy saw of them
    tools: jax.Array  # int32 [H]; k is one of the others
    rewards: jax.Array  # [H]


@arguments(
    num_states=size(2),
    accuracy=real(low=0, high=1),
    persistence=real(low=0, high=1),
    discount=real(low=0, below=1),
)
def repair_problem(
    num_states: int = 3, accuracy: float = 0.7, persistence: float = 0.9, discount: float = 0.9
) -> ToolPOMDP:
    """Machine faults: each of S faults has one tool that repairs it (reward 1) and lets a random
    fault follow; a wrong tool costs 0.5 and leaves the fault, which drifts with probability 1 −
    `persistence`; any other tool is worth 0. Observations name the fault with probability
    `accuracy`.
    """
    s = num_states
    eye = jnp.eye(s)
    drift = persistence * eye + (1 - persistence) / s
    # [tool, state, next]: the tool's own fault starts anew
    repair = jnp.where(eye[:, :, None] == 1, 1.0 / s, drift[None])
    transition = jnp.concatenate([repair, drift[None]])
    reward = jnp.concatenate([1.5 * eye - 0.5, jnp.zeros((1, s))])
    observation = accuracy * eye + (1 - accuracy) / (s - 1) * (1 - eye)
    return ToolPOMDP(transition, observation, reward, jnp.asarray(discount, eye.dtype))


@arguments(belief=real("S"), quality=real(low=0), direction=real("S"))
def compress(belief: jax.Array, quality: jax.Array, direction: jax.Array) -> jax.Array:
    """A belief moved towards the corner `direction` [S] so that its L1 error is at most `quality`
    ≥ 0 (less where the corner is nearer).
    """
    gap = direction - belief
    size = jnp.sum(jnp.abs(gap))
    return belief + gap * jnp.minimum(quality / jnp.where(size > 0, size, 1), 1.0)


@arguments(
    key=key(),
    problem=record(ToolPOMDP),
    act=function("(key, seen) -> tool"),
    error=real(low=0),
    horizon=size(),
)
def rollout(key: jax.Array, problem: ToolPOMDP, act, error: jax.Array, horizon: int) -> Episode:
    """One episode under `act(key, seen) -> tool` with beliefs filtered exactly and shown with an L1
    error of at most `error`.

    The wrong corner is drawn anew at each step. Unbatched; the key is consumed.
    """
    num_states = problem.observation.shape[0]
    start_key, loop_key = jax.random.split(key)
    state = jax.random.randint(start_key, (), 0, num_states)
    belief = jnp.full(num_states, 1.0 / num_states, problem.reward.dtype)

    def step(carry, key):
        state, belief = carry
        corner_key, act_key, next_key, see_key = jax.random.split(key, 4)
        corner = jax.nn.one_hot(
            jax.random.randint(corner_key, (), 0, num_states), num_states, dtype=belief.dtype
        )
        seen = compress(belief, error, corner)
        tool = act(act_key, seen)
        reward = problem.reward[tool, state]
        following = jax.random.categorical(next_key, jnp.log(problem.transition[tool, state]))
        observed = jax.random.categorical(see_key, jnp.log(problem.observation[following]))
        predicted = jnp.matmul(belief, problem.transition[tool], precision="highest")
        posterior = predicted * problem.observation[:, observed]
        return (following, posterior / jnp.sum(posterior)), Episode(belief, seen, tool, reward)

    return jax.lax.scan(step, (state, belief), jax.random.split(loop_key, horizon))[1]


@arguments(problem=record(ToolPOMDP), error=real(low=0))
def error_bound(problem: ToolPOMDP, error: jax.Array) -> jax.Array:
    """The paper's constant times the error, (L_r + γ R L_p / (1 − γ)) / (1 − γ) error,
    twice: for choosing and for valuing.

    r(b, a) = ⟨reward_a, b⟩ and b' are compared in L1: L_r = half the range of a tool's rewards, L_p
    = 1 (a Markov kernel does not expand), R the largest |reward|. Source: theorem 5.1 of arXiv
    2601.08271; the factor 2 covers policies that are greedy in the wrong belief.
    """
    spread = 0.5 * jnp.max(jnp.max(problem.reward, axis=1) - jnp.min(problem.reward, axis=1))
    largest, gamma = jnp.max(jnp.abs(problem.reward)), problem.discount
    return 2 * (spread + gamma * largest / (1 - gamma)) / (1 - gamma) * error
