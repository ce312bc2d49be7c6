"""What a task is told: bad logs and words are named when it is made, and it passes through jit."""

import jax
import numpy as np
import pytest

from jaxsac import control
from jaxsac.control.data.log import join, take
from jaxsac.problems.tool_logs import sparse_tool_log

KEY = jax.random.key(0)
T, M, Q, B = 120, 9, 2, 3
TRUTH = sparse_tool_log(
    jax.random.key(5),
    num_records=T,
    num_actions=M,
    num_features=Q,
    budget=B,
    num_relevant=2,
    mean_size=1.5,
    relevant_share=0.7,
)
LOG = control.Log(TRUTH.contexts, TRUTH.actions, TRUTH.utilities)


def with_entry(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


BAD = [
    (dict(contexts=np.zeros((0, Q)), actions=np.zeros((0, B), int), utilities=None), "empty"),
    (dict(contexts=with_entry(LOG.contexts, (7, 0), np.nan)), "contexts.*record 7"),
    (dict(utilities=with_entry(LOG.utilities, 3, np.inf)), "utilities.*record 3"),
    (dict(actions=with_entry(LOG.actions, (2, 0), M)), "num_actions"),
    (dict(actions=with_entry(LOG.actions, (2, 0), -2)), "actions"),
    (dict(actions=LOG.actions.astype(float)), "integers"),
    (dict(actions=LOG.actions[:-1]), "shape"),
    (dict(contexts=LOG.contexts[:, 0]), "contexts"),
    (dict(actions=np.tile(np.arange(4), (T, 1))), "120 of 120 records.*budget"),
    (dict(propensities=np.zeros(T)), "propensities"),
    (dict(propensities=np.full(T, 1.5)), "propensities"),
    (dict(available=np.zeros((T, M), bool)), "available"),
    (dict(available=np.ones((T, M - 1), bool)), "available"),
    (dict(available=np.full((T, 2), M)), "available"),
    (dict(contexts=np.full((T, Q), "1.5")), "contexts must hold real numbers"),
    (dict(contexts=LOG.contexts * 1j), "contexts must be real"),
    (dict(contexts=np.full((T, Q), object())), "contexts must hold real numbers"),
    (dict(contexts=[[1.0], [1.0, 2.0]]), "contexts must hold real numbers"),
    (dict(utilities=np.full(T, "0.5")), "utilities must hold real numbers"),
    (dict(utilities=np.full(T, 1j)), "utilities must be real"),
    (dict(utilities=1.0), "utilities must have shape"),
    (dict(propensities=np.full(T, 0.5 + 1j)), "propensities must be real"),
    (dict(actions=with_entry(LOG.actions.astype(np.int64), (2, 0), 2**33)), "actions.*within"),
    (dict(actions=None), "actions must hold integers"),
    (dict(available=np.full((T, M), "yes")), "available"),
    (dict(available=np.ones((T, M))), "available"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_logs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        control.Task(LOG._replace(**change), num_actions=M, budget=B)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(objective="regret"), "objective"),
        (dict(intercept="own"), "intercept"),
        (dict(budget=0), "budget"),
        (dict(smoothing=0.0), "smoothing"),
        (dict(objective="utility", intercept="per_tool"), "intercept.*utility"),
        (dict(objective="weighted", weighting="propensity"), "propensities"),
        (dict(objective="weighted", weighting="rank"), "weighting"),
        (dict(objective="weighted", clip=0.5), "clip"),
        (dict(objective="weighted", advantage_scale=-1.0), "advantage_scale"),
        (dict(families=np.zeros(M - 1, int)), "families"),
        (dict(families=np.zeros(M, int), family_share=1.0), "family_share"),
        (dict(objective="weighted", clip=np.nan), "clip"),
        (dict(objective="weighted", advantage_scale=1e-310), "utilities.*scale them"),
        (dict(smoothing=np.nan), "smoothing"),
        (dict(budget=2.5), "budget"),
    ],
)
def test_bad_words_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        control.Task(LOG, **({"num_actions": M, "budget": B} | options))


