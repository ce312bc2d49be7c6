"""What used to be wrong without a word: bounds, scales, and what belongs to another problem."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subsample_q.models import brute_force_q, random_arrays, random_model

from jaxsac import Status, subsample_q as sq
from jaxsac.problems import subsample_q as problems
from jaxsac.subsample_q.exact.iteration.criterion import typical_range
from jaxsac.subsample_q.trust.certificate import student_quantile

MODEL = random_model(5)
KEY = jax.random.key(0)
STATE = (1, np.array([3, 1, 2], np.int32))


@pytest.fixture(scope="module")
def table():
    return sq.solve(MODEL, 2).check().value


@pytest.mark.parametrize("max_steps", [0, 1, 2, 3])
def test_bounds_hold_after_any_number_of_sweeps(max_steps):
    """Also from a first value that is far off."""
    exact = brute_force_q(MODEL, 2).max(-1)
    for initial in (None, np.full(exact.shape, 50.0)):
        solution = sq.solve(MODEL, 2, max_steps=max_steps, initial=initial)
        bounds, error = solution.value.bounds, float(solution.stats["error"])
        assert solution.status == Status.MAX_STEPS
        assert np.all(bounds.lower <= exact + 1e-12) and np.all(exact <= bounds.upper + 1e-12)
        assert np.max(np.abs(solution.value.value - exact)) <= error + 1e-12
    best = np.max(brute_force_q(MODEL, 2, sweeps=1), axis=-1)
    if max_steps < 2:
        np.testing.assert_allclose(bounds.lower.min(), best.min() / 0.2, rtol=1e-12)
        np.testing.assert_allclose(bounds.upper.max(), best.max() / 0.2, rtol=1e-12)


@pytest.mark.parametrize("penalty", [1e6, 1e9, 1e12])
def test_an_action_that_nobody_takes_changes_nothing(penalty):
    Pg, Pl, rg, rl = random_arrays(0, 3, 3, 3)
    without = sq.solve(sq.Model(Pg[:, :2], Pl, rg[:, :2], rl, 0.9), 3).check()
    wrong = rg - penalty * np.array([0, 0, 1])
    solution = sq.solve(sq.Model(Pg, Pl, wrong, rl, 0.9), 3).check()
    assert float(solution.stats["scale"]) == float(without.stats["scale"])
    np.testing.assert_allclose(solution.value.value, without.value.value, atol=1e-4)
    np.testing.assert_array_equal(solution.value.policy, without.value.policy)


@pytest.mark.parametrize("penalty", [1e3, 1e6, 1e9])
def test_a_state_that_nobody_enters_changes_little(penalty):
    """Global state 3 is entered by the last action alone, and pays −penalty."""
    Pg, Pl, rg, rl = random_arrays(0, 3, 3, 3)
    without = sq.solve(sq.Model(Pg[:, :2], Pl, rg[:, :2], rl, 0.9), 2).check().value
    grown = np.zeros((4, 3, 4))
    grown[:3, :2, :3], grown[:3, 2, 3], grown[3, :, 0] = Pg[:, :2], 1, 1
    reward = np.concatenate([rg, rg[:1] - penalty])
    model = sq.Model(grown, np.concatenate([Pl, Pl[:1]]), reward, np.concatenate([rl, rl[:1]]), 0.9)
    found = sq.solve(model, 2).check().value
    np.testing.assert_allclose(found.value[:3], without.value, atol=1e-2)
    np.testing.assert_array_equal(found.policy[:3], without.policy)


def test_a_level_that_hides_the_differences_is_not_converged():
    model = random_model(0)
    for level, status in ((1e3, Status.CONVERGED), (1e12, Status.STALLED)):
        lifted = dataclasses.replace(model, global_reward=model.global_reward + level)
        assert sq.solve(lifted, 2).status == status
    nothing = dataclasses.replace(
        model, global_reward=np.zeros((3, 2)), local_reward=np.ones((3, 3))
    )
    np.testing.assert_allclose(sq.solve(nothing, 2).check().value.value, 5)


def test_the_scale_is_its_formula():
    generator = np.random.default_rng(0)
    best = generator.normal(size=(3, 20))
    np.testing.assert_allclose(typical_range(jnp.asarray(best)), np.ptp(best) / 2)
    best[0, :5] -= 1e9
    below = np.sort((best.max() - best).reshape(-1))[1:]
    np.testing.assert_allclose(typical_range(jnp.asarray(best)), 100 * below[5], rtol=1e-12)
    assert typical_range(jnp.full((2, 3), -4.0)) == 4


@pytest.mark.parametrize("discount", [1.0, 1.5, -0.5, np.nan])
def test_a_traced_discount_out_of_range_is_no_answer(discount):
    solution = jax.jit(lambda d: sq.solve(dataclasses.replace(MODEL, discount=d), 2))(discount)
    assert solution.status == Status.NONFINITE
    assert all(np.all(np.isnan(leaf)) for leaf in (*solution.value[:2], *solution.value.bounds))


def lower_bound(returns, model, policy, confidence, horizon):
    """As `certify` documents it, in numpy."""
    stages = np.asarray(model.global_reward) + np.asarray(model.local_reward).min(-1)[:, None]
    least = min(stages[g, a] for g, row in enumerate(np.asarray(policy)) for a in row)
    discount, count = float(model.discount), len(returns)
    error = math.sqrt(sum((returns - returns.mean()) ** 2) / (count - 1) / count)
    tail = discount**horizon * least / (1 - discount)
    return (
        returns.mean() - float(student_quantile(jnp.asarray(confidence), count - 1)) * error + tail
    )


@pytest.mark.parametrize("confidence,horizon,rollouts", [(0.9, 2, 12), (0.99, 7, 30)])
def test_the_lower_bound_is_its_formula(table, confidence, horizon, rollouts):
    options = {"num_rollouts": rollouts, "confidence": confidence, "horizon": horizon}
    bounds = sq.certify(KEY, MODEL, table, 6, STATE, **options)
    returns = [
        float(sq.simulate(key, MODEL, table, 6, horizon, STATE).discounted_return)
        for key in jax.random.split(KEY, rollouts)
    ]
    expected = lower_bound(np.array(returns), MODEL, table.policy, confidence, horizon)
    np.testing.assert_allclose(bounds.lower, expected, rtol=1e-10)
    np.testing.assert_allclose(bounds.gap, bounds.upper - bounds.lower, rtol=1e-12)
    space = sq.HistogramSpace(2, 3)
    weights = [
        math.prod(map(math.comb, map(int, STATE[1]), map(int, row))) / math.comb(6, 2)
        for row in space.table
    ]
    np.testing.assert_allclose(bounds.upper, table.bounds.upper[1] @ np.array(weights), rtol=1e-12)


def test_an_action_that_the_policy_never_takes_is_not_in_the_tail(table):
    hated = sq.Model(*random_arrays(0), 0.8)
    hated = dataclasses.replace(hated, global_reward=hated.global_reward.at[:, 1].add(-1e9))
    bounds = sq.certify(KEY, hated, sq.solve(hated, 2), 6, STATE, num_rollouts=4)
    assert bounds.lower > -100


def test_choose_k_shares_its_confidence_over_the_ladder(table):
    options = {"num_rollouts": 8, "tol": 1e-8}
    k, bounds = sq.choose_k(KEY, MODEL, 6, 1e6, STATE, max_k=4, confidence=0.9, **options)
    solution = sq.solve(MODEL, 1, tol=1e-8)
    alone = sq.certify(
        jax.random.fold_in(KEY, 0), MODEL, solution, 6, STATE, num_rollouts=8,
        confidence=1 - 0.1 / 3,
    )  # fmt: skip
    assert k == 1
    np.testing.assert_allclose(bounds, alone, rtol=1e-12)


def test_choose_k_prefers_any_number_to_nan(monkeypatch):
    from jaxsac.subsample_q.trust import certificate

    gaps = iter([np.nan, 3.0, 2.0, np.nan])
    monkeypatch.setattr(
        certificate, "certify", lambda *_, **__: certificate.GapBounds(0.0, 0.0, next(gaps))
    )
    assert sq.choose_k(KEY, MODEL, 8, 1.0, (0, [8, 0, 0]))[0] == 4


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"initial": (3, STATE[1])}, "global_state must be < G = 3"),
        ({"initial": (-1, STATE[1])}, "global_state must be ≥ 0"),
        ({"initial": (0.7, STATE[1])}, "global_state must hold integers"),
        ({"initial": (0, [3, 3])}, r"counts must have shape \[3\]"),
        ({"initial": (0, [STATE[1]])}, r"counts must have shape \[3\]"),
        ({"initial": (0, [8, -1, -1])}, "counts must be ≥ 0"),
        ({"initial": (0, [3, 1, 1])}, "sum to 5, not to num_agents=6"),
        ({"num_agents": 1}, "samples k=2 agents, more than num_agents=1"),
        ({"model": random_model(0, G=4)}, "table must have G = 4, got 3"),
        ({"model": random_model(0, L=2)}, "table must have L = 2, got 3"),
        ({"model": random_model(0, A=3)}, "table must have A = 3, got 2"),
    ],
)
def test_what_belongs_to_another_problem_is_refused(table, changed, message):
    given = {"model": MODEL, "table": table, "num_agents": 6, "initial": STATE} | changed
    with pytest.raises(ValueError, match=message):
        sq.simulate(KEY, **given, horizon=2)
    for exact in (False, True):
        with pytest.raises(ValueError, match=message):
            sq.certify(KEY, **given, num_rollouts=2, exact=exact)


def test_traced_states_that_do_not_exist_give_nan(table):
    bound = jax.jit(lambda g, counts: sq.upper_bound(table, (g, counts)))
    assert np.isfinite(bound(*STATE))
    for wrong in ((3, STATE[1]), (-1, STATE[1]), (0, -STATE[1]), (0, 0 * STATE[1])):
        assert np.isnan(bound(*wrong))
    run = jax.jit(lambda g, counts: sq.simulate(KEY, MODEL, table, 6, 2, (g, counts)))
    assert np.all(np.isfinite(run(*STATE).rewards))
    assert np.all(np.isnan(run(0, STATE[1] + 1).rewards)) and np.isnan(run(9, STATE[1])[-1])


def test_only_bounds_on_the_best_value_bound_it(table):
    squeeze = sq.LocalActionModel(*problems.gaussian_squeeze())
    coupled = sq.solve_local_actions(squeeze, 1)
    for wrong, on in (
        (sq.solve(MODEL, 2, criterion="average"), "gain"),
        (sq.evaluate(MODEL, table, 3), "policy"),
        (coupled, "coupled"),
    ):
        with pytest.raises(
            ValueError, match=f"table holds no bounds on the best value, but on '{on}'"
        ):
            sq.upper_bound(wrong, (0, np.array([2, 1, 0])))


@pytest.mark.parametrize("tried", [0, 1])
def test_what_was_never_tried_is_not_preferred(tried):
    """−1 for ever is worth −10."""
    record = sq.Trajectory(
        np.zeros(41, int),
        np.zeros((41, 4), int),
        np.full(40, tried),
        -np.ones(40),
        np.zeros((40, 4)),
    )
    solution = sq.learn_from_trajectory(KEY, record, 2, 1, 1, 2, 0.9)
    assert solution.value.policy[0, 0] == tried
    np.testing.assert_allclose(solution.value.q[0, 0, tried], -10)
    assert solution.value.q[0, 0, 1 - tried] == -np.inf


def test_sizes_are_refused_before_a_loop_starts(table):
    with pytest.raises(ValueError, match="below 2"):
        sq.plan(MODEL, 2**40)
    for call in (sq.plan, sq.solve):
        with pytest.raises(ValueError, match="k=2147483647 sampled agents"):
            call(MODEL, 2**31 - 1)
    with pytest.raises(ValueError, match="k=2147483647 sampled agents"):
        sq.HistogramSpace(2**31 - 1, 2**31 - 1)
    with pytest.raises(ValueError, match="k=2 sampled agents"):  # the uniforms of one pair
        sq.learn(KEY, MODEL, 2, 10**8)
    with pytest.raises(ValueError, match="num_agents="):
        sq.lift(np.ones((1, 3)), 2, 10**6)
    with pytest.raises(ValueError, match="values have 3 columns"):
        sq.lift(np.ones((1, 3)), 1, 4)


def test_shares_are_checked_and_thousands_of_millions_counted():
    assert sq.population_state(0, [0.2, 0.3, 0.5], 10**9)[1].tolist() == [
        2 * 10**8,
        3 * 10**8,
        5 * 10**8,
    ]
    for wrong in ([-1, 2], [0, 0], [0.5, np.nan], [[1.0]], "many", [np.inf, 1]):
        with pytest.raises(ValueError, match="shares must be"):
            sq.population_state(0, wrong, 10)


def test_the_lift_of_integers_is_that_of_floats():
    values = np.array([[14, 3, 7, 1, 9, 2]])
    np.testing.assert_array_equal(sq.lift(values, 3, 4), sq.lift(values.astype(float), 3, 4))
    np.testing.assert_allclose(sq.lift(values, 3, 4)[0, :4], [14, 8.5, 10.5, 4.5])


def test_the_released_demand_response_has_its_known_values():
    for k in (1, 2):
        value = sq.solve(sq.Model(*problems.demand_response()), k, tol=1e-9).check().value.value
        np.testing.assert_allclose(
            np.asarray(value).mean(axis=1)[[0, 4]], [172.398, 135.209], atol=5e-4
        )


@pytest.mark.parametrize("kind", ["zeros", "equal", "integers"])
def test_derivatives_where_actions_tie(kind):
    """Finite, and a subgradient: between the two one-sided differences."""
    Pg, Pl, rg, _ = random_arrays(1)
    Pg = np.repeat(Pg[:, :1], 2, axis=1)
    rg = {"zeros": 0 * rg, "equal": np.ones((3, 2)), "integers": np.round(rg).astype(int)}[kind]
    local = np.array([[0.0, 1, 2]] * 3)

    def value(reward):
        return jnp.sum(sq.solve(sq.Model(Pg, Pl, reward, local, 0.8), 2, tol=1e-11).value.value)

    reward = jnp.asarray(rg, float)
    slope = jax.grad(value)(reward)
    second = jax.jacfwd(jax.jacfwd(value))(reward)
    np.testing.assert_allclose(second, 0, atol=1e-8)
    direction = np.random.default_rng(0).normal(size=rg.shape)
    above, below = (float(value(reward + h * direction)) for h in (1e-5, -1e-5))
    here, along = float(value(reward)), float(jnp.sum(slope * direction))
    assert (here - below) / 1e-5 - 1e-4 <= along <= (above - here) / 1e-5 + 1e-4


def test_the_lower_bound_has_a_derivative_where_all_returns_are_equal():
    one = sq.Model(np.ones((1, 1, 1)), np.ones((1, 1, 1)), np.ones((1, 1)), np.ones((1, 1)), 0.5)
    solution = sq.solve(one, 1)
    slope = jax.grad(
        lambda reward: (
            sq.certify(
                KEY,
                dataclasses.replace(one, global_reward=reward),
                solution,
                5,
                (0, [5]),
                num_rollouts=4,
            ).lower
        )
    )(one.global_reward)
    np.testing.assert_allclose(slope, 2, rtol=1e-10)


def test_without_a_future_the_first_reward_is_all():
    model = dataclasses.replace(MODEL, discount=jnp.zeros(()))
    table = sq.solve(model, 6).check().value
    bounds = sq.certify(KEY, model, table, 6, STATE, num_rollouts=2)
    np.testing.assert_allclose([bounds.lower, bounds.gap], [bounds.upper, 0], atol=1e-12)


def test_a_first_value_of_another_problem_is_refused():
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), MODEL)
    for wrong in (sq.solve(single, 2), sq.solve(MODEL, 1), np.zeros((3, 7))):
        with pytest.raises(ValueError, match="initial must be the value of another solve"):
            sq.solve(MODEL, 2, initial=wrong)
