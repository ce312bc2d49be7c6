"""The policy: what it chooses, its files, and the deployment on the kept tools."""

import dataclasses
import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import _files, control

M, Q, B = 8, 3, 3
RANDOM = np.random.default_rng(0)
POLICY = control.SparsePolicy(
    positions=jnp.asarray([1, 5], jnp.int32),
    coef=jnp.asarray(RANDOM.normal(size=(2, Q))),
    intercept=jnp.asarray(RANDOM.normal(size=M)),
    background=jnp.asarray([0, 3], jnp.int32),
    tools=None,
    budget=B,
)
CONTEXT = RANDOM.normal(size=Q)


def law(scores, budget=B):
    sets = [
        members
        for r in range(budget + 1)
        for members in itertools.combinations(range(scores.size), r)
    ]
    weight = np.array([np.exp(scores[list(members)].sum()) for members in sets])
    return dict(zip(sets, weight / weight.sum(), strict=True))


def padded(members):
    return np.array(list(members) + [-1] * (B - len(members)), np.int32)


def test_scores_and_choice():
    dense = np.zeros((M, Q))
    dense[[1, 5]] = POLICY.coef
    expected = dense @ CONTEXT + np.asarray(POLICY.intercept)
    np.testing.assert_allclose(POLICY.scores(CONTEXT), expected, rtol=1e-14)
    ranking = np.argsort(-expected, kind="stable")
    np.testing.assert_array_equal(POLICY.act(CONTEXT, fill=True), ranking[:B])
    positive = ranking[: min(B, int((expected > 0).sum()))]
    np.testing.assert_array_equal(POLICY.act(CONTEXT), padded(positive))
    best = max(law(np.asarray(expected)).items(), key=lambda item: item[1])[0]
    assert set(best) == set(positive.tolist())
    available = np.arange(M) != ranking[0]
    np.testing.assert_array_equal(POLICY.act(CONTEXT, available, fill=True), ranking[1 : B + 1])
    np.testing.assert_array_equal(POLICY.act(CONTEXT, np.zeros(M, bool), fill=True), [-1] * B)
    batch = jax.vmap(lambda context: POLICY.act(context, fill=True))(
        jnp.stack([jnp.asarray(CONTEXT)] * 2)
    )
    np.testing.assert_array_equal(batch[1], ranking[:B])


