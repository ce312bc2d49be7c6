"""The head of a score vector: the indices of its `count` largest entries, found without sorting the scores."""

import math

import jax
import jax.numpy as jnp
from jax import lax

SMALLEST_BLOCK = 12  # below this, finding the blocks costs more than it saves


def largest(z: jax.Array, count: int) -> jax.Array:
    """Indices (int32, [count]) of the `count` largest entries of z [M], largest first; −inf entries come last. Order is up to float32 rounding.

    Two levels: strided blocks of about sqrt(M / count) entries; the largest entries all lie in the `count` blocks with the largest maxima.
    """
    size = z.shape[0]
    stride = 1 << max(round(math.log2(math.sqrt(size / count))), 0)
    if stride < SMALLEST_BLOCK:
        return _top(z, count)
    blocks = size // stride
    grid = z[: stride * blocks].reshape(stride, blocks)  # block i holds the entries i, i + blocks, i + 2 blocks, ...
    chosen = _top(jnp.max(grid, axis=0), count)
    candidates = (jnp.arange(stride, dtype=jnp.int32)[:, None] * jnp.int32(blocks) + chosen[None, :]).reshape(-1)
    rest = jnp.arange(stride * blocks, size, dtype=jnp.int32)
    candidates = jnp.concatenate([candidates, rest])
    scores = jnp.concatenate([grid[:, chosen].reshape(-1), z[stride * blocks :]])
    return candidates[_top(scores, count)]


def _top(values: jax.Array, count: int) -> jax.Array:
    """Indices of the `count` largest values. In float64 the comparison is in float32: `lax.top_k` of float64 is a full sort on CPUs.

    A plain cast would tie scores that a large common offset hides, so the float32 numbers are differences from a value near the threshold.
    """
    if values.dtype == jnp.float32 or values.shape[0] == count:
        return lax.top_k(values, count)[1].astype(jnp.int32)
    centre = jnp.max(values)
    for _ in range(2):
        keys = (values - jnp.where(jnp.isfinite(centre), centre, 0)).astype(jnp.float32)
        chosen = lax.top_k(keys, count)[1].astype(jnp.int32)
        centre = jnp.min(values[chosen])
    return chosen
