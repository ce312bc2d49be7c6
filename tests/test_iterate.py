"""Every way the loop can end, alone and as one lane among others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import _iterate
from jaxsac._iterate import Certificate, iterate, iterate_lanes
from jaxsac.solution import Status


@functools.partial(jax.jit, static_argnames=("check_every", "patience"))
def shrink(start, factor, tol, max_steps, floor=0.0, check_every=1, patience=5):
    """x ← max(factor · x, floor); the certificate is |x| itself, of scale 1."""
    dtype = start.dtype
    floor = jnp.asarray(floor, dtype)

    def certify(x):
        return Certificate(jnp.abs(x), jnp.asarray(1e-7, dtype), jnp.ones((), dtype))

    return iterate(
        lambda x: jnp.maximum(factor * x, floor),
        certify,
        start,
        tol=tol,
        max_steps=max_steps,
        check_every=check_every,
        patience=patience,
    )


def run(start, factor, tol=1e-3, max_steps=1000, dtype=jnp.float64, **kwargs):
    return shrink(
        jnp.asarray(start, dtype),
        jnp.asarray(factor, dtype),
        jnp.asarray(tol, dtype),
        max_steps,
        **kwargs,
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_converges_at_the_first_step_that_meets_the_tolerance(dtype):
    out = run(1.0, 0.5, dtype=dtype)
    assert out.status == Status.CONVERGED and out.num_steps == 10 and out.state == 0.5**10
    assert out.certificate.error == out.state and out.state.dtype == dtype


def test_a_start_that_is_good_enough_takes_no_step():
    out = run(1e-4, 0.5)
    assert out.status == Status.CONVERGED and out.num_steps == 0 and out.state == 1e-4


def test_step_limit_and_last_stretch():
    out = run(1.0, 0.9, max_steps=7, check_every=5)
    assert out.status == Status.MAX_STEPS and out.num_steps == 7
    np.testing.assert_allclose(out.state, 0.9**7, rtol=1e-14)
    assert run(1.0, 0.5, max_steps=0).status == Status.MAX_STEPS


def test_checking_seldom_only_rounds_the_steps_up():
    assert run(1.0, 0.5, check_every=4).num_steps == 12


def test_stalls_without_progress():
    out = run(1.0, 0.5, floor=0.01, patience=5)
    assert out.status == Status.STALLED and out.num_steps == 7 + 5


def test_a_tolerance_below_rounding_is_never_converged():
    out = run(1.0, 0.5, tol=1e-9)
    assert out.status == Status.STALLED and out.state <= 1e-7


@pytest.mark.parametrize(
    "start, factor", [(np.nan, 0.5), (np.inf, 0.5), (1.0, np.nan), (1e300, 1e10)]
)
def test_nonfinite_is_named(start, factor):
    assert run(start, factor).status == Status.NONFINITE


def test_lanes_do_not_disturb_each_other():
    starts = jnp.asarray([1.0, jnp.nan, 3.0, 1e-5, 1.0])
    factors = jnp.asarray([0.5, 0.5, 0.9, 0.5, 1.0])
    batch = jax.vmap(lambda s, f: shrink(s, f, 1e-3, 30))
    out = batch(starts, factors)
    assert out.status.tolist() == [
        Status.CONVERGED,
        Status.NONFINITE,
        Status.MAX_STEPS,
        Status.CONVERGED,
        Status.STALLED,
    ]
    for lane in range(5):
        alone = run(starts[lane], factors[lane], max_steps=30)
        np.testing.assert_array_equal(out.state[lane], alone.state)
        assert out.num_steps[lane] == alone.num_steps
    healthy = batch(starts.at[1].set(2.0), factors)
    np.testing.assert_array_equal(np.delete(healthy.state, 1), np.delete(out.state, 1))


def halving(lane, x):
    return lane * x


def size_of(lane, x):
    return Certificate(jnp.abs(x), jnp.full_like(x, 1e-7), jnp.ones_like(x))


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("size", [1, 5, 100])
def test_lanes_in_step_are_those_of_a_batched_loop(size, compact):
    rng = np.random.default_rng(size)
    factors = jnp.asarray(rng.choice([0.5, 0.9, 0.99, 1.0, np.nan], size))
    starts, tols = (
        jnp.asarray(rng.uniform(0.0, 2.0, size)),
        jnp.asarray(rng.choice([1.0, 1e-2, 1e-6, 1e-9], size)),
    )
    limits = jnp.asarray(rng.choice([0, 7, 1000], size), jnp.int32)
    loop = dict(check_every=4, patience=10)

    def alone(factor, start, tol, limit):
        return iterate(
            lambda x: halving(factor, x),
            lambda x: size_of(factor, x),
            start,
            tol=tol,
            max_steps=limit,
            **loop,
        )

    expected = jax.jit(jax.vmap(alone))(factors, starts, tols, limits)
    found = iterate_lanes(
        halving, size_of, factors, starts, tol=tols, max_steps=limits, compact=compact, **loop
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert size < 100 or {0, 1, 2, 3} == set(np.unique(found.status).tolist())  # every way to end


def test_a_slow_lane_keeps_no_other_waiting(monkeypatch):
    """Of 100 lanes one takes a thousand steps: the work is that of the steps that the lanes need,
    in a few places, and not 100 thousand.
    """
    monkeypatch.setattr(_iterate, "_WIDE", 32)  # on CPUs it is
    work = []

    def counted(x):
        work.append(np.size(x))
        return x

    def step(lane, x):
        return jax.pure_callback(
            counted, jax.ShapeDtypeStruct((), x.dtype), lane * x, vmap_method="broadcast_all"
        )

    factors = jnp.full(100, 0.5).at[40].set(0.99)
    ended = jax.block_until_ready(
        iterate_lanes(step, size_of, factors, jnp.ones(100), tol=jnp.asarray(1e-5), max_steps=5000)
    )
    assert np.all(ended.status == Status.CONVERGED) and ended.num_steps[40] > 1000
    assert np.sum(ended.num_steps) <= sum(work) <= 4 * np.sum(ended.num_steps)
