"""LinUCB and LinTS of BayesianBandits."""

import functools

import bayesianbandits as library
import numpy as np
from bandits.stream import answer_with


def make(name, arms, contexts, reward):
    policy = library.UpperConfidenceBound() if name == "LinUCB" else library.ThompsonSampling()
    arms = [
        library.Arm(i, learner=library.NormalRegressor(alpha=1.0, beta=1.0)) for i in range(arms)
    ]
    agent = library.ContextualAgent(arms, policy, random_seed=0)

    def step(x):
        (arm,) = agent.pull(x[None])
        agent.update(x[None], np.array([reward(x, arm)]))

    return step


answer = functools.partial(answer_with, make)
