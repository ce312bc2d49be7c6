"""A differentiable arg min: x -> y*(x) with a derivative rule of first-order differences, or of
second-order products where those are allowed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxsac import _checks, _loops
from jaxsac._arguments import arguments, flag, function, integer, real, record, tolerance
from jaxsac._implicit import closure_convert, implicit
from jaxsac._iterate import Outcome
from jaxsac._linear import conjugate_gradient
from jaxsac.bilevel.certificate import DEEPER, certify_lower, measure
from jaxsac.bilevel.lower import solve_alone, solve_lower, solve_perturbed, solve_together
from jaxsac.bilevel.paired import INNER, Inner, as_paired, require_inner
from jaxsac.bilevel.problem import (
    DATA,
    VARIABLES,
    Oracle,
    Problem,
    Tree,
    arrays_only,
    dtype_of,
    norm,
    original,
    per_problem,
    scale,
    undifferentiated,
    zeros,
)
from jaxsac.bilevel.schemes import default_sigma, positive, scheme_at
from jaxsac.solution import Solution, Status, verdict

_NUMBERS = {
    "y0": VARIABLES,
    "sigma": real(above=0),
    "inner": INNER,
    "tol": real(low=0),
    "max_steps": integer(low=0),
    "data": DATA,
}


@arguments(problem=record(Problem), aux=function("(x, y) or (x, y, data) -> aux"), **_NUMBERS)
class Argmin(eqx.Module):
    """x -> arg min_y lower(x, y) as a differentiable function; see `argmin`."""

    problem: Problem  # whose lower level is `lower`
    y0: Tree  # where the search for a minimiser starts
    sigma: Any = None  # [] > 0, the size of the perturbation; None: the default of the dtype
    tol: Any = None  # [] ≥ 0; None: the default of the dtype
    max_steps: Any = 1000  # [] int32
    data: Any = None  # third argument of `lower`
    inner: Inner = eqx.field(static=True, default=None)  # None is Newton's method
    # (x, y) or (x, y, data) -> what is returned beside y*
    aux: Callable[..., Any] | None = eqx.field(static=True, default=None)

    __hash__ = object.__hash__  # its bound methods go through `jax.jit`, which hashes them

    def __call__(self, x: Tree) -> Any:
        """y*(x), or (y*(x), aux), differentiable in x by reverse mode; with `allow_jvp` by both
        modes, to any order.
        """
        x, y0, data, *numbers = self._arguments(x)
        problem, rest = self.problem, () if data is None else (data,)
        lower, closed_over = closure_convert(
            lambda x, y, *rest: problem.lower(original(x), original(y), *rest), x, y0, *rest
        )
        whole = x
        if closed_over:  # what is differentiated, or may be, comes in beside x
            whole = (x, closed_over)
            others = {
                name: lambda x, *rest, function=function: function(x[0], *rest)
                for name in ("prox_y", "nonsmooth")
                if (function := getattr(problem, name)) is not None
            }
            problem = dataclasses.replace(
                problem,
                lower=lambda x, y, *rest: lower(x[1], *arrays_only(x[0], y), *rest),
                **others,
            )
        static = (problem, self.inner, self.sigma is None)
        if not problem.allow_jvp:
            y = _argmin(static, whole, y0, data, *numbers)
        else:
            y = _argmin(static, *jax.lax.stop_gradient((whole, y0)), data, *numbers)
            oracle = Oracle(problem, data)
            y = implicit(lambda y, whole: oracle.lower_y(whole, y), _solve, y, whole)
        return self._with_aux(x, original(y))

    def checked(self, x: Tree) -> Solution:
        """y*(x) with its status, CONVERGED when y is near, and `aux` in stats. Not
        differentiable.
        """
        x, y0, data, _, tol, max_steps = undifferentiated(self._arguments(x))
        solution = _lower_solution(self.problem, self.inner, x, y0, data, tol, max_steps)
        solution = undifferentiated(solution)  # in what `lower` closes over neither
        y = original(solution.value)
        stats = {**solution.stats, "aux": self._with_aux(x, y)[1]} if self.aux else solution.stats
        return solution._replace(value=y, stats=stats)

    def _with_aux(self, x, y):
        rest = () if self.data is None else (self.data,)
        return (y, self.aux(original(x), y, *rest)) if self.aux else y

    def _arguments(self, x):
        oracle = Oracle(self.problem, self.data)
        x, y0 = _loops.own(oracle.whole_lower, *arrays_only(x, self.y0))
        dtype = dtype_of(x)
        sigma = positive(default_sigma(dtype) if self.sigma is None else self.sigma, dtype)
        tol = self.tol
        if tol is None and self.problem.prox_y is not None:  # σ is not chosen by ‖d‖ there
            tol = max(1e-6, float(jnp.finfo(dtype).eps) ** 0.5 * 3)
        tol = tolerance(tol, dtype)
        data = undifferentiated(self.data)
        return x, y0, data, sigma, tol, jnp.asarray(self.max_steps, jnp.int32)


@arguments(
    lower=function("(x, y) or (x, y, data) -> scalar"),
    has_aux=flag(),
    prox_y=function("(x, y, rate) -> y"),
    nonsmooth=function("(x, y) or (x, y, data) -> scalar"),
    allow_jvp=flag(),
    **_NUMBERS,
)
def argmin(
    lower: Callable[..., Any],
    y0: Tree,
    data: Any = None,
    has_aux: bool = False,
    *,
    sigma: Any = None,
    inner: Inner = None,
    tol: Any = None,
    max_steps: Any = 1000,
    prox_y: Callable[[Tree, Tree, jax.Array], Tree] | None = None,
    nonsmooth: Callable[..., Any] | None = None,
    allow_jvp: bool = False,
) -> Argmin:
    """y*(x) = arg min_y lower(x, y) as a function of x with a derivative: no Hessian, no linear
    solve, no unrolling.

        pull-back of c:  [g_x(x, z + σ d) − g_x(x, z − σ d)] / (2 σ)
                         with  [g_y(x, z + σ d) − g_y(x, z − σ d)] / (2 σ) + c = 0

    (in fourth order without `sigma` and `inner`, see `hypergradient`), which costs one perturbed
    inner solve and has error O(σ²). Where y*(x) is not unique, as policies as logits are not, the
    pull-back of what does not change along its minimisers is right, and of all else NaN. Works
    under `jit`, `vmap`, and inside any larger `jax.grad` or `jax.vjp`, also for what
    `lower` closes over; y0 gets no gradient: the minimiser does not depend on it. Build it once:
    each `lower` object is compiled anew. `prox_y` and `nonsmooth` close over nothing that is
    differentiated.

    * `data`: the third argument of `lower`, where there is one: arrays that are not differentiated,
      integers and keys among them.
    * `has_aux`: `lower` returns (scalar, aux), and the function (y*(x), aux there), differentiable.
    * `tol`: of the estimated error of y* relative to ‖y*‖, and of that of the pull-back relative to
      it; 1e-6 in float64 and 1e-4 in float32 (1e-3 with `prox_y`).
    * `prox_y`, `nonsmooth`: see `Problem`.
    * `allow_jvp`: differentiate by products with second derivatives of `lower`, and conjugate
      gradients on them, as the implicit function theorem says: in forward mode too, and to any
      order, which are errors without. Not with `prox_y`. A derivative is NaN then where its linear
      system keeps a residual of 1e-4 (2 % in float32), whatever `tol` is, and where y*(x) is not
      unique that of least norm.
    * `y0`, `sigma`, `inner`, `max_steps`: see `hypergradient`.

    Returns: the function, an `Argmin`, of y*(x) alone, which is NaN where the search is not
    certified, as is a derivative whose pull-back is not: loosen `tol`, or use float64. Its method
    `checked(x)` returns a `Solution`, with the status; `hypergradient` has that of a derivative.
    """
    value, aux = (_result(lower, 0), _result(lower, 1)) if has_aux else (lower, None)
    _checks.require(
        not (allow_jvp and prox_y is not None),
        "allow_jvp needs a smooth lower level: leave prox_y out, or allow_jvp.",
    )
    problem = Problem(_no_upper, value, prox_y=prox_y, nonsmooth=nonsmooth, allow_jvp=allow_jvp)
    require_inner(problem, inner)
    return Argmin(problem, y0, sigma, tol, max_steps, data, inner, aux)


def _solve(matvec, right_side):
    return conjugate_gradient(matvec, right_side).x


@functools.lru_cache(32)  # the same function for the same: it is what programs are known by
def _result(function, index):
    @functools.wraps(function)
    def part(*arguments):
        found = function(*arguments)
        _checks.require(
            isinstance(found, tuple) and len(found) == 2,
            "lower must return (scalar, aux) with has_aux=True.",
        )
        return found[index]

    return part


def _no_upper(x, y, *data):
    return jnp.zeros((), dtype_of(y))


@per_problem(2)
def _lower_solution(problem, inner, x, y0, data, tol, max_steps) -> Solution:
    oracle = Oracle(problem, data)

    if inner is None:
        outcome = solve_lower(oracle, x, y0, max_steps)
        certificate = certify_lower(oracle, x, outcome.state, y0, tol, most_steps=DEEPER)
        more = outcome.num_steps < max_steps
        status = verdict(certificate, tol, progress=~more, more=more)
        outcome = Outcome(outcome.state, certificate, status, outcome.num_steps)
    else:

        def certify(z):
            return certify_lower(oracle, x, z, y0, tol)

        outcome = solve_alone(oracle, as_paired(inner, y0), x, y0, certify, tol, max_steps)
    z = outcome.state
    value = _or_nan(z, outcome.status != Status.NONFINITE)
    return Solution(value, outcome.status, {**outcome.stats, "lower": oracle.whole_lower(x, z)}, z)


# The exception to the one derivative rule, `_implicit.implicit`: that one solves with the Hessian
# of `lower`, and `argmin` is for those who cannot, or will not, take second-order products. The
# pull-back is itself the solution of a perturbed lower level, from gradients alone.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _argmin(static, x, y0, data, sigma, tol, max_steps):
    problem, inner, _ = static
    solution = _lower_solution(problem, inner, x, y0, data, tol, max_steps)
    # There is no status here: a search that failed must not pass for a minimiser.
    return _or_nan(solution.value, solution.status == Status.CONVERGED)


def _argmin_forward(static, x, y0, data, sigma, tol, max_steps):
    z = _argmin(static, x, y0, data, sigma, tol, max_steps)
    return z, (x, z, data, sigma, tol, max_steps)


def _argmin_backward(static, saved, cotangent):
    x, z, data, sigma, tol, max_steps = saved
    pulled = _pull_back(*static, x, z, data, cotangent, sigma, tol, max_steps)
    return pulled, zeros(z), None, jnp.zeros_like(sigma), jnp.zeros_like(tol), None


_argmin.defvjp(_argmin_forward, _argmin_backward)


@per_problem(3)
def _pull_back(problem, inner, relative, x, z, data, cotangent, sigma, tol, max_steps):
    """c -> c' dy*/dx. The cotangent is made of unit length first, so that σ d has the size that σ
    says.
    """
    oracle = Oracle(problem, data)
    scheme = scheme_at("central_linear", oracle, relative=relative and inner is None)
    size = norm(cotangent)
    c = scale(cotangent, 1 / jnp.where(size > 0, size, 1.0))
    if inner is None:
        z, d, sigma, *_ = solve_perturbed(
            oracle, scheme, x, z, zeros(z), sigma, tol, max_steps, relative=relative, c=c
        )
        measured = measure(oracle, scheme, x, z, d, sigma, c, tol=tol, most_steps=DEEPER)
        status = verdict(measured.certificate, tol, progress=False, more=True)
    else:
        _, measured, status, _ = solve_together(
            oracle, scheme, as_paired(inner, z), x, (z, zeros(z)), sigma, tol, max_steps, c
        )
    return _or_nan(scale(measured.hypergradient, size), status == Status.CONVERGED)


def _or_nan(tree: Tree, good: jax.Array) -> Tree:
    return jax.tree.map(lambda leaf: jnp.where(good, leaf, jnp.nan), tree)
