"""The fit of θ, channels and intercepts together: against enumeration, against other points, and
what becomes of tools without records and of channels that say nothing.
"""

import itertools
from typing import Any

import jax
import numpy as np
import pytest
import scipy.optimize

from jaxsac import Status, control
from jaxsac.control.imitation import joint, joint_solve

T, M, Q, C, B = 60, 6, 2, 2, 2
LAM = 0.03
RIDGES: Any = {"ridge": 0.01, "weight_ridge": 0.02, "intercept_ridge": 0.005}
RANDOM = np.random.default_rng(0)
CONTEXTS, VALUES = RANDOM.normal(size=(T, Q)), RANDOM.normal(size=(C, T, M))
FOLD, LEARNT = np.arange(T) % 3, np.array([0, 1])


def drawn(scores, sizes, random):
    """Sets of the given sizes of the M − 1 first tools: the best by scores with Gumbel noise."""
    noisy = scores[:, : M - 1] + random.gumbel(size=(len(scores), M - 1))
    return np.where(np.arange(B) < sizes[:, None], np.argsort(-noisy, axis=1)[:, :B], -1)


ACTIONS = drawn(CONTEXTS @ np.array([[2.0, 0, 0, 0, 0, 0], [0.0] * M]) + VALUES[0], FOLD, RANDOM)
# Tool 4 is known to one fold alone.
ACTIONS = np.where((ACTIONS == 4) & (FOLD != 1)[:, None], -1, ACTIONS).astype(np.int32)
CHOSEN = (ACTIONS[:, :, None] == np.arange(M)).any(1)


def task_of(**more):
    return control.Task(control.Log(CONTEXTS, ACTIONS, None), M, B, **more)


CHANNELS = control.Channels(VALUES, learnt=LEARNT, fold=FOLD, cold_weight=0.3)


def enumerated(x, families=None, share=0.0):
    """The objective by a list of all sets, from the formula."""
    used = M - 1
    coef, weights = x[: used * Q].reshape(used, Q), x[used * Q : used * Q + C]
    intercept, offset = x[used * Q + C : -1], x[-1]
    scores = CONTEXTS @ coef.T + np.tensordot(weights, VALUES, 1)[:, :used] + intercept
    others = [{f: CHOSEN[f != FOLD].any(0)} for f in range(3)]
    known = np.stack([others[f][f] for f in FOLD])
    cold = weights[0] * VALUES[0] + offset
    beside = np.where(known, np.pad(scores, ((0, 0), (0, 1))), cold)

    def row(z, chosen):
        sets = [a for r in range(B + 1) for a in itertools.combinations(range(z.shape[1]), r)]
        totals = np.stack([z[:, list(a)].sum(1) for a in sets])
        top = totals.max(0)
        return np.mean(top + np.log(np.exp(totals - top).sum(0)) - (z * chosen).sum(1))

    likelihood = (row(scores, CHOSEN[:, :used]) + 0.3 * row(beside, CHOSEN)) / 1.3
    squares, centre = (coef**2).sum(1), np.log(CHOSEN.sum() / T / used)
    norms = (1 - share) * np.sqrt(squares).sum()
    if families is not None:
        norms += share * np.sqrt(np.bincount(families, squares)).sum()
    away = np.sum((intercept - centre) ** 2) + (offset - centre) ** 2
    ridges = RIDGES["ridge"] * squares.sum() + RIDGES["weight_ridge"] * np.sum(weights**2)
    return likelihood + LAM * norms + (ridges + RIDGES["intercept_ridge"] * away) / 2


