"""The compiled working-set rounds: the loop that they spare most problems, the certificate that
they end with, what happens beyond their capacity.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxsac import Groups, Status, group_lasso
from jaxsac.group_lasso.methods.limits import Limits
from jaxsac.group_lasso.methods.loop import programs, rounds as compiled_working_set

N = 500
ROUNDS = compiled_working_set._ROUNDS


def small_problems(loss, dtype, monkeypatch):
    """500 instances in one batch, by rounds although they are tiny; their numpy originals; the
    solutions.
    """
    monkeypatch.setattr(compiled_working_set, "_WORTHWHILE", 1)
    jax.clear_caches()  # which may hold these shapes without rounds
    groups = Groups.from_sizes(zoo.SIZES)
    stacked = zoo.stack(
        [zoo.instance(seed, loss, zero_weight=loss != "logistic") for seed in range(N)]
    )
    arrays = zoo.Instance(*(jnp.asarray(a, dtype) for a in stacked))
    exact = zoo.Instance(*(np.asarray(a, np.float64) for a in arrays))
    pick = [zoo.Instance(*(a[k] for a in exact)) for k in range(N)]
    lams = jnp.asarray([at.ratio * zoo.lam_max(loss, at, has_intercept=True) for at in pick], dtype)

    def one(at, lam):
        problem = group_lasso.Problem(
            at.X, at.y, groups, loss, at.weights, at.sample_weight, at.offset, True
        ).at(lam)
        return programs.solve(problem, Limits.of(None, 5000, dtype), None)

    return pick, lams, jax.jit(jax.vmap(one))(arrays, lams)


@pytest.mark.parametrize(
    "loss",
    [
        "squared",
        *(pytest.param(loss, marks=pytest.mark.slow) for loss in ("logistic", "huber", "poisson")),
    ],
)
@pytest.mark.parametrize(
    "dtype",
    [jnp.float64, pytest.param(jnp.float32, marks=pytest.mark.slow)],
    ids=["float64", "float32"],
)
def test_no_false_convergence(loss, dtype, monkeypatch):
    pick, lams, found = small_problems(loss, dtype, monkeypatch)
    status = np.asarray(found.status)
    worst = 0.0
    for k in np.flatnonzero(status == Status.CONVERGED):
        coef, intercept = (
            np.asarray(found.value.coef[k], np.float64),
            float(found.value.intercept[k]),
        )
        gap, scale = zoo.gap(loss, pick[k], float(lams[k]), coef, intercept, has_intercept=True)
        worst = max(worst, gap / scale)
    assert worst <= (1e-4 if dtype == jnp.float32 else 1e-6), worst
    assert np.mean(status == Status.CONVERGED) >= (0.99 if dtype == jnp.float64 else 0.9), (
        np.unique(status, return_counts=True)
    )
    # The rounds, not the loop after them, solve most problems; Huber's curvature is 0 on outliers,
    # and its model may step too far.
    assert np.mean(np.asarray(found.stats["num_steps"]) <= ROUNDS) >= (
        0.7 if loss == "huber" else 0.95
    )


@functools.cache
def wide_problem():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 1000))
    return (
        jnp.asarray(X),
        jnp.asarray(X[:, :40] @ rng.normal(size=40) + rng.normal(size=40)),
        Groups.equal(250, 4),
    )


@pytest.mark.slow
def test_lanes_and_the_traced_form_agree():
    X, y, groups = wide_problem()
    largest = group_lasso.lam_max(X, y, groups)
    ratios = jnp.asarray([1.001, 0.5, 0.1])
    solve = jax.jit(lambda lam: group_lasso.solve(X, y, groups, lam, tol=1e-7))
    lanes = jax.vmap(solve)(ratios * largest).check()
    assert (
        lanes.stats["num_steps"][0] == 0
        and not np.any(lanes.value.coef[0])
        and np.all(lanes.stats["num_steps"] <= ROUNDS)
    )
    for k, ratio in enumerate(ratios):
        alone = solve(ratio * largest).check()
        np.testing.assert_allclose(
            alone.stats["objective"], lanes.stats["objective"][k], atol=2e-7 * alone.stats["scale"]
        )


@pytest.mark.slow
def test_the_objective_has_the_derivative_of_its_penalty():
    """The envelope theorem: where the coefficients are at their best, only lam's own factor moves
    the objective.
    """
    X, y, groups = wide_problem()
    lam = 0.5 * group_lasso.lam_max(X, y, groups)

    def objective(lam):
        solution = group_lasso.solve(X, y, groups, lam, tol=1e-9)
        return solution.stats["objective"], solution.value.coef

    slope, coef = jax.grad(objective, has_aux=True)(lam)
    np.testing.assert_allclose(
        slope, np.linalg.norm(np.asarray(coef).reshape(250, 4), axis=1).sum(), rtol=1e-5
    )


@pytest.mark.slow
def test_beyond_the_capacity_of_newton_steps(monkeypatch):
    X, y, groups = wide_problem()
    lam = 0.02 * group_lasso.lam_max(X, y, groups)
    narrow = group_lasso.solve(X, y, groups, lam, tol=1e-8).check()
    monkeypatch.setattr(compiled_working_set, "_GATHERED", 5 * 4 * 40)  # five groups' columns
    assert narrow.stats["num_active"] > 5
    problem = group_lasso.Problem(X, y, groups, "squared", None, None, None, False).at(lam)
    beyond = jax.jit(
        lambda problem: programs.solve.__wrapped__(problem, Limits.of(1e-8, 20_000, X.dtype), None)
    )(problem).check()
    np.testing.assert_allclose(
        beyond.stats["objective"], narrow.stats["objective"], atol=2e-8 * narrow.stats["scale"]
    )


@pytest.mark.slow
def test_bad_data_and_limits():
    X, y, groups = wide_problem()
    lam = 0.1 * group_lasso.lam_max(X, y, groups)
    assert group_lasso.solve(X.at[3, 2].set(jnp.nan), y, groups, lam).status == Status.NONFINITE
    assert group_lasso.solve(X, y, groups, lam, max_steps=1).status == Status.MAX_STEPS
    start = group_lasso.solve(X, y, groups, lam, tol=1e-8).check()
    assert group_lasso.solve(X, y, groups, lam, tol=1e-8, state=start.state).stats["num_steps"] == 0
    stalled = group_lasso.solve(X, y, groups, lam, tol=1e-18)
    assert stalled.status == Status.STALLED and stalled.stats["gap"] < 1e-9 * stalled.stats["scale"]
