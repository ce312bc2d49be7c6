"""Early stops of `solve` on the upper value."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bilevel.beds import SCALAR

from jaxsac import Reason, Status, bilevel

RUN = functools.partial(bilevel.solve, SCALAR, check_every=1)


def test_a_run_stops_when_its_upper_value_has_not_fallen():
    """x overshoots ½ by its momentum; each lane waits its own number of checks. By hand, from
    `step`: z is where x was, d = 1 − z, and the value, corrected for z, is of what x is now.
    """
    starts, patience = jnp.asarray([0.4, 1.9, -3.0]), jnp.asarray([2, 5, 9], jnp.int32)
    method = {"outer": optax.sgd(0.02, momentum=0.9), "inner": optax.sgd(1.0)}
    found = jax.jit(
        jax.vmap(lambda x, patience: RUN(x, 0 * x, **method, patience=patience, max_steps=400))
    )(starts, patience)
    assert (found.status == Status.STALLED).all()
    assert (found.stats["reason"] == Reason.EARLY_STOP).all()
    for k, (x, most) in enumerate(zip(starts, patience, strict=True)):
        state, values = bilevel.init(SCALAR, x, 0 * x, bilevel.Method(**method)), []
        for _ in range(int(found.stats["num_steps"][k])):
            state, _ = bilevel.step(SCALAR, state, bilevel.Method(**method))
            x, z, d = float(state.x), float(state.z), float(state.d)
            # the true hypergradient is 2 x − 1, the one at hand x − d, and the estimate of their
            # difference three times as large; at σ = 0.01 z is to be no higher than its copy
            known = 6 * abs((x - d) - (2 * x - 1)) <= abs(x) + abs(d)
            known &= d * (z - x) + 0.005 * d**2 >= 0
            here = (z - 1) ** 2 / 2 + x**2 / 2 + abs(d * (z - x))
            values.append(here if known else np.inf)
        assert np.isfinite(values[int(np.argmin(values)) + 1 :]).sum() == int(most)
        np.testing.assert_allclose(found.value.x[k], state.x, rtol=1e-12)  # two programs


def test_values_that_say_nothing_stop_nothing():
    """From y0 = 1, where upper is 0, its value can only rise, to ¼; at last it falls by less than
    rounding. What the certificate holds for is CONVERGED.
    """
    slow = {"outer": optax.sgd(0.05), "inner": optax.sgd(0.1)}
    found = RUN(jnp.asarray(0.0), jnp.asarray(1.0), **slow, patience=20)
    assert found.stats["num_steps"] > 50
    x = found.value.x
    np.testing.assert_allclose((x - 1) ** 2 / 2 + x**2 / 2, 0.25, atol=1e-4)
    fast = {"outer": optax.sgd(0.2), "inner": optax.sgd(0.9), "patience": 3}
    RUN(jnp.asarray(3.0), jnp.asarray(1.0), **fast).check()
    exact = RUN(jnp.asarray(3.0), jnp.asarray(1.0), **fast, tol=1e-13)
    assert exact.status == Status.STALLED and exact.stats["reason"] == Reason.EARLY_STOP
    np.testing.assert_allclose(exact.value.x, 0.5, atol=1e-7)