@pytest.mark.parametrize("pruned", [pytest.param(False, marks=pytest.mark.slow), True])
def test_log_prob_and_sample(pruned):
    policy = POLICY.pruned() if pruned else POLICY
    names = np.arange(M) if policy.tools is None else np.asarray(policy.tools)
    sets = law(np.asarray(policy.scores(CONTEXT)))
    members = list(sets)[:: max(1, len(sets) // 12)]
    actions = np.stack([padded(names[list(m)]) for m in members])
    found = jax.vmap(lambda a: policy.log_prob(a, CONTEXT))(actions)
    np.testing.assert_allclose(found, [np.log(sets[m]) for m in members], rtol=1e-10)
    draws = np.asarray(
        jax.vmap(lambda key: policy.sample(key, CONTEXT))(jax.random.split(jax.random.key(1), 4000))
    )
    for name, tool in zip(names, range(names.size), strict=True):
        share = sum(p for m, p in sets.items() if tool in m)
        assert abs((draws == name).any(1).mean() - share) < 4.5 * np.sqrt(
            share * (1 - share) / 4000
        )
    assert (
        float(POLICY.pruned().log_prob(jnp.asarray([2, -1, -1]), CONTEXT)) == -np.inf
    )  # a tool that was pruned
    blocked = jnp.arange(M) != 1
    assert float(POLICY.log_prob(jnp.asarray([1, -1, -1]), CONTEXT, blocked)) == -np.inf


def test_the_number_of_samples_may_be_none_or_nothing():
    shapes = {None: (B,), 0: (0, B), 1: (1, B), 3: (3, B)}
    for count, shape in shapes.items():
        assert POLICY.sample(jax.random.key(0), CONTEXT, num_samples=count).shape == shape


def test_bound_methods_are_jitted_as_they_are():
    for policy in (POLICY, POLICY.pruned()):
        act = jax.jit(policy.act)
        np.testing.assert_array_equal(act(CONTEXT), policy.act(CONTEXT))
        act(CONTEXT)
        assert act._cache_size() == 1
        batch = jax.jit(jax.vmap(policy.scores))(CONTEXT[None])
        np.testing.assert_allclose(batch[0], policy.scores(CONTEXT))
    by_argument = jax.jit(lambda policy, context: policy.act(context))
    np.testing.assert_array_equal(by_argument(POLICY, CONTEXT), POLICY.act(CONTEXT))
    exported = jax.export.export(by_argument)(POLICY, CONTEXT).serialize()
    again = jax.export.deserialize(exported).call(POLICY, CONTEXT)
    np.testing.assert_array_equal(again, POLICY.act(CONTEXT))


def test_the_background_is_who_reaches_the_best_of_a_context():
    random = np.random.default_rng(3)
    contexts, intercept = random.normal(size=(30, Q)), random.normal(size=M)
    tools, coef = np.array([2, 6]), random.normal(size=(2, Q))
    policy = control.SparsePolicy.of(tools, coef, intercept, B, contexts=contexts)
    best = jax.vmap(lambda context: policy.act(context, fill=True))(contexts)
    reached = np.setdiff1d(np.unique(best), tools)
    np.testing.assert_array_equal(policy.background, reached)
    assert control.SparsePolicy.of(tools, coef, intercept, B).background.size == 0


def test_pruned_keeps_the_names():
    small = POLICY.pruned()
    np.testing.assert_array_equal(small.kept, [0, 1, 3, 5])
    np.testing.assert_array_equal(small.support, [1, 5])
    np.testing.assert_allclose(
        small.scores(CONTEXT), np.asarray(POLICY.scores(CONTEXT))[[0, 1, 3, 5]]
    )
    assert np.isin(np.asarray(small.act(CONTEXT, fill=True)), [0, 1, 3, 5]).all()
    np.testing.assert_array_equal(POLICY.pruned([5, 2]).tools, [2, 5])
    np.testing.assert_array_equal(small.pruned([5]).support, [5])
    with pytest.raises(ValueError, match="tools"):
        small.pruned([2])


def test_files(tmp_path):
    fitted = dataclasses.replace(POLICY, meaning=("weighted", "shared"))
    for policy in (POLICY, POLICY.pruned(), fitted):
        policy.save(tmp_path / "policy.npz")
        again = control.load_policy(tmp_path / "policy.npz")
        assert jax.tree.structure(again) == jax.tree.structure(policy)
        jax.tree.map(np.testing.assert_array_equal, again, policy)
    content = (tmp_path / "policy.npz").read_bytes()
    (tmp_path / "broken.npz").write_bytes(content[:200] + b"x" + content[201:])
    with pytest.raises(_files.FileError):
        control.load_policy(tmp_path / "broken.npz")
    good = {
        "positions": np.array([1]),
        "coef": np.ones((1, 2)),
        "intercept": np.zeros(3),
        "background": np.array([0]),
    }
    bad = [
        ({"positions": np.array([3])}, {}),
        ({"background": np.array([1])}, {}),
        ({"coef": np.ones((2, 2))}, {}),
        ({"coef": np.full((1, 2), np.nan)}, {}),
        ({"tools": np.array([4, 2, 9])}, {}),
        ({}, {"budget": -1}),
        ({}, {"budget": "3"}),
        ({}, {"meaning": "utility"}),
    ]
    for arrays, metadata in bad:
        _files.save(
            tmp_path / "bad.npz",
            "jaxsac.control.SparsePolicy",
            good | arrays,
            {"budget": 2} | metadata,
        )
        with pytest.raises(_files.FileError):
            control.load_policy(tmp_path / "bad.npz")
