"""The generating polynomial of a score vector: coefficient r is e_r, the sum over sets of r tools
of exp(sum of their scores).

Coefficients span thousands of orders of magnitude. They are computed of the log odds x = score − λ
at a tilt λ (`_tilt`), as e_r = exp(λ r + a constant) · values_r: the values are in range for all
sizes that matter, and what underflows does not matter. The constant is one of differentiation too.

The largest scores, the head, are multiplied in one by one, each over the larger of 1 and its odds
exp(x). All others, the tail, are multiplied together. A tail tool's marginal is a polynomial in
its weight w (division of the tail's polynomial by the factor 1 + w t): alternating, but stable
where the head holds enough scores beyond the budget, none below it. The error is at most eps ·
sum_i w^i e_(B−i) / e_B, which is worst where all scores are equal and the tail has one tool: eps ·
sum_(r ≤ B) C(K + 1, r) / C(K + 1, B) for K head scores.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops
from jaxsac.gibbs import _tilt
from jaxsac.gibbs._groups import correlate
from jaxsac.gibbs._head import largest
from jaxsac.gibbs._problem import Problem
from jaxsac.gibbs._tail import elementary
from jaxsac.gibbs._tilt import Tilt

_ROUGH = 32  # budgets up to which the first tilt will do
_LN2 = math.log(2)
_WRITTEN_OUT = 128  # degrees up to which the division of the tail is one pass


class Polynomial(NamedTuple):
    """The polynomial with what its adjoint needs. Letters: M tools, K head scores, D the degree."""

    tilt: Tilt
    head: jax.Array  # [K] indices of the head, about in falling order of score
    x: jax.Array  # [K] log odds of the head
    left_out: jax.Array  # [K] 1, and
    taken: jax.Array  # [K] exp(x), over the larger of the two, and over a power of 2
    steps: jax.Array  # [K, D + 1] the values before each head score was multiplied in
    tail: jax.Array  # [D + 1] the tail's own coefficients
    weights: jax.Array  # [M] odds of the tail; 0 for the head
    values: jax.Array  # [D + 1]
    powers: jax.Array  # [] of 2, that were taken out: their logarithm
    base: jax.Array  # [] the constant is base − number · tilt.rise
    number: jax.Array  # [] head tools with x > 0


@functools.cache
def head_size(budget: int, dtype: str) -> int:
    """The smallest head that keeps the marginals' rounding error at 2e-11 in float64, 4e-6 in
    float32; from `budget` to twice that.
    """
    limit = 60 if dtype == "float32" else 100_000
    count = budget
    while sum(math.comb(count + 1, r) for r in range(budget + 1)) > limit * math.comb(
        count + 1, budget
    ):
        count += max(budget // 16, 1)
    return count


def expand(p: Problem) -> Polynomial:
    """The polynomial of p.z [M] up to degree D; D and M ≥ 1, scores finite or −inf."""
    z, degree = p.z, p.degree
    low, high = p.limits
    size = z.shape[0]
    count = min(head_size(degree, z.dtype.name), size)
    constant, temperature = lax.stop_gradient((z, p.temperature))
    # In float64 the head is the largest only to a thousandth.
    head = largest(constant if z.dtype == jnp.float32 else constant / temperature, count)
    scores = constant[head]
    least = jnp.min(scores, initial=jnp.inf, where=jnp.isfinite(scores))
    least = jnp.where(jnp.isfinite(least), least, 0)
    groups = lax.stop_gradient(p.background)
    if count < size:
        weights = _weights(_tilt.relative(z, least, p.temperature), head)
        mass = lax.stop_gradient(jnp.sum(weights))
    else:
        weights, mass = jnp.zeros_like(z), jnp.zeros((), z.dtype)
    tilt = _tilt.choose(scores, (mass, least), groups, temperature, low, high)
    if degree > _ROUGH:
        tilt = _tilt.refine(tilt, _tilt.parts(tilt, constant, groups), low, high)

    tail, halvings = jnp.zeros((degree + 1,), z.dtype).at[0].set(1), jnp.zeros((), z.dtype)
    if count < size:
        scale = jnp.exp(tilt.of(least, temperature))
        if degree > _ROUGH:  # the sum of the coefficients is Π (1 + w)
            growth = jnp.sum(jnp.log1p(lax.stop_gradient(weights) * scale))
            halvings = jnp.round(jnp.minimum(growth, 1e6) / _LN2)
        tail = elementary(weights, scale, degree, halvings.astype(jnp.int32))
        weights = weights * scale
    x = tilt.of(z[head], p.temperature)
    left_out, taken = _tilt.chances(x)
    # Powers of 2 keep the product's sum near 1, without rounding.
    growth = jnp.floor(jnp.cumsum(jnp.log2(lax.stop_gradient(left_out + taken))))
    halve = jnp.exp2(-jnp.diff(growth, prepend=jnp.zeros((1,), z.dtype)))
    left_out, taken = halve * left_out, halve * taken
    powers = (halvings + growth[-1]) * _LN2
    values, steps = _multiply(tail, left_out, taken)
    above = scores > -jnp.inf
    above &= lax.stop_gradient(x) > 0
    base = jnp.sum(jnp.where(above, _tilt.relative(scores, tilt.centre, temperature), 0)) + powers
    number = jnp.sum(above, dtype=z.dtype)
    return Polynomial(
        tilt, head, x, left_out, taken, steps, tail, weights, values, powers, base, number
    )


@jax.custom_jvp
def _weights(relative: jax.Array, head: jax.Array) -> jax.Array:
    """exp(relative), 0 for the head, where it may overflow: so the derivative is made from the
    result.
    """
    return jnp.exp(relative).at[head].set(0)


@_weights.defjvp
def _weights_jvp(primals, tangents):
    weights = _weights(*primals)
    return weights, weights * tangents[0]


def adjoint(polynomial: Polynomial, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """With `cotangent` [D + 1] the law of sizes over the values: the marginals [M], and those of
    the head's complements [K], all of terms ≥ 0 but for the tail's division.
    """

    def step(cotangent, saved):
        left_out, taken, before = saved
        chosen = taken * jnp.sum(cotangent[1:] * before[:-1])
        other = left_out * jnp.sum(cotangent * before)
        below = jnp.concatenate([cotangent[1:], jnp.zeros((1,), cotangent.dtype)])
        return left_out * cotangent + taken * below, (chosen, other)

    saved = (polynomial.left_out, polynomial.taken, polynomial.steps)
    cotangent, (chosen, others) = _loops.scan(step, cotangent, saved, reverse=True)
    result = jnp.zeros_like(polynomial.weights)
    if polynomial.head.shape[0] < result.shape[0]:
        result = _divide(polynomial.weights, correlate(cotangent, polynomial.tail)[1:])
    return result.at[polynomial.head].set(chosen), others


def _divide(weights: jax.Array, coefficients: jax.Array) -> jax.Array:
    """w c_1 − w² c_2 + w³ c_3 − … by Horner's rule; coefficients [D]."""
    result = jnp.zeros_like(weights)
    degree = coefficients.shape[0]

    def down(result, block):
        for coefficient in block[::-1]:
            result = weights * (coefficient - result)
        return result

    if degree <= _WRITTEN_OUT:
        return down(result, coefficients)
    blocks = -(-degree // _WRITTEN_OUT)
    coefficients = jnp.pad(coefficients, (0, blocks * _WRITTEN_OUT - degree))
    return _loops.scan(
        lambda result, block: (down(result, block), None),
        result,
        coefficients.reshape(blocks, _WRITTEN_OUT),
        reverse=True,
    )[0]


def _multiply(
    values: jax.Array, left_out: jax.Array, taken: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Multiply the head in, one score a step: the final values, and the values before each step."""

    def step(values, chance):
        left_out, taken = chance
        shifted = jnp.concatenate([jnp.zeros((1,), values.dtype), values[:-1]])
        return left_out * values + taken * shifted, values

    return _loops.scan(step, values, (left_out, taken))
