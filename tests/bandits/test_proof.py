"""The proof of a support: its rounds in a loop of numpy, its error rate, what needs no ranking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import bandits

D, S, SIGMA = 4, 2, 0.1
THETA = np.array([0.9, -0.1, -0.7, 0.2])
KEY = jax.random.key(11)
HORIZON = 1500


def rounds(theta, noise, delta=0.05):
    """On the unit ball, a step at a time: the actions, and the time of the lock."""
    count, total, alive = np.zeros(D), np.zeros(D), np.ones(D, bool)
    actions, lock, support = [], -1, None

    def play(action):
        actions.append(action)
        return theta @ action + noise[len(actions) - 1]

    while len(actions) < HORIZON:
        for i in np.flatnonzero(alive):
            side = -1.0 if total[i] < 0 else 1.0
            if len(actions) == HORIZON:
                return np.array(actions), lock
            total[i] += side * play(side * np.eye(D)[i])
            count[i] += 1
        estimate = total / count
        size, width = np.abs(estimate), SIGMA * np.sqrt(
            2 * np.log(np.pi**2 * D * count**2 / (3 * delta)) / count
        )  # fmt: skip
        low, high = np.maximum(size - width, 0), size + width
        if lock < 0:
            support = np.argsort(-size)[:S]
            if low[support].min() >= np.delete(high, support).max():
                lock = len(actions)
        chosen = np.isin(np.arange(D), support)
        alive = chosen if lock >= 0 else high >= np.sort(low)[-S]
        known = estimate[support]
        value = np.linalg.norm(known)
        action = np.where(chosen, estimate, 0.0) / value
        cost = np.sum(value - np.abs(estimate[alive]))
        spread = 1 / count[support]
        loss = SIGMA**2 * (spread.sum() - np.sum(known**2 * spread) / value**2) / (2 * value)
        weakest = np.abs(known).min()
        rest = alive & ~chosen
        loss += np.sum(np.maximum(size + width / 2 - weakest, 0)[rest]) * weakest / value
        steps = int(np.ceil(min(cost / loss, len(actions))))
        for _ in range(min(steps, HORIZON - len(actions))):
            play(action)
    return np.array(actions), lock


def test_its_rounds_are_those_of_a_loop_in_numpy():
    policy = bandits.prove_support(bandits.Ball(), sparsity=S, sigma=SIGMA)
    noise = 0.05 * np.random.default_rng(0).normal(size=HORIZON)

    def one(carry, error):
        state, reward = carry
        state, action = policy.step(state, reward)
        return (state, jnp.asarray(THETA) @ action + error), action

    @jax.jit
    def run(state, noise):
        first = policy.act(state)
        carry = state, jnp.asarray(THETA) @ first + noise[0]
        (state, _), actions = jax.lax.scan(one, carry, noise[1:])
        return state, jnp.concatenate([first[None], actions])

    state, actions = run(policy.init(dimension=D), noise)
    expected, lock = rounds(THETA, noise)
    assert 20 < lock < HORIZON
    np.testing.assert_allclose(actions, expected, atol=1e-9)
    assert state.lock_time == lock and state.locked
    np.testing.assert_array_equal(np.sort(state.indices), [0, 2])


@pytest.mark.slow
def test_wrong_locks_are_rarer_than_delta_and_regret_is_small():
    theta, num = jnp.asarray([1.0, 0.6, 0.4, 0.1]), 300

    def one(key, policy, horizon):
        times = jnp.asarray([horizon // 10, horizon])
        return bandits.simulate(key, policy, theta, sigma=0.3, horizon=horizon, record=times)

    keys, many = jax.random.split(KEY, num), jax.jit(jax.vmap(one, (0, None, None)))

    def proof(believed, scale, horizon):
        shared = {"sparsity": 2, "sigma": believed, "delta": 0.2, "schedule_scale": scale}
        policy = bandits.prove_support(bandits.Ball(), **shared)
        run = jax.tree.map(np.asarray, many(keys, policy, horizon))
        return run, run.locked & np.any(run.support != [0, 1], axis=1)

    run, wrong = proof(0.3, 0.0, 2_000)
    assert wrong.mean() <= 0.2 + 3 * np.sqrt(0.2 * 0.8 / num) and run.locked.mean() > 0.5
    assert proof(0.03, 0.0, 2_000)[1].mean() > 0.05  # a radius that is too small would be seen
    early, late = proof(0.3, 1.0, 20_000)[0].regret.mean(0)
    assert late < 6 * early  # linear regret would be ten times as large
    shared = {"sparsity": 2, "sigma": 0.3, "delta": 0.2, "radius": "coord"}
    published = many(keys, bandits.apsee(bandits.Ball(), **shared), 20_000)
    assert late < 0.2 * np.asarray(published.regret)[:, 1].mean()


@pytest.mark.parametrize(
    "theta, tolerance, regret",
    [
        ([-0.9, -0.5, -0.7, -0.6], 0.0, 200.0),  # nothing is worth playing
        ([0.9, -0.5, -0.7, -0.6], 0.0, 200.0),  # fewer are than may be
        ([0.9, 0.5, 0.5, -0.6], 0.2, 300.0),  # a tie, within the tolerance
    ],
)
def test_what_is_as_good_needs_no_ranking(theta, tolerance, regret):
    policy = bandits.prove_support(bandits.Box(), sparsity=2, sigma=0.1, tolerance=tolerance)
    run = bandits.simulate(KEY, policy, jnp.asarray(theta), sigma=0.1, horizon=20_000)
    assert run.locked and run.lock_time < 20_000 and run.regret[-1] < regret


def test_both_engines_agree_without_noise_and_other_sets_are_refused():
    policy = bandits.prove_support(bandits.Box(-1.0), sparsity=2, sigma=0.1)
    runs = [
        bandits.simulate(KEY, policy, jnp.asarray(THETA), sigma=0.0, horizon=400, engine=engine)
        for engine in ("cycle", "step")
    ]
    np.testing.assert_allclose(runs[0].regret, runs[1].regret, atol=1e-9)
    assert runs[0].lock_time == runs[1].lock_time
    with pytest.raises(ValueError, match="largest scores are the best support"):
        bandits.prove_support(bandits.Ellipsoid(np.eye(3)), sparsity=2, sigma=0.1)  # pyright: ignore


@pytest.mark.slow
def test_long_sums_in_float32_are_within_their_radius():
    """Three hundred thousand rewards of .3, each with noise far below the rounding of their sum."""
    proof = bandits.prove_support(bandits.Ball(), sparsity=1, sigma=1e-3)
    state = proof.init(dimension=2, dtype=jnp.float32)
    noise = 1e-3 * jax.random.normal(jax.random.key(0), (300_000,), jnp.float32)
    actions = jnp.zeros((300_000, 2), jnp.float32).at[:, 0].set(1.0)
    state = jax.jit(
        lambda state: jax.lax.scan(
            lambda state, record: (proof.update(state, *record), None),
            state,
            (actions, 0.3 + noise),
        )[0]
    )(state)
    theta, width = proof.estimate(state)
    assert abs(theta[0] - 0.3) < width[0] < 2e-5 and np.isinf(width[1])
