"""The differentiable arg min: values, pull-backs, and life inside larger programs."""

import dataclasses
import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsac import Status, bilevel

RNG = np.random.default_rng(0)
X, T = jnp.asarray(RNG.normal(size=(12, 4))), jnp.asarray(RNG.normal(size=12))


def ridge_lower(x, y):
    return 0.5 * jnp.sum((X @ y["coef"] - T) ** 2) + 0.5 * jnp.sum(jnp.exp(x) * y["coef"] ** 2)


def ridge(x):
    return jnp.linalg.solve(X.T @ X + jnp.diag(jnp.exp(x)), X.T @ T)


SOLVE = bilevel.argmin(ridge_lower, {"coef": jnp.zeros(4)}, tol=1e-10)


def test_the_minimiser_and_its_pull_back_match_the_closed_form():
    """Per-feature ridge: y* = (X'X + diag e^x)⁻¹ X't."""
    x = jnp.asarray([0.3, -1.0, 2.0, 0.0])
    solution = SOLVE.checked(x)
    assert solution.status == Status.CONVERGED and solution.stats["error"] <= 1e-10
    np.testing.assert_allclose(SOLVE(x)["coef"], ridge(x), rtol=1e-9)

    def outer(solve):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(solve(2 * x))) + jnp.sum(x**2)))

    ours, exact = outer(lambda x: SOLVE(x)["coef"])(x), outer(ridge)(x)
    np.testing.assert_allclose(ours[0], exact[0], rtol=1e-9)
    np.testing.assert_allclose(ours[1], exact[1], rtol=1e-6)
    many = jnp.stack([x, x + 1, -x])
    batch = jax.jit(jax.vmap(jax.jacobian(lambda x: SOLVE(x)["coef"])))(many)
    np.testing.assert_allclose(batch, jax.vmap(jax.jacobian(ridge))(many), rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_a_huge_or_tiny_cotangent_changes_nothing_but_the_scale():
    x = jnp.asarray([0.3, -1.0, 2.0, 0.0])
    _, pull = jax.vjp(SOLVE, x)
    unit = pull({"coef": jnp.ones(4)})[0]
    for factor in (1e8, 1e-8):
        np.testing.assert_allclose(pull({"coef": jnp.full(4, factor)})[0], factor * unit, rtol=1e-9)
    np.testing.assert_array_equal(pull({"coef": jnp.zeros(4)})[0], np.zeros(4))


def test_a_constrained_minimiser_with_an_inner_optimiser():
    def relu(x, y, rate):
        return jax.nn.relu(y)

    bounded = bilevel.argmin(
        lambda x, y: 0.5 * jnp.sum((y - x) ** 2),
        jnp.zeros(3),
        inner=optax.sgd(0.5),
        prox_y=relu,
        tol=1e-9,
    )
    x = jnp.asarray([1.0, -1.0, 2.0])
    np.testing.assert_allclose(bounded(x), [1, 0, 2], atol=1e-8)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(bounded(x)))(x), [1, 0, 1], atol=1e-6)


def test_closing_over_a_batched_array_works_and_bad_arguments_are_named():
    def one(weight):
        solve = bilevel.argmin(lambda x, y: weight * (y - x) ** 2 + y**2, jnp.asarray(0.0))
        return solve(jnp.asarray(3.0))

    np.testing.assert_allclose(jax.vmap(one)(jnp.asarray([1.0, 2.0])), [1.5, 2.0], rtol=1e-5)
    with pytest.raises(ValueError, match="prox_y needs an inner"):
        bilevel.argmin(ridge_lower, {"coef": jnp.zeros(4)}, prox_y=lambda x, y, rate: y)
    with pytest.raises(ValueError, match="sigma must be > 0"):
        bilevel.argmin(ridge_lower, {"coef": jnp.zeros(4)}, sigma=0.0)(jnp.zeros(4))


@pytest.mark.slow
def test_records_and_their_methods_go_through_jit():
    x = jnp.asarray([0.3, -1.0, 2.0, 0.0])
    problem, method = bilevel.Problem(ridge_lower, ridge_lower), bilevel.Method(inner_steps=3)
    assert jax.jit(lambda *records: records)(problem, method) == (problem, method)
    assert hash(problem) == hash(bilevel.Problem(ridge_lower, ridge_lower))
    for solve in (SOLVE, jax.jit(lambda solve: solve)(SOLVE)):
        np.testing.assert_allclose(jax.jit(solve)(x)["coef"], SOLVE(x)["coef"], rtol=1e-9)
        found = jax.jit(solve.checked)(x).value["coef"]
        np.testing.assert_allclose(found, SOLVE(x)["coef"], rtol=1e-9)


