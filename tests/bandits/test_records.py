"""What a run records on the way: rewards, the recovered support; sets that change with the step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bandits.batch import ALGORITHMS, KEY, THETA, D, S, by_steps

from jaxsac import bandits

TIMES = np.arange(1, 61)
BEST = np.array([0, 2])
SHARED = {"sparsity": S, "sigma": 0.3}


def run(algorithm, sigma=0.3, **options):
    shared = {"horizon": 60, "record": jnp.asarray(TIMES), "sigma": sigma}
    return bandits.simulate(KEY, algorithm, jnp.asarray(THETA), **shared, **options)


def share(support):
    return np.mean(np.isin(BEST, support))


@pytest.mark.parametrize("name", ["apsee", pytest.param("phased_greedy", marks=pytest.mark.slow)])
def test_phased_algorithms_record_the_support_of_the_last_cycle(name):
    cycle = run(ALGORITHMS[name], 2.0)
    *_, rewards, recovered = by_steps(ALGORITHMS[name], 2.0, 60)
    np.testing.assert_allclose(cycle.rewards, rewards, atol=1e-9)
    np.testing.assert_array_equal(cycle.recovered, recovered)
    # A cycle teaches when it ends.
    assert np.all(recovered[: D - 1] == 0)
    assert len(set(recovered.tolist())) > 2


@pytest.mark.parametrize("engine", ["cycle", "step"])
@pytest.mark.parametrize(
    "policy",
    [bandits.thompson(bandits.Ball(), **SHARED), bandits.prove_support(bandits.Ball(), **SHARED)],
)
def test_rewards_and_regret_are_those_of_the_same_actions(policy, engine):
    ours, optimum = run(policy, engine=engine), np.linalg.norm(THETA[BEST])
    np.testing.assert_allclose(ours.rewards + ours.regret, optimum * TIMES, rtol=1e-12)
    assert ours.recovered[-1] == share(ours.support)
    np.testing.assert_array_equal(np.unique(np.asarray(ours.recovered) % 0.5), [0.0])


def test_arms_have_no_support_to_recover():
    ours = run(bandits.lin_ucb(sigma=0.3), offer=np.eye(D))
    assert ours.recovered is None and np.all(np.isfinite(ours.rewards))


def test_a_schedule_offers_to_each_step_its_own():
    policy = bandits.thompson(bandits.Ball(), **SHARED)
    masks = np.random.default_rng(0).random((60, D)) < 0.6
    ours = run(policy, offer=masks)
    best = [np.linalg.norm(np.sort(np.abs(THETA * mask))[-S:]) for mask in masks]
    np.testing.assert_allclose(ours.rewards + ours.regret, np.cumsum(best), rtol=1e-12)
    assert np.all(np.diff(np.asarray(ours.regret)) >= -1e-12)
    always = run(policy, offer=np.ones((60, D)))
    same = run(policy, offer=np.ones(D), engine="step")
    np.testing.assert_allclose(always.regret, same.regret, atol=1e-12)
    with pytest.raises(ValueError, match="offer has 50 steps"):
        run(policy, offer=masks[:50])
    with pytest.raises(ValueError, match="offer"):
        run(policy, offer=masks[:, :3])


def test_arms_may_change_with_the_step():
    arms = np.random.default_rng(1).normal(size=(60, 3, D))
    ours = run(bandits.lin_ucb(sigma=0.3), offer=arms)
    best = np.cumsum((arms @ THETA).max(1))
    np.testing.assert_allclose(ours.rewards + ours.regret, best, rtol=1e-12)
    assert isinstance(jax.tree.leaves(ours)[0], jax.Array)
