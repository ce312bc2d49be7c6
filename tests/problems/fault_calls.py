"""Good calls of the makers of problems, for the test that makes them wrong."""

import jax
import numpy as np

from jaxsac.problems import control_pomdp

KEY = jax.random.key(0)
GROUPS = {"num_samples": 6, "num_groups": 4, "group_size": 2, "num_active": 2, "correlation": 0.3}
BELIEF = np.array([0.5, 0.3, 0.2])


def act(key, seen):
    return seen.argmax()


def repairs(**more):
    return lambda: {"problem": control_pomdp.repair_problem(), "error": 0.1, **more}


CALLS = {
    "problems.bandits.unit_diagonal_matrix": lambda: {"key": KEY, "dimension": 3, "ridge": 0.5},
    "problems.bandits.separated_parameter": lambda: {
        "dimension": 4,
        "sparsity": 2,
        "gap": 0.4,
        "kind": "standard",
    },
    "problems.bandits.ratings_model": lambda: {
        "indicators": np.eye(4)[:, :2],
        "ratings": np.array([1.0, 4.0, 2.0, 2.0]),
    },
    "problems.control_pomdp.repair_problem": lambda: {
        "num_states": 3,
        "accuracy": 0.7,
        "persistence": 0.9,
        "discount": 0.9,
    },
    "problems.control_pomdp.compress": lambda: {
        "belief": BELIEF,
        "quality": 0.2,
        "direction": np.array([0.0, 0.0, 1.0]),
    },
    "problems.control_pomdp.rollout": repairs(key=KEY, act=act, horizon=4),
    "problems.control_pomdp.error_bound": repairs(),
    "problems.control_recovery.sphere": lambda: {"key": KEY, "rows": 3, "size": 2},
    "problems.control_recovery.rotated_regression": lambda: {
        "key": KEY,
        "coef": BELIEF,
        "num_samples": 20.0,
        "noise": 0.1,
    },
    "problems.control_recovery.gaussian_regression": lambda: {"key": KEY, "noise": 0.1, **GROUPS},
    "problems.control_recovery.random_actions": lambda: {
        "key": KEY,
        "num_records": 3,
        "num_actions": 5,
        "budget": 2,
    },
    "problems.regression.ar1_design": lambda: {
        "key": KEY,
        "num_samples": 6,
        "num_columns": 4,
        "correlation": 0.3,
    },
    "problems.regression.group_regression": lambda: {"key": KEY, "signal_to_noise": 5.0, **GROUPS},
    "problems.regression.group_classification": lambda: {"key": KEY, "score_spread": 4.0, **GROUPS},
    "problems.tool_logs.sparse_tool_log": lambda: {
        "key": KEY,
        "num_records": 5,
        "num_actions": 8,
        "num_features": 2,
        "budget": 2,
        "num_relevant": 3,
        "mean_size": 1.5,
        "relevant_share": 0.5,
        "strength": 1.5,
        "noise": 0.5,
    },
}
