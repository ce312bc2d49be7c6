"""Four rooms from sampled episodes, at the follower's best response, against the exact gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import bilevel
from jaxsac.problems import bilevel_rl

ROOMS = bilevel_rl.four_rooms(dtype=jnp.float64)
PROCESSES = bilevel.rl.MDP(ROOMS.transition, ROOMS.initial, ROOMS.discount)
TAU = jnp.asarray(0.003)


def best(x):
    return jax.vmap(
        lambda mdp, reward: bilevel.rl.soft_solve(mdp, reward, TAU, tol=1e-11).value.log_probs
    )(PROCESSES, ROOMS.follower_reward(x))


def leader(x, log_probs):
    rewards = ROOMS.leader_reward(x, 1.0)
    return -jnp.mean(jax.vmap(bilevel.rl.expected_return)(PROCESSES, rewards, log_probs))


def sampled_leader(x, log_probs, uniforms):
    rewards = ROOMS.leader_reward(x, 1.0)
    return -jnp.mean(jax.vmap(bilevel.rl.sampled_return)(uniforms, PROCESSES, rewards, log_probs))


@pytest.mark.slow
def test_sampled_episodes_have_the_exact_gradient():
    """Forty batches of fifty episodes for each goal: the mean within three standard errors, and no
    entry beyond what 105 normal numbers reach. The follower's answer is the leader's advantage over
    the temperature, in closed form.
    """
    x, sigma = jnp.asarray(np.random.default_rng(0).normal(size=105)), 1e-6
    problem = bilevel.rl.sampled_policy_problem(
        lambda x: (PROCESSES, ROOMS.follower_reward(x)), sampled_leader
    )
    assert problem.lower_difference is not None
    log_probs = jax.jit(best)(x)
    rewards = ROOMS.leader_reward(x, 1.0)
    v = jax.vmap(bilevel.rl.policy_value)(PROCESSES, rewards, log_probs)
    following = jnp.einsum("csat,ct->csa", PROCESSES.transition, v)
    d = (rewards + ROOMS.discount[:, None, None] * following - v[:, :, None]) / TAU

    def sampled(uniforms):
        batch = uniforms, TAU
        direct = jax.grad(problem.upper)(x, log_probs, batch)
        change = problem.lower_difference(x, log_probs, sigma * d, batch)[0][0]
        return direct + change / sigma

    uniforms = jax.random.uniform(jax.random.key(1), (40, 2, 50, 400))
    draws = np.asarray(jax.jit(lambda uniforms: jax.lax.map(sampled, uniforms))(uniforms))
    exact = np.asarray(jax.jit(jax.grad(lambda x: leader(x, best(x))))(x))
    error = draws.std(axis=0, ddof=1) / np.sqrt(40)
    bias = draws.mean(axis=0) - exact
    assert np.linalg.norm(bias) < 3 * np.linalg.norm(error) < np.linalg.norm(exact)
    seen = error > 1e-9
    assert np.abs(bias[seen] / error[seen]).max() < 4.5
