"""Designs against the matrices that they never build."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import designs
from jaxsac.designs.maps import squared_norm

RNG = np.random.default_rng(0)
T, M, Q = 9, 5, 3
PSI = RNG.normal(size=(T, Q))
ACTIONS = np.asarray(
    [[0, -1], [2, 3], [-1, -1], [1, 0], [4, -1], [-1, 2], [0, 1], [2, 0], [3, 3]], np.int32
)
WEIGHTS = np.concatenate([RNG.uniform(size=T - 1), [0.0]])


def chosen_matrix():
    built = np.zeros((T, M, Q))
    for t, row in enumerate(ACTIONS):
        for j in row[row >= 0]:
            built[t, j] += PSI[t]
    return built.reshape(T, M * Q)


DENSE = RNG.normal(size=(T, 7))
CASES = {  # design, the same map as a matrix onto flattened predictions
    "dense": (lambda dtype: designs.as_design(DENSE.astype(dtype)), DENSE),
    "budgeted choice": (
        lambda dtype: designs.BudgetedChoice(ACTIONS, PSI.astype(dtype), M),
        chosen_matrix(),
    ),
    "outputs": (
        lambda dtype: designs.MultiOutput(PSI.astype(dtype), M),
        np.einsum("tq,mn->tmnq", PSI, np.eye(M)).reshape(T * M, -1),
    ),
    "outputs by feature": (
        lambda dtype: designs.MultiOutput(PSI.astype(dtype), M, by="feature"),
        np.einsum("tq,mn->tmqn", PSI, np.eye(M)).reshape(T * M, -1),
    ),
    "centred": (
        lambda dtype: designs.Centred(
            designs.as_design(DENSE.astype(dtype)), jnp.asarray(WEIGHTS / WEIGHTS.sum(), dtype)
        ),
        DENSE - WEIGHTS @ DENSE / WEIGHTS.sum(),
    ),
}
every_design = pytest.mark.parametrize("name", CASES)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@every_design
def test_products_match_the_matrix(name, dtype):
    build, matrix = CASES[name]
    design = build(dtype)
    coef, residual = RNG.normal(size=matrix.shape[1]), RNG.normal(size=matrix.shape[0])
    shape = design.prediction_shape
    predictions = jax.jit(lambda d, b: d.predict(b))(design, jnp.asarray(coef, dtype))
    pulled = jax.jit(lambda d, r: d.adjoint(r))(design, jnp.asarray(residual.reshape(shape), dtype))
    rtol = 1e-5 if dtype == jnp.float32 else 1e-13
    np.testing.assert_allclose(predictions.reshape(-1), matrix @ coef, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(pulled, residual @ matrix, rtol=rtol, atol=rtol)
    assert (
        predictions.shape == shape
        and pulled.shape == (design.num_coefficients,)
        and predictions.dtype == pulled.dtype == design.dtype
    )


@every_design
def test_adjoint_is_the_transpose_and_batches_are_loops(name):
    build, matrix = CASES[name]
    design = build(jnp.float64)
    coefs = jnp.asarray(RNG.normal(size=(3, matrix.shape[1])))
    residuals = jnp.asarray(RNG.normal(size=(3, *design.prediction_shape)))
    predictions, pulled = jax.vmap(design.predict)(coefs), jax.vmap(design.adjoint)(residuals)
    np.testing.assert_allclose(
        jnp.sum(predictions * residuals), jnp.sum(coefs * pulled), rtol=1e-12
    )
    np.testing.assert_allclose(predictions[1], design.predict(coefs[1]), rtol=1e-12, atol=1e-13)
    transposed = jax.linear_transpose(design.predict, coefs[0])(residuals[0])[0]
    np.testing.assert_allclose(transposed, pulled[0], rtol=1e-11, atol=1e-12)


@every_design
def test_squared_norm_is_the_largest_singular_value(name):
    build, matrix = CASES[name]
    design = build(jnp.float64)
    repeated = np.repeat(WEIGHTS, matrix.shape[0] // T)
    exact = np.linalg.norm(np.sqrt(repeated)[:, None] * matrix, 2) ** 2
    estimate = squared_norm(design, jnp.asarray(WEIGHTS), num_steps=40)
    assert 0.98 * exact <= estimate <= exact * (1 + 1e-12)
    assert squared_norm(design, jnp.zeros(T)) == 0


@every_design
def test_column_squares_are_those_of_the_columns_as_stored(name):
    build, matrix = CASES[name]
    matrix = (
        DENSE if name == "centred" else matrix
    )  # rounding is that of the columns before their mean is taken off
    repeated = np.repeat(WEIGHTS, matrix.shape[0] // T)
    squares = build(jnp.float64).column_squares(jnp.asarray(WEIGHTS))
    # a row that lists an action twice counts its entries apart
    expected = repeated @ matrix**2
    if name == "budgeted choice":
        expected = expected - np.where(
            np.arange(M * Q) // Q == 3, 2 * WEIGHTS[8] * np.tile(PSI[8] ** 2, M), 0
        )
    np.testing.assert_allclose(squares, expected, rtol=1e-12)


def test_memory_of_the_choice_design_does_not_grow_with_its_matrix():
    """A million actions: nothing in the compiled products is as large as T x M."""
    million = 1_000_000
    design = designs.BudgetedChoice(
        RNG.integers(0, million, (50, 4)), RNG.normal(size=(50, 2)), million
    )
    products = (
        (lambda d, b: d.predict(b), jnp.ones(2 * million)),
        (lambda d, r: d.adjoint(r), jnp.ones(50)),
    )
    for function, argument in products:
        memory = jax.jit(function).lower(design, argument).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 8 * 2 * million * 3


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: designs.as_design(np.ones(3)), "X must have shape"),
        (lambda: designs.as_design(np.ones((0, 3))), "at least one row"),
        (lambda: designs.as_design(np.ones((2, 2)) * 1j), "X must be real"),
        (
            lambda: designs.BudgetedChoice(np.asarray([[7]]), np.ones((1, 2)), 5),
            "actions must be below num_actions = 5",
        ),
        (
            lambda: designs.BudgetedChoice(np.asarray([[1.0]]), np.ones((1, 2)), 5),
            "actions must hold integers",
        ),
        (
            lambda: designs.BudgetedChoice(np.asarray([[1], [2]]), np.ones((1, 2)), 5),
            r"features must have shape",
        ),
        (lambda: designs.MultiOutput(np.ones((2, 2)), 3, by="row"), "by must be one of"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
