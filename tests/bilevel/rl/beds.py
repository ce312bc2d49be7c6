"""Bilevel RL problems with exact answers: rewards that a leader shapes, controlled dynamics,
preferences.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from jaxsac import bilevel
from jaxsac.problems import bilevel_rl

BED = bilevel_rl.random_reward_bed(dtype=jnp.float64)
MDP = bilevel.rl.MDP(BED.transition, BED.initial, BED.discount)
SHAPING = bilevel_rl.shaping_features(
    BED.transition, BED.discount, jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)))
)
FINE = 1e-13


def model(x):
    return MDP, BED.reward(x)


def leader(x, log_probs):
    return -bilevel.rl.expected_return(MDP, BED.leader_reward, log_probs) + 0.1 * jnp.sum(x**2)


def exact_objective(model, upper, x, temperature):
    mdp, reward = model(x)
    return upper(x, bilevel.rl.soft_solve(mdp, reward, temperature, tol=FINE).value.log_probs)


def relative_error(ours, exact):
    return float(np.linalg.norm(ours - exact) / np.linalg.norm(exact))


def nearest_optimum(objective, x):
    """The stationary point that exact gradients lead to from x."""
    value = jax.jit(jax.value_and_grad(objective))
    return minimize(
        lambda x: [np.asarray(part) for part in value(jnp.asarray(x))],
        np.asarray(x),
        jac=True,
        tol=1e-10,
    )


def shaped_leader(x, log_probs):
    return leader(x - 1.0, log_probs)


GAME = bilevel_rl.stackelberg(dtype=jnp.float64)


def controlled(x):
    return bilevel.rl.MDP(GAME.transition(x), GAME.initial, GAME.discount), GAME.follower_reward


def payoff(x, log_probs):
    return -bilevel.rl.expected_return(
        controlled(x)[0], GAME.leader_reward, log_probs
    ) + 0.05 * jnp.sum(x**2)


SMALL = bilevel_rl.random_reward_bed(2, 2, 3, discount=0.5, dtype=jnp.float64)
SMALL_MDP = bilevel.rl.MDP(SMALL.transition, SMALL.initial, SMALL.discount)
SEGMENTS = bilevel_rl.enumerate_segments(SMALL.transition, SMALL.initial, 2)


def small_model(x):
    return SMALL_MDP, SMALL.reward(x)


def preferences(x, log_probs):
    loss = bilevel_rl.preference_loss(
        SEGMENTS, SMALL.reward(x), SMALL.leader_reward, log_probs, SMALL.discount
    )
    return loss + 0.05 * jnp.sum(x**2)


BEDS = {
    "rewards": (model, leader, BED.x, 8),
    "shaping": (lambda x: (MDP, BED.base_reward + SHAPING @ x), shaped_leader, jnp.zeros(3), 8),
    "dynamics": (controlled, payoff, jnp.zeros(3), 8),
    "preferences": (small_model, preferences, SMALL.x, 2),
}
