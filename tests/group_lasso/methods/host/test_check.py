"""Checks of the host-driven method: the first pass, the scale, and certificates of what is
returned.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from wide import EQUAL, UNEQUAL, G, compiled_solve, problem

from jaxsac import Status, group_lasso
from jaxsac.group_lasso.methods.host import check as host_check, kernels, slots


def test_what_is_certified_is_what_is_returned():
    """Whatever an empty slot holds."""
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    setup, place = host_check.set_up(
        group_lasso.Problem(X, y, EQUAL, "squared", None, None, None, False).at(1.0), 1e-6
    )
    chosen = slots.working_set(setup, np.arange(30, dtype=np.int32))
    groups = np.where(np.arange(30) % 3 == 0, -1, chosen.groups).astype(np.int32)
    chosen = chosen._replace(groups=groups, rows=slots.rows_of(setup, groups))
    point = place.point._replace(coef=np.ones((30, 4)))
    checked = host_check.check(setup, np.asarray(1.0), chosen, point)
    coef = slots.full(setup, chosen, checked.point.coef)[:-1]
    assert np.sum(coef != 0) == 4 * np.sum(groups >= 0)
    objective = (
        0.5 * np.mean((np.asarray(y) - np.asarray(X) @ coef) ** 2)
        + np.linalg.norm(coef.reshape(G, 4), axis=1).sum()
    )
    np.testing.assert_allclose(checked.check.objective, objective, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["squared", pytest.param("logistic", marks=pytest.mark.slow)])
def test_violations_are_those_of_all_coefficients(loss):
    """The host's figure, from the groups that are not zero, against the one that the compiled loop
    computes; the sizes of roundings, which are sums of roundings themselves, to a half.
    """
    X, y, more = problem(0, loss, UNEQUAL, jnp.float64)
    lam = 0.3 * group_lasso.lam_max(X, y, UNEQUAL, loss=loss, intercept=True, **more)
    keywords = {"loss": loss, "intercept": True, "tol": 1e-6, **more}
    short = group_lasso.solve(X, y, UNEQUAL, lam, max_steps=1, **keywords)
    again = compiled_solve(X, y, UNEQUAL, lam, max_steps=0, state=short.state, **keywords)
    np.testing.assert_allclose(short.stats["kkt"], again.stats["kkt"], rtol=1e-6)
    np.testing.assert_allclose(short.stats["gap"], again.stats["gap"], rtol=1e-6)
    np.testing.assert_allclose(short.stats["rounding"], again.stats["rounding"], rtol=0.5)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_first_pass(loss):
    """Sizes of columns and the gradient of the centred design, over a number of records that is no
    multiple of what is read together.
    """
    X, y, more = problem(0, loss, EQUAL, jnp.float64)
    X, y, records = X[:61], y[:61], more["sample_weight"][:61]
    at = group_lasso.Problem(X, y, EQUAL, loss, None, records, more["offset"][:61], True).at(1.0)
    predictions = jnp.asarray(np.random.default_rng(3).normal(size=(1, 61)))
    columns, gradient = kernels.first_pass(at, predictions)
    A, c = np.asarray(X), np.asarray(records)
    np.testing.assert_allclose(columns, np.sqrt(c @ A**2), rtol=1e-12)
    residual = np.asarray(at.residual(predictions[0]))
    expected = residual @ (A - (c @ A) / c.sum())
    np.testing.assert_allclose(gradient[0], expected, atol=1e-12)
    np.testing.assert_allclose(kernels.gradients(at, predictions)[0], expected, atol=1e-12)


def test_the_scale_is_the_null_objective_whoever_asks():
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    largest = group_lasso.lam_max(X, y + 10, EQUAL, intercept=True)
    for ratio, most in ((1.001, 100), (0.5, 0), (0.5, 100)):
        sol = group_lasso.solve(X, y + 10, EQUAL, ratio * largest, intercept=True, max_steps=most)
        np.testing.assert_allclose(sol.stats["scale"], 0.5 * np.var(np.asarray(y)), rtol=1e-12)
    still = group_lasso.path(X, y + 10, EQUAL, num_lams=3, intercept=True, max_steps=0)
    assert not np.any(still.stats["num_steps"]) and not np.any(still.value.coef)
    assert list(still.status) == [Status.CONVERGED, Status.MAX_STEPS, Status.MAX_STEPS]
