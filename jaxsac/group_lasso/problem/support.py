"""The problem on the support of a solution: its coefficients that may move, its Newton matrix, and
what follows from the two: derivatives, by the implicit function theorem, and degrees of freedom.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxsac import _loops
from jaxsac._implicit import implicit
from jaxsac._linear import conjugate_gradient, square
from jaxsac._sizes import padded
from jaxsac.designs import Centred, Dense, MultiOutput
from jaxsac.group_lasso.problem.objective import (
    Coefficients,
    Objective,
    recentre,
    uncentre,
    uncentred,
)
from jaxsac.prox import Groups, Level, Penalty
from jaxsac.solution import Solution, Status

_SMALLEST, _RATIO = 16, 1.5  # capacity, and how much the next one is larger
_MOST_DENSE = 1536  # coefficients whose Newton matrix is formed; beyond, conjugate gradients
_POLISHES = 3


class Columns(eqx.Module):
    """Some columns of a design that cannot be cut; an index of p is a column of zeros."""

    design: Any
    indices: jax.Array

    @property
    def num_coefficients(self) -> int:
        return self.indices.shape[0]

    @property
    def prediction_shape(self) -> tuple[int, ...]:
        return self.design.prediction_shape

    @property
    def dtype(self) -> Any:
        return self.design.dtype

    def predict(self, coef: jax.Array) -> jax.Array:
        return self.design.predict(
            jnp.zeros(self.design.num_coefficients, coef.dtype)
            .at[self.indices]
            .add(coef, mode="drop")
        )

    def adjoint(self, residual: jax.Array) -> jax.Array:
        return _part(self.design.adjoint(residual), self.indices)

    def column_squares(self, weights: jax.Array) -> jax.Array:
        return _part(self.design.column_squares(weights), self.indices)


def indices_of(moving: np.ndarray) -> np.ndarray:
    """The positions that are True, padded with p to one of a few lengths."""
    found = np.flatnonzero(moving).astype(np.int32)
    size = min(padded(len(found), _SMALLEST, _RATIO, multiple=_SMALLEST // 2), moving.size)
    return np.append(found, np.full(size - len(found), moving.size, np.int32))


def restrict(problem: Objective, indices: jax.Array) -> Objective:
    """The problem in the coefficients at `indices`, the others being zero. Padding adds columns of
    zeros to the last one's groups.
    """
    design = uncentred(problem)
    return _restricted(
        problem,
        indices,
        Dense(_columns(design.matrix, indices))
        if isinstance(design, Dense)
        else Columns(design, indices),
    )


def restrict_to_columns(problem: Objective, columns: jax.Array) -> tuple[Objective, jax.Array]:
    """The problem in the coefficients of some columns of X, or of the features that several outputs
    share, and the indices of those.
    """
    design = uncentred(problem)
    if isinstance(design, Dense):
        return restrict(problem, columns), columns
    num_features, outputs = design.features.shape[1], lax.iota(jnp.int32, design.num_outputs)
    if design.by == "output":
        indices = outputs[:, None] * num_features + columns[None, :]
        indices = jnp.where(columns[None, :] < num_features, indices, design.num_coefficients)
    else:
        indices = columns[:, None] * design.num_outputs + outputs[None, :]
    cut = MultiOutput(_columns(design.features, columns), design.num_outputs, design.by)
    return _restricted(problem, indices.reshape(-1), cut), indices.reshape(-1)


def _restricted(problem: Objective, indices: jax.Array, cut: Any) -> Objective:
    design = Centred(cut, problem.design.shares) if problem.intercept else cut

    def among(groups: Groups) -> Groups:
        labels = groups.spread(lax.iota(jnp.int32, groups.num_groups))
        labels = labels.at[indices].get(
            mode="clip"
        )  # of one coefficient on all levels: families stay nested
        return Groups(groups.num_groups, indices.shape[0], groups.max_size, labels)

    extra = problem.extra
    if extra is not None:
        levels = [Level(among(groups), weights) for groups, weights in extra.levels]
        l1 = extra.l1 if extra.l1 is None or jnp.ndim(extra.l1) == 0 else _part(extra.l1, indices)
        extra = Penalty(levels, l1, extra.ridge, extra.nonnegative)
    return dataclasses.replace(problem, design=design, groups=among(problem.groups), extra=extra)


def equation(point: Coefficients, params: tuple[Objective, jax.Array]) -> Coefficients:
    """The gradient of the objective in the coefficients that may move, `params` = (problem, which
    [p]); the others' own values.
    """
    problem, moving = params
    coef = jnp.where(moving, point.coef, 0.0)
    constant = (
        point.intercept if problem.intercept else jnp.zeros_like(point.intercept)
    )  # or the equations would not be symmetric
    residual = problem.residual(problem.predict(Coefficients(coef, constant)))
    slope = problem.whole_penalty.gradient(coef, problem.lam) - problem.design.adjoint(residual)
    return Coefficients(
        jnp.where(moving, slope, point.coef),
        -jnp.sum(residual, axis=0) if problem.intercept else point.intercept,
    )


def newton_solve(matvec: Any, right_side: Coefficients) -> Coefficients:
    """Solve with the Newton matrix: by one Cholesky factor where that is small enough to form, else
    by conjugate gradients.
    """
    return _solver(matvec, right_side)(right_side)


def _solver(matvec: Any, like: Coefficients) -> Any:
    flat, unravel = ravel_pytree(like)
    if flat.size > _MOST_DENSE:
        return lambda right_side: conjugate_gradient(matvec, right_side).x
    solve = _factored(_matrix(matvec, like))
    return lambda right_side: unravel(solve(ravel_pytree(right_side)[0]))


def polished(problem: Objective, point: Coefficients, moving: jax.Array) -> Coefficients:
    """The point after Newton steps on its support, as long as they shrink the gradient: a solution
    to rounding, from one to a tolerance.
    """

    def matvec(vector):
        return jax.jvp(lambda at: equation(at, (problem, moving)), (point,), (vector,))[1]

    solve = _solver(matvec, point)

    def advance(_, carry):
        at, gradient = carry
        step = solve(gradient)
        there = jax.tree.map(jnp.subtract, at, step)
        there = there._replace(coef=jnp.where(moving, there.coef, at.coef))
        new = equation(there, (problem, moving))
        better = square(new) < square(gradient)  # False for NaN
        return jax.tree.map(
            lambda yes, no: jnp.where(better, yes, no), (there, new), (at, gradient)
        )

    start = equation(point, (problem, moving))
    start = start._replace(coef=jnp.where(moving, start.coef, 0.0))
    return _loops.fori_loop(0, _POLISHES, advance, (point, start))[0]


def with_derivatives(
    problem: Objective, point: Coefficients, support: jax.Array | None = None
) -> Coefficients:
    """`point` with its derivative with respect to every array in `problem`.

    On the coefficients that no kink holds at zero (and the intercept) the solution solves −X' ρ +
    the gradient of the penalty = 0; elsewhere it is locally 0. That is the derivative wherever
    ‖X_g' ρ‖ < lam w_g strictly on the rest, and a one-sided one at the kinks. It is taken at the
    point after Newton steps, so that its error is that of rounding and not that of the tolerance to
    which `point` was found. `support` [p] overrides which coefficients move.
    """
    if support is None:
        support = ~problem.whole_penalty.pinned(point.coef, problem.lam)
    return _attached(problem, lax.stop_gradient(support), jax.tree.map(lax.stop_gradient, point))


@jax.custom_jvp
def _attached(problem: Objective, support: jax.Array, point: Coefficients) -> Coefficients:
    return point


@_attached.defjvp
def _attached_jvp(primals, tangents):
    problem, support, point = primals
    exact = polished(lax.stop_gradient(problem), lax.stop_gradient(point), support)

    def solution(problem):
        return implicit(equation, newton_solve, exact, (problem, support))

    # Attached again, so that higher derivatives are right.
    return _attached(problem, support, point), jax.jvp(solution, (problem,), (tangents[0],))[1]


def carrying(point: Coefficients, status: jax.Array) -> Coefficients:
    """The point, or NaN where a run was NONFINITE: no kink pins that, so that its derivatives are
    NaN as well.
    """
    unit = jnp.where(status == Status.NONFINITE, jnp.nan, 1.0).astype(point.coef.dtype)
    return jax.tree.map(lambda leaf: leaf * unit, point)


def differentiable(problem: Objective, solution: Solution) -> Solution:
    """A solution found on the host for the values of `problem`, with derivatives that touch the
    columns of its support alone.
    """
    still = lax.stop_gradient(problem)
    coef = solution.value.coef
    indices = jnp.asarray(indices_of(~np.asarray(still.whole_penalty.pinned(coef, still.lam))))
    value, objective = _on_support(problem, indices, solution.value)
    return solution._replace(value=value, stats={**solution.stats, "objective": objective})


@jax.jit
def _on_support(
    problem: Objective, indices: jax.Array, value: Coefficients
) -> tuple[Coefficients, jax.Array]:
    small = restrict(problem, indices)
    part = Coefficients(value.coef.at[indices].get(mode="fill", fill_value=0), value.intercept)
    part = with_derivatives(small, recentre(lax.stop_gradient(small), part))
    objective = small.smooth_value(small.predict(part)) + small.penalty(part.coef)
    moved = uncentre(small, part)
    return Coefficients(
        jnp.zeros_like(value.coef).at[indices].set(moved.coef, mode="drop"), moved.intercept
    ), objective


def degrees(problem: Objective, point: Coefficients) -> jax.Array:
    """tr(K^-1 X' H X) over the support, H = ∇²F and K the Hessian of the objective: the trace of
    the derivative of X b by its targets.
    """
    still, point = lax.stop_gradient((problem, point))
    moving = ~still.whole_penalty.pinned(point.coef, still.lam)
    at = implicit(equation, newton_solve, polished(still, point, moving), (problem, moving))
    mask = jnp.concatenate([moving, jnp.full(point.intercept.size, problem.intercept)])

    def of_objective(vector):
        return jax.jvp(lambda u: equation(u, (problem, moving)), (at,), (vector,))[1]

    def of_loss(vector):
        bent = -jax.jvp(problem.residual, (problem.predict(at),), (problem.predict(vector),))[1]
        return Coefficients(problem.design.adjoint(bent), jnp.sum(bent, axis=0))

    smooth = jnp.where(mask[:, None] & mask[None, :], _matrix(of_loss, at), 0.0)
    trace = jnp.trace(_factored(_matrix(of_objective, at))(smooth))
    return jnp.where(jnp.isfinite(problem.smooth_value(problem.predict(at))), trace, jnp.nan)


def _matrix(matvec: Any, like: Coefficients) -> jax.Array:
    flat, unravel = ravel_pytree(like)
    return jax.vmap(lambda e: ravel_pytree(matvec(unravel(e)))[0])(
        jnp.eye(flat.size, dtype=flat.dtype)
    )


def _factored(matrix: jax.Array) -> Any:
    """Solving with a positive semi-definite matrix, scaled to a diagonal of ones and kept definite
    by a multiple of eps.
    """
    diagonal = jnp.diagonal(matrix)
    scale = jnp.where(diagonal > 0, 1.0 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 1.0)
    size = matrix.shape[0]
    ones = jnp.where(diagonal > 0, size * jnp.finfo(matrix.dtype).eps, 1.0)
    factor = jax.scipy.linalg.cho_factor(
        scale[:, None] * matrix * scale[None, :] + jnp.diag(ones), lower=True
    )

    def solve(right_side):
        scaled = scale.reshape((size,) + (1,) * (right_side.ndim - 1))
        return scaled * jax.scipy.linalg.cho_solve(factor, scaled * right_side)

    return solve


def _columns(matrix: jax.Array, indices: jax.Array) -> jax.Array:
    return matrix.at[:, indices].get(mode="fill", fill_value=0)


def _part(array: jax.Array, indices: jax.Array) -> jax.Array:
    return array.at[indices].get(mode="fill", fill_value=0)
