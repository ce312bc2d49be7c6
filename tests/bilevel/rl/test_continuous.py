"""Followers with continuous states and actions, against the closed forms of a linear-quadratic
one.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import solve_discrete_are
from scipy.optimize import minimize

from jaxsac import Status, bilevel
from jaxsac.problems import bilevel_rl

BED = bilevel_rl.linear_quadratic(dtype=jnp.float64)
TAU, H, X = jnp.asarray(0.4), 30, jnp.asarray([0.3, -0.4])


def process(x):
    return bilevel.rl.Process(
        BED.initial, BED.move, lambda state, action: BED.reward(x, state, action), BED.discount
    )


LEADER = process(X)._replace(reward=BED.leader_reward)


def linear_policy(y, state):
    gain, log_deviation = y
    return gain @ state, log_deviation


def covariance_of(y):
    return jnp.diag(jnp.exp(2 * y[1]))


def upper(gradient):
    def sampled(x, policy, noise):
        value = bilevel.rl.simulated_return(noise, LEADER, policy, gradient=gradient)
        return 0.05 * jnp.sum(x**2) - value

    return sampled


def follower_value(x, y):
    cost = jnp.diag(jnp.exp(x)), BED.action_cost
    entropy = jnp.sum(y[1] + 0.5 * np.log(2 * np.pi * np.e)) / (1 - BED.discount)
    return BED.expected_return(*cost, y[0], covariance_of(y)) + TAU * entropy


def best(x):
    gain, covariance = BED.best(x, TAU)
    return gain, 0.5 * jnp.log(jnp.diagonal(covariance))


def objective(x):
    return 0.05 * jnp.sum(x**2) - BED.leader_return(*BED.best(x, TAU))


def draw(key, n, dtype=jnp.float64):
    first, second = jax.random.split(key)
    return bilevel.rl.Noise(
        jax.random.normal(first, (n, H, 2), dtype), jax.random.normal(second, (n, H, 1), dtype)
    )


def groups(seed, num):
    return jax.tree.map(
        lambda leaf: leaf.reshape(num, 4, *leaf.shape[1:]), draw(jax.random.key(seed), 4 * num)
    )


def test_the_best_policy_is_riccatis_and_no_gradient_leads_away_from_it():
    root = float(BED.discount) ** 0.5
    A, B = np.asarray(BED.moves) * root, np.asarray(BED.controls) * root
    P = solve_discrete_are(A, B, np.diag(np.exp(X)), np.asarray(BED.action_cost))
    curvature = np.asarray(BED.action_cost) + B.T @ P @ B
    gain, covariance = BED.best(X, TAU)
    np.testing.assert_allclose(gain, -np.linalg.solve(curvature, B.T @ P @ A), rtol=1e-9)
    np.testing.assert_allclose(covariance, 0.5 * TAU * np.linalg.inv(curvature), rtol=1e-9)
    for slope in jax.grad(follower_value, 1)(X, best(X)):
        np.testing.assert_allclose(slope, 0.0, atol=1e-10)


@pytest.mark.parametrize("gradient", ["pathwise", pytest.param("score", marks=pytest.mark.slow)])
def test_simulated_returns_have_the_exact_gradients(gradient):
    """Value and gradients in the reward and in the policy, of four paths at a time, within four
    standard errors.
    """
    y, num = (best(X)[0] + 0.1, best(X)[1] - 0.2), 500
    noise = groups(0, num)

    def one(moves, actions):
        def value(x, y):
            policy = lambda state: linear_policy(y, state)  # noqa: E731
            pair = bilevel.rl.Noise(moves, actions)
            return bilevel.rl.simulated_return(pair, process(x), policy, TAU, gradient=gradient)

        return jax.value_and_grad(value, (0, 1))(X, y)

    draws = jax.jit(jax.vmap(one))(*noise)
    right = jax.value_and_grad(follower_value, (0, 1))(X, y)
    for each, expected in zip(jax.tree.leaves(draws), jax.tree.leaves(right), strict=True):
        error = np.std(each, axis=0) / np.sqrt(num)
        np.testing.assert_array_less(np.abs(np.mean(each, axis=0) - expected), 4 * error + 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["pathwise", "score"])
def test_sampled_differences_have_the_exact_hypergradient(gradient):
    """At the exact z and d, within four standard errors of the closed form's gradient."""
    problem = bilevel.rl.simulated_policy_problem(
        process, upper(gradient), linear_policy, gradient=gradient
    )
    z, sigma, num = best(X), 1e-3, 1000
    pull = jax.grad(lambda y: -BED.leader_return(y[0], covariance_of(y)))(z)
    flat, unravel = jax.flatten_util.ravel_pytree(z)
    hessian = jax.hessian(lambda flat: -follower_value(X, unravel(flat)))(flat)
    d = unravel(-jnp.linalg.solve(hessian, jax.flatten_util.ravel_pytree(pull)[0]))
    cross = jax.grad(objective)(X) - 0.1 * X

    def one(moves, actions):
        batch = bilevel.rl.Noise(moves, actions), TAU
        step = jax.tree.map(lambda leaf: sigma * leaf, d)
        if problem.lower_difference is not None:
            change = problem.lower_difference(X, z, step, batch)[0][0]
        else:
            slope = jax.grad(problem.lower)
            change = slope(X, jax.tree.map(jnp.add, z, step), batch) - slope(X, z, batch)
        return change / sigma

    draws = np.asarray(jax.jit(jax.vmap(one))(*groups(1, num)))
    error = np.linalg.norm(draws.std(axis=0)) / np.sqrt(num)
    bias = np.linalg.norm(draws.mean(axis=0) - cross)
    assert bias < 4 * error + 10 * sigma * np.linalg.norm(cross), (bias, error)
    assert error < 0.3 * np.linalg.norm(cross)


