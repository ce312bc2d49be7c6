"""Interactions: the true pairs with their tools, the optimality of the whole problem in plain
numpy, and enumerated policies.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import control

T, M, Q, B = 300, 8, 1, 3


def pair_log(seed=0):
    random = np.random.default_rng(seed)
    contexts = np.ones((T, Q))
    actions = np.array([random.choice(M, B, replace=False) for _ in range(T)])
    inside = np.zeros((T, M))
    inside[np.arange(T)[:, None], actions] = 1
    utilities = (
        1.0
        + inside[:, 0]
        - inside[:, 1]
        + 2.0 * inside[:, 0] * inside[:, 2]
        - 2.0 * inside[:, 1] * inside[:, 4]
    )
    return control.Log(contexts, actions, utilities + 0.2 * random.normal(size=T)), inside


@pytest.mark.slow
def test_pairs_are_found_with_their_tools_and_the_optimum_is_one():
    log, inside = pair_log()
    lam = 0.02
    task = control.Task(log, M, B, "utility")
    found = control.fit_interactions(task, lam=lam, tol=1e-9).check()
    model = found.value
    strong = np.asarray(model.pairs)[np.abs(np.asarray(model.pair_coef))[:, 0] > 0.5]
    assert {tuple(pair) for pair in strong.tolist()} == {(0, 2), (1, 4)}
    assert set(np.asarray(model.pairs).ravel().tolist()) <= set(
        np.asarray(model.tools).tolist()
    )  # heredity
    assert int(found.stats["num_candidates"]) == M * (M - 1) // 2
    # The optimality conditions of all main effects and all pairs, from the prediction alone.
    main = np.zeros(M)
    main[np.asarray(model.tools)] = np.asarray(model.coef)[:, 0]
    z = float(model.constant) + inside @ main
    for (i, j), beta in zip(
        np.asarray(model.pairs), np.asarray(model.pair_coef)[:, 0], strict=True
    ):
        z = z + beta * inside[:, i] * inside[:, j]
    residual = (log.utilities - z) / T
    assert abs(residual.sum()) < 1e-8
    own = inside.T @ residual
    assert np.abs(own).max() <= lam * (1 + 1e-3)
    for i, j in itertools.combinations(range(M), 2):
        norm = np.sqrt(
            own[i] ** 2 + own[j] ** 2 + ((inside[:, i] * inside[:, j]) @ residual) ** 2
        ) / (lam * np.sqrt(3))
        active = (np.asarray(model.pairs) == (i, j)).all(1).any()
        assert norm == pytest.approx(1, abs=2e-3) if active else norm <= 1 + 1e-3
    with pytest.raises(ValueError, match="pair_weight"):
        control.fit_interactions(task, lam=lam, pair_weight=1.0)
    with pytest.raises(ValueError, match="utility"):
        control.fit_interactions(control.Task(log, M, B), lam=lam)


def test_the_pairwise_policy_against_enumeration():
    model = control.Interactions(
        tools=jnp.asarray([1, 4, 6], jnp.int32),
        coef=jnp.asarray([[0.5], [1.0], [-0.4]]),
        pairs=jnp.asarray([[1, 6]], jnp.int32),
        pair_coef=jnp.asarray([[1.5]]),
        constant=jnp.asarray(0.0),
    )
    policy = control.pairwise_policy(model, budget=2, temperature=0.5)
    score = {(): 0, (1,): 0.5, (4,): 1.0, (6,): -0.4, (1, 4): 1.5, (1, 6): 1.6, (4, 6): 0.6}
    weight = {
        members: np.exp(2 * value / 0.5) for members, value in score.items()
    }  # at the context 2
    found = {
        tuple(int(j) for j in row if j >= 0): float(p)
        for row, p in zip(policy.sets, jnp.exp(policy.log_probs(jnp.array([2.0]))), strict=True)
    }
    for members, value in weight.items():
        assert found[members] == pytest.approx(value / sum(weight.values()))
    np.testing.assert_array_equal(policy.act(jnp.array([2.0])), [1, 6])
    draws = jax.vmap(lambda key: policy.sample(key, jnp.array([2.0])))(
        jax.random.split(jax.random.key(0), 500)
    )
    assert (np.asarray(draws) == [1, 6]).all(1).mean() == pytest.approx(found[1, 6], abs=0.1)