def vector(policy):
    coef = np.zeros((M, Q))
    coef[np.asarray(policy.positions)] = policy.coef
    return np.concatenate([coef[:-1].ravel(), policy.weights, policy.intercept])


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_gap_holds_against_enumeration(share):
    families = np.array([0, 0, 1, 1, 2, 2])
    more = {"families": families, "family_share": share} if share else {}
    solution = control.fit_joint(task_of(**more), CHANNELS, lam=LAM, **RIDGES, tol=1e-8).check()
    given = families[:-1] if share else None, share

    def value(x):
        return enumerated(x, *given)

    x, objective = vector(solution.value), float(solution.stats["objective"])
    np.testing.assert_allclose(value(x), objective, rtol=1e-12)
    # an optimiser that knows nothing of all this ends no lower than the gap allows
    found = scipy.optimize.minimize(value, x + 0.01, method="Powell", options={"maxiter": 30})
    gap = float(solution.stats["gap"])
    assert found.fun >= objective - gap and found.fun - objective < 1e-3
    assert gap <= 1e-8 * float(solution.stats["scale"])
    assert 0 < len(solution.value.support) < M - 1  # some tools say nothing beyond the channels
    assert list(solution.value.cold) == [0] * (M - 1) + [1]


def test_warm_starts_loose_fits_and_the_penalty_that_keeps_nothing():
    solution = control.fit_joint(task_of(), CHANNELS, lam=LAM, **RIDGES)
    again = control.fit_joint(task_of(), CHANNELS, lam=LAM, **RIDGES, state=solution)
    assert int(again.stats["num_steps"]) == 0 and int(again.status) == Status.CONVERGED
    loose = control.fit_joint(task_of(), CHANNELS, lam=LAM, **RIDGES, tol=1e-14, max_steps=1)
    assert int(loose.status) == Status.MAX_STEPS
    for point in (loose, solution):  # a bound is a bound: lower than any value reached
        bound = float(point.stats["objective"] - point.stats["gap"])
        assert bound <= float(solution.stats["objective"])
    none = control.fit_joint(task_of(), CHANNELS, lam=10.0, **RIDGES).check()
    assert none.value.support.size == 0


def test_a_gap_that_rises_at_first_is_no_stall(monkeypatch):
    """From a solution at a larger lam the objective falls at once, the gap not."""
    more: Any = {"weight_ridge": 1e-4, "intercept_ridge": 1e-4, "tol": 1e-3}
    first = control.fit_joint(task_of(), CHANNELS, lam=0.1, **more).check()
    monkeypatch.setattr(joint_solve, "_PATIENCE", 1)
    control.fit_joint(task_of(), CHANNELS, lam=0.01, **more, state=first).check()


def test_scores_are_those_of_the_fit():
    policy = control.fit_joint(task_of(), CHANNELS, lam=LAM, **RIDGES).value
    values = VALUES[:, 3]
    coef = np.zeros((M, Q))
    coef[np.asarray(policy.positions)] = policy.coef
    expected = coef @ CONTEXTS[3] + np.asarray(policy.weights) @ values
    expected += np.asarray(policy.intercept)
    expected[-1] = policy.weights[0] * values[0, -1] + policy.intercept[-1]  # cold
    found = jax.jit(policy.scores)(CONTEXTS[3], values)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    many = jax.vmap(policy.scores)(CONTEXTS, np.swapaxes(VALUES, 0, 1))
    np.testing.assert_allclose(many[3], expected, rtol=1e-12)


def test_one_tool_a_record_is_a_multinomial_model():
    """`exactly` at a budget of 1: the likelihood of softmax, and it converges."""
    actions = drawn(VALUES[0], np.ones(T, int), np.random.default_rng(1))[:, :1].astype(np.int32)
    task = control.Task(control.Log(CONTEXTS, actions, None), M, 1)
    channels = control.Channels(VALUES)
    solution = control.fit_joint(task, channels, lam=0.1, exactly=True).check()
    policy = solution.value
    scores = jax.vmap(policy.scores)(CONTEXTS, np.swapaxes(VALUES, 0, 1))[:, : M - 1]
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(scores)), actions, 1)
    centre = np.log(1 / (M - 1))
    away = np.sum((np.asarray(policy.intercept)[: M - 1] - centre) ** 2)
    ridges = 1e-4 * (np.sum(np.asarray(policy.weights) ** 2) + away) / 2
    norms = np.linalg.norm(policy.coef, axis=1).sum()
    expected = -chosen.mean() + 0.1 * norms + ridges
    np.testing.assert_allclose(float(solution.stats["objective"]), expected, rtol=1e-9)
    with pytest.raises(ValueError, match="exactly 2 tools"):
        control.fit_joint(task_of(), CHANNELS, lam=LAM, exactly=True)


