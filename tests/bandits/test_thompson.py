"""Thompson sampling on sparse sets: the posterior, its draws, both engines, units, streams."""

import io
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import bandits

D, S = 4, 2
THETA = np.array([0.9, -0.1, 0.7, 0.2])
KEY = jax.random.key(7)
POLICY = bandits.thompson(bandits.Ball(), sparsity=S, sigma=0.3)
GENERATOR = np.random.default_rng(0)
ACTIONS = GENERATOR.normal(size=(30, D))
REWARDS = ACTIONS @ THETA + 0.3 * GENERATOR.normal(size=30)


def test_a_log_gives_the_ridge_estimate_in_any_order_and_drops_what_is_no_number():
    fit = jax.jit(POLICY.fit)
    rewards = np.where(np.arange(30) % 7 == 3, np.nan, REWARDS)
    known = np.isfinite(rewards)
    gram = 1e-4 * np.eye(D) + ACTIONS[known].T @ ACTIONS[known]
    theta = np.linalg.solve(gram, ACTIONS[known].T @ rewards[known])
    for order in (np.arange(30), np.arange(30)[::-1], np.random.default_rng(1).permutation(30)):
        state = fit(ACTIONS[order], rewards[order], KEY)
        mean, width = POLICY.estimate(state)
        np.testing.assert_allclose(mean, theta, atol=1e-10)
        half = 1.959964 * 0.3 * np.sqrt(np.diag(np.linalg.inv(gram)))
        np.testing.assert_allclose(width, half, rtol=1e-8)
        assert state.ridge.dropped == 4 and state.step == 30


def test_rewards_of_one_action_are_seen_through_their_mean():
    update = jax.jit(POLICY.update)
    start = POLICY.init(KEY, dimension=D)
    state = start
    for reward in REWARDS[:5]:
        state = update(state, ACTIONS[0], reward)
    at_once = update(start, ACTIONS[0], REWARDS[:5].mean(), None, jnp.int32(5))
    for one, other in zip(state.ridge[:3], at_once.ridge[:3], strict=True):
        np.testing.assert_allclose(
            one @ one.T if one.ndim == 2 else one, other @ other.T if one.ndim == 2 else other,
            rtol=1e-9, atol=1e-9,
        )  # fmt: skip
    assert state.step == at_once.step == 5


def test_draws_have_the_law_of_the_posterior():
    state = POLICY.fit(ACTIONS, REWARDS, KEY)
    draw = jax.jit(jax.vmap(lambda key: POLICY.draw(state.ridge, key)))
    draws = np.asarray(draw(jax.random.split(KEY, 20_000)))
    gram = 1e-4 * np.eye(D) + ACTIONS.T @ ACTIONS
    covariance = 0.09 * np.linalg.inv(gram)
    error = np.sqrt(np.diag(covariance) / 20_000)
    assert np.all(np.abs(draws.mean(0) - np.asarray(state.ridge.theta)) < 5 * error)
    spread = np.sqrt((covariance**2 + np.outer(*2 * [np.diag(covariance)])) / 20_000)
    assert np.all(np.abs(np.cov(draws.T) - covariance) < 5 * spread)


@partial(jax.jit, static_argnames="engine")
def run(key, theta, sigma, belief, hold, engine):
    policy = bandits.thompson(bandits.Ball(), sparsity=S, sigma=belief, hold=hold)
    return bandits.simulate(
        key, policy, theta, sigma=sigma, horizon=300, engine=engine, record=jnp.arange(301)
    )


def test_without_noise_both_engines_are_the_same_at_every_step():
    """Only the noise of a mean of several rewards is drawn otherwise."""
    for hold in (0.0, 0.1):
        runs = [run(KEY, THETA, 0.0, 0.3, hold, engine) for engine in ("cycle", "step")]
        np.testing.assert_allclose(runs[0].regret, runs[1].regret, atol=1e-8)
        np.testing.assert_array_equal(runs[0].support, runs[1].support)
        assert runs[0].regret[-1] > 1


def test_the_flat_prior_knows_no_units():
    one, many = (run(KEY, k * THETA, k * 0.3, k * 0.3, 0.0, "cycle").regret for k in (1.0, 1024.0))
    np.testing.assert_array_equal(np.asarray(many), 1024.0 * np.asarray(one))


