"""The lower level and its perturbed copies, solved at one x."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac._iterate import Certificate, Outcome, iterate
from jaxsac.bilevel.certificate import Measurement, gradient_rounding, measure, run_checked
from jaxsac.bilevel.descent import minimise
from jaxsac.bilevel.paired import PairedOptimizer, paired_step
from jaxsac.bilevel.problem import Oracle, Tree, dtype_of, norm, scale, zeros
from jaxsac.bilevel.schemes import SCHEMES, Scheme, relative_sigma
from jaxsac.solution import Status


def solve_lower(oracle: Oracle, x: Tree, y: Tree, tol: jax.Array, max_steps: jax.Array) -> Outcome:
    """z with ‖g_y(x, z)‖ ≤ tol / 4 of what changes of z by its own size do to that gradient.

    In units of the gradient at the start; and once more from where that ends, since there the
    right size of z is known.
    """
    dtype = dtype_of(y)

    def once(k, last: Outcome) -> Outcome:
        gradient = oracle.lower_y(x, last.state)
        size = norm(gradient)
        unit = jnp.where(size > 0, size, 1.0)
        rounding = gradient_rounding(oracle, x, last.state, gradient)
        response = rounding / float(jnp.finfo(dtype).eps)
        whole = jnp.where(k == 0, jnp.maximum(response, size), response) / unit

        def certify(error):
            return Certificate(error, rounding / unit, whole)

        outcome = minimise(
            lambda y: scale(oracle.lower_y(x, y), 1 / unit),
            last.state,
            tol=0.25 * tol,
            max_steps=max_steps - last.num_steps,
            certify=certify,
        )
        return outcome._replace(num_steps=last.num_steps + outcome.num_steps)

    none = jnp.zeros((), dtype)
    start = Outcome(y, Certificate(none, none, none), jnp.int32(0), jnp.int32(0))
    return _loops.fori_loop(0, 2, once, start)


class Perturbed(NamedTuple):
    """z and d that go together, the σ that they belong to, and how the solve ended."""

    z: Tree
    d: Tree
    sigma: jax.Array
    status: jax.Array
    num_steps: jax.Array


def solve_perturbed(
    oracle: Oracle,
    scheme: Scheme,
    x: Tree,
    z: Tree,
    d: Tree,
    sigma: jax.Array,
    tol: jax.Array,
    max_steps: jax.Array,
    *,
    relative: bool,
    c: Tree | None = None,
) -> Perturbed:
    """The direction d that goes with z (central: both move). `relative`: solve twice, then with σ
    in units of the first ‖z‖ / ‖d‖.
    """
    c = oracle.upper_y(x, z) if c is None else c
    size = norm(c)

    def certify(error):
        return Certificate(error, jnp.zeros_like(error), size)

    def once(start: Perturbed, sigma: jax.Array) -> Perturbed:
        if scheme.moves_z:
            # In (z, σ d) the two fields are the gradient of one function, the mean of the two
            # penalised ones.
            def gradient(point):
                u_z, u_d = scheme.field(oracle, x, point[0], scale(point[1], 1 / sigma), sigma, c)
                return u_z, scale(u_d, sigma)

            both, bound = (start.z, scale(start.d, sigma)), 0.25 * tol * jnp.minimum(1.0, sigma)
            outcome = minimise(gradient, both, tol=bound, max_steps=max_steps, certify=certify)
            z, d = outcome.state[0], scale(outcome.state[1], 1 / sigma)
        else:

            def field_of_d(d):
                return scheme.field(oracle, x, start.z, d, sigma, c)[1]

            bound = 0.25 * tol
            outcome = minimise(field_of_d, start.d, tol=bound, max_steps=max_steps, certify=certify)
            z, d = start.z, outcome.state
        return Perturbed(z, d, sigma, outcome.status, start.num_steps + outcome.num_steps)

    start = Perturbed(z, d, sigma, jnp.int32(Status.MAX_STEPS), jnp.int32(0))
    if not relative:
        return once(start, sigma)
    return _loops.fori_loop(
        0, 2, lambda k, last: once(last, relative_sigma(sigma, last.z, scheme.first(last.d))), start
    )


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
            oracle.problem, SCHEMES["soba"], inner, field, optimizer, x, z, still, one
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
