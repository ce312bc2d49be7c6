"""The hypergradient at one x, a differentiable arg min, and a check against implicit
differentiation.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxsac import _checks
from jaxsac._iterate import Certificate, Outcome
from jaxsac.bilevel.certificate import Measurement, measure, run_checked
from jaxsac.bilevel.descent import minimise
from jaxsac.bilevel.paired import PairedOptimizer, as_paired, paired_step
from jaxsac.bilevel.problem import (
    Oracle,
    Problem,
    Tree,
    add,
    arrays_only,
    dtype_of,
    norm,
    original,
    require_like,
    scale,
    zeros,
)
from jaxsac.bilevel.schemes import DIFFERENCES, SCHEMES, Scheme, cross_term, relative_sigma
from jaxsac.bilevel.solver import default_tol, positive_sigma
from jaxsac.solution import Solution, Status

Inner = PairedOptimizer | optax.GradientTransformation | None


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
    state: tuple[Tree, Tree] | None = None,
) -> Solution:
    """The gradient of x -> upper(x, y*(x)), y*(x) = arg min_y lower(x, y), from gradients of upper
    and lower alone.

        central_linear:  h = f_x(x, z) + [g_x(x, z + sigma d) - g_x(x, z - sigma d)] / (2 sigma),
                         g_y(x, z) = 0,  [g_y(x, z + sigma d) - g_y(x, z - sigma d)] / (2 sigma) +
                         f_y(x, z) = 0

    The error is O(sigma²) for "central_linear", "central" and "one_sided", and O(sigma) for
    "forward", whose h is the gradient of the penalty function itself and exists for lower levels of
    several minimisers too. It does not depend on y0 where y*(x) is unique.

    * `inner=None` solves for z, then for d, by L-BFGS; a linear optax optimiser or a
      `PairedOptimizer` moves them together, `max_steps` steps at most, which may be few: paired
      copies have most of their error in common. With `prox_y` an `inner` is needed.
    * `sigma` defaults to 5e-3 in float32 and 1e-4 in float64, without an `inner` in units of ‖z‖ /
      ‖d‖, so that it fits any scale of data.
    * `data` is the third argument of upper and lower; `state` = (z, d) of an earlier solution
      warm-starts.

    CONVERGED: ‖field of z‖ + ‖field of d‖ + rounding ≤ tol · max(1, ‖f_y(x, z)‖), and neither
    diagnostic of a wrong sigma fires (see `Diagnostics`). `tol` defaults to 1e-6 in float64 and
    1e-4 in float32. `value` has the structure of x, `stats` the diagnostics by name, `error`,
    `scale`, `sigma`, `num_steps` (of z and d together). Not differentiable by reverse mode;
    `argmin` is. Sources: Gaur et al., arXiv 2503.17644; Kwon et al. 2023 (F2SA); the family of
    differences: F2SA-p, arXiv 2509.02937.
    """
    _checks.choice("difference", difference, DIFFERENCES)
    x, y = arrays_only(x, y0)
    dtype = dtype_of(x)
    _needs_inner(problem, inner)
    start = (y, SCHEMES[difference].start(y))
    if state is not None:
        require_like("state", tuple(state), start)
    z, d = start if state is None else state
    tol = default_tol(dtype) if tol is None else _checks.real_scalar("tol", tol, dtype, 0.0)
    relative = sigma is None
    sigma = positive_sigma(default_sigma(dtype) if sigma is None else sigma, dtype)
    solution = _hypergradient(
        problem,
        difference,
        inner,
        relative,
        x,
        z,
        d,
        sigma,
        tol,
        jnp.asarray(max_steps, jnp.int32),
        data,
    )
    return solution._replace(value=original(solution.value))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _hypergradient(
    problem, difference, inner, relative, x, z, d, sigma, tol, max_steps, data
) -> Solution:
    scheme = SCHEMES[difference]
    oracle = Oracle(problem, data)
    if inner is None:
        lower = solve_lower(oracle, x, z, tol, max_steps)
        z, d, sigma, ended, num_steps = solve_perturbed(
            oracle, scheme, x, lower.state, d, sigma, tol, max_steps, relative=relative
        )
        num_steps = lower.num_steps + num_steps
        measured = measure(oracle, scheme, x, z, d, sigma)
        status = _final_status(measured, tol, jnp.stack([ended, lower.status]))
    else:
        z, d, measured, status, num_steps = _solve_together(
            oracle, scheme, as_paired(inner, z), x, z, d, sigma, tol, max_steps
        )
    certificate = measured.certificate
    stats = {
        **measured.diagnostics._asdict(), "error": certificate.error, "scale": certificate.scale, "sigma": sigma, "num_steps": num_steps,
    }  # fmt: skip
    return Solution(measured.hypergradient, status, stats, (z, d))


def _final_status(measured: Measurement, tol: jax.Array, statuses: jax.Array) -> jax.Array:
    """CONVERGED only by the final certificate; else the first complaint of the stages, and STALLED
    when the stages saw none.
    """
    error, rounding, size = measured.certificate
    converged = error + rounding <= tol * size
    finite = jnp.isfinite(error + rounding + size + measured.diagnostics.hypergradient_norm)
    complaints = statuses != Status.CONVERGED
    status = jnp.where(
        jnp.any(complaints), statuses[jnp.argmax(complaints)], jnp.int32(Status.STALLED)
    )
    status = jnp.where(converged, jnp.int32(Status.CONVERGED), status)
    return jnp.where(finite, status, jnp.int32(Status.NONFINITE))


def solve_lower(oracle: Oracle, x: Tree, y: Tree, tol: jax.Array, max_steps: jax.Array) -> Outcome:
    """z with ‖g_y(x, z)‖ ≤ tol / 4."""

    def certify(size):
        return Certificate(size, jnp.zeros_like(size), jnp.ones_like(size))

    return minimise(
        lambda y: oracle.lower_y(x, y), y, tol=0.25 * tol, max_steps=max_steps, certify=certify
    )


class Perturbed(NamedTuple):
    """z and d that go together, the sigma that they belong to, and how the solve ended."""

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
    """The direction d that goes with z (central: both move). `relative`: solve twice, then with
    sigma in units of the first ‖z‖ / ‖d‖.
    """
    c = oracle.upper_y(x, z) if c is None else c
    size = jnp.maximum(1.0, norm(c)).astype(sigma.dtype)

    def certify(error):
        return Certificate(error, jnp.zeros_like(error), size)

    def once(start: Perturbed, sigma: jax.Array) -> Perturbed:
        if scheme.moves_z:
            # In (z, sigma d) the two fields are the gradient of one function, the mean of the two
            # penalised ones.
            def gradient(point):
                u_z, u_d = scheme.field(oracle, x, point[0], scale(point[1], 1 / sigma), sigma, c)
                return u_z, scale(u_d, sigma)

            tight = 0.25 * tol * jnp.minimum(1.0, sigma)
            outcome = minimise(
                gradient,
                (start.z, scale(start.d, sigma)),
                tol=tight,
                max_steps=max_steps,
                certify=certify,
            )
            z, d = outcome.state[0], scale(outcome.state[1], 1 / sigma)
        else:

            def field_of_d(d):
                return scheme.field(oracle, x, start.z, d, sigma, c)[1]

            outcome = minimise(
                field_of_d, start.d, tol=0.25 * tol, max_steps=max_steps, certify=certify
            )
            z, d = start.z, outcome.state
        return Perturbed(z, d, sigma, outcome.status, start.num_steps + outcome.num_steps)

    start = Perturbed(z, d, sigma, jnp.int32(Status.MAX_STEPS), jnp.int32(0))
    if not relative:
        return once(start, sigma)
    return lax.fori_loop(
        0, 2, lambda k, last: once(last, relative_sigma(sigma, last.z, scheme.first(last.d))), start
    )


def _solve_together(oracle, scheme, inner, x, z, d, sigma, tol, max_steps, c=None):
    """z and d by paired steps of one optimiser."""

    def step(state):
        z, d, optimizer = state
        here = oracle.upper_y(x, z) if scheme.linear and c is None else c
        z, d, optimizer = paired_step(
            oracle.problem,
            scheme,
            inner,
            scheme.field(oracle, x, z, d, sigma, here),
            optimizer,
            x,
            z,
            d,
            sigma,
        )
        return z, d, optimizer

    def judge(state):
        return measure(oracle, scheme, x, state[0], state[1], sigma, c)

    start = (z, d, inner.init(z, d))
    (z, d, _), measured, status, num_steps = run_checked(
        step, judge, start, x, tol=tol, max_steps=max_steps, check_every=10, patience=100
    )
    return z, d, measured, status, num_steps


class Argmin(NamedTuple):
    """x -> arg min_y lower(x, y) as a differentiable function; see `argmin`."""

    problem: Problem
    y0: Tree
    sigma: Any
    inner: Inner
    tol: Any
    max_steps: Any

    def __call__(self, x: Tree) -> Tree:
        """y*(x), differentiable in x by reverse mode."""
        return original(
            _argmin((self.problem, self.inner, self.sigma is None), *self._arguments(x))
        )

    def solution(self, x: Tree) -> Solution:
        """y*(x) with its status: CONVERGED when ‖g_y(x, y)‖ ≤ tol. Not differentiable."""
        x, y0, _, tol, max_steps = self._arguments(x)
        solution = _lower_solution(self.problem, self.inner, x, y0, tol, max_steps)
        return solution._replace(value=original(solution.value))

    def _arguments(self, x):
        x, y0 = arrays_only(x, self.y0)
        dtype = dtype_of(x)
        tol = (
            default_tol(dtype)
            if self.tol is None
            else _checks.real_scalar("tol", self.tol, dtype, 0.0)
        )
        sigma = positive_sigma(default_sigma(dtype) if self.sigma is None else self.sigma, dtype)
        return x, y0, sigma, tol, jnp.asarray(self.max_steps, jnp.int32)


def argmin(
    lower: Callable[..., Any],
    y0: Tree,
    *,
    sigma: Any = None,
    inner: Inner = None,
    tol: Any = None,
    max_steps: Any = 1000,
    prox_y: Callable[[Tree, Tree, jax.Array], Tree] | None = None,
    nonsmooth: Callable[..., Any] | None = None,
) -> Argmin:
    """y*(x) = arg min_y lower(x, y) as a function of x with a derivative: no Hessian, no linear
    solve, no unrolling.

        pull-back of c:  [g_x(x, z + sigma d) - g_x(x, z - sigma d)] / (2 sigma)
                         with  [g_y(x, z + sigma d) - g_y(x, z - sigma d)] / (2 sigma) + c = 0

    which costs one perturbed inner solve and has error O(sigma²). The minimiser must be unique near
    y*(x). Works under `jit`, `vmap`, and inside any larger `jax.grad` or `jax.vjp`; whatever is
    differentiated must come in through x (a pytree), not through variables that `lower` closes
    over, and y0 gets no gradient: the minimiser does not depend on it. Build it once: each `lower`
    object is compiled anew.

    The function itself returns y*(x) alone; `y_star.solution(x)` tells the status, and
    `hypergradient` that of a derivative. Neither x nor the result is scaled: `tol` bounds ‖g_y‖
    absolutely, and in the pull-back relative to max(1, ‖c‖). `prox_y`, `nonsmooth`: see `Problem`;
    other keywords: see `hypergradient`.
    """
    problem = Problem(upper=_no_upper, lower=lower, prox_y=prox_y, nonsmooth=nonsmooth)
    _needs_inner(problem, inner)
    return Argmin(problem, y0, sigma, inner, tol, max_steps)


def _no_upper(x, y):
    return jnp.zeros((), dtype_of(y))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _lower_solution(problem, inner, x, y0, tol, max_steps) -> Solution:
    oracle = Oracle(problem)
    if inner is None:
        outcome = solve_lower(oracle, x, y0, tol, max_steps)
        z, certificate, status, num_steps = (
            outcome.state,
            outcome.certificate,
            outcome.status,
            outcome.num_steps,
        )
    else:
        scheme = SCHEMES["soba"]  # with no upper level d stays zero
        one = jnp.ones((), dtype_of(x))
        optimizer = as_paired(inner, y0)
        z, _, measured, status, num_steps = _solve_together(
            oracle, scheme, optimizer, x, y0, zeros(y0), one, 0.25 * tol, max_steps, zeros(y0)
        )
        certificate = measured.certificate
    stats = {
        "error": certificate.error,
        "scale": certificate.scale,
        "num_steps": num_steps,
        "lower": oracle.whole_lower(x, z),
    }
    return Solution(z, status, stats, z)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _argmin(static, x, y0, sigma, tol, max_steps):
    problem, inner, _ = static
    return _lower_solution(problem, inner, x, y0, tol, max_steps).value


def _argmin_forward(static, x, y0, sigma, tol, max_steps):
    z = _argmin(static, x, y0, sigma, tol, max_steps)
    return z, (x, z, sigma, tol, max_steps)


def _argmin_backward(static, saved, cotangent):
    x, z, sigma, tol, max_steps = saved
    pulled = _pull_back(*static, x, z, cotangent, sigma, tol, max_steps)
    return pulled, zeros(z), jnp.zeros_like(sigma), jnp.zeros_like(tol), None


_argmin.defvjp(_argmin_forward, _argmin_backward)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _pull_back(problem, inner, relative, x, z, cotangent, sigma, tol, max_steps):
    """c -> c' dy*/dx. The cotangent is made of unit length first, so that sigma d has the size that
    sigma says.
    """
    oracle, scheme = Oracle(problem), SCHEMES["central_linear"]
    size = norm(cotangent)
    c = scale(cotangent, 1 / jnp.where(size > 0, size, 1.0))
    if inner is None:
        z, d, sigma, *_ = solve_perturbed(
            oracle, scheme, x, z, zeros(z), sigma, tol, max_steps, relative=relative, c=c
        )
    else:
        z, d, *_ = _solve_together(
            oracle, scheme, as_paired(inner, z), x, z, zeros(z), sigma, tol, max_steps, c
        )
    return scale(cross_term(oracle, x, z, d, sigma), size)


class HypergradientCheck(NamedTuple):
    """A hypergradient beside the implicit one: both gradients, their relative distance, and the
    Hessian's condition number.
    """

    error: jax.Array
    hypergradient: Tree
    implicit: Tree
    condition: jax.Array
    status: jax.Array


def check_hypergradient(
    problem: Problem, x: Tree, y0: Tree, *, data: Any = None, **options: Any
) -> HypergradientCheck:
    """Compare `hypergradient(problem, x, y0, data=data, **options)` with implicit differentiation,
    for a small problem of your own.

        implicit = f_x - (D²_xy g) (D²_yy g)⁻¹ f_y   at the same z, with the dense d × d Hessian of
        the lower level (d = dimension of y)

    `error` is ‖difference‖ / ‖implicit‖. A large `condition` says that the lower level is nearly
    flat somewhere, where the implicit gradient is itself uncertain (with several minimisers it does
    not exist, and the two need not agree). `options`: see `hypergradient`.
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


@functools.partial(jax.jit, static_argnums=0)
def _dense_implicit(problem, x, z, data):
    oracle = Oracle(problem, data)
    flat, unravel = ravel_pytree(z)
    hessian = jax.hessian(lambda y: oracle.lower(x, unravel(y)))(flat)
    upper_x, upper_y = oracle.upper_gradients(x, z)
    d = unravel(-jnp.linalg.solve(hessian, ravel_pytree(upper_y)[0]))
    return add(upper_x, oracle.derivative(0, x, z, d)), jnp.linalg.cond(hessian)


def default_sigma(dtype: Any) -> float:
    return 1e-4 if jnp.finfo(dtype).bits == 64 else 5e-3


def _needs_inner(problem: Problem, inner: Inner) -> None:
    _checks.require(
        problem.prox_y is None or inner is not None,
        "prox_y needs an inner optimiser that takes proximal steps: pass inner=optax.sgd(rate) with rate below 1 / curvature.",
    )
