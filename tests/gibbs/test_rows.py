"""The row recurrence against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs.oracle import Law

from jaxsac.gibbs import rows
from jaxsac.gibbs.rows import recurrence

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
    monkeypatch.setattr(recurrence, "_BLOCK", 8)
    np.testing.assert_allclose(rows.log_size_weights(scores, BUDGET), whole, rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_size_is_lost(dtype):
    """One large score among zeros, ties, forced and missing tools: with a unit for each degree."""
    columns = [
        [20.0, 0, 0, 0, 0, 0],
        [30.0, 0, 0, 0, 0, 0],
        [300.0, 200, 100, 0, 0, -1],
        [1e4, 1e4, 1e4, 0, 0, -np.inf],
        [1.0] + 5 * [-np.inf],
        6 * [-1e4],
    ]
    scores = jnp.asarray(np.array(columns).T, dtype)
    rest = jnp.zeros((6, len(columns)), dtype)
    value, chosen = jax.jit(lambda s: (rows.log_partition(s, rest, 5), rows.marginals(s, rest, 5)))(
        scores
    )
    error = 1e-12 if dtype == "float64" else 1e-6
    for row, column in enumerate(columns):
        law = Law(np.array(column), 5)
        np.testing.assert_allclose(value[row], law.log_partition, rtol=error, atol=error)
        np.testing.assert_allclose(chosen[:, row], law.marginals, atol=error)
