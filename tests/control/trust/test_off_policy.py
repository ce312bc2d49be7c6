"""Off-policy values against enumerated ones: intervals that cover, weights that average to one, a
model that helps; budgets of tokens.
"""

import itertools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxsac import control, gibbs

M, Q, B, T = 5, 2, 2, 200
SETS = [members for r in range(B + 1) for members in itertools.combinations(range(M), r)]
INCLUDES = np.array([[j in members for j in range(M)] for members in SETS], float)
PADDED = np.array([[*members, *([-1] * (B - len(members)))] for members in SETS], np.int32)
RANDOM = np.random.default_rng(0)
GAIN = RANDOM.normal(size=(M, Q))
CONTEXTS = RANDOM.normal(size=(T, Q))


def policy(seed, scale=1.0):
    random = np.random.default_rng(seed)
    return control.SparsePolicy(
        positions=jnp.asarray([0, 3], jnp.int32),
        coef=jnp.asarray(scale * random.normal(size=(2, Q))),
        intercept=jnp.asarray([0.1, -0.5, -0.5, 0.3, -0.2]),
        background=jnp.asarray([], jnp.int32),
        tools=None,
        budget=B,
    )


TARGET, BEHAVIOUR = policy(1), policy(2, 0.5)


def law(of, context):
    return jax.nn.softmax(jnp.matmul(jnp.asarray(INCLUDES), of.scores(context)))


LAWS = {
    name: np.asarray(jax.vmap(lambda x, of=of: law(of, x))(CONTEXTS))
    for name, of in [("target", TARGET), ("behaviour", BEHAVIOUR)]
}
MEANS = np.einsum("tq,jq,sj->ts", CONTEXTS, GAIN, INCLUDES) + 0.3 * np.square(
    INCLUDES.sum(1)
)  # not additive: the model is wrong
TRUE = float((LAWS["target"] * MEANS).sum(1).mean())


def draw(seed, records=T):
    random = np.random.default_rng(seed)
    chosen = np.array(
        [random.choice(len(SETS), p=row / row.sum()) for row in LAWS["behaviour"][:records]]
    )
    rows = np.arange(records)
    utilities = MEANS[rows, chosen] + 0.5 * random.normal(size=records)
    return control.Log(
        CONTEXTS[:records], PADDED[chosen], utilities, LAWS["behaviour"][rows, chosen]
    )


