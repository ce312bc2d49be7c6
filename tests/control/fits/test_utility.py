"""The utility objective against plain least squares, and its own choice of lam."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxsac
from jaxsac import control, group_lasso
from jaxsac.problems.tool_logs import sparse_tool_log

KEY = jax.random.key(0)
T, M, Q, B = 120, 9, 2, 3
TRUTH = sparse_tool_log(
    jax.random.key(5),
    num_records=T,
    num_actions=M,
    num_features=Q,
    budget=B,
    num_relevant=2,
    mean_size=1.5,
    relevant_share=0.7,
)
LOG = control.Log(TRUTH.contexts, TRUTH.actions, TRUTH.utilities)


def test_utility_is_the_group_lasso_on_the_chosen_sets():
    chosen = np.stack([(LOG.actions == j).any(1) for j in range(M)], axis=1)
    dense = (chosen[:, :, None] * LOG.contexts[:, None, :]).reshape(T, M * Q)
    groups = jaxsac.Groups.equal(num_groups=M, size=Q)
    options = dict(num_actions=M, budget=B, objective="utility")
    lam = 0.3 * float(control.lam_max(LOG, **options))
    pulls = np.linalg.norm(
        ((LOG.utilities - LOG.utilities.mean()) @ dense / T).reshape(M, Q), axis=1
    )
    assert_allclose(lam / 0.3, pulls.max(), rtol=1e-8)
    sol = control.fit(KEY, LOG, lam=lam, tol=1e-10, **options).check()
    expected = group_lasso.solve(
        dense, LOG.utilities, groups, lam, intercept=True, tol=1e-10
    ).check()
    weights = np.zeros((M, Q))
    weights[np.asarray(sol.value.support)] = sol.value.coef
    assert_allclose(weights.ravel(), expected.value.coef, atol=1e-5)
    assert_allclose(sol.stats["constant"], expected.value.intercept, atol=1e-5)
    again = control.fit(KEY, LOG, lam=lam, tol=1e-10, state=sol, refit=True, **options).check()
    columns = np.flatnonzero(np.repeat(np.isin(np.arange(M), sol.value.support), Q))
    centred = dense[:, columns] - dense[:, columns].mean(0)
    ridge = np.linalg.solve(
        centred.T @ centred / T + np.eye(columns.size) / T,
        centred.T @ (LOG.utilities - LOG.utilities.mean()) / T,
    )
    assert_allclose(np.asarray(again.value.coef).ravel(), ridge, atol=1e-4)


@pytest.mark.slow
def test_scaled_lam_knows_the_noise_not_the_signal():
    fit = {"num_actions": M, "budget": B, "objective": "utility"}
    found = control.fit(KEY, LOG, lam="scaled", **fit).check()
    # a fixed point: the residuals' standard deviation times the quantile for unit noise
    unit = (
        float(
            control.fit(
                KEY, LOG._replace(utilities=1e6 * LOG.utilities), lam="scaled", **fit
            ).stats["lam"]
        )
        / 1e6
    )
    assert_allclose(found.stats["lam"], unit, rtol=1e-2)  # in the utility's units
    assert float(found.stats["lam"]) < 0.9 * float(
        control.simulated_lam(KEY, control.Task(LOG, **fit))
    )
    with pytest.raises(ValueError, match="scaled"):
        control.fit(KEY, LOG, num_actions=M, budget=B, lam="scaled")
