"""The lower level and its perturbed copies, solved at one x."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac._iterate import Certificate, Outcome, iterate
from jaxsac.bilevel.certificate import Measurement, gradient_rounding, measure, run_checked
from jaxsac.bilevel.newton import minimise
from jaxsac.bilevel.paired import PairedOptimizer, paired_step
from jaxsac.bilevel.problem import Oracle, Tree, add, dtype_of, norm, scale, subtract, zeros
from jaxsac.bilevel.schemes import (
    SCHEMES,
    Scheme,
    cross_term,
    hessian_product,
    relative_sigma,
    solve_hessian,
)
from jaxsac.solution import Status


def solve_lower(oracle: Oracle, x: Tree, y: Tree, max_steps: jax.Array) -> Outcome:
    """z with ‖g_y(x, z)‖ ≤ 64 times what rounding hides in it, whatever the tolerance: z is off by
    more where the curvature is less. In units of the gradient at the start.
    """
    eps = float(jnp.finfo(dtype_of(y)).eps)
    y = oracle.guess(x, y)
    unit = _positive(norm(oracle.lower_y(x, y)))

    def value_and_gradient(z):
        value, gradient = oracle.lower_and_gradient(x, z)
        return value / unit, scale(gradient, 1 / unit)

    def certify(z, gradient):
        rounding = norm(gradient_rounding(oracle, x, z, scale(gradient, unit))) / unit
        return Certificate(norm(gradient), rounding, rounding / eps)

    return minimise(
        value_and_gradient,
        lambda z, v: scale(hessian_product(oracle, x, z, v), 1 / unit),
        y,
        tol=64 * eps,
        max_steps=max_steps,
        certify=certify,
        forcing=lambda size: jnp.clip(jnp.sqrt(size), eps ** (2 / 3), 0.1),
        precondition=functools.partial(oracle.steer, x),
    )


class Perturbed(NamedTuple):
    """z and d that go together, the σ that they belong to, and how the solve ended."""

    z: Tree
    d: Tree
    sigma: jax.Array
    status: jax.Array
    num_steps: jax.Array
    most: jax.Array  # the largest curvature met


def solve_perturbed(
    oracle: Oracle,
    scheme: Scheme,
    x: Tree,
    z: Tree,
    start: Tree,
    sigma: jax.Array,
    tol: jax.Array,
    max_steps: jax.Array,
    *,
    relative: bool,
    c: Tree | None = None,
) -> Perturbed:
    """The direction d that goes with z (central: both move), by conjugate gradients. `relative`:
    σ is in units of ‖z‖ / ‖d‖.

    The linear scheme has no more to do then; the others, and any at a σ of the user's, solve the
    equation of their copies from there.
    """
    c = oracle.upper_y(x, z) if c is None else c
    pull, eps = _positive(norm(c)), float(jnp.finfo(dtype_of(z)).eps)
    if scheme.bias:
        sigma = 2 * sigma  # the bias of fourth order leaves more room

    # what rounding hides in d's equation is not solved for: that would be of no use, and d's part
    # along which the lower level is flat would grow by it
    rounding = norm(gradient_rounding(oracle, x, z, oracle.lower_y(x, z)))
    hidden = rounding / (pull * sigma * oracle.size(z)) if relative else 0.0

    def field_of_d(last):
        if scheme.linear:
            return scheme.field(oracle, x, z, last.d, last.sigma, c)[1]
        return add(c, cross_term(oracle, x, z, last.d, last.sigma, of_y=True))

    def correct(_, last: Perturbed) -> Perturbed:
        """Once for d, and then for what the equation at σ itself still lacks."""
        missing = field_of_d(last)
        found = solve_hessian(
            oracle,
            x,
            z,
            scale(missing, -1 / pull),
            tol=0.0,
            floor=jnp.maximum(0.05 * tol, hidden * norm(last.d)),
            max_steps=max_steps - last.num_steps,
            most=last.most,
        )
        d = add(last.d, found.x, pull)
        now = relative_sigma(sigma, oracle.size(z), d) if relative else sigma
        num_steps = last.num_steps + found.num_steps
        ended = jnp.where(num_steps < max_steps, Status.STALLED, Status.MAX_STEPS)
        status = jnp.where(found.converged, Status.CONVERGED, ended).astype(jnp.int32)
        return Perturbed(z, d, now, status, num_steps, found.most)

    none = Perturbed(z, zeros(z), sigma, jnp.int32(Status.MAX_STEPS), jnp.int32(0), 0 * sigma)
    found = _loops.fori_loop(0, 3, correct, none)
    if relative and scheme.linear:
        return found
    sigma = found.sigma
    d = jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), found.d, start)

    def certify(point, gradient):
        size = norm(gradient)
        return Certificate(size, jnp.zeros_like(size), jnp.ones_like(size))

    # In (z, σ d) the fields of central are the gradient of one function, the mean of the two
    # penalised ones; in d, for a fixed z, those of the others are.
    def gradient(point):
        if scheme.moves_z:
            u_z, u_d = scheme.field(oracle, x, point[0], scale(point[1], 1 / sigma), sigma, c)
            return scale(u_z, 1 / (sigma * pull)), scale(u_d, 1 / pull)
        return scale(scheme.field(oracle, x, z, point, sigma, c)[1], 1 / pull)

    def product(point, v):
        step = relative_sigma(eps ** (1 / 3), oracle.size(z), v)
        step = step if scheme.moves_z else step / sigma
        ahead, behind = gradient(add(point, v, step)), gradient(add(point, v, -step))
        return scale(subtract(ahead, behind), 0.5 / step)

    outcome = minimise(
        # values divided by σ² would have no digits left
        lambda point: (jnp.full((), jnp.nan, sigma.dtype), gradient(point)),
        product,
        (z, scale(d, sigma)) if scheme.moves_z else d,
        tol=0.1 * tol,
        max_steps=max_steps - found.num_steps,
        certify=certify,
        forcing=lambda size: jnp.clip(0.05 * tol / _positive(size), eps ** (2 / 3), 0.1),
    )
    end = outcome.state
    z, d = (end[0], scale(end[1], 1 / sigma)) if scheme.moves_z else (z, end)
    num_steps = found.num_steps + outcome.num_steps
    return Perturbed(z, d, sigma, outcome.status, num_steps, found.most)


def _positive(size: jax.Array) -> jax.Array:
    return jnp.where(size > 0, size, 1.0)


def solve_alone(
    oracle: Oracle,
    inner: PairedOptimizer,
    x: Tree,
    y: Tree,
    certify: Callable[[Tree], Certificate],
    tol: jax.Array,
    max_steps: jax.Array,
) -> Outcome:
    """The lower level by steps of an optimiser, without an upper one: d stays zero."""

    def step(state):
        z, optimizer = state
        still = zeros(z)
        field = (oracle.lower_y(x, z), still)
        one = jnp.ones((), dtype_of(z))
        z, _, optimizer = paired_step(
            oracle.problem, SCHEMES["forward"], inner, field, optimizer, x, z, still, one
        )
        return z, optimizer

    outcome = iterate(
        step,
        lambda state: certify(state[0]),
        (y, inner.init(y, zeros(y))),
        tol=tol,
        max_steps=max_steps,
        check_every=10,
        patience=100,
    )
    return outcome._replace(state=outcome.state[0])


def solve_together(
    oracle: Oracle,
    scheme: Scheme,
    inner: PairedOptimizer,
    x: Tree,
    state: tuple[Tree, Tree],
    sigma: jax.Array,
    tol: jax.Array,
    max_steps: jax.Array,
    c: Tree | None = None,
) -> tuple[tuple[Tree, Tree], Measurement, jax.Array, dict[str, Any]]:
    """z and d by paired steps of one optimiser; (z, d), their measurement, the status and the
    stats.
    """

    def step(state):
        z, d, optimizer = state
        here = oracle.upper_y(x, z) if scheme.linear and c is None else c
        field = scheme.field(oracle, x, z, d, sigma, here)
        return paired_step(oracle.problem, scheme, inner, field, optimizer, x, z, d, sigma)

    def judge(state):
        return state, measure(oracle, scheme, x, state[0], state[1], sigma, c, tol=tol)

    start = (*state, inner.init(*state))
    (z, d, _), measured, status, stats = run_checked(
        step, judge, start, x, tol=tol, max_steps=max_steps, check_every=10, patience=100
    )
    return (z, d), measured, status, stats
