"""Elementary symmetric polynomials of many weights by sums of positive terms only, as fast as a few
passes over the weights.

The weights are dealt to lanes. Every lane multiplies its factors (1 + w t) into a polynomial
truncated at degree B, `_GROUP` of them at a time, and the lanes' polynomials are multiplied
together at the end. Nothing cancels, so the relative error is a few dozen eps whatever the weights
are. (Newton's identities on power sums lose all digits when the weights that matter are not many
times B.) The derivative divides one factor out, e_(r−1) of the others = e_(r−1) − w e_(r−2) + w²
e_(r−3) − …, so it is a sum over power sums.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _loops

_GROUP = (
    4  # weights a lane takes at a time: the polynomials are read and written a quarter as often
)
_LANES = 16, 512  # fewest (a vector register or two), most (stay in cache)
_LONG = 16  # float32 sums of more slabs than this are compensated
_UNROLL = 40  # degrees up to which products of polynomials are written out
_POWERS, _SLICES = 8, 8  # powers and slices per pass of the derivative


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def elementary(weights: jax.Array, scale: jax.Array, budget: int, halvings: jax.Array) -> jax.Array:
    """2^(−halvings) e_r(scale · weights) for r = 0, …, budget, [budget + 1], of weights [M] ≥ 0.
    They must not overflow; what underflows is 0.
    """
    size = weights.shape[0]
    fewest = max(_LANES[0], 1 << (budget // 16).bit_length())  # a share of at most 2^−40 each
    lanes = min(max(1 << int(math.log2(max(size, 1) / 256 + 1)), fewest), max(_LANES[1], fewest))
    slab = _GROUP * lanes
    slabs = size // slab
    compensate = weights.dtype == jnp.float32 and slabs > _LONG
    padding = jnp.zeros((_GROUP, lanes), weights.dtype)  # leading rows: degrees below 0

    def multiply(carry, factors):
        state, lost = carry
        old = state[_GROUP:]
        coefficients = _multiply_four((factors * scale).reshape(_GROUP, lanes))[:budget]
        change = sum(
            c * state[_GROUP - i : _GROUP - i + budget + 1] for i, c in enumerate(coefficients, 1)
        )
        if compensate:
            change = change - lost
        new = old + change
        return jnp.concatenate([padding, new]), (new - old) - change if compensate else lost

    # Each lane takes its share of the halvings, so that no part leaves the range.
    share = -((halvings + np.arange(lanes, dtype=np.int32)) // lanes)
    start = jnp.ldexp(jnp.ones((lanes,), weights.dtype), share)
    state = jnp.zeros((_GROUP + budget + 1, lanes), weights.dtype).at[_GROUP].set(start)
    # What rounding added, as in Kahan's sum.
    lost = jnp.zeros((budget + 1, lanes) if compensate else (1, 1), weights.dtype)
    carry = state, lost
    if size % slab:
        rest = jnp.concatenate(
            [weights[slab * slabs :], jnp.zeros((slab - size % slab,), weights.dtype)]
        )
        carry = multiply(carry, rest)
    if slabs:
        carry = _loops.fori_loop(
            0,
            slabs,
            lambda k, carry: multiply(carry, lax.dynamic_slice(weights, (k * slab,), (slab,))),
            carry,
        )
    product = carry[0][_GROUP:]
    while (half := product.shape[1] // 2) > 0:
        product = products(product[:, :half], product[:, half:], budget, _UNROLL)
    return product[:, 0]


@elementary.defjvp
def _elementary_jvp(budget, primals, tangents):
    weights, scale, _ = primals
    coefficients = elementary(weights, scale, budget, primals[2])
    sums = weighted_power_sums(
        weights * scale, tangents[0] * scale, budget
    )  # `scale` is a constant of differentiation
    signed = sums * np.where(np.arange(budget) % 2, -1.0, 1.0).astype(sums.dtype)
    shift = np.arange(budget + 1)[:, None] - np.arange(1, budget + 1)[None, :]
    terms = jnp.where(shift >= 0, coefficients[np.maximum(shift, 0)] * signed[None, :], 0)
    return coefficients, jnp.sum(terms, axis=1)


def _multiply_four(factors: jax.Array) -> list[jax.Array]:
    """e_1, …, e_4 of the four weights in each lane, [1, lanes] each."""
    a, b, c, d = (factors[i : i + 1] for i in range(_GROUP))
    sum_ab, sum_cd, product_ab, product_cd = a + b, c + d, a * b, c * d
    return [
        sum_ab + sum_cd,
        product_ab + product_cd + sum_ab * sum_cd,
        product_ab * sum_cd + sum_ab * product_cd,
        product_ab * product_cd,
    ]


def products(left: jax.Array, right: jax.Array, degree: int, written_out: int) -> jax.Array:
    """Products of polynomials [d + 1, nodes], up to `degree`; those of at most `written_out`
    coefficients are no loop.
    """
    count, nodes = left.shape
    size = min(2 * (count - 1), degree) + 1
    zeros = jnp.zeros((count - 1, nodes), left.dtype)
    padded = jnp.concatenate([zeros, right, zeros])

    def term(i):
        shifted = lax.dynamic_slice(padded, (count - 1 - i, 0), (size, nodes))
        return lax.dynamic_slice(left, (i, 0), (1, nodes)) * shifted

    if count <= written_out:
        return sum((term(i) for i in range(1, count)), term(0))
    return _loops.fori_loop(1, count, lambda i, total: total + term(i), term(0))


def weighted_power_sums(w: jax.Array, v: jax.Array, count: int) -> jax.Array:
    """Σ_j w_j^(i−1) v_j for i = 1, …, count, as [count]."""
    if count <= _POWERS:
        return _power_sums(w, v, count)
    giant = lax.integer_pow(w, _POWERS)
    _, sums = _loops.scan(
        lambda v, _: (v * giant, _power_sums(w, v, _POWERS)), v, None, -(-count // _POWERS)
    )
    return sums.reshape(-1)[:count]


def _power_sums(w: jax.Array, v: jax.Array, count: int) -> jax.Array:
    # Elementwise sums of slices first, in one vectorised pass: a plain reduction is a scalar loop
    # on CPUs.
    width = -(-w.shape[0] // _SLICES)
    padding = (0, _SLICES * width - w.shape[0])
    w, v = jnp.pad(w, padding).reshape(_SLICES, width), jnp.pad(v, padding).reshape(_SLICES, width)
    rows = [v.sum(axis=0)]
    for i in range(1, count):
        others = (lax.integer_pow(w[k], i) * v[k] for k in range(1, _SLICES))
        rows.append(sum(others, lax.integer_pow(w[0], i) * v[0]))
    return jnp.stack(rows).sum(axis=1)
