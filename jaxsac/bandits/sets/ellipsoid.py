"""The ellipsoid {x : x'Ax ≤ 1}, with greedy selection by a growing Cholesky factor."""

import abc
import math
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks, _linear, _loops
from jaxsac._arguments import arguments, real
from jaxsac.bandits.sets.action_set import (
    FINITE,
    ActionSet,
    Selection,
    like,
    masked,
    no_choice,
    pick,
    root,
)

_MAX_BLOCKS = 2000


class Quadratic(ActionSet):
    """A set with f(S)² = ⟨theta_S, u⟩, attained at u / f(S): a set defines `_solve(theta, mask)`,
    theta on the mask and u [d].
    """

    def support(self, theta, mask=None):
        theta, solved = self._solve(theta, mask)
        return root(jnp.sum(theta * solved))

    def argmax(self, theta, mask=None):
        theta, solved = self._solve(theta, mask)
        value = root(jnp.sum(theta * solved))
        return solved / jnp.where(value > 0, value, 1.0)

    @abc.abstractmethod
    def _solve(self, theta, mask) -> tuple[jax.Array, jax.Array]:
        """Theta on the mask, and u."""


class Ellipsoid(Quadratic):
    """{x : x'Ax ≤ 1} for a symmetric positive definite `matrix` A [d, d]: f(S) = √(theta_S'
    (A_SS)⁻¹ theta_S).

    Attained at (A_SS)⁻¹ theta_S / f(S). If the set is given as x'C⁻¹x ≤ 1, pass the inverse of C; a
    block of the inverse is not the inverse of the block. Greedy reaches at least 1 − exp(−least
    eigenvalue) of the best f when A has a unit diagonal, usually far more, and is not optimal in
    general.

    Source: arXiv 2605.10151, Section 4 and Appendix C.
    """

    matrix: jax.Array  # [d, d]

    strongly_convex = quadratic = True

    @arguments(matrix=real("d", "d", **FINITE))
    def __init__(self, matrix: jax.Array):
        if _checks.is_concrete(matrix):
            values = np.asarray(matrix, np.float64)
            rounding = 1e-6 * np.max(np.abs(values), initial=0.0)
            _checks.require(
                np.allclose(values, values.T, rtol=1e-5, atol=rounding, equal_nan=True),
                "matrix must be symmetric: pass (A + A.T) / 2.",
            )
            definite = bool(np.all(np.isfinite(values))) and np.linalg.eigvalsh(values)[0] > 0
            _checks.require(
                definite,
                "matrix must be positive definite, or the set is unbounded: add a multiple of the"
                " identity.",
            )
        self.matrix = matrix

    @property
    def dimension(self):
        return self.matrix.shape[0]

    def _solve(self, theta, mask):
        """theta on the mask and (A_SS)⁻¹ theta_S, zero off S."""
        theta, matrix = masked(theta, mask), like(self.matrix, theta)
        if mask is not None:
            matrix = jnp.where(
                mask[:, None] & mask[None, :], matrix, jnp.eye(theta.shape[0], dtype=theta.dtype)
            )
        return theta, jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix), True), theta)

    def gauge(self, x):
        image = jnp.matmul(like(self.matrix, x), x, precision="highest")
        return root(jnp.matmul(x, image, precision="highest"))

    def norm_bound(self, sparsity, dimension):
        """1 / √(least eigenvalue of the s x s blocks)."""
        return 1.0 / jnp.sqrt(_least_eigenvalue(self.matrix, sparsity))

    def ratio_bound(self, sparsity, dimension):
        """The least eigenvalue of the blocks of 2 s coordinates of A scaled to a unit diagonal
        (equation C.5; Das and Kempe 2011, lemma 13).
        """
        scale = jnp.sqrt(jnp.diag(self.matrix))
        scaled = self.matrix / (scale[:, None] * scale[None, :])
        return _least_eigenvalue(scaled, min(2 * sparsity, dimension))

    def action_slope(self, dimension):
        values = jnp.linalg.eigvalsh(self.matrix)
        return jnp.sqrt(values[-1]) / values[0]

    def reach(self, dimension, dtype):
        return 1.0 / jnp.sqrt(jnp.diag(self.matrix)).astype(dtype)

    def restrict(self, indices, dimension):
        kept = indices >= 0
        block = jnp.where(
            kept[:, None] & kept[None, :],
            self.matrix[indices[:, None], indices[None, :]],
            jnp.eye(len(indices), dtype=self.matrix.dtype),
        )
        return EllipsoidSlice(_linear.inverse(block))

    def greedy(self, theta, sparsity, mask=None):
        """Greedy in O(d s²) time and O(d s) memory.

        With L the Cholesky factor of A_SS and W = A[:, S] L⁻ᵀ, adding i raises f² by r_i² / v_i,
        where r = theta − W L⁻¹ theta_S and v = diag(A) − rowwise ‖W‖²: the steps of forward
        orthogonal matching pursuit.
        """
        dimension = theta.shape[0]
        matrix = like(self.matrix, theta)
        available = jnp.ones(dimension, bool) if mask is None else mask
        diagonal = jnp.diag(matrix)
        floor = diagonal * (dimension * jnp.finfo(theta.dtype).eps)

        def step(k, carry):
            columns, residual, variance, total, indices, chosen, gap = carry
            safe = jnp.maximum(variance, floor)
            totals = total + residual**2 / safe
            best, lead, left = pick(root(totals), available & ~chosen)
            scale = jnp.where(left, 1.0 / jnp.sqrt(safe[best]), 0.0)
            column = (matrix[best] - jnp.sum(columns * columns[:, best][:, None], axis=0)) * scale
            total = jnp.where(left, totals[best], total)
            residual = residual - column * (residual[best] * scale)
            columns = lax.dynamic_update_index_in_dim(columns, column, k, 0)
            chosen = chosen | (left & (jnp.arange(dimension, dtype=jnp.int32) == best))
            return (
                columns,
                residual,
                variance - column**2,
                total,
                indices.at[k].set(best),
                chosen,
                jnp.where(gap <= lead, gap, lead),
            )

        zero = jnp.zeros((), theta.dtype)
        start = (jnp.zeros((sparsity, dimension), theta.dtype), theta, diagonal, zero)
        start += (*no_choice(sparsity, dimension), zero + jnp.inf)
        _, _, _, total, indices, chosen, gap = _loops.fori_loop(0, sparsity, step, start)
        return Selection(indices, chosen, root(total), gap)


def _least_eigenvalue(matrix: jax.Array, size: int) -> jax.Array:
    """Over the blocks of `size` coordinates where there are few enough to visit, and of the whole
    matrix (smaller) otherwise.
    """
    dimension = matrix.shape[0]
    if math.comb(dimension, size) > _MAX_BLOCKS:
        return jnp.linalg.eigvalsh(matrix)[0]
    blocks = jnp.asarray(list(combinations(range(dimension), size)))
    return jnp.min(jnp.linalg.eigvalsh(matrix[blocks[:, :, None], blocks[:, None, :]]))


class EllipsoidSlice(Quadratic):
    """An ellipsoid in R^s by the `inverse` [s, s] of its matrix, factored once and used every
    cycle. A mask may leave out the coordinates −1 of `restrict` alone.
    """

    inverse: jax.Array

    def _solve(self, theta, mask):
        theta = masked(theta, mask)
        return theta, jnp.matmul(like(self.inverse, theta), theta, precision="highest")
