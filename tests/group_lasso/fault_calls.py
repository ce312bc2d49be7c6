"""One good call of each public function of the group lasso; see `test_faults`."""

import jax
import numpy as np

from jaxsac import Groups
from jaxsac.group_lasso import Problem, solve
from jaxsac.prox import Penalty

RNG = np.random.default_rng(7)
KEY = jax.random.key(0)
X = RNG.normal(size=(12, 6))
Y = X[:, 0] - 0.5 * X[:, 1] + 0.1 * RNG.normal(size=12)
GROUPS = Groups.equal(3, 2)
PROBLEM = Problem(X, Y, GROUPS)
SOLUTION = solve(PROBLEM, 0.05)
LIMITS = {"tol": 1e-6, "max_steps": 500}
PATH = {"lams": np.array([0.2, 0.1]), "num_lams": 2, "min_ratio": 0.5, **LIMITS}
WORDS = {
    "X": X,
    "y": Y,
    "groups": GROUPS,
    "loss": "squared",
    "weights": np.array([1.0, 0.5, 2.0]),
    "sample_weight": np.linspace(0.5, 1.5, 12),
    "offset": np.linspace(-0.1, 0.1, 12),
    "intercept": True,
    "penalty": Penalty(ridge=0.1),
}


def call(**arguments):
    return lambda: arguments


CALLS = {
    "group_lasso.LinearModel": call(
        coef=np.array([0.5, -0.2]), intercept=0.1, loss="squared", has_intercept=True
    ),
    "group_lasso.Problem": call(**WORDS),
    "group_lasso.solve": call(**WORDS, lam=0.05, state=SOLUTION, **LIMITS),
    "group_lasso.lam_max": call(**WORDS),
    "group_lasso.path": call(**WORDS, **PATH),
    "group_lasso.degrees_of_freedom": call(problem=PROBLEM, solution=SOLUTION),
    "group_lasso.support_margin": call(problem=PROBLEM, solution=SOLUTION),
    "group_lasso.ebic": call(problem=PROBLEM, gamma=0.5, **PATH),
    "group_lasso.cross_validate": call(problem=PROBLEM, folds=np.arange(12) % 3, **PATH),
    "group_lasso.refit": call(problem=PROBLEM, solution=SOLUTION, **LIMITS),
    "group_lasso.simulated_lam": call(
        key=KEY, problem=PROBLEM, solution=SOLUTION, level=0.1, factor=1.1, num_draws=50
    ),
    "group_lasso.stability_selection": call(
        key=KEY, problem=PROBLEM, lam=0.05, num_pairs=3, threshold=0.75, **LIMITS
    ),
}
