"""LinUCB and LinTS of MABWiser."""

import functools

from bandits.stream import answer_with
from mabwiser.mab import MAB, LearningPolicy


def make(name, arms, contexts, reward):
    policy = (
        LearningPolicy.LinUCB(alpha=1.0) if name == "LinUCB" else LearningPolicy.LinTS(alpha=1.0)
    )
    model = MAB(list(range(arms)), policy, seed=0)
    model.fit([i % arms for i in range(2 * arms)], [0.0] * 2 * arms, contexts[: 2 * arms])

    def step(x):
        arm = model.predict(x[None])
        model.partial_fit([arm], [reward(x, arm)], x[None])

    return step


answer = functools.partial(answer_with, make)
