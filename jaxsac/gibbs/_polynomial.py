"""The generating polynomial of a score vector: coefficient r is e_r, the sum over sets of r tools
of exp(sum of their scores).

Coefficients span thousands of orders of magnitude, so degree r is kept in its own unit: e_r = exp(r
· centre + units_1 + … + units_r) · values_r. Units are scores (or the tail's level) minus the
centre, the head's score nearest to 0. Only differences of scores are ever exponentiated, and
neither a huge common offset nor a few huge scores cost digits. Centre and units are constants of
differentiation.

The largest scores, the head, are multiplied in one by one, each with its own unit: they set the
range. All others, the tail, are at most as large as any head score and are multiplied together
without units. A tail tool's marginal is a polynomial in its weight w (division of the tail's
polynomial by the factor 1 + w t): alternating, but stable where the head holds enough scores beyond
the budget, none below it. The error is at most eps · sum_i w^i e_(B−i) / e_B, which is worst where
all scores are equal and the tail has one tool: eps · sum_(r ≤ B) C(K + 1, r) / C(K + 1, B) for K
head scores.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _loops
from jaxsac.gibbs._head import largest
from jaxsac.gibbs._tail import elementary

_RANGE = {
    "float32": 64,
    "float64": 512,
}  # longer heads outgrow the dtype and need rescaling, every _RESCALE steps
_RESCALE = 32


class Polynomial(NamedTuple):
    """The polynomial with what its adjoint needs. Letters: M tools, K head scores, B the budget."""

    centre: jax.Array  # []
    units: jax.Array  # [B]
    values: jax.Array  # [B + 1]
    head: jax.Array  # [K] indices of the head, largest score first
    steps: jax.Array  # [K, B + 1] the values before each head score was multiplied in
    keep: jax.Array  # [K, B + 1] step k: values_r ← keep_kr values_r + take_kr values_(r−1)
    take: jax.Array  # [K, B + 1]
    # [B + 1] the tail's own coefficients, degree r in units of the r-th power of `level`
    tail: jax.Array
    weights: jax.Array  # [M] exp(score − least head score) of the tail; 0 for the head
    level: jax.Array  # []


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


def expand(z: jax.Array, budget: int, count: int) -> Polynomial:
    """The polynomial of z [M] truncated at degree `budget`, with a head of `count` scores; budget,
    count and M ≥ 1, scores finite or −inf.
    """
    size = z.shape[0]
    count = min(count, size)
    head = largest(z, count)
    scores = z[head]
    constant = lax.stop_gradient(scores)
    least = jnp.min(constant, initial=jnp.inf, where=jnp.isfinite(constant))
    least = jnp.where(jnp.isfinite(least), least, 0)
    centre = jnp.clip(jnp.zeros((), z.dtype), least, jnp.maximum(jnp.max(constant), least))

    if count < size:
        weights = _tail_weights(z, least, head)
        # e_r ≤ p_1^r / r!, with p_1 the sum: scaled to p_1 = B / e, no degree overflows, and the
        # large ones do not underflow in float32.
        level = lax.stop_gradient(jnp.maximum(jnp.sum(weights) * (np.e / budget), 1))
        tail = elementary(weights, 1 / level, budget)
    else:
        weights, level = jnp.zeros_like(z), jnp.ones((), z.dtype)
        tail = jnp.zeros((budget + 1,), z.dtype).at[0].set(1)

    # Head score k gives degree k the unit max(score, log level) and so moves the degrees above;
    # degrees below k have a larger score's unit.
    log_level = jnp.log(level)
    first = jnp.concatenate(
        [constant[:budget], jnp.full((max(budget - count, 0),), -jnp.inf, z.dtype)]
    )
    units = jnp.maximum(first - centre, (least - centre) + log_level)
    above = constant - least - log_level
    degree, step = np.arange(budget + 1), np.arange(1, count + 1)[:, None]
    keep = jnp.where(
        degree >= step, jnp.exp(-jnp.maximum(above, 0))[:, None], jnp.ones((), z.dtype)
    )
    lower = (constant - least)[:, None] - jnp.maximum(first - least, log_level)[None, :]
    relative = jnp.where(degree[1:] >= step, jnp.minimum(above, 0)[:, None], lower)
    growth = jnp.exp(
        jnp.where(jnp.isfinite(scores), scores - constant, 0)
    )  # 1, and it carries the derivative
    take = jnp.concatenate(
        [jnp.zeros((count, 1), z.dtype), jnp.exp(relative) * growth[:, None]], axis=1
    )
    if count > _RANGE[z.dtype.name]:
        values, units, steps, keep, take = _multiply_in_range(tail, units, keep, take)
    else:
        values, steps = _multiply(tail, keep, take)
    return Polynomial(centre, units, values, head, steps, keep, take, tail, weights, level)


@jax.custom_jvp
def _tail_weights(z: jax.Array, least: jax.Array, head: jax.Array) -> jax.Array:
    """exp(z − least), 0 for the head, where it may overflow: so the derivative is made from the
    result.
    """
    return jnp.exp(z - least).at[head].set(0)


@_tail_weights.defjvp
def _tail_weights_jvp(primals, tangents):
    weights = _tail_weights(*primals)
    return weights, weights * tangents[0]


def adjoint(polynomial: Polynomial, cotangent: jax.Array) -> jax.Array:
    """Derivative along the scores, [M], of a function of the coefficients, from its derivative in
    `values`, `cotangent` [B + 1].
    """
    head, cotangent = _unwind(polynomial, cotangent)
    result = jnp.zeros_like(polynomial.weights)
    if polynomial.head.shape[0] < result.shape[0]:
        weights = polynomial.weights * (1 / polynomial.level)
        coefficients = _correlate(cotangent, polynomial.tail)
        for i in range(coefficients.shape[0] - 1, -1, -1):
            result = weights * (coefficients[i] - result)
    return result.at[polynomial.head].set(head)


def _multiply(values: jax.Array, keep: jax.Array, take: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Multiply the head in, one score a step: the final values, and the values before each step."""

    def step(values, factors):
        keep, take = factors
        return keep * values + take * _shifted(values), values

    return _loops.scan(step, values, (keep, take))


