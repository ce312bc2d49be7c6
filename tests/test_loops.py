"""The loops of lax under `shard_map` with its default checks, on two devices of a fresh process."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import _loops

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from jaxsac import _loops
from jaxsac._linear import conjugate_gradient
from jaxsac._iterate import Certificate, iterate, iterate_lanes

mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
xs = jnp.arange(4.0)

def halve(x):  # a loop that certifies
    return iterate(
        lambda y: 0.5 * y, lambda y: Certificate(jnp.abs(y), jnp.zeros_like(y), jnp.ones_like(y)),
        x + 1.0, tol=1e-3, max_steps=30,
    ).num_steps

def halves(x):
    return iterate_lanes(
        lambda lane, y: lane * y,
        lambda lane, y: Certificate(jnp.abs(y), jnp.zeros_like(y), jnp.ones_like(y)),
        jnp.full(2, 0.5), x + 1.0, tol=1e-3, max_steps=30,
    ).num_steps

LOCAL = {
    "while": lambda x: _loops.while_loop(
        lambda c: c[1] < x, lambda c: (c[0] + x, c[1] + 1), (0.0, jnp.int32(0)))[0],
    "upper": lambda x: x + _loops.fori_loop(0, x.astype(int), lambda i, c: c + i, 0),
    "nested": lambda x: _loops.fori_loop(
        0, 3, lambda i, c: c + _loops.fori_loop(0, i, lambda j, d: d + x, 0.0), 0.0),
    "scan": lambda x: _loops.scan(lambda c, v: (c + v * x, c), 0.0, jnp.arange(3.0))[1].sum(),
    "back": lambda x: _loops.scan(
        lambda c, v: (c + v * x, c), 0.0, jnp.arange(3.0), reverse=True)[1][0],
    "start": lambda x: _loops.grad(lambda y, z: (y - x) ** 2 + z, (0, 1))(0.0, x)[0],
    "cond": lambda x: _loops.cond(x > 1, lambda: x, lambda: jnp.zeros(())),
    "platform": lambda x: _loops.platform_dependent(x, cpu=lambda x: 0.0, default=lambda x: x),
    "key": lambda x: _loops.fori_loop(
        0, 2, lambda i, c: (jax.random.split(c[0])[0], c[1] + jax.random.normal(c[0])),
        (jax.random.key(x.astype(int)), 0.0))[1],
    "gradient": jax.grad(lambda x: _loops.scan(lambda c, v: (c * x, None), 1.0, None, 3)[0]),
    "linear": lambda x: conjugate_gradient(lambda v: 2.0 * v, jnp.stack([x, 1.0])).x.sum(),
    "iterate": halve,
}
for name, kernel in LOCAL.items():
    for wrapped in (jax.vmap(kernel), lambda x: jax.lax.map(kernel, x)):
        expected = wrapped(xs)
        found = jax.jit(jax.shard_map(wrapped, mesh=mesh, in_specs=P("d"), out_specs=P("d")))(xs)
        np.testing.assert_array_equal(found, expected, err_msg=name)
np.testing.assert_array_equal(
    jax.jit(jax.shard_map(halves, mesh=mesh, in_specs=P("d"), out_specs=P("d")))(xs),
    jax.vmap(halve)(xs))
# What is the same on all devices stays so, and may leave as such.
same = jax.shard_map(LOCAL["while"], mesh=mesh, in_specs=P(), out_specs=P())
assert jax.jit(same)(3.0) == 9.0
print("done", end="")
"""


@pytest.mark.slow
def test_loops_pass_the_checks_of_shard_map():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env={
            **__import__("os").environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "done", done.stderr


def test_elsewhere_they_are_those_of_lax():
    def body(loops):
        def run(x):
            total = loops.fori_loop(0, 3, lambda i, c: c + x * i, 0.0)
            total = loops.while_loop(lambda c: c < 10, lambda c: 2 * c, total)
            total, steps = loops.scan(lambda c, v: (c + v, c), total, jnp.arange(3.0))
            return loops.cond(x > 0, lambda: total, lambda: -total) + steps.sum()

        return run

    ours, theirs = (
        str(jax.make_jaxpr(body(loops))(1.0)).split("\n") for loops in (_loops, jax.lax)
    )
    assert len(ours) == len(theirs)
    np.testing.assert_array_equal(body(_loops)(2.0), body(jax.lax)(2.0))
