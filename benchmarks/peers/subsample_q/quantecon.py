"""quantecon's DiscreteDP on the same problem, given the dense kernel: value iteration (sup) and
modified policy iteration (span).
"""

import time

import numpy as np


def answer(arrays, settings):
    from quantecon.markov import DiscreteDP

    problem = DiscreteDP(arrays["reward"], arrays["transition"], float(settings["discount"]))
    numbers, values = {}, {}
    for method in ("value_iteration", "modified_policy_iteration"):
        problem.solve(method=method, epsilon=settings["epsilon"], max_iter=2)  # compiles
        times = []
        for _ in range(settings["repeats"]):
            start = time.perf_counter()
            result = problem.solve(method=method, epsilon=settings["epsilon"], max_iter=100_000)
            times.append(time.perf_counter() - start)
        numbers[method] = min(times)
        values[method] = np.asarray(result.v)
    return values, numbers
