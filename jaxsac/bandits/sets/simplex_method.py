"""The simplex method on a dense tableau, for tens of variables, with a check of its answer."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops
from jaxsac.bandits.sets.action_set import largest


def linear_program(
    cost: jax.Array, rows: jax.Array, right: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Maximise ⟨cost, x⟩ subject to rows x = right ≥ 0 and x ≥ 0, for rows of entries of about 1.

    Returns x [n], whether any x is feasible, and whether x is certain: solved anew for its basis,
    it meets the rows, no variable is negative, no reduced cost is positive and the dual value is
    the same, within some roundings of the largest numbers. x is differentiable; the basis, chosen
    by order, is a constant.
    """
    (number, variables), dtype = rows.shape, rows.dtype
    tol = float(jnp.finfo(dtype).eps) ** 0.75
    data = jnp.concatenate([rows, jnp.eye(number, dtype=dtype)], axis=1)  # artificial ones last
    real = jnp.arange(variables + number) < variables
    price = jnp.where(real, jnp.pad(cost, (0, number)), 0.0)
    basis = _optimal_basis(*lax.stop_gradient((price, data, right)), tol)
    chosen = data[:, basis]
    point = jnp.linalg.solve(chosen, right)
    dual = jnp.linalg.solve(chosen.T, price[basis])
    x = jnp.zeros(variables + number, dtype).at[basis].set(point)

    size, worth = jnp.maximum(largest(point), largest(right)), largest(price)
    residual = jnp.abs(jnp.matmul(data, x, precision="highest") - right)
    gain = jnp.where(real, price - jnp.matmul(dual, data, precision="highest"), 0.0)
    gap = jnp.abs(jnp.sum(price[basis] * point) - jnp.sum(dual * right))
    left = jnp.max(jnp.where(real, 0.0, jnp.abs(x))) / size
    errors = [jnp.max(residual) / size, jnp.max(-x) / size, jnp.max(gain) / worth]
    error = jnp.max(jnp.stack([*errors, gap / (size * worth), left]))
    return x[:variables], ~(left > 16.0 * tol), error <= 16.0 * tol


def _optimal_basis(price: jax.Array, data: jax.Array, right: jax.Array, tol: float) -> jax.Array:
    """The basic variables [m] of an optimal vertex, in two phases, each of which starts once more
    from a fresh tableau when it believes that it has ended.

    The variable of largest reduced cost enters. Of the rows that may leave within the tolerance
    (Harris' ratio test) the one of largest pivot does, so that none pivots on rounding; after many
    steps, Bland's rule, which cannot cycle.
    """
    number, total = data.shape
    real, firm = jnp.arange(total) < total - number, float(jnp.finfo(data.dtype).eps) ** 0.5
    table = jnp.concatenate([data, (right / largest(right))[:, None]], axis=1)
    limit = 20 * total

    def gains(price, body, basis):
        return jnp.where(real, price - jnp.matmul(price[basis], body, precision="highest"), 0.0)

    def pivot(price, carry):
        body, basis, step = carry
        late = step > limit // 2
        gain = gains(price, body[:, :-1], basis)
        column = jnp.where(late, jnp.argmax(gain > tol), jnp.argmax(gain)).astype(jnp.int32)
        entry, held = body[:, column], jnp.maximum(body[:, -1], 0.0)
        up = entry > firm
        divisor = jnp.where(up, entry, 1.0)
        most = jnp.min(jnp.where(up, (held + tol) / divisor, jnp.inf))
        # An artificial variable that is still basic at zero leaves first, whatever the sign of its
        # entry, and never grows again.
        stuck = ~real[basis] & (jnp.abs(entry) > firm) & (held <= tol)
        may = jnp.where(jnp.any(stuck), stuck, up & (held / divisor <= most))
        order = jnp.where(late, -basis.astype(body.dtype), jnp.abs(entry))
        row = jnp.argmax(jnp.where(may, order, -jnp.inf))
        pivoted = body[row] / body[row, column]
        body = (body - entry[:, None] * pivoted[None, :]).at[row].set(pivoted)
        bounded = jnp.any(may)
        return body, basis.at[row].set(column), jnp.where(bounded, step + 1, limit)

    def improve(price, basis):
        return _loops.while_loop(
            lambda carry: (
                jnp.any(gains(price, carry[0][:, :-1], carry[1]) > tol) & (carry[2] < limit)
            ),
            lambda carry: pivot(price, carry),
            (jnp.linalg.solve(data[:, basis], table), basis, jnp.int32(0)),
        )[1]

    basis = jnp.arange(total - number, total, dtype=jnp.int32)
    phases = jnp.stack([jnp.where(real, 0.0, -1.0).astype(data.dtype), price / largest(price)])
    order = jnp.array([0, 0, 1, 1], jnp.int32)
    return _loops.fori_loop(0, 4, lambda i, basis: improve(phases[order[i]], basis), basis)
