"""Cross-validation against scikit-learn, and what its inputs must be."""

import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from sklearn.linear_model import LassoCV

from jaxsac import Groups, group_lasso
from jaxsac.group_lasso.choice import cross_validation as tuning

AT = zoo.instance(3, "squared")
X, Y = jnp.asarray(AT.X), jnp.asarray(AT.y)
FOLDS = np.random.default_rng(0).permutation(np.arange(zoo.NUM_SAMPLES) % 5)
PROBLEM = group_lasso.Problem(X, Y, Groups.from_sizes(zoo.SIZES), intercept=True)
LAMS = np.asarray([1.0, 0.5, 0.2, 0.1, 0.05])


@pytest.mark.slow
def test_cross_validation_of_single_columns_is_that_of_the_lasso():
    ours = group_lasso.cross_validate(
        group_lasso.Problem(X, Y, Groups.equal(zoo.NUM_COLUMNS, 1), intercept=True),
        FOLDS,
        lams=LAMS,
        tol=1e-10,
    )
    splits = [(np.flatnonzero(fold != FOLDS), np.flatnonzero(fold == FOLDS)) for fold in range(5)]
    theirs = LassoCV(alphas=LAMS, cv=splits, tol=1e-12, max_iter=1_000_000).fit(AT.X, AT.y)
    assert np.all(np.asarray(ours.status) == 0)
    np.testing.assert_allclose(
        2 * ours.fold_error.T, theirs.mse_path_, rtol=1e-5
    )  # ours is half the squared error
    np.testing.assert_allclose(ours.best, theirs.alpha_)
    np.testing.assert_allclose(ours.error, np.mean(ours.fold_error, axis=0))
    spread = np.std(ours.fold_error, axis=0, ddof=1) / np.sqrt(5)
    within = ours.error <= np.min(ours.error) + spread[np.argmin(ours.error)]
    assert ours.best_within_error == LAMS[within].max() >= ours.best


@pytest.mark.slow
def test_weights_of_records_are_weights_of_errors():
    twice = np.append(np.arange(zoo.NUM_SAMPLES), np.arange(5))
    weight = jnp.asarray(np.bincount(twice).astype(float))
    groups = Groups.from_sizes(zoo.SIZES)
    repeated = group_lasso.Problem(X[twice], Y[twice], groups, intercept=True)
    repeated = group_lasso.cross_validate(repeated, FOLDS[twice], lams=LAMS, tol=1e-10)
    # The mean over records divides by T: 30 records of total weight 35 ask for lam 35 / 30 times as
    # large.
    weighted = group_lasso.Problem(X, Y, groups, sample_weight=weight, intercept=True)
    weighted = group_lasso.cross_validate(weighted, FOLDS, lams=LAMS * (35 / 30), tol=1e-10)
    np.testing.assert_allclose(weighted.fold_error, repeated.fold_error, rtol=1e-5)


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(folds=FOLDS[1:]), r"folds must have shape \[30\]"),
        (dict(folds=0.5 * FOLDS), "folds must hold integers"),
        (dict(folds=0 * FOLDS), "every label"),
        (dict(folds=2 * FOLDS), "every label"),
        (dict(lams=-LAMS), "lams must be ≥ 0"),
        (dict(lams=LAMS[:0]), "at least one value"),
    ],
)
def test_mistakes_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        group_lasso.cross_validate(PROBLEM, **(dict(folds=FOLDS, lams=LAMS) | changed))


def test_folds_as_a_batch_and_one_after_another_agree(monkeypatch):
    batch = group_lasso.cross_validate(PROBLEM, FOLDS, lams=LAMS, tol=1e-10)
    monkeypatch.setattr(tuning, "apart", lambda problem: True)
    apart = group_lasso.cross_validate(PROBLEM, FOLDS, lams=LAMS, tol=1e-10)
    assert np.all(np.asarray(batch.status) == 0) and np.all(np.asarray(apart.status) == 0)
    np.testing.assert_allclose(batch.fold_error, apart.fold_error, rtol=1e-6)
    assert batch.best == apart.best
