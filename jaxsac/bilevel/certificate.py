"""How good a point is: residuals, hypergradient, lower gap, and the two signs of a badly chosen σ.
Everything from scratch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxsac import _loops
from jaxsac._iterate import Certificate, Outcome, iterate
from jaxsac._linear import LinearSolution, conjugate_gradient, dot
from jaxsac.bilevel.paired import proximal_directions
from jaxsac.bilevel.problem import (
    Oracle,
    Tree,
    add,
    dtype_of,
    norm,
    on_arrays,
    prox_at,
    scale,
    subtract,
    zeros,
)
from jaxsac.bilevel.schemes import FLAT, Scheme, cross_term, hessian_product, solve_hessian
from jaxsac.solution import Reason, Status, register

_INCONSISTENT = 0.5
_SAFETY = 1.5  # an estimate is no bound
_DEPTH = 20  # steps of conjugate gradients behind a certificate
DEEPER = 60  # the same, where there is one certificate in all


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
    """A state seen from scratch: its diagnostics, the certificate, the hypergradient there, whether
    the upper level pulls at what the lower one leaves free, and by how much, to first order, the
    upper value changes when the lower level is solved.
    """

    diagnostics: Diagnostics
    certificate: Certificate
    hypergradient: Tree
    free: jax.Array
    shift: jax.Array


def measure(
    oracle: Oracle,
    scheme: Scheme,
    x: Tree,
    z: Tree,
    d: Tree,
    sigma: jax.Array,
    c: Tree | None = None,
    *,
    tol: Any = 0.0,
    most_steps: int = _DEPTH,
) -> Measurement:
    """Measure a point. The certificate is that of the lower level alone, in units of h: how far h
    moves when z and d go where conjugate gradients put their zeros, against ‖f_x‖ + ‖h − f_x‖.

    Where d's residual is far from `tol`, two steps of them show that, and else `most_steps`; these
    too where they are more than usual.
    """
    given, c = c, oracle.upper_y(x, z) if c is None else c
    # both values of sigma in one batch: half the code to compile
    u_z, (u_d, doubled) = _at_two_sigmas(
        lambda sigma: scheme.field(oracle, x, z, d, sigma, c), sigma
    )
    h = scheme.hypergradient(oracle, x, z, d, sigma)
    bias = jnp.zeros_like(sigma)  # of h by sigma, where it is known
    if scheme.bias:
        twice = scheme.hypergradient(oracle, x, z, d, 2 * sigma)
        bias = scheme.bias * norm(subtract(twice, h))
    first = scheme.first(d)
    lower = oracle.whole_lower(x, z)
    lower_gap = (oracle.whole_lower(x, add(z, first, sigma)) - lower) / sigma

    dtype = dtype_of(x)
    eps = float(jnp.finfo(dtype).eps)
    pull, size = norm(c), norm(first)
    cancelled = jnp.where(size > 0, eps * norm(z) / (sigma * jnp.where(size > 0, size, 1.0)), 0.0)
    against = jnp.where(pull > 0, pull, 1.0)
    consistency = norm(subtract(doubled, u_d)) / against
    unsolved = proximal_directions(
        oracle.problem, scheme, (u_z, u_d), x, z, d, sigma, lambda: jnp.ones((), dtype)
    )
    unsolved_z, unsolved_d = norm(unsolved[0]), norm(unsolved[1])
    project_x = oracle.problem.project_x
    moved = h if project_x is None else subtract(x, on_arrays(project_x)(subtract(x, h)))
    diagnostics = Diagnostics(
        norm(moved), unsolved_z, unsolved_d, lower_gap, cancelled, consistency
    )

    direct = oracle.upper_x(x, z)
    cross = norm(subtract(h, direct))
    whole = norm(direct) + cross
    share = whole / jnp.where(cross > 0, cross, 1.0)
    deep = unsolved_d <= 10 * tol * jnp.maximum(share, 1.0) * pull
    deep |= most_steps > _DEPTH
    depth = jnp.where(deep, most_steps, 2)
    at_z = oracle.lower_y(x, z) if scheme.moves_z else u_z
    rounding = norm(gradient_rounding(oracle, x, z, at_z))
    reach = jnp.where(size > 0, sigma * size, eps ** (1 / 3) * norm(z))
    reach = jnp.where(reach > 0, reach, eps ** (1 / 3))
    inverse = jnp.where((pull > 0) & (size > 0), size / against, 1.0)
    if oracle.problem.prox_y is None:
        to_z, curved, most, rest = newton_step(oracle, x, z, unsolved[0], rounding, depth)
        to_z = add(to_z, rest, 1.0)
    else:  # no Hessian there: the curvature that d has met
        to_z, curved, most = scale(unsolved[0], -inverse), jnp.asarray(True), 0.0
    better = add(z, to_z)
    new_c = oracle.upper_y(x, better) if given is None else c

    def field_of_d(d):
        return scheme.field(oracle, x, better, d, sigma, new_c)[1]

    solved = unsolved_d <= _INCONSISTENT * against  # else an estimate from d's equation is none
    if oracle.problem.prox_y is None:
        wrong, stacked = field_of_d(d), first is not d
        if scheme.bias:  # the field that a vanishing sigma has
            wrong = add(wrong, subtract(doubled, u_d), -scheme.bias)
        far = norm(wrong)
        unit = jnp.where(far > 0, far, 1.0)

        def steer_d(v):
            return v if stacked else oracle.steer(x, better, v)

        def curvature_of_d(v):
            length = reach / (sigma * norm(v))
            return scale(subtract(field_of_d(add(d, v, length)), wrong), 1 / length)

        unseen = FLAT * eps ** (2 / 3)
        found = conjugate_gradient(
            curvature_of_d,
            scale(wrong, -1 / unit),
            max_steps=depth,
            flat=unseen,
            most=most,
            precondition=steer_d,
        )
        to_d = scale(found.x, unit)
        curved = curved & (oracle.knows | ~(found.least < -(eps**0.5) * found.most))
        # What is left where no curvature is seen: an error as large as the least curvature that
        # may be there lets it be, unless x does not move z there. Then the lower level leaves that
        # direction free, and upper may not pull at it by more than rounding hides.
        rest = scale(scheme.first(_last_step(found, steer_d, eps)), unit)
        extent = norm(rest)
        step = reach / jnp.where(extent > 0, extent, 1.0)
        moved_x = norm(cross_term(oracle, x, better, rest, step))
        moved_x = jnp.where(extent > 0, moved_x, 0.0)
        # a residual that looks flat may have this share of what is not
        steep = unseen**0.5
        moved_x = moved_x - steep * cross * extent / jnp.where(size > 0, size, 1.0)
        # neither do differences resolve more of what conjugate gradients leave
        left = far * norm(found.residual)
        lost = jnp.maximum(FLAT * rounding / sigma, unseen * pull)
        free = found.flat & (left > lost) & ~(moved_x > 0)
        moved_x = jnp.maximum(moved_x, 0.0)
        # what is not half solved after all these steps is no estimate
        solved &= (found.num_steps < most_steps) | (left <= jnp.maximum(0.5 * far, lost))
    else:
        to_d, free = scale(unsolved[1], -inverse), jnp.asarray(False)
        moved_x = jnp.zeros_like(bias)
    changed = scheme.hypergradient(oracle, x, better, add(d, to_d), sigma)
    error = jnp.maximum(_SAFETY * norm(subtract(changed, h)), oracle.distance(x, z) * whole)
    error = error + moved_x + bias
    # two steps are enough to refuse, and not to certify
    error = jnp.where(deep, error, jnp.maximum(error, 2 * tol * whole))
    known = scheme.moves_z or oracle.knows
    below = jnp.asarray(False) if known else lower_gap * sigma < -100 * eps * jnp.abs(lower)
    trusted = (consistency <= _INCONSISTENT) & solved & ~below & curved & ~free
    trusted &= jnp.isfinite(error) & ~jnp.isnan(lower)
    error = jnp.where(trusted, error, whole + jnp.finfo(dtype).tiny)
    hidden = cross * rounding / (sigma * against)
    if oracle.subtracts_nothing:
        hidden = 10 * eps * whole
    certificate = Certificate(error, hidden, whole)
    return Measurement(diagnostics, certificate, h, free, dot(first, unsolved[0]))


def certify_lower(
    oracle: Oracle, x: Tree, z: Tree, y0: Tree, tol: jax.Array, *, most_steps: int = _DEPTH
) -> Certificate:
    """The length of a Newton step from z against ‖z‖, and against ‖z − y0‖ as much less as `tol`
    says, which is for minimisers at zero; a saddle is as far off as it is large.
    """
    gradient, dtype = oracle.lower_y(x, z), dtype_of(z)
    hidden, residual = gradient_rounding(oracle, x, z, gradient), gradient
    rounding, share = norm(hidden), float(jnp.finfo(dtype).eps) ** (1 / 6)
    if oracle.problem.prox_y is not None:
        residual = subtract(
            z, prox_at(oracle.problem, x, jnp.ones((), dtype))(subtract(z, gradient))
        )
        most_steps = 1  # beside bounds conjugate gradients do not hold: one, for the curvature
    # An estimate needs fewer digits than a step does: far apart, gradients show more curvature.
    step, curved, most, rest = newton_step(oracle, x, z, residual, rounding, most_steps, share)
    curved &= ~jnp.isnan(oracle.whole_lower(x, z))
    size = jnp.maximum(norm(residual), rounding)
    inverse = norm(step) / jnp.where(size > 0, size, 1.0)
    whole = norm(z) + tol * norm(subtract(z, y0))
    error = inverse * norm(residual)
    if oracle.problem.prox_y is None:
        error = error + _along_flat(oracle, x, z, gradient, hidden, rest, most, most_steps, share)
    error = jnp.where(curved, error, jnp.maximum(error, whole + jnp.finfo(dtype).tiny))
    return Certificate(error, inverse * rounding, whole)


def _along_flat(oracle, x, z, gradient, hidden, rest, most, most_steps, share) -> jax.Array:
    """How far z may be from a minimiser along `rest`, where conjugate gradients see no curvature:
    the slope there over the curvature, as far as rounding lets them be seen where z moves by its
    own size. A direction is free, and costs nothing, where it hides both.
    """
    far = functools.partial(hessian_product, oracle, x, z, share=1.0)
    extent, size = norm(rest), oracle.size(z)
    along = scale(rest, 1 / jnp.where(extent > 0, extent, 1.0))
    # What ended conjugate gradients is flat on the whole, and still has some of what is not.
    bent = solve_hessian(oracle, x, z, far(along), share=share, max_steps=most_steps, most=most).x
    bent = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(norm(bent)), leaf, 0.0), bent)
    along = subtract(along, bent)
    extent = norm(along)
    along = scale(along, 1 / jnp.where(extent > 0, extent, 1.0))
    change = far(along)
    slope, curvature = jnp.abs(dot(along, gradient)), jnp.abs(dot(along, change))
    curvature = jnp.where(curvature > 0.5 * norm(change), curvature, 0.0)  # else it is another's
    least = FLAT * norm(jax.tree.map(jnp.multiply, along, hidden))
    seen = (extent > 0.5) & ((slope > least) | (curvature * size > least))
    length = jnp.maximum(slope, least) / jnp.maximum(curvature, least / size)
    return jnp.where(seen, length, 0.0)


def newton_step(
    oracle: Oracle,
    x: Tree,
    z: Tree,
    residual: Tree,
    rounding: jax.Array,
    depth: Any,
    share: float | None = None,
) -> tuple[Tree, jax.Array, jax.Array, Tree]:
    """Where the lower gradient's zero may be, as a step from z, whether z is no saddle, as far as
    conjugate gradients on differences of gradients see in `depth` steps, the largest curvature
    that they met, and how much further it may be where they met none.

    To the residual goes as much in a fixed pattern of signs, and no less than `rounding`: what is
    zero by symmetry, or hidden by rounding, is looked at too. `share`: see `hessian_product`.
    """
    eps = float(jnp.finfo(dtype_of(z)).eps)
    size = jnp.maximum(norm(residual), rounding)
    flat, unravel = ravel_pytree(z)
    signs = _signs(flat) / flat.size**0.5
    along = jnp.vdot(signs, ravel_pytree(residual)[0])
    signs = unravel(jnp.where(along > 0, -signs, signs))  # or they might cancel it
    signs = zeros(signs) if oracle.knows else signs
    right_side = add(signs, residual, -1 / jnp.where(size > 0, size, 1.0))
    found = solve_hessian(oracle, x, z, right_side, share=share, max_steps=depth)
    # Where changes of z by its own size change nothing, gradients have underflowed; where none has
    # curvature, a gradient has no zero.
    bent = (norm(residual) == 0) | (norm(found.x) > 0)
    seen = jnp.where(norm(z) == 0, bent, rounding >= jnp.finfo(flat.dtype).tiny)
    curved = seen & (oracle.knows | ~(found.least < -(eps**0.5) * found.most))
    rest = _last_step(found, functools.partial(oracle.steer, x, z), eps)
    return scale(found.x, size), curved, found.most, scale(rest, size)


def _last_step(found: LinearSolution, steer: Callable[[Tree], Tree], eps: float) -> Tree:
    """What conjugate gradients leave out where they end for want of curvature: a step along the
    residual, for the least curvature that they met or that rounding may hide.
    """
    least = jnp.maximum(found.least, eps ** (2 / 3) * found.most)
    return scale(
        steer(found.residual), jnp.where(found.flat, 1 / jnp.where(least > 0, least, 1.0), 0.0)
    )


def _signs(flat: jax.Array) -> jax.Array:
    return jax.random.rademacher(jax.random.key(0), flat.shape, flat.dtype)


def gradient_rounding(oracle: Oracle, x: Tree, z: Tree, gradient: Tree) -> Tree:
    """What rounding may hide in a lower gradient at z: its response to relative changes of z by
    eps, in a fixed pattern of signs.

    The change is made at sqrt(eps) and scaled down, where it is well above the rounding that it
    stands for.
    """
    eps = float(jnp.finfo(dtype_of(z)).eps)
    flat, unravel = ravel_pytree(z)
    moved = oracle.lower_y(x, unravel(flat * (1 + eps**0.5 * _signs(flat))))
    return scale(subtract(moved, gradient), eps**0.5)


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
    history: jax.Array  # [10] the last errors relative to their scale, the newest last


def run_checked(
    advance: Callable[[Any], Any],
    measure: Callable[[Any], tuple[Any, Measurement]],
    state: Any,
    hypergradient_like: Tree,
    *,
    tol: jax.Array,
    max_steps: jax.Array,
    check_every: int,
    patience: int,
    useful: Callable[[Any], Any] = lambda state: True,
) -> tuple[Any, Measurement, jax.Array, dict[str, jax.Array]]:
    """`iterate` with a measurement after each stretch of `check_every` steps, compiled once; the
    state, its measurement, the status and the stats. `measure` may note something in the state.

    The first measurement comes after the first stretch, so that d has left zero.
    """
    dtype = dtype_of(hypergradient_like)
    none = jnp.zeros((), dtype)
    unknown = Certificate(jnp.full((), jnp.finfo(dtype).max / 4, dtype), none, none + 1)
    start = _Checked(
        state,
        Measurement(
            Diagnostics(*[none] * len(Diagnostics._fields)),
            unknown,
            hypergradient_like,
            jnp.asarray(False),
            none,
        ),
        jnp.int32(0),
        jnp.full(10, jnp.nan, dtype),
    )

    def stretch(carry: _Checked) -> _Checked:
        num_steps = jnp.minimum(carry.num_steps + check_every, max_steps)
        state = _loops.fori_loop(
            carry.num_steps, num_steps, lambda _, inner: advance(inner), carry.state
        )
        state, measured = measure(state)
        error, _, whole = measured.certificate
        history = jnp.append(carry.history[1:], error / jnp.where(whole > 0, whole, 1.0))
        return _Checked(state, measured, num_steps, history)

    stretches = -(-max_steps // check_every)
    outcome = iterate(
        stretch,
        lambda carry: carry.measurement.certificate,
        start,
        tol=tol,
        max_steps=stretches,
        patience=patience,
        useful=lambda carry: useful(carry.state),
    )
    end = outcome.state
    outcome = Outcome(end.state, end.measurement.certificate, outcome.status, end.num_steps)
    stats = {**stats_of(end.measurement, outcome), "history": end.history}
    return end.state, end.measurement, outcome.status, stats


def stats_of(measurement: Measurement, outcome: Outcome) -> dict[str, jax.Array]:
    stats = {**measurement.diagnostics._asdict(), **outcome.stats}
    refused = measurement.free & (outcome.status != Status.CONVERGED)
    stats["reason"] = jnp.where(refused, jnp.int32(Reason.NO_MINIMISER), stats["reason"])
    return stats
