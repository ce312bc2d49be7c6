"""Models from recordings, against counts by hand and the model that made them."""

import jax
import numpy as np
import pytest
from subsample_q.models import random_model

from jaxsac import subsample_q as sq


def simulator(model, n, seed, start=0, length=None):
    """reset, step and uniform actions of the model in plain numpy, agent by agent, in arrays that
    are changed in place; n(episode) agents, and an end after `length` steps.
    """
    generator = np.random.default_rng(seed)
    Pg, Pl, rg, rl = (np.asarray(a) for a in jax.tree.leaves(model)[:4])
    rows, now = Pl.cumsum(-1), {"episode": 0}

    def reset():
        agents = generator.integers(0, rl.shape[1], n(now["episode"]))
        now.update(g=np.array(start), agents=agents, t=0, episode=now["episode"] + 1)
        return now["g"], now["agents"]

    def step(action):
        g, agents = int(now["g"]), now["agents"]
        earned = rl[g, agents]
        lot = generator.random(agents.size)[:, None]
        agents[:] = np.minimum((lot >= rows[g, agents]).sum(-1), rl.shape[1] - 1)
        now["g"][...] = generator.choice(len(Pg), p=Pg[g, action])
        now["t"] += 1
        return now["g"], agents, rg[g, action], earned, now["t"] == length

    return reset, step, generator


def record(model, steps, n, seed, actions=None):
    reset, step, generator = simulator(model, lambda _: n, seed)
    actions = range(model.num_actions) if actions is None else actions
    (run,) = sq.record(reset, step, lambda *_: generator.choice(actions), steps)
    return run


def test_frequencies_and_means_are_those_of_the_recordings():
    """Several runs of different lengths and numbers of agents, none joined to the next."""
    model = random_model(3)
    runs = [record(model, steps, n, seed) for seed, (steps, n) in enumerate([(60, 3), (90, 7)])]
    found = sq.estimate(runs, 3, 3, 2, 0.8)
    moves, agents = np.zeros((3, 2, 3)), np.zeros((3, 3, 3))
    for run in runs:
        for t, a in enumerate(run.actions):
            g = run.global_states[t]
            moves[g, a, run.global_states[t + 1]] += 1
            for i in range(run.local_states.shape[1]):
                agents[g, run.local_states[t, i], run.local_states[t + 1, i]] += 1
    assert moves.sum() == 150 and agents.sum() == 60 * 3 + 90 * 7
    np.testing.assert_array_equal(found.global_visits, moves.sum(-1))
    np.testing.assert_array_equal(found.local_visits, agents.sum(-1))
    estimated = found.model
    np.testing.assert_allclose(estimated.global_transition, moves / moves.sum(-1)[..., None])
    np.testing.assert_allclose(estimated.local_transition, agents / agents.sum(-1)[..., None])
    np.testing.assert_allclose(estimated.global_reward, model.global_reward, rtol=1e-12)
    np.testing.assert_allclose(estimated.local_reward, model.local_reward, rtol=1e-12)
    driven = sq.estimate(runs, 3, 3, 2, 0.8, action_drives_agents=True)
    assert driven.model.local_transition.shape == (3, 2, 3, 3)
    np.testing.assert_array_equal(np.sum(driven.local_visits, axis=1), found.local_visits)
    prior = sq.estimate(runs, 3, 3, 2, 0.8, unseen="prior").model
    expected = (moves + 1 / 3) / (moves.sum(-1)[..., None] + 1)
    np.testing.assert_allclose(prior.global_transition, expected)


def test_episodes_of_a_simulator_are_recorded_apart_and_copied():
    """What is recorded is what the policy saw, whatever the simulator does to its arrays later."""
    model, seen = random_model(3), []
    reset, step, generator = simulator(model, lambda episode: 2 + episode, 1, length=4)

    def policy(global_state, agents):
        seen.append((int(global_state), *agents.tolist()))
        return generator.integers(2)

    runs = sq.record(reset, step, policy, 10)
    assert [run.actions.shape[0] for run in runs] == [4, 4, 2]
    assert [run.local_states.shape for run in runs] == [(5, 2), (5, 3), (3, 4)]
    kept = [
        (int(g), *agents.tolist())
        for run in runs
        for g, agents in zip(run.global_states[:-1], np.asarray(run.local_states[:-1]), strict=True)
    ]
    assert kept == seen
    for run in runs:
        where = run.global_states[:-1, None], run.local_states[:-1]
        np.testing.assert_array_equal(run.local_rewards, np.asarray(model.local_reward)[where])
    with pytest.raises(ValueError, match="step changed the number of agents"):
        sq.record(reset, lambda a: (0, [0, 0], 0.0, [0.0], False), policy, 1)


