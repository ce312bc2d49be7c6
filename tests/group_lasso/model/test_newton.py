"""The pieces of a Newton step, each against dense numpy, in their compiled form and in the host's;
and the host's many steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac._linear import inverses
from jaxsac.group_lasso.model import newton_numpy as host_newton
from jaxsac.group_lasso.model.descent import Model, gram_matrices
from jaxsac.group_lasso.model.newton import (
    admissible,
    descent_direction,
    newton_direction,
    newton_step,
)
from jaxsac.group_lasso.model.newton_numpy import newton_steps

FORMS = pytest.mark.parametrize("on_host", [False, True], ids=["compiled", "host"])


def take_steps(model, coef, residual, accuracy, limit):
    """The host's Newton steps of one problem, or of many one after another."""
    arrays = jax.tree.map(np.asarray, (model, coef, residual))
    if coef.ndim == 2:
        return newton_steps(*arrays, accuracy, limit)
    ended = [
        newton_steps(*jax.tree.map(lambda leaf, k=k: leaf[k], arrays), accuracy, limit)
        for k in range(len(coef))
    ]
    return tuple(map(np.stack, zip(*ended, strict=True)))


@jax.jit
@jax.vmap
def twenty_steps(model, coef, residual):
    return jax.lax.fori_loop(
        0, 20, lambda _, at: newton_step(model, *at, jnp.float32(3e-2)), (coef, residual)
    )


