"""Metrics against brute force and scikit-learn, standard errors against a closed form."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from jaxsac.route import evaluate

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(6, 7))
ACTIONS = np.array(
    [[0, 2, -1], [6, -1, -1], [1, 3, 5], [4, -1, -1], [2, 6, -1], [0, 1, 2]], np.int32
)


def test_ndcg_against_scikit_learn():
    relevant = np.zeros((6, 7))
    for row, tools in enumerate(ACTIONS):
        relevant[row, tools[tools >= 0]] = 1
    found = evaluate.measure(SCORES, ACTIONS, 3, policy=False).ndcg
    expected = [ndcg_score(relevant[row : row + 1], SCORES[row : row + 1], k=3) for row in range(6)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_recall_by_hand():
    best = np.argsort(-SCORES, axis=1)[:, :3]
    expected = [
        len(set(best[row]) & set(ACTIONS[row][ACTIONS[row] >= 0])) / (ACTIONS[row] >= 0).sum()
        for row in range(6)
    ]
    np.testing.assert_allclose(evaluate.measure(SCORES, ACTIONS, 3, policy=False).recall, expected)


@pytest.mark.parametrize("exactly", [False, True])
def test_log_likelihood_by_enumeration(exactly):
    sizes = [3] if exactly else range(4)
    sets = [subset for size in sizes for subset in itertools.combinations(range(7), size)]
    actions = ACTIONS[[2, 5]] if exactly else np.array([*ACTIONS, [-1, -1, -1]])
    scores = SCORES[: len(actions)] if exactly else np.array([*SCORES, SCORES[0]])
    found = evaluate.log_likelihood(scores, actions, 3, exactly=exactly)
    for z, used, value in zip(scores, actions, found, strict=True):
        weights = [np.exp(z[list(subset)].sum()) for subset in sets]
        expected = z[used[used >= 0]].sum() - np.log(np.sum(weights))
        np.testing.assert_allclose(value, expected, rtol=1e-12)


@pytest.mark.parametrize("exactly", [False, True])
def test_stretch_is_the_most_probable_slope_and_constant(exactly):
    """Of 600 sets drawn by their scores, with tools that were not offered among them."""
    generator = np.random.default_rng(1)
    z = generator.normal(size=(600, 7))
    z[::3, 5] = -np.inf
    sizes = [2] if exactly else range(3)
    sets = [subset for size in sizes for subset in itertools.combinations(range(7), size)]
    inside = np.array([[tool in subset for tool in range(7)] for subset in sets])
    total = np.where(inside, z[:, None, :], 0).sum(axis=2)
    chances = np.exp(total) / np.exp(total).sum(axis=1, keepdims=True)
    drawn = [generator.choice(len(sets), p=row) for row in chances]
    actions = np.array([(*sets[number], -1, -1)[:2] for number in drawn], np.int32)
    law = {"budget": 2, "exactly": exactly}

    def lost(slope, constant):
        value = evaluate.log_likelihood(slope * z + constant, actions, **law).sum()
        return ((slope - 1) ** 2 + constant**2) / 2 - value

    found = evaluate.stretch(2 * z - 1, actions, **law)
    if exactly:
        np.testing.assert_allclose(found[1], 0, atol=1e-9)
    slope, constant = evaluate.stretch(z, actions, **law)
    step = 1e-3
    around = [(slope + step, constant), (slope - step, constant)]
    around += [(slope, constant + step), (slope, constant - step)]
    assert lost(slope, constant) < min(lost(*one) for one in around)
    assert abs(slope - 1) < 0.2 and found[0] == pytest.approx(slope / 2, abs=0.01)


def test_a_stretch_is_finite_where_nothing_is_wrong_or_nothing_is_known():
    z = np.array([[9.0, -9.0], [9.0, -9.0]])
    slope, constant = evaluate.stretch(z, np.array([[0], [0]], np.int32), 1)
    assert 1 < slope < 3 and abs(constant) < 3
    assert evaluate.stretch(z, np.full((2, 1), 5, np.int32), 1) == (1.0, 0.0)
    assert evaluate.stretch(z[:0], np.zeros((0, 1), np.int32), 1) == (1.0, 0.0)


def test_unknown_tools_are_misses_and_leave_the_likelihood():
    with_unknown = np.array([[0, 2, 9], [9, -1, -1], *ACTIONS[2:]], np.int32)
    plain, found = (
        evaluate.measure(SCORES, actions, 3, policy=True) for actions in (ACTIONS, with_unknown)
    )
    assert (
        found.recall[0] == pytest.approx(plain.recall[0] * 2 / 3)
        and found.recall[1] == 0
        and found.ndcg[1] == 0
    )
    assert found.log_likelihood[0] == plain.log_likelihood[0] and np.isnan(found.log_likelihood[1])
    summary = evaluate.summarise(found, list("abcdef"))
    assert summary["log_likelihood"]["records"] == 5 and summary["ndcg"]["records"] == 6


def test_fewer_tools_than_the_budget():
    found = evaluate.measure(
        np.array([[0.1, 0.2]]), np.array([[1, -1, -1, -1]], np.int32), 4, policy=True
    )
    assert found.recall == [1.0] and found.ndcg == [1.0]
    np.testing.assert_allclose(found.log_likelihood, 0.2 - np.log1p(np.exp([0.1, 0.2])).sum())


def test_ties_go_to_the_lowest_index():
    found = evaluate.measure(np.zeros((1, 5)), np.array([[0, 4]], np.int32), 2, policy=False)
    assert found.recall == [0.5]


def test_group_errors_of_equal_groups_are_those_of_their_means():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(200), 5)
    values = rng.normal(size=200)[groups] + 0.1 * rng.normal(
        size=1000
    )  # records of a group move together
    means = values.reshape(200, 5).mean(axis=1)
    expected = means.std(ddof=1) / np.sqrt(200)
    found = evaluate.cluster_errors(values, [str(group) for group in groups])
    # A bootstrap of 2,000 draws knows its standard deviation to 1.6 %.
    np.testing.assert_allclose(found, expected, rtol=5 * 0.016)
    assert found > 2 * values.std() / np.sqrt(1000)  # the naive error would be too small


def test_one_group_has_no_error():
    assert np.isnan(evaluate.cluster_errors(np.ones(5), ["a"] * 5))


def test_paired_differences():
    first = evaluate.measure(SCORES, ACTIONS, 3, policy=True)
    second = evaluate.measure(-SCORES, ACTIONS, 3, policy=False)
    found = evaluate.compare(first, second, list("abcdef"))
    assert set(found) == {"ndcg", "recall"}
    assert found["ndcg"]["mean"] == pytest.approx((first.ndcg - second.ndcg).mean())
    same = evaluate.compare(first, first, list("abcdef"))
    assert same["log_likelihood"] == {"mean": 0.0, "error": 0.0, "records": 6}
