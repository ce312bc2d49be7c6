import numpy as np
import pytest

from jaxsac import subsample_q as sq
from jaxsac.problems import subsample_q as problems


@pytest.mark.parametrize("make", [problems.random, problems.mode_tracking, problems.demand_response, problems.admission])
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
    empty, full = (int(space.index(np.array(h, np.int32))) for h in ([3, 0, 0, 0, 0], [0, 0, 0, 0, 3]))
    assert table.policy[1, empty] > table.policy[1, full]
