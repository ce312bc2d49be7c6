import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subsample_q.models import brute_force_q, random_arrays, random_model

from jaxsac import Status
from jaxsac import subsample_q as sq

K = 4


@pytest.mark.parametrize("method", ["anderson", "value_iteration", "modified_policy_iteration", "policy_iteration"])
def test_every_method_and_stopping_rule_finds_the_brute_force_solution(method):
    model = random_model(0)
    exact = brute_force_q(model, K)
    for stopping in ("span", "sup"):
        solution = sq.solve(model, K, method=method, stopping=stopping, tol=1e-8).check()
        table, error = solution.value, float(solution.stats["error"])
        assert error <= 1e-8 * float(solution.stats["scale"])
        np.testing.assert_allclose(table.q, exact, atol=1.01 * error + 1e-12)
        assert np.all(table.bounds.lower <= exact.max(-1) + 1e-12) and np.all(exact.max(-1) <= table.bounds.upper + 1e-12)
        np.testing.assert_array_equal(table.policy, exact.argmax(-1))
        np.testing.assert_allclose(table.value, table.q.max(-1), atol=1e-14)


@pytest.mark.parametrize("backend", ["thinning", pytest.param("exchange", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-6), (np.float32, 1e-3)], ids=["float64", "float32"])
def test_structured_forms_solve_the_same_problem(backend, dtype, tolerance):
    solution = sq.solve(random_model(0, dtype=dtype), K, backend=backend).check()
    assert solution.value.q.dtype == dtype and sq.BACKENDS[int(solution.stats["backend"])] == backend
    np.testing.assert_allclose(solution.value.q, brute_force_q(random_model(0), K), atol=tolerance * float(solution.stats["scale"]))


def test_anderson_takes_far_fewer_sweeps_than_value_iteration():
    model = random_model(0, discount=0.99)
    steps = {
        name: int(sq.solve(model, K, method=name, stopping="sup").check().stats["num_steps"]) for name in ("anderson", "value_iteration")
    }
    assert steps["anderson"] < 40 < 1000 < steps["value_iteration"]


def test_average_reward_is_the_limit_of_discounting_and_survives_a_periodic_chain():
    model = random_model(1)
    solution = sq.solve(model, K, criterion="average").check()
    gain = float(solution.stats["gain"])
    assert solution.value.bounds.lower <= gain <= solution.value.bounds.upper
    patient = sq.solve(dataclasses.replace(model, discount=0.99999), K).check()
    np.testing.assert_allclose((1 - 0.99999) * patient.value.value, gain, atol=1e-3)
    flip = np.array([[[0.0, 1.0]], [[1.0, 0.0]]])
    periodic = sq.Model(flip, np.tile(np.eye(2), (2, 1, 1)), np.array([[1.0], [3.0]]), np.zeros((2, 2)), 1.0)
    np.testing.assert_allclose(sq.solve(periodic, 2, criterion="average").check().stats["gain"], 2.0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 1, 3), (3, 2, 1), (1, 1, 1)])
def test_axes_of_length_one(shape):
    G, A, L = shape
    model = random_model(2, G, A, L)
    np.testing.assert_allclose(sq.solve(model, 3, tol=1e-9).check().value.q, brute_force_q(model, 3), atol=1e-6)


def test_discount_zero_takes_one_sweep_and_gives_the_reward():
    model = random_model(0, discount=0.0)
    solution = sq.solve(model, K).check()
    assert int(solution.stats["num_steps"]) == 2  # the test of the operator, and the sweep
    np.testing.assert_allclose(solution.value.q, brute_force_q(model, K, sweeps=1), atol=1e-14)


def test_absorbing_states_keep_their_reward_for_ever():
    Pg, _, rg, _ = random_arrays(3)
    model = sq.Model(Pg, np.tile(np.eye(3), (3, 1, 1)), 0 * rg, np.tile([1.0, 2.0, 3.0], (3, 1)), 0.8)
    table = sq.solve(model, K).check().value
    np.testing.assert_allclose(table.value, np.tile(np.asarray(table.histograms) @ np.array([1.0, 2.0, 3.0]) / K / 0.2, (3, 1)), rtol=1e-6)
    assert np.all(np.asarray(table.policy) == 0)  # every action ties: the lowest


def test_how_a_solve_ends():
    model = random_model(0)
    stopped = sq.solve(model, K, max_steps=5)
    assert stopped.status == Status.MAX_STEPS and np.all(np.isfinite(stopped.value.q))
    assert sq.solve(model, K, tol=1e-18).status == Status.STALLED
    broken = jax.jit(lambda reward: sq.solve(dataclasses.replace(model, global_reward=reward), K))(jnp.full((3, 2), jnp.nan))
    assert broken.status == Status.NONFINITE
    again = sq.solve(model, K, initial=sq.solve(model, K).state).check()
    assert int(again.stats["num_steps"]) <= 2


def test_a_batch_of_discounts_and_models():
    plan = sq.plan(random_model(0), K, backend="thinning")
    discounts = jnp.array([0.5, 0.8, 0.9])
    model = random_model(0)
    batch = jax.vmap(lambda d: sq.solve(dataclasses.replace(model, discount=d), K, plan=plan))(discounts)
    for lane, discount in enumerate(discounts):
        alone = sq.solve(dataclasses.replace(model, discount=float(discount)), K, plan=plan)
        np.testing.assert_allclose(batch.value.q[lane], alone.value.q, atol=2e-5)
    batch.check()


@pytest.mark.parametrize("backend", ["dense", "thinning", pytest.param("exchange", marks=pytest.mark.slow)])
def test_derivatives_by_rewards_and_transitions(backend):
    model = random_model(4)
    generator = np.random.default_rng(0)
    plan = sq.plan(model, K, backend=backend)

    @jax.jit
    def value(arrays):
        return jnp.sum(sq.solve(sq.Model(*arrays), K, tol=1e-12, plan=plan).value.value ** 2)

    arrays = jax.tree.leaves(model)
    for i, slope in enumerate(jax.jit(jax.grad(value))(arrays)):
        direction = jnp.asarray(generator.normal(size=slope.shape))
        if i < 2:  # transitions: rows that still sum to one, which the structured forms make use of
            direction = direction - direction.mean(axis=-1, keepdims=True)
        ends = [value([*arrays[:i], arrays[i] + h * direction, *arrays[i + 1 :]]) for h in (1e-6, -1e-6)]
        np.testing.assert_allclose(jnp.sum(slope * direction), (ends[0] - ends[1]) / 2e-6, rtol=1e-5, err_msg=f"{i}")
