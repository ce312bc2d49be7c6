import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subsample_q.models import random_model

from jaxsac import subsample_q as sq
from jaxsac.subsample_q.data.sampling import binomial, draw_counts, hypergeometric_weights
from jaxsac.subsample_q.execute.simulation import move


def agree(sample, mean):
    """Within five standard errors of the sample's own spread."""
    error = np.std(sample, axis=0) / np.sqrt(len(sample)) + 1e-12
    assert np.all(np.abs(np.mean(sample, axis=0) - mean) < 5 * error), (
        np.mean(sample, axis=0),
        mean,
        error,
    )


def test_draws_without_replacement_have_the_hypergeometric_law():
    counts, k = jnp.array([5, 0, 3, 4], jnp.int32), 4
    space = sq.HistogramSpace(k, 4)
    weights = hypergeometric_weights(counts, k, jnp.float64)
    exact = [
        np.prod([math.comb(int(n), int(h)) for n, h in zip(counts, row, strict=True)]) / 495
        for row in space.table
    ]
    np.testing.assert_allclose(weights, exact, atol=1e-14)
    draws = jax.jit(jax.vmap(lambda key: draw_counts(key, counts, k)))(
        jax.random.split(jax.random.key(0), 20_000)
    )
    assert np.all(np.asarray(draws).sum(-1) == k)
    agree(
        np.eye(len(space))[np.asarray(space.index(draws))][:, np.array(exact) > 1e-3],
        np.array(exact)[np.array(exact) > 1e-3],
    )


def test_weights_stay_exact_for_a_thousand_million_agents():
    shares = np.array([0.5, 0.3, 0.2])
    weights = hypergeometric_weights(jnp.asarray(shares * 1e9, jnp.int32), 5, jnp.float64)
    mean = np.asarray(weights) @ sq.HistogramSpace(5, 3).table
    np.testing.assert_allclose(mean, 5 * shares, rtol=1e-9)
    assert weights.sum() == pytest.approx(1)


def test_a_move_in_counts_has_the_moments_of_the_model():
    model = random_model(0)
    counts = jnp.array([400, 0, 100], jnp.int32)
    after, moved = jax.jit(
        jax.vmap(lambda key: move(key, model, jnp.int32(1), counts, jnp.int32(0)))
    )(jax.random.split(jax.random.key(1), 4000))
    assert np.all(np.asarray(moved).sum(-1) == 500)
    P = np.asarray(model.local_transition[1])
    agree(np.asarray(moved), np.asarray(counts) @ P)
    variance = sum(
        n * (np.diag(p) - np.outer(p, p)) for n, p in zip(np.asarray(counts), P, strict=True)
    )
    np.testing.assert_allclose(np.cov(np.asarray(moved).T), variance, atol=0.1 * variance.max())
    agree(np.eye(3)[np.asarray(after)], np.asarray(model.global_transition[1, 0]))
    assert int(binomial(jax.random.key(0), jnp.int32(7), jnp.float64(1.0))) == 7
    assert int(binomial(jax.random.key(0), jnp.int32(7), jnp.float64(0.0))) == 0


def return_of_agents(key, model, table, counts, horizon):
    """The discounted return of one run from s_g = 1, agent by agent."""
    (k,), L = table.meaning.ks, len(counts)
    agents = jnp.repeat(jnp.arange(L), counts, total_repeat_length=int(counts.sum()))

    def step(carried, key):
        state, agents = carried
        sample_key, global_key, local_key = jax.random.split(key, 3)
        sampled = jnp.bincount(jax.random.permutation(sample_key, agents)[:k], length=L)
        action = table.policy[state, sq.HistogramSpace(k, L).index(sampled)]
        reward = model.global_reward[state, action] + jnp.mean(model.local_reward[state, agents])
        after = jax.random.categorical(global_key, jnp.log(model.global_transition[state, action]))
        moved = jax.random.categorical(local_key, jnp.log(model.local_transition[state, agents]))
        return (after, moved), reward

    start = (jnp.asarray(1, agents.dtype), agents)
    rewards = jax.lax.scan(step, start, jax.random.split(key, horizon))[1]
    return jnp.sum(model.discount ** jnp.arange(horizon, dtype=rewards.dtype) * rewards)


def test_counts_agents_and_the_exact_value_agree():
    model, n, k = random_model(5), 6, 2
    table = sq.solve(model, k).value
    counts = np.array([3, 1, 2], np.int32)
    exact = float(
        sq.evaluate(model, table, n, tol=1e-9)
        .check()
        .value.value[1, int(sq.HistogramSpace(n, 3).index(counts))]
    )
    keys = jax.random.split(jax.random.key(2), 2000)
    for one in (
        lambda key: sq.simulate(key, model, table, n, 60, (1, counts)).discounted_return,
        lambda key: return_of_agents(key, model, table, counts, 60),
    ):
        agree(np.asarray(jax.jit(jax.vmap(one))(keys)), exact)


def test_one_run_is_consistent_and_its_program_does_not_depend_on_n():
    model = random_model(5, dtype=np.float32)
    table = sq.solve(model, 2).value
    programs = []
    for n in (1_000, 1_000_000):
        state = sq.population_state(0, [1, 1, 2], n)
        run = sq.simulate(jax.random.key(0), model, table, n, 20, state)
        assert np.all(np.asarray(run.counts).sum(-1) == n) and run.rewards.dtype == np.float32
        np.testing.assert_allclose(
            run.discounted_return, np.sum(0.8 ** np.arange(20) * np.asarray(run.rewards)), rtol=1e-5
        )
        programs.append(
            str(
                jax.make_jaxpr(
                    lambda key, counts, n=n: sq.simulate(key, model, table, n, 20, (0, counts))
                )(jax.random.key(0), state[1])
            ).replace(f" {n}:i32", " n:i32")  # what the counts are compared with
        )
    assert programs[0] == programs[1]


def test_bad_input():
    model = random_model(5)
    table = sq.solve(model, 2).value
    with pytest.raises(ValueError, match="initial counts sum to 3, not to num_agents=4"):
        sq.simulate(jax.random.key(0), model, table, 4, 5, (0, np.array([1, 1, 1])))
    with pytest.raises(ValueError, match="samples k=2 agents, more than num_agents=1"):
        sq.simulate(jax.random.key(0), model, table, 1, 5, (0, np.array([1, 0, 0])))
    with pytest.raises(ValueError, match="use float64"):
        sq.simulate(
            jax.random.key(0),
            random_model(5, dtype=np.float32),
            table,
            2**25,
            5,
            (0, np.array([2**25, 0, 0])),
        )
