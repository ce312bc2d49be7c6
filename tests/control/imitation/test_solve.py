"""The imitation fit against the same objective enumerated over all sets and minimised by scipy, and
against the group lasso solver.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxsac
from jaxsac import control, designs, group_lasso, losses
from jaxsac.control.data.sample_weight import sample_weight
from jaxsac.control.imitation import forward_backward, solve
from jaxsac.problems.tool_logs import sparse_tool_log

T, M, Q, B = 60, 7, 2, 3
LAM, SMOOTHING = 0.06, 0.7
KEY = jax.random.key(0)
SETS = [members for r in range(B + 1) for members in itertools.combinations(range(M), r)]
INCLUDES = np.zeros((len(SETS), M))
for row, members in enumerate(SETS):
    INCLUDES[row, list(members)] = 1


def small_log(offered: bool) -> control.Log:
    random = np.random.default_rng(3)
    contexts = random.normal(size=(T, Q))
    contexts[5] = 0  # a context of zeros
    available = random.uniform(size=(T, M)) < (0.75 if offered else 2)
    available[:, 6] &= np.arange(T) % 2 == 0
    weights = np.zeros((M, Q))
    weights[:2] = 2 * random.normal(size=(2, Q))
    intercept = random.normal(size=M) - 0.5
    intercept[6] = -30  # never used
    actions = np.full((T, B + 1), -1, np.int32)
    for t in range(T):
        scores = np.where(available[t], contexts[t] @ weights.T + intercept, -1e9)
        law = np.exp(INCLUDES @ scores)
        chosen = SETS[random.choice(len(SETS), p=law / law.sum())]
        actions[t, : len(chosen)] = chosen
    actions[4, : B + 1] = [0, 0, -1, 0]  # repetitions: the set {0}
    available[4, 0] = True
    return control.Log(
        contexts, actions, random.normal(size=T), None, available if offered else None
    )


def enumerated(log: control.Log, record_weight, mode):
    """The objective as a function of the weights and free intercepts in one vector; the norm
    smoothed by 1e-9.
    """
    chosen = np.zeros((T, M))
    for t in range(T):
        chosen[t, log.actions[t][log.actions[t] >= 0]] = 1
    available = np.ones((T, M), bool) if log.available is None else log.available
    prior = min(max((record_weight * chosen.sum(1)).mean(), 0.5), B - 0.5) / M

    def unpack(x):
        free = x[M * Q :]
        intercept = (
            free
            if mode == "per_tool"
            else (jnp.broadcast_to(free, (M,)) if mode == "shared" else jnp.zeros(M))
        )
        return x[: M * Q].reshape(M, Q), intercept

    def objective(x, smooth=1e-18):
        weights, intercept = unpack(x)
        scores = log.contexts @ weights.T + intercept[None, :]
        partition = jax.scipy.special.logsumexp(
            jnp.where(available, scores, -1e3) @ INCLUDES.T, axis=1
        )
        value = jnp.mean(record_weight * (partition - jnp.sum(chosen * scores, axis=1)))
        if mode != "none":
            value = value + SMOOTHING / T * jnp.sum(jax.nn.softplus(intercept) - prior * intercept)
        return value + LAM * jnp.sum(jnp.sqrt(jnp.sum(weights**2, axis=1) + smooth))

    return objective


@pytest.mark.parametrize(
    ("mode", "offered"),
    [
        pytest.param(*case, marks=() if case == ("shared", False) else pytest.mark.slow)
        for case in itertools.product(("shared", "per_tool", "none"), (False, True))
    ],
)
def test_against_enumeration(mode, offered):
    log = small_log(offered)
    for kind in ["imitation", "weighted"] if mode == "per_tool" else ["weighted"]:
        sol = control.fit(
            KEY,
            log,
            num_actions=M,
            budget=B,
            objective=kind,
            lam=LAM,
            intercept=mode,
            smoothing=SMOOTHING,
            tol=1e-9,
        ).check()
        weight = np.ones(T) if kind == "imitation" else sample_weight(log, "advantage", None, 10.0)
        objective = enumerated(log, weight, mode)
        weights = np.zeros((M, Q))
        weights[np.asarray(sol.value.support)] = sol.value.coef
        free = {
            "per_tool": np.asarray(sol.value.intercept),
            "shared": np.asarray(sol.value.intercept)[:1],
            "none": np.zeros(0),
        }[mode]
        at = np.concatenate([weights.ravel(), free])
        assert abs(float(objective(at, 0.0)) - float(sol.stats["objective"])) < 1e-12
        step = jax.jit(jax.value_and_grad(objective))
        options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-16, "gtol": 1e-9}
        start = np.concatenate([weights.ravel() + 1e-4, free + 0.1])
        best = scipy.optimize.minimize(
            lambda x, step=step: [np.asarray(v, float) for v in step(x)],
            start,
            jac=True,
            method="L-BFGS-B",
            options=options,
        )
        assert float(objective(at)) <= best.fun + 1e-8
        # The certificate holds at every point of the way, not only at the end.
        for steps in (0, 1, 3):
            early = control.fit(
                KEY,
                log,
                num_actions=M,
                budget=B,
                objective=kind,
                lam=LAM,
                intercept=mode,
                smoothing=SMOOTHING,
                max_steps=steps,
            )
            assert (
                float(early.stats["objective"] - early.stats["gap"])
                <= float(sol.stats["objective"]) + 1e-12
            )


@pytest.mark.slow
def test_against_the_group_lasso_solver():
    """The literal model of the paper, without intercepts, through FISTA on the dense T x M
    outputs.
    """
    tools, budget = 12, 3
    shape = {"num_records": 150, "num_features": 3, "num_relevant": 3, "mean_size": 1.5}
    log = sparse_tool_log(jax.random.key(2), num_actions=tools, budget=budget, **shape)
    lam = 0.05
    dense = group_lasso.solve(
        designs.MultiOutput(log.contexts, tools),
        log.actions,
        jaxsac.Groups.equal(num_groups=tools, size=3),
        lam,
        loss=losses.BudgetedGibbs(budget),
        tol=1e-8,
    ).check()
    made = control.Log(log.contexts, log.actions)
    sol = control.fit(
        KEY, made, num_actions=tools, budget=budget, lam=lam, intercept="none", tol=1e-8
    ).check()
    assert abs(float(dense.stats["objective"] - sol.stats["objective"])) < 1e-7
    weights = np.zeros((tools, 3))
    weights[np.asarray(sol.value.support)] = sol.value.coef
    np.testing.assert_allclose(weights, np.asarray(dense.value.coef).reshape(tools, 3), atol=1e-3)


SHAPE = dict(num_records=1500, num_features=4, num_relevant=5, mean_size=2.0, budget=5)


def fit_million(num_actions, dtype="float64", **options):
    log = sparse_tool_log(jax.random.key(1), num_actions=num_actions, **SHAPE)
    made = control.Log(log.contexts.astype(dtype), log.actions, log.utilities)
    return log, made, control.fit(KEY, made, num_actions=num_actions, budget=5, **options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_recovers_the_support_among_a_million_tools(dtype):
    log, made, sol = fit_million(1_000_000, dtype)
    sol.check()
    assert sol.value.coef.dtype == dtype
    np.testing.assert_array_equal(sol.value.support, log.support)
    assert float(sol.stats["gap"]) <= (1e-6 if dtype == "float64" else 1e-4) * float(
        sol.stats["scale"]
    )
    # Shrinkage costs length, not direction; the refit gives most of it back.
    refit = control.fit(
        KEY, made, num_actions=1_000_000, budget=5, lam=sol.stats["lam"], refit=True, state=sol
    ).check()
    error = np.linalg.norm(np.asarray(sol.value.coef) - log.weights)
    assert np.linalg.norm(np.asarray(refit.value.coef) - log.weights) < 0.7 * error
    assert int(refit.stats["num_steps"]) <= 3  # the warm start is already there
    above = control.fit(
        KEY, made, num_actions=1_000_000, budget=5, lam=1.001 * float(sol.stats["lam_max"])
    ).check()
    assert above.value.support.shape == (0,)
    below = control.fit(
        KEY, made, num_actions=1_000_000, budget=5, lam=0.98 * float(sol.stats["lam_max"])
    ).check()
    assert below.value.support.size > 0
    exact = control.lam_max(made, num_actions=1_000_000, budget=5)
    np.testing.assert_allclose(exact, sol.stats["lam_max"], rtol=1e-6)


def test_statuses():
    _, made, sol = fit_million(500, lam=0.05, max_steps=1)
    assert jaxsac.Status(int(sol.status)) is jaxsac.Status.MAX_STEPS
    impossible = control.fit(KEY, made, num_actions=500, budget=5, lam=0.05, tol=1e-17)
    assert jaxsac.Status(int(impossible.status)) is jaxsac.Status.STALLED
    assert float(impossible.stats["gap"]) < 1e-9


def test_scaling_a_record_weight_is_repeating_the_record():
    """Utilities of two levels: weights 2 : 1 fit the log in which the first half is written
    twice.
    """
    log = small_log(False)
    half = np.arange(T) < T // 2
    utilities = np.where(half, 2.0, 1.0)
    weighted = log._replace(utilities=utilities, propensities=np.ones(T))
    sol = control.fit(
        KEY,
        weighted,
        num_actions=M,
        budget=B,
        objective="weighted",
        weighting="propensity",
        lam=LAM,
        tol=1e-9,
    ).check()
    twice = np.concatenate([np.arange(T), np.flatnonzero(half)])
    repeated = control.Log(log.contexts[twice], log.actions[twice])
    same = control.fit(
        KEY, repeated, num_actions=M, budget=B, lam=LAM, smoothing=1.5, tol=1e-9
    ).check()
    np.testing.assert_allclose(sol.stats["objective"], same.stats["objective"], rtol=1e-7)
    assert float(sol.stats["effective_sample_size"]) == pytest.approx(90**2 / 150)


@pytest.mark.parametrize(
    "mode",
    ["per_tool", *(pytest.param(name, marks=pytest.mark.slow) for name in ("shared", "none"))],
)
def test_products_alone_find_what_curvature_matrices_do(mode, monkeypatch):
    """Contexts of a large mean and of unequal directions, families across the working set."""
    random = np.random.default_rng(1)
    log = small_log(False)
    contexts = log.contexts @ random.normal(size=(Q, 5)) * np.array([3, 1, 0.3, 0.1, 1]) + 2
    given = {"num_actions": M, "budget": B, "intercept": mode, "lam": LAM, "tol": 1e-8}
    given |= {"families": np.array([0, 0, 1, 1, -1, 2, 2]), "family_share": 0.4}
    log = log._replace(contexts=contexts)
    expected = control.fit(KEY, log, **given).check()
    monkeypatch.setattr(solve, "_MATRICES", 0)
    found = control.fit(KEY, log, **given).check()
    np.testing.assert_allclose(found.stats["objective"], expected.stats["objective"], rtol=3e-8)
    np.testing.assert_array_equal(found.value.support, expected.value.support)
    np.testing.assert_allclose(found.value.coef, expected.value.coef, atol=1e-3)


def test_largest_curvatures_of_records_of_one_word():
    """Whose sum is one: a vector of ones is orthogonal to all of them, centred."""
    random = np.random.default_rng(2)
    contexts = np.eye(5)[random.integers(0, 5, 80)]
    contexts -= contexts.mean(0)
    marginals, weights = random.uniform(size=(3, 80)) ** 4, random.uniform(size=80)
    floor = np.array([0.0, 0.1, 0.2])
    largest, total = forward_backward.curvatures(contexts, marginals, weights, floor)
    spread = np.maximum(marginals * (1 - marginals), floor[:, None]) * weights
    expected = [np.linalg.eigvalsh((contexts.T * one) @ contexts)[-1] for one in spread]
    np.testing.assert_allclose(largest, expected, rtol=0.05)
    np.testing.assert_allclose(total, spread.sum(1), rtol=1e-12)


def test_equal_columns_and_relabelled_tools():
    log = small_log(False)
    doubled = log._replace(contexts=np.repeat(log.contexts, 2, axis=1))  # equal columns
    sol = control.fit(KEY, doubled, num_actions=M, budget=B, lam=LAM, tol=1e-9).check()
    np.testing.assert_allclose(sol.value.coef[:, ::2], sol.value.coef[:, 1::2], atol=1e-4)
    order = np.random.default_rng(0).permutation(M)
    actions = np.where(doubled.actions >= 0, order[doubled.actions], -1)
    other = control.fit(
        KEY, doubled._replace(actions=actions), num_actions=M, budget=B, lam=LAM, tol=1e-9
    ).check()
    np.testing.assert_allclose(other.stats["objective"], sol.stats["objective"], rtol=1e-8)
    np.testing.assert_array_equal(
        np.sort(order[np.asarray(sol.value.support)]), other.value.support
    )
