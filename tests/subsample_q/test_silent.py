"""What used to be wrong without a word: bounds, scales, and what belongs to another problem."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subsample_q.models import brute_force_q, random_arrays, random_model

from jaxsac import Status, subsample_q as sq
from jaxsac._quantiles import student_quantile
from jaxsac.problems import subsample_q as problems
from jaxsac.subsample_q.exact.iteration.criterion import typical_range

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


@pytest.mark.parametrize("level", [100, -100])
def test_a_common_level_does_not_stall_float32(level):
    """Nor hides a penalty; the level of a state that nobody enters is no level."""
    model = random_model(0, discount=0.9, dtype=np.float32)
    lifted = dataclasses.replace(model, global_reward=model.global_reward + np.float32(level))
    solution, plain = sq.solve(lifted, 2), sq.solve(model, 2).check()
    assert solution.status == Status.CONVERGED
    exact = brute_force_q(lifted, 2).max(-1)
    error = np.max(np.abs(np.asarray(solution.value.value) - exact))
    assert error <= 1e-4 * abs(level) / 0.1
    np.testing.assert_array_equal(solution.value.policy, plain.value.policy)
    best = np.full((3, 20), float(level)) + np.random.default_rng(0).normal(size=(3, 20))
    punished = np.concatenate([best, np.full((1, 20), -1e9)])
    sizes = [float(typical_range(jnp.asarray(rows))) for rows in (best, punished)]
    assert sizes[1] <= 100 * sizes[0]


def test_the_scale_is_its_formula():
    generator = np.random.default_rng(0)
    best = generator.normal(size=(3, 20))
    half = np.ptp(best) / 2
    for level in (0, 20, -20, 1e4, -1e4):
        expected = max(half, min(abs(best.max() + level), 100 * half))
        np.testing.assert_allclose(typical_range(jnp.asarray(best + level)), expected)
    best[0, :5] -= 1e9
    below = np.sort((best.max() - best).reshape(-1))[1:]
    np.testing.assert_allclose(typical_range(jnp.asarray(best)), 100 * below[5], rtol=1e-12)
    assert typical_range(jnp.full((2, 3), -4.0)) == 4


@pytest.mark.parametrize("discount", [1.0, 1.5, -0.5, np.nan])
def test_a_traced_discount_out_of_range_is_no_answer(discount):
    solution = jax.jit(lambda d: sq.solve(dataclasses.replace(MODEL, discount=d), 2))(discount)
    assert solution.status == Status.NONFINITE
    assert all(np.all(np.isnan(leaf)) for leaf in (*solution.value[:2], *solution.value.bounds))


def betting_limit(shares, confidence):
    """As it is documented, in numpy, on a grid of means."""
    smallest = min(math.sqrt(-8 * math.log(1 - confidence) / len(shares)), 0.5)
    bets = smallest ** np.linspace(0, 1, 16)
    means = np.linspace(0, 1, 20_001)[1:]
    won = np.stack([np.prod(1 - bet * (shares[:, None] - means), axis=0) for bet in bets])
    return means[won[0] / 2 + won[1:].mean(axis=0) / 2 < 1 / (1 - confidence)].max()


@pytest.mark.parametrize("other", [pytest.param(None, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize(
    "confidence,horizon,rollouts", [(0.9, 2, 12), pytest.param(0.99, 7, 30, marks=pytest.mark.slow)]
)
def test_the_certified_gap_is_its_formula(other, confidence, horizon, rollouts):
    model = sq.Model(*problems.mode_tracking(3, discount=0.8))
    table = sq.solve(model, 2).value
    reference = table if other is None else sq.solve(model, other).value
    k = other or 2
    options = {"num_rollouts": rollouts, "confidence": confidence, "horizon": horizon}
    q, policy = np.asarray(reference.q), np.asarray(table.policy)
    space = sq.HistogramSpace(k, 3)

    def mean_over_samples(counts, values):
        chances = [math.prod(map(math.comb, map(int, counts), map(int, h))) for h in space.table]
        return np.array(chances) @ values / math.comb(6, k)

    losses = []
    for key in jax.random.split(KEY, rollouts):
        run = sq.simulate(key, model, table, 6, horizon, STATE)
        stages = zip(run.global_states, np.asarray(run.counts), run.actions, strict=True)
        losses.append(
            sum(
                0.8**t * mean_over_samples(counts, q[g].max(-1) - q[g, :, a])
                for t, (g, counts, a) in enumerate(stages)
            )
        )
    losses, taken = np.array(losses), [set(row) for row in policy]
    worst = max((q[g].max(-1) - q[g, :, a]).max() for g in range(3) for a in taken[g])
    t = float(student_quantile(jnp.asarray(confidence), rollouts - 1))
    most = worst * (1 - 0.8**horizon) / 0.2
    limits = {
        "normal": losses.mean() + t * losses.std(ddof=1) / math.sqrt(rollouts),
        "bounded": most * betting_limit(losses / most, confidence),
    }
    upper = mean_over_samples(STATE[1], np.asarray(reference.bounds.upper)[1])
    width = np.max(np.asarray(reference.bounds.upper) - np.asarray(reference.bounds.lower))
    for interval, limit in limits.items():
        found = sq.certify(
            KEY, model, table, 6, STATE, upper=reference, interval=interval, **options
        )
        np.testing.assert_allclose(found.upper, upper, rtol=1e-12)
        gap = limit + 0.8**horizon * worst / 0.2 + width
        np.testing.assert_allclose(found.gap, gap, rtol=1e-10, atol=most * 5e-5)
        np.testing.assert_allclose(found.lower, found.upper - found.gap, rtol=1e-12)


@pytest.mark.slow
def test_an_action_that_the_policy_never_takes_is_not_in_the_tail(table):
    hated = sq.Model(*random_arrays(0), 0.8)
    hated = dataclasses.replace(hated, global_reward=hated.global_reward.at[:, 1].add(-1e9))
    bounds = sq.certify(KEY, hated, sq.solve(hated, 2), 6, STATE, num_rollouts=4)
    assert bounds.lower > -100


@pytest.mark.slow
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
        certificate, "certify", lambda *_, **__: certificate.ValueBounds(0.0, 0.0, next(gaps))
    )
    assert sq.choose_k(KEY, MODEL, 8, 1.0, (0, [8, 0, 0]))[0] == 4


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"initial": (3, STATE[1])}, "global_state must be < G = 3"),
        ({"initial": (-1, STATE[1])}, "global_state must be ≥ 0"),
        ({"initial": (0.7, STATE[1])}, "global_state must be a whole number"),
        ({"initial": (0, [3, 3])}, r"counts must have shape \[3\]"),
        ({"initial": (0, [STATE[1]])}, r"counts must have shape \[3\]"),
        ({"initial": (0, [8, -1, -1])}, "counts must be ≥ 0"),
        ({"initial": (0, [3, 1, 1])}, "sum to 5, not to num_agents=6"),
        ({"num_agents": 1}, "samples k=2 agents, more than num_agents=1"),
        ({"model": random_model(0, G=4)}, "(table|policy) must have G = 4, got 3"),
        ({"model": random_model(0, L=2)}, "(table|policy) must have L = 2, got 3"),
        ({"model": random_model(0, A=3)}, "(table|policy) must have A = 3, got 2"),
    ],
)
def test_what_belongs_to_another_problem_is_refused(table, changed, message):
    given = {"model": MODEL, "policy": table, "num_agents": 6, "initial": STATE} | changed
    with pytest.raises(ValueError, match=message):
        sq.simulate(KEY, **given, horizon=2)
    for interval in ("normal", "exact"):
        with pytest.raises(ValueError, match=message):
            sq.certify(KEY, **given, num_rollouts=2, interval=interval)


def test_traced_states_that_do_not_exist_give_nan(table):
    bound = jax.jit(lambda g, counts: sq.upper_bound(table, (g, counts)))
    assert np.isfinite(bound(*STATE))
    for wrong in ((3, STATE[1]), (-1, STATE[1]), (0, -STATE[1]), (0, 0 * STATE[1])):
        assert np.isnan(bound(*wrong))
    run = jax.jit(lambda g, counts: sq.simulate(KEY, MODEL, table, 6, 2, (g, counts)))
    assert np.all(np.isfinite(run(*STATE).rewards))
    assert np.all(np.isnan(run(0, STATE[1] + 1).rewards)) and np.isnan(run(9, STATE[1]).rewards[0])


def test_more_agents_than_the_dtype_counts(table):
    model = random_model(5, dtype=np.float32)
    small, many = sq.solve(model, 2).value, 2**24
    run = jax.jit(
        lambda counts, n: sq.simulate(KEY, model, small, n, 1, (0, counts)), static_argnums=1
    )
    with pytest.raises(ValueError, match=r"beyond what float32 counts exactly \(16777216\)"):
        run(np.array([many, 0, 0]), many)
    traced = jax.jit(lambda counts, n: sq.simulate(KEY, model, small, n, 1, (0, counts)))
    assert np.isfinite(traced(np.array([many - 1, 0, 0]), many - 1).rewards[0])
    assert np.isnan(traced(np.array([many, 0, 0]), many).rewards[0])
    bound = jax.jit(lambda counts: sq.upper_bound(table, (0, counts)))
    for wraps in ([2**31 - 1, 2**31 - 1, 12], [2**30, 2**30, 0], [2**31 - 1, 1, 0]):
        assert np.isnan(bound(np.array(wraps)))
    assert np.isfinite(bound(np.array([2**30, 2**30 - 2, 0])))


def test_lists_given_to_problems_within_a_compiled_function_are_numbers():
    jax.jit(lambda: problems.admission(gate=[0.1, 0.2]).global_reward * jnp.ones(()))()
    share = jax.jit(
        lambda: problems.gaussian_squeeze(targets=[1.0, 2.0]).share_reward(
            0, jnp.array([[0.0], [1.0], [0.0]])
        )
    )()
    assert share == 1


def test_only_bounds_on_the_best_value_bound_it(table):
    squeeze = sq.LocalActionModel(*problems.gaussian_squeeze())
    coupled = sq.solve(squeeze, 1)
    for wrong, on in ((sq.evaluate(MODEL, table, 3), "policy"), (coupled, "coupled")):
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
    refusal = "num_agents=1000000 .* over 2 local states, with those of fewer agents, are 500,0"
    with pytest.raises(ValueError, match=refusal):
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


@pytest.mark.slow
def test_the_released_demand_response_has_its_known_values():
    for k in (1, 2):
        value = sq.solve(sq.Model(*problems.demand_response()), k, tol=1e-9).check().value.value
        np.testing.assert_allclose(
            np.asarray(value).mean(axis=1)[[0, 4]], [172.398, 135.209], atol=5e-4
        )


def tied_value(reward):
    """Of a model whose actions lead to the same states."""
    Pg, Pl, *_ = random_arrays(1)
    local = np.array([[0.0, 1, 2]] * 3)
    model = sq.Model(np.repeat(Pg[:, :1], 2, axis=1), Pl, reward, local, 0.8)
    return jnp.sum(sq.solve(model, 2, tol=1e-11).value.value)


@jax.jit
def tied_slopes(reward):
    return jax.grad(tied_value)(reward), jax.jacfwd(jax.jacfwd(tied_value))(reward)


@pytest.mark.parametrize("kind", ["zeros", "equal", "integers"])
def test_derivatives_where_actions_tie(kind):
    """Finite, and a subgradient: between the two one-sided differences."""
    rg = random_arrays(1)[2]
    rg = {"zeros": 0 * rg, "equal": np.ones((3, 2)), "integers": np.round(rg).astype(int)}[kind]
    reward = jnp.asarray(rg, float)
    slope, second = tied_slopes(reward)
    np.testing.assert_allclose(second, 0, atol=1e-8)
    direction = np.random.default_rng(0).normal(size=rg.shape)
    above, below = (float(tied_value(reward + h * direction)) for h in (1e-5, -1e-5))
    here, along = float(tied_value(reward)), float(jnp.sum(slope * direction))
    assert (here - below) / 1e-5 - 1e-4 <= along <= (above - here) / 1e-5 + 1e-4


def test_the_lower_bound_has_a_derivative_where_all_losses_are_equal():
    one = sq.Model(np.ones((1, 1, 1)), np.ones((1, 1, 1)), np.ones((1, 1)), np.ones((1, 1)), 0.5)

    def lower(reward):
        model = dataclasses.replace(one, global_reward=reward)
        return sq.certify(KEY, model, sq.solve(model, 1), 5, (0, [5]), num_rollouts=4).lower

    slope = jax.grad(lower)(one.global_reward)
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


def test_what_theory_asks_for_is_its_formula():
    model, n = sq.Model(*random_arrays(0), 0.5), 10**9
    found = sq.sample_sizes(model, n, 1.0, 0.05)
    unit = 2 * float(model.max_reward()) / 0.25

    def first(k):
        return unit * (math.sqrt((n - k + 1) / (2 * n * k) * math.log(12 * math.sqrt(k))) + k**-0.5)

    assert first(found.k) <= 0.5 < first(found.k - 1)
    states = 3 * math.comb(found.k + 2, 2) * 2
    error = 0.5 * unit * math.sqrt(math.log(2 * states / 0.05) / (2 * found.num_samples))
    np.testing.assert_allclose(2 * error / 0.5, 0.5, rtol=1e-3)
    assert found.total == found.num_samples * states
    assert sq.sample_sizes(model, 4, 1e-3, 0.05).k == 4
