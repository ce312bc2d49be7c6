"""An orthonormal basis for unpenalised columns that are nearly dependent: their coefficients are
free, so that the problem is the same, and methods that know columns only by products converge.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks
from jaxsac.designs import Centred, Dense
from jaxsac.group_lasso.problem.objective import Objective, uncentred
from jaxsac.group_lasso.problem.record import FEW_FREE

_WELL = 0.1  # the ratio of singular values above which columns are left as they are


class Basis(NamedTuple):
    """Coefficients b = A c of some columns [K]."""

    columns: np.ndarray  # [K]
    matrix: np.ndarray  # A [K, K]
    inverse: np.ndarray  # of A, or its pseudo-inverse

    def to(self, coef: jax.Array) -> jax.Array:
        """c from b, in [..., p]."""
        return self._apply(self.inverse, coef)

    def back(self, coef: jax.Array) -> jax.Array:
        """b from c, in [..., p]."""
        return self._apply(self.matrix, coef)

    def _apply(self, matrix: np.ndarray, coef: jax.Array) -> jax.Array:
        mapped = coef[..., self.columns] @ jnp.asarray(matrix.T, coef.dtype)
        return coef.at[..., self.columns].set(mapped)


def in_basis(problem: Objective) -> tuple[Objective, Basis | None]:
    """The problem in another basis of its unpenalised columns, or as it is: where they are well
    conditioned, or not known.
    """
    design, still = uncentred(problem), problem
    if problem.most_free == 0 or problem.extra is not None or not isinstance(design, Dense):
        return problem, None
    if not _checks.is_concrete(problem):
        still = lax.stop_gradient(problem)
    if not _checks.is_concrete(still):
        return problem, None
    columns = np.flatnonzero(np.asarray(still.unpenalised))
    if not 2 <= len(columns) <= min(FEW_FREE, problem.num_samples):
        return problem, None
    part = np.asarray(uncentred(still).matrix[:, columns], np.float64)
    share = np.asarray(still.sample_weight, np.float64)
    share = share / (share.sum() or 1.0)
    scaled = np.sqrt(share)[:, None] * (part - (share @ part if problem.intercept else 0.0))
    squares = scaled.T @ scaled
    if not np.isfinite(squares).all():
        return problem, None
    least, *_, most = np.linalg.eigvalsh(squares)
    if least >= _WELL**2 * most:
        return problem, None
    rounding = float(jnp.finfo(design.dtype).eps) * len(part)
    # a column's units do not make it dependent; a constant beside an intercept is
    lengths, whole = np.sqrt(np.diag(squares)), np.sqrt(share @ part**2)
    units = np.where(lengths > rounding * whole, lengths, np.inf)
    _, sizes, directions = np.linalg.svd(scaled / units, full_matrices=False)
    # b is rounded along weak directions, which costs the square of that: no more than eps; what is
    # dependent but for rounding is left out, and b has the least norm in units of the columns
    there = sizes > rounding * sizes[0]
    kept = np.where(there, np.maximum(sizes, (rounding / len(part)) ** 0.5 * sizes[0]), 1.0)
    directions = np.where(there[:, None] & np.isfinite(units), directions, 0.0)
    units = np.where(np.isfinite(units), units, 1.0)
    basis = Basis(columns, directions.T / kept / units[:, None], kept[:, None] * directions * units)
    return dataclasses.replace(problem, design=_mapped(problem, basis, part)), basis


def _mapped(problem: Objective, basis: Basis, part: np.ndarray) -> Any:
    """The design with other columns: computed in float64, differentiated as a product."""
    matrix = uncentred(problem).matrix
    own = matrix[:, basis.columns]
    moved = (own - lax.stop_gradient(own)) @ jnp.asarray(basis.matrix, own.dtype)
    columns = jnp.asarray(part @ basis.matrix, own.dtype) + moved
    mapped = Dense(matrix.at[:, basis.columns].set(columns))
    return Centred(mapped, problem.design.shares) if problem.intercept else mapped
