"""Elementary symmetric polynomials of many weights by sums of positive terms only, as fast as a few passes over the weights.

The weights are dealt to lanes; every lane multiplies its factors (1 + w t) into a polynomial truncated at degree B, `GROUP` of them at a time,
and the lanes' polynomials are multiplied together at the end. Nothing cancels, so the relative error is a few dozen eps whatever the weights
are; Newton's identities need fewer operations but lose all digits when the weights that matter are not many times B.
The derivative divides one factor out, e_(r−1) of the others = e_(r−1) − w e_(r−2) + w² e_(r−3) …, so it is a sum over power sums.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

GROUP = 4  # weights a lane takes at a time: the polynomials are read and written a quarter as often
LANES = 16, 512  # fewest (a vector register or two), most (stay in cache)
POWERS, SLICES = 8, 8  # powers and slices per pass of the derivative
UNROLL = 40  # degrees up to which products of polynomials are written out


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def elementary(weights: jax.Array, scale: jax.Array, budget: int) -> jax.Array:
    """e_r(scale · weights) for r = 0, …, budget, as [budget + 1], of weights [M] ≥ 0. They must not overflow; what underflows is 0."""
    size = weights.shape[0]
    lanes = min(max(1 << int(math.log2(max(size, 1) / 256 + 1)), LANES[0]), LANES[1])
    slab = GROUP * lanes
    slabs = size // slab
    padding = jnp.zeros((GROUP, lanes), weights.dtype)  # leading rows: degrees below 0
    compensate = weights.dtype == jnp.float32 and slabs > 16

    def multiply(state, lost, factors):
        groups = _group_polynomials((factors * scale).reshape(GROUP, lanes))
        change = -lost
        for i in range(1, min(GROUP, budget) + 1):
            change = change + groups[i - 1] * state[GROUP - i : GROUP - i + budget + 1]
        new = state[GROUP:] + change
        lost = (new - state[GROUP:]) - change if compensate else lost
        return jnp.concatenate([padding, new]), lost

    state = jnp.zeros((GROUP + budget + 1, lanes), weights.dtype).at[GROUP].set(1)
    lost = jnp.zeros((budget + 1, lanes) if compensate else (1, 1), weights.dtype)  # what rounding took from the state, as by Kahan
    if size % slab:
        factors = jnp.concatenate([weights[slab * slabs :], jnp.zeros((slab - size % slab,), weights.dtype)])
        state, lost = multiply(state, lost, factors)
    if slabs:
        state, _ = lax.fori_loop(0, slabs, lambda k, carry: multiply(*carry, lax.dynamic_slice(weights, (k * slab,), (slab,))), (state, lost))
    return _product(state[GROUP:].T)


@elementary.defjvp
def _elementary_jvp(budget, primals, tangents):
    """`scale` is a constant of differentiation."""
    weights, scale = primals
    coefficients = elementary(weights, scale, budget)
    sums = weighted_power_sums(weights * scale, tangents[0] * scale, budget)  # sum_j w_j^(i−1) dw_j
    signed = sums * np.where(np.arange(budget) % 2, -1.0, 1.0).astype(sums.dtype)
    shift = np.arange(budget + 1)[:, None] - np.arange(1, budget + 1)[None, :]
    return coefficients, jnp.sum(jnp.where(shift >= 0, coefficients[np.maximum(shift, 0)] * signed[None, :], 0), axis=1)


def weighted_power_sums(w: jax.Array, v: jax.Array, count: int) -> jax.Array:
    """sum_j w_j^(i−1) v_j for i = 1, …, count, as [count]."""
    if count <= POWERS:
        return _power_sums(w, v, count)
    giant = _power(w, POWERS)
    _, sums = lax.scan(lambda v, _: (v * giant, _power_sums(w, v, POWERS)), v, length=-(-count // POWERS))
    return sums.reshape(-1)[:count]


def _power_sums(w: jax.Array, v: jax.Array, count: int) -> jax.Array:
    # Elementwise sums of slices first: one vectorised pass; a plain reduction is a scalar loop on CPUs.
    width = -(-w.shape[0] // SLICES)
    padding = (0, SLICES * width - w.shape[0])
    w, v = jnp.pad(w, padding).reshape(SLICES, width), jnp.pad(v, padding).reshape(SLICES, width)
    rows = [v.sum(axis=0)]
    for i in range(1, count):
        rows.append(sum((_power(w[k], i) * v[k] for k in range(1, SLICES)), _power(w[0], i) * v[0]))
    return jnp.stack(rows).sum(axis=1)


def _power(base: jax.Array, exponent: int) -> jax.Array:
    half = _power(base, exponent // 2) if exponent > 1 else base
    if exponent == 1:
        return base
    return half * half * base if exponent % 2 else half * half


def _group_polynomials(factors: jax.Array) -> list[jax.Array]:
    """e_1, …, e_4 of four weights per lane, [1, lanes] each."""
    a, b, c, d = (factors[i : i + 1] for i in range(GROUP))
    sum_ab, sum_cd, product_ab, product_cd = a + b, c + d, a * b, c * d
    return [
        sum_ab + sum_cd,
        product_ab + product_cd + sum_ab * sum_cd,
        product_ab * sum_cd + sum_ab * product_cd,
        product_ab * product_cd,
    ]


def _product(polynomials: jax.Array) -> jax.Array:
    """Product of the polynomials [2^k, B + 1], truncated at degree B."""
    budget = polynomials.shape[1] - 1
    while (half := polynomials.shape[0] // 2) > 0:
        left = polynomials[:half]
        right = jnp.concatenate([jnp.zeros((half, budget), left.dtype), polynomials[half:]], axis=1)

        def term(i, left=left, right=right, half=half):
            return lax.dynamic_slice(left, (0, i), (half, 1)) * lax.dynamic_slice(right, (0, budget - i), (half, budget + 1))

        if budget <= UNROLL:
            polynomials = sum((left[:, i : i + 1] * right[:, budget - i : 2 * budget + 1 - i] for i in range(1, budget + 1)), left[:, :1] * right[:, budget:])
        else:
            polynomials = lax.fori_loop(1, budget + 1, lambda i, total, term=term: total + term(i), term(0))
    return polynomials[0]
