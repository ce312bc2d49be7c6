"""Refits against least squares on the support."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxsac import Groups, group_lasso
from jaxsac.prox import Penalty

AT = zoo.instance(3, "squared")
X, Y, C = jnp.asarray(AT.X), jnp.asarray(AT.y), jnp.asarray(AT.sample_weight)
PLAIN = group_lasso.Problem(X, Y, Groups.from_sizes(zoo.SIZES), intercept=True)
T = zoo.NUM_SAMPLES


def test_a_refit_is_least_squares_on_the_support():
    solution = group_lasso.solve(PLAIN, 1.0).check()
    weighted = dataclasses.replace(PLAIN, sample_weight=C)
    refitted = group_lasso.refit(weighted, solution).check()
    active = (zoo.norms(np.asarray(solution.value.coef)) > 0)[zoo.LABELS]
    assert 0 < active.sum() < 12
    columns = np.column_stack([AT.X[:, active], np.ones(T)])
    exact = np.linalg.lstsq(
        np.sqrt(AT.sample_weight)[:, None] * columns, np.sqrt(AT.sample_weight) * AT.y, rcond=None
    )[0]
    np.testing.assert_allclose(
        np.append(np.asarray(refitted.value.coef)[active], refitted.value.intercept),
        exact,
        rtol=1e-4,
        atol=1e-5,
    )
    assert not np.any(np.asarray(refitted.value.coef)[~active])
    with pytest.raises(ValueError, match="may only be a ridge"):
        group_lasso.refit(dataclasses.replace(PLAIN, penalty=Penalty(l1=1.0)), solution)
