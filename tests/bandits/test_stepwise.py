"""Step-wise algorithms against explicit linear algebra, the law of the posterior, and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import bandits

D, K = 4, 5
THETA = np.array([0.9, -0.1, 0.7, 0.2])
ARMS = np.random.default_rng(0).normal(size=(K, D))


SLOW = pytest.mark.slow


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=SLOW), jnp.float64])
def test_lin_ucb_is_ridge_regression_with_a_confidence_width(dtype):
    sigma, delta, ridge, bound = 0.3, 0.1, 2.0, 1.5
    algorithm = bandits.lin_ucb(sigma=sigma, delta=delta, ridge=ridge, bound=bound)
    state = algorithm.init(dimension=D, dtype=dtype)
    gram, moment, rng = ridge * np.eye(D), np.zeros(D), np.random.default_rng(1)
    act, update = jax.jit(algorithm.__class__.act), jax.jit(algorithm.__class__.update)
    for _ in range(60):
        arms = rng.normal(size=(K, D))
        inverse = np.linalg.inv(gram)
        width = (
            sigma * np.sqrt(2 * np.log(1 / delta) + np.linalg.slogdet(gram)[1] - D * np.log(ridge))
            + np.sqrt(ridge) * bound
        )
        index = arms @ inverse @ moment + width * np.sqrt(
            np.einsum("ki,ij,kj->k", arms, inverse, arms)
        )
        action = act(algorithm, state, jnp.asarray(arms, dtype))
        np.testing.assert_allclose(action, arms[np.argmax(index)], rtol=1e-6)
        reward = float(action @ jnp.asarray(THETA, dtype)) + rng.normal() * sigma
        state = update(algorithm, state, action, reward)
        gram, moment = gram + np.outer(action, action), moment + reward * np.asarray(action)
    np.testing.assert_allclose(
        state.theta, np.linalg.solve(gram, moment), rtol=2e-4 if dtype == jnp.float32 else 1e-10
    )
    np.testing.assert_allclose(
        state.root @ state.root.T, np.linalg.inv(gram), atol=2e-6 if dtype == jnp.float32 else 1e-12
    )


def test_lin_ts_plays_each_arm_as_often_as_the_posterior_says():
    algorithm = bandits.lin_ts(sigma=0.5, ridge=1.0)
    first = algorithm.init(jax.random.key(0), dimension=D)
    state = first
    for arm in ARMS[:3]:
        state = algorithm.update(state, jnp.asarray(arm), arm @ THETA)
    keys = jax.random.split(jax.random.key(1), 20_000)
    played = jax.jit(jax.vmap(lambda key: algorithm.act(state, jnp.asarray(ARMS), key=key)))(keys)
    shares = np.array([np.all(np.asarray(played) == arm, axis=1).mean() for arm in ARMS])
    gram = np.eye(D) + ARMS[:3].T @ ARMS[:3]
    mean = np.linalg.solve(gram, ARMS[:3].T @ (ARMS[:3] @ THETA))
    draws = np.random.default_rng(2).multivariate_normal(mean, 0.25 * np.linalg.inv(gram), 20_000)
    expected = np.bincount(np.argmax(draws @ ARMS.T, axis=1), minlength=K) / 20_000
    assert shares.sum() == pytest.approx(1.0)
    assert np.all(
        np.abs(shares - expected) < 4 * np.sqrt((expected * (1 - expected) + 1e-4) * 2 / 20_000)
    )


def draw_arms(key):
    return jax.random.normal(key, (K, D), jnp.float32)


def draw_mask(key):
    return jax.random.bernoulli(key, 0.6, (D,))


def regrets(algorithm, horizon=1500, num=32, **options):
    keys = jax.random.split(jax.random.key(3), num)
    times = jnp.asarray([horizon // 3, horizon])
    theta = jnp.asarray(THETA, jnp.float32)
    run = jax.jit(
        jax.vmap(
            lambda key: bandits.simulate(
                key, algorithm, theta, sigma=0.1, horizon=horizon, record=times, **options
            )
        )
    )(keys)
    assert np.all(np.isfinite(run.regret)) and np.all(np.diff(run.regret) >= -1e-4)
    return np.asarray(run.regret).mean(0)


@pytest.mark.parametrize(
    "algorithm", [bandits.lin_ucb(sigma=0.1), pytest.param(bandits.lin_ts(sigma=0.1), marks=SLOW)]
)
def test_finite_arms_are_learned(algorithm):
    early, late = regrets(algorithm, offer=draw_arms)
    assert late < 1.8 * early  # linear regret would triple
    assert late < 100


@SLOW
def test_time_varying_sets():
    """Coordinates come and go: regret is against the best action on what is there, and grows slower
    than the time.
    """
    early, late = regrets(bandits.adaptive_greedy(bandits.Ball(), sparsity=2), offer=draw_mask)
    assert late < 2.2 * early


def test_the_optimistic_index_is_higher_than_anywhere_at_random():
    """After enough rounds; feasible, and its index <theta_t, x> + width sqrt(x' V^-1 x) beats that
    of 10,000 s-sparse boundary points.
    """
    rng, matrix = np.random.default_rng(0), np.eye(D) + 0.2 * (np.ones((D, D)) - np.eye(D))
    algorithm = bandits.optimistic_greedy(
        bandits.Ellipsoid(jnp.asarray(matrix)), sparsity=2, sigma=0.3, bound=1.5, num_rounds=20
    )
    state, gram, moment = algorithm.init(dimension=D, dtype=jnp.float64), np.eye(D), np.zeros(D)
    act, update = (
        jax.jit(lambda state: algorithm.act(state)),
        jax.jit(lambda *observed: algorithm.update(*observed)),
    )
    points = rng.normal(size=(10_000, D)) * (np.argsort(rng.random((10_000, D)), axis=1) < 2)
    points /= np.sqrt(np.sum((points @ matrix) * points, axis=1))[:, None]
    for _ in range(5):
        action = np.asarray(act(state))
        assert np.sum(action != 0) <= 2 and action @ matrix @ action <= 1 + 1e-12
        inverse = np.linalg.inv(gram)
        width = 0.3 * np.sqrt(2 * np.log(20) + np.linalg.slogdet(gram)[1]) + 1.5
        index = lambda x: (  # noqa: E731
            x @ (inverse @ moment) + width * np.sqrt(np.sum((x @ inverse) * x, axis=-1))  # noqa: B023
        )
        assert index(action) >= np.max(index(points)) * (1 - 1e-6)
        state = update(state, action, reward := action @ THETA)
        gram, moment = gram + np.outer(action, action), moment + reward * action


@SLOW
def test_the_optimistic_index_on_a_sparse_ellipsoid():
    ellipsoid = bandits.Ellipsoid(jnp.asarray(np.eye(D) + 0.2 * (np.ones((D, D)) - np.eye(D))))
    early, late = regrets(
        bandits.optimistic_greedy(ellipsoid, sparsity=2, sigma=0.1), benchmark="greedy"
    )
    assert late < 2 * early  # linear regret would triple


def test_exploration_waits_for_its_coordinate_and_actions_stay_on_offer():
    algorithm = bandits.adaptive_greedy(bandits.Ball(), sparsity=2)
    state, rng = algorithm.init(dimension=D), np.random.default_rng(0)
    act, update = jax.jit(algorithm.__class__.act), jax.jit(algorithm.__class__.update)
    assert np.all(
        np.asarray(act(algorithm, state, jnp.zeros(D, bool))) == 0
    )  # nothing available: the origin
    for t in range(200):
        offer = rng.random(D) < 0.5
        offer[1] = t > 100  # the second coordinate comes late
        action = np.asarray(act(algorithm, state, jnp.asarray(offer)))
        assert (
            np.all(action[~offer] == 0)
            and (action != 0).sum() <= 2
            and np.linalg.norm(action) <= 1 + 1e-9
        )
        state = update(algorithm, state, jnp.asarray(action), action @ THETA, jnp.asarray(offer))
        if t == 100:
            assert state.squares.value[1] == 0 and state.owed[1] == state.cycle
    seen = np.asarray(state.squares.value)
    assert seen[1] > 0 and np.all(seen + np.asarray(state.owed) == int(state.cycle))


def test_sets_of_each_step():
    """Boxes whose limits change, against the algorithm of Appendix E written step by step."""
    horizon, rng = 120, np.random.default_rng(1)
    highs = rng.uniform(0.5, 2.0, (horizon, D)) * (rng.random((horizon, D)) < 0.7)
    boxes = jax.vmap(bandits.Box)(-0.5 * highs, highs)
    times = np.arange(1, horizon + 1)

    def simulate(algorithm, offer=boxes):
        return bandits.simulate(
            jax.random.key(0),
            algorithm,
            jnp.asarray(THETA),
            sigma=0.0,
            horizon=horizon,
            record=times,
            offer=offer,
        )

    run = simulate(bandits.adaptive_greedy(bandits.Box(), sparsity=2))
    known, owed, cycle, left, total, expected = np.zeros(D, bool), np.ones(D), 1, 1, 0.0, []
    for high in highs:
        gains = np.maximum(THETA * high, -0.5 * THETA * high)
        total += np.sort(gains)[-2:].sum()
        due = np.where(high > 0, owed, 0)
        if due.any():
            i = np.argmax(due)
            known[i], owed[i], total = True, owed[i] - 1, total - THETA[i] * high[i]
        else:
            total -= np.sort(np.where(known, gains, 0.0))[-2:].sum()
            left -= 1
            if left == 0:
                cycle, owed = cycle + 1, owed + 1
                left = int(np.ceil(np.sqrt(cycle)))
        expected.append(total)
    np.testing.assert_allclose(run.regret, expected, atol=1e-12)

    balls = jax.vmap(bandits.Ball)(np.arange(1.0, horizon + 1))
    run = simulate(bandits.thompson(bandits.Ball(), sparsity=2, sigma=0.0), balls)
    cost = np.arange(1, D + 1) * (np.linalg.norm(THETA[[0, 2]]) - THETA)  # each axis once
    np.testing.assert_allclose(run.regret[:D], np.cumsum(cost), atol=1e-9)
    np.testing.assert_allclose(run.regret[D:], cost.sum(), atol=1e-3)  # then it is known
    for offer, words in (
        (jax.vmap(bandits.Ball)(np.ones(3)), "3 steps, fewer than the horizon"),
        (bandits.Ball(), "0 steps"),
        (jax.vmap(lambda high: bandits.Box(0.0, high))(np.ones((horizon, 3))), "d = 3"),
    ):
        with pytest.raises(ValueError, match=words):
            simulate(bandits.thompson(bandits.Ball(), sparsity=2, sigma=0.0), offer)
    with pytest.raises(ValueError, match="prove_support play a fixed set"):
        simulate(bandits.prove_support(bandits.Ball(), sparsity=2, sigma=0.0), np.ones(D))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="key"):
        bandits.lin_ts(sigma=0.1).init(dimension=D)
    with pytest.raises(ValueError, match="ridge"):
        bandits.lin_ucb(sigma=0.1, ridge=0.0)
    with pytest.raises(ValueError, match="engine='step'"):
        bandits.simulate(
            jax.random.key(0),
            bandits.lin_ucb(sigma=0.1),
            jnp.ones(D),
            sigma=0.1,
            horizon=5,
            engine="cycle",
        )
    with pytest.raises(ValueError, match="adaptive_greedy"):
        phased = bandits.phased_greedy(bandits.Ball(), sparsity=2)
        bandits.simulate(
            jax.random.key(0), phased, jnp.ones(D), sigma=0.1, horizon=5, offer=jnp.ones(D, bool)
        )
