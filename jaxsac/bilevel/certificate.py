"""How good a point is: residuals, hypergradient, lower gap, and the two signs of a badly chosen σ.
Everything from scratch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxsac import _loops
from jaxsac._iterate import Certificate, Outcome, iterate
from jaxsac.bilevel.paired import proximal_directions
from jaxsac.bilevel.problem import Oracle, Tree, add, dtype_of, norm, on_arrays, subtract
from jaxsac.bilevel.schemes import Scheme
from jaxsac.solution import register

_INCONSISTENT = 0.5


@register
class Diagnostics(NamedTuple):
    """Scalars that say how far a bilevel state can be trusted."""

    # ‖h‖ (or ‖x − P(x − h)‖ with a projection)
    hypergradient_norm: jax.Array  # []
    # Norms of the fields that vanish when the lower level, and the direction d, are solved; with a
    # `prox_y`, the distance that a proximal step of rate 1 would go.
    residual_z: jax.Array  # []
    residual_d: jax.Array  # []
    # [lower(x, z + σ d) − lower(x, z)] / σ. Negative beyond rounding: z is no minimiser.
    lower_gap: jax.Array  # []
    # The relative error of d from rounding, eps ‖z‖ / (σ ‖d‖); above 0.1, raise σ or use float64.
    cancellation: jax.Array  # []
    # How much d misses the equation of 2 σ, relative to the upper gradient: 0 for quadratics, and
    # O(σ) or O(σ²) else. Above 0.5 σ is too large for the difference to be a derivative, and
    # nothing is certified.
    consistency: jax.Array  # []


class Measurement(NamedTuple):
    """A state seen from scratch: its diagnostics, the certificate, and the hypergradient there."""

    diagnostics: Diagnostics
    certificate: Certificate
    hypergradient: Tree


def measure(
    oracle: Oracle,
    scheme: Scheme,
    x: Tree,
    z: Tree,
    d: Tree,
    sigma: jax.Array,
    c: Tree | None = None,
) -> Measurement:
    """Measure a point. The certificate is that of the lower level alone, with scale max(1, ‖upper
    gradient in y‖).
    """
    c = oracle.upper_y(x, z) if c is None else c
    # both values of sigma in one batch: half the code to compile
    u_z, (u_d, doubled) = _at_two_sigmas(
        lambda sigma: scheme.field(oracle, x, z, d, sigma, c), sigma
    )
    h = scheme.hypergradient(oracle, x, z, d, sigma)
    first = scheme.first(d)
    lower = oracle.whole_lower(x, z)
    lower_gap = (oracle.whole_lower(x, add(z, first, sigma)) - lower) / sigma

    dtype = dtype_of(x)
    eps = float(jnp.finfo(dtype).eps)
    pull, size = norm(c), norm(first)
    cancelled = jnp.where(size > 0, eps * norm(z) / (sigma * jnp.where(size > 0, size, 1.0)), 0.0)
    consistency = norm(subtract(doubled, u_d)) / jnp.where(pull > 0, pull, 1.0)
    unsolved = proximal_directions(
        oracle.problem, scheme, (u_z, u_d), x, z, d, sigma, lambda: jnp.ones((), dtype)
    )
    unsolved_z, unsolved_d = norm(unsolved[0]), norm(unsolved[1])
    project_x = oracle.problem.project_x
    moved = h if project_x is None else subtract(x, on_arrays(project_x)(subtract(x, h)))
    diagnostics = Diagnostics(
        norm(moved), unsolved_z, unsolved_d, lower_gap, cancelled, consistency
    )

    whole = jnp.maximum(1.0, pull).astype(dtype)
    below = (
        jnp.asarray(False)
        if scheme.moves_z
        else lower_gap * sigma < -(100 * eps * (1.0 + jnp.abs(lower)) + unsolved_z * sigma * size)
    )
    untrustworthy = (consistency > _INCONSISTENT) | below
    error = unsolved_z + unsolved_d
    error = jnp.where(untrustworthy, jnp.maximum(error, whole), error)
    rounding = _rounding(oracle, x, z, u_z if not scheme.moves_z else oracle.lower_y(x, z)) * (
        1 + 1 / sigma
    )
    return Measurement(diagnostics, Certificate(error, rounding, whole), h)


def _rounding(oracle: Oracle, x: Tree, z: Tree, gradient: Tree) -> jax.Array:
    """What rounding may hide in a lower gradient at z: its response to relative changes of z by
    eps, in a fixed pattern of signs.

    The change is made at sqrt(eps) and scaled down, where it is well above the rounding that it
    stands for.
    """
    eps = float(jnp.finfo(dtype_of(z)).eps)
    flat, unravel = ravel_pytree(z)
    signs = jax.random.rademacher(jax.random.key(0), flat.shape, flat.dtype)
    moved = oracle.lower_y(x, unravel(flat * (1 + eps**0.5 * signs)))
    return eps**0.5 * norm(subtract(moved, gradient))


def _at_two_sigmas(field, sigma):
    both = jax.vmap(field)(jnp.stack([sigma, 2 * sigma]))
    u_z, first, second = (
        jax.tree.map(lambda leaf, k=k: leaf[k], both[part]) for part, k in ((0, 0), (1, 0), (1, 1))
    )
    return u_z, (first, second)


class _Checked(NamedTuple):
    state: Any
    measurement: Measurement
    num_steps: jax.Array


def run_checked(
    advance: Callable[[Any], Any],
    measure: Callable[[Any], Measurement],
    state: Any,
    hypergradient_like: Tree,
    *,
    tol: jax.Array,
    max_steps: jax.Array,
    check_every: int,
    patience: int,
) -> tuple[Any, Measurement, jax.Array, dict[str, jax.Array]]:
    """`iterate` with a measurement after each stretch of `check_every` steps, compiled once; the
    state, its measurement, the status and the stats.

    The first measurement comes after the first stretch, so that d has left zero.
    """
    dtype = dtype_of(hypergradient_like)
    none = jnp.zeros((), dtype)
    unknown = Certificate(jnp.full((), jnp.finfo(dtype).max / 4, dtype), none, none + 1)
    start = _Checked(
        state,
        Measurement(Diagnostics(*[none] * len(Diagnostics._fields)), unknown, hypergradient_like),
        jnp.int32(0),
    )

    def stretch(carry: _Checked) -> _Checked:
        num_steps = jnp.minimum(carry.num_steps + check_every, max_steps)
        state = _loops.fori_loop(
            carry.num_steps, num_steps, lambda _, inner: advance(inner), carry.state
        )
        return _Checked(state, measure(state), num_steps)

    stretches = -(-max_steps // check_every)
    outcome = iterate(
        stretch,
        lambda carry: carry.measurement.certificate,
        start,
        tol=tol,
        max_steps=stretches,
        patience=patience,
    )
    end = outcome.state
    outcome = Outcome(end.state, end.measurement.certificate, outcome.status, end.num_steps)
    return end.state, end.measurement, outcome.status, stats_of(end.measurement, outcome)


def stats_of(measurement: Measurement, outcome: Outcome) -> dict[str, jax.Array]:
    return {**measurement.diagnostics._asdict(), **outcome.stats}
