"""LinUCB and LinTS of contextualbandits."""

import functools

import numpy as np
from bandits.stream import answer_with
from contextualbandits.online import LinTS, LinUCB


def make(name, arms, contexts, reward):
    model = (LinUCB if name == "LinUCB" else LinTS)(nchoices=arms, beta_prior=None, random_state=1)
    start = np.arange(2 * arms) % arms
    model.fit(contexts[: 2 * arms], start, np.zeros(2 * arms))

    def step(x):
        arm = int(model.predict(x[None])[0])
        model.partial_fit(x[None], np.array([arm]), np.array([reward(x, arm)]))

    return step


answer = functools.partial(answer_with, make)
