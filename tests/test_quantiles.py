"""Quantiles against SciPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsac._quantiles import student_quantile


@pytest.mark.parametrize("dtype,rtol", [(np.float64, 1e-11), (np.float32, 3e-5)])
def test_student_quantiles(dtype, rtol):
    """From a single degree, whose tail is Cauchy's, to millions; traced, with the rounding of Γ."""
    traced = jax.jit(student_quantile)
    for degrees in (1, 2, 3, 7, 30, 255, 10**6, 1.3, 30.6):
        for confidence in (0.05, 0.6, 0.95, 0.999):
            level = jnp.asarray(confidence, dtype)
            exact = stats.t.ppf(dtype(confidence).astype(float), degrees)
            np.testing.assert_allclose(student_quantile(level, degrees), exact, rtol=rtol)
            np.testing.assert_allclose(traced(level, dtype(degrees)), exact, rtol=10 * rtol)
    assert student_quantile(jnp.asarray(0.5, dtype), 5) == 0
