"""A polytope by its vertices or by inequalities: every answer is a small linear program."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks
from jaxsac._arguments import arguments, parts, real
from jaxsac.bandits.sets.action_set import FINITE, ActionSet, largest, like, masked
from jaxsac.bandits.sets.simplex_method import linear_program


class Polytope(ActionSet):
    """The convex hull of `vertices` [n, d], or {x : A x ≤ b} for `inequalities` = (A [n, d], b
    [n], ≥ 0); it must be bounded and hold the origin.

    f(S) = max ⟨theta, x⟩ subject to x ∈ X and x = 0 off S, a linear program, whose answer is
    checked: NaN where rounding leaves none, or where the set is unbounded. No approximation factor
    is promised for greedy: there are polytopes with submodularity ratio 0 (see
    `submodularity_ratio`).

    Raises: ValueError for a concrete set that is unbounded or without the origin.
    """

    vertices: jax.Array | None  # [n, d]
    inequalities: tuple[jax.Array, jax.Array] | None  # A [n, d], b [n]

    @arguments(
        vertices=real("n", "d", **FINITE),
        inequalities=parts(A=real("n", "d", **FINITE), b=real("n", low=0, below=float("inf"))),
    )
    def __init__(
        self,
        vertices: jax.Array | None = None,
        *,
        inequalities: tuple[jax.Array, jax.Array] | None = None,
    ):
        _checks.require(
            (vertices is None) != (inequalities is None),
            "Polytope takes either vertices or inequalities=(A, b).",
        )
        self.vertices, self.inequalities = vertices, inequalities
        if not _checks.is_concrete(vertices, inequalities):
            return
        if vertices is None:
            assert inequalities is not None
            normals = inequalities[0]
            found = self.reach(normals.shape[1], normals.dtype)
            advice = "inequalities must bound the set: add -r <= x_i <= r for a large r."
        else:
            zero = jnp.zeros(vertices.shape[1], vertices.dtype)
            found = self.support(zero, zero > 0)  # with no coordinate allowed, only x = 0 is left
            advice = "the convex hull of vertices must contain the origin: add it, or shift them."
        _checks.require_known(np.isfinite, advice, found)  # inside jax.jit it is traced

    @property
    def dimension(self):
        matrix = self.inequalities[0] if self.vertices is None else self.vertices  # pyright: ignore[reportOptionalSubscript]
        return matrix.shape[1]

    def support(self, theta, mask=None):
        return jnp.sum(masked(theta, mask) * self._best(theta, mask))

    def argmax(self, theta, mask=None):
        theta = masked(theta, mask)
        return jnp.where(jnp.all(theta == 0), 0.0, self._best(theta, mask))

    def _best(self, theta, mask):
        """An optimal action [d]; NaN where none is certain."""
        keep = jnp.ones(theta.shape, bool) if mask is None else mask
        theta = masked(theta, mask)
        if self.vertices is None:
            return jnp.where(keep, self._within_inequalities(theta, keep), 0.0)
        # Weights of the vertices, whose mean vanishes off the mask.
        vertices = like(self.vertices, theta)
        within = jnp.where(keep[None], 0.0, vertices / largest(vertices, 0)[None])
        rows = jnp.concatenate([within.T, jnp.ones((1, len(vertices)), theta.dtype)])
        right = jnp.zeros(len(rows), theta.dtype).at[-1].set(1.0)
        cost = jnp.matmul(vertices, theta, precision="highest")
        weights, _, certain = linear_program(cost, rows, right)
        action = jnp.matmul(weights, vertices, precision="highest")
        return jnp.where(keep, action, 0.0) * jnp.where(certain, 1.0, jnp.nan)

    def _within_inequalities(self, theta, keep):
        """x = plus − minus and a slack for each row, with rows and columns scaled so that units do
        not matter.
        """
        assert self.inequalities is not None
        normals, bounds = (like(each, theta) for each in self.inequalities)
        normals, away = jnp.where(keep[None], normals, 0.0), lax.stop_gradient(bounds > 0)
        tall = lax.stop_gradient(jnp.where(away, bounds, largest(normals, 1)))
        rows, right = normals / tall[:, None], bounds / tall
        # Of the two ways along an axis the longer one: a row near the origin cuts one of them.
        far = jnp.where(away[:, None], rows, 0.0)
        ways = jnp.stack([jnp.maximum(far, 0.0), jnp.maximum(-far, 0.0)])
        wide = jnp.min(largest(ways, 1), axis=0)
        rows = rows / wide[None]
        tall = jnp.where(away, jnp.maximum(largest(rows, 1), 1.0), largest(rows, 1))
        rows = rows / tall[:, None]
        cost = theta / wide
        point, _, certain = linear_program(
            jnp.concatenate([cost, -cost, jnp.zeros_like(bounds)]),
            jnp.concatenate([rows, -rows, jnp.eye(len(rows), dtype=theta.dtype)], axis=1),
            right / tall,
        )
        plus, minus, _ = jnp.split(point, [len(cost), 2 * len(cost)])
        return (plus - minus) / wide * jnp.where(certain, 1.0, jnp.nan)

    def gauge(self, x):
        if self.vertices is None:
            assert self.inequalities is not None
            normals, bounds = (like(each, x) for each in self.inequalities)
            along = jnp.matmul(normals, x, precision="highest")
            ratio = jnp.where(
                bounds > 0,
                along / jnp.where(bounds > 0, bounds, 1.0),
                jnp.where(along > 0, jnp.inf, 0.0 * along),
            )
            largest_ratio = ratio[jnp.argmax(ratio)]
            return jnp.where(largest_ratio <= 0, 0.0, largest_ratio)
        vertices = like(self.vertices, x)
        sign = jnp.where(x < 0, -1.0, 1.0).astype(x.dtype)
        scale = sign / largest(vertices, 0)
        weights, feasible, certain = linear_program(
            -jnp.ones(len(vertices), x.dtype), (vertices * scale[None]).T, x * scale
        )
        return jnp.where(feasible, jnp.sum(weights) * jnp.where(certain, 1.0, jnp.nan), jnp.inf)

    def norm_bound(self, sparsity, dimension):
        """The largest vertex norm, or the norm of the s widest sides of the bounding box."""
        if self.vertices is not None:
            return jnp.max(jnp.linalg.norm(self.vertices, axis=1))
        axes = jnp.eye(dimension, dtype=self.inequalities[0].dtype)  # pyright: ignore[reportOptionalSubscript]
        width = jax.vmap(lambda axis: jnp.maximum(self.support(axis), self.support(-axis)))(axes)
        return jnp.sqrt(jnp.sum(lax.top_k(width, sparsity)[0] ** 2))
