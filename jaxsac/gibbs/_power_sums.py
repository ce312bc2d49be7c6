"""Power sums of a long vector, all of them in one pass, with a derivative rule in the same form."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

POWERS = 16  # powers per pass over the vector
CHAIN = 256  # longest sum without a tree above it
LANES = 16  # partial sums over this many slices are one vectorised kernel; a plain reduction is a scalar loop on CPUs


def power_sums(w: jax.Array, count: int) -> jax.Array:
    """p_i = sum_j w_j^i for i = 1, …, count, as [count]."""
    return weighted_power_sums(w, w, count)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def weighted_power_sums(w: jax.Array, v: jax.Array, count: int) -> jax.Array:
    """q_i = sum_j w_j^(i−1) v_j for i = 1, …, count, as [count]."""
    return _weighted_power_sums(w, v, count)


@weighted_power_sums.defjvp
def _weighted_power_sums_jvp(count, primals, tangents):
    w, v = primals
    dw, dv = tangents
    value = weighted_power_sums(w, v, count)
    tangent = weighted_power_sums(w, dv, count)
    if count > 1:
        inner = weighted_power_sums(w, v * dw, count - 1) * jnp.arange(1, count, dtype=w.dtype)
        tangent = tangent + jnp.concatenate([jnp.zeros((1,), w.dtype), inner])
    return value, tangent


def _weighted_power_sums(w: jax.Array, v: jax.Array, count: int) -> jax.Array:
    if count <= POWERS:
        return _block(w, v, count)
    giant = _power(w, POWERS)
    blocks = -(-count // POWERS)
    _, sums = lax.scan(lambda v, _: (v * giant, _block(w, v, POWERS)), v, length=blocks)
    return sums.reshape(-1)[:count]


def _block(w: jax.Array, v: jax.Array, count: int) -> jax.Array:
    size = w.shape[0]
    width = size // LANES
    sums = []
    if width:
        # Slices summed as a tree of elementwise operations: chains stay short (accuracy) and the loop runs over the slice (speed).
        w_slices = w[: LANES * width].reshape(LANES, width)
        v_slices = v[: LANES * width].reshape(LANES, width)
        rows = [_tree_sum([_power(w_slices[k], i) * v_slices[k] if i else v_slices[k] for k in range(LANES)]) for i in range(count)]
        sums.append(_row_sums(jnp.stack(rows)))
    if size > LANES * width:
        w_rest, v_rest = w[LANES * width :], v[LANES * width :]
        rows = [v_rest]
        for _ in range(count - 1):
            rows.append(rows[-1] * w_rest)
        sums.append(jnp.stack(rows).sum(axis=1))
    return sum(sums, jnp.zeros((count,), w.dtype))


def _row_sums(rows: jax.Array) -> jax.Array:
    """Sums along the last axis, in chains short enough for float32."""
    while rows.shape[1] > CHAIN:
        width = rows.shape[1] // CHAIN
        even = rows[:, : CHAIN * width].reshape(-1, CHAIN, width).sum(axis=1)
        rows = jnp.concatenate([even, rows[:, CHAIN * width :]], axis=1)
    return rows.sum(axis=1)


def _power(base: jax.Array, exponent: int) -> jax.Array:
    result = None
    while exponent:
        if exponent & 1:
            result = base if result is None else result * base
        exponent >>= 1
        if exponent:
            base = base * base
    assert result is not None
    return result


def _tree_sum(terms: list[jax.Array]) -> jax.Array:
    while len(terms) > 1:
        terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0]