class Network(eqx.Module):
    """A network beside a linear gain."""

    gain: jax.Array
    network: eqx.nn.MLP
    log_deviation: jax.Array

    def __call__(self, state):
        return self.gain @ state + self.network(state), self.log_deviation


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "network"])
def test_sampled_runs_end_within_a_thousandth_of_the_best(kind):
    """Both levels from 64 paths a step; the objective against its closed form."""
    zero = jnp.zeros((1, 2)), jnp.full(1, -1.0)
    start, policy = zero, linear_policy
    if kind == "network":
        network = eqx.nn.MLP(2, 1, 8, 1, jnp.tanh, key=jax.random.key(2), dtype=jnp.float64)
        start, policy = Network(zero[0], network, zero[1]), lambda y, state: y(state)
    problem = bilevel.rl.simulated_policy_problem(process, upper("pathwise"), policy)
    falling = optax.exponential_decay(0.05, 130, 0.3)
    method = bilevel.Method(inner=optax.sgd(0.01), outer=optax.adam(falling), inner_steps=2)

    def advance(state, key):
        return bilevel.step(problem, state, method, batch=(draw(key, 64), TAU))[0], None

    state = bilevel.init(problem, X, start, method)
    keys = jax.random.split(jax.random.key(3), 400)
    end = jax.jit(lambda state: jax.lax.scan(advance, state, keys)[0])(state)
    top = minimize(jax.jit(objective), X, jac=jax.jit(jax.grad(objective)), tol=1e-10)
    gaps = [float(objective(x) / top.fun - 1) for x in (X, end.x)]
    assert gaps[0] > 0.1 and abs(gaps[1]) < 1e-3, (gaps, end.x, top.x)


@pytest.mark.slow
def test_a_run_on_scores_whose_paths_run_away_says_so():
    """At a rate of 0.03 for 16 paths the spread of the gradients leaves the stable policies."""
    problem = bilevel.rl.simulated_policy_problem(
        process, upper("score"), linear_policy, gradient="score"
    )
    found = bilevel.solve(
        problem,
        X,
        (jnp.zeros((1, 2)), jnp.full(1, -1.0)),
        data=(draw(jax.random.key(0), 16), TAU),
        sample=lambda key, data: (draw(key, 16), data[1]),
        key=jax.random.key(3),
        inner=optax.sgd(0.03),
        outer=optax.adam(0.05),
        inner_steps=2,
        max_steps=200,
    )
    assert found.status == Status.NONFINITE and np.isnan(found.value.x).all()
