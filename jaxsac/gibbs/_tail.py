"""Elementary symmetric polynomials of many weights by sums of positive terms only, as fast as a few passes over the weights.

The weights are dealt to lanes; every lane multiplies its factors (1 + w t) into a polynomial truncated at degree B, `GROUP` of them at a time,
and the lanes' polynomials are multiplied together at the end. Nothing cancels, so the relative error is a few dozen eps whatever the weights
are; Newton's identities need fewer operations but lose all digits when the weights that matter are not many times B.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

GROUP = 4  # weights a lane takes at a time: the polynomials are read and written a quarter as often
LANES = 16, 512  # fewest (a vector register or two), most (stay in cache)
UNROLL = 40  # degrees up to which products of polynomials are written out


def elementary(weights: jax.Array, scale: jax.Array, budget: int) -> jax.Array:
    """e_r(scale · weights) for r = 0, …, budget, as [budget + 1], of weights [M] ≥ 0. They must not overflow; what underflows is 0."""
    size = weights.shape[0]
    lanes = min(max(1 << int(math.log2(max(size, 1) / 256 + 1)), LANES[0]), LANES[1])
    slab = GROUP * lanes
    slabs = size // slab
    padding = jnp.zeros((GROUP, lanes), weights.dtype)  # leading rows: degrees below 0

    def multiply(state, factors):
        groups = _group_polynomials((factors * scale).reshape(GROUP, lanes))
        new = state[GROUP:]
        for i in range(1, min(GROUP, budget) + 1):
            new = new + groups[i - 1] * state[GROUP - i : GROUP - i + budget + 1]
        return jnp.concatenate([padding, new])

    state = jnp.zeros((GROUP + budget + 1, lanes), weights.dtype).at[GROUP].set(1)
    if size % slab:
        state = multiply(state, jnp.concatenate([weights[slab * slabs :], jnp.zeros((slab - size % slab,), weights.dtype)]))
    if slabs:
        state = lax.fori_loop(0, slabs, lambda k, state: multiply(state, lax.dynamic_slice(weights, (k * slab,), (slab,))), state)
    return _product(state[GROUP:].T)


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
