"""Bad and degenerate logs, the multiplier simulation against its dense form, the utility objective
against plain least squares.
"""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxsac
from jaxsac import control, group_lasso
from jaxsac.control.fits import tuning
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


def with_entry(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


BAD = [
    (dict(contexts=np.zeros((0, Q)), actions=np.zeros((0, B), int), utilities=None), "empty"),
    (dict(contexts=with_entry(LOG.contexts, (7, 0), np.nan)), "contexts.*record 7"),
    (dict(utilities=with_entry(LOG.utilities, 3, np.inf)), "utilities.*record 3"),
    (dict(actions=with_entry(LOG.actions, (2, 0), M)), "num_actions"),
    (dict(actions=with_entry(LOG.actions, (2, 0), -2)), "actions"),
    (dict(actions=LOG.actions.astype(float)), "integers"),
    (dict(actions=LOG.actions[:-1]), "shape"),
    (dict(contexts=LOG.contexts[:, 0]), "contexts"),
    (dict(actions=np.tile(np.arange(4), (T, 1))), "120 of 120 records.*budget"),
    (dict(propensities=np.zeros(T)), "propensities"),
    (dict(propensities=np.full(T, 1.5)), "propensities"),
    (dict(available=np.zeros((T, M), bool)), "available"),
    (dict(available=np.ones((T, M - 1), bool)), "available"),
    (dict(available=np.full((T, 2), M)), "available"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_logs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        control.fit(KEY, LOG._replace(**change), num_actions=M, budget=B)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(lam=0.0), "lam"),
        (dict(lam="guess"), "lam"),
        (dict(objective="regret"), "objective"),
        (dict(intercept="own"), "intercept"),
        (dict(budget=0), "budget"),
        (dict(smoothing=0.0), "smoothing"),
        (dict(objective="utility", intercept="per_tool"), "intercept.*utility"),
        (dict(objective="weighted", weighting="propensity"), "propensities"),
        (dict(objective="weighted", weighting="rank"), "weighting"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        control.fit(KEY, LOG, **({"num_actions": M, "budget": B} | options))


def test_traced_logs_are_refused():
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(
            lambda contexts: control.fit(
                KEY, LOG._replace(contexts=contexts), num_actions=M, budget=B
            ).stats["gap"]
        )(LOG.contexts)


def test_degenerate_logs_have_answers():
    """No tool used at all; one tool used once; no context; a budget above every set and above M:
    certified, finite, and no support.
    """
    nobody = np.full((T, B), -1)
    for actions, contexts in [
        (nobody, LOG.contexts),
        (with_entry(nobody, (3, 0), 4), LOG.contexts),
        (LOG.actions, np.zeros_like(LOG.contexts)),
    ]:
        sol = control.fit(KEY, control.Log(contexts, actions), num_actions=M, budget=B).check()
        assert np.isfinite(sol.value.intercept).all()
        if not contexts.any():
            assert sol.value.support.size == 0
    wide = control.fit(KEY, LOG, num_actions=M, budget=50, lam=0.05, tol=1e-8).check()
    assert wide.value.budget == M
    odds = np.asarray(wide.value.intercept)  # B >= M: independent logistic regressions
    used = np.array([(LOG.actions == j).any(1).mean() for j in range(M)])
    free = np.setdiff1d(np.arange(M), wide.value.support)
    weight, prior = 1 / T, used.sum() / M / T
    assert_allclose((1 + weight) / (1 + np.exp(-odds[free])), used[free] + prior, rtol=1e-8)


def dense_scores(rates, weight):
    chosen = np.stack([(LOG.actions == j).any(1) for j in range(M)])
    return weight[None, :, None] * (chosen[:, :, None] - rates[:, None, None]) * LOG.contexts[None]


def test_simulated_lam_against_the_dense_scores():
    lam = float(control.simulated_lam(KEY, LOG, num_actions=M, budget=B, smoothing=1e-9))
    used = np.array([(LOG.actions == j).any(1).mean() for j in range(M)])
    scores = dense_scores(used, np.ones(T))
    centred = scores - scores.mean(1, keepdims=True)
    noise = np.asarray(jax.random.normal(KEY, (tuning.NUM_DRAWS, T), np.float32), np.float64)
    norms = np.linalg.norm(np.einsum("rt,jtq->rjq", noise, centred) / T, axis=2).max(1)
    assert_allclose(lam, 1.1 * np.quantile(norms, 0.95), rtol=1e-6)
    offered = control.simulated_lam(
        KEY, LOG._replace(available=np.ones((T, M), bool)), num_actions=M, budget=B, smoothing=1e-9
    )
    assert_allclose(offered, lam, rtol=1e-5)
    moments = [
        np.linalg.eigvalsh(p * (1 - p) * LOG.contexts.T @ LOG.contexts / T)[-1] for p in used
    ]
    theory = control.fit(
        KEY, LOG, num_actions=M, budget=B, lam="theory", smoothing=1e-9, max_steps=0
    ).stats["lam"]
    assert_allclose(
        theory, 2 * np.sqrt(max(moments)) * (np.sqrt(Q / T) + np.sqrt(2 * np.log(M) / T)), rtol=1e-6
    )


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
    weights[np.asarray(sol.value.support)] = sol.value.weights
    assert_allclose(weights.ravel(), expected.value.coef, atol=1e-5)
    assert_allclose(sol.stats["constant"], expected.value.intercept, atol=1e-5)
    again = control.fit(
        KEY, LOG, lam=lam, tol=1e-10, state=sol.state, refit=True, **options
    ).check()
    columns = np.flatnonzero(np.repeat(np.isin(np.arange(M), sol.value.support), Q))
    centred = dense[:, columns] - dense[:, columns].mean(0)
    ridge = np.linalg.solve(
        centred.T @ centred / T + np.eye(columns.size) / T,
        centred.T @ (LOG.utilities - LOG.utilities.mean()) / T,
    )
    assert_allclose(np.asarray(again.value.weights).ravel(), ridge, atol=1e-4)


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
    assert float(found.stats["lam"]) < 0.9 * float(control.simulated_lam(KEY, LOG, **fit))
    with pytest.raises(ValueError, match="scaled"):
        control.fit(KEY, LOG, num_actions=M, budget=B, lam="scaled")
