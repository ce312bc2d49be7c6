"""Hyper-parameters on real data: gradients against implicit differentiation in float64, and what
the learned ones are good for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsac import bilevel
from jaxsac.problems import bilevel as problems

WEIGHTS = bilevel.Problem(
    problems.feature_weights_upper,
    problems.feature_weights_lower,
    project_x=lambda x: jnp.clip(x, -10.0, 1.0),
)
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


@pytest.mark.slow
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
    solution = bilevel.solve(
        WEIGHTS, x0, y0, data=data, outer=optax.adam(0.05), inner=INNER, max_steps=1000
    )
    y = (
        bilevel.argmin(lambda x, y: problems.feature_weights_lower(x, y, data), y0)
        .solution(solution.value.x)
        .value
    )
    assert problems.feature_weights_upper(x0, y, data) < 0.06  # from 0.297 at the start


@pytest.mark.slow
def test_cleaning_finds_the_corrupted_digits():
    data = problems.digits_cleaning(jnp.float32)
    x0, y0 = jnp.zeros(1000, jnp.float32), jnp.zeros((64, 10), jnp.float32)
    solution = bilevel.solve(
        CLEANING, x0, y0, data=data, outer=optax.adam(0.1), inner=INNER, max_steps=150
    )
    weights, wrong = np.asarray(solution.value.x), np.asarray(data.corrupted)
    assert 400 < wrong.sum() < 500
    assert np.mean(weights[~wrong][:, None] > weights[wrong][None, :]) > 0.95

    def accuracy(coef):
        return float(
            jnp.mean(jnp.argmax(data.test @ coef, axis=1).astype(jnp.int32) == data.test_targets)
        )

    plain = bilevel.argmin(lambda x, y: problems.cleaning_lower(x, y, data), y0)(x0)
    assert accuracy(solution.value.y) > accuracy(plain) + 0.02


GROUPS = bilevel.Problem(
    problems.group_weights_upper,
    problems.group_weights_lower,
    project_x=lambda x: jnp.clip(x, -8.0, 0.0),
    prox_y=problems.group_weights_prox,
    nonsmooth=problems.group_weights_penalty,
)


def group_lasso(data, x):
    """The minimiser by plain proximal gradient steps in numpy, and the gradient by the implicit
    function theorem on the active groups.
    """
    X, t, V, s = (np.asarray(part, np.float64) for part in data)
    rate, weights, y = len(t) / np.linalg.norm(X, 2) ** 2, np.exp(x), np.zeros(X.shape[1])
    for _ in range(20000):
        y = (y - rate * X.T @ (X @ y - t) / len(t)).reshape(len(x), -1)
        norms = np.linalg.norm(y, axis=1)
        y = (y * np.maximum(0, 1 - rate * weights / np.maximum(norms, 1e-300))[:, None]).ravel()
    groups = y.reshape(len(x), -1)
    norms = np.linalg.norm(groups, axis=1)
    active = np.repeat(norms > 0, groups.shape[1])
    hessian, pull = X.T @ X / len(t), V.T @ (V @ y - s) / len(s)
    mixed = np.zeros((len(x), len(y)))
    for g in np.flatnonzero(norms):
        at = slice(g * groups.shape[1], (g + 1) * groups.shape[1])
        unit = groups[g] / norms[g]
        hessian[at, at] += weights[g] / norms[g] * (np.eye(len(unit)) - np.outer(unit, unit))
        mixed[g, at] = weights[g] * unit
    return y, -mixed[:, active] @ np.linalg.solve(hessian[np.ix_(active, active)], pull[active])


@pytest.mark.slow
def test_group_weights_on_diabetes_prune_groups():
    """Ten features, three powers each: the weights of a group lasso, kinks and all. Gradient,
    zeros, and held-out rows.
    """
    data = problems.diabetes(jnp.float64)
    inner = optax.sgd(0.1, 0.9, nesterov=True)
    x0, y0 = jnp.full((10,), -2.5), jnp.zeros(30)
    exact, gradient = group_lasso(data, np.asarray(x0))
    found = bilevel.hypergradient(
        GROUPS, x0, y0, data=data, inner=inner, tol=1e-9, max_steps=20000
    ).check()
    zero = exact == 0
    assert 3 <= zero.sum() < 30 and np.abs(found.state[0])[zero].max() < 1e-12
    np.testing.assert_allclose(found.state[0], exact, atol=1e-8)
    np.testing.assert_allclose(found.value, gradient, atol=1e-6 * np.linalg.norm(gradient))

    run = bilevel.solve(
        GROUPS, x0, y0, data=data, sigma=1e-3, outer=optax.adam(0.03), inner=inner, max_steps=1500
    )
    before, after = (
        float(problems.group_weights_upper(x0, group_lasso(data, np.asarray(x))[0], data))
        for x in (x0, run.value.x)
    )
    assert after < 0.99 * before


def test_the_non_convex_toy_ends_on_the_line_of_lower_solutions():
    """lower = (x + y)² + x sin²(x + y): its minimisers are y = -x, and upper along them has a local
    minimum where the solver ends.
    """

    def upper(x, y):
        return jnp.cos(4 * y + 2) / (1 + jnp.exp(2 - 4 * x)) + 0.5 * jnp.log((4 * x - 2) ** 2 + 1)

    problem = bilevel.Problem(
        upper,
        lambda x, y: (x + y) ** 2 + x * jnp.sin(x + y) ** 2,
        project_x=lambda x: jnp.clip(x, 0.0, 3.0),
    )
    solution = bilevel.solve(
        problem, 2.0, 0.0, sigma=1e-3, outer=optax.sgd(0.02), inner=optax.sgd(0.1), max_steps=5000
    ).check()
    x, y = float(solution.value.x), float(solution.value.y)
    assert abs(x + y) < 1e-5
    nearby = np.linspace(max(x - 0.1, 0.0), min(x + 0.1, 3.0), 2001)
    along = np.asarray(jax.vmap(lambda x: upper(x, -x))(jnp.asarray(nearby)))
    assert abs(nearby[np.argmin(along)] - x) < 2e-3
