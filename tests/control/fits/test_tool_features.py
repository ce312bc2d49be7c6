"""Tools scored from their features: the gap against a long run, and tools that no record has
used.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import Status, control, gibbs

T, M, Q, D, B = 400, 24, 3, 2, 2


def bilinear_log(new: int):
    """Sets drawn from a model whose scores are bilinear; the last `new` tools are offered in no
    record.
    """
    random = np.random.default_rng(0)
    features, contexts = random.normal(size=(M, D)), random.normal(size=(T, Q))
    interaction = 1.5 * random.normal(size=(D, Q))
    scores = features @ interaction @ contexts.T - 2.0
    scores[M - new :] = -np.inf
    draws = jax.vmap(lambda key, z: gibbs.sample(key, z, budget=B, num_samples=1)[0])(
        jax.random.split(jax.random.key(1), T), jnp.asarray(scores.T)
    )
    return features, interaction, control.Log(contexts, np.asarray(draws))


@pytest.mark.slow
def test_new_tools_are_routed_by_their_features():
    new = 6
    features, interaction, log = bilinear_log(new)
    task = control.Task(log, M - new, B)
    solution = control.fit_tool_model(task, features[:-new]).check()
    assert float(solution.stats["gap"]) <= 1e-6 * float(solution.stats["scale"])
    policy = solution.value.policy(features)
    np.testing.assert_allclose(
        policy.scores(log.contexts[0]), features @ (interaction @ log.contexts[0]) - 2.0, atol=0.8
    )
    fresh = np.random.default_rng(5).normal(size=(50, Q))
    found = np.asarray(jax.vmap(policy.scores)(fresh))[:, -new:]
    truth = (features @ interaction @ fresh.T).T[:, -new:]
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.98
    # certified: no other point is lower
    again = control.fit_tool_model(task, features[:-new], tol=1e-10, state=solution)
    assert float(again.stats["objective"]) >= float(
        solution.stats["objective"] - solution.stats["gap"]
    )
    assert (
        int(control.fit_tool_model(task, features[:-new], max_steps=1).status) == Status.MAX_STEPS
    )
    with pytest.raises(ValueError, match="tool_features"):
        control.fit_tool_model(task, features[: M // 2])
    with pytest.raises(ValueError, match="imitation"):
        control.fit_tool_model(
            control.Task(log._replace(utilities=np.zeros(T)), M, B, "utility"), features
        )


@pytest.mark.slow
def test_offered_tools_and_float32():
    features, _, log = bilinear_log(0)
    offered = np.random.default_rng(2).uniform(size=(T, M)) < 0.7
    offered[np.arange(T)[:, None], np.where(log.actions >= 0, log.actions, 0)] = True
    single = log._replace(contexts=log.contexts.astype(np.float32), available=offered)
    solution = control.fit_tool_model(
        control.Task(single, M, B), features.astype(np.float32)
    ).check()
    assert solution.value.interaction.dtype == jnp.float32
    wide = control.fit_tool_model(
        control.Task(log._replace(available=offered), M, B), features
    ).check()
    np.testing.assert_allclose(solution.value.interaction, wide.value.interaction, atol=0.05)