def test_what_a_policy_or_a_simulator_reuses_is_copied():
    held, reward = np.array([2, 0, 1]), np.zeros(())

    def step(action):
        reward[...] += 1
        held[:] = np.roll(held, 1)
        return 1, held, reward, np.ones(3), False

    def policy(global_state, agents):
        agents.sort()
        return {0: 1, 1: 0}[global_state]

    (run,) = sq.record(lambda: (0, held), step, policy, 3)
    assert run.global_rewards.tolist() == [1, 2, 3] and run.actions.tolist() == [1, 0, 0]
    assert run.local_states.tolist() == [[2, 0, 1], [1, 2, 0], [0, 1, 2], [2, 0, 1]]
    for bad in (0.99, True, [1]):
        with pytest.raises(ValueError, match="policy must return a whole number"):
            sq.record(lambda: (0, held), step, lambda *_, bad=bad: bad, 3)


@pytest.mark.slow
def test_the_error_falls_with_the_root_of_the_record_and_beats_q_learning():
    model, k = random_model(5), 2
    exact = sq.solve(model, k, tol=1e-8).value.q
    errors = []
    for steps in (300, 16_000):
        run = record(model, steps, 6, steps)
        table = sq.solve(sq.estimate(run, 3, 3, 2, 0.8).model, k, tol=1e-8).check().value
        errors.append(float(np.max(np.abs(table.q - exact))))
    assert errors[1] < 0.5 * errors[0]
    learnt = sq.learn_from_trajectory(jax.random.key(0), run, k, 3, 3, 2, 0.8).value.q
    assert errors[1] < np.max(np.abs(learnt - exact))


@pytest.mark.parametrize("discount", [0.0, 0.8, 0.99])
def test_what_was_never_recorded_is_never_preferred_and_worth_the_worst(discount):
    """Action 1 is never tried, and global state 2 never met: the values are those of the known
    part, whatever lies beyond.
    """
    Pg, Pl, rg, rl = (np.array(a) for a in jax.tree.leaves(random_model(7))[:4])
    Pg[:2, :, 2] = 0
    Pg /= Pg.sum(-1, keepdims=True)
    run = record(sq.Model(Pg, Pl, rg - 5, rl, 0.5), 400, 5, 0, actions=[0])
    found = sq.estimate(run, 3, 3, 2, discount)
    visits = np.asarray(found.global_visits)
    assert np.all(visits[:, 1] == 0) and np.all(visits[2] == 0) and np.all(visits[:2, 0] > 0)
    table = sq.solve(found.model, 2).check().value
    assert np.all(table.policy[:2] == 0)
    known = sq.estimate(run, 2, 3, 1, discount).model
    np.testing.assert_allclose(table.value[:2], sq.solve(known, 2).value.value, atol=1e-4)
    worst = (np.min(known.global_reward) + np.min(known.local_reward)) / (1 - discount)
    np.testing.assert_allclose(table.value[2], worst, rtol=1e-5)
    assert np.all(table.q[:2, :, 1] <= worst + 1e-4 * abs(worst))


def test_recordings_that_cannot_be_used_are_refused():
    run = record(random_model(3), 5, 2, 0, actions=[0])
    with pytest.raises(ValueError, match=r"never show \d of 6 pairs .*, and \d of 9 cells"):
        sq.estimate(run, 3, 3, 2, 0.8, unseen="refuse")
    with pytest.raises(ValueError, match="a discount < 1"):
        sq.estimate(run, 3, 3, 2, 1.0)
    with pytest.raises(ValueError, match="list of at least one"):
        sq.estimate([], 3, 3, 2, 0.8)
    with pytest.raises(ValueError, match=r"global_states must lie in 0..0"):
        sq.estimate(run, 1, 3, 2, 0.8)
    with pytest.raises(ValueError, match="known, not traced"):
        jax.jit(lambda t: sq.estimate(t, 3, 3, 2, 0.8).model)(run)


def test_an_untried_action_is_never_preferred_to_agents_of_whom_nothing_is_known():
    """One agent; action 1 was never tried, and nobody saw what agents do in some local states."""
    runs = [
        sq.Trajectory([0, 1], [[0], [1]], [0], [0.0], [[0.0]]),
        sq.Trajectory([0, 1, 1, 1], [[1], [0], [0], [0]], [0, 0, 0], [0.0] * 3, [[0.0], [1], [1]]),
    ]
    for discount in (0.4, 0.9):
        found = sq.estimate(runs, 2, 2, 2, discount)
        policy = np.asarray(sq.solve(found.model, 1).check().value.policy)
        assert (policy == 0).all()
