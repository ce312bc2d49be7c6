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

Groups of tools that share a score have polynomials of their own, binomials at the same tilt.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _loops
from jaxsac.gibbs import _tilt
from jaxsac.gibbs._problem import Groups, Problem
from jaxsac.gibbs._tail import elementary
from jaxsac.gibbs._tilt import Tilt

_ROUGH = 32  # budgets up to which the first tilt will do
_LN2 = math.log(2)
_WRITTEN_OUT = 128  # degrees up to which the division of the tail is one pass
_FAR = 1e4  # at this distance from the centre float32 resolves 1e-3
_SMALLEST_BLOCK = 12  # below this, finding the blocks costs more than it saves


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


class Binomials(NamedTuple):
    """(1 + exp(x) t)^count of each of C groups: coefficient r is a constant times values_r. What is
    exponentiated is relative to the largest coefficient; it does not depend on the counts' sizes.
    """

    values: jax.Array  # [C, D + 1], of sum 1
    likeliest: jax.Array  # [C] number of tools
    log_choices: jax.Array  # [C] the constant's logarithm − x · likeliest
    base: jax.Array  # [C] the constant's logarithm is base − likeliest · tilt.rise


def binomials(groups: Groups, tilt: Tilt, temperature: jax.Array, degree: int) -> Binomials:
    x = tilt.of(groups.scores, temperature)
    constant = lax.stop_gradient(jnp.where(jnp.isfinite(x), x, 0))
    counts = groups.counts.astype(x.dtype)[:, None]
    degrees = np.arange(degree + 1).astype(x.dtype)[None, :]
    choices = jnp.log(
        jnp.maximum(counts - degrees[:, 1:] + 1, 1) / degrees[:, 1:]
    )  # C(n, r) / C(n, r−1)
    reachable = (degrees <= counts) & ((degrees == 0) | jnp.isfinite(x)[:, None])
    logs = jnp.cumsum(choices + constant[:, None], axis=1)
    logs = jnp.concatenate([jnp.zeros_like(counts), logs], axis=1)
    logs = jnp.where(reachable, logs, -jnp.inf)
    place = jnp.argmax(logs, axis=1)[:, None]
    top = jnp.take_along_axis(logs, place, axis=1)
    values = jnp.exp(logs - top)
    total = jnp.sum(values, axis=1)
    likeliest = place.astype(x.dtype)
    between = degrees[:, 1:] <= likeliest
    log_choices = jnp.sum(jnp.where(between, choices, 0), axis=1) + jnp.log(total)
    above = _tilt.relative(jnp.where(jnp.isfinite(x), groups.scores, 0), tilt.centre, temperature)[
        :, None
    ]
    moved = jnp.where(jnp.isfinite(x), x, 0) - constant  # 0, and it carries the derivative
    growth = jnp.exp(degrees * moved[:, None])
    return Binomials(
        jnp.where(reachable, values / total[:, None] * growth, 0),
        likeliest[:, 0],
        log_choices,
        lax.stop_gradient(log_choices + jnp.where(likeliest > 0, likeliest * above, 0)[:, 0]),
    )


def product(values: jax.Array, factors: jax.Array) -> jax.Array:
    """The product of `values` [D + 1] and of `factors` [C, D + 1], up to degree D."""
    return _loops.scan(lambda total, factor: (convolve(total, factor), None), values, factors)[0]


def convolve(left: jax.Array, right: jax.Array) -> jax.Array:
    """Σ_i left_i right_(r−i), [..., D + 1], of `left` [..., D + 1] and `right` [D + 1]."""
    return jnp.matmul(left, _shifted(right), precision="highest")


def correlate(left: jax.Array, right: jax.Array) -> jax.Array:
    """Σ_r left_r right_(r−i), [D + 1]: the adjoint of `convolve`."""
    return jnp.matmul(_shifted(right), left, precision="highest")


def _shifted(values: jax.Array) -> jax.Array:
    """[i, r] = values_(r−i), 0 for r < i."""
    size = values.shape[0]
    shift = np.arange(size)[None, :] - np.arange(size)[:, None]
    return jnp.where(shift >= 0, values[np.maximum(shift, 0)], 0)
