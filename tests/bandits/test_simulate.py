"""The cycle engine against the step engine, a numpy loop written from the paper, closed forms and the law of the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import bandits
from jaxsac.bandits import simulation
from jaxsac.bandits.cycle_engine import BLOCK, noise_block

D, S = 4, 2
THETA = np.array([0.9, -0.1, 0.7, 0.2])
MATRIX = np.array([[1.0, 0.3, 0.1, 0.0], [0.3, 1.0, -0.2, 0.1], [0.1, -0.2, 1.0, 0.2], [0.0, 0.1, 0.2, 1.0]])
BALL, ELLIPSOID = bandits.Ball(1.5), bandits.Ellipsoid(jnp.asarray(MATRIX))
ALGORITHMS = {
    "apsee": bandits.apsee(BALL, sparsity=S, sigma=0.1, radius="hkz", radius_scale=3.0),
    "apsee_greedy": bandits.apsee_greedy(ELLIPSOID, sparsity=S, sigma=0.1, radius="hkz", radius_scale=0.4),
    "phased_greedy": bandits.phased_greedy(ELLIPSOID, sparsity=S, schedule_scale=1.5),
    "explore_then_commit": bandits.explore_then_commit(bandits.Box(), sparsity=S, num_cycles=20),
}
KEY = jax.random.key(5)


def run(algorithm, horizon, key=KEY, theta=THETA, dtype=jnp.float64, **options):
    return bandits.simulate(key, algorithm, jnp.asarray(theta, dtype), sigma=0.1, horizon=horizon, **options)


@pytest.mark.parametrize("name", [name if name.startswith("apsee") else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS])
def test_both_engines_agree_at_every_horizon(name):
    horizons = jnp.arange(1, 501, dtype=jnp.int32)
    cycle, step = (
        jax.jit(jax.vmap(lambda horizon: run(ALGORITHMS[name], horizon, record=horizon[None], engine=engine)))(horizons)  # noqa: B023
        for engine in ("cycle", "step")
    )
    np.testing.assert_array_equal(cycle.lock_time, step.lock_time)
    np.testing.assert_array_equal(cycle.support, step.support)
    np.testing.assert_allclose(cycle.regret, step.regret, atol=1e-9)
    # The regret recorded on the way is that of the shorter run, at every time.
    whole = run(ALGORITHMS[name], 500, record=horizons)
    np.testing.assert_allclose(whole.regret, step.regret[:, 0], atol=1e-9)
    if name != "phased_greedy":
        assert 20 < whole.lock_time < 400 and np.all(cycle.locked == (horizons >= whole.lock_time))


def paper(greedy, horizon, scale):
    """APSEE (or APSEE-G) step by step from the paper, on the noise of KEY."""
    blocks = [np.asarray(noise_block("gaussian", KEY, jnp.int32(b), D, jnp.float64)) for b in range(horizon // (D * BLOCK) + 1)]
    noise = np.concatenate(blocks)
    radius, reach = 1.5, (np.ones(D) if greedy else np.full(D, 1.5))
    value = lambda t, rows: np.sqrt(t[rows] @ np.linalg.solve(MATRIX[np.ix_(rows, rows)], t[rows]))  # noqa: E731
    norm = 1 / np.sqrt(min(np.linalg.eigvalsh(MATRIX[np.ix_([i, j], [i, j])])[0] for i in range(D) for j in range(i)))
    optimum = max(value(THETA, [i, j]) for i in range(D) for j in range(i)) if greedy else radius * np.linalg.norm(THETA[[0, 2]])
    sums, regrets, support, lock_time, c = np.zeros(D), [], None, -1, 1
    while len(regrets) < horizon:
        for i in range(D):
            sums[i] += reach[i] * THETA[i] + 0.1 * noise[c - 1, i]
            regrets.append(optimum - reach[i] * THETA[i])
        estimate = sums / c / reach
        trace, level = (1 / reach**2).sum(), np.log(np.pi**2 * c**2 / (6 * 0.05))
        eps = scale * 0.1 * np.sqrt((trace + 2 * np.sqrt((1 / reach**4).sum() * level) + 2 * (1 / reach**2).max() * level) / c)
        if support is None:
            chosen, gap = [], np.inf
            for _ in range(S):
                gains = {i: value(estimate, [*chosen, i]) for i in range(D) if i not in chosen}
                ranked = sorted(gains, key=gains.get, reverse=True)
                gap = min(gap, gains[ranked[0]] - gains[ranked[1]])
                chosen.append(ranked[0])
            if not greedy:
                order = np.argsort(-np.abs(estimate))
                chosen, gap = list(order[:S]), np.abs(estimate)[order[S - 1]] - np.abs(estimate)[order[S]]
            if gap > 2 * (norm if greedy else 1.0) * eps and len(regrets) <= horizon:
                support, lock_time = sorted(chosen), len(regrets)
        if support is not None:
            part = estimate[support]
            part = (
                np.linalg.solve(MATRIX[np.ix_(support, support)], part) / value(estimate, support)
                if greedy
                else 1.5 * part / np.linalg.norm(part)
            )
            regrets += [optimum - THETA[support] @ part] * c
        c += 1
    return np.cumsum(regrets)[:horizon], lock_time, support


@pytest.mark.parametrize("name, scale", [("apsee", 3.0), ("apsee_greedy", 0.4)])
def test_against_the_algorithm_of_the_paper(name, scale):
    regret, lock_time, support = paper(name == "apsee_greedy", 500, scale)
    ours = run(ALGORITHMS[name], 500, record=jnp.arange(1, 501))
    assert (int(ours.lock_time), ours.support.tolist()) == (lock_time, support)
    np.testing.assert_allclose(ours.regret, regret, atol=1e-9)


def many(algorithm, num, horizon, dtype=jnp.float32, theta=THETA, sigma=0.1, **options):
    keys = jax.random.split(jax.random.key(11), num)
    simulate = lambda key: bandits.simulate(key, algorithm, jnp.asarray(theta, dtype), sigma=sigma, horizon=horizon, **options)  # noqa: E731
    return jax.jit(jax.vmap(simulate))(keys)


def test_lanes_do_not_depend_on_how_they_are_batched():
    algorithm, keys = ALGORITHMS["apsee"], jax.random.split(jax.random.key(11), 6).reshape(2, 3)
    thetas = jnp.asarray(np.stack([THETA, THETA[::-1]]))
    nested = jax.jit(jax.vmap(lambda t, ks: jax.vmap(lambda k: run(algorithm, 300, k, t))(ks)))(thetas, keys)
    for i in range(2):
        for j in range(3):
            alone = run(algorithm, 300, keys[i, j], thetas[i])
            assert alone.lock_time == nested.lock_time[i, j] and np.all(alone.support == nested.support[i, j])
            np.testing.assert_allclose(nested.regret[i, j], alone.regret, atol=1e-10)


def test_a_poisoned_lane_leaves_the_others_bitwise_equal():
    keys = jax.random.split(jax.random.key(0), 8)
    simulate = jax.jit(jax.vmap(lambda key, theta: bandits.simulate(key, ALGORITHMS["apsee"], theta, sigma=0.1, horizon=200)))
    thetas = jnp.tile(jnp.asarray(THETA, jnp.float32), (8, 1))
    clean, poisoned = simulate(keys, thetas), simulate(keys, thetas.at[3, 1].set(jnp.nan))
    others = np.arange(8) != 3
    for a, b in zip(clean, poisoned, strict=True):
        np.testing.assert_array_equal(a[others], b[others])
    assert np.all(np.isnan(poisoned.regret[3])) and not poisoned.locked[3]


def test_expected_regret_has_its_closed_form():
    """One exploitation step of cycle c on the right support costs sigma^2 (s - 1) / (2 c r ||theta_S||) to first order in 1/c, where an arm
    of length r has noise sigma / r; exploration costs exactly sum_i (r ||theta_S|| - r theta_i)."""
    theta, radius = np.array([0.9, -0.1, 0.7, 0.05]), 1.5
    algorithm = bandits.apsee(bandits.Ball(radius), sparsity=S, sigma=0.1, radius="hkz", radius_scale=0.5)
    starts = np.cumsum([0] + [D + c for c in range(1, 30)])
    # An algorithm that believes in no noise locks after its first cycle; the few wrong supports that this risks here are no matter of
    # chance at all, the gap being 0.6 and the noise 0.07.
    quick = bandits.apsee(bandits.Ball(radius), sparsity=S, sigma=0.0)
    record = np.stack([starts[4:20] + D, starts[5:21]]).astype(np.int32)
    regret = many(quick, 4000, int(starts[21]), jnp.float64, theta, sigma=0.1, record=jnp.asarray(record.ravel())).regret.reshape(-1, 2, 16)
    cost = np.asarray(regret[:, 1] - regret[:, 0])
    expected = radius * (S - 1) * (0.1 / radius) ** 2 / (2 * np.linalg.norm(theta[[0, 2]]))
    error = cost.std(0) / np.sqrt(len(cost))
    cycles = np.arange(5, 21)
    assert np.all(np.abs(cost.mean(0) - expected) < 4 * error + expected * 0.2 / cycles)
    exploration = np.sum(radius * np.linalg.norm(theta[[0, 2]]) - radius * theta)
    never = many(algorithm, 1, 40, jnp.float64, np.zeros(D) + theta, sigma=0.0, record=jnp.asarray([D]))
    np.testing.assert_allclose(never.regret[0, 0], exploration, rtol=1e-12)


def test_drawing_only_the_locked_coordinates_is_equal_in_law():
    basis = bandits.exploration_basis(jax.random.key(2), ELLIPSOID, D, S)
    algorithm = bandits.apsee_greedy(ELLIPSOID, sparsity=S, sigma=0.1, radius="hkz", radius_scale=0.02, basis=basis)
    times = jnp.asarray([200, 1000, 4000])
    every, few = (many(algorithm, 4000, 4000, record=times, draws=draws) for draws in ("all", "support"))
    np.testing.assert_array_equal(every.lock_time, few.lock_time)
    exploitation = lambda r: np.asarray(r, np.float64) - np.asarray(r, np.float64)[:, :1]  # noqa: E731
    a, b = exploitation(every.regret)[:, 1:], exploitation(few.regret)[:, 1:]
    for moment in (lambda x: x, lambda x: (x - a.mean(0)) ** 2):
        first, second = moment(a), moment(b)
        error = np.sqrt(first.var(0) / len(first) + second.var(0) / len(second))
        assert np.all(np.abs(first.mean(0) - second.mean(0)) < 3 * error)


@pytest.mark.slow
def test_float32_and_float64_tell_the_same_story():
    a, b = (run(bandits.apsee(BALL, sparsity=S, sigma=0.0), 3000, dtype=dtype).regret for dtype in (jnp.float32, jnp.float64))
    assert a.dtype == jnp.float32 and b.dtype == jnp.float64
    # Different draws in the two precisions, so only the exploration, which dominates, can be compared.
    np.testing.assert_allclose(a, b, rtol=0.02)


def test_one_trace_for_all_numbers():
    theta = jnp.asarray(THETA, jnp.float32)
    bandits.simulate(KEY, bandits.apsee(bandits.Ball(1.5), sparsity=S, sigma=0.1), theta, sigma=0.1, horizon=100)
    before = simulation._simulate._cache_size()
    for number in (1, 0.5, np.float32(0.2), np.float64(0.3), jnp.asarray(0.4, jnp.float32)):
        algorithm = bandits.apsee(bandits.Ball(number), sparsity=S, sigma=number, delta=0.01, radius_scale=number)
        bandits.simulate(KEY, algorithm, theta, sigma=number, horizon=int(100 * number))
    assert simulation._simulate._cache_size() == before


@pytest.mark.parametrize("name", ["apsee", "apsee_greedy", "phased_greedy"])
def test_degenerate_parameters_have_an_answer(name):
    for theta in (np.zeros(D), np.ones(D)):
        ours = run(ALGORITHMS[name], 150, theta=theta)
        assert np.all(np.isfinite(ours.regret))
        assert name == "phased_greedy" or not ours.locked or np.any(theta != 0)


def test_s_equal_d_locks_at_once_and_short_horizons_only_explore():
    assert run(bandits.apsee(BALL, sparsity=D, sigma=0.1), 50).lock_time == D
    short = run(ALGORITHMS["apsee"], 2)
    assert not short.locked and np.all(np.isfinite(short.regret)) and short.lock_time == -1


def test_commit_at_locks_without_proof():
    algorithm = bandits.apsee(BALL, sparsity=S, sigma=0.1, radius_scale=100.0, commit_at=60)
    assert run(algorithm, 200).lock_time == 60


@pytest.mark.slow
def test_long_horizon_in_float32_keeps_its_precision():
    """10^7 steps: the exploitation is a sum of thousands of small terms after a large one."""
    algorithm = bandits.apsee(BALL, sparsity=S, sigma=0.0)
    times = jnp.asarray([10**6, 10**7])
    single, double = (many(algorithm, 40, 10**7, dtype, record=times, draws="support").regret for dtype in (jnp.float32, jnp.float64))
    a, b = np.asarray(single, np.float64), np.asarray(double)
    assert np.all(np.abs(a.mean(0) - b.mean(0)) < 4 * np.sqrt(a.var(0) / 40 + b.var(0) / 40) + 1e-5 * b.mean(0))
    # Regret grows like sqrt(T): exploration of about sqrt(2 T) cycles.
    np.testing.assert_allclose(b[:, 1] / b[:, 0], np.sqrt(10), rtol=0.02)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"horizon": 0}, "horizon"),
        ({"sigma": -1.0}, "sigma"),
        ({"noise": "cauchy"}, "noise"),
        ({"benchmark": "best"}, "benchmark"),
        ({"record": jnp.asarray([-1])}, "record"),
        ({"draws": "support", "noise": "uniform"}, "Gaussian"),
    ],
)
def test_mistakes_in_a_simulation_are_named(options, words):
    options = {"sigma": 0.1, "horizon": 100} | options
    with pytest.raises(ValueError, match=words):
        bandits.simulate(KEY, ALGORITHMS["apsee"], jnp.asarray(THETA), **options)


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: bandits.apsee(ELLIPSOID, sparsity=S, sigma=0.1), "apsee_greedy"),
        (lambda: bandits.apsee(BALL, sparsity=0, sigma=0.1), "sparsity"),
        (lambda: bandits.apsee(BALL, sparsity=S, sigma=-0.1), "sigma"),
        (lambda: bandits.apsee(BALL, sparsity=S, sigma=0.1, delta=1.0), "delta"),
        (lambda: bandits.apsee(BALL, sparsity=S, sigma=0.1, basis=jnp.ones((D, D))), "span"),
        (lambda: run(bandits.apsee(BALL, sparsity=D + 1, sigma=0.1), 10), "at most the dimension"),
        (lambda: run(bandits.apsee(BALL, sparsity=S, sigma=0.1, basis=jnp.eye(D + 1)), 10), "columns"),
    ],
)
def test_mistakes_in_an_algorithm_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
