"""One good call of each public function of the designs; see `test_faults`."""

import numpy as np

X = np.array([[0.5, -1.2, 0.3], [1.1, 0.4, -0.7], [-0.2, 0.9, 1.3], [0.8, -0.6, 0.1]])
CHOICE = {"actions": np.array([[0, 2], [1, -1], [2, 0], [1, 2]]), "features": X, "num_actions": 3}
OUTPUTS = {"features": X, "num_outputs": 2, "by": "output"}
WEIGHTS = np.array([1.0, 0.5, 2.0, 0.25])


def call(**arguments):
    return lambda: arguments


CALLS = {
    "designs.Dense": call(matrix=X),
    "designs.as_design": call(X=X),
    "designs.BudgetedChoice": call(**CHOICE),
    "designs.MultiOutput": call(**OUTPUTS),
    "designs.Centred": call(design=X, shares=WEIGHTS / WEIGHTS.sum()),
}
