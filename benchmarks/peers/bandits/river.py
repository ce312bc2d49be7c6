"""LinUCB and LinTS of river (LinUCB alone)."""

import functools

from bandits.stream import answer_with
from river import bandit


def make(name, arms, contexts, reward):
    if name != "LinUCB":
        raise ImportError("river has no LinTS")
    policy = bandit.LinUCBDisjoint(alpha=1.0, seed=0)
    names = list(map(str, range(contexts.shape[1])))

    def step(x):
        context = dict(zip(names, map(float, x), strict=True))
        arm = policy.pull(range(arms), context=context)
        policy.update(arm, context, reward(x, arm))

    return step


answer = functools.partial(answer_with, make)
