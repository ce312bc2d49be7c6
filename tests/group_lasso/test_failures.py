"""What fails says so, and numbers of unusual sizes do not fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import Groups, Status, group_lasso
from jaxsac.prox import Penalty

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6))
Y = X[:, 0] + RNG.normal(size=40)
GROUPS = Groups.equal(3, 2)


def test_a_lane_that_is_nonfinite_holds_nan_and_so_do_its_derivatives():
    bad = jnp.asarray(Y).at[0].set(jnp.nan)

    def total(lam):
        return jnp.sum(group_lasso.solve(X, bad, GROUPS, lam).value.coef ** 2)

    solution = group_lasso.solve(X, bad, GROUPS, 0.1)
    assert int(solution.status) == Status.NONFINITE
    assert np.isnan(solution.value.coef).all() and np.isnan(solution.value.intercept)
    for slope in (jax.grad(total), jax.grad(jax.grad(total)), jax.jit(jax.grad(total))):
        assert np.isnan(slope(0.1))
    problem = group_lasso.Problem(X, bad, GROUPS)
    assert np.isnan(group_lasso.degrees_of_freedom(problem, solution))


def test_large_counts_do_not_overflow():
    X, y = np.array([[1.0], [2.0]]), np.array([400.0, 9000.0])
    solution = group_lasso.solve(X, y, Groups.equal(1, 1), 1.0, loss="poisson").check()
    b = float(solution.value.coef[0])
    pull = X[:, 0] @ (y - np.exp(X[:, 0] * b)) / 2
    assert abs(pull - 1.0) < 1e-2 * y.max()
    np.testing.assert_allclose(b, 4.5608, rtol=1e-4)


@pytest.mark.parametrize("dtype, mean", [(np.float32, 2000.0), (np.float64, 1e6)])
def test_a_constant_in_the_columns_does_not_matter_beside_an_intercept(dtype, mean):
    far = (X + mean).astype(dtype)
    y = Y.astype(dtype)
    ours = group_lasso.solve(far, y, GROUPS, 0.1, intercept=True).check()
    near = far - far.mean(axis=0, dtype=np.float64)
    right = group_lasso.solve(near, Y, GROUPS, 0.1, intercept=True, tol=1e-12)
    tol = 1e-2 if dtype == np.float32 else 1e-5
    np.testing.assert_allclose(ours.value.coef, right.value.coef, atol=tol)


def test_an_infinite_weight_or_lam_is_a_group_of_zeros():
    ours = group_lasso.solve(X, Y, GROUPS, 0.1, weights=[1, np.inf, 1], tol=1e-12).check()
    few = group_lasso.solve(X[:, [0, 1, 4, 5]], Y, Groups.equal(2, 2), 0.1, tol=1e-12)
    np.testing.assert_allclose(ours.value.coef[jnp.array([0, 1, 4, 5])], few.value.coef, atol=1e-6)
    assert not ours.value.coef[2:4].any()
    assert not group_lasso.solve(X, Y, GROUPS, np.inf).check().value.coef.any()


@pytest.mark.slow
def test_an_empty_group_changes_neither_ebic_nor_the_stability_bound():
    one, other = (
        group_lasso.Problem(X, Y, Groups.from_labels(np.repeat(np.arange(3), 2) + shift))
        for shift in (0, 1)
    )
    scores = [group_lasso.ebic(each, num_lams=5).score for each in (one, other)]
    np.testing.assert_allclose(*scores, rtol=1e-12)
    key = jax.random.key(0)
    found = [group_lasso.stability_selection(key, each, 0.2, num_pairs=5) for each in (one, other)]
    np.testing.assert_allclose(found[0].bound, found[1].bound, rtol=1e-12)


def test_nothing_is_chosen_among_fits_that_did_not_converge():
    problem = group_lasso.Problem(X, Y, GROUPS)
    folds = np.arange(40) % 4
    found = group_lasso.cross_validate(problem, folds, num_lams=4, max_steps=1, tol=0.0)
    assert np.isnan(found.best) and np.isnan(found.best_within_error)
    assert np.isnan(group_lasso.ebic(problem, num_lams=4, max_steps=1, tol=0.0).best)


@pytest.mark.slow
def test_columns_of_unlike_units_are_certified():
    rng = np.random.default_rng(1)
    scales = 10.0 ** np.linspace(-4, 4, 12)
    X = rng.standard_normal((200, 12)) * scales
    y = X @ (1 / scales) + rng.standard_normal(200)
    groups = Groups.equal(12, 1)
    problem = group_lasso.Problem(X, y, groups, weights=scales, intercept=True)
    group_lasso.path(problem, num_lams=5, min_ratio=1e-3).check()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: group_lasso.solve(X, Y, GROUPS, "cv"), "lam must hold real numbers"),
        (lambda: group_lasso.solve(X, Y, GROUPS, np.nan), "lam must be ≥ 0"),
        (lambda: group_lasso.solve(X, Y, GROUPS, 0.1, intercept="no"), "intercept must be True"),
        (lambda: group_lasso.path(X, Y, GROUPS, min_ratio=2.0), "min_ratio must be ≤ 1"),
        (lambda: group_lasso.solve(X, Y, GROUPS, 0.1, state=3), "state must be"),
        (
            lambda: group_lasso.solve(
                X, Y, GROUPS, 0.1, weights=[0, 1, 1], penalty=Penalty(nonnegative=True)
            ),
            "weights must be > 0 beside penalty.nonnegative",
        ),
    ],
)
def test_wrong_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_counts_of_many_magnitudes_without_an_intercept_end_converged():
    """Rounds, whose model of the loss is far off at zero, and the loop stall each alone."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(200, 5000)) * rng.uniform(0.2, 2, 5000)
    y = rng.poisson(np.exp(np.clip(X[:, :2] @ [2.5, 1.5], -30, 25)))
    problem = group_lasso.Problem(X, y.astype(float), Groups.equal(1000, 5), "poisson")
    lam = 0.1 * group_lasso.lam_max(problem)
    solution = group_lasso.solve(problem, lam).check()
    rate = np.exp(X @ np.asarray(solution.value.coef))
    pull = np.linalg.norm((X.T @ (y - rate) / 200).reshape(1000, 5), axis=1)
    active = np.linalg.norm(np.asarray(solution.value.coef).reshape(1000, 5), axis=1) > 0
    np.testing.assert_allclose(pull[active], lam, rtol=1e-4)
    assert pull.max() <= lam * (1 + 1e-4)