def _multiply_in_range(values, units, keep, take):
    """As `_multiply` for a long head, whose binomial growth would leave the range: every few steps
    the values move into the units.
    """
    count = keep.shape[0]
    rescale = np.arange(count) % _RESCALE == _RESCALE - 1

    def step(carry, factors):
        values, ratio = (
            carry  # ratio_r: the value moved into degree r − 1 over that moved into degree r
        )
        keep, take, rescale = factors
        take = take * ratio
        moved = keep * values + take * _shifted(values)
        factor = lax.stop_gradient(jnp.where(rescale & (moved > 1e-18), moved, 1))
        ratio = ratio * _shifted(factor, 1) / factor
        return (moved / factor, ratio), (values, keep / factor, take / factor)

    start = (values, jnp.ones_like(values))
    (values, ratio), (steps, keep, take) = _loops.scan(step, start, (keep, take, rescale))
    return values, units - jnp.log(ratio[1:]), steps, keep, take


def _shifted(values: jax.Array, first: float = 0) -> jax.Array:
    return jnp.concatenate([jnp.full((1,), first, values.dtype), values[:-1]])


def _unwind(polynomial: Polynomial, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The adjoint of `_multiply`: derivatives along the head's scores [K], and in the tail's
    coefficients. For marginals all terms are ≥ 0.
    """

    def step(cotangent, saved):
        keep, take, before = saved
        taken = take * cotangent
        derivative = jnp.sum(taken[1:] * before[:-1])
        return keep * cotangent + jnp.concatenate(
            [taken[1:], jnp.zeros((1,), taken.dtype)]
        ), derivative

    saved = (polynomial.keep, polynomial.take, polynomial.steps)
    cotangent, derivatives = _loops.scan(step, cotangent, saved, reverse=True)
    return derivatives, cotangent


def _correlate(cotangent: jax.Array, tail: jax.Array) -> jax.Array:
    """c_i = sum_(r ≥ i) cotangent_r tail_(r−i) for i = 1, …, B."""
    size = tail.shape[0]
    shift = np.arange(size)[None, :] - np.arange(1, size)[:, None]
    return jnp.sum(
        jnp.where(shift >= 0, cotangent[None, :] * tail[np.maximum(shift, 0)], 0), axis=1
    )