@pytest.mark.slow
def test_noise_is_the_same_in_law_in_both_engines():
    keys = jax.random.split(KEY, 400)
    means = []
    for engine in ("cycle", "step"):
        runs = jax.vmap(lambda key, e=engine: run(key, THETA, 0.3, 0.3, 0.05, e))(keys)
        regret = np.asarray(runs.regret)[:, [50, 300]]
        assert np.all(np.diff(np.asarray(runs.regret), axis=1) >= -1e-9)
        means.append((regret.mean(0), regret.var(0) / 400))
    (a, spread_a), (b, spread_b) = means
    assert np.all(np.abs(a - b) < 4 * np.sqrt(spread_a + spread_b))
    assert a[1] < 3 * a[0]  # linear regret would be six times as large


@pytest.mark.slow
def test_a_stream_by_step_by_scan_and_from_a_file():
    policy = bandits.thompson(bandits.Box(), sparsity=S, sigma=0.1, hold=0.05)
    theta, noise = jnp.asarray(THETA), 0.1 * np.random.default_rng(3).normal(size=400)
    start = policy.init(KEY, dimension=D)

    def one(carry, error):
        state, reward = carry
        state, action = policy.step(state, reward)
        return (state, theta @ action + error), action

    (state, _), actions = jax.jit(lambda *a: jax.lax.scan(one, *a))((start, jnp.nan), noise)
    assert np.all(np.sum(np.asarray(actions) != 0, axis=1) <= S)
    np.testing.assert_array_equal(actions[:D], np.eye(D))  # each axis once
    assert np.mean(np.all(np.asarray(actions[-100:]) == [1, 0, 1, 0], axis=1)) > 0.9
    mean, width = policy.estimate(state)
    assert np.all(np.abs(np.asarray(mean) - THETA)[[0, 2]] < 2 * np.asarray(width)[[0, 2]])
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, state)
    file.seek(0)
    again = eqx.tree_deserialise_leaves(file, start)
    np.testing.assert_array_equal(policy.act(again), policy.act(state))
    # Several actions before their rewards: fresh draws, axes that were not seen first.
    keys = jax.random.split(KEY, 50)
    early = np.asarray(jax.vmap(lambda key: policy.act(start, key=key))(keys))
    assert np.all(early.sum(1) == 1) and np.all(early.sum(0) > 0)


def test_actions_stay_on_offer_and_a_late_coordinate_is_explored():
    act, update = jax.jit(POLICY.act), jax.jit(POLICY.update)
    state = POLICY.init(KEY, dimension=D)
    offer = np.array([True, False, True, True])
    for t in range(40):
        offer[1] = t >= 20
        action = np.asarray(act(state, offer))
        assert np.all(action[~offer] == 0) and np.linalg.norm(action) <= 1 + 1e-12
        if t == 20:
            np.testing.assert_array_equal(action, np.eye(D)[1])
        assert np.isinf(POLICY.estimate(state)[1][1]) == (t <= 20)
        state = update(state, action, action @ THETA)


def test_a_proper_prior_is_the_gaussian_one():
    policy = bandits.thompson(bandits.Ball(), sparsity=S, sigma=0.3, prior_scale=2.0)
    mean, width = policy.estimate(policy.init(KEY, dimension=D))
    np.testing.assert_allclose(width, 1.959964 * 2.0)
    np.testing.assert_array_equal(mean, 0.0)
    gram = 0.3**2 / 2.0**2 * np.eye(D) + ACTIONS.T @ ACTIONS
    state = policy.fit(ACTIONS, REWARDS, KEY)
    np.testing.assert_allclose(
        state.ridge.theta, np.linalg.solve(gram, ACTIONS.T @ REWARDS), atol=1e-12
    )
    with pytest.raises(ValueError, match="sigma must be > 0"):
        bandits.thompson(bandits.Ball(), sparsity=S, sigma=0.0, prior_scale=1.0)
    with pytest.raises(ValueError, match="pass a key"):
        policy.init(dimension=D)


