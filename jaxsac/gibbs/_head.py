"""The head of a score vector: the indices of its `count` largest entries, found without sorting the
scores.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops

_FAR = 1e4  # at this distance from the centre float32 resolves 1e-3
_SMALLEST_BLOCK = 12  # below this, finding the blocks costs more than it saves


def largest(z: jax.Array, count: int) -> jax.Array:
    """Indices (int32, [count]) of the `count` largest entries of z [M], largest first, up to a
    relative 1e-3 in exp(z); −inf entries last.

    Two levels: strided blocks of about sqrt(M / count) entries; the largest entries all lie in the
    `count` blocks with the largest maxima.
    """
    z = lax.stop_gradient(z)
    size = z.shape[0]
    stride = 1 << max(round(math.log2(math.sqrt(size / count))), 0)
    if stride < _SMALLEST_BLOCK:
        return _top(z, count)
    blocks = size // stride
    grid = z[: stride * blocks].reshape(
        stride, blocks
    )  # block i holds the entries i, i + blocks, i + 2 blocks, ...
    chosen = _top(jnp.max(grid, axis=0), count)
    candidates = (
        jnp.arange(stride, dtype=jnp.int32)[:, None] * jnp.int32(blocks) + chosen[None, :]
    ).reshape(-1)
    rest = jnp.arange(stride * blocks, size, dtype=jnp.int32)
    candidates = jnp.concatenate([candidates, rest])
    scores = jnp.concatenate([grid[:, chosen].reshape(-1), z[stride * blocks :]])
    return candidates[_top(scores, count)]


def _top(values: jax.Array, count: int) -> jax.Array:
    """Indices of the `count` largest values. In float64 the comparison is in float32: `lax.top_k`
    of float64 is a full sort on CPUs.

    A plain cast would tie scores that a large offset hides, so what is compared are differences
    from the largest value, and, where that one is so far from the threshold that the differences
    are coarse, again from the threshold.
    """
    if values.dtype == jnp.float32 or values.shape[0] == count:
        return lax.top_k(values, count)[1].astype(jnp.int32)

    def choose(centre):
        centre = jnp.where(jnp.isfinite(centre), centre, 0)
        chosen = lax.top_k((values - centre).astype(jnp.float32), count)[1].astype(jnp.int32)
        return centre, jnp.min(values[chosen]), chosen

    def coarse(state):
        centre, threshold, _ = state
        return jnp.isfinite(threshold) & (jnp.abs(threshold - centre) > _FAR)

    return _loops.while_loop(coarse, lambda state: choose(state[1]), choose(jnp.max(values)))[2]
