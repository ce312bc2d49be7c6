"""The hypergradient at one x, and a check against implicit differentiation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, choice, integer, real, record, tolerance
from jaxsac._iterate import Outcome
from jaxsac.bilevel.certificate import DEEPER, measure, stats_of
from jaxsac.bilevel.lower import solve_lower, solve_perturbed, solve_together
from jaxsac.bilevel.paired import INNER, Inner, as_paired, require_inner
from jaxsac.bilevel.problem import (
    DATA,
    VARIABLES,
    Oracle,
    Problem,
    Tree,
    add,
    arrays_only,
    dtype_of,
    norm,
    original,
    per_problem,
    require_like,
    undifferentiated,
)
from jaxsac.bilevel.schemes import DIFFERENCES, SCHEMES, default_sigma, positive, scheme_at
from jaxsac.solution import Solution, Status, register, verdict


@arguments(
    problem=record(Problem),
    x=VARIABLES,
    y0=VARIABLES,
    sigma=real(above=0),
    difference=choice(*DIFFERENCES),
    inner=INNER,
    tol=real(low=0),
    max_steps=integer(low=0),
    data=DATA,
    state=anything("(z, d) of an earlier solution, or that solution"),
)
def hypergradient(
    problem: Problem,
    x: Tree,
    y0: Tree,
    *,
    sigma: Any = None,
    difference: str = "central_linear",
    inner: Inner = None,
    tol: Any = None,
    max_steps: Any = 1000,
    data: Any = None,
    state: tuple[Tree, Tree] | Solution | None = None,
) -> Solution:
    """The gradient of x -> upper(x, y*(x)), y*(x) = arg min_y lower(x, y), from gradients of upper
    and lower alone.

        central_linear:  h = f_x(x, z) + [g_x(x, z + σ d) − g_x(x, z − σ d)] / (2 σ),
                         g_y(x, z) = 0,  [g_y(x, z + σ d) − g_y(x, z − σ d)] / (2 σ) + f_y(x, z) = 0

    Where neither `sigma` nor `inner` is given, these differences are of fourth order: [8 (g(σ) −
    g(−σ)) − (g(2σ) − g(−2σ))] / (12 σ) with g(t) = g_y(x, z + t d), or g_x, for [g(σ) − g(−σ)] /
    (2 σ). Else the error is O(σ²) for "central_linear", "central" and "one_sided". It is O(σ) for
    "forward", whose h is the gradient of the penalty function itself and exists for lower levels of
    several minimisers too. It does not depend on y0 where y*(x) is unique.

    * `sigma`: σ > 0; by default 5e-3 in float32 and 1e-4 in float64, without an `inner` in units of
      ‖z‖ / ‖d‖, so that it fits any scale of data (twice as large in fourth order).
    * `difference`: one of the four named above.
    * `inner`: None is Newton's method, for z and then for d, by conjugate gradients on differences
      of gradients, `max_steps` of these at most for each; a linear optax optimiser or a
      `PairedOptimizer` moves them together, `max_steps` steps at most, which may be few: paired
      copies have most of their error in common. With `prox_y` an `inner` is needed.
    * `tol`: relative; 1e-6 in float64 and 1e-4 in float32.
    * `data`: the third argument of upper and lower.
    * `state`: an earlier solution, or its (z, d), to start from.

    Returns: a `Solution`, whose value has the structure of x; stats has the `Diagnostics` by name
    and `sigma` beside error, rounding, scale, num_steps (of z and d together) and reason.
    CONVERGED: the estimated change of h when z and d are solved exactly, plus rounding, is ≤ tol ·
    (‖f_x‖ + ‖h − f_x‖), z is no saddle as far as 60 steps of conjugate gradients see (20 with an
    `inner`), upper does not depend on what lower leaves free (h is not defined then; without an
    `inner` the reason is NO_MINIMISER), and neither diagnostic of a wrong σ fires (see
    `Diagnostics`). It is approximate, and says nothing of σ's own bias, but in fourth order. Not
    differentiable, which is an error; `argmin` is.

    Raises: ValueError for σ ≤ 0 (traced: NONFINITE), and for structures that do not fit.

    Source: Gaur et al., arXiv 2503.17644; Kwon et al. 2023 (F2SA); the family of differences:
    F2SA-p, arXiv 2509.02937.
    """
    x, y = arrays_only(x, y0)
    dtype = dtype_of(x)
    require_inner(problem, inner)
    start = (y, SCHEMES[difference].start(y))
    state = state.state if isinstance(state, Solution) else state
    if state is not None:
        require_like("state", tuple(state), start)
        start = tuple(state)
    solution = _hypergradient(
        problem,
        difference,
        inner,
        sigma is None,
        undifferentiated(x),
        undifferentiated(start),
        positive(default_sigma(dtype) if sigma is None else sigma, dtype),
        tolerance(tol, dtype),
        jnp.asarray(max_steps, jnp.int32),
        undifferentiated(data),
    )
    solution = undifferentiated(solution)  # in what the functions close over neither
    return solution._replace(value=original(solution.value))


@per_problem(4)
def _hypergradient(
    problem, difference, inner, relative, x, start, sigma, tol, max_steps, data
) -> Solution:
    oracle = Oracle(problem, data)
    scheme = scheme_at(difference, oracle, relative=relative and inner is None)
    if inner is None:
        lower = solve_lower(oracle, x, start[0], max_steps)
        z, d, sigma, ended, num_steps, _ = solve_perturbed(
            oracle, scheme, x, lower.state, start[1], sigma, tol, max_steps, relative=relative
        )
        state = z, d
        measured = measure(oracle, scheme, x, z, d, sigma, tol=tol, most_steps=DEEPER)
        # CONVERGED only by the final certificate; else the first complaint of the stages, and
        # STALLED where they saw none.
        status = verdict(measured.certificate, tol, progress=False, more=True)
        complaint = jnp.where(ended != Status.CONVERGED, ended, lower.status)
        complained = (status == Status.STALLED) & (complaint != Status.CONVERGED)
        status = jnp.where(complained, complaint, status)
        finite = jnp.isfinite(measured.diagnostics.hypergradient_norm)
        status = jnp.where(finite, status, jnp.int32(Status.NONFINITE))
        outcome = Outcome(state, measured.certificate, status, lower.num_steps + num_steps)
        stats = stats_of(measured, outcome)
    else:
        state, measured, status, stats = solve_together(
            oracle, scheme, as_paired(inner, start[0]), x, start, sigma, tol, max_steps
        )
    h = jax.tree.map(
        lambda leaf: jnp.where(status == Status.NONFINITE, jnp.nan, leaf), measured.hypergradient
    )
    return Solution(h, status, {**stats, "sigma": sigma}, state)


@register
class HypergradientCheck(NamedTuple):
    """A hypergradient beside the one by implicit differentiation."""

    error: jax.Array  # [] ‖hypergradient − implicit‖ / ‖implicit‖
    hypergradient: Tree  # shaped like x
    implicit: Tree  # shaped like x
    condition: jax.Array  # [] condition number of the lower level's Hessian
    status: jax.Array  # [] int32 `Status` of the hypergradient


@arguments(problem=record(Problem), x=VARIABLES, y0=VARIABLES, data=DATA)
def check_hypergradient(
    problem: Problem, x: Tree, y0: Tree, *, data: Any = None, **options: Any
) -> HypergradientCheck:
    """Compare `hypergradient(problem, x, y0, data=data, **options)` with implicit differentiation,
    for a small problem of your own.

        implicit = f_x − (D²_xy g) (D²_yy g)⁻¹ f_y

    at the same z, with the dense d × d Hessian of the lower level (d = dimension of y). A large
    `condition` says that the lower level is nearly flat somewhere, where the implicit gradient is
    itself uncertain (with several minimisers it does not exist, and the two need not agree).

    * `options`: see `hypergradient`.
    """
    _checks.require(
        problem.prox_y is None,
        "implicit differentiation needs a smooth lower level: there is no check for a prox_y.",
    )
    solution = hypergradient(problem, x, y0, data=data, **options)
    x, _ = arrays_only(x, y0)
    implicit, condition = _dense_implicit(problem, x, solution.state[0], data)
    estimate = arrays_only(solution.value, y0)[0]
    size = norm(implicit)
    error = norm(add(estimate, implicit, -1.0)) / jnp.where(size > 0, size, 1.0)
    return HypergradientCheck(error, solution.value, original(implicit), condition, solution.status)


@per_problem(1)
def _dense_implicit(problem, x, z, data):
    oracle = Oracle(problem, data)
    flat, unravel = ravel_pytree(z)
    hessian = jax.hessian(lambda y: oracle.lower(x, unravel(y)))(flat)
    upper_x, upper_y = oracle.upper_gradients(x, z)
    d = unravel(-jnp.linalg.solve(hessian, ravel_pytree(upper_y)[0]))
    return add(upper_x, oracle.derivative(0, x, z, d)), jnp.linalg.cond(hessian)
