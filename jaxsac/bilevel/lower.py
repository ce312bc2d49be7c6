"""The lower level and its perturbed copies, solved at one x."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac._iterate import Certificate, Outcome
from jaxsac.bilevel.certificate import Measurement, measure, run_checked
from jaxsac.bilevel.descent import minimise
from jaxsac.bilevel.paired import PairedOptimizer, paired_step
from jaxsac.bilevel.problem import Oracle, Tree, norm, scale
from jaxsac.bilevel.schemes import Scheme, relative_sigma
from jaxsac.solution import Status


def solve_lower(oracle: Oracle, x: Tree, y: Tree, tol: jax.Array, max_steps: jax.Array) -> Outcome:
    """z with ‖g_y(x, z)‖ ≤ tol / 4."""

    def certify(size):
        return Certificate(size, jnp.zeros_like(size), jnp.ones_like(size))

    return minimise(
        lambda y: oracle.lower_y(x, y), y, tol=0.25 * tol, max_steps=max_steps, certify=certify
    )


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
    size = jnp.maximum(1.0, norm(c)).astype(sigma.dtype)

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
        return measure(oracle, scheme, x, state[0], state[1], sigma, c)

    start = (*state, inner.init(*state))
    (z, d, _), measured, status, stats = run_checked(
        step, judge, start, x, tol=tol, max_steps=max_steps, check_every=10, patience=100
    )
    return (z, d), measured, status, stats
