"""Steps a second of another library's LinUCB or LinTS on one stream of contexts: K arms, each with
a parameter of its own (jaxsac shares one).
"""

import time

import numpy as np


def answer_with(make, arrays, settings):
    """What `answer` returns for step = make(algorithm, number of arms, contexts, reward)."""
    contexts, thetas, generator = arrays["contexts"], arrays["thetas"], np.random.default_rng(0)

    def reward(x, arm):
        return float(x @ thetas[arm] + 0.1 * generator.normal())

    step = make(settings["algorithm"], len(thetas), contexts, reward)
    return {}, {"steps_per_second": rate(step, contexts, settings["seconds"])}


def rate(step, contexts, seconds):
    """Steps a second of step(t): at least 50, until `seconds` have passed."""
    for t in range(5):
        step(contexts[t])
    start, done = time.perf_counter(), 0
    while done < 50 or time.perf_counter() - start < seconds:
        step(contexts[done % len(contexts)])
        done += 1
    return done / (time.perf_counter() - start)
