"""Hyper-parameters on real data: gradients against implicit differentiation in float64, and what the learned ones are good for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsac import bilevel
from jaxsac.problems import bilevel as problems

WEIGHTS = bilevel.Problem(problems.feature_weights_upper, problems.feature_weights_lower, project_x=lambda x: jnp.clip(x, -10.0, 1.0))
CLEANING = bilevel.Problem(problems.cleaning_upper, problems.cleaning_lower)
INNER = optax.sgd(0.2, momentum=0.9, nesterov=True)


def newton_gradient(data, x):
    """The implicit gradient of the regularised logistic regression, by Newton's method in numpy."""
    X, t, V, s = (np.asarray(part, np.float64) for part in data)
    y = np.zeros(X.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(t * (X @ y)))
        gradient = -X.T @ (t * p) / len(t) + np.exp(x) * y
        hessian = (X.T * (p * (1 - p))) @ X / len(t) + np.diag(np.exp(x))
        y = y - np.linalg.solve(hessian, gradient)
    pull = -V.T @ (s / (1 + np.exp(s * (V @ y)))) / len(s)
    return -np.exp(x) * y * np.linalg.solve(hessian, pull)


def test_feature_weights_on_breast_cancer():
    data = problems.breast_cancer(jnp.float64)
    x = np.random.default_rng(0).normal(size=30) - 2
    exact = newton_gradient(data, x)
    solution = bilevel.hypergradient(WEIGHTS, jnp.asarray(x), jnp.zeros(30), data=data, tol=1e-9)
    np.testing.assert_allclose(solution.value, exact, atol=1e-6 * np.linalg.norm(exact))


@pytest.mark.slow
def test_feature_weights_reach_a_better_validation_loss():
    data = problems.breast_cancer(jnp.float32)
    x0, y0 = jnp.zeros(30, jnp.float32), jnp.zeros(30, jnp.float32)
    solution = bilevel.solve(WEIGHTS, x0, y0, data=data, outer=optax.adam(0.05), inner=INNER, max_steps=1000)
    y = bilevel.argmin(lambda x, y: problems.feature_weights_lower(x, y, data), y0).solution(solution.value.x).value
    assert problems.feature_weights_upper(x0, y, data) < 0.06  # from 0.297 at the start


@pytest.mark.slow
def test_cleaning_finds_the_corrupted_digits():
    data = problems.digits_cleaning(jnp.float32)
    x0, y0 = jnp.zeros(1000, jnp.float32), jnp.zeros((64, 10), jnp.float32)
    solution = bilevel.solve(CLEANING, x0, y0, data=data, outer=optax.adam(0.1), inner=INNER, max_steps=150)
    weights, wrong = np.asarray(solution.value.x), np.asarray(data.corrupted)
    assert 400 < wrong.sum() < 500
    assert np.mean(weights[~wrong][:, None] > weights[wrong][None, :]) > 0.95

    def accuracy(coef):
        return float(jnp.mean(jnp.argmax(data.test @ coef, axis=1).astype(jnp.int32) == data.test_targets))

    plain = bilevel.argmin(lambda x, y: problems.cleaning_lower(x, y, data), y0)(x0)
    assert accuracy(solution.value.y) > accuracy(plain) + 0.02


@pytest.mark.slow
def test_group_weights_on_diabetes_prune_groups():
    """Ten features, three powers each: the learned weights of a smoothed group lasso beat equal ones on held-out rows."""
    data = problems.diabetes(jnp.float64)
    problem = bilevel.Problem(problems.group_weights_upper, problems.group_weights_lower, project_x=lambda x: jnp.clip(x, -8.0, 0.0))
    x0, y0 = jnp.full((10,), -3.0), jnp.zeros(30)
    solution = bilevel.solve(
        problem, x0, y0, data=data, sigma=1e-3, outer=optax.adam(0.03), inner=optax.sgd(0.1, 0.9, True), max_steps=1500
    )
    fit = bilevel.argmin(lambda x, y: problems.group_weights_lower(x, y, data), y0, max_steps=5000)
    before, after = (float(problems.group_weights_upper(x, fit(x), data)) for x in (x0, solution.value.x))
    assert after < 0.99 * before
    check = bilevel.check_hypergradient(problem, x0, y0, data=data, tol=1e-8, max_steps=5000)
    assert check.error < 1e-5


def test_the_non_convex_toy_ends_on_the_line_of_lower_solutions():
    """lower = (x + y)² + x sin²(x + y): its minimisers are y = -x, and upper along them has a local minimum where the solver ends."""

    def upper(x, y):
        return jnp.cos(4 * y + 2) / (1 + jnp.exp(2 - 4 * x)) + 0.5 * jnp.log((4 * x - 2) ** 2 + 1)

    problem = bilevel.Problem(upper, lambda x, y: (x + y) ** 2 + x * jnp.sin(x + y) ** 2, project_x=lambda x: jnp.clip(x, 0.0, 3.0))
    solution = bilevel.solve(problem, 2.0, 0.0, sigma=1e-3, outer=optax.sgd(0.02), inner=optax.sgd(0.1), max_steps=5000).check()
    x, y = float(solution.value.x), float(solution.value.y)
    assert abs(x + y) < 1e-5
    nearby = np.linspace(max(x - 0.1, 0.0), min(x + 0.1, 3.0), 2001)
    along = np.asarray(jax.vmap(lambda x: upper(x, -x))(jnp.asarray(nearby)))
    assert abs(nearby[np.argmin(along)] - x) < 2e-3
