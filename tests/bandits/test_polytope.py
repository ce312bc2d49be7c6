"""Polytopes against HiGHS: scales, ties, thin sets, both precisions, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from jaxsac import bandits

D, COUNT = 6, 30


@jax.jit
@jax.vmap
def of_inequalities(normals, bounds, theta, mask):
    return bandits.Polytope(inequalities=(normals, bounds)).support(theta, mask)


@jax.jit
@jax.vmap
def of_vertices(vertices, theta, mask):
    polytope = bandits.Polytope(vertices)
    action = polytope.argmax(theta, mask)
    return polytope.support(theta, mask), polytope.gauge(action)


def cases(integers, inequalities, seed=5, near=1.0):
    """COUNT sets, parameters and masks."""
    rng = np.random.default_rng(seed)
    draw = (
        (lambda *s: rng.integers(-1, 2, s) * 1.0) if integers else (lambda *s: rng.normal(size=s))
    )
    matrices, bounds = draw(COUNT, 12, D), rng.uniform(size=(COUNT, 12))
    bounds[:, 0] *= near  # a row near the origin
    axes = np.broadcast_to(np.concatenate([np.eye(D), -np.eye(D)]), (COUNT, 2 * D, D))
    origin = np.zeros((COUNT, 1, D))
    matrices = np.concatenate([matrices, axes if inequalities else origin], axis=1)
    bounds = np.concatenate([bounds, np.ones((COUNT, 2 * D))], axis=1)
    return matrices, bounds, draw(COUNT, D), rng.random((COUNT, D)) < 0.6


def highs(matrix, bounds, theta, mask):
    if bounds is not None:
        limits = [(None, None) if kept else (0, 0) for kept in mask]
        return -linprog(-theta, A_ub=matrix, b_ub=bounds, bounds=limits).fun
    rows = np.vstack([np.where(mask[:, None], 0.0, matrix.T), np.ones(len(matrix))])
    return -linprog(-matrix @ np.where(mask, theta, 0.0), A_eq=rows, b_eq=np.eye(D + 1)[-1]).fun


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.float64])
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("inequalities", [False, True])
def test_the_optimum_at_every_scale(inequalities, integers, dtype):
    near = 1e-2 if dtype == jnp.float32 else 1e-5
    matrices, bounds, thetas, masks = cases(integers, inequalities, near=near)
    rows = zip(matrices, bounds if inequalities else [None] * COUNT, thetas, masks, strict=True)
    expected = np.array([highs(*row) for row in rows])
    tol = 2e-5 if dtype == jnp.float32 else 1e-9
    for of_theta, of_rows in ((1, 1), (1000, 1), (1e-3, 1), (1, 1000), (1, 1e-5)):
        matrix, theta = (jnp.asarray(x, dtype) for x in (matrices * of_rows, thetas * of_theta))
        if inequalities:
            size = of_theta
            value = of_inequalities(matrix, jnp.asarray(bounds * of_rows, dtype), theta, masks)
        else:
            size = of_theta * of_rows
            value, gauge = of_vertices(matrix, theta, masks)
            assert np.all(gauge[expected > tol] <= 1 + 10 * tol)
        np.testing.assert_allclose(value / size, expected, rtol=tol, atol=tol)


def test_columns_in_units_of_their_own():
    """A box of sides 1e-4 and 1e4, as prices times amounts within a budget."""
    sides = np.array([1e-4, 1e4])
    box = bandits.Polytope(
        inequalities=(np.concatenate([np.eye(2), -np.eye(2)]), np.concatenate([sides, sides]))
    )
    np.testing.assert_allclose(box.support(jnp.asarray([1e4, -1e-4])), 2.0, rtol=1e-12)


def test_derivatives_in_everything():
    """Of the value in theta, the vertices, the rows and the bounds: central differences; and in
    theta and the bounds together, which a constant action would miss.
    """
    matrices, bounds, thetas, masks = cases(False, True, 1)
    normals, bounds, theta, mask = matrices[0], bounds[0] + 0.1, thetas[0], jnp.asarray(masks[0])

    def by_rows(normals, bounds, theta):
        return bandits.Polytope(inequalities=(normals, bounds)).support(theta, mask)

    def by_vertices(vertices, theta):
        return bandits.Polytope(vertices).support(theta, mask)

    def by_gauge(vertices, x):
        return bandits.Polytope(vertices).gauge(x)

    vertices = np.concatenate([np.eye(D), -np.eye(D), cases(False, False, 2)[0][0]])
    rng = np.random.default_rng(0)
    for value, arguments in (
        (by_rows, (normals, bounds, theta)),
        (by_vertices, (vertices, theta)),
        (by_gauge, (vertices, theta)),
    ):
        value = jax.jit(value)
        moves = [rng.normal(size=x.shape) * 1e-6 for x in arguments]
        ahead, behind = (
            value(*(x + s * m for x, m in zip(arguments, moves, strict=True))) for s in (1, -1)
        )
        slopes = jax.jit(jax.grad(value, range(len(arguments))))(*map(jnp.asarray, arguments))
        slope = sum(float(np.sum(s * m)) for s, m in zip(slopes, moves, strict=True))
        np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-5)

    def action(*at):
        return 2 * (jax.grad(by_rows, 2)(*at),)

    both = jax.jit(jax.jacobian(action, 1, has_aux=True))
    move = rng.normal(size=bounds.shape) * 1e-6
    ahead, behind = (both(normals, bounds + s * move, theta)[1] for s in (1, -1))
    mixed = both(normals, bounds, theta)[0]
    np.testing.assert_allclose(mixed @ move, (ahead - behind) / 2, atol=1e-10)


def test_what_has_no_answer_is_nan_or_refused():
    unbounded = jax.jit(
        lambda rows: bandits.Polytope(inequalities=(rows, jnp.ones(2))).support(-jnp.ones(2))
    )
    assert np.isnan(unbounded(jnp.eye(2)))
    away = jax.jit(lambda vertices: bandits.Polytope(vertices).support(jnp.ones(2)))
    assert np.isnan(away(jnp.eye(2) * jnp.nan))
    with pytest.raises(ValueError, match="inequalities must bound"):
        bandits.Polytope(inequalities=(jnp.eye(2), jnp.ones(2)))
    with pytest.raises(ValueError, match="vertices must be < inf"):
        bandits.Polytope(jnp.asarray([[jnp.inf, 0.0], [0.0, 1.0]]))
