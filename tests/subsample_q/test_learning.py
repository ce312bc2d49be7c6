import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subsample_q.models import brute_force_q, random_model

from jaxsac import Status, subsample_q as sq

MODEL = random_model(0, G=2, A=2, L=3)
K = 3


@pytest.fixture(scope="module")
def exact():
    return brute_force_q(MODEL, K)


@pytest.mark.slow
def test_the_sampled_fixed_point_nears_the_exact_one_as_the_root_of_m(exact):
    keys = jax.random.split(jax.random.key(0), 6)
    sizes = (4, 64, 1024)
    errors = [
        float(
            jnp.mean(
                jnp.max(
                    jnp.abs(
                        jax.vmap(lambda key, m=m: sq.learn(key, MODEL, K, m).value.q)(keys)
                        - exact[None]
                    ),
                    axis=(1, 2, 3),
                )
            )
        )
        for m in sizes
    ]
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.35


def test_sampled_tables_are_certified_as_fixed_points_and_admit_no_false_upper_bound(exact):
    solution = sq.learn(jax.random.key(1), MODEL, K, 16, share_local=True).check()
    assert sq.BACKENDS[int(solution.stats["backend"])] == "sampled"
    assert np.all(solution.value.bounds.upper >= exact.max(-1)) and np.all(
        solution.value.bounds.lower <= exact.max(-1)
    )


def test_fresh_draws_each_sweep_average_out(exact):
    solution = sq.learn(jax.random.key(2), MODEL, K, 8, resample="per_sweep", max_steps=1500)
    assert solution.status == Status.MAX_STEPS
    assert np.max(np.abs(solution.value.q - exact)) < 0.15


def test_q_learning_from_a_generative_model(exact):
    short, long = (
        sq.q_learning(jax.random.key(3), MODEL, K, updates) for updates in (5_000, 100_000)
    )
    errors = [np.max(np.abs(s.value.q - exact)) for s in (short, long)]
    assert errors[1] < 0.2 and errors[1] < 0.5 * errors[0]
    assert int(long.stats["visits"].sum()) == 100_000


def test_learning_from_a_recorded_trajectory(exact):
    generator = np.random.default_rng(0)
    n, steps = 7, 6000
    Pg, Pl = np.asarray(MODEL.global_transition), np.asarray(MODEL.local_transition)
    global_states, local_states = np.zeros(steps + 1, int), np.zeros((steps + 1, n), int)
    actions = generator.integers(0, 2, steps)
    for t in range(steps):
        g = global_states[t]
        global_states[t + 1] = np.sum(generator.random() > np.cumsum(Pg[g, actions[t]])[:-1])
        local_states[t + 1] = np.sum(
            generator.random(n)[:, None] > np.cumsum(Pl[g][local_states[t]], -1)[:, :-1], -1
        )
    record = sq.Trajectory(
        global_states,
        local_states,
        actions,
        np.asarray(MODEL.global_reward)[global_states[:-1], actions],
        np.asarray(MODEL.local_reward)[global_states[:-1, None], local_states[:-1]],
    )
    solution = sq.learn_from_trajectory(jax.random.key(0), record, K, 2, 3, 2, 0.8, num_passes=4)
    assert int(solution.stats["visits"].sum()) == 4 * steps * (n // K)
    assert np.mean(np.abs(solution.value.q - exact)) < 0.2 < 0.5 * np.std(exact)
    with pytest.raises(ValueError, match=r"actions must lie in 0\.\.0"):
        sq.learn_from_trajectory(jax.random.key(0), record, K, 2, 3, 1, 0.8)
    with pytest.raises(ValueError, match="k=8 exceeds the 7 recorded agents"):
        sq.learn_from_trajectory(jax.random.key(0), record, 8, 2, 3, 2, 0.8)
