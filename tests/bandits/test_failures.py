"""What cannot be answered says so: a status, NaN, or a refusal; and arguments are not cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import Status, bandits

D = 5
THETA = np.array([1.0, 0.8, 0.6, 0.2, 0.1])
KEY = jax.random.key(0)
APSEE = bandits.apsee(bandits.Ball(), sparsity=2, sigma=0.1)


def noise_with_nan(key, shape):
    return jax.random.normal(key, shape).at[..., -1:].set(jnp.nan)


def nan_noise(key, shape):
    return jnp.full(shape, jnp.nan)


def final(algorithm=APSEE, theta=THETA, sigma=0.1, **options):
    run = bandits.simulate(KEY, algorithm, theta, sigma=sigma, horizon=40, **options)
    return run.status, run.regret[-1], run.lock_time, run.support


@pytest.mark.parametrize("engine", ["cycle", pytest.param("step", marks=pytest.mark.slow)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_lane_that_is_not_finite_says_so(engine, bad):
    values = jnp.asarray([0.1, bad])
    believed = lambda s: bandits.apsee(bandits.Ball(), sparsity=2, sigma=s)  # noqa: E731
    for one in (
        lambda value: final(sigma=value, engine=engine),
        lambda value: final(believed(value), engine=engine),
        lambda value: final(bandits.e2tc(bandits.Ball(value), sparsity=2, sigma=0.1, horizon=40)),
        lambda value: final(theta=jnp.asarray(THETA).at[1].set(value), engine=engine),
    ):
        status, regret, lock_time, support = jax.jit(jax.vmap(one))(values)
        assert status.tolist() == [Status.CONVERGED, Status.NONFINITE]
        assert np.isfinite(regret[0]) and np.isnan(regret[1])
        assert lock_time[1] == -1 and np.all(support[1] == -1)


@pytest.mark.parametrize("engine", ["cycle", pytest.param("step", marks=pytest.mark.slow)])
def test_noise_that_is_nan_reaches_the_status(engine):
    box = bandits.phased_greedy(bandits.Box(), sparsity=2)  # whose actions know no NaN
    for algorithm in (APSEE, box):
        status, regret, *_ = final(algorithm, noise=noise_with_nan, engine=engine)
        assert status == Status.NONFINITE and np.isnan(regret)


def test_stepwise_algorithms_carry_a_failure():
    arms = jnp.eye(D)

    def believing(sigma):
        return final(bandits.lin_ucb(sigma=sigma), offer=arms)

    status, regret, *_ = jax.vmap(believing)(jnp.asarray([0.1, jnp.nan]))
    assert status.tolist() == [0, Status.NONFINITE] and np.isnan(regret[1])
    for algorithm, offer in (
        (bandits.lin_ucb(sigma=0.1), arms),
        (bandits.lin_ts(sigma=0.1), arms),
        (bandits.adaptive_greedy(bandits.Box(), sparsity=2), None),
    ):
        status, regret, *_ = final(algorithm, offer=offer, noise=nan_noise)
        assert status == Status.NONFINITE and np.isnan(regret)


def test_integer_arms_and_masks_are_numbers():
    arms = np.random.default_rng(0).integers(-2, 3, (8, D))
    for algorithm in (bandits.lin_ucb(sigma=0.1), bandits.lin_ts(sigma=0.1)):
        np.testing.assert_array_equal(
            final(algorithm, offer=arms)[1], final(algorithm, offer=arms * 1.0)[1]
        )
    mask = np.array([True, True, False, True, True])
    algorithm = bandits.adaptive_greedy(bandits.Ball(), sparsity=2)
    answers = [final(algorithm, offer=m)[1] for m in (mask, mask.astype(int), mask.tolist())]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_the_spread_of_an_online_run_does_not_cancel(size):
    algorithm = bandits.phased_greedy(bandits.Box(), sparsity=2, schedule_scale=0.0)
    rewards = (size + 0.1 * np.random.default_rng(0).normal(size=(300, 3))).astype(np.float32)

    @jax.jit
    def run(rewards):
        start = algorithm.init(dimension=3, dtype=jnp.float32)
        return jax.lax.scan(
            lambda state, reward: (algorithm.update(state, None, reward), None), start, rewards
        )[0]

    state = run(jnp.asarray(rewards.ravel()))
    expected = np.sum((rewards - rewards.mean(0, dtype=float)) ** 2, axis=0, dtype=float)
    np.testing.assert_allclose(state.squares.value, expected, rtol=3e-3)


def test_rewards_of_a_log_count_by_their_action_in_any_order():
    """For phased algorithms only rows of the basis do; what is dropped is counted."""
    rng = np.random.default_rng(0)
    arms = rng.integers(D, size=600)
    actions, rewards = np.eye(D)[arms], THETA[arms] + 0.05 * rng.normal(size=600)
    means = np.array([rewards[arms == arm].mean() for arm in range(D)])
    mixed = np.where(np.arange(600)[:, None] % 3 == 0, 0.5, actions)
    kept = np.arange(600) % 3 != 0
    proof = bandits.apsee(bandits.Ball(), sparsity=2, sigma=0.05, radius="coord")
    state = jax.jit(proof.fit)(actions, rewards)
    estimate, half_width = proof.estimate(state)
    np.testing.assert_allclose(estimate, means, atol=1e-12)
    np.testing.assert_array_equal(state.counts, np.bincount(arms))
    assert state.locked and state.dropped == 0
    np.testing.assert_array_equal(np.sort(state.indices), np.sort(np.argsort(-np.abs(THETA))[:2]))
    expected = bandits.error_radius(
        np.bincount(arms).min(), np.eye(D), sigma=0.05, delta=0.05, kind="coord"
    )
    np.testing.assert_allclose(half_width, expected, rtol=1e-12)
    state = jax.jit(proof.fit)(mixed, rewards)
    assert state.dropped == 200
    np.testing.assert_array_equal(state.counts, np.bincount(arms[kept]))
    mean = np.bincount(arms[kept], rewards[kept]) / np.bincount(arms[kept])
    np.testing.assert_allclose(proof.estimate(state)[0], mean, atol=1e-12)
    adaptive = bandits.adaptive_greedy(bandits.Ball(), sparsity=2)
    state = jax.jit(adaptive.fit)(actions, rewards)
    seen = np.asarray(state.squares.value)  # the axes have length 1
    assert np.all(seen + np.asarray(state.owed) == int(state.cycle))
    np.testing.assert_allclose(adaptive.estimate(state)[0], THETA, atol=0.25)


def test_a_reward_that_is_no_number_is_asked_for_again():
    for algorithm in (APSEE, bandits.adaptive_greedy(bandits.Ball(), sparsity=2)):
        state = algorithm.init(dimension=D)
        first = algorithm.act(state)
        state = algorithm.update(state, first, jnp.nan)
        np.testing.assert_array_equal(algorithm.act(state), first)
        assert state.dropped == 1
        state, action = algorithm.step(state, 0.9)
        assert np.any(np.asarray(action) != np.asarray(first)) and state.sums.value[0] == 0.9


def test_bases_reach_the_boundary_or_are_refused():
    for kind in ("block_orthogonal", "standard", "weighing", "gaussian_orthogonal"):
        ball = bandits.Ball(10.0)
        rows = bandits.exploration_basis(KEY, ball, 4, 2, kind=kind, allow_dense=True)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 10.0, rtol=1e-12)
    masked = bandits.Masked(bandits.Ball(), np.arange(4) != 1)
    for action_set, kind in (
        (bandits.Box(), "block_orthogonal"),
        (bandits.Simplex(), "block_orthogonal"),
        (bandits.Box(), "weighing"),
        (masked, "standard"),
    ):
        with pytest.raises(ValueError, match="action_set"):
            bandits.exploration_basis(KEY, action_set, 4, 2, kind=kind)
    with pytest.raises(ValueError, match="basis holds rows that are 5 times too long"):
        bandits.apsee(bandits.Ball(), sparsity=2, sigma=0.1, basis=5 * np.eye(4))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: final(benchmark="alpha"), "alpha"),
        (lambda: final(alpha=0.5), "alpha"),
        (lambda: final(alpha=2.0, benchmark="alpha"), "alpha must be ≤ 1"),
        (lambda: final("apsee"), "algorithm"),
        (lambda: final(bandits.phased_greedy(bandits.Ellipsoid(np.eye(3)), sparsity=2)), "theta"),
        (lambda: final(bandits.lin_ucb(sigma=0.1)), "offer"),
        (lambda: final(bandits.lin_ucb(sigma=0.1), offer=np.ones((4, 3))), "offer"),
        (lambda: bandits.apsee_greedy(bandits.CrossPolytope(), sparsity=2, sigma=0.1), "sparsity"),
        (lambda: bandits.e2tc(bandits.Ball(), sparsity=2, sigma="auto", horizon=9), "sigma"),
        (
            lambda: bandits.explore_then_commit(bandits.Ball(), sparsity=2, num_cycles=2.5),
            "num_cycles",
        ),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_ratio_of_a_nan_is_nan():
    ellipsoid = bandits.Ellipsoid(np.eye(D) + 0.1)
    bad = THETA.copy()
    bad[0] = np.nan
    assert np.isnan(bandits.submodularity_ratio(ellipsoid, bad, 2))


def test_the_best_support_of_many_lanes():
    """Of an ellipsoid, in float32 and a batch that compilers have got wrong."""
    d, s = 10, 3
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(d, d))
    matrix = factor @ factor.T / d + 0.5 * np.eye(d)
    thetas = rng.normal(size=(200, d))
    ellipsoid = bandits.Ellipsoid(jnp.asarray(matrix, jnp.float32))
    best = jax.jit(jax.vmap(lambda theta: bandits.best_support(ellipsoid, theta, s).value))
    exact = jax.jit(
        jax.vmap(lambda theta: bandits.best_support(bandits.Ellipsoid(matrix), theta, s).value)
    )
    np.testing.assert_allclose(best(thetas.astype(np.float32)), exact(thetas), rtol=1e-5)


def test_a_traced_horizon_beyond_the_offers_is_no_replay_of_the_last():
    algorithm = bandits.adaptive_greedy(bandits.Ball(), sparsity=2)

    def one(horizon):
        times, offers = jnp.asarray([40]), jnp.ones((10, D))
        options = {"sigma": 0.1, "horizon": horizon, "record": times, "offer": offers}
        return bandits.simulate(KEY, algorithm, THETA, **options)

    run = jax.vmap(one)(jnp.asarray([10, 40]))
    assert run.status.tolist() == [Status.CONVERGED, Status.NONFINITE]
    assert np.isfinite(run.regret[0]).all() and np.isnan(run.regret[1]).all()


def test_what_has_no_length_was_not_explored():
    algorithm = bandits.adaptive_greedy(bandits.Ball(), sparsity=1)
    state = algorithm.init(dimension=3)
    for _ in range(3):
        state = algorithm.update(state, jnp.zeros(3), 5.0, jnp.asarray([0.0, 1.0, 1.0]))
    assert state.owed.tolist() == [1, 1, 1] and state.dropped == 3


@pytest.mark.parametrize(
    "algorithm",
    [
        bandits.apsee(bandits.Masked(bandits.Ball(), [0, 1, 1, 0, 0]), sparsity=3, sigma=0.05),
        bandits.apsee_greedy(
            bandits.Masked(bandits.Ball(), [0, 1, 1, 0, 0]), sparsity=3, sigma=0.05, radius="local"
        ),
    ],
)
def test_fewer_coordinates_than_the_sparsity_are_locked(algorithm):
    """Two of them can be played, and three may be: there is nothing to tell apart."""
    run = bandits.simulate(KEY, algorithm, THETA, sigma=0.05, horizon=2_000)
    assert run.locked and run.lock_time <= 20 and set(np.asarray(run.support)) >= {1, 2}


def test_a_given_selection_is_read_as_numbers():
    algorithm = bandits.e2tc(bandits.Ball(), sparsity=2, sigma=0.1, horizon=40)
    best, _ = bandits.branch_and_bound(bandits.Ball(), THETA, sparsity=2)
    whole = best._replace(value=1, mask=2 * np.asarray(best.mask, int))
    run = bandits.simulate(KEY, algorithm, THETA, sigma=0.1, horizon=40, benchmark=whole)
    same = bandits.simulate(
        KEY, algorithm, THETA, sigma=0.1, horizon=40, benchmark=best._replace(value=jnp.ones(()))
    )
    np.testing.assert_array_equal(run.recovered, same.recovered)
    np.testing.assert_array_equal(run.regret, same.regret)
    with pytest.raises(ValueError, match="benchmark"):
        bandits.simulate(
            KEY, algorithm, THETA, sigma=0.1, horizon=4, benchmark=best._replace(value=np.ones(2))
        )
