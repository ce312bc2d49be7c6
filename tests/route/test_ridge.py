"""Ridge-penalised policies and baselines against an enumeration of all sets."""

import itertools

import numpy as np
import pytest
import scipy.optimize
from scipy.special import logsumexp

from jaxsac.route import baselines
from jaxsac.route.ridge import RidgeFit, fit_ridge, tune_ridge

T, Q, M, B = 60, 2, 5, 2
SETS = [subset for size in range(B + 1) for subset in itertools.combinations(range(M), size)]
MEMBERS = np.array([[tool in subset for tool in range(M)] for subset in SETS], float)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(T, Q))
    scores = features @ rng.normal(size=(Q, M)) - 1
    logits = scores @ MEMBERS.T
    drawn = [rng.choice(len(SETS), p=np.exp(row - logsumexp(row))) for row in logits]
    drawn[:M] = [SETS.index((tool,)) for tool in range(M)]  # every tool is used
    actions = np.full((T, B), -1, np.int32)
    for row, number in enumerate(drawn):
        actions[row, : len(SETS[number])] = SETS[number]
    return features, actions, MEMBERS[drawn]


def brute(features, members, support, ridge, share):
    """The same objective by enumeration, minimised in float64."""

    def objective(point):
        weights = np.zeros((M, Q))
        weights[support] = point[: len(support) * Q].reshape(-1, Q)
        scores = features @ weights.T + point[len(support) * Q :]
        likelihood = logsumexp(scores @ MEMBERS.T, axis=1) - (scores * members).sum(axis=1)
        return np.mean(share * likelihood) + ridge / 2 * np.sum(weights**2)

    found = scipy.optimize.minimize(objective, np.zeros(len(support) * Q + M), tol=1e-10)
    return found.fun, found.x[: len(support) * Q].reshape(-1, Q), found.x[len(support) * Q :]


@pytest.mark.parametrize(
    "support", [list(range(M)), [1, 3], []], ids=["dense", "two tools", "popularity"]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_against_enumeration(data, support, weighted):
    features, actions, members = data
    share = np.random.default_rng(5).uniform(0.2, 3, T) if weighted else np.ones(T)
    share = share / share.mean()
    words = {"weights": share} if weighted else {}
    found = fit_ridge(features, actions, M, B, 0.1, support=np.array(support, int), **words)
    value, weights, intercept = brute(features, members, support, 0.1, share)
    assert found.objective == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(found.coef, weights, atol=5e-3)
    np.testing.assert_allclose(found.intercept, intercept, atol=5e-3)
    scores = features @ found.coef.T + found.intercept[support]
    np.testing.assert_allclose(found.scores(features)[:, support], scores)


def test_popularity_reproduces_the_frequencies(data):
    features, actions, members = data
    found = baselines.fit_popularity(features, actions, M, B)
    logits = found.intercept @ MEMBERS.T
    marginals = np.exp(logits - logsumexp(logits)) @ MEMBERS
    np.testing.assert_allclose(marginals, members.mean(axis=0), atol=1e-3)
    assert found.coef.shape == (0, Q) and found.scores(features).shape == (T, M)


def test_a_warm_start_ends_at_the_same_place(data):
    features, actions, _ = data
    cold = fit_ridge(features, actions, M, B, 0.1)
    warm = fit_ridge(
        features,
        actions,
        M,
        B,
        0.1,
        start=fit_ridge(features, actions, M, B, 0.3, support=np.array([4, 0])),
    )
    np.testing.assert_allclose(warm.coef, cold.coef, atol=5e-3)


@pytest.mark.parametrize(
    ("qualities", "best", "tried"),
    [
        ({1.0: 0.1, 0.5: 0.3, 0.25: 0.4, 0.125: 0.2}, 0.25, [1.0, 0.5, 0.25, 0.125]),  # downhill
        ({1.0: 0.1, 0.5: 0.0, 2.0: 0.4, 4.0: 0.2}, 2.0, [1.0, 0.5, 2.0, 4.0]),  # uphill
        ({1.0: 0.5, 0.5: 0.0, 2.0: 0.4}, 1.0, [1.0, 0.5, 2.0]),  # there already
    ],
)
def test_ridges_are_tuned_from_the_first_on(qualities, best, tried):
    def fit(ridge, start):
        assert (start is None) == (ridge == 1.0)
        return RidgeFit(np.zeros(0, int), np.zeros((0, 1)), np.array([ridge]), 0.0, 0.0, 1)

    found, rows = tune_ridge(fit, lambda scores: qualities[scores(np.zeros((1, 1)))[0, 0]], 1.0)
    assert found.intercept[0] == best and [row["ridge"] for row in rows] == tried


def test_retrieval_finds_the_described_tool():
    names, descriptions = (
        ["draw_chart", "readTable", "???"],
        ["Plot lines.", "Load rows from a file.", ""],
    )
    for choice in baselines.RETRIEVAL_CHOICES:
        texts = (
            ["plot a chart", "load a table"],
            choice,
            ["chart please", "a table", "nothing known"],
        )
        scores = baselines.retrieval(names, descriptions, *texts)
        assert scores.shape == (3, 3) and scores[0].argmax() == 0 and scores[1].argmax() == 1
        np.testing.assert_allclose(scores[2], 0)
        assert scores.max() <= 1 + 1e-12
