"""A polytope by its vertices or by inequalities: every answer is a small linear program, solved by
the simplex method.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks, _loops
from jaxsac.bandits.sets.action_set import ActionSet, like


class Polytope(ActionSet):
    """The convex hull of `vertices` [n, d], or {x : A x ≤ b} for `inequalities` = (A [n, d], b
    [n]); it must be bounded and hold the origin.

    f(S) = max ⟨theta, x⟩ subject to x ∈ X and x = 0 off S, a linear program. No approximation
    factor is promised for greedy: there are polytopes with submodularity ratio 0 (see
    `submodularity_ratio`).
    """

    vertices: jax.Array | None  # [n, d]
    inequalities: tuple[jax.Array, jax.Array] | None  # A [n, d], b [n]

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
        self.vertices = None if vertices is None else jnp.asarray(vertices)
        self.inequalities = (
            None
            if inequalities is None
            else (jnp.asarray(inequalities[0]), jnp.asarray(inequalities[1]))
        )
        if self.vertices is not None:
            _checks.require(
                self.vertices.ndim == 2,
                f"vertices must have shape [number, dimension], got {list(self.vertices.shape)}.",
            )
            if _checks.is_concrete(self.vertices):
                zero = jnp.zeros(self.vertices.shape[1], self.vertices.dtype)
                holds = self._program(zero, zero > 0)[
                    2
                ]  # with no coordinate allowed, only x = 0 is feasible
                _checks.require(
                    bool(holds),
                    "the convex hull of vertices must contain the origin: add it, or shift them.",
                )
        else:
            normals, bounds = self.inequalities  # pyright: ignore[reportGeneralTypeIssues]
            _checks.require(
                normals.ndim == 2 and bounds.shape == normals.shape[:1],
                "inequalities must be (A [number, dimension], b [number]).",
            )
            if _checks.is_concrete(bounds):
                _checks.require(
                    bool(np.all(np.asarray(bounds) >= 0)),
                    "inequalities need b >= 0, so that the origin is an action: shift the set.",
                )

    def _program(self, theta, mask):
        """Solve for x = plus - minus (vertices: tied to the weights) and return (x, value, whether
        it is feasible and bounded).
        """
        dimension = theta.shape[0]
        keep = jnp.ones(dimension, bool) if mask is None else mask
        identity = jnp.eye(dimension, dtype=theta.dtype)
        if self.inequalities is not None:
            normals, bounds = like(self.inequalities[0], theta), like(self.inequalities[1], theta)
            number = bounds.shape[0]
            rows = jnp.concatenate([normals, -normals, jnp.eye(number, dtype=theta.dtype)], axis=1)
            right, rest = bounds, number
        else:
            vertices = like(self.vertices, theta)
            number = vertices.shape[0]
            balance = jnp.concatenate([-identity, identity, vertices.T], axis=1)
            total = jnp.concatenate(
                [jnp.zeros((1, 2 * dimension), theta.dtype), jnp.ones((1, number), theta.dtype)],
                axis=1,
            )
            rows, rest = jnp.concatenate([balance, total]), number
            right = jnp.zeros(dimension + 1, theta.dtype).at[-1].set(1.0)
        cost = jnp.concatenate([theta, -theta, jnp.zeros(rest, theta.dtype)])
        allowed = jnp.concatenate([keep, keep, jnp.ones(rest, bool)])
        point, solved = linear_program(cost, rows, right, allowed)
        action = point[:dimension] - point[dimension : 2 * dimension]
        return action, jnp.sum(theta * action), solved

    def support(self, theta, mask=None):
        action, _, solved = self._program(lax.stop_gradient(theta), mask)
        value = jnp.sum(
            theta * lax.stop_gradient(action)
        )  # the theorem of Danskin gives the derivative in theta
        return jnp.where(solved, jnp.maximum(value, 0.0), jnp.nan)

    def argmax(self, theta, mask=None):
        action, _, solved = self._program(lax.stop_gradient(theta), mask)
        action = jnp.where(
            jnp.any((theta if mask is None else jnp.where(mask, theta, 0.0)) != 0), action, 0.0
        )
        return jnp.where(solved, action, jnp.nan)

    def gauge(self, x):
        if self.inequalities is not None:
            normals, bounds = like(self.inequalities[0], x), like(self.inequalities[1], x)
            along = jnp.matmul(normals, x, precision="highest")
            ratio = jnp.where(
                bounds > 0,
                along / jnp.where(bounds > 0, bounds, 1.0),
                jnp.where(along > 0, jnp.inf, 0.0),
            )
            return jnp.maximum(jnp.max(ratio), 0.0)
        vertices = like(self.vertices, x)
        number = vertices.shape[0]
        sign = jnp.where(x < 0, -1.0, 1.0).astype(x.dtype)
        weights, solved = linear_program(
            -jnp.ones(number, x.dtype), sign[:, None] * vertices.T, sign * x, jnp.ones(number, bool)
        )
        return jnp.where(solved, jnp.sum(weights), jnp.inf)

    def norm_bound(self, sparsity, dimension):
        """The largest vertex norm, or the norm of the s widest sides of the bounding box."""
        if self.inequalities is None:
            return jnp.max(jnp.linalg.norm(self.vertices, axis=1))  # pyright: ignore[reportArgumentType]
        axes = jnp.eye(dimension, dtype=self.inequalities[0].dtype)
        width = jax.vmap(lambda axis: jnp.maximum(self.support(axis), self.support(-axis)))(axes)
        return jnp.sqrt(jnp.sum(lax.top_k(width, sparsity)[0] ** 2))


@jax.jit
def linear_program(
    cost: jax.Array, rows: jax.Array, right: jax.Array, allowed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Maximise ⟨cost, x⟩ subject to rows x = right ≥ 0, x ≥ 0 and x = 0 where not allowed: x [n]
    and whether an optimum was found.

    The simplex method on a dense tableau in two phases with Bland's rule, which cannot cycle; meant
    for tens of variables.
    """
    number, variables = rows.shape
    tol = 100.0 * float(jnp.finfo(rows.dtype).eps) * jnp.maximum(jnp.max(jnp.abs(rows)), 1.0)
    body = jnp.concatenate([rows, jnp.eye(number, dtype=rows.dtype), right[:, None]], axis=1)
    basis = jnp.arange(variables, variables + number)
    artificial = jnp.concatenate([jnp.zeros(variables, bool), jnp.ones(number, bool)])
    entering = jnp.concatenate([allowed, jnp.zeros(number, bool)])

    def run(body, basis, price):
        def reduced(carry):
            body, basis, _ = carry
            gain = price - jnp.sum(price[basis][:, None] * body[:, :-1], axis=0)
            return jnp.where(entering, gain, 0.0)

        def pivot(carry):
            body, basis, steps = carry
            column = jnp.argmax(reduced(carry) > tol)
            entry = body[:, column]
            # An artificial variable that is still basic at zero leaves first, whatever the sign of
            # its entry, and never grows again.
            stuck = (basis >= variables) & (jnp.abs(entry) > tol) & (body[:, -1] <= tol)
            ratio = jnp.where(
                entry > tol, body[:, -1] / jnp.where(entry > tol, entry, 1.0), jnp.inf
            )
            ratio = jnp.where(stuck, 0.0, jnp.maximum(ratio, 0.0))
            least = jnp.min(ratio)
            row = jnp.argmin(
                jnp.where(
                    ratio <= least + tol * (1.0 + jnp.abs(least)), basis, variables + number + 1
                )
            )
            pivoted = body[row] / body[row, column]
            body = body - body[:, column][:, None] * pivoted[None, :]
            body = body.at[row].set(pivoted)
            unbounded = jnp.isinf(least)
            return body, basis.at[row].set(column), jnp.where(unbounded, limit + 1, steps + 1)

        limit = 50 * (number + variables)
        return _loops.while_loop(
            lambda carry: jnp.any(reduced(carry) > tol) & (carry[2] < limit),
            pivot,
            (body, basis, jnp.int32(0)),
        )

    body, basis, first = run(body, basis, -artificial.astype(rows.dtype))
    leftover = jnp.sum(jnp.where(basis >= variables, body[:, -1], 0.0))
    feasible = jnp.abs(leftover) <= tol * (1.0 + jnp.sum(right)) * 10.0
    price = jnp.concatenate([cost, jnp.zeros(number, cost.dtype)])
    body, basis, second = run(body, basis, price)
    point = jnp.zeros(variables + number, rows.dtype).at[basis].set(jnp.maximum(body[:, -1], 0.0))
    limit = 50 * (number + variables)
    return point[:variables], feasible & (first < limit) & (second < limit)
