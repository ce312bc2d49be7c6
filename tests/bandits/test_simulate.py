"""The cycle engine against a run on a stream, a numpy loop written from the paper, batches, and bad
input.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bandits.batch import (
    ALGORITHMS,
    BALL,
    BASIS,
    ELLIPSOID,
    KEY,
    LANES,
    MATRIX,
    THETA,
    D,
    S,
    by_steps,
    lanes,
)

from jaxsac import bandits
from jaxsac.bandits import simulation
from jaxsac.bandits.engine.steps import BLOCK, noise_block

ADAPTIVE = ("apsee", "apsee_greedy")
EVERY = [
    name if name == "apsee_greedy" else pytest.param(name, marks=pytest.mark.slow)
    for name in ALGORITHMS
]


def run(algorithm, horizon, key=KEY, theta=THETA, dtype=jnp.float64, **options):
    return bandits.simulate(
        key, algorithm, jnp.asarray(theta, dtype), sigma=0.1, horizon=horizon, **options
    )


def on_the_way(algorithm):
    """A run of 500 steps and its regret after each of them."""
    whole = lanes(algorithm, times=np.minimum(np.arange(1, 16 * LANES + 1).reshape(LANES, 16), 500))
    return whole, whole.regret.ravel()[:500]


@pytest.mark.parametrize("name", EVERY)
def test_the_cycle_engine_and_a_stream_agree_at_every_horizon(name):
    horizons = np.arange(1, LANES + 1)
    cycle = lanes(ALGORITHMS[name], horizon=horizons)
    expected, lock_time, support, *_ = by_steps(ALGORITHMS[name])
    np.testing.assert_array_equal(cycle.lock_time, lock_time)
    np.testing.assert_array_equal(cycle.support, support)
    np.testing.assert_allclose(cycle.regret[:, 0], expected, atol=1e-9)
    # The regret recorded on the way is that of the shorter run, at every time.
    whole, regret = on_the_way(ALGORITHMS[name])
    np.testing.assert_allclose(regret, expected, atol=1e-9)
    if name != "phased_greedy":
        assert 20 < whole.lock_time[0] < 400 and np.all(
            cycle.locked == (horizons >= whole.lock_time)
        )


def paper(greedy, horizon, scale):
    """APSEE (or APSEE-G) step by step from the paper, on the noise of KEY."""
    blocks = [
        np.asarray(noise_block("gaussian", KEY, jnp.int32(b), D, jnp.float64))
        for b in range(horizon // (D * BLOCK) + 1)
    ]
    noise, basis = np.concatenate(blocks), np.asarray(BASIS) if greedy else 1.5 * np.eye(D)
    inverse = np.linalg.inv(basis.T @ basis)
    value = lambda t, rows: np.sqrt(t[rows] @ np.linalg.solve(MATRIX[np.ix_(rows, rows)], t[rows]))  # noqa: E731
    norm = 1 / np.sqrt(
        min(
            np.linalg.eigvalsh(MATRIX[np.ix_([i, j], [i, j])])[0]
            for i in range(D)
            for j in range(i)
        )
    )
    optimum = (
        max(value(THETA, [i, j]) for i in range(D) for j in range(i))
        if greedy
        else 1.5 * np.linalg.norm(THETA[[0, 2]])
    )
    sums, regrets, support, lock_time, c = np.zeros(D), [], None, -1, 1
    while len(regrets) < horizon:
        for i in range(D):
            sums[i] += basis[i] @ THETA + 0.1 * noise[c - 1, i]
            regrets.append(optimum - basis[i] @ THETA)
        estimate = np.linalg.solve(basis, sums / c)
        level = np.log(np.pi**2 * c**2 / (6 * 0.05))
        spread = (
            np.trace(inverse)
            + 2 * np.sqrt(np.trace(inverse @ inverse) * level)
            + 2 * np.linalg.eigvalsh(inverse)[-1] * level
        )
        eps = scale * 0.1 * np.sqrt(spread / c)
        if support is None:
            chosen, gap = [], np.inf
            for _ in range(S):
                gains = {i: value(estimate, [*chosen, i]) for i in range(D) if i not in chosen}
                ranked = sorted(gains, key=gains.get, reverse=True)
                gap = min(gap, gains[ranked[0]] - gains[ranked[1]])
                chosen.append(ranked[0])
            if not greedy:
                order = np.argsort(-np.abs(estimate))
                chosen, gap = (
                    list(order[:S]),
                    np.abs(estimate)[order[S - 1]] - np.abs(estimate)[order[S]],
                )
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
    expected, lock_time, support = paper(name == "apsee_greedy", 500, scale)
    whole, regret = on_the_way(ALGORITHMS[name])
    assert (int(whole.lock_time[0]), whole.support[0].tolist()) == (lock_time, support)
    np.testing.assert_allclose(regret, expected, atol=1e-9)


def test_lanes_do_not_depend_on_how_they_are_batched():
    keys, thetas = jax.random.split(jax.random.key(11), (2, 3)), np.stack([THETA, THETA[::-1]])
    nested = jax.jit(
        jax.vmap(lambda t, ks: jax.vmap(lambda k: run(ALGORITHMS["apsee"], 300, k, t))(ks))
    )(thetas, keys)
    mixed = jax.random.split(jax.random.key(0), LANES).at[:6].set(keys.ravel())
    alone = lanes(
        ALGORITHMS["apsee"],
        keys=mixed,
        theta=np.resize(np.repeat(thetas, 3, axis=0), (LANES, D)),
        horizon=300,
    )
    np.testing.assert_array_equal(alone.lock_time[:6], nested.lock_time.ravel())
    np.testing.assert_array_equal(alone.support[:6], nested.support.reshape(6, S))
    np.testing.assert_allclose(nested.regret[:, :, -1].ravel(), alone.regret[:6, 0], atol=1e-10)


def test_a_poisoned_lane_leaves_the_others_bitwise_equal():
    keys, thetas = jax.random.split(jax.random.key(0), LANES), np.tile(THETA, (LANES, 1))
    poison = thetas.copy()
    poison[3, 1] = np.nan
    clean, poisoned = (
        lanes(ALGORITHMS["apsee"], keys=keys, theta=t, horizon=200) for t in (thetas, poison)
    )
    others = np.arange(LANES) != 3
    for a, b in zip(clean, poisoned, strict=True):
        np.testing.assert_array_equal(a[others], b[others])
    assert np.all(np.isnan(poisoned.regret[3])) and not poisoned.locked[3]


def test_one_trace_for_all_numbers():
    theta = jnp.asarray(THETA, jnp.float32)
    bandits.simulate(
        KEY, bandits.apsee(bandits.Ball(1.5), sparsity=S, sigma=0.1), theta, sigma=0.1, horizon=100
    )
    before = simulation._simulate._cache_size()
    for number in (1, 0.5, np.float32(0.2), np.float64(0.3), jnp.asarray(0.4, jnp.float32)):
        algorithm = bandits.apsee(
            bandits.Ball(number), sparsity=S, sigma=number, delta=0.01, radius_scale=number
        )
        ours = bandits.simulate(KEY, algorithm, theta, sigma=number, horizon=int(100 * number))
    assert simulation._simulate._cache_size() == before
    assert ours.regret.dtype == jnp.float32


@pytest.mark.parametrize("name", [*ADAPTIVE, pytest.param("phased_greedy", marks=pytest.mark.slow)])
def test_degenerate_parameters_have_an_answer(name):
    for theta in (np.zeros(D), np.ones(D)):
        ours = lanes(ALGORITHMS[name], theta=theta, horizon=np.arange(LANES) % 150 + 1)
        assert np.all(np.isfinite(ours.regret))
        assert name == "phased_greedy" or not np.any(ours.locked) or np.any(theta != 0)


def test_a_horizon_shorter_than_one_cycle_only_explores_and_commit_at_locks_without_proof():
    short = lanes(ALGORITHMS["apsee"], horizon=2)
    assert (
        not np.any(short.locked)
        and np.all(np.isfinite(short.regret))
        and np.all(short.lock_time == -1)
    )
    algorithm = bandits.apsee(
        BALL, sparsity=S, sigma=0.1, radius="hkz", radius_scale=100.0, commit_at=60
    )
    assert np.all(lanes(algorithm, horizon=200).lock_time == 60)


@pytest.mark.slow
def test_s_equal_d_locks_at_once():
    assert run(bandits.apsee(BALL, sparsity=D, sigma=0.1), 50).lock_time == D


@pytest.mark.slow
def test_a_benchmark_that_branch_and_bound_found():
    theta = jnp.asarray(THETA)
    found, _ = bandits.branch_and_bound(ELLIPSOID, theta, S)
    thompson = bandits.thompson(ELLIPSOID, sparsity=S, sigma=0.1)
    for algorithm, engine in (
        (ALGORITHMS["phased_greedy"], "cycle"),
        (thompson, "cycle"),
        (thompson, "step"),
    ):
        ours, right = (
            bandits.simulate(
                KEY, algorithm, theta, sigma=0.1, horizon=50, engine=engine, benchmark=benchmark
            )
            for benchmark in (found, "optimal")
        )
        for one, other in zip(ours, right, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
        more = found._replace(value=found.value + 1.0)
        run = bandits.simulate(
            KEY, algorithm, theta, sigma=0.1, horizon=50, engine=engine, benchmark=more
        )
        expected = np.asarray(right.regret) + np.asarray(right.times)
        np.testing.assert_allclose(run.regret, expected, rtol=1e-9)
    with pytest.raises(ValueError, match="benchmark must be a Selection for theta"):
        bandits.simulate(KEY, algorithm, theta[:3], sigma=0.1, horizon=5, benchmark=found)


def test_alpha_regret_may_fall():
    """Against alpha times the optimum: alpha OPT t less where OPT t was, and not clipped at
    zero.
    """
    whole, half = (
        lanes(ALGORITHMS["apsee"], alpha=alpha, benchmark="alpha", times=[100, 500])
        for alpha in (1.0, 0.5)
    )
    optimum = 1.5 * np.linalg.norm(THETA[[0, 2]])
    np.testing.assert_allclose(
        whole.regret[0] - half.regret[0], 0.5 * optimum * np.array([100, 500]), rtol=1e-12
    )
    assert half.regret[0, 1] < half.regret[0, 0] and half.regret[0, 1] < 0
    plain = lanes(ALGORITHMS["apsee"], times=[100, 500])
    np.testing.assert_allclose(whole.regret, plain.regret, rtol=1e-12)


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
        (
            lambda: run(bandits.apsee(BALL, sparsity=S, sigma=0.1, basis=jnp.eye(D + 1)), 10),
            "columns",
        ),
    ],
)
def test_mistakes_in_an_algorithm_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
