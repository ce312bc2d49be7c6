"""Samples against the exact law of sets (chi-square), against marginals where sets are too many,
and the bound on proposals.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs.oracle import Enumeration
from scipy import stats

from jaxsac import gibbs
from jaxsac.gibbs import sampling

DRAWS = 60_000
COSTS = np.array([1, 2, 3, 0, 2, 5, 7, 1])


def chi_square(draws, expected):
    """p-value of the observed sets; a set that cannot be drawn is a KeyError."""
    draws = np.sort(np.asarray(draws), axis=1)
    index = {s: i for i, s in enumerate(expected.sets)}
    rows, counts = np.unique(draws, axis=0, return_counts=True)
    observed = np.zeros(len(expected.sets))
    for row, count in zip(rows, counts, strict=True):
        observed[index[tuple(int(j) for j in row if j >= 0)]] += count
    mean = expected.probabilities * len(draws)
    common = mean >= 5
    observed = np.append(observed[common], observed[~common].sum())
    mean = np.append(mean[common], mean[~common].sum())
    observed, mean = observed[mean > 0], mean[mean > 0]
    return stats.chi2.sf(np.sum((observed - mean) ** 2 / mean), len(mean) - 1)


@functools.cache
def sampler(budget, exactly=False, costs=None, head=None, rounds=None):
    """A jitted sampler; `head` and `rounds` force the routes that small problems do not take on
    their own.
    """
    costs = None if costs is None else np.array(costs)

    def draw(key, z):
        return gibbs.sample(key, z, budget, DRAWS, exactly=exactly, costs=costs)

    if head is None:
        return jax.jit(draw)

    def forced(key, z):
        return sampling._constrained(
            key, z, budget, exactly, DRAWS if rounds else DRAWS // 10, head, rounds
        )

    return jax.jit(forced)


ROUTES = {
    "table": (3, {}),
    "table, exactly": (3, {"exactly": True}),
    "not binding": (9, {}),
    "costs": (6, {"costs": tuple(COSTS)}),
    "exact cost": (6, {"costs": tuple(COSTS), "exactly": True}),
    "rejection": (3, {"head": 3, "rounds": 256}),
    "rejection, exactly": (3, {"head": 3, "rounds": 256, "exactly": True}),
    "tool by tool": (3, {"head": 3, "rounds": 0}),
}


@pytest.mark.parametrize("route", ROUTES)
def test_sets_have_the_exact_law(route):
    budget, options = ROUTES[route]
    size = 8 if "costs" in options else 9
    rng = np.random.default_rng(7)
    for seed, z in enumerate(
        [rng.normal(size=size), np.zeros(size), np.where(np.arange(size) < 4, 2.0, -1.0)]
    ):
        draws = sampler(budget, **options)(jax.random.key(seed), jnp.asarray(z))
        expected = Enumeration(z, budget, options.get("exactly", False), options.get("costs"))
        assert chi_square(draws, expected) > 1e-4


def test_float32_draws_have_the_exact_law():
    z = np.random.default_rng(8).normal(size=9).astype(np.float32)
    assert chi_square(sampler(3)(jax.random.key(5), jnp.asarray(z)), Enumeration(z, 3)) > 1e-4


def test_inclusion_frequencies_with_a_long_tail():
    """M far above the head: every draw is a feasible set, and frequencies lie within their standard
    errors of the marginals.
    """
    rng = np.random.default_rng(9)
    z = np.stack(
        [
            2 * rng.normal(size=3000),
            rng.normal(size=3000) - np.log(3000),
            np.zeros(3000),
            rng.normal(size=3000),
        ]
    ).astype(np.float32)
    count = 20_000
    temperature = jnp.asarray([1, 1, 1, 1e-5], jnp.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    draw = jax.jit(
        jax.vmap(
            lambda key, z, temperature: gibbs.sample(key, z, 4, count, temperature=temperature)
        )
    )
    draws = np.asarray(draw(keys, jnp.asarray(z), temperature))
    marginals = np.asarray(
        jax.jit(jax.vmap(lambda z: gibbs.marginals(z, 4)))(jnp.asarray(z)), np.float64
    )
    ordered = np.sort(draws, axis=-1)
    assert draws.min() >= -1 and draws.max() < 3000
    assert not np.any((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0))
    for row in range(3):
        frequency = np.bincount(draws[row][draws[row] >= 0], minlength=3000) / count
        groups = np.array_split(np.argsort(-marginals[row]), 200)
        observed = np.array([frequency[g].sum() for g in groups])
        mean = np.array([marginals[row][g].sum() for g in groups])
        # Inclusions are negatively correlated, so that a group's variance is at most the sum of its
        # tools' variances.
        spread = np.sqrt(
            np.array([np.sum(marginals[row][g] * (1 - marginals[row][g])) for g in groups]) / count
        )
        assert np.max(np.abs(observed - mean) / (spread + 1e-6)) < 5
    np.testing.assert_array_equal(
        ordered[3], np.tile(np.sort(gibbs.mode(z[3], 4)), (count, 1)), "cold samples are the mode"
    )


def expected_proposals(num_tools, head, budget):
    """[t^B] (1 + t)^K e^(n t) over [t^B] (1 + t)^(K + n): equal scores, which is the worst case, n
    tools in the tail.
    """
    from scipy.special import gammaln

    def log_binomial(n, r):
        return gammaln(n + 1) - gammaln(r + 1) - gammaln(n - r + 1)

    tail = num_tools - head
    j = np.arange(max(0, budget - head), budget + 1)
    log_total = np.logaddexp.reduce(
        log_binomial(head, budget - j) + j * np.log(tail) - gammaln(j + 1)
    )
    return np.exp(log_total - log_binomial(num_tools, budget))


def test_expected_proposals_are_at_most_two():
    for budget in (2, 3, 8, 32, 128):
        head = budget + -(-budget * (budget - 1) // 4)
        assert sampling.head_entries(10**6, budget) == head
        sizes = range(2 * head + 1, 40 * head, max(head // 8, 1))
        assert max(expected_proposals(size, head, budget) for size in sizes) <= 2
    assert expected_proposals(3 * 32, 2 * 32, 32) > 8, "twice the budget is not enough near M = 3 B"


def test_degenerate_draws():
    draw = jax.jit(lambda key, z: gibbs.sample(key, z, 3, 50, exactly=True))
    key = jax.random.key(0)
    full = np.sort(draw(key, jnp.where(jnp.arange(9) < 3, 1.0, -jnp.inf)), axis=1)
    np.testing.assert_array_equal(full, np.tile([0, 1, 2], (50, 1)))
    for bad in (
        jnp.where(jnp.arange(9) < 2, 1.0, -jnp.inf),
        jnp.full(9, jnp.nan),
        jnp.zeros(9).at[2].set(jnp.inf),
    ):
        assert np.all(np.asarray(draw(key, bad)) == -1)
    assert gibbs.sample(key, jnp.zeros(9), 0, 5).shape == (5, 0)
    assert gibbs.sample(key, jnp.zeros(4), 6, 5).shape == (5, 6)
    assert gibbs.sample(key, jnp.zeros(9), 3, 0).shape == (0, 3)
    assert gibbs.sample(key, jnp.zeros(8), 6, 5, costs=COSTS).shape == (5, 5), (
        "the largest feasible set: costs 0, 1, 1, 2, 2"
    )
