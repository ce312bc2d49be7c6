"""Newton directions on the support: float32 conjugate gradients for a gradient that was computed in the arrays' own dtype."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac.group_lasso.block_descent import Model
from jaxsac.prox.groups import safe_sqrt

_MAX_CG_STEPS = 30
_CG_TOLERANCE = 1e-2
_LONGEST = 0.7  # of a group's own norm: beyond it the penalty is no longer what its second derivative says


def newton_direction(model: Model, coef: jax.Array, descent: jax.Array, support: jax.Array) -> jax.Array:
    """An approximate solution d of K d = descent on the blocks listed in `support` [S] (padded with −1), in their layout [C, q].

    K = A A' + blockdiag(threshold_g / ‖b_g‖ (I − u u')), u = b_g / ‖b_g‖: the Hessian of the objective where no group is zero.
    `coef` b [C, q] and `descent` (minus the gradient) [C, q] are in the units of the model; `descent` should be of the order of 1.
    """
    num_blocks, size, _ = model.blocks.shape
    row = jnp.where(support < 0, num_blocks, support)

    def part(array, fill=0.0):
        return array.at[row].get(mode="fill", fill_value=fill)

    blocks, coef_, right_side = part(model.blocks), part(coef), part(descent)
    norms = safe_sqrt(jnp.sum(coef_ * coef_, axis=1))
    bend = part(model.thresholds) / jnp.where(norms == 0, jnp.inf, norms)
    unit = coef_ / jnp.where(norms == 0, 1.0, norms)[:, None]

    def curve(v):
        return bend[:, None] * (v - unit * jnp.sum(unit * v, axis=1, keepdims=True))

    def product(v):
        return (flat @ (v.reshape(-1) @ flat)).reshape(v.shape) + curve(v)

    flat = blocks.reshape(-1, blocks.shape[2])
    identity = jnp.eye(size, dtype=blocks.dtype)
    own = part(model.grams) + bend[:, None, None] * (identity[None] - unit[:, :, None] * unit[:, None, :])
    ridge = 1e-6 * jnp.trace(own, axis1=1, axis2=2) + jnp.where(support < 0, 1.0, 1e-30)
    factor = jnp.linalg.cholesky(own + ridge[:, None, None] * identity[None])
    inverse = jax.scipy.linalg.cho_solve((factor, True), jnp.broadcast_to(identity[None], own.shape))

    def precondition(v):
        return jnp.einsum("gab,gb->ga", inverse, v)

    def running(carry):
        _, _, _, left, start, steps = carry
        return (left > _CG_TOLERANCE**2 * start) & (steps < _MAX_CG_STEPS)

    def advance(carry):
        x, residual, direction, left, start, steps = carry
        image = product(direction)
        curvature = jnp.sum(direction * image)
        length = jnp.where(curvature > 0, left / jnp.where(curvature > 0, curvature, 1.0), 0.0)
        x, residual = x + length * direction, residual - length * image
        solved = precondition(residual)
        new = jnp.sum(residual * solved)
        return x, residual, solved + new / left * direction, new, start, jnp.where(curvature > 0, steps + 1, _MAX_CG_STEPS)

    first = precondition(right_side)
    left = jnp.sum(right_side * first)
    d = lax.while_loop(running, advance, (jnp.zeros_like(right_side), right_side, first, left, left, jnp.int32(0)))[0]
    return jnp.zeros_like(coef).at[row].set(d, mode="drop")


def shorten(coef: jax.Array, direction: jax.Array, thresholds: jax.Array) -> jax.Array:
    """The direction with every penalised group's part cut to 0.7 ‖b_g‖."""
    norms, lengths = (safe_sqrt(jnp.sum(v * v, axis=1)) for v in (coef, direction))
    longest = jnp.where(thresholds > 0, _LONGEST * norms, jnp.inf)
    keep = jnp.where(lengths > longest, longest / jnp.where(lengths == 0, 1.0, lengths), 1.0)
    return keep[:, None] * direction
