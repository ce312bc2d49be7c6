"""Log-partition function and marginals for budgets on the number of tools, with the derivative
rule.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac.gibbs._background import Background, background_ratios, multiply, unreachable
from jaxsac.gibbs._polynomial import Polynomial, adjoint, expand, head_size


class LogPartition(NamedTuple):
    """log Z = size · centre + rest. Kept apart, differences from log Z stay exact when all scores
    share a huge offset.
    """

    centre: jax.Array  # [] the head's score nearest to 0; a constant of differentiation
    size: jax.Array  # [] the most likely set size, as a float; a constant of differentiation
    rest: jax.Array  # []

    @property
    def value(self) -> jax.Array:
        return self.size * self.centre + self.rest


class Derivative(NamedTuple):
    marginals: jax.Array  # [M]
    groups: jax.Array | None  # [C] marginal of one tool of each background group
    excess: jax.Array  # [] expected set size minus LogPartition.size


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def log_partition(
    z: jax.Array, background: Background | None, budget: int, exactly: bool
) -> LogPartition:
    """log Σ_a exp(Σ_{j ∈ a} z_j) over the sets of size ≤ budget (= budget with `exactly`); NaN
    unless z [M] is finite or −inf.
    """
    return _evaluate(z, background, budget, exactly)[0]


@log_partition.defjvp
def _log_partition_jvp(budget, exactly, primals, tangents):
    z, background = primals
    value, derivative = log_partition_and_derivative(z, background, budget, exactly)
    tangent = jnp.sum(derivative.marginals * tangents[0])
    if derivative.groups is not None:
        tangent = tangent + jnp.sum(
            derivative.groups * background.counts.astype(tangent.dtype) * tangents[1].scores
        )
    return value, LogPartition(jnp.zeros_like(tangent), jnp.zeros_like(tangent), tangent)


def log_partition_and_derivative(
    z: jax.Array, background: Background | None, budget: int, exactly: bool
) -> tuple[LogPartition, Derivative]:
    value, differentiate = _evaluate(z, background, budget, exactly)
    derivative = differentiate()
    return value, jax.tree.map(lambda x: jnp.where(jnp.isnan(value.rest), jnp.nan, x), derivative)


def _evaluate(z, background, budget, exactly) -> tuple[LogPartition, Callable[[], Derivative]]:
    usable = jnp.all(z < jnp.inf)
    if background is not None:
        usable = usable & jnp.all(background.scores < jnp.inf) & jnp.all(background.counts >= 0)
        value, differentiate = _with_background(z, background, budget, exactly)
    elif budget == 0 or budget >= z.shape[0]:
        value, differentiate = _unconstrained(z, budget, exactly)
    else:
        value, differentiate = _constrained(z, budget, exactly)
    return value._replace(rest=jnp.where(usable, value.rest, jnp.nan)), differentiate


def _constrained(z, budget, exactly):
    polynomial = expand(z, budget, head_size(budget, z.dtype.name))
    value, law = size_law(polynomial.centre, polynomial.units, polynomial.values, exactly)

    def differentiate() -> Derivative:
        cotangent = law / jnp.where(polynomial.values > 0, polynomial.values, 1)
        return Derivative(adjoint(polynomial, cotangent), None, _excess(law, value.size))

    return value, differentiate


def _with_background(z, background, budget, exactly):
    polynomial = (
        expand(z, budget, head_size(budget, z.dtype.name)) if z.shape[0] and budget else None
    )

    def all_ratios(values, scores):
        ratios = background_ratios(background._replace(scores=scores), budget)
        return ratios if polynomial is None else multiply(_ratios(polynomial, values), ratios)

    values = None if polynomial is None else polynomial.values
    ratios, pull = jax.vjp(all_ratios, values, background.scores)
    constant = lax.stop_gradient(ratios)
    reachable = ratios > unreachable(z.dtype) / 2
    # Ones, with the derivative that `size_law` does not take from its units.
    grown = jnp.exp(jnp.cumsum(jnp.where(reachable, ratios - constant, 0)))
    coefficients = jnp.concatenate([jnp.ones((1,), z.dtype), jnp.where(reachable, grown, 0)])
    value, law = size_law(jnp.zeros((), z.dtype), constant, coefficients, exactly)

    def differentiate() -> Derivative:
        at_least = jnp.flip(
            jnp.cumsum(jnp.flip(law[1:]))
        )  # P(|a| ≥ r) is the derivative of log Z along ratio r
        cotangent, expected = pull(at_least)
        own = jnp.zeros_like(z) if polynomial is None else adjoint(polynomial, cotangent)
        counts = background.counts.astype(z.dtype)
        return Derivative(
            own,
            jnp.where(counts > 0, expected / jnp.where(counts > 0, counts, 1), 0),
            _excess(law, value.size),
        )

    return value, differentiate


def _unconstrained(z, budget, exactly):
    """Budget 0, and budgets that do not bind, where the tools are independent."""
    zero = jnp.zeros((), z.dtype)
    if budget == 0:
        return LogPartition(zero, zero, zero), lambda: Derivative(jnp.zeros_like(z), None, zero)
    taken = jnp.full(z.shape, True) if exactly else z > 0
    centre = jnp.min(z, initial=jnp.inf, where=taken & jnp.isfinite(z))
    centre = lax.stop_gradient(jnp.where(jnp.isfinite(centre), centre, 0))
    rest = jnp.where(taken, z - centre, 0)
    if not exactly:
        rest = rest + jnp.log1p(jnp.exp(-jnp.abs(z)))
    value = LogPartition(centre, jnp.sum(taken, dtype=z.dtype), jnp.sum(rest))

    def differentiate() -> Derivative:
        if exactly:
            return Derivative(
                jnp.broadcast_to(jnp.all(z > -jnp.inf).astype(z.dtype), z.shape), None, zero
            )
        sigmoid = jax.nn.sigmoid(z)
        return Derivative(sigmoid, None, jnp.sum(jnp.where(taken, -jax.nn.sigmoid(-z), sigmoid)))

    return value, differentiate


def size_law(
    centre: jax.Array, units: jax.Array, values: jax.Array, exactly: bool
) -> tuple[LogPartition, jax.Array]:
    """log Z and the probability of every set size [B + 1], from e_r = exp(r · centre + units_1 + …
    + units_r) · values_r.
    """
    budget = units.shape[0]
    dtype = values.dtype
    reachable = values > 0
    logs = jnp.where(reachable, jnp.log(jnp.where(reachable, values, 1)), -jnp.inf)
    constant = lax.stop_gradient(units)
    # e_r / e_(r−1) falls with r: the likeliest size is where it crosses 1.
    size = (
        jnp.full((), budget, dtype)
        if exactly
        else jnp.sum(centre + constant + logs[1:] > logs[:-1], dtype=dtype)
    )
    degree = np.arange(budget + 1).astype(dtype)
    step = degree[None, 1:]
    after = (step <= degree[:, None]) & (step > size)
    before = (step > degree[:, None]) & (step <= size)
    unit = (centre + constant)[None, :]
    exponents = logs + jnp.sum(jnp.where(after, unit, 0) - jnp.where(before, unit, 0), axis=1)
    if exactly:
        exponents = jnp.where(degree == budget, exponents, -jnp.inf)
    top = lax.stop_gradient(jnp.max(exponents))
    top = jnp.where(jnp.isfinite(top), top, 0)
    masses = jnp.exp(exponents - top)
    total = jnp.sum(masses)
    law = masses / jnp.where(total > 0, total, 1)
    taken = jnp.where(step[0] <= size, constant, 0)
    rest = top + jnp.log(total)
    if budget:
        rest = rest + (jnp.sum(taken[1:]) + taken[0])  # the largest last: it may dwarf the others
    return LogPartition(centre, size, rest), law


def _ratios(polynomial: Polynomial, values: jax.Array) -> jax.Array:
    """log(e_r / e_(r−1)), [B]."""
    reachable = values > 0
    logs = jnp.log(jnp.where(reachable, values, 1))
    return jnp.where(
        reachable[1:],
        polynomial.centre + polynomial.units + logs[1:] - logs[:-1],
        unreachable(values.dtype),
    )


def _excess(law: jax.Array, size: jax.Array) -> jax.Array:
    return jnp.sum(law * (np.arange(law.shape[0]).astype(law.dtype) - size))
