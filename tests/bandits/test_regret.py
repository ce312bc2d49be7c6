"""Regret against closed forms, the law of the draws, and when supports are locked: early, rightly,
and as the theory says.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bandits.batch import ALGORITHMS, BALL, BASIS, ELLIPSOID, MATRIX, THETA, D, S, lanes, many
from sklearn.linear_model import Lasso

from jaxsac import bandits

# An algorithm that believes in no noise locks after its first cycle. The wrong supports that this
# risks are few here.
CLEAR = np.array([0.9, -0.1, 0.7, 0.05])
FIRST_STEPS = np.cumsum([0] + [D + c for c in range(1, 30)])
QUICK = {
    "ball": bandits.apsee(BALL, sparsity=S, sigma=0.0, radius="hkz"),
    "ellipsoid": bandits.apsee_greedy(ELLIPSOID, sparsity=S, sigma=0.0, radius="hkz", basis=BASIS),
}


@pytest.mark.parametrize(
    "name, draws", [("ball", "all"), ("ellipsoid", "all"), ("ellipsoid", "support")]
)
def test_expected_regret_has_its_closed_form(name, draws):
    """One exploitation step of cycle c on the right support S costs sigma^2 tr(H Sigma_SS) / (2 c)
    to first order in 1/c, where H is the second derivative of f at theta_S and Sigma that of the
    exploration: (s - 1) sigma^2 / (2 c r ||theta_S||) on a ball of radius r.
    """
    kept = [0, 2]
    record = np.stack([FIRST_STEPS[4:20] + D, FIRST_STEPS[5:21]])
    sigma = 0.05
    run = many(
        QUICK[name],
        4000,
        theta=CLEAR,
        sigma=sigma,
        horizon=int(FIRST_STEPS[21]),
        times=record.ravel(),
        draws=draws,
    )
    right = np.all(run.support == kept, axis=1)
    assert np.mean(right) > 0.995 and np.all(run.lock_time == D)
    regret = run.regret[right].reshape(-1, 2, 16)
    cost, part = regret[:, 1] - regret[:, 0], CLEAR[kept]
    if name == "ball":
        expected = (S - 1) * sigma**2 / (2 * 1.5 * np.linalg.norm(part))
    else:
        inverse, basis = np.linalg.inv(MATRIX[np.ix_(kept, kept)]), np.asarray(BASIS)
        value = np.sqrt(part @ inverse @ part)
        second = (inverse - np.outer(inverse @ part, inverse @ part) / value**2) / value
        expected = (
            sigma**2 / 2 * np.trace(second @ np.linalg.inv(basis.T @ basis)[np.ix_(kept, kept)])
        )
    error, cycles = cost.std(0) / np.sqrt(len(cost)), np.arange(5, 21)
    assert np.all(np.abs(cost.mean(0) - expected) < 4 * error + expected * 0.3 / cycles)


def test_exploration_costs_what_its_arms_cost():
    never = lanes(ALGORITHMS["apsee"], horizon=D, sigma=0.0)
    np.testing.assert_allclose(
        never.regret[:, 0], 1.5 * np.sum(np.linalg.norm(THETA[[0, 2]]) - THETA), rtol=1e-12
    )


def test_drawing_only_the_locked_coordinates_is_equal_in_law():
    times = [200, 1000, 4000]
    every, few = (
        many(QUICK["ellipsoid"], 4000, horizon=4000, times=times, draws=draws)
        for draws in ("all", "support")
    )
    np.testing.assert_array_equal(every.lock_time, few.lock_time)
    a, b = (run.regret[:, 1:] - run.regret[:, :1] for run in (every, few))
    for moment in (lambda x: x, lambda x: (x - a.mean(0)) ** 2):
        first, second = moment(a), moment(b)
        error = np.sqrt(first.var(0) / len(first) + second.var(0) / len(second))
        assert np.all(np.abs(first.mean(0) - second.mean(0)) < 3 * error)


@pytest.mark.parametrize(
    "radius, sigma",
    [("hkz", 0.3), ("hkz", "auto"), pytest.param("coord", 0.3, marks=pytest.mark.slow)],
)
def test_wrong_locks_are_rare_and_locks_happen(radius, sigma):
    theta, delta = np.array([1.0, 0.9, 0.5, 0.3]), 0.05
    algorithm = bandits.apsee(BALL, sparsity=S, sigma=sigma, delta=delta, radius=radius)
    run = many(algorithm, 1000, theta=theta, sigma=0.3, horizon=4000)
    wrong = run.locked & np.any(run.support != [0, 1], axis=1)
    assert wrong.mean() <= delta + 3 * np.sqrt(delta / 1000)
    assert np.mean(run.locked) > 0.9
    if sigma == "auto":
        assert run.lock_time.min() > D  # one cycle says nothing about the noise
    else:
        proved = bandits.stopping_time(algorithm, jnp.asarray(theta))
        assert np.mean(run.lock_time <= proved) >= 1 - delta and proved < 4000


@pytest.mark.slow
def test_the_local_radius_locks_earlier_and_right():
    times, right = [], np.sort(bandits.greedy_support(ELLIPSOID, jnp.asarray(THETA), S).indices)
    for radius in ("hkz", "local"):
        algorithm = bandits.apsee_greedy(
            ELLIPSOID, sparsity=S, sigma=0.05, radius=radius, basis=BASIS
        )
        run = many(algorithm, 500, sigma=0.05, horizon=8000)
        assert np.mean(run.locked) > 0.9 and np.all(run.support[run.locked] == right)
        times.append(np.median(run.lock_time))
    assert times[1] < 0.6 * times[0]
    with pytest.raises(ValueError, match="hkz"):
        bandits.apsee_greedy(bandits.LpBall(1.5), sparsity=S, sigma=0.1, radius="local")


def test_the_stopping_time_is_the_first_cycle_that_suffices():
    theta, delta, sigma = jnp.asarray([1.0, 0.9, 0.5, 0.3]), 0.05, 0.3
    for algorithm, gap, norm in (
        (bandits.apsee(bandits.Ball(), sparsity=S, sigma=sigma, radius="hkz"), 0.4, 1.0),
        (bandits.apsee_greedy(bandits.Ball(2.0), sparsity=1, sigma=sigma, radius="hkz"), 0.2, 2.0),
    ):
        cycle = bandits.stopping_time(algorithm, theta) / D
        radius = lambda c: float(  # noqa: E731
            bandits.error_radius(c, jnp.eye(D) * norm, sigma=sigma, delta=delta, kind="hkz")  # noqa: B023
        )
        assert 4 * norm * radius(cycle) < gap <= 4 * norm * radius(cycle - 1)
    assert bandits.stopping_time(algorithm, jnp.zeros(D)) == np.inf


def committing(num_cycles, horizon, sigma):
    """The first-order regret on the unit ball, s = d: each cycle costs sum_i (||theta|| - theta_i),
    each step then (d - 1) sigma^2 / (2 c ||theta||).
    """
    size = np.linalg.norm(THETA)
    return num_cycles * np.sum(size - THETA) + (horizon - D * num_cycles) * (D - 1) * sigma**2 / (
        2 * num_cycles * size
    )


def test_e2tc_explores_as_long_as_the_size_of_the_parameter_asks():
    sigma, size = 0.5, np.linalg.norm(THETA)
    for horizon in (1000, 8000):
        algorithm = bandits.e2tc(bandits.Ball(), sparsity=D, sigma=sigma, horizon=horizon)
        run = many(algorithm, 500, horizon=horizon, sigma=sigma)
        cycles = sigma * np.sqrt(horizon / 2) / size
        assert abs(np.mean(run.lock_time) / D - cycles) < 0.1 * cycles
        error = np.std(run.regret) / np.sqrt(500)
        assert abs(
            np.mean(run.regret) - committing(np.ceil(cycles), horizon, sigma)
        ) < 4 * error + 0.05 * np.mean(run.regret)
        # No number of cycles, chosen in the knowledge of theta, is much better.
        assert np.mean(run.regret) < 1.15 * min(
            committing(np.arange(1.0, horizon / D), horizon, sigma)
        )
    # Without a parameter the noise stops it only after a share of the horizon that depends on d
    # alone.
    nothing = many(algorithm, 500, horizon=horizon, sigma=sigma, theta=np.zeros(D))
    assert np.min(nothing.lock_time[nothing.locked]) > 0.1 * horizon


def test_estc_commits_to_the_action_of_the_lasso():
    num_cycles, lam, rng = 20, 0.3, np.random.default_rng(0)
    algorithm = bandits.estc(BALL, sparsity=S, num_cycles=num_cycles, lam=lam, basis=BASIS)
    state, update = (
        algorithm.init(dimension=D, dtype=jnp.float64),
        jax.jit(lambda state, reward: algorithm.update(state, None, reward)),
    )
    rows, rewards = np.tile(BASIS, (num_cycles, 1)), []
    for row in rows:
        np.testing.assert_allclose(algorithm.act(state), row, rtol=1e-12)
        rewards.append(row @ THETA + 0.3 * rng.normal())
        state = update(state, rewards[-1])
    coefficients = Lasso(alpha=lam / 2, fit_intercept=False, tol=1e-12).fit(rows, rewards).coef_
    assert np.any(coefficients == 0) and np.sum(coefficients != 0) >= S
    best = np.argsort(-np.abs(coefficients))[:S]
    expected = np.zeros(D)
    expected[best] = 1.5 * coefficients[best] / np.linalg.norm(coefficients[best])
    np.testing.assert_allclose(algorithm.act(state), expected, atol=1e-8)
    assert state.locked and sorted(state.indices.tolist()) == sorted(best.tolist())


@pytest.mark.slow
def test_float32_and_float64_tell_the_same_story():
    key, algorithm = jax.random.key(5), bandits.apsee(BALL, sparsity=S, sigma=0.0)
    a, b = (
        bandits.simulate(key, algorithm, jnp.asarray(THETA, dtype), sigma=0.1, horizon=3000).regret
        for dtype in (jnp.float32, jnp.float64)
    )
    assert a.dtype == jnp.float32 and b.dtype == jnp.float64
    # Different draws in the two precisions, so only the exploration, which dominates, can be
    # compared.
    np.testing.assert_allclose(a, b, rtol=0.02)


@pytest.mark.slow
def test_long_horizon_in_float32_keeps_its_precision():
    """10^7 steps: the exploitation is a sum of thousands of small terms after a large one."""
    algorithm, times, keys = (
        bandits.apsee(BALL, sparsity=S, sigma=0.0),
        jnp.asarray([10**6, 10**7]),
        jax.random.split(jax.random.key(11), 40),
    )

    def regret(dtype):
        simulate = lambda key: bandits.simulate(  # noqa: E731
            key,
            algorithm,
            jnp.asarray(THETA, dtype),
            sigma=0.1,
            horizon=10**7,
            record=times,
            draws="support",
        )
        return np.asarray(jax.jit(jax.vmap(simulate))(keys).regret, np.float64)

    a, b = regret(jnp.float32), regret(jnp.float64)
    assert np.all(
        np.abs(a.mean(0) - b.mean(0))
        < 4 * np.sqrt(a.var(0) / 40 + b.var(0) / 40) + 1e-5 * b.mean(0)
    )
    # Regret grows like sqrt(T): exploration of about sqrt(2 T) cycles.
    np.testing.assert_allclose(b[:, 1] / b[:, 0], np.sqrt(10), rtol=0.02)
