"""The diagnosis against the same loss with every tool listed, differentiated twice; and what it
says of logs with known faults.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import control, gibbs
from jaxsac.control.data.digest import digest
from jaxsac.control.imitation.working import evaluate_point, point_from, working_set
from jaxsac.control.trust import log_curvature
from jaxsac.control.trust.duplicates import near_duplicates
from jaxsac.problems.tool_logs import sparse_tool_log

KEY = jax.random.key(0)
T, M, Q, B = 300, 9, 2, 3
TRUTH = sparse_tool_log(
    KEY, num_records=T, num_actions=M, num_features=Q, budget=B, num_relevant=2, mean_size=1.5
)
LOG = control.Log(TRUTH.contexts, TRUTH.actions, TRUTH.utilities)


def profiled(log, policy, mode):
    """The Hessian in all weights [M, Q, M, Q], intercepts eliminated, of the loss with every tool
    listed, by jax.hessian; and the gradient.
    """
    actions = np.asarray(log.actions)
    chosen = np.zeros((T, M))
    chosen[
        np.repeat(np.arange(T), actions.shape[1])[actions.ravel() >= 0], actions[actions >= 0]
    ] = 1
    prior = chosen.sum(1).mean() / M
    available = jnp.ones((T, M), bool) if log.available is None else jnp.asarray(log.available)

    def loss(weights, free):
        intercept = jnp.broadcast_to(free, (M,))
        scores = jnp.matmul(log.contexts, weights.reshape(M, Q).T) + intercept[None, :]
        masked = jnp.where(available, scores, -jnp.inf)
        value = jnp.mean(
            jax.vmap(lambda z: gibbs.log_partition(z, B))(masked) - jnp.sum(chosen * scores, axis=1)
        )
        return (
            value
            if mode == "none"
            else value + jnp.sum(jax.nn.softplus(intercept) - prior * intercept) / T
        )

    weights = np.zeros((M, Q))
    weights[np.asarray(policy.support)] = policy.coef
    free = np.asarray(policy.intercept) if mode == "per_tool" else np.asarray(policy.intercept)[:1]
    at = jnp.asarray(weights.ravel()), jnp.asarray(free)
    (a, b), (c, d) = jax.jit(jax.hessian(loss, argnums=(0, 1)))(*at)
    hessian = a if mode == "none" else a - b @ np.linalg.solve(d, c)
    return np.asarray(hessian).reshape(M, Q, M, Q), np.asarray(jax.grad(loss)(*at)).reshape(M, Q)


SLOW = [("per_tool", True), ("shared", False), ("none", False)]


@pytest.mark.parametrize(
    ("mode", "offered"),
    [("per_tool", False), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_curvature_and_margin_against_the_whole_hessian(mode, offered):
    available = np.random.default_rng(0).uniform(size=(T, M)) < 0.8
    available[np.arange(T)[:, None], np.where(LOG.actions >= 0, LOG.actions, 0)] = True
    log = LOG._replace(available=available if offered else None)
    task = control.Task(log, M, B, intercept=mode)
    solution = control.fit(KEY, task, lam=0.05, tol=1e-10)
    policy, support = solution.value, np.asarray(solution.value.support)
    dense, gradient = profiled(log, policy, mode)
    data = digest(task)
    point = point_from(data, *solution.state)
    point, _ = evaluate_point(data, working_set(data, point.tools), point)
    found = log_curvature.likelihood_curvature(KEY, data, point)
    size = support.size
    np.testing.assert_allclose(
        found.hessian[:size, :, :size],
        dense[np.ix_(support, range(Q), support, range(Q))],
        atol=1e-9,
    )
    outside = np.setdiff1d(np.arange(M), support)
    rates = np.linalg.norm(
        dense[np.ix_(outside, range(Q), support, range(Q))].reshape(outside.size, -1), axis=1
    )
    listed = np.linalg.norm(
        found.hessian[size:, :, :size].reshape(len(found.hessian) - size, -1), axis=1
    )
    np.testing.assert_allclose([listed.max(), listed.min()], [rates.max(), rates.min()], atol=1e-9)
    whole = control.conditions.irrepresentability(
        dense, np.isin(np.arange(M), support), weights_of(policy)
    )
    diagnosis = control.diagnose(task, solution, truth=support)
    np.testing.assert_allclose(
        (diagnosis.irrepresentability, diagnosis.irrepresentability_norm), whole, rtol=1e-6
    )
    norms = np.linalg.norm(gradient, axis=1)
    np.testing.assert_allclose(diagnosis.norms, norms, atol=1e-9)
    assert diagnosis.witness_margin == pytest.approx(1 - norms[outside].max() / 0.05, abs=1e-6)
    assert diagnosis.oracle_margin == pytest.approx(
        diagnosis.witness_margin, abs=1e-4
    )  # the fit is the witness at its own support
    if (mode, offered) not in SLOW:
        return
    exact = control.conditions.restricted_curvature(dense, np.isin(np.arange(M), support))
    assert (
        diagnosis.curvature_lower <= float(exact.upper) + 1e-12
        and diagnosis.curvature_upper >= float(exact.lower) - 1e-12
    )
    # by conjugate gradients, as for large problems
    limit, log_curvature._LARGEST = log_curvature._LARGEST, 1
    try:
        assert log_curvature.likelihood_curvature(KEY, data, point).signed == pytest.approx(
            float(whole.signed), rel=1e-3
        )
    finally:
        log_curvature._LARGEST = limit


def weights_of(policy):
    weights = np.zeros((M, Q))
    weights[np.asarray(policy.support)] = policy.coef
    return weights


@pytest.mark.slow
def test_utility_diagnosis_against_least_squares():
    task = control.Task(LOG, M, B, "utility")
    solution = control.fit(KEY, task, lam=0.1, tol=1e-12)
    support = np.asarray(solution.value.support)
    design = np.zeros((T, M, Q))
    for t, j in itertools.product(range(T), range(M)):
        design[t, j] = LOG.contexts[t] * (j in LOG.actions[t])
    design = design.reshape(T, -1)
    design = design - design.mean(0)
    residual = LOG.utilities - LOG.utilities.mean() - design @ weights_of(solution.value).ravel()
    norms = np.linalg.norm((design.T @ residual / T).reshape(M, Q), axis=1)
    diagnosis = control.diagnose(task, solution, truth=support)
    np.testing.assert_allclose(diagnosis.norms, norms, atol=1e-9)
    whole = control.conditions.irrepresentability(
        (design.T @ design / T).reshape(M, Q, M, Q),
        np.isin(np.arange(M), support),
        weights_of(solution.value),
    )
    np.testing.assert_allclose(
        (diagnosis.irrepresentability, diagnosis.irrepresentability_norm), whole, rtol=1e-8
    )
    assert diagnosis.oracle_margin == pytest.approx(diagnosis.witness_margin, abs=1e-4)
    assert "uniqueness" not in diagnosis.report() and "nothing about the truth" in str(diagnosis)


def test_what_a_diagnosis_refuses_and_degenerate_logs():
    task = control.Task(LOG, M, B)
    solution = control.fit(KEY, task, lam=0.05)
    with pytest.raises(ValueError, match="pruned"):
        control.diagnose(task, solution.value.pruned())
    narrow = control.Task(LOG._replace(contexts=LOG.contexts[:, :1]), M, B)
    with pytest.raises(ValueError, match="features"):
        control.diagnose(narrow, solution)
    for other in ({"objective": "utility"}, {"intercept": "shared"}):
        with pytest.raises(ValueError, match="'imitation' with intercept='per_tool'"):
            control.diagnose(control.Task(LOG, M, B, **other), solution)
    empty = control.fit(KEY, task, lam=5.0)
    found = control.diagnose(task, empty)
    assert found.support.size == 0 and 0 < found.witness_margin < 1 and "0 of 9 tools" in str(found)
    assert np.isnan(found.noise) and found.stability is None  # nothing is drawn without a key
    refitted = control.fit(KEY, task, lam=0.05, refit=True)
    found = control.diagnose(task, refitted)
    assert np.isnan(found.witness_margin) and "refitted" in str(found)
    # the lam of a policy alone is that of its gradient norms
    assert control.diagnose(task, solution.value).lam == pytest.approx(0.05, rel=1e-2)
    assert control.diagnose(task, solution).lam == 0.05


def test_near_duplicates_are_found_and_others_are_not():
    """A tool whose uses are shared out between two names; two tools that are always used together;
    independent ones.
    """
    random = np.random.default_rng(0)
    records = 2000
    contexts = random.normal(size=(records, 5))
    actions = np.full((records, 4), -1)
    wanted = contexts[:, 0] > 0.5
    actions[wanted, 0] = np.where(random.uniform(size=wanted.sum()) < 0.5, 0, 1)  # substitutes
    pair = random.uniform(size=records) < 0.1
    actions[pair, 1], actions[pair, 2] = 2, 3  # used together
    actions[:, 3] = np.where(
        random.uniform(size=records) < 0.5, random.integers(4, 40, records), -1
    )
    task = control.Task(control.Log(contexts, actions), 40, 4)
    found = near_duplicates(digest(task), 0.9)
    assert [pair[:2] for pair in found.alike] == [(0, 1)]
    assert [pair[:2] for pair in found.together] == [(2, 3)]
    assert found.families == [(0, 1), (2, 3)]


@pytest.mark.slow
def test_failure_signatures():
    """A good log warns of nothing; contexts that say nothing stall; substitutes make the support
    oscillate.
    """
    shape = dict(
        num_records=2000, num_actions=30, num_features=4, budget=4, num_relevant=5, mean_size=2.0
    )
    truth = sparse_tool_log(KEY, **shape)
    log = control.Log(truth.contexts, truth.actions)
    task = control.Task(log, 30, 4)
    fitted = control.fit(KEY, task)
    good = control.diagnose(task, fitted, key=KEY, truth=truth.support)
    assert good.signatures == () and good.oracle_margin > 0 and good.stability.overlap > 0.9
    np.testing.assert_array_equal(good.support, truth.support)
    figure = pytest.importorskip("matplotlib.figure").Figure()
    assert good.plot(figure.subplots()).get_xlabel() == "records that use the tool"
    # pure noise: the margin at the fitted support is positive all the same
    noise = log._replace(contexts=np.random.default_rng(0).normal(size=log.contexts.shape))
    wrong = control.Task(noise, 30, 4)
    low = control.fit(KEY, wrong, lam=0.45 * float(fitted.stats["lam"]))
    bad = control.diagnose(wrong, low, key=KEY)
    assert bad.support.size > 0 and bad.witness_margin > 0
    text = " ".join(bad.signatures)
    assert "below the noise" in text and "stalls" in text and "oscillates" in text
