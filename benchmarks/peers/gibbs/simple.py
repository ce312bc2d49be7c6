"""SIMPLE for sets of exactly k items, jitted: the log-space programme over the items, marginals and
their Jacobian by automatic differentiation of it (Ahmed et al., ICLR 2023, arXiv 2210.01941). Needs
jax alone.
"""

import time

import numpy as np
from clock import seconds


def answer(arrays, settings):
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", settings["dtype"] == "float64")
    k = int(settings["budget"])
    z, cotangent = (jnp.asarray(arrays[name], settings["dtype"]) for name in ("z", "cotangent"))
    lowest = float(jnp.finfo(z.dtype).min) / 4

    def tables(z):
        """log e_r of the first items, r = 0, …, k, after each of them: [M, k + 1]."""

        def step(row, score):
            with_item = jnp.concatenate([jnp.full((1,), lowest, z.dtype), row[:-1] + score])
            row = jnp.logaddexp(row, with_item)
            return row, row

        start = jnp.full((k + 1,), lowest, z.dtype).at[0].set(0)
        return start, jax.lax.scan(step, start, z)[1]

    def log_partition(z):
        return tables(z)[1][-1, k]

    marginals = jax.grad(log_partition)

    def sample(key, z):
        """From the last item to the first, [M] of 0 and 1."""
        start, rows = tables(z)
        before = jnp.concatenate([start[None], rows[:-1]])

        def step(left, item):
            uniform, score, row, earlier = item
            chance = jnp.exp(earlier[jnp.maximum(left - 1, 0)] + score - row[left])
            take = (uniform < chance) & (left > 0)
            return left - take.astype(left.dtype), take.astype(z.dtype)

        uniforms = jax.random.uniform(key, z.shape, z.dtype)
        return jax.lax.scan(step, jnp.int32(k), (uniforms, z, before, rows), reverse=True)[1]

    @jax.custom_vjp
    def straight_through(key, z):
        return sample(key, z)

    def forward(key, z):
        return sample(key, z), z

    def backward(z, cotangent):
        return None, jax.vjp(marginals, z)[1](cotangent)[0]

    straight_through.defvjp(forward, backward)

    def loss(z, key, cotangent):
        return jnp.sum(straight_through(key, z) * cotangent)

    keys = jax.random.split(jax.random.key(0), z.shape[0])
    step = jax.jit(jax.vmap(jax.value_and_grad(loss)))
    draws = jax.jit(jax.vmap(sample))(keys, z)
    thunk = lambda: jax.block_until_ready(step(z, keys, cotangent))  # noqa: E731
    start = time.perf_counter()
    thunk()
    first_call = time.perf_counter() - start
    times = seconds(thunk, min_repeats=settings["min_repeats"], min_seconds=settings["min_seconds"])
    outputs = {
        "gradient": np.asarray(thunk()[1]),
        "marginals": np.asarray(jax.jit(jax.vmap(marginals))(z)),
        "size": np.asarray(draws.sum(axis=1)),
    }
    return outputs, {"seconds": times, "first_call": first_call}