def test_intervals_cover_the_enumerated_value():
    """Fixed contexts, so the interval (for random ones) covers at least as often; self-normalised
    beats the plain weights.
    """

    def trial(key):
        choice, noise = jax.random.split(key)
        chosen = jax.random.categorical(choice, jnp.log(LAWS["behaviour"]), axis=1)
        rows = jnp.arange(T)
        utilities = 5.0 + jnp.asarray(MEANS)[rows, chosen] + 0.5 * jax.random.normal(noise, (T,))
        ratio = jnp.log(jnp.asarray(LAWS["target"])[rows, chosen]) - jnp.log(
            jnp.asarray(LAWS["behaviour"])[rows, chosen]
        )
        model = 5.0 + jnp.einsum("tq,jq,tj->t", CONTEXTS, GAIN, jnp.asarray(INCLUDES)[chosen])
        expected = 5.0 + jnp.einsum("ts,sj,jq,tq->t", LAWS["target"], INCLUDES, GAIN, CONTEXTS)
        return (
            control.importance_value(ratio, utilities, self_normalised=False),
            control.importance_value(ratio, utilities),
            control.importance_value(ratio, utilities, predicted=model, expected=expected),
        )

    found = jax.vmap(trial)(jax.random.split(jax.random.key(3), 600))
    errors = []
    for value in found:
        covered = (np.asarray(value.lower) <= TRUE + 5) & (np.asarray(value.upper) >= TRUE + 5)
        assert covered.mean() > 0.92
        center, spread = np.mean(value.value), np.std(value.value)
        assert (
            abs(center - TRUE - 5) < 4 * spread / np.sqrt(600) + 0.01
        )  # self-normalising biases by order 1/T
        assert abs(np.mean(value.mean_weight) - 1) < 0.02
        errors.append(spread)
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("self_normalised", [True, False])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
@pytest.mark.parametrize("groups", [None, np.arange(50) ** 2 % 7 * 7])
def test_the_interval_is_its_formula(self_normalised, confidence, groups):
    """Value, standard error and ends in NumPy, the centre of the influence included."""
    random = np.random.default_rng(4)
    ratio, u, m, e = random.normal(size=(4, 50)) + np.array([[0], [5], [3], [4]])
    found = control.importance_value(
        ratio,
        u,
        predicted=m,
        expected=e,
        groups=groups,
        self_normalised=self_normalised,
        max_weight=3.0,
        confidence=confidence,
    )
    w = np.minimum(np.exp(ratio), 3.0)
    total = w.sum() if self_normalised else 50
    c = (w * (u - m)).sum() / total
    influence = 50 * w * (u - m - c * self_normalised) / total + e
    error, value = influence.std(ddof=1) / np.sqrt(50), c + e.mean()
    half = statistics.NormalDist().inv_cdf((1 + confidence) / 2) * error
    n = w.sum() ** 2 / (w**2).sum()
    if groups is not None:
        inside = groups == np.unique(groups)[:, None]
        own = inside @ w
        n = own.sum() ** 2 / (own**2).sum()
        moved = inside @ (influence - influence.mean()) / 50
        error = np.sqrt(len(own) / (len(own) - 1) * (moved**2).sum() + (np.ptp(u) / 2 / n) ** 2)
        half = scipy.stats.t.ppf((1 + confidence) / 2, n - 1) * error
    expected = value, error, value - half, value + half, n, w.mean(), 3.0
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_groups_without_a_second_or_without_weight():
    """One group has no error; a record that outweighs all leaves Cauchy's quantile of half the
    range; and equal records in groups of two are as uncertain as half as many.
    """
    ratio, u = np.zeros(8), np.arange(8.0)
    assert np.isnan(control.importance_value(ratio, u, groups=np.zeros(8, int)).upper)
    lone = control.importance_value(np.where(u == 3, 60.0, 0.0), u, groups=np.arange(8))
    expected = 3 - scipy.stats.t.ppf(0.975, 1) * 3.5
    np.testing.assert_allclose([lone.value, lone.lower], [3, expected], rtol=1e-10)
    single = control.importance_value(ratio, u, groups=np.arange(8))
    assert control.importance_value(*np.float32([ratio, u]), groups=np.arange(8))[3].dtype == "f4"
    pairs = control.importance_value(np.zeros(16), np.repeat(u, 2), groups=np.arange(16) // 2)
    np.testing.assert_allclose(pairs[:5], single[:5], rtol=1e-10)


def test_logs_through_the_policies_own_probabilities():
    log = draw(0)
    for method in ("self_normalised", "inverse_propensity"):
        found = control.off_policy_value(TARGET, log, method=method)
        assert abs(float(found.value) - TRUE) < 4.5 * float(found.standard_error)
    rows = np.arange(T)
    chosen = [SETS.index(tuple(int(j) for j in row if j >= 0)) for row in log.actions]
    expected = control.importance_value(
        np.log(LAWS["target"][rows, chosen] / log.propensities), log.utilities
    )
    np.testing.assert_allclose(
        control.off_policy_value(TARGET, log, method="self_normalised"), expected, rtol=1e-10
    )
    # the behaviour itself: all weights are 1, its value the mean
    same = control.off_policy_value(BEHAVIOUR, log, method="self_normalised")
    assert float(same.value) == pytest.approx(log.utilities.mean()) and float(
        same.effective_sample_size
    ) == pytest.approx(T)
    # a pruned policy cannot draw what it lacks
    pruned = control.off_policy_value(TARGET.pruned([0, 3]), log, method="self_normalised")
    kept = [set(row[row >= 0].tolist()) <= {0, 3} for row in log.actions]
    scores = np.asarray(jax.vmap(TARGET.pruned([0, 3]).scores)(CONTEXTS))
    weight = [
        np.exp(sum(s[[0, 3].index(j)] for j in row if j >= 0))
        / np.sum(np.exp([0, s[0], s[1], s[0] + s[1]]))
        / p
        if k
        else 0.0
        for s, row, p, k in zip(scores, log.actions, log.propensities, kept, strict=True)
    ]
    assert float(pruned.value) == pytest.approx(np.average(log.utilities, weights=weight))
    with pytest.raises(ValueError, match="propensities"):
        control.off_policy_value(TARGET, log._replace(propensities=None), method="self_normalised")
    with pytest.raises(ValueError, match="key"):
        control.off_policy_value(TARGET, log)


@pytest.mark.slow
def test_the_model_is_cross_fitted_and_its_mean_exact():
    """With every tool in the support and no noise the additive model is right: the doubly robust
    value is then nearly free of error.
    """
    log = draw(1)
    found = control.off_policy_value(TARGET, log, key=jax.random.key(0))
    assert abs(float(found.value) - TRUE) < 4.5 * float(found.standard_error)
    chosen = np.array([SETS.index(tuple(int(j) for j in row if j >= 0)) for row in log.actions])
    additive = np.einsum("tq,jq,sj->ts", CONTEXTS, GAIN, INCLUDES)
    exact = log._replace(utilities=1.0 + additive[np.arange(T), chosen])
    found = control.off_policy_value(TARGET, exact, lam=1e-4, key=jax.random.key(0))
    assert float(found.value) == pytest.approx(
        1 + (LAWS["target"] * additive).sum(1).mean(), abs=2e-3
    )


def test_offers_within_a_token_budget():
    """The offer has the largest expected number of used tools among all sets within the cost."""
    costs = np.array([3, 1, 4, 2, 2])
    for context, limit in zip(CONTEXTS[:8], (3, 5, 5, 5, 5, 5, 5, 5), strict=True):
        marginals = np.asarray(gibbs.marginals(TARGET.scores(context), budget=B))
        found = np.asarray(TARGET.offer(context, costs, limit))
        found = found[found >= 0]
        assert costs[found].sum() <= limit
        best = max(
            marginals[list(s)].sum()
            for r in range(M + 1)
            for s in itertools.combinations(range(M), r)
            if costs[list(s)].sum() <= limit
        )
        assert marginals[found].sum() == pytest.approx(best)
    small = TARGET.pruned([0, 3])
    np.testing.assert_array_equal(np.sort(small.offer(CONTEXTS[0], [1, 1], 2)), [0, 3])