@pytest.mark.slow
def test_data_are_constants_and_aux_comes_with_the_minimiser():
    """y*_i = w a_k x_i + noise, with the row k and the noise's key among the data."""
    rows = jnp.asarray([[1.0, 1.0], [2.0, 3.0], [0.5, -1.0]])

    def lower(x, y, data):
        target = x * data["rows"][data["row"]] + jax.random.normal(data["key"], (2,), y.dtype)
        return jnp.sum((y - target) ** 2), {"product": jnp.sum(x * y)}

    data = {"rows": rows, "row": np.int32(1), "key": jax.random.key(0)}
    solve = bilevel.argmin(lower, jnp.zeros(2), data, has_aux=True, tol=1e-10)
    x, noise = jnp.asarray([1.0, -2.0]), jax.random.normal(data["key"], (2,))
    y, aux = solve(x)
    np.testing.assert_allclose(y, x * rows[1] + noise, rtol=1e-9)
    checked = solve.checked(x).check()
    np.testing.assert_allclose([aux["product"], checked.stats["aux"]["product"]], x @ y, rtol=1e-9)
    gradient = jax.grad(lambda x: solve(x)[1]["product"])(x)  # of Σ x (a x + noise)
    np.testing.assert_allclose(gradient, 2 * rows[1] * x + noise, rtol=1e-6)

    def of_row(row):
        return dataclasses.replace(solve, data={**data, "row": row})(x)[0]

    np.testing.assert_allclose(
        jax.vmap(of_row)(jnp.arange(3, dtype=jnp.int32)), rows * x[None] + noise[None], rtol=1e-9
    )
    with pytest.raises(ValueError, match="data= have no derivative"):
        jax.grad(
            lambda rows: jnp.sum(dataclasses.replace(solve, data={**data, "rows": rows})(x)[0])
        )(rows)


@pytest.mark.slow
def test_forward_mode_and_second_derivatives_where_products_are_allowed():
    """y* = tanh(w x) / 1.1 of ‖y − tanh(w x)‖² + .1 ‖y‖², w closed over."""

    def total(x, w, **more):
        solve = bilevel.argmin(
            lambda x, y: jnp.sum((y - jnp.tanh(w * x)) ** 2) + 0.1 * jnp.sum(y**2),
            jnp.zeros(2),
            **more,
        )
        return jnp.sum(solve(x) ** 3)

    def right(x, w):
        return jnp.sum((jnp.tanh(w * x) / 1.1) ** 3)

    x, w = jnp.asarray([0.3, -1.0]), jnp.asarray(1.2)
    allowed = functools.partial(total, allow_jvp=True)
    for mode in (jax.jacfwd, jax.jacrev):
        for argument in (0, 1):
            np.testing.assert_allclose(
                mode(allowed, argument)(x, w), mode(right, argument)(x, w), rtol=1e-6
            )
    np.testing.assert_allclose(
        jax.jit(jax.hessian(allowed))(x, w), jax.hessian(right)(x, w), rtol=1e-5, atol=1e-9
    )
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: total(x, w), (x,), (x,))
    with pytest.raises(ValueError, match="allow_jvp needs a smooth lower"):
        total(x, w, allow_jvp=True, inner=optax.sgd(0.1), prox_y=lambda x, y, rate: y)


@pytest.mark.slow
def test_problems_rebuilt_in_a_loop_do_not_pile_up():
    kept = []
    for k in range(50):
        weight = jnp.full(3, 1.0 + k)
        kept.append(weakref.ref(weight))
        solve = bilevel.argmin(lambda x, y, w=weight: jnp.sum(w * (y - x) ** 2), jnp.zeros(3))
        jax.eval_shape(solve.checked, jnp.ones(3))
        jax.eval_shape(jax.grad(lambda x, solve=solve: jnp.sum(solve(x))), jnp.ones(3))
        del weight, solve
    gc.collect()
    assert [reference() is not None for reference in kept] == [k >= 18 for k in range(50)]


def test_a_search_that_meets_a_nan_is_no_minimiser():
    x = jnp.asarray([jnp.nan, 0.0, 0.0, 0.0])
    assert SOLVE.checked(x).status == Status.NONFINITE
    assert np.all(np.isnan(SOLVE(x)["coef"]))
    assert np.all(np.isnan(jax.grad(lambda x: jnp.sum(SOLVE(x)["coef"]))(x)))


def test_derivatives_by_products_do_not_underflow():
    best = bilevel.argmin(
        lambda x, y: jnp.sum((y - jnp.tanh(x)) ** 2), jnp.zeros(2, jnp.float32), allow_jvp=True
    )
    x = jnp.asarray([0.3, 1.0], jnp.float32)
    for size in (1e-25, 1.0, 1e25):
        found = jax.grad(lambda x, size=size: size * jnp.sum(best(x)))(x) / size
        np.testing.assert_allclose(found, 1 - np.tanh(x) ** 2, rtol=1e-3)


def test_products_or_values_that_are_nan_end_no_search():
    powers = bilevel.argmin(lambda x, y: jnp.sum(y**1.5 / 1.5 - x * y), jnp.asarray([1e-8, 5.0]))
    found = powers.checked(jnp.asarray([1.0, 2.0])).check()
    np.testing.assert_allclose(found.value, [1.0, 4.0], rtol=1e-5)
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(300, 3, 3))

    def lower(x, y, data):
        bent = 3 * y @ (x * jnp.asarray([1.0, -2.0, 1.0]))
        return 0.5 * jnp.sum((data @ y) ** 2) + 0.05 * jnp.sum(y**2) - x @ jnp.log(y) - bent

    found = jax.vmap(lambda x, y0, data: bilevel.argmin(lower, y0, data).checked(x))(
        *rng.uniform(0.1, 2.0, size=(2, 300, 3)), factors
    )
    sure = np.asarray(found.status == Status.CONVERGED)
    assert sure.sum() > 200 and np.isfinite(found.stats["lower"][sure]).all()
    assert (found.value[sure] > 0).all()
