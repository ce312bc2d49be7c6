"""The derivative of a fixed point, by the implicit function theorem; the policy is kept fixed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac._implicit import implicit
from jaxsac.subsample_q.exact.iteration.fixed_point import FixedPoint, Surrogate
from jaxsac.subsample_q.exact.table import Bounds


def differentiable(
    found: FixedPoint, surrogate_of: Callable[[Any], Surrogate], params: Any
) -> FixedPoint:
    """`found` with its derivative in `params`, of which surrogate_of(params) is the problem."""

    def residual(q, params):
        surrogate = surrogate_of(params)
        return surrogate.q_of(surrogate.value_of(q)) - q

    q = implicit(residual, _krylov, found.q, params, symmetric=False)
    value = surrogate_of(params).value_of(q)
    return found._replace(q=q, value=value, bounds=_moved(found.bounds, value))


def differentiable_average(
    found: FixedPoint, surrogate_of: Callable[[Any], Surrogate], params: Any
) -> FixedPoint:
    """As `differentiable`, of the gain and the relative values: q = r + E[max_a q] − gain with
    max_a q[0, 0, a] = 0.
    """

    def residual(unknown, params):
        q, gain = unknown
        surrogate = surrogate_of(params)
        value = surrogate.value_of(q)
        return surrogate.rewards + surrogate.expect(value) - gain - q, value[0, 0]

    start = (found.q, found.stats["gain"])
    q, gain = implicit(residual, _krylov, start, params, symmetric=False)
    value = surrogate_of(params).value_of(q)
    return FixedPoint(
        q, value, _moved(found.bounds, gain), found.status, found.stats | {"gain": gain}
    )


def _moved(bounds: Bounds, by: jax.Array) -> Bounds:
    """The bounds, with the derivative of what they bound."""
    zero = by - lax.stop_gradient(by)
    return Bounds(bounds.lower + zero, bounds.upper + zero)


def _krylov(matvec: Callable[[Any], Any], right_side: Any) -> Any:
    """Solve the linearised fixed-point equation, (discount P_π − I) x = right side, to 1,000 ulp of
    the right side.
    """
    eps = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(right_side))).eps)
    return jax.scipy.sparse.linalg.gmres(
        matvec, right_side, tol=1e3 * eps, atol=0.0, restart=20, maxiter=100, solve_method="batched"
    )[0]
