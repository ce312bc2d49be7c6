"""The bound on the regret: its sum in numpy, above every run, its growth; how actions move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import bandits

D, S = 4, 2
THETA = np.array([0.9, -0.1, 0.7, 0.2])
MATRIX = np.array(
    [[1.0, 0.3, 0.1, 0.0], [0.3, 1.0, -0.2, 0.1], [0.1, -0.2, 1.0, 0.2], [0.0, 0.1, 0.2, 1.0]]
)
KEY = jax.random.key(2)
BALL = bandits.Ball()
APSEE = bandits.apsee(BALL, sparsity=S, sigma=0.1, delta=0.05, radius="coord")


def test_the_bound_is_the_sum_of_its_cycles():
    best, horizon = np.linalg.norm(THETA[[0, 2]]), 5_000
    cost, total, steps = D * best - THETA.sum(), 0.0, 0
    lock = bandits.stopping_time(APSEE, THETA) / D
    for c in range(1, horizon):
        error = 0.1 * np.sqrt(2 * np.log(np.pi**2 * D * c**2 / 0.15) / c) * np.sqrt(S)
        total += cost + c * min(2 * error, 2 * error**2 / best)
        steps += D + (c if c >= lock else 0)
        if steps >= horizon:
            break
    assert bandits.regret_bound(APSEE, THETA, horizon) == pytest.approx(total, rel=1e-9)
    # What nobody can exceed.
    assert bandits.regret_bound(APSEE, THETA, 1) == pytest.approx(best + np.linalg.norm(THETA))
    assert np.isnan(bandits.regret_bound(APSEE, THETA * np.nan, 10))


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm, noise, slope",
    [(APSEE, {}, 0.5), (bandits.phased_greedy(bandits.Box(), sparsity=S), {"sigma": 0.1}, 2 / 3)],
)
def test_no_run_exceeds_it_and_it_grows_as_the_theorem_says(algorithm, noise, slope):
    times = np.array([300, 3_000])
    runs = jax.jit(
        jax.vmap(
            lambda key: bandits.simulate(
                key, algorithm, jnp.asarray(THETA), sigma=0.1, horizon=3_000, record=times
            )
        )
    )(jax.random.split(KEY, 100))
    bounds = [bandits.regret_bound(algorithm, THETA, time, **noise) for time in times]
    assert np.mean(np.any(np.asarray(runs.regret) > bounds, axis=1)) <= 0.05
    one, other = (bandits.regret_bound(algorithm, THETA, t, **noise) for t in (10**5, 10**7))
    assert slope < np.log(other / one) / np.log(100) < slope + 0.1  # logarithms of the radius


@pytest.mark.parametrize(
    "action_set",
    [bandits.Ball(2.0), bandits.Ellipsoid(jnp.asarray(MATRIX)), bandits.LpBall(1.3, 2.0)],
)
def test_actions_move_at_most_as_the_slope_says(action_set):
    generator = np.random.default_rng(0)
    u = generator.normal(size=(20_000, D)) * generator.choice([0.01, 1.0], (20_000, D))
    v = u + generator.normal(size=u.shape) * generator.choice([1e-3, 1.0], (20_000, 1))
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (u, v))
    actions = jax.jit(jax.vmap(action_set.argmax))
    moved = np.linalg.norm(actions(u) - actions(v), axis=1) / np.linalg.norm(u - v, axis=1)
    slope = float(action_set.action_slope(D))
    assert slope / 2 < moved.max() <= slope * (1 + 1e-9)
    assert np.isinf(bandits.LpBall(3.0).action_slope(D)) and np.isinf(bandits.Box().action_slope(D))


def test_what_has_no_theorem_is_refused():
    for algorithm, words in (
        (bandits.e2tc(BALL, sparsity=S, sigma=0.1, horizon=10), "algorithm must be of apsee"),
        (bandits.phased_greedy(BALL, sparsity=S), "sigma must be given"),
        (bandits.apsee(BALL, sparsity=S, sigma="auto"), "known sigma"),
    ):
        with pytest.raises(ValueError, match=words):
            bandits.regret_bound(algorithm, THETA, 10)
