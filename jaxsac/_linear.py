"""Linear algebra without LAPACK: inverses of small matrices, and conjugate gradients.

Not by LAPACK: on CPUs its batched calls wait for threads of the pool that they run in, and two at
once may wait for ever.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops


class LinearSolution(NamedTuple):
    """Where conjugate residuals ended, and what curvature they met, in the metric of the
    preconditioner.
    """

    x: Any
    residual: Any  # right_side − matvec(x)
    converged: jax.Array  # [] bool: its norm is as small as was asked for
    flat: jax.Array  # [] bool: it ended where no curvature is left
    least: jax.Array  # [] the least curvature
    most: jax.Array  # [] the largest size of one
    num_steps: jax.Array  # [] int32: products


def conjugate_gradient(
    matvec: Callable[[Any], Any],
    right_side: Any,
    *,
    start: Any = None,
    tol: Any = None,
    floor: Any = 0.0,
    max_steps: Any = None,
    flat: Any = 0.0,
    most: Any = 0.0,
    precondition: Callable[[Any], Any] = lambda residual: residual,
) -> LinearSolution:
    """Solve matvec(x) = right_side for a symmetric positive (semi-)definite `matvec` on a pytree,
    by the conjugate gradients whose residual is the least in their spaces (conjugate residuals).

    It ends when ‖right_side − matvec(x)‖ ≤ max(tol · ‖right_side‖, floor), after `max_steps` steps
    (None: ten times the unknowns), or at a residual without curvature, or with at most `flat`
    times the largest one met, or known to be there (`most`), which is what no x explains: x is a
    least-squares solution then. `tol` None is four times the dtype's eps; `precondition` is an
    approximate inverse.

    Source: Stiefel (1955); Saad, "Iterative Methods for Sparse Linear Systems", section 6.8.
    """
    leaves = jax.tree.leaves(right_side)
    dtype = jnp.result_type(*leaves)
    tol = 4.0 * float(jnp.finfo(dtype).eps) if tol is None else tol
    if max_steps is None:
        max_steps = 10 * sum(leaf.size for leaf in leaves)
    max_steps = jnp.asarray(max_steps, jnp.int32)
    # in units of the right side: the square of a small one would underflow
    size = _largest(right_side)
    size = jnp.where((size > 0) & jnp.isfinite(size), size, 1.0)
    right_side = scale(right_side, 1 / size)
    wanted = jnp.asarray(tol, dtype) ** 2 * square(right_side)
    bound = jnp.maximum(wanted, (jnp.asarray(floor, dtype) / size) ** 2)

    def running(carry):
        return (square(carry[1]) > bound) & (carry[-2] < max_steps) & carry[-1]

    def advance(carry):
        x, residual, steered, direction, image, unit, last, least, most, steps, _ = carry
        bent = matvec(steered)
        # in units of the matrix: the square of a small one would underflow
        found = _largest(bent) / jnp.where(_largest(steered) > 0, _largest(steered), 1.0)
        unit = jnp.where((unit == 0) & (found > 0), found, unit)
        bent = scale(bent, 1 / jnp.where(unit > 0, unit, 1.0))
        curvature, length = dot(steered, bent), dot(steered, residual)
        share = unit * curvature / jnp.where(length > 0, length, 1.0)
        least, most = jnp.minimum(least, share), jnp.maximum(most, jnp.abs(share))
        curved = (curvature > 0) & (share > jnp.asarray(flat, dtype) * most)
        along = curvature / last
        direction, image = add(steered, along, direction), add(bent, along, image)
        square_image = dot(image, precondition(image))
        length = jnp.where(curved, curvature / jnp.where(square_image > 0, square_image, 1.0), 0.0)
        x, residual = add(x, length, direction), add(residual, -length, image)
        steered = precondition(residual)
        numbers = (unit, curvature, least, most, steps + 1, curved)
        return x, residual, steered, direction, image, *numbers

    nothing, residual = jax.tree.map(jnp.zeros_like, right_side), right_side
    if start is not None:
        residual = add(right_side, -1 / size, matvec(start))
    unseen, most = jnp.full((), jnp.inf, dtype), jnp.asarray(most, dtype)
    numbers = (jnp.zeros((), dtype), unseen, unseen, most, jnp.int32(0), jnp.asarray(True))
    carry = (nothing, residual, precondition(residual), nothing, nothing, *numbers)
    end = _loops.while_loop(running, advance, carry)
    x, residual, *_, unit, _, least, most, steps, curved = end
    converged = square(residual) <= bound
    x = scale(x, size / jnp.where(unit > 0, unit, 1.0))
    x = x if start is None else add(start, 1.0, x)
    flat = ~converged & ~curved
    return LinearSolution(x, scale(residual, size), converged, flat, least, most, steps)


def scale(x: Any, size: Any) -> Any:
    return jax.tree.map(lambda x: x * size.astype(x.dtype), x)


def _largest(x: Any) -> jax.Array:
    return jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(x)]).max()


def add(x: Any, size: Any, direction: Any) -> Any:
    """x + size · direction."""
    return jax.tree.map(lambda x, step: x + (size * step).astype(x.dtype), x, direction)


def dot(x: Any, y: Any) -> jax.Array:
    """⟨x, y⟩ over all leaves."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), x, y)
    return sum(jax.tree.leaves(products), start=jnp.zeros((), jnp.result_type(*jax.tree.leaves(x))))


def square(x: Any) -> jax.Array:
    """‖x‖² over all leaves."""
    return dot(x, x)


def inverses(matrices: jax.Array) -> jax.Array:
    """The inverses of small symmetric positive definite matrices [S, q, q], by sweeps over all of
    them at once.

    Source: Goodnight, "A Tutorial on the SWEEP Operator" (1979).
    """
    size = matrices.shape[1]
    places = jnp.arange(size, dtype=jnp.int32)

    def sweep(k, at):
        column = lax.dynamic_index_in_dim(at, k, axis=2, keepdims=False)
        pivot = lax.dynamic_index_in_dim(column, k, axis=1, keepdims=True)
        share = column / pivot
        here = (places == k)[None, :]
        swept = at - column[:, :, None] * share[:, None, :]
        swept = jnp.where(
            here[:, :, None],
            share[:, None, :],
            jnp.where(here[:, None, :], share[:, :, None], swept),
        )
        return jnp.where(here[:, :, None] & here[:, None, :], -1.0 / pivot[:, :, None], swept)

    return -_loops.fori_loop(0, size, sweep, matrices)


def inverse(matrix: jax.Array) -> jax.Array:
    """The inverse of one small symmetric positive definite matrix [q, q]."""
    return inverses(matrix[None])[0]
