"""Where the linear solve behind a derivative fails its own bound, the derivative is NaN, in every
room. A module of its own: what is traced here must not be used elsewhere.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contract import PURE

from jaxsac import _implicit

CASES = {name: case for name, case in PURE.items() if case.differentiate and case.certified}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_failed_linear_solve_is_no_derivative(case, monkeypatch):
    monkeypatch.setattr(_implicit, "_ACCURACY", 1e9)  # nothing is as accurate as that
    hyper = {name: jnp.asarray(value) for name, value in case.hyper.items()}
    everything = {**case.problem(2, jnp.float64), **hyper}
    value = everything[case.differentiate[0]]

    @jax.jit
    def slope(value):
        def scalar(value):
            return case.scalar(case.solve(**{**everything, case.differentiate[0]: value}))

        return jax.value_and_grad(scalar)(value)

    found, gradient = slope(value)
    assert np.isfinite(found) and np.all(np.isnan(gradient))
