"""Samples against the exact law of sets (chi-square), and against marginals where sets are too
many.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs.oracle import Enumeration, Law
from scipy import stats

from jaxsac import gibbs

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
def sampler(budget, exactly=False, costs=None):
    costs = None if costs is None else np.array(costs)
    return jax.jit(lambda key, z: gibbs.sample(key, z, budget, DRAWS, exactly=exactly, costs=costs))


ROUTES = {
    "at most": (3, {}),
    "exactly": (3, {"exactly": True}),
    "one less than all": (8, {}),
    "not binding": (9, {}),
    "costs": (6, {"costs": tuple(COSTS)}),
    "exact cost": (6, {"costs": tuple(COSTS), "exactly": True}),
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


@pytest.mark.slow
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


GROUPS = np.array([3, 1, 4])
OPTIONS = {
    "background": (3, {"background": GROUPS}),
    "background, exactly": (4, {"background": GROUPS, "exactly": True}),
    "given": (4, {"given": np.array([2, -1, 0]), "at_least": 3}),
    "given, costs": (6, {"given": np.array([1]), "costs": COSTS[:6]}),
    "given, not binding": (6, {"given": np.array([1])}),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("given", "background") else pytest.mark.slow)
        for name in OPTIONS
    ],
)
def test_sets_of_every_option_have_the_exact_law(name):
    budget, options = OPTIONS[name]
    z = 2 * np.random.default_rng(11).normal(size=9)
    counts = options.get("background")
    tools = z[:6] if counts is None else np.concatenate([z[:6], np.repeat(z[6:], counts)])
    law = Law(tools, budget, **{k: v for k, v in options.items() if k != "background"})
    if counts is not None:
        options = {**options, "background": (z[6:], counts)}
    policy = gibbs.Policy(jnp.asarray(z[:6]), budget=budget, **options)
    draws = np.sort(policy.sample(jax.random.key(3), DRAWS), axis=1)
    rows, observed = np.unique(draws, axis=0, return_counts=True)
    found = {
        frozenset(int(j) for j in row if j >= 0): n for row, n in zip(rows, observed, strict=True)
    }
    assert sum(len(one) == np.sum(row >= 0) for one, row in zip(found, rows, strict=True)) == len(
        rows
    )
    assert set(found) <= set(law.sets)
    mean = law.probabilities * DRAWS
    seen = np.array([found.get(one, 0) for one in law.sets], float)
    common = mean >= 5
    seen, mean = (np.append(x[common], x[~common].sum()) for x in (seen, mean))
    seen, mean = seen[mean > 0], mean[mean > 0]
    assert stats.chi2.sf(np.sum((seen - mean) ** 2 / mean), len(mean) - 1) > 1e-4


def test_what_is_rarer_than_a_float_can_count_is_not_drawn():
    z = jnp.where(jnp.arange(9) == 4, -60.0, 0.0).astype(jnp.float32)
    assert not np.any(gibbs.sample(jax.random.key(2), z, 3, 2_000_000) == 4)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_tools", "budget", "count"),
    [(2000, 300, 2000), pytest.param(1_000_000, 1024, 400, marks=pytest.mark.slow)],
)
def test_large_sets(num_tools, budget, count):
    """Hundreds and thousands of tools in a set: no duplicates, frequencies by groups of tools, and
    the size of two halves, whose covariance is that of the law.
    """
    z = np.random.default_rng(1).normal(size=num_tools).astype(np.float32)
    policy = gibbs.Policy(jnp.asarray(z), budget=budget, exactly=True)
    draws = np.sort(policy.sample(jax.random.key(5), count), axis=1)
    assert draws[:, 0].min() >= 0 and np.all(np.diff(draws, axis=1) > 0)
    marginals = np.asarray(policy.marginals(), float)
    frequency = np.bincount(draws.reshape(-1), minlength=num_tools) / count
    for group in np.array_split(np.argsort(-marginals), 30):
        spread = np.sqrt(np.sum(marginals[group] * (1 - marginals[group])) / count)
        assert abs(frequency[group].sum() - marginals[group].sum()) < 5 * spread
    half = np.arange(num_tools) % 2 == 0
    inside = half[draws].sum(1)
    variance = float(half @ np.asarray(policy.covariance(jnp.asarray(half, jnp.float32)), float))
    assert abs(inside.mean() - marginals[half].sum()) < 5 * np.sqrt(variance / count)
    assert abs(inside.var() / variance - 1) < 5 * np.sqrt(2 / count)