def test_traced_logs_are_refused():
    with pytest.raises(ValueError, match="log must be concrete"):
        jax.jit(lambda contexts: control.Task(LOG._replace(contexts=contexts), M, B).log.contexts)(
            LOG.contexts
        )


def test_a_task_is_a_pytree_and_moves_to_another_log():
    """All that it was told goes through jit, and to another log."""
    words = {"objective": "weighted", "smoothing": 0.5, "clip": 2.0, "advantage_scale": 0.3}
    words |= {"families": np.arange(M) // 3, "family_share": 0.4, "intercept": "shared"}
    task = control.Task(LOG, M, B, **words)
    through = jax.jit(lambda task: task)(task)
    half = through.with_log(take(LOG, slice(T // 2)))
    expected = control.Task(take(LOG, np.arange(T // 2)), M, B, **words)
    for one, other in ((through, task), (half, expected)):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert task.num_records == T and task.num_features == Q and task.budget == B
    assert jax.jit(lambda task: task.log.contexts.sum())(task) == pytest.approx(
        np.sum(LOG.contexts)
    )
    lams = [control.lam_max(one) for one in (task, through)]
    assert lams[0] == lams[1]


def test_logs_are_joined_by_the_wider_sets():
    wide = LOG._replace(actions=np.pad(LOG.actions, ((0, 0), (0, 2)), constant_values=-1))
    both = join(LOG, wide)
    assert both.actions.shape == (2 * T, LOG.actions.shape[1] + 2)
    np.testing.assert_array_equal(both.actions[:T, : LOG.actions.shape[1]], LOG.actions)
    with pytest.raises(ValueError, match="utilities"):
        join(LOG, LOG._replace(utilities=None))


@pytest.mark.parametrize("wild", [0.0, 10.0, 30.0, 1e6])
@pytest.mark.parametrize("clip", [1.0, 2.0, 10.0])
def test_no_weight_exceeds_the_clip(wild, clip):
    """c = min(raw, τ) / mean of it, τ the largest level at which max c ≤ clip: the level by the
    closed form for each number of records that it cuts.
    """
    random = np.random.default_rng(0)
    utilities = random.normal(size=T)
    utilities[0] += wild
    log = LOG._replace(utilities=utilities, propensities=random.uniform(0.1, 1, T))
    # half of the deviation of a wild log: the raw weights stay within float64
    scale = max(utilities.std(), 1.0)
    advantage = (utilities - utilities.mean()) / scale
    raw = {"advantage": np.exp(advantage - advantage.max())}
    raw["propensity"] = np.maximum(utilities, 0) / log.propensities
    for weighting, values in raw.items():
        found = control.Task(
            log, M, B, "weighted", weighting=weighting, clip=clip, advantage_scale=scale
        ).sample_weight
        kept = np.sort(values[values > 0])[::-1]
        levels = [kept[0]]
        for cut in range(1, kept.size):  # clip (cut τ + rest) = kept.size τ
            if kept.size > clip * cut:
                levels.append(clip * kept[cut:].sum() / (kept.size - clip * cut))
        room = clip * (1 + 1e-12)
        fits = [level for level in levels if level <= room * np.minimum(kept, level).mean()]
        expected = np.minimum(values, max(fits, default=kept[-1]))
        np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-9, atol=1e-300)
        assert found.mean() == pytest.approx(1)
        assert found.max() <= clip * found[found > 0].mean() * (1 + 1e-12)


def test_a_wild_utility_leaves_the_fit_its_records():
    """One of 2,000 thirty deviations out: a cut before the mean left it all of the weight."""
    random = np.random.default_rng(0)
    contexts = random.normal(size=(2000, 3))
    actions = random.integers(0, 20, (2000, 1)).astype(np.int32)
    actions[contexts[:, 0] > 0, 0] = 3
    utilities = random.normal(size=2000)
    utilities[0] += 30
    task = control.Task(control.Log(contexts, actions, utilities), 20, 1, "weighted")
    weight = task.sample_weight
    assert weight.max() == pytest.approx(10) and weight.sum() ** 2 / (weight**2).sum() > 1000
