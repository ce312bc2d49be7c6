"""The grouped background against a log-space programme."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac.control.policy import background


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
