"""Robust fits: errors under contamination against clean ones, the fixed point of scale and fit,
medians of means.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsac
from jaxsac import control, group_lasso, losses

T, M, K, SIGMA = 200, 40, 4, 0.5
GROUPS = jaxsac.Groups.equal(num_groups=M, size=1)
LAM = SIGMA * float(np.sqrt(2 * np.log(M) / T))


def regression(key, share):
    """A share of the records is wrong by 10 sigma, always against <x, b>."""
    design, noise, bad = jax.random.split(key, 3)
    X = jax.random.normal(design, (T, M))
    coef = jnp.where(jnp.arange(M) < K, 1.0, 0.0)
    wild = jnp.where(
        jax.random.uniform(bad, (T,)) < share, -10 * SIGMA * jnp.sign(jnp.matmul(X, coef)), 0
    )
    return X, jnp.matmul(X, coef) + SIGMA * jax.random.normal(noise, (T,)) + wild, coef


@pytest.mark.slow
def test_contamination_barely_moves_the_robust_fit():
    def trial(key):
        errors = []
        for share in (0.0, 0.1):
            X, y, coef = regression(key, share)
            for solution in (
                control.robust.robust_regression(group_lasso.Problem(X, y, GROUPS), LAM),
                group_lasso.solve(X, y, GROUPS, LAM),
            ):
                errors.append(jnp.linalg.norm(solution.value.coef - coef))
        return jnp.stack(errors)

    clean, plain_clean, robust, plain = np.asarray(
        jaxsac.run_trials(trial, jax.random.key(0), 20)
    ).mean(0)
    assert clean < 1.1 * plain_clean and robust < 1.5 * clean
    assert plain > 3 * plain_clean and plain > 2.5 * robust


@pytest.mark.slow
def test_the_answer_is_a_certified_huber_fit_at_its_own_scale():
    X, y, coef = regression(jax.random.key(1), 0.1)
    found = jax.jit(
        lambda X, y: control.robust.robust_regression(
            group_lasso.Problem(X, y, GROUPS), LAM, num_rounds=12, num_reweights=0, tol=1e-8
        )
    )(X, y).check()
    residual = np.asarray(y - X @ found.value.coef)
    scale = 1.4826 * np.median(np.abs(residual - np.median(residual)))
    np.testing.assert_allclose(found.stats["noise"], scale, rtol=1e-3)
    assert float(found.stats["scale_change"]) < 1e-3
    direct = group_lasso.solve(
        X, y, GROUPS, LAM, loss=losses.Huber(float(found.stats["delta"])), tol=1e-8
    )
    np.testing.assert_allclose(found.value.coef, direct.value.coef, atol=1e-4)
    # The second stage is the group lasso of the records that the first one keeps, and finds every
    # wild one.
    second = control.robust.robust_regression(
        group_lasso.Problem(X, y, GROUPS), LAM, num_rounds=12, num_reweights=1, tol=1e-8
    ).check()
    kept = np.abs(residual) <= 3 * scale
    plain = group_lasso.solve(X[kept], y[kept], GROUPS, LAM, tol=1e-8)
    np.testing.assert_allclose(second.value.coef, plain.value.coef, atol=1e-3)
    assert np.asarray(second.stats["outlier"])[np.asarray(jnp.abs(y - X @ coef)) > 8 * SIGMA].all()


@pytest.mark.slow
def test_robust_fit_of_a_log_flags_the_wild_records():
    random = np.random.default_rng(0)
    records, tools = 400, 12
    contexts = random.normal(size=(records, 2))
    actions = np.array([random.choice(tools, 3, replace=False) for _ in range(records)])
    gain = np.zeros((tools, 2))
    gain[:3] = [[1, 0], [0, 1], [1, 1]]
    utilities = (
        2 + np.einsum("tq,twq->t", contexts, gain[actions]) + 0.2 * random.normal(size=records)
    )
    wild = random.uniform(size=records) < 0.1
    utilities[wild] += 20.0
    found = control.robust.fit_robust(
        jax.random.key(0),
        control.Task(control.Log(contexts, actions, utilities), tools, 3, "utility"),
    ).check()
    assert set(np.asarray(found.value.support).tolist()) >= {0, 1, 2}
    flagged = np.asarray(found.stats["outlier"])
    assert flagged[wild].all() and flagged[~wild].mean() < 0.02
    assert abs(float(found.stats["constant"]) - 2) < 0.2


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 1.0])
def test_leverage_weights_are_their_formula(quantile):
    contexts = np.random.default_rng(3).standard_cauchy(size=(60, 2))
    distance = np.linalg.norm(contexts - np.median(contexts, axis=0), axis=1)
    expected = np.minimum(1, np.quantile(distance, quantile) / distance)
    np.testing.assert_allclose(
        control.robust.leverage_weights(contexts, quantile), expected, rtol=1e-12
    )
    for wrong in (np.nan, np.inf):
        contexts[:30, 0] = wrong
        found = control.robust.leverage_weights(contexts, max(quantile, 0.6))
        assert np.isnan(found).all()
    with pytest.raises(ValueError, match="quantile must be ≤ 1"):
        control.robust.leverage_weights(contexts, 95.0)


@pytest.mark.parametrize("threshold", [np.nan, -1.0, 0.0])
def test_a_threshold_out_of_range_is_refused_or_not_converged(threshold):
    X = np.random.default_rng(0).normal(size=(30, 8))
    problem = group_lasso.Problem(X, X[:, 0], jaxsac.Groups.equal(4, 2))
    with pytest.raises(ValueError, match="threshold must be > 0"):
        control.robust.robust_regression(problem, 0.05, threshold=threshold)
    traced = jax.jit(
        lambda t: control.robust.robust_regression(
            problem, 0.05, threshold=t, num_rounds=1, num_reweights=1
        )
    )(threshold)
    assert int(traced.status) == jaxsac.Status.NONFINITE


def test_median_of_means_and_leverage():
    random = np.random.default_rng(0)
    rows = random.normal(size=(90, 3))
    rows[:4] = 1e6  # in 4 of 10 blocks at most
    assert np.abs(control.robust.median_of_means(rows, 10)).max() < 1.5
    np.testing.assert_allclose(
        control.robust.median_of_means(rows[4:], 1), rows[4:].mean(0), rtol=1e-6
    )
    weights = np.asarray(
        control.robust.leverage_weights(np.concatenate([random.normal(size=(99, 2)), [[100.0, 0]]]))
    )
    assert weights.max() == 1 and weights[-1] < 0.05 and (weights == 1).mean() > 0.9
