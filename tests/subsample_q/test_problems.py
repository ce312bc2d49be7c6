import numpy as np
import pytest

from jaxsac import subsample_q as sq
from jaxsac.problems import subsample_q as problems


@pytest.mark.parametrize(
    "make", [problems.random, problems.mode_tracking, problems.demand_response, problems.admission]
)
def test_every_problem_is_a_model(make):
    arguments = (0,) if make is problems.random else ()
    sq.Model(*make(*arguments))


def test_the_released_demand_response_ignores_the_consumers_and_the_scarce_one_does_not():
    for scarce, ignores in ((False, True), (True, False)):
        table = sq.solve(sq.Model(*problems.demand_response(scarce=scarce)), 1).check().value
        assert np.all(table.policy == table.policy[:, :1]) == ignores


def test_an_empty_system_opens_the_gate_wider_than_a_full_one():
    table = sq.solve(sq.Model(*problems.admission()), 3).check().value
    space = sq.HistogramSpace(3, 5)
    empty, full = (
        int(space.index(np.array(h, np.int32))) for h in ([3, 0, 0, 0, 0], [0, 0, 0, 0, 3])
    )
    assert table.policy[1, empty] > table.policy[1, full]


def test_the_squeeze_follows_the_forecast_of_the_target():
    """Effort set now counts next: the best mean effort solves a problem over the target alone."""
    k, problem = 4, problems.gaussian_squeeze()
    table = sq.solve(sq.LocalActionModel(*problem), k, tol=1e-8).check().value
    means, goals, arrive = (
        np.arange(2 * k + 1) / k,
        np.array([0.5, 1.5]),
        problem.global_transition[:, 0],
    )
    reward = means * np.exp(-(((means - goals[:, None]) / 0.5) ** 2))
    ahead = np.zeros(2)
    for _ in range(400):
        ahead = (arrive @ (reward + 0.9 * ahead[:, None])).max(axis=1)
    own = np.asarray(table.histograms) @ np.arange(3)
    np.testing.assert_allclose(table.value, reward[:, own] + 0.9 * ahead[:, None], atol=1e-5)


def test_joining_the_shortest_queue_is_optimal_where_all_are_seen():
    k = 3
    table = (
        sq.solve(sq.LocalActionModel(*problems.dispatch(k, capacity=3)), k, tol=1e-9).check().value
    )
    pairs = {tuple(z.reshape(-1)): m for m, z in enumerate(np.asarray(table.assignments))}
    for row, counts in enumerate(np.asarray(table.histograms)):
        for jobs in range(k + 1):
            shortest = np.minimum(
                counts, np.maximum(jobs - np.concatenate([[0], np.cumsum(counts)[:-1]]), 0)
            )
            joined = pairs[tuple(np.stack([counts - shortest, shortest], axis=1).reshape(-1))]
            np.testing.assert_allclose(table.q[jobs, joined, 0], table.value[jobs, row], atol=1e-6)


def test_two_choices_beat_one_by_far_and_one_is_the_known_queue():
    random, two, all_seen = (
        problems.power_of_k(0, k, 300, load=0.7, steps=600)[0] for k in (1, 2, 300)
    )
    arrivals = 0.7 * 0.5
    assert random == pytest.approx((2 * arrivals - arrivals**2) / (2 * (0.5 - arrivals)), rel=0.1)
    assert all_seen < two < 0.75 * random


@pytest.mark.slow
def test_explorers_who_spread_out_pay_less_for_crowding():
    table = sq.solve(sq.LocalActionModel(*problems.constrained_exploration()), 4).check().value
    space = sq.HistogramSpace(4, 4)
    together, apart = (
        int(space.index(np.array(h, np.int32))) for h in ([4, 0, 0, 0], [2, 2, 0, 0])
    )
    assert table.value[0, apart] > table.value[0, together]
