import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subsample_q.models import brute_force_q, hard_kernels, random_arrays, random_model

from jaxsac import Status, subsample_q as sq

K = 4


@pytest.mark.parametrize("method", sq.METHODS)
def test_every_method_and_stopping_rule_finds_the_brute_force_solution(method):
    model = random_model(0)
    exact = brute_force_q(model, K)
    for stopping in ("span", "sup"):
        solution = sq.solve(model, K, method=method, stopping=stopping, tol=1e-8).check()
        table, error = solution.value, float(solution.stats["error"])
        assert error <= 1e-8 * float(solution.stats["scale"])
        np.testing.assert_allclose(table.q, exact, atol=1.01 * error + 1e-12)
        assert np.all(table.bounds.lower <= exact.max(-1) + 1e-12) and np.all(
            exact.max(-1) <= table.bounds.upper + 1e-12
        )
        np.testing.assert_array_equal(table.policy, exact.argmax(-1))
        np.testing.assert_allclose(table.value, table.q.max(-1), atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_bounds_have_the_error_of_the_operator_in_them(dtype):
    """half the range of the residual and the rounding, each times discount / (1 − discount)."""
    model = random_model(0, dtype=dtype, discount=0.9)
    solution = sq.solve(model, K, backend="thinning")
    stats, bounds = solution.stats, solution.value.bounds
    assert stats["operator_error"] > 0 and stats["rounding"] > 9 * stats["operator_error"]
    np.testing.assert_allclose(
        bounds.upper - bounds.lower,
        np.full((3, 15), 2 * (stats["error"] + stats["rounding"])),
        rtol=0.1 if dtype == np.float32 else 1e-6,
    )


@pytest.mark.parametrize("backend", ["thinning", pytest.param("exchange", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "dtype, tolerance", [(np.float64, 1e-6), (np.float32, 1e-3)], ids=["float64", "float32"]
)
def test_structured_forms_solve_the_same_problem(backend, dtype, tolerance):
    solution = sq.solve(random_model(0, dtype=dtype), K, backend=backend).check()
    assert (
        solution.value.q.dtype == dtype and sq.BACKENDS[int(solution.stats["backend"])] == backend
    )
    np.testing.assert_allclose(
        solution.value.q,
        brute_force_q(random_model(0), K),
        atol=tolerance * float(solution.stats["scale"]),
    )


def test_anderson_takes_far_fewer_sweeps_than_value_iteration():
    model = random_model(0, discount=0.99)
    steps = {
        name: int(sq.solve(model, K, method=name, stopping="sup").check().stats["num_steps"])
        for name in ("anderson", "value_iteration")
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
    periodic = sq.Model(
        flip, np.tile(np.eye(2), (2, 1, 1)), np.array([[1.0], [3.0]]), np.zeros((2, 2)), 1.0
    )
    np.testing.assert_allclose(
        sq.solve(periodic, 2, criterion="average").check().stats["gain"], 2.0, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 1, 3), (3, 2, 1), (1, 1, 1)])
def test_axes_of_length_one(shape):
    G, A, L = shape
    model = random_model(2, G, A, L)
    np.testing.assert_allclose(
        sq.solve(model, 3, tol=1e-9).check().value.q, brute_force_q(model, 3), atol=1e-6
    )


def test_discount_zero_takes_no_sweep_and_gives_the_reward():
    model = random_model(0, discount=0.0)
    solution = sq.solve(model, K).check()
    assert int(solution.stats["num_steps"]) == 0
    np.testing.assert_allclose(solution.value.q, brute_force_q(model, K, sweeps=1), atol=1e-14)


def test_absorbing_states_keep_their_reward_for_ever():
    Pg, _, rg, _ = random_arrays(3)
    model = sq.Model(
        Pg, np.tile(np.eye(3), (3, 1, 1)), 0 * rg, np.tile([1.0, 2.0, 3.0], (3, 1)), 0.8
    )
    table = sq.solve(model, K).check().value
    np.testing.assert_allclose(
        table.value,
        np.tile(np.asarray(table.histograms) @ np.array([1.0, 2.0, 3.0]) / K / 0.2, (3, 1)),
        rtol=1e-6,
    )
    assert np.all(np.asarray(table.policy) == 0)  # every action ties: the lowest


def test_how_a_solve_ends():
    model = random_model(0)
    stopped = sq.solve(model, K, max_steps=5)
    assert stopped.status == Status.MAX_STEPS and np.all(np.isfinite(stopped.value.q))
    assert sq.solve(model, K, tol=1e-18).status == Status.STALLED
    broken = jax.jit(lambda reward: sq.solve(dataclasses.replace(model, global_reward=reward), K))(
        jnp.full((3, 2), jnp.nan)
    )
    assert broken.status == Status.NONFINITE
    again = sq.solve(model, K, initial=sq.solve(model, K).state).check()
    assert int(again.stats["num_steps"]) <= 2


def test_a_batch_of_discounts_and_models():
    plan = sq.plan(random_model(0), K, backend="thinning")
    discounts = jnp.array([0.5, 0.8, 0.9])
    model = random_model(0)
    batch = jax.vmap(lambda d: sq.solve(dataclasses.replace(model, discount=d), K, plan=plan))(
        discounts
    )
    for lane, discount in enumerate(discounts):
        alone = sq.solve(dataclasses.replace(model, discount=float(discount)), K, plan=plan)
        np.testing.assert_allclose(batch.value.q[lane], alone.value.q, atol=2e-5)
    batch.check()


RANKS = np.stack([hard_kernels(2, 3)[name] for name in ("equal_rows", "low_rank", "random")])


def slopes_of(
    model,
    plan,
    what=lambda model, plan: jnp.sum(sq.solve(model, K, tol=1e-12, plan=plan).value.value ** 2),
):
    return jax.jit(jax.grad(what))(model, plan), jax.jit(what)


def matches_central_differences(model, plan, slopes, value):
    generator, leaves, structure = np.random.default_rng(0), *jax.tree.flatten(model)
    for i, slope in enumerate(jax.tree.leaves(slopes)):
        direction = jnp.asarray(generator.normal(size=slope.shape))
        if i < 2:  # rows that still sum to one
            direction = direction - direction.mean(axis=-1, keepdims=True)
        ends = [
            value(
                jax.tree.unflatten(
                    structure, [*leaves[:i], leaves[i] + h * direction, *leaves[i + 1 :]]
                ),
                plan,
            )
            for h in (1e-6, -1e-6)
        ]
        np.testing.assert_allclose(
            jnp.sum(slope * direction),
            (ends[0] - ends[1]) / 2e-6,
            rtol=1e-5,
            atol=1e-7,
            err_msg=f"{i}",
        )


@pytest.fixture(scope="module")
def dense_slopes():
    """The dense kernel is a polynomial in the transitions; the contract's tests hold its slopes
    against central differences.
    """
    model = random_model(4, local=RANKS)
    return slopes_of(model, sq.plan(model, K, backend="dense"))[0]


@pytest.mark.parametrize("backend", ["thinning", pytest.param("exchange", marks=pytest.mark.slow)])
def test_derivatives_by_rewards_and_transitions_of_any_rank(backend, dense_slopes):
    """Equal, dependent and independent rows."""
    model = random_model(4, local=RANKS)
    slopes, _ = slopes_of(model, sq.plan(model, K, backend=backend))
    for slope, expected in zip(jax.tree.leaves(slopes), jax.tree.leaves(dense_slopes), strict=True):
        np.testing.assert_allclose(slope, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_derivatives_where_actions_drive_the_agents_of_one_agent_and_second_ones():
    generator = np.random.default_rng(5)
    local = np.stack([RANKS, RANKS[::-1]], axis=1)
    model = sq.Model(
        *random_arrays(4)[:1],
        local,
        generator.normal(size=(3, 2)),
        generator.normal(size=(3, 2, 3)),
        0.8,
    )
    for k in (1, K):
        both = [
            slopes_of(
                model,
                sq.plan(model, k, backend=b),
                lambda m, p, k=k: jnp.sum(sq.solve(m, k, plan=p).value.value ** 2),
            )[0]
            for b in ("dense", "thinning")
        ]
        for slope, expected in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6)
    model = random_model(4, local=RANKS)
    with pytest.raises(ValueError, match="need the dense form"):
        jax.hessian(
            lambda P: jnp.sum(
                sq.solve(
                    dataclasses.replace(model, local_transition=P),
                    K,
                    plan=sq.plan(model, K, backend="thinning"),
                ).value.value
            )
        )(model.local_transition)


@pytest.mark.slow
def test_derivatives_of_the_gain_and_of_the_executed_policy():
    model = random_model(1)
    plan = sq.plan(model, K, backend="thinning")

    def average(model, plan):
        solution = sq.solve(
            model, K, tol=1e-13, plan=plan, criterion="average", method="value_iteration"
        )
        return (
            solution.stats["gain"]
            + 0.1 * jnp.sum(solution.value.value**2)
            + solution.value.bounds.lower
        )

    table = sq.solve(model, 2).value

    def executed(model, plan):
        return jnp.sum(sq.evaluate(model, table, K, plan_n=plan, tol=1e-12).value.bounds.lower ** 2)

    for what in (average, executed):
        slopes, value = slopes_of(model, plan, what)
        matches_central_differences(model, plan, slopes, value)
