"""One good call of each public function of the losses; see `test_faults`."""

import numpy as np


def call(**arguments):
    return lambda: arguments


CALLS = {
    "losses.Huber": call(delta=1.5),
    "losses.SquareRoot": call(floor=0.02, least=0.1),
    "losses.BudgetedGibbs": call(budget=3, costs=np.array([1, 2, 1, 3])),
    "losses.resolve": call(loss="squared"),
}
