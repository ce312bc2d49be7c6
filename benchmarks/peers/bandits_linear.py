"""LinUCB and LinTS of other libraries on one stream of contexts: K arms, each with a parameter of
its own (jaxsac shares one).
"""

import time

import exchange
import numpy as np


def rate(step, contexts, seconds):
    """Steps a second of step(t): at least 50, until `seconds` have passed."""
    for t in range(5):
        step(contexts[t])
    start, done = time.perf_counter(), 0
    while done < 50 or time.perf_counter() - start < seconds:
        step(contexts[done % len(contexts)])
        done += 1
    return done / (time.perf_counter() - start)


def mabwiser(name, arms, contexts, reward):
    from mabwiser.mab import MAB, LearningPolicy  # pyright: ignore[reportMissingImports]

    policy = (
        LearningPolicy.LinUCB(alpha=1.0) if name == "LinUCB" else LearningPolicy.LinTS(alpha=1.0)
    )
    model = MAB(list(range(arms)), policy, seed=0)
    model.fit([i % arms for i in range(2 * arms)], [0.0] * 2 * arms, contexts[: 2 * arms])

    def step(x):
        arm = model.predict(x[None])
        model.partial_fit([arm], [reward(x, arm)], x[None])

    return step


def contextual(name, arms, contexts, reward):
    from contextualbandits.online import LinTS, LinUCB  # pyright: ignore[reportMissingImports]

    model = (LinUCB if name == "LinUCB" else LinTS)(nchoices=arms, beta_prior=None, random_state=1)
    start = np.arange(2 * arms) % arms
    model.fit(contexts[: 2 * arms], start, np.zeros(2 * arms))

    def step(x):
        arm = int(model.predict(x[None])[0])
        model.partial_fit(x[None], np.array([arm]), np.array([reward(x, arm)]))

    return step


def bayesian(name, arms, contexts, reward):
    import bayesianbandits as library  # pyright: ignore[reportMissingImports]

    policy = library.UpperConfidenceBound() if name == "LinUCB" else library.ThompsonSampling()
    arms = [
        library.Arm(i, learner=library.NormalRegressor(alpha=1.0, beta=1.0)) for i in range(arms)
    ]
    agent = library.ContextualAgent(arms, policy, random_seed=0)

    def step(x):
        (arm,) = agent.pull(x[None])
        agent.update(x[None], np.array([reward(x, arm)]))

    return step


def river(name, arms, contexts, reward):
    if name != "LinUCB":
        raise ImportError("river has no LinTS")
    from river import bandit  # pyright: ignore[reportMissingImports]

    policy = bandit.LinUCBDisjoint(alpha=1.0, seed=0)
    names = list(map(str, range(contexts.shape[1])))

    def step(x):
        context = dict(zip(names, map(float, x), strict=True))
        arm = policy.pull(range(arms), context=context)
        policy.update(arm, context, reward(x, arm))

    return step


LIBRARIES = {
    "MABWiser": mabwiser,
    "contextualbandits": contextual,
    "BayesianBandits": bayesian,
    "river": river,
}


def answer(arrays, settings):
    contexts, thetas, generator = arrays["contexts"], arrays["thetas"], np.random.default_rng(0)

    def reward(x, arm):
        return float(x @ thetas[arm] + 0.1 * generator.normal())

    step = LIBRARIES[settings["library"]](settings["algorithm"], len(thetas), contexts, reward)
    return {}, {"steps_per_second": rate(step, contexts, settings["seconds"])}


if __name__ == "__main__":
    exchange.serve(answer)
