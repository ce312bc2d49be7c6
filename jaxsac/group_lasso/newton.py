"""Newton directions on the support: float32 conjugate gradients for a gradient that was computed in the arrays' own dtype."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac.group_lasso.block_descent import Model
from jaxsac.group_lasso.inverses import inverses
from jaxsac.prox.groups import safe_sqrt

_MAX_CG_STEPS = 30
_CG_TOLERANCE = 3e-2
_LONGEST = 0.7


def compact(model: Model, support: jax.Array) -> Model:
    """The blocks listed in `support` [S] (padded with −1: blocks of zeros), in that order."""
    row = jnp.where(support < 0, model.blocks.shape[0], support)
    return Model(*(array.at[row].get(mode="fill", fill_value=0) for array in model))


def newton_direction(model: Model, coef: jax.Array, descent: jax.Array) -> jax.Array:
    """An approximate solution d of K d = descent on the blocks that are not zero, or have no threshold; 0 on the others.

    K = A A' + blockdiag(threshold_g / ‖b_g‖ (I − u u')), u = b_g / ‖b_g‖: the Hessian of the objective where no group is zero.
    `coef` b [S, q] and `descent` (minus the gradient) [S, q] are in the units of the model; `descent` should be of the order of 1.
    """
    size = coef.shape[1]
    norms = safe_sqrt(jnp.sum(coef * coef, axis=1))
    moving = ((norms > 0) | (model.thresholds == 0)).astype(coef.dtype)[:, None]
    bend = model.thresholds / jnp.where(norms == 0, jnp.inf, norms)
    unit = coef / jnp.where(norms == 0, 1.0, norms)[:, None]

    def curve(v):
        return bend[:, None] * (v - unit * jnp.sum(unit * v, axis=1, keepdims=True))

    def product(v):
        return moving * (flat @ (v.reshape(-1) @ flat)).reshape(v.shape) + curve(v)

    flat = model.blocks.reshape(-1, model.blocks.shape[2])
    identity = jnp.eye(size, dtype=coef.dtype)
    own = model.grams + bend[:, None, None] * (identity[None] - unit[:, :, None] * unit[:, None, :])
    bounded = jnp.trace(own, axis1=1, axis2=2) > 0  # not a padded block
    ridge = 1e-6 * jnp.trace(own, axis1=1, axis2=2) + jnp.where(bounded, 1e-30, 1.0)
    inverse = inverses(own + ridge[:, None, None] * identity[None])

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

    right_side = moving * descent
    first = precondition(right_side)
    left = jnp.sum(right_side * first)
    return lax.while_loop(running, advance, (jnp.zeros_like(right_side), right_side, first, left, left, jnp.int32(0)))[0]


def admissible(coef: jax.Array, direction: jax.Array, thresholds: jax.Array) -> jax.Array:
    """The direction where the penalty is no longer what its second derivative says: a penalised group whose norm would pass zero becomes zero,
    and its turning part is cut to 0.7 ‖b_g‖. Along b_g the penalty is linear: growing needs no limit, or the others would be solved for in vain.
    """
    norms = safe_sqrt(jnp.sum(coef * coef, axis=1))
    penalised = (thresholds > 0) & (norms > 0)
    unit = coef / jnp.where(penalised, norms, 1.0)[:, None]
    growth = jnp.sum(unit * direction, axis=1)
    turn = direction - growth[:, None] * unit
    lengths = safe_sqrt(jnp.sum(turn * turn, axis=1))
    longest = _LONGEST * norms
    keep = jnp.where(lengths > longest, longest / jnp.where(lengths == 0, 1.0, lengths), 1.0)
    inside = growth[:, None] * unit + keep[:, None] * turn
    inside = jnp.where((growth <= -norms)[:, None], -coef, inside)
    return jnp.where(penalised[:, None], inside, direction)
