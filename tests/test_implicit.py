"""The derivative rule against closed forms, in every transformation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import _linear
from jaxsac._implicit import implicit


def ridge(matrix, target, penalty):
    """argmin_x ½‖A x − y‖² + ½ penalty ‖x‖², solved without a trace of gradients."""
    gram = matrix.T @ matrix + penalty * jnp.eye(matrix.shape[1], dtype=matrix.dtype)
    return jnp.linalg.solve(gram, target @ matrix)


def residual(x, params):
    matrix, target, penalty = params
    return (matrix @ x - target) @ matrix + penalty * x


def solve_by_gradients(matvec, right_side):
    return _linear.conjugate_gradient(matvec, right_side).x


def implicit_ridge(matrix, target, penalty):
    found = jax.lax.stop_gradient(ridge(matrix, target, penalty))
    return implicit(residual, solve_by_gradients, found, (matrix, target, penalty))


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(12, 5))), jnp.asarray(rng.normal(size=12)), jnp.asarray(0.7)


def test_value_is_untouched(problem):
    np.testing.assert_array_equal(implicit_ridge(*problem), ridge(*problem))


def test_jacobians_match_the_closed_form(problem):
    for mode in (jax.jacfwd, jax.jacrev):
        expected = mode(ridge, argnums=(0, 1, 2))(*problem)
        actual = jax.jit(mode(implicit_ridge, argnums=(0, 1, 2)))(*problem)
        chex.assert_trees_all_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_the_second_derivative_of_an_affine_solution_is_zero(problem, outer):
    """A matrix that does not depend on what is differentiated has a symbolic zero for its own."""
    matrix, _, penalty = problem
    total = jax.grad(lambda target: jnp.sum(implicit_ridge(matrix, target, penalty)))
    np.testing.assert_array_equal(jax.jit(outer(total))(problem[1]), np.zeros((12, 12)))


def test_second_derivative_matches_the_closed_form(problem):
    matrix, target, penalty = problem

    def total(solver):
        return lambda p: jnp.sum(solver(matrix, target, p) ** 3)

    for outer, inner in ((jax.jacfwd, jax.grad), (jax.grad, jax.grad), (jax.jacfwd, jax.jacfwd)):
        found, expected = (
            jax.jit(outer(inner(total(solver))))(penalty) for solver in (implicit_ridge, ridge)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_vmap_of_gradients_is_a_loop(problem):
    matrix, target, _ = problem
    penalties = jnp.asarray([0.1, 1.0, 10.0])
    gradient = jax.jit(jax.grad(lambda p: implicit_ridge(matrix, target, p).sum()))
    np.testing.assert_allclose(
        jax.vmap(gradient)(penalties), jnp.stack([gradient(p) for p in penalties]), rtol=1e-10
    )


def test_several_right_hand_sides_at_once(problem):
    _, pullback = jax.vjp(lambda y: implicit_ridge(problem[0], y, problem[2]), problem[1])
    (rows,) = jax.vmap(pullback)(jnp.eye(5))
    np.testing.assert_allclose(rows, jax.jacrev(ridge, argnums=1)(*problem), rtol=1e-9, atol=1e-12)


def test_unsymmetric_systems_use_the_transposed_solve():
    rng = np.random.default_rng(1)
    matrix, target = (
        jnp.asarray(rng.normal(size=(4, 4)) + 4 * np.eye(4)),
        jnp.asarray(rng.normal(size=4)),
    )

    def dense_solve(matvec, right_side):
        return jnp.linalg.solve(jax.jacfwd(matvec)(jnp.zeros_like(right_side)), right_side)

    def solve(matrix, target):
        found = jax.lax.stop_gradient(jnp.linalg.solve(matrix, target))
        return implicit(
            lambda x, p: p[0] @ x - p[1], dense_solve, found, (matrix, target), symmetric=False
        )

    for mode in (jax.jacfwd, jax.jacrev):
        found, expected = (
            jax.jit(mode(solver, argnums=(0, 1)))(matrix, target)
            for solver in (solve, jnp.linalg.solve)
        )
        chex.assert_trees_all_close(found, expected, rtol=1e-9)


def test_trees_and_integer_parameters(problem):
    matrix, target, penalty = problem

    def solve(target, penalty):
        found = jax.lax.stop_gradient(ridge(matrix, target, penalty))
        tree = {"head": found[:2], "tail": found[2:]}
        params = (target, penalty, jnp.arange(5, dtype=jnp.int32))

        def equation(tree, params):
            target, penalty, order = params
            x = jnp.concatenate([tree["head"], tree["tail"]])[order]
            out = residual(x, (matrix, target, penalty))
            return {"head": out[:2], "tail": out[2:]}

        tree = implicit(equation, solve_by_gradients, tree, params)
        return jnp.concatenate([tree["head"], tree["tail"]])

    expected = jax.grad(lambda p: ridge(matrix, target, p)[3])(penalty)
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda p: solve(target, p)[3]))(penalty), expected, rtol=1e-9
    )


def test_a_leaf_of_the_equation_may_not_depend_on_the_parameter():
    """x = (a², b³): differentiating by a alone leaves the second equation without a tangent."""

    def solve(a, b):
        found = jax.lax.stop_gradient((a**2, b**3))
        return implicit(
            lambda x, p: (x[0] - p[0] ** 2, x[1] - p[1] ** 3), solve_by_gradients, found, (a, b)
        )

    gradient = jax.jit(jax.grad(lambda a, b: solve(a, b)[0] * solve(a, b)[1], argnums=(0, 1)))(
        2.0, 3.0
    )
    np.testing.assert_allclose(gradient, (2 * 2.0 * 27.0, 4.0 * 27.0), rtol=1e-12)
    np.testing.assert_allclose(
        jax.grad(lambda a: solve(a, jnp.asarray(3.0))[0])(2.0), 4.0, rtol=1e-12
    )


def test_a_central_difference_agrees(problem):
    matrix, target, penalty = problem
    h = 1e-5
    slope = (ridge(matrix, target, penalty + h) - ridge(matrix, target, penalty - h)) / (2 * h)
    np.testing.assert_allclose(
        jax.jacfwd(implicit_ridge, argnums=2)(matrix, target, penalty), slope, rtol=1e-6, atol=1e-9
    )
