"""The least distance of a minimiser from a kink, in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import Groups, prox

GROUPS = Groups.from_sizes([1, 2, 3, 0])
WEIGHTS = np.array([0.2, 0.0, 0.7, 5.0])  # an unpenalised group, and an empty one
L1 = np.array([0.1, 0.0, 0.3, 0.0, 0.2, 0.4])


def margin(v, lam, l1, nonnegative):
    if nonnegative:
        v = np.maximum(v, 0)
    found = [abs(abs(x) / (lam * a) - 1) for x, a in zip(v, l1, strict=True) if a > 0]
    v = np.sign(v) * np.maximum(np.abs(v) - lam * l1, 0)
    for first, last, weight in ((0, 1, 0.2), (3, 6, 0.7)):
        found.append(abs(np.linalg.norm(v[first:last]) / (lam * weight) - 1))
    return min(found)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("l1", [0 * L1, L1])
@pytest.mark.parametrize("lam", [0.01, 0.5, 3.0])
def test_the_margin_is_its_formula(lam, l1, nonnegative):
    penalty = prox.Penalty([prox.Level(GROUPS, WEIGHTS)], l1=l1, nonnegative=nonnegative)
    for seed in range(5):
        b, pull = np.random.default_rng(seed).normal(size=(2, 6))
        found = penalty.margin(jnp.asarray(b), jnp.asarray(pull), lam, 2.5)
        np.testing.assert_allclose(found, margin(2.5 * b + pull, lam, l1, nonnegative), rtol=1e-9)
