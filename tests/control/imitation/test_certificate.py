"""The certificate where a tool's odds are infinite: it must neither warn nor lose the other tools'
share.
"""

import jax
import numpy as np
import pytest

from jaxsac import Status, control


@pytest.mark.filterwarnings("error")
def test_a_tool_of_every_record_beside_others_gives_no_false_certificate():
    rng = np.random.default_rng(0)
    contexts = 30.0 * rng.normal(
        size=(60, 2)
    )  # far apart, so that probabilities reach 0 and 1 in floating point
    other = np.where(contexts[:, 0] > 0, 1, 2)
    actions = np.stack([np.zeros(60, int), other], axis=1).astype(np.int32)
    log = control.Log(contexts, actions)
    early = control.fit(jax.random.key(0), log, num_actions=4, budget=3, lam=0.05, max_steps=2)
    final = control.fit(jax.random.key(0), log, num_actions=4, budget=3, lam=0.05, max_steps=500)
    assert final.status in (Status.CONVERGED, Status.STALLED)
    # weak duality: no lower bound on the way exceeds any objective, and the later fit has the lower
    # one
    assert (
        float(early.stats["objective"]) - float(early.stats["gap"])
        <= float(final.stats["objective"]) + 1e-12
    )
    assert float(final.stats["objective"]) <= float(early.stats["objective"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [4, pytest.param(97, marks=pytest.mark.slow)])
def test_one_record_of_which_other_uses_vanish_gives_no_false_certificate(size):
    """By either kind of steps. The uses reach 0 where programs are compiled as for users."""
    contexts = np.random.default_rng(0).normal(size=(1, size))
    log = control.Log(contexts, np.array([[0]], np.int32))
    found = control.fit(jax.random.key(0), log, num_actions=5, budget=2, lam=1e-3, max_steps=40)
    assert found.status != Status.CONVERGED
    assert found.stats["gap"] > 0.5 * found.stats["scale"]
