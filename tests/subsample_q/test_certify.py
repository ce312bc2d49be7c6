import jax
import numpy as np
import pytest
from subsample_q.models import random_model

from jaxsac import subsample_q as sq
from jaxsac.problems import subsample_q as problems
from jaxsac.subsample_q.trust.gap import betting_limit


def violations(num_models, n, sizes, G=2, A=2, L=3):
    """How often U_k < V_n*, U_k rises, or the executed policy beats V_n*, over k, states and
    models, with the exact evaluation.
    """
    count = 0
    for seed in range(num_models):
        model = random_model(seed, G, A, L)
        solved = sq.solve(model, n, tol=1e-9).check().value
        upper_before = np.inf
        for k in sizes:
            table = solved if k == n else sq.solve(model, k, tol=1e-9).check().value
            upper = np.asarray(sq.lift(table.bounds.upper, L, n))
            executed = np.asarray(sq.evaluate(model, table, n, tol=1e-9).check().value.value)
            count += (
                np.sum(upper < solved.value - 1e-7)
                + np.sum(upper > upper_before + 1e-7)
                + np.sum(executed > solved.value + 1e-7)
            )
            upper_before = upper
        if n in sizes:
            np.testing.assert_allclose(
                executed, solved.value, atol=1e-6
            )  # at k = n nothing is lost
    return count


def test_the_certificate_holds_and_closes_at_k_equal_n():
    assert violations(20, 3, (1, 3)) == 0


def test_a_wrong_table_would_be_seen():
    """The upper bound of a table that is too low falls below the best value: the check above can
    fail.
    """
    model = random_model(0, 2, 2, 3)
    best = sq.solve(model, 3).value.value
    table = sq.solve(model, 1).value
    assert np.any(sq.lift(table.bounds.upper - 5.0, 3, 3) < best)


def test_lift_is_the_hypergeometric_mean():
    model = random_model(1)
    table = sq.solve(model, 2).value
    lifted = sq.lift(table.bounds.upper, 3, 5)
    for position, counts in enumerate(sq.HistogramSpace(5, 3).table):
        np.testing.assert_allclose(
            sq.upper_bound(table, (2, counts)), lifted[2, position], atol=1e-12
        )


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["normal", "bounded"])
def test_monte_carlo_bounds_cover_at_their_confidence(interval):
    """Whichever table the bound is from; and they are no wider than the standard error asks."""
    model, n, k = sq.Model(*problems.mode_tracking(3, discount=0.8)), 6, 2
    table, larger = (sq.solve(model, size, tol=1e-9).value for size in (k, 4))
    counts = np.array([3, 1, 2], np.int32)
    truth = float(
        sq.certify(jax.random.key(0), model, table, n, (1, counts), interval="exact").lower
    )

    def lower(key):
        options = {"num_rollouts": 32, "confidence": 0.9, "horizon": 60, "interval": interval}
        return [
            sq.certify(key, model, table, n, (1, counts), upper=upper, **options).lower
            for upper in (table, larger)
        ]

    found = np.asarray(jax.jit(jax.vmap(lower))(jax.random.split(jax.random.key(7), 200)))
    covered = np.mean(found <= truth, axis=1)
    assert np.all(covered > 0.9 - 4 * np.sqrt(0.09 / 200))
    if interval == "normal":  # the mean is that of the identity: misses are seldom, but they occur
        assert np.all(covered < 1)