def test_channels_that_say_nothing_get_no_weight():
    """On a log of noise the weight of a neighbours' channel, out of fold, is within its error; of
    one in which every record finds itself it is not.
    """
    random = np.random.default_rng(3)
    actions = drawn(np.zeros((T, M)), np.full(T, 2), random).astype(np.int32)
    chosen = (actions[:, :, None] == np.arange(M)).any(1).astype(float)
    near = CONTEXTS @ CONTEXTS.T
    apart = np.where(FOLD[:, None] == FOLD[None, :], -np.inf, near)

    def weight(similarity):
        best = np.argsort(-similarity, axis=1)[:, :3]
        values = chosen[best].sum(1)[None]
        task = control.Task(control.Log(CONTEXTS, actions, None), M, B)
        fit = control.fit_joint(task, control.Channels(values, learnt=[1]), lam=1.0).check()
        return float(fit.value.weights[0]), values

    found, values = weight(apart)
    # information of the weight, at frequencies of 2 in 5: its standard error without the ridge
    error = 1 / np.sqrt(0.24 * ((values - values.mean(2, keepdims=True)) ** 2).sum())
    assert abs(found) < 4 * error
    assert weight(np.where(np.eye(T) > 0, 100.0, near))[0] > 8 * error


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_offered_tools_alone_count(dtype):
    """Tools that no record is offered do not enter its sets."""
    offered = np.random.default_rng(2).uniform(size=(T, M)) < 0.6
    offered |= CHOSEN
    log = control.Log(CONTEXTS.astype(dtype), ACTIONS, None, available=offered)
    channels = control.Channels(VALUES.astype(dtype))
    solution = control.fit_joint(control.Task(log, M, B), channels, lam=LAM).check()
    assert solution.value.coef.dtype == dtype
    policy = solution.value
    scores = jax.vmap(policy.scores)(log.contexts, np.swapaxes(channels.values, 0, 1))
    assert np.isfinite(scores).all()
    free = control.fit_joint(
        control.Task(log._replace(available=None), M, B), channels, lam=LAM
    ).check()
    assert float(solution.stats["objective"]) < float(free.stats["objective"])


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_the_dual_value_is_that_of_the_best_share(ridge):
    """Against the formula on a grid of shares; without a ridge those that lam lets pass alone."""
    gradient = joint.Point(
        np.array([[0.3, 0.4], [0.0, 0.05]]), np.array([0.2]), np.array([0.1, -0.3]), np.array(0.02)
    )
    found: Any = joint.Evaluation(np.array(2.0), gradient, np.array(1.5), np.zeros(2))
    penalties = joint.Penalties(0.2, ridge, 0.02, 0.05, -2.0, np.arange(2), 0.0)
    s = np.linspace(0, 1 if ridge else 0.2 / 0.5, 20_001)
    squares = 0.2**2 / 0.02 + (0.1**2 + 0.3**2 + 0.02**2) / 0.05
    values = s * (1.5 + 2.0 * 0.18) - s**2 * squares / 2
    if ridge:
        values -= sum(np.maximum(s * norm - 0.2, 0) ** 2 for norm in (0.5, 0.05)) / (2 * ridge)
    assert np.argmax(values) > 0 and (ridge == 0 or 0.4 < s[np.argmax(values)] < 1)
    np.testing.assert_allclose(joint.dual_value(found, penalties), values.max(), atol=1e-6)
