"""Derivatives of values, gauges and radii where inputs are zero, whole numbers, or tied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import bandits

MATRIX = np.array([[1.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 1.0]])
SMOOTH = {
    "ball": bandits.Ball(1.5),
    "ellipsoid": bandits.Ellipsoid(jnp.asarray(MATRIX)),
    "lp": bandits.LpBall(1.25),
}
KINKED = {
    "box": bandits.Box(-0.5, 1.0),
    "recommender": bandits.Box(),
    "cross": bandits.CrossPolytope(2.0),
    "simplex": bandits.Simplex(),
}
POINTS = np.array([[1.0, 1.0, 1.0], [2.0, 0.0, -2.0], [0.0, 3.0, 0.0], [1.0, -1.0, 1.0]])


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_values_have_both_derivatives(name):
    value = SMOOTH[name].support
    slope, curvature = jax.jit(jax.grad(value)), jax.jit(jax.hessian(value))
    step = 1e-5
    for point in POINTS:
        for axis in np.eye(3):
            ahead, behind = jnp.asarray(point + step * axis), jnp.asarray(point - step * axis)
            first = (value(ahead) - value(behind)) / (2 * step)
            np.testing.assert_allclose(slope(jnp.asarray(point)) @ axis, first, atol=1e-8)
            second = (slope(ahead) - slope(behind)) / (2 * step)
            np.testing.assert_allclose(curvature(jnp.asarray(point)) @ axis, second, atol=1e-4)
    assert np.all(np.isfinite(curvature(jnp.zeros(3))))


@pytest.mark.parametrize("name", KINKED)
def test_at_a_kink_the_derivative_is_the_action_that_is_played(name):
    action_set = KINKED[name]
    slope = jax.jit(jax.grad(action_set.support))
    for point in (*POINTS, np.zeros(3)):
        action = action_set.argmax(jnp.asarray(point))
        np.testing.assert_array_equal(slope(jnp.asarray(point)), action)


@pytest.mark.parametrize("name", [*SMOOTH, *KINKED])
def test_leads_at_ties_move_as_the_chosen_coordinates_do(name):
    action_set = (SMOOTH | KINKED)[name]
    slope = jax.jit(jax.grad(lambda theta: bandits.greedy_support(action_set, theta, 1).gap))
    gap = jax.jit(lambda theta: bandits.greedy_support(action_set, theta, 1).gap)
    point, step = jnp.asarray([3.0, 2.0, 1.0]), 1e-6
    expected = [
        (gap(point + step * axis) - gap(point - step * axis)) / (2 * step) for axis in jnp.eye(3)
    ]
    np.testing.assert_allclose(slope(point), expected, atol=1e-8)
    tied = slope(jnp.ones(3))
    assert np.count_nonzero(tied) <= 2 and np.isclose(np.sum(tied), 0.0)


@pytest.mark.parametrize("kind", ["l2", "hkz", "coord"])
def test_radii_of_orthogonal_bases(kind):
    radius = lambda sigma, delta: bandits.error_radius(  # noqa: E731
        3.0, jnp.eye(3), sigma=sigma, delta=delta, kind=kind
    )
    slope = jax.jit(jax.grad(radius, 1))
    step = 1e-6
    for function, derivative in (
        (radius, slope),
        (slope, jax.jit(jax.grad(jax.grad(radius, 1), 1))),
    ):
        expected = (function(0.1, 0.05 + step) - function(0.1, 0.05 - step)) / (2 * step)
        np.testing.assert_allclose(derivative(0.1, 0.05), expected, rtol=1e-6)
    by_basis = jax.grad(
        lambda basis: bandits.error_radius(3.0, basis, sigma=0.1, delta=0.05, kind=kind)
    )
    assert np.all(np.isfinite(by_basis(jnp.eye(3))))