@pytest.mark.slow
def test_a_wrong_draw_is_not_kept_for_a_share_of_all_steps():
    """On a box a draw that is kept for a share of the time so far has linear regret in the mean,
    and the origin teaches nothing: neither may be kept for long.
    """
    policy = bandits.thompson(bandits.Box(), sparsity=S, sigma=1.0, hold=0.05)
    times = jnp.asarray([2_000, 20_000])

    @jax.jit
    @jax.vmap
    def regret(key, theta):
        return bandits.simulate(key, policy, theta, sigma=1.0, horizon=20_000, record=times).regret

    generator = np.random.default_rng(5)
    thetas = generator.choice([-0.6, -0.3, 0.3, 0.6], (60, D))
    early, late = np.asarray(regret(jax.random.split(KEY, 60), thetas)).T
    assert late.mean() < 3 * early.mean()  # linear regret would be ten times as large
    assert late.max() < 1_500


def test_what_a_log_does_not_tell_apart_is_explored():
    """Two coordinates that were only ever played together, and a third of both signs."""
    together = np.tile([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.7, 0.0]], (50, 1))
    state = POLICY.fit(together, together @ THETA, KEY)
    np.testing.assert_array_equal(np.isinf(POLICY.estimate(state)[1]), [True, True, False, True])
    act, update = jax.jit(POLICY.act), jax.jit(POLICY.update)
    for axis in (0, 3):  # one of the two tells them apart
        np.testing.assert_array_equal(act(state), np.eye(D)[axis])
        state = update(state, act(state), THETA[axis])
    mean, width = POLICY.estimate(state)
    np.testing.assert_allclose(mean, THETA, atol=1e-3)
    assert np.all(np.isfinite(width))


def test_what_is_no_number_is_counted_and_keeps_the_draw():
    policy = bandits.thompson(bandits.Ball(), sparsity=S, sigma=0.3, hold=0.5)
    state = policy.fit(ACTIONS, REWARDS, KEY)
    update, broken = jax.jit(policy.update), np.array([np.nan, 1.0, 0.0, 0.0])
    after = update(update(state, ACTIONS[0], np.nan, None, 5), broken, 0.3, None, 2)
    assert after.ridge.dropped == 7
    np.testing.assert_array_equal(after.drawn, state.drawn)
    np.testing.assert_array_equal(after.ridge.root, state.ridge.root)


def test_a_coordinate_that_cannot_be_played_keeps_its_prior():
    box, shared = bandits.Box(0.0, np.array([1.0, 1.0, 0.0, 1.0])), {"sparsity": S, "sigma": 0.3}
    for scale, expected in ((2.0, 2.0 * 1.959964), (None, np.inf)):
        policy = bandits.thompson(box, prior_scale=scale, **shared)
        state = policy.init(KEY, dimension=D)
        for _ in range(8):
            state, action = policy.step(state, 0.1)
            assert action[2] == 0
        np.testing.assert_allclose(policy.estimate(state)[1][2], expected, rtol=1e-6)


BALL = {"action_set": bandits.Ball(), "sparsity": S}


@pytest.mark.parametrize(
    "policy",
    [
        POLICY,
        bandits.prove_support(sigma=0.1, **BALL),
        bandits.apsee(sigma=0.1, **BALL),
        bandits.adaptive_greedy(**BALL),
    ],
)
def test_a_step_without_a_reward_is_none(policy):
    start = policy.init(KEY, dimension=D)
    state, action = jax.jit(policy.step)(start, jnp.nan)
    jax.tree.map(np.testing.assert_array_equal, state, start)
    np.testing.assert_array_equal(action, policy.act(start))


@pytest.mark.parametrize("maker", [bandits.adaptive_greedy, bandits.phased_greedy])
def test_long_sums_in_float32_do_not_lose_their_tail(maker):
    policy = maker(bandits.Ball(), sparsity=1, schedule_scale=0.0)
    state = policy.init(dimension=1, dtype=jnp.float32)
    rewards = jnp.full(400_000, 0.3, jnp.float32)
    state = jax.jit(lambda state: jax.lax.scan(policy.step, state, rewards)[0])(state)
    np.testing.assert_allclose(policy.estimate(state)[0], [0.3], rtol=3e-7)