@pytest.mark.parametrize("chance", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("count", [64, 256])
def test_the_bounded_interval_covers_rare_losses_and_is_not_wide(chance, count):
    """Laws on which Student's interval covers 10 to 80 %."""
    confidence = 0.95
    goal = -np.log(1 - confidence)
    samples = (np.random.default_rng(0).random((400, count)) < chance).astype(float)
    limits = np.asarray(jax.jit(jax.vmap(betting_limit, (0, None)))(samples, confidence))
    assert np.mean(limits >= chance) > confidence - 4 * np.sqrt(0.05 * 0.95 / 400)
    deviation = samples.std(axis=1, ddof=1)
    ideal = deviation * np.sqrt(2 * goal / count) + goal / count
    assert np.all(limits - samples.mean(axis=1) <= 1.5 * ideal)


def test_rare_losses_that_no_action_avoids_are_no_gap():
    """A chance of 1e-4 of −1,000: returns miss it, the differences of the table do not."""
    transition = np.array([[[1 - 1e-4, 1e-4]], [[0.5, 0.5]]])
    local = np.ones((2, 1, 1))
    model = sq.Model(transition, local, np.array([[0.0], [-1e3]]), np.zeros((2, 1)), 0.9)
    table = sq.solve(model, 1, tol=1e-10).value
    for interval in ("normal", "bounded"):
        bounds = sq.certify(
            jax.random.key(0), model, table, 5, (0, [5]), num_rollouts=16, interval=interval
        )
        assert bounds.lower <= table.value[0, 0] <= bounds.upper and bounds.gap < 1e-6


@pytest.mark.slow
def test_the_gap_of_gains_covers_that_of_the_executed_policy():
    """The gain on n agents, by the exact value at a discount near 1, lies below the bound that any
    larger table gives, by what the certificate says.
    """
    arrays, n, state = problems.mode_tracking(3), 6, (0, np.array([2, 2, 2], np.int32))
    model, patient = sq.Model(*arrays), sq.Model(*arrays[:4], 0.9999)
    table, best = (sq.solve(model, k, criterion="average").check().value for k in (2, n))
    truth = 1e-4 * float(np.mean(sq.evaluate(patient, table, n).check().value.value))

    def bounds(key):
        return sq.certify(key, model, table, n, state, upper=best, num_rollouts=32, horizon=200)

    found = jax.jit(jax.vmap(bounds))(jax.random.split(jax.random.key(3), 100))
    assert 0.88 < np.mean(found.lower <= truth) < 1 and np.all(found.upper >= truth)
    assert np.all(found.gap < 1.5 * (best.bounds.upper - truth))
    with pytest.raises(ValueError, match="interval must be 'normal'"):
        sq.certify(jax.random.key(0), model, table, n, state, interval="bounded")


@pytest.mark.slow
def test_a_larger_table_bounds_what_was_learnt():
    model = sq.Model(*problems.mode_tracking(3, discount=0.8))
    state = (1, np.array([30, 10, 20]))
    learnt = sq.learn(jax.random.key(1), model, 2, 64)
    options = {"num_rollouts": 64, "horizon": 60}
    alone, helped = (
        sq.certify(jax.random.key(0), model, learnt, 60, state, upper=upper, **options)
        for upper in (None, sq.solve(model, 8))
    )
    assert float(helped.gap) < 0.1 * float(alone.gap)
    assert float(helped.upper) < float(alone.upper)


def test_choose_k_meets_the_target_or_says_how_near_it_came():
    identity = np.full((3, 3), 0.05) + 0.85 * np.eye(3)
    tracking = sq.Model(
        np.tile(identity, (3, 1, 1)),
        np.tile(0.9 * np.eye(3) + 0.1 / 3, (3, 1, 1)),
        -0.05 * (1 - np.eye(3)),
        np.eye(3),
        0.8,
    )
    state = (0, np.array([2, 1, 1]))
    k, bounds = sq.choose_k(jax.random.key(0), tracking, 4, 0.6, state, interval="exact")
    assert 1 < k < 4 or k == 4
    assert float(bounds.gap) <= 0.6
    k, bounds = sq.choose_k(jax.random.key(0), tracking, 4, 1e-12, state, interval="exact")
    assert k == 4 and float(bounds.gap) < 1e-4


def test_values_of_k_and_n_differ_where_the_shares_are_the_same():
    """The paper's lemma, |V_k*(F) − V_n*(F')| ≤ 2 |r_l| / (1 − discount) · TV(F, F') for all k, is
    false: all agents are in one state, TV = 0, and one agent is easier to follow than six.
    """
    model = sq.Model(*problems.mode_tracking(3))
    one, six = (sq.solve(model, k).check().value for k in (1, 6))
    rows = [int(sq.HistogramSpace(k, 3).index([k, 0, 0])) for k in (1, 6)]
    assert one.value[0, rows[0]] - six.value[0, rows[1]] > 0.5
