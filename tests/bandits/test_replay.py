"""The value of an algorithm from a log of another's choices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import bandits
from jaxsac.bandits.protocol import Policy

KEY, D, K, N = jax.random.key(0), 3, 4, 40_000
THETA = np.array([0.9, -0.1, 0.7])


class Known(Policy):
    """Plays the best arm of a parameter that it is given, and counts."""

    theta: jax.Array

    def init(self, key=None, *, dimension, dtype=None):
        return jnp.int32(0)

    def act(self, state, offer=None):
        return jnp.asarray(offer)[jnp.argmax(jnp.asarray(offer) @ self.theta)]

    def update(self, state, action, reward, offer=None):
        return state + 1


@pytest.fixture(scope="module")
def log():
    """The logging policy prefers arms of large rewards; rewards depend on the arm's surprise."""
    rng = np.random.default_rng(0)
    offers = rng.normal(size=(N, K, D))
    weights = np.exp(np.clip(offers @ THETA, -1, 1))
    shares = weights / weights.sum(1, keepdims=True)
    chosen = (rng.random((N, 1)) > shares.cumsum(1)).sum(1)
    rows = np.arange(N)
    rewards = offers[rows, chosen] @ THETA + rng.normal(size=N)
    return offers, offers[rows, chosen], rewards, shares[rows, chosen]


def test_a_fixed_policy_has_the_value_that_it_has_online(log):
    wrong = np.array([0.2, 1.0, 0.0])
    result = bandits.replay(KEY, Known(wrong), *log)
    offers = np.random.default_rng(1).normal(size=(200_000, K, D))
    online = offers[np.arange(200_000), np.argmax(offers @ wrong, axis=1)] @ THETA
    error = np.hypot(result.standard_error, online.std() / 200_000**0.5)
    assert abs(result.value - online.mean()) < 4 * error
    accepted = np.asarray(result.accepted)
    assert int(result.state) == accepted.sum()
    expected = N * log[3].min()
    assert abs(accepted.sum() - expected) < 5 * expected**0.5
    np.testing.assert_allclose(result.value, log[2][accepted].mean(), rtol=1e-12)
    # Records that merely match are those of large rewards.
    match = np.all(log[1] == log[0][np.arange(N), np.argmax(log[0] @ wrong, axis=1)], axis=1)
    assert log[2][match].mean() - online.mean() > 8 * error


def test_an_algorithm_learns_from_what_is_accepted(log):
    result = bandits.replay(KEY, bandits.lin_ts(sigma=1.0), *log)
    accepted = np.asarray(result.accepted)
    actions, rewards = log[1][accepted], log[2][accepted]
    theta = np.linalg.solve(np.eye(D) + actions.T @ actions, actions.T @ rewards)
    np.testing.assert_allclose(result.state.ridge.theta, theta, atol=1e-10)
    late = rewards[len(rewards) // 2 :]
    best = np.random.default_rng(2).normal(size=(200_000, K, D)) @ THETA
    assert abs(late.mean() - best.max(1).mean()) < 5 * late.std() / len(late) ** 0.5 + 0.02


def test_nothing_accepted_is_no_value(log):
    offers, actions, rewards, shares = (part[:50] for part in log)
    result = bandits.replay(
        KEY, bandits.lin_ucb(sigma=1.0), offers, actions, rewards * np.nan, shares
    )
    assert np.isnan(result.value) and not np.any(result.accepted)