@pytest.mark.parametrize(
    "dtype, tol", [(jnp.float32, 1e-3), (jnp.float64, 1e-11)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("size", [1, 5, 20])
def test_inverses(size, dtype, tol):
    rows = np.random.default_rng(size).normal(size=(7, size, size + 4))
    matrices = jnp.asarray(rows @ rows.transpose(0, 2, 1), dtype)
    np.testing.assert_allclose(
        jax.jit(inverses)(matrices),
        np.linalg.inv(np.asarray(matrices, np.float64)),
        atol=tol,
        rtol=tol,
    )


def test_what_a_step_may_do_to_a_group():
    """Rows: growing, shrinking past zero, shrinking, turning too far, unpenalised, zero without a
    penalty.
    """
    coef = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    step = jnp.asarray([[5.0, 0.0], [-1.5, 0.2], [-0.5, 0.3], [0.5, 2.0], [-3.0, 4.0], [2.0, 1.0]])
    thresholds = jnp.asarray([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    expected = [[5.0, 0.0], [-1.0, 0.0], [-0.5, 0.3], [0.5, 0.7], [-3.0, 4.0], [2.0, 1.0]]
    np.testing.assert_allclose(admissible(coef, step, thresholds), expected, rtol=1e-12)
    assert np.all(np.asarray(coef + admissible(coef, step, thresholds))[1] == 0)  # exactly


@FORMS
def test_a_direction_solves_the_newton_equations_of_what_moves(on_host):
    rng = np.random.default_rng(0)
    blocks = jnp.asarray(rng.normal(size=(5, 3, 40)), jnp.float32)
    blocks = blocks.at[4].set(0)  # padded
    thresholds = jnp.asarray([1.0, 2.0, 0.5, 0.0, 0.0], jnp.float32)
    coef = (
        jnp.asarray(rng.normal(size=(5, 3)), jnp.float32).at[1].set(0).at[4].set(0)
    )  # a penalised group at zero stays there
    descent = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32).at[4].set(0)
    arguments = Model(blocks, *gram_matrices(blocks), thresholds), coef, descent
    if on_host:
        arguments = jax.tree.map(np.asarray, arguments)
    found = np.asarray((host_newton.newton_direction if on_host else newton_direction)(*arguments))
    assert found.dtype == np.float32
    moving = [0, 2, 3]
    A = np.asarray(blocks, np.float64)[moving].reshape(9, 40)
    K = A @ A.T
    for place, g in enumerate(moving):
        if thresholds[g] > 0:
            norm = np.linalg.norm(coef[g])
            u = np.asarray(coef[g], np.float64) / norm
            K[3 * place : 3 * place + 3, 3 * place : 3 * place + 3] += (
                float(thresholds[g]) / norm * (np.eye(3) - np.outer(u, u))
            )
    exact = np.linalg.solve(K, np.asarray(descent, np.float64)[moving].reshape(-1)).reshape(3, 3)
    assert np.all(found[[1, 4]] == 0)
    # conjugate gradients stop at 3 % of the preconditioned residual
    assert np.linalg.norm(found[moving] - exact) <= 0.1 * np.linalg.norm(exact)


def test_a_group_of_one_that_is_nearly_zero_does_not_spoil_the_direction():
    """Of a single coefficient the penalty has no curvature, however near to zero it is."""
    rng = np.random.default_rng(0)
    blocks = rng.normal(size=(8, 1, 40)).astype(np.float32) / 6
    coef = np.where(np.arange(8) < 3, 1e-8, 1.0).astype(np.float32)[:, None]
    descent = rng.normal(size=(8, 1)).astype(np.float32)
    model = Model(blocks, *gram_matrices(jnp.asarray(blocks)), np.ones(8, np.float32))
    found = host_newton.newton_direction(jax.tree.map(np.asarray, model), coef, descent, 1e-3)
    exact = np.linalg.solve(blocks[:, 0] @ blocks[:, 0].T, descent)
    np.testing.assert_allclose(found, exact, atol=0.01 * np.linalg.norm(exact))


@FORMS
def test_steps_in_float32_go_below_the_rounding_of_the_objective(on_host):
    """Where a step no longer shows in the objective, it must still be taken: the gradient decides
    what is certified.
    """
    rng = np.random.default_rng(1)
    blocks = jnp.asarray(rng.normal(size=(64, 6, 3, 40)) / 6, jnp.float32).at[:, 5].set(0)
    start = jnp.asarray(rng.normal(size=(64, 6, 3)), jnp.float32).at[:, 5].set(0)
    moved = 0.3 * np.einsum("ngq,ngqt->nt", rng.normal(size=(64, 6, 3)), np.asarray(blocks))
    residual = jnp.asarray(moved + 2 * rng.normal(size=(64, 40)), jnp.float32)
    thresholds = jnp.asarray([0.02, 0.05, 0.03, 0.04, 0.0, 0.0], jnp.float32)

    model = Model(blocks, *jax.vmap(gram_matrices)(blocks), jnp.broadcast_to(thresholds, (64, 6)))
    coef, left = (
        take_steps(model, start, residual, 2e-6, 20)
        if on_host
        else twenty_steps(model, start, residual)
    )
    assert coef.dtype == left.dtype == jnp.float32
    b, A, r = (np.asarray(array, np.float64) for array in (coef, blocks, left))
    np.testing.assert_allclose(
        r, np.asarray(residual) - np.einsum("ngqt,ngq->nt", A, b - np.asarray(start)), atol=2e-5
    )
    norms = np.linalg.norm(b, axis=2, keepdims=True)
    gradient = np.einsum("ngqt,nt->ngq", A, r) - np.asarray(thresholds)[:, None] * b / np.where(
        norms > 0, norms, 1
    )
    held = (norms[:, :, 0] > 0) | (np.asarray(thresholds) == 0)
    worst = np.max(np.where(held, np.linalg.norm(gradient, axis=2), 0), axis=1) / 0.02
    # Two starts are too far for Newton steps alone; of steps that must lower the objective in
    # float32, twelve would end short.
    assert np.sum(worst > 5e-5) <= 2, np.sort(worst)[-12:]
    unmoved, _ = take_steps(model, start, residual, 2e-6, 0)
    np.testing.assert_array_equal(unmoved, start)


def test_a_group_that_is_zero_comes_back():
    """Zero groups beyond their thresholds get a value with the Newton steps; those within stay
    exactly zero.
    """
    rng = np.random.default_rng(3)
    blocks = jnp.asarray(rng.normal(size=(5, 3, 40)) / 6, jnp.float32).at[4].set(0)
    model = Model(
        blocks, *gram_matrices(blocks), jnp.asarray([0.05, 0.05, 0.05, 100.0, 0.0], jnp.float32)
    )
    truth = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    residual = jnp.einsum(
        "gq,gqt->t", truth, blocks[:2]
    )  # nothing is known yet of the two groups that it is made of
    coef, left = take_steps(model, jnp.zeros((5, 3), jnp.float32), residual, 1e-5, 20)
    b, A, r = (np.asarray(array, np.float64) for array in (coef, blocks, left))
    pulls = np.einsum("gqt,t->gq", A, r)
    norms = np.linalg.norm(b, axis=1)
    assert np.all(norms[:2] > 0) and np.all(b[3:] == 0)
    np.testing.assert_allclose(r, np.asarray(residual) - np.einsum("gq,gqt->t", b, A), atol=1e-5)
    nonzero = norms > 0
    np.testing.assert_allclose(
        pulls[nonzero], 0.05 * (b / np.where(norms > 0, norms, 1)[:, None])[nonzero], atol=2e-6
    )
    assert np.all(np.linalg.norm(pulls[:3][~nonzero[:3]], axis=1) <= 0.05 * (1 + 1e-4))


def test_steps_do_not_stick_where_many_groups_should_be_zero():
    """From zero, six true groups among forty: a Newton step that would take many groups through
    zero is no descent, at any length.
    """
    rng = np.random.default_rng(2)
    blocks = jnp.asarray(rng.normal(size=(12, 40, 5, 100)) / 10, jnp.float32)
    truth = rng.normal(size=(12, 6, 5))
    targets = np.einsum("ngq,ngqt->nt", truth, np.asarray(blocks)[:, :6]) + 0.3 * rng.normal(
        size=(12, 100)
    )
    pulls = np.linalg.norm(np.einsum("ngqt,nt->ngq", np.asarray(blocks), targets), axis=2)
    thresholds = jnp.asarray(np.repeat(0.1 * pulls.max(axis=1)[:, None], 40, axis=1), jnp.float32)

    model = Model(blocks, *jax.vmap(gram_matrices)(blocks), thresholds)
    coef, residual = take_steps(
        model, jnp.zeros((12, 40, 5), jnp.float32), jnp.asarray(targets, jnp.float32), 1e-5, 14
    )
    descent = jax.jit(jax.vmap(descent_direction))(model, jnp.asarray(coef), jnp.asarray(residual))
    off = np.linalg.norm(descent, axis=2) / np.asarray(thresholds)
    assert np.max(off) <= 2e-5, np.max(off, axis=1)
    assert np.all(np.any(np.all(np.asarray(coef) == 0, axis=2), axis=1))


def test_a_group_that_cannot_enter_does_not_hold_up_the_others():
    """A block whose Gram matrix underflowed stays zero however far it is beyond its threshold; the
    steps on the rest are still taken.
    """
    rng = np.random.default_rng(4)
    blocks = jnp.asarray(rng.normal(size=(3, 3, 40)) / 6, jnp.float32)
    grams, bounds = gram_matrices(blocks)
    model = Model(blocks, grams, bounds.at[2].set(0), jnp.full(3, 0.01, jnp.float32))
    start = jnp.asarray(rng.normal(size=(3, 3)), jnp.float32).at[2].set(0)
    residual = jnp.asarray(rng.normal(size=40), jnp.float32)
    coef, left = take_steps(model, start, residual, 1e-5, 8)
    b, A, r = (np.asarray(array, np.float64) for array in (coef, blocks, left))
    assert np.all(b[2] == 0) and np.linalg.norm(A[2] @ r) > 0.01
    norms = np.linalg.norm(b[:2], axis=1, keepdims=True)
    np.testing.assert_allclose(np.einsum("gqt,t->gq", A[:2], r), 0.01 * b[:2] / norms, atol=2e-6)
