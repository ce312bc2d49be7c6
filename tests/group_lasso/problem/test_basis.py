"""Unpenalised columns that are nearly dependent, against the problem without them: what least
squares on them leaves of the other columns and of y has the same penalised coefficients.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import Groups, group_lasso

LABELS = np.r_[np.zeros(12, int), np.repeat(np.arange(1, 7), 3)]
GROUPS = Groups.from_labels(LABELS)
WEIGHTS = np.r_[0.0, np.ones(6)]
FREE = LABELS == 0


def instance(seed, width, intercept):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(60, LABELS.size)) + 1
    X[:, FREE] = X[:, -1:] + width * rng.normal(size=(60, FREE.sum()))
    y = 2 * X[:, 0] + X[:, 12:18] @ rng.normal(size=6) + rng.normal(size=60)
    share = rng.uniform(0.5, 1.5, 60)
    U = np.c_[X[:, FREE], np.ones(60)] if intercept else X[:, FREE]
    root = np.sqrt(share)[:, None]
    Q = np.linalg.qr(root * U)[0]
    rest = root * np.c_[X[:, ~FREE], y]
    rest -= Q @ (Q.T @ rest)
    return X, y, share, rest[:, :-1] / root, rest[:, -1] / root[:, 0]


@pytest.mark.parametrize(
    "intercept", [pytest.param(False, marks=pytest.mark.slow), True]
)  # which is one more free column
@pytest.mark.parametrize(
    ("dtype", "width"),
    [
        (np.float64, 1e-1),
        (np.float64, 1e-6),
        pytest.param(np.float32, 1e-2, marks=pytest.mark.slow),
    ],
)
def test_nearly_dependent_free_columns_leave_the_solution_of_the_problem_without_them(
    dtype, width, intercept
):
    X, y, share, X_rest, y_rest = instance(0, width, intercept)
    problem = group_lasso.Problem(
        X.astype(dtype),
        y.astype(dtype),
        GROUPS,
        weights=WEIGHTS.astype(dtype),
        sample_weight=share.astype(dtype),
        intercept=intercept,
    )
    alone = group_lasso.Problem(X_rest, y_rest, Groups.equal(6, 3), sample_weight=share)
    largest = float(group_lasso.lam_max(alone))
    accuracy = 1e-8 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(group_lasso.lam_max(problem), largest, rtol=accuracy)
    for ratio in (0.5, 0.05):
        lam = dtype(ratio * largest)
        found = group_lasso.solve(problem, lam).check()
        exact = group_lasso.solve(alone, lam, tol=1e-12).check()
        # the objective of the coefficients themselves, in float64
        residual = y - np.float64(found.value.predict(X.astype(dtype)))
        norms = np.linalg.norm(np.float64(found.value.coef)[~FREE].reshape(6, 3), axis=1)
        objective = np.mean(share * residual**2) / 2 + float(lam) * norms.sum()
        more = objective - float(exact.stats["objective"])
        assert more <= float(found.stats["error"]) + 4 * accuracy * float(found.stats["scale"])
        again = group_lasso.solve(problem, lam, state=found)
        assert again.stats["num_steps"] <= 3


@pytest.mark.slow
def test_derivatives_go_through_the_other_basis():
    X, y, share, *_ = instance(1, 1e-2, True)
    direction = np.random.default_rng(2).normal(size=X.shape) * 1e-3

    def answers(X):
        problem = group_lasso.Problem(
            X, y, GROUPS, weights=WEIGHTS, sample_weight=share, intercept=True
        )
        largest = group_lasso.lam_max(problem)
        value = group_lasso.solve(problem, 0.2, tol=1e-13).value
        return jnp.append(value.predict(X[:5]), largest)

    slope = jax.jvp(answers, (jnp.asarray(X),), (jnp.asarray(direction),))[1]
    h = 1e-3
    ahead, behind = answers(jnp.asarray(X + h * direction)), answers(jnp.asarray(X - h * direction))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=1e-4, atol=1e-6)


def test_a_path_meets_its_tolerance_beside_nearly_dependent_free_columns():
    X, y, *_ = instance(3, 1e-3, False)
    path = group_lasso.path(X, y, GROUPS, weights=WEIGHTS, num_lams=10).check()
    assert np.all(path.stats["error"] <= 1e-6 * path.stats["scale"])
    one = group_lasso.solve(X, y, GROUPS, path.stats["lam"][5], weights=WEIGHTS).check()
    np.testing.assert_allclose(one.value.coef[~FREE], path.value.coef[5][~FREE], atol=1e-2)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_twins_and_columns_of_zeros_have_the_coefficients_of_least_norm(dtype):
    X, y, *_ = instance(4, 1.0, False)
    X[:, 1], X[:, 2], X[:, 3], X[:, 4] = X[:, 0], 3 * X[:, 0], 0, X[:, 5] + X[:, 6]
    X, y = X.astype(dtype), y.astype(dtype)
    problem = group_lasso.Problem(X, y, GROUPS, weights=WEIGHTS.astype(dtype))
    found = group_lasso.solve(problem, dtype(0.2)).check()
    coef = np.float64(found.value.coef)
    accuracy = 1e-3 if dtype == np.float64 else 3e-2  # of a point, whose objective is at tolerance
    rest = np.float64(y) - np.float64(X[:, ~FREE]) @ coef[~FREE]
    columns = np.float64(X[:, FREE])
    units = np.maximum(np.linalg.norm(columns, axis=0), 1e-9)
    least = np.linalg.lstsq(columns / units, rest, rcond=1e-6)[0]
    np.testing.assert_allclose(coef[FREE] * units, least, atol=accuracy * np.abs(least).max())
    np.testing.assert_allclose(coef[1], coef[0], atol=accuracy)
    np.testing.assert_allclose(3 * coef[2], coef[0], atol=accuracy)
    assert abs(coef[3]) <= 1e-12
    assert group_lasso.solve(problem, dtype(0.2), state=found).stats["num_steps"] <= 3


def test_a_column_in_small_units_is_not_taken_for_a_dependent_one():
    """float32: units of 1e-7 beside 1, and beside twins."""
    X, y, *_ = instance(5, 1.0, False)
    weights = np.float32(WEIGHTS)
    X[:, 1] = X[:, 0]
    first = group_lasso.lam_max(np.float32(X), np.float32(y), GROUPS, weights=weights)
    X[:, 2] *= 1e-7
    again = group_lasso.lam_max(np.float32(X), np.float32(y), GROUPS, weights=weights)
    np.testing.assert_allclose(again, first, rtol=1e-4)


def test_constant_columns_beside_an_intercept_get_nothing():
    X, y, share, *_ = instance(6, 1.0, True)
    X[:, 0], X[:, 1], X[:, 2] = 0.1, 1 / 3, 0
    found = group_lasso.solve(
        X, y, GROUPS, 0.2, weights=WEIGHTS, sample_weight=share, intercept=True
    ).check()
    assert np.abs(found.value.coef[:3]).max() <= 1e-12
