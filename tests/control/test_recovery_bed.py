"""The reduced simulations of the experiments against the full ones that they stand for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsac
from benchmarks.cases import (
    control_belief as belief,
    control_estimation as estimation,
    control_recovery as experiment,
)
from jaxsac import group_lasso
from jaxsac.problems import control_pomdp, control_recovery


@pytest.mark.slow
def test_drawn_gradients_have_the_law_of_computed_ones():
    """P(exact support) by the witness with drawn gradients, and by solving on all columns, near the
    transition.
    """
    k, q, m, samples, seeds = 3, 2, 40, 48, 400
    lam = experiment.theory_lam(float(m), float(samples), q)

    def full(key):
        problem = control_recovery.gaussian_regression(key, samples, m, q, k, experiment.NOISE)
        groups = jaxsac.Groups.equal(num_groups=m, size=q)
        coef = group_lasso.solve(problem.X, problem.y, groups, lam, tol=1e-6).value.coef.reshape(
            m, q
        )
        return jnp.all(jnp.any(coef != 0, axis=1) == (jnp.arange(m) < k))

    reduced = partial(
        experiment.exact_recovery, num_actions=float(m), samples=float(samples), k=k, q=q, most=m
    )
    rates = [
        float(np.mean(jaxsac.run_trials(trial, jax.random.key(0), seeds)))
        for trial in (full, reduced)
    ]
    assert 0.15 < rates[0] < 0.9
    assert abs(rates[0] - rates[1]) < 4 * np.sqrt(0.5 / seeds)


def test_midpoint_of_a_known_curve():
    x = np.geomspace(1, 30, 14)
    truth = 1 / (1 + np.exp(-5 * (np.log(x) - np.log(7.0))))
    found, error = experiment.midpoint(x, np.random.default_rng(0).binomial(100, truth) / 100, 100)
    assert abs(found - 7) < 4 * error and error < 0.5
    assert np.isfinite(experiment.midpoint(x, (x > 7).astype(float), 100)).all()  # a perfect step


@pytest.mark.slow
def test_beliefs_are_exact_and_errors_are_as_large_as_said():
    problem = control_pomdp.repair_problem(3)
    np.testing.assert_allclose(problem.transition.sum(2), 1)
    np.testing.assert_allclose(problem.observation.sum(1), 1)

    def act(key, seen):
        return jax.random.categorical(key, 3 * jnp.matmul(problem.reward, seen))

    episodes = jax.jit(
        jax.vmap(lambda key: control_pomdp.rollout(key, problem, act, jnp.asarray(0.2), 30))
    )(jax.random.split(jax.random.key(0), 3000))
    beliefs = np.asarray(episodes.beliefs)
    gaps = np.abs(beliefs - np.asarray(episodes.seen)).sum(2)
    assert gaps.max() <= 0.2 + 1e-12 and gaps.mean() > 0.1
    # calibrated: among steps with a belief near p in a fault whose tool was used, the tool works
    # with probability p
    used = np.asarray(episodes.tools)
    chosen = used < 3
    probability = np.take_along_axis(beliefs, np.minimum(used, 2)[..., None], axis=2)[..., 0][
        chosen
    ]
    worked = np.asarray(episodes.rewards)[chosen] == 1
    for low in (0.3, 0.5, 0.7, 0.9):
        near = (probability >= low) & (probability < low + 0.1)
        assert abs(worked[near].mean() - probability[near].mean()) < 5 * np.sqrt(0.25 / near.sum())


def test_random_actions_are_uniform_sets():
    sets = np.asarray(control_recovery.random_actions(jax.random.key(0), 6000, 5, 2))
    codes, counts = np.unique(np.sort(sets, axis=1) @ [5, 1], return_counts=True)
    assert codes.size == 10 and abs(counts - 600).max() < 5 * np.sqrt(600)


@pytest.mark.slow
def test_the_claim_fails_on_uniformly_random_budgeted_actions():
    """The paper's k log M does not hold where a record informs its B tools alone: at T = 8 k log M
    no lam recovers the support.
    """
    lams = jnp.asarray(np.geomspace(0.1, 10, 9))
    size, k = 512, 4
    most = int(4 * size / 5 * np.log(size))
    rates = [
        experiment.recovered_share(
            jax.random.key(0),
            lams,
            jnp.asarray(records),
            most=most,
            num_actions=size,
            budget=5,
            k=k,
            seeds=20,
        )
        for records in (float(int(8 * k * np.log(size))), float(most))
    ]
    assert float(rates[0]) <= 0.1 and float(rates[1]) > 0.9


@pytest.mark.slow
def test_the_belief_bound_holds_but_is_far_from_linear_losses():
    """The additive bound is true; it is tens of times too large, and the loss grows faster than the
    error at first.
    """
    errors = jnp.asarray([0.0, 0.05, 0.4])
    values = np.asarray(belief.expert_values(jax.random.key(0), errors, seeds=40, episodes=100))
    loss = (values[:1] - values)[1:]
    mean, spread = loss.mean(1), loss.std(1, ddof=1) / np.sqrt(loss.shape[1])
    bound = np.array(
        [
            float(control_pomdp.error_bound(control_pomdp.repair_problem(belief.STATES), error))
            for error in errors[1:]
        ]
    )
    assert (mean - 4 * spread < bound).all() and (bound > 20 * (mean + 4 * spread)).all()
    per_error = mean / np.asarray(errors[1:])
    assert per_error[1] - per_error[0] > 4 * np.sqrt((spread / np.asarray(errors[1:])) ** 2).sum()


@pytest.mark.slow
def test_near_duplicates_take_the_support_and_leave_the_value():
    runs = [
        estimation.duplicates(
            jax.random.key(0), jnp.asarray(cosine), samples=60, num_actions=24, k=3, seeds=25
        )
        for cosine in (0.0, 0.99)
    ]
    exact, value = (np.stack(column) for column in zip(*runs, strict=True))
    assert exact[0].mean() > 0.9 and exact[1].mean() < 0.5
    error = value.std(1, ddof=1) / 5
    assert value[1].mean() > value[0].mean() - 4 * error.sum() and value[1].mean() > 0.9
