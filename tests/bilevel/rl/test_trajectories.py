"""Bilevel RL from samples: estimators against the exact ones within their standard errors, and runs
against exact optima.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bilevel.rl.beds import (
    BED,
    FINE,
    MDP,
    SMALL,
    SMALL_MDP,
    exact_objective,
    leader,
    model,
    nearest_optimum,
    preferences,
    small_model,
)
from scipy.optimize import minimize

from jaxsac import bilevel
from jaxsac.problems import bilevel_rl

H, N = 100, 1500


def paths(seed, shape=(N, 2 * H)):
    return jax.random.uniform(jax.random.key(seed), shape, jnp.float64)


@pytest.fixture(scope="module")
def tangent():
    """z, d and the exact cross term of the tabular bed."""
    problem = bilevel.rl.policy_problem(model, leader, penalty="value")
    best = bilevel.rl.soft_solve(MDP, BED.reward(BED.x), BED.temperature, tol=FINE).value.log_probs
    solution = bilevel.hypergradient(
        problem, BED.x, best, data=BED.temperature, sigma=1e-5, tol=1e-9
    )
    return *solution.state, solution.value - 0.2 * BED.x


def sampled_leader(x, log_probs, uniforms):
    return -bilevel.rl.sampled_return(uniforms, MDP, BED.leader_reward, log_probs) + 0.1 * jnp.sum(
        x**2
    )


@pytest.mark.slow
def test_one_reweighted_batch_beats_independent_trajectories_and_has_no_bias(tangent):
    z, d, exact = tangent
    sigma = 0.01
    problem = bilevel.rl.sampled_policy_problem(model, sampled_leader)

    @jax.jit
    def terms(z, d, first, second):
        def one(uniforms, others):
            y, gradient = z + sigma * d, jax.grad(problem.lower)
            batch, other = ((u[None], BED.temperature) for u in (uniforms, others))
            independent = gradient(BED.x, y, batch) - gradient(BED.x, z, other)
            reweighted = problem.lower_difference(BED.x, z, sigma * d, batch)[0][0]
            return jnp.stack([independent, reweighted]) / sigma

        return jax.vmap(one)(first, second)

    samples = np.asarray(terms(z, d, paths(1), paths(2)))
    spread = np.sqrt(samples.var(axis=0).sum(axis=1))
    assert spread[0] > 20 * spread[1], spread
    bias = np.linalg.norm(samples[:, 1].mean(axis=0) - exact)
    assert bias < 3 * spread[1] / np.sqrt(N), (bias, spread)


@pytest.mark.slow
def test_sampled_returns_have_the_exact_gradients():
    """Value, policy gradient, reward gradient and the score of the dynamics, each component within
    4 standard errors.
    """
    game = bilevel_rl.stackelberg(2, 3, 2, dtype=jnp.float64)
    game = game._replace(discount=jnp.asarray(0.5))
    temperature, horizon = 0.3, 40

    def arguments(x, logits):
        return (
            bilevel.rl.MDP(game.transition(x), game.initial, game.discount),
            game.follower_reward * (1 + x[0]),
            bilevel.rl.softmax_policy(logits),
        )

    def exact(x, logits):
        return bilevel.rl.expected_return(*arguments(x, logits), temperature)

    x, logits = jnp.asarray([0.3, -0.2]), jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
    one = lambda u: jax.value_and_grad(  # noqa: E731
        lambda *a: bilevel.rl.sampled_return(u[None], *arguments(*a), temperature), (0, 1)
    )(x, logits)
    samples = jax.jit(jax.vmap(one))(paths(3, (4000, 2 * horizon)))
    for sampled, expected in zip(
        jax.tree.leaves(samples),
        jax.tree.leaves(jax.value_and_grad(exact, (0, 1))(x, logits)),
        strict=True,
    ):
        error = np.std(sampled, axis=0) / np.sqrt(4000)
        np.testing.assert_array_less(np.abs(np.mean(sampled, axis=0) - expected), 4 * error + 1e-9)


@pytest.mark.slow
def test_a_sampled_run_finds_the_optimum_of_the_bandit():
    """600 outer steps from 256 pulls each, both levels sampled and reweighted, against the closed
    form.
    """
    bed = bilevel_rl.bandit_bed(3, dtype=jnp.float64)
    mdp = bilevel.rl.MDP(bed.transition, bed.initial, bed.discount)

    def upper(x, log_probs, uniforms):
        return -bilevel.rl.sampled_return(
            uniforms, mdp, bed.leader_reward, log_probs
        ) + 0.5 * jnp.sum(x**2)

    @jax.jit
    def objective(x):
        return -jnp.sum(
            jax.nn.softmax(bed.reward(x) / bed.temperature, axis=1) * bed.leader_reward
        ) + 0.5 * jnp.sum(x**2)

    problem = bilevel.rl.sampled_policy_problem(lambda x: (mdp, bed.reward(x)), upper)
    method = bilevel.Method(inner=optax.sgd(0.5), outer=optax.sgd(0.02), inner_steps=2)
    start = jnp.asarray([1.0, -1.0, 1.0])

    def advance(state, key):
        batch = (jax.random.uniform(key, (256, 2), jnp.float64), bed.temperature)
        return bilevel.step(problem, state, method, sigma=0.02, batch=batch)[0], None

    state = bilevel.init(problem, start, jnp.zeros((1, 3)), method)
    state = jax.jit(
        lambda s: jax.lax.scan(advance, s, jax.random.split(jax.random.key(0), 600))[0]
    )(state)
    best = minimize(objective, np.asarray(start), jac=jax.jit(jax.grad(objective)))
    gaps = [float(objective(x) - best.fun) for x in (start, state.x)]
    assert gaps[0] > 0.5 and gaps[1] < 2e-3, gaps


def sampled_preferences(x, log_probs, uniforms):
    """`preferences` from pairs of rows: the first four numbers of a row draw a segment of two
    steps, the last one the label.
    """
    path = bilevel.rl.rollout(uniforms[:, :4], SMALL_MDP, jax.lax.stop_gradient(log_probs))
    states, actions = (part.reshape(-1, 2, 2) for part in path)
    labels = uniforms[::2, -1]
    loss = bilevel_rl.sampled_preference_loss(
        states, actions, labels, SMALL.reward(x), SMALL.leader_reward, log_probs, SMALL.discount
    )
    return loss + 0.05 * jnp.sum(x**2)


@pytest.mark.slow
def test_sampled_preferences_have_the_exact_loss_and_gradients():
    """Value, gradient in the reward's parameters and policy gradient, each component within 4
    standard errors of the exact sums.
    """
    logits = jnp.asarray([[0.5, -0.5], [0.0, 1.0]])

    def both(loss):
        return jax.value_and_grad(
            lambda x, logits: loss(x, bilevel.rl.softmax_policy(logits)), (0, 1)
        )

    sample = jax.jit(
        jax.vmap(lambda u: both(lambda x, lp: sampled_preferences(x, lp, u))(SMALL.x, logits))
    )
    samples = sample(paths(5, (4000, 2, 6)))
    for sampled, expected in zip(
        jax.tree.leaves(samples), jax.tree.leaves(both(preferences)(SMALL.x, logits)), strict=True
    ):
        error = np.std(sampled, axis=0) / np.sqrt(4000)
        np.testing.assert_array_less(np.abs(np.mean(sampled, axis=0) - expected), 4 * error + 1e-9)


@pytest.mark.slow
def test_a_reward_learned_from_sampled_preferences_is_the_exact_one():
    """Segments, labels and the follower's trajectories are all sampled, 128 rows a step; the
    objective within 1e-3 of the exact optimum.
    """
    problem = bilevel.rl.sampled_policy_problem(small_model, sampled_preferences)
    method = bilevel.Method(
        inner=optax.sgd(0.3), outer=optax.sgd(optax.exponential_decay(0.3, 300, 0.5)), inner_steps=2
    )
    start = jnp.asarray([1.5, -1.5, 1.0])

    def advance(state, key):
        batch = (jax.random.uniform(key, (128, 28), jnp.float64), jnp.asarray(0.5))
        return bilevel.step(problem, state, method, sigma=0.02, batch=batch)[0], None

    state = bilevel.init(problem, start, jnp.zeros((2, 2)), method)
    state = jax.jit(
        lambda s: jax.lax.scan(advance, s, jax.random.split(jax.random.key(0), 1500))[0]
    )(state)
    objective = jax.jit(lambda x: exact_objective(small_model, preferences, x, 0.5))
    best = nearest_optimum(objective, state.x)
    gaps = [float(objective(x) - best.fun) for x in (start, state.x)]
    assert gaps[0] > 0.1 and gaps[1] < 1e-3, gaps


@pytest.mark.slow
def test_a_sampled_run_finds_the_optimum_of_a_tabular_process():
    """Both levels from trajectories, 64 a step, reweighted; the rate of x falls. The value within
    1e-3 of the exact optimum.
    """
    bed = bilevel_rl.random_reward_bed(3, 2, 2, discount=0.5, dtype=jnp.float64)
    mdp = bilevel.rl.MDP(bed.transition, bed.initial, bed.discount)

    def upper(x, log_probs):
        return -bilevel.rl.expected_return(mdp, bed.leader_reward, log_probs) + 0.25 * jnp.sum(x**2)

    def sampled(x, log_probs, uniforms):
        return -bilevel.rl.sampled_return(
            uniforms, mdp, bed.leader_reward, log_probs
        ) + 0.25 * jnp.sum(x**2)

    def where(x):
        return mdp, bed.reward(x)

    problem = bilevel.rl.sampled_policy_problem(where, sampled)
    method = bilevel.Method(
        inner=optax.sgd(0.5), outer=optax.sgd(optax.exponential_decay(0.1, 500, 0.3)), inner_steps=2
    )
    start = jnp.asarray([1.5, -1.5])

    def advance(state, key):
        batch = (jax.random.uniform(key, (64, 28), jnp.float64), bed.temperature)
        return bilevel.step(problem, state, method, sigma=0.02, batch=batch)[0], None

    state = bilevel.init(problem, start, jnp.zeros((3, 2)), method)
    state = jax.jit(
        lambda s: jax.lax.scan(advance, s, jax.random.split(jax.random.key(0), 1500))[0]
    )(state)
    objective = jax.jit(lambda x: exact_objective(where, upper, x, bed.temperature))
    best = nearest_optimum(objective, state.x)
    gaps = [float(objective(x) - best.fun) for x in (start, state.x)]
    assert gaps[0] > 0.1 and gaps[1] < 1e-3, gaps
