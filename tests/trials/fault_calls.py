"""Good calls of the public functions, for the test that makes them wrong."""

import jax
import numpy as np

RESULTS = {"regret": np.linspace(0.0, 1.0, 5)}


def draw(key):
    return jax.random.normal(key)


def run():
    return {
        "fn": draw,
        "key": jax.random.key(0),
        "num_trials": 4,
        "batch_size": 2,
        "progress": False,
    }


def summarise():
    return {"results": RESULTS, "quantiles": [0.1, 0.5]}


CALLS = {
    "run_trials": run,
    "trials.run_trials": run,
    "summarise": summarise,
    "trials.summarise": summarise,
    "trials.Summary": lambda: dict.fromkeys(
        ("mean", "standard_error", "quantiles", "num_nonfinite"), RESULTS
    ),
}
