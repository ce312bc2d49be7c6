"""The row recurrence and the grouped background against enumeration and a log-space programme."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac.control.policy import background
from jaxsac.gibbs import rows

BUDGET = 3


def enumerate_rows(scores, log_rest):
    tools, count = scores.shape
    total, chosen, sizes = np.zeros(count), np.zeros((tools, count)), np.zeros((BUDGET + 1, count))
    for r in range(BUDGET + 1):
        for members in itertools.combinations(range(tools), r):
            weight = np.exp(scores[list(members)].sum(0) + log_rest[r])
            total += weight
            sizes[r] += weight
            chosen[list(members)] += weight
    return np.log(total), chosen / total, sizes / total


@pytest.mark.parametrize(
    ("dtype", "accuracy"),
    [("float64", 1e-13), pytest.param("float32", 1e-5, marks=pytest.mark.slow)],
)
def test_rows_against_enumeration(dtype, accuracy):
    random = np.random.default_rng(0)
    scores = 3 * random.normal(size=(6, 8))
    scores[2, 3] = -np.inf  # an absent tool
    scores[:, 4] += 20  # a row of large scores
    scores[:, 5] = -np.inf  # a row without tools
    log_rest = random.normal(size=(BUDGET + 1, 8))
    value, chosen, sizes = enumerate_rows(scores, log_rest)
    args = jnp.asarray(scores, dtype), jnp.asarray(log_rest, dtype)
    found = rows.log_partition(*args, BUDGET)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, value, rtol=accuracy)
    gradients = jax.jit(
        jax.grad(lambda s, r: jnp.sum(rows.log_partition(s, r, BUDGET)), argnums=(0, 1))
    )(*args)
    np.testing.assert_allclose(gradients[0], chosen, atol=10 * accuracy)
    np.testing.assert_allclose(gradients[1], sizes, atol=10 * accuracy)


def test_rows_in_blocks_equal_rows_at_once(monkeypatch):
    scores = jnp.asarray(np.random.default_rng(1).normal(size=(5, 21)))
    whole = rows.log_size_weights(scores, BUDGET)
    monkeypatch.setattr(rows, "BLOCK", 8)
    np.testing.assert_allclose(rows.log_size_weights(scores, BUDGET), whole, rtol=1e-14)


def log_space(scores, budget):
    table = np.full(budget + 1, -np.inf)
    table[0] = 0
    for score in scores:
        table[1:] = np.logaddexp(table[1:], table[:-1] + score)
    return table


@pytest.mark.parametrize(
    ("budget", "dtype", "accuracy"),
    [(1, "float64", 1e-11), (5, "float32", 2e-5), (32, "float64", 1e-11)]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in ((1, "float32", 2e-5), (5, "float64", 1e-11), (32, "float32", 2e-5))
    ],
)
def test_background_against_log_space(budget, dtype, accuracy):
    spread = np.linspace(2, -8, 20)
    cases = [
        (spread, np.random.default_rng(0).integers(0, 300, 20)),
        (np.full(20, -1.0), np.full(20, 200)),  # equal scores
        (np.append([30.0, 1.0], np.full(18, -3.0)), np.append([2, 30], np.full(18, 20))),  # giants
        (spread, np.eye(20, dtype=int)[3] * 3),  # fewer tools than the budget
        (spread, np.zeros(20, int)),  # none
    ]
    size_weights = jax.jit(background.size_weights, static_argnums=2)
    for scores, counts in cases:
        found, share = size_weights(jnp.asarray(scores, dtype), jnp.asarray(counts, dtype), budget)
        true = log_space(np.repeat(scores, counts), budget)
        finite = np.isfinite(true)
        np.testing.assert_array_equal(np.isfinite(found), finite)
        np.testing.assert_allclose(
            np.asarray(found)[finite], true[finite], rtol=accuracy, atol=accuracy
        )
        for group in np.flatnonzero(counts)[[0, -1]] if counts.any() else []:
            fewer = counts.copy()
            fewer[group] -= 1
            others = log_space(np.repeat(scores, fewer), budget)[:-1]
            with np.errstate(invalid="ignore"):
                expected = np.where(finite[1:], np.exp(scores[group] + others - true[1:]), 0)
            np.testing.assert_allclose(
                np.asarray(share)[1:, group], expected, rtol=20 * accuracy, atol=1e-30
            )
