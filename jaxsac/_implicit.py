"""The one derivative rule of a solution: implicit differentiation of the equation that it
solves.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun
from jax.flatten_util import ravel_pytree

Tree = TypeVar("Tree")
_ACCURACY = 0.25  # of the linear solve, as a power of eps: 1e-4 in float64, 2 % in float32

LinearSolve = Callable[[Callable[[Any], Any], Any], Any]


def implicit(
    residual: Callable[[Any, Any], Any],
    linear_solve: LinearSolve,
    solution: Tree,
    params: Any,
    *,
    symmetric: bool = True,
) -> Tree:
    """Return `solution` unchanged, with the derivative with respect to `params` that
    residual(solution, params) = 0 implies:

        d solution = -(∂residual/∂solution)^{-1} (∂residual/∂params) d params        (implicit
        function theorem)

    `residual(solution, params)` has the tree structure of `solution`; what it closes over is
    differentiated like `params`, and everything in `params` may be traced.
    `linear_solve(matvec, right_side)` solves the linear system, `matvec` being the Jacobian
    ∂residual/∂solution; with `symmetric=False` it must also solve with the transposed Jacobian. How
    the solution was found is not differentiated: pass it through any solver. Works under jvp, vjp,
    their compositions of any order, vmap and for several right-hand sides (a vmap of tangents
    shares `matvec`).
    """
    solution = jax.tree.map(lax.stop_gradient, solution)
    converted, closed_over = closure_convert(residual, solution, params)
    return _implicit(
        lambda solution, params: converted(params[1], solution, params[0]),
        linear_solve,
        symmetric,
        solution,
        (params, closed_over),
    )


def closure_convert(
    function: Callable[..., Any], *example: Any
) -> tuple[Callable[..., Any], list[jax.Array]]:
    """(converted, closed over) with function(*arguments) = converted(closed over, *arguments),
    where what is closed over are the tracers that may be differentiated.

    `jax.closure_convert` keeps every function that it has seen, and all that these close over.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*example)
    traced = [
        isinstance(leaf, jax.core.Tracer) and jnp.issubdtype(leaf.dtype, jnp.inexact)
        for leaf in closed.consts
    ]

    def converted(moved, *arguments):
        moved = iter(moved)
        pairs = zip(closed.consts, traced, strict=True)
        consts = [next(moved) if is_traced else leaf for leaf, is_traced in pairs]
        run = jaxpr_as_fun(closed.replace(consts=consts))
        return jax.tree.unflatten(jax.tree.structure(shape), run(*jax.tree.leaves(arguments)))

    return converted, [
        leaf for leaf, is_traced in zip(closed.consts, traced, strict=True) if is_traced
    ]


def _attach(residual, linear_solve, symmetric, solution, params):
    return solution


_implicit = jax.custom_jvp(_attach, nondiff_argnums=(0, 1, 2))


@_implicit.defjvp
def _implicit_jvp(residual, linear_solve, symmetric, primals, tangents):
    solution, params = primals
    # Attaching the rule again makes the quantities below depend on params through the solution, so
    # that higher derivatives are right.
    solution = _implicit(residual, linear_solve, symmetric, solution, params)
    _, params_tangent = tangents
    _, moved = jax.jvp(lambda p: residual(solution, p), (params,), (params_tangent,))
    # One flat vector: the transpose of custom_linear_solve wants every part of the right side to
    # depend on the tangents, and a leaf may not.
    right_side, unravel = ravel_pytree(jax.tree.map(jnp.negative, moved))

    def matvec(vector):
        return jax.jvp(lambda s: residual(s, params), (solution,), (vector,))[1]

    # custom_linear_solve cannot pass on the symbolic zero that is the derivative of a matvec free
    # of params; that of this 0 is an array.
    nothing = jnp.where(False, jnp.sum(ravel_pytree(solution)[0][:1]), 0).astype(right_side.dtype)

    def flat_matvec(vector):
        return ravel_pytree(matvec(unravel(vector)))[0] + nothing * vector

    def flat_solve(product, vector):
        found = linear_solve(lambda v: unravel(product(ravel_pytree(v)[0])), unravel(vector))
        found = ravel_pytree(found)[0]
        # A solve that failed must not pass for a derivative.
        unit = jnp.max(jnp.abs(vector), initial=0.0)  # the square of a small one would underflow
        unit = jnp.where(unit > 0, unit, 1.0)
        left = jnp.linalg.norm((vector - product(found)) / unit)
        solved = left <= jnp.finfo(vector.dtype).eps ** _ACCURACY * jnp.linalg.norm(vector / unit)
        return jnp.where(solved, found, jnp.nan)

    flat_tangent = lax.custom_linear_solve(
        flat_matvec, right_side, solve=flat_solve, transpose_solve=flat_solve, symmetric=symmetric
    )
    return solution, unravel(flat_tangent)
