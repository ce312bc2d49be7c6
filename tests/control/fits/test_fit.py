"""The main function: what it takes, refuses and returns; degenerate logs."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxsac import Status, control
from jaxsac.problems.tool_logs import sparse_tool_log
from jaxsac.solution import Reason

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


TASK = control.Task(LOG, M, B)


@pytest.mark.slow
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


def test_a_task_says_what_the_words_say():
    words = {"num_actions": M, "budget": B, "objective": "weighted", "smoothing": 0.5}
    task = control.Task(LOG, **words)
    one, other = (control.fit(KEY, t, lam=0.05, **w) for t, w in ((LOG, words), (task, {})))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert control.lam_max(LOG, **words) == control.lam_max(task) == one.stats["lam_max"]
    assert one.value.meaning == ("weighted", "per_tool")
    with pytest.raises(ValueError, match="budget: the Task"):
        control.fit(KEY, task, budget=B)
    with pytest.raises(ValueError, match="pass num_actions"):
        control.fit(KEY, LOG, budget=B)


def test_stats_and_states():
    solution = control.fit(KEY, TASK, lam=0.03, tol=1e-8).check()
    stats = solution.stats
    assert stats["error"] == stats["gap"] and stats["reason"] == Reason.NONE
    assert stats["error"] + stats["rounding"] <= 1e-8 * stats["scale"]
    assert stats["effective_sample_size"] == T and stats["lam"] == pytest.approx(0.03)
    again = control.fit(KEY, TASK, lam=0.03, tol=1e-6, state=solution)
    assert again.stats["num_steps"] == 0
    np.testing.assert_array_equal(again.value.support, solution.value.support)
    stalled = control.fit(KEY, TASK, lam=0.03, tol=0.0, state=solution.state)
    assert stalled.status == Status.STALLED and stalled.stats["reason"] == Reason.PRECISION
    short = control.fit(KEY, TASK, lam=0.03, max_steps=1)
    assert short.status == Status.MAX_STEPS and short.stats["num_steps"] == 1
    wrong = control.FitState(np.zeros(0, int), np.zeros((0, Q)), np.zeros(M + 1))
    with pytest.raises(ValueError, match="state belongs to another problem"):
        control.fit(KEY, TASK, lam=0.03, state=wrong)


def test_unused_tools_enter_where_the_penalty_lets_them():
    """Without intercepts a tool without a use has a gradient: all are listed one by one, and the
    answer is that of a log that offers every tool to every record.
    """
    few = control.Log(LOG.contexts[:12], LOG.actions[:12])
    words = {"num_actions": M, "budget": B, "intercept": "none"}
    found = control.fit(KEY, few, lam=0.01, tol=1e-9, **words).check()
    assert not np.isin(found.value.support, few.actions).all()
    everything = few._replace(available=np.ones((12, M), bool))
    offered = control.fit(KEY, everything, lam=0.01, tol=1e-9, **words).check()
    assert_allclose(found.stats["objective"], offered.stats["objective"], rtol=1e-8)
    np.testing.assert_array_equal(found.value.support, offered.value.support)


@pytest.mark.parametrize(
    "options", [{"lam": 0.0}, {"lam": np.nan}, {"lam": "guess"}, {"tol": -1.0}]
)
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        control.fit(KEY, TASK, **options)
