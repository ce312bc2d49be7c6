"""The loop on the host against the one on the device, and the ladder of sizes."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import Status
from jaxsac._iterate import Certificate, iterate
from jaxsac._rounds import Progress, rounds
from jaxsac._sizes import padded
from jaxsac.solution import RUNNING, Reason, reason_of, verdict

ENDINGS = {
    "converged": (0.5, 0.0, 1e-2, 100, Status.CONVERGED, Reason.NONE),
    "at once": (0.5, 0.0, 2.0, 100, Status.CONVERGED, Reason.NONE),
    "too few steps": (0.5, 0.0, 1e-9, 3, Status.MAX_STEPS, Reason.NONE),
    "rounding": (0.5, 0.1, 1e-2, 100, Status.STALLED, Reason.PRECISION),
    "no progress": (1.0, 0.0, 1e-2, 100, Status.STALLED, Reason.PATIENCE),
    "overflow": (1e200, 0.0, 1e-2, 100, Status.NONFINITE, Reason.NONE),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_both_loops_end_alike(ending):
    factor, rounding, tol, max_steps, status, reason = ENDINGS[ending]

    def host(x):
        return Certificate(np.float64(abs(x)), np.float64(rounding), np.float64(1.0))

    with np.errstate(over="ignore"):
        ours = rounds(
            lambda x, progress: x * factor,
            host,
            np.float64(1.0),
            tol=tol,
            max_steps=max_steps,
            patience=5,
        )
    device = iterate(
        lambda x: x * factor,
        lambda x: Certificate(jnp.abs(x), jnp.full_like(x, rounding), jnp.ones_like(x)),
        jnp.asarray(1.0),
        tol=tol,
        max_steps=max_steps,
        patience=5,
    )
    assert ours.status == status == Status(int(device.status))
    assert ours.num_steps == device.num_steps
    for outcome in (ours, device):
        assert outcome.stats["reason"] == reason
        assert set(outcome.stats) == {"error", "rounding", "scale", "num_steps", "reason"}
    np.testing.assert_array_equal(ours.state, device.state)


def test_the_step_hears_of_progress_and_may_judge_it():
    heard = []

    def step(x, progress):
        heard.append(progress)
        return x - 1

    def certify(x):
        return Certificate(np.float64(1.0), np.float64(0.0), np.float64(1.0))

    ended = rounds(
        step, certify, 5, tol=0.0, max_steps=100, patience=2, useful=lambda x, certificate: x >= 4
    )
    assert ended.status == Status.STALLED and ended.num_steps == 3
    assert heard == [Progress(0, 0), Progress(1, 0), Progress(2, 1)]


def test_the_verdict_in_its_order():
    def judged(error, rounding=0.0, scale=1.0, tol=1e-3, progress=True, more=True):
        numbers = [np.float64(x) for x in (error, rounding, scale)]
        plain = verdict(tuple(numbers), tol, progress=progress, more=more)
        traced = verdict(
            tuple(map(jnp.asarray, numbers)), tol, progress=jnp.asarray(progress), more=more
        )
        assert plain == traced
        return int(plain)

    assert judged(1.0) == RUNNING
    assert judged(np.nan) == judged(1.0, np.inf) == judged(1.0, scale=np.nan) == Status.NONFINITE
    assert judged(1e-3) == judged(0.5e-3, 0.5e-3, more=False) == Status.CONVERGED
    assert judged(0.6e-3, 0.5e-3) == RUNNING and judged(0.5, 0.5) == Status.STALLED
    assert judged(1.0, progress=False, more=False) == Status.STALLED
    assert judged(1.0, more=False) == Status.MAX_STEPS
    assert reason_of(Status.MAX_STEPS, (0.0, 1.0, 1.0)) == Reason.NONE


def test_sizes_of_the_ladder():
    assert [padded(n, 16) for n in (0, 16, 17, 33)] == [16, 16, 32, 64]
    assert [padded(n, 32, 1.125, 64) for n in (1, 33, 65, 129, 193)] == [32, 64, 128, 192, 256]
    assert padded(5, 1, 1.01) == 5  # it always grows
    for ratio in (1.125, 1.5, 4.0):
        for count in range(1, 3000, 7):
            size = padded(count, 8, ratio, 8)
            assert count <= size < max(8, count * ratio + 16) and size % 8 == 0
