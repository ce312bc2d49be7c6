"""Small inverses and conjugate gradients against LAPACK and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac._implicit import implicit
from jaxsac._linear import conjugate_gradient, inverse, inverses


def positive_definite(size, count=1, seed=0):
    factors = np.random.default_rng(seed).normal(size=(count, size, 2 * size))
    return factors @ np.swapaxes(factors, 1, 2)


@pytest.mark.parametrize("dtype, tol", [("float32", 1e-4), ("float64", 1e-11)])
@pytest.mark.parametrize("size", [1, 7])
def test_inverses_are_those_of_lapack(size, dtype, tol):
    matrices = positive_definite(size, count=5)
    expected = np.linalg.inv(matrices)
    found = jax.jit(inverses)(jnp.asarray(matrices, dtype))
    np.testing.assert_allclose(found, expected, rtol=tol, atol=tol * np.abs(expected).max())
    np.testing.assert_array_equal(jax.vmap(inverse)(jnp.asarray(matrices, dtype)), found)


@pytest.mark.parametrize("precondition", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_a_tree_is_solved_to_its_residual(precondition, started):
    matrix, diagonal = positive_definite(6)[0], np.asarray([1e-3, 2.0, 3e3])
    right_side = {"a": jnp.asarray(np.arange(6.0)), "b": jnp.asarray([1.0, -1.0, 2.0])}
    start = {"a": jnp.ones(6), "b": jnp.ones(3)} if started else None

    def scaled(v):
        return {"a": v["a"] / np.diag(matrix), "b": v["b"] / diagonal}

    more = {"precondition": scaled} if precondition else {}
    found = jax.jit(
        lambda b: conjugate_gradient(
            lambda v: {"a": matrix @ v["a"], "b": diagonal * v["b"]}, b, start=start, **more
        )
    )(right_side)
    assert found.converged
    np.testing.assert_allclose(found.x["a"], np.linalg.solve(matrix, np.arange(6.0)), rtol=1e-9)
    np.testing.assert_allclose(found.x["b"], right_side["b"] / diagonal, rtol=1e-9)


def test_what_stops_it_is_said():
    matrix = np.diag([1.0, 10.0, 100.0, 0.0])
    right_side = jnp.asarray([1.0, 1.0, 1.0, 0.0])

    def product(v):
        return jnp.asarray(matrix) @ v

    few = conjugate_gradient(product, right_side, max_steps=1)
    assert not few.converged
    np.testing.assert_allclose(few.residual, right_side - matrix @ few.x, rtol=1e-12)
    rough = conjugate_gradient(product, right_side, tol=0.9)
    assert rough.converged and 1e-3 < np.linalg.norm(rough.residual) <= 0.9 * np.sqrt(
        3
    )  # and no step more
    assert conjugate_gradient(product, right_side, floor=2.0, max_steps=0).converged
    # Beyond the range of a singular matrix there is nothing to solve, and it says so.
    outside = conjugate_gradient(product, jnp.asarray([0.0, 0.0, 0.0, 1.0]))
    assert not outside.converged and np.all(np.isfinite(outside.x))
    assert conjugate_gradient(product, jnp.zeros(4)).converged


def test_a_derivative_whose_linear_solve_failed_is_nan():
    matrix = jnp.asarray(positive_definite(3)[0])

    def solution(target, max_steps):
        found = jax.lax.stop_gradient(jnp.linalg.solve(matrix, target))
        return implicit(
            lambda x, target: matrix @ x - target,
            lambda product, b: conjugate_gradient(product, b, max_steps=max_steps).x,
            found,
            target,
        )

    target = jnp.asarray([1.0, 2.0, 3.0])
    good = jax.jacrev(lambda target: solution(target, None))(target)
    np.testing.assert_allclose(good, np.linalg.inv(matrix), rtol=1e-9)
    for mode in (jax.jacrev, jax.jacfwd):
        slopes = jax.jit(mode(lambda target: jnp.sum(solution(target, 1))))(target)
        assert np.all(np.isnan(slopes))
    lanes = jax.vmap(jax.grad(lambda target, steps: jnp.sum(solution(target, steps))), (None, 0))(
        target, jnp.asarray([1, 30])
    )
    assert np.all(np.isnan(lanes[0])) and np.all(np.isfinite(lanes[1]))
