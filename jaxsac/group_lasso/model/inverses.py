"""Inverses of many small matrices without LAPACK."""

import jax
import jax.numpy as jnp
from jax import lax


def inverses(matrices: jax.Array) -> jax.Array:
    """The inverses of small symmetric positive definite matrices [S, q, q], by sweeps over all of
    them at once (Goodnight 1979).

    Not by LAPACK: on CPUs its batched calls wait for threads of the pool that they run in, and two
    at once may wait for ever.
    """
    size = matrices.shape[1]
    places = jnp.arange(size, dtype=jnp.int32)

    def sweep(k, at):
        column = lax.dynamic_index_in_dim(at, k, axis=2, keepdims=False)
        pivot = lax.dynamic_index_in_dim(column, k, axis=1, keepdims=True)
        share = column / pivot
        here = (places == k)[None, :]
        swept = at - column[:, :, None] * share[:, None, :]
        swept = jnp.where(
            here[:, :, None],
            share[:, None, :],
            jnp.where(here[:, None, :], share[:, :, None], swept),
        )
        return jnp.where(here[:, :, None] & here[:, None, :], -1.0 / pivot[:, :, None], swept)

    return -lax.fori_loop(0, size, sweep, matrices)
