"""A Newton step on the support, on the quadratic model in float32: its direction by conjugate
gradients, its length by the model.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac._linear import inverses
from jaxsac.group_lasso.model.descent import Model, change
from jaxsac.group_lasso.model.quadratic import LENGTHS, namespace
from jaxsac.prox.groups import safe_sqrt

MAX_CG_STEPS = 30
CG_TOLERANCE = 3e-2  # of the residual that a direction leaves
_LONGEST = 0.7
_NOISE = 1.0  # multiples of eps times the objective that a difference of objectives may be off


def descent_direction(few: Model, coef: Any, residual: Any) -> Any:
    """Minus the least subgradient of the model [S, q]: at a penalised block of zeros, what of its
    gradient is beyond its threshold.
    """
    xp = namespace(coef)
    pulled = (few.blocks.reshape(-1, few.blocks.shape[2]) @ residual).reshape(coef.shape)
    held = xp.sum(coef * coef, axis=1) > 0
    # Where nothing pulls back the penalty resists the pull itself, up to its threshold.
    against = xp.where(held[:, None], coef, pulled)
    length = xp.sqrt(xp.sum(against * against, axis=1))
    most = xp.where(held, few.thresholds, xp.minimum(few.thresholds, length))
    return pulled - (most / xp.where(length == 0, 1.0, length))[:, None] * against


def newton_step(
    few: Model, coef: jax.Array, residual: jax.Array, tolerance: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Coefficients [S, q] and residual [T] after a step of the best of a few lengths: the longest
    of those that rounding cannot tell from the best. `tolerance`: of the residual of the Newton
    equations, as much may be left; inf takes no step.

    Far below the rounding of the objective a step still improves the gradient, on which the
    certificate depends to the first order.
    """
    descent = descent_direction(few, coef, residual)
    largest = jnp.max(jnp.abs(descent))
    largest = jnp.where(largest > 0, largest, 1.0)
    direction = admissible(
        coef, largest * newton_direction(few, coef, descent / largest, tolerance), few.thresholds
    )
    direction = jnp.where(jnp.all(jnp.isfinite(direction)), direction, 0.0)
    moved = direction.reshape(-1) @ few.blocks.reshape(-1, few.blocks.shape[2])

    def end(length):
        return coef + length * direction, residual - length * moved

    lengths = jnp.asarray(LENGTHS, coef.dtype)
    changes = jax.vmap(lambda length: change(few, coef, residual, *end(length)))(lengths)
    changes = jnp.where(jnp.isnan(changes), jnp.inf, changes)
    value = 0.5 * jnp.sum(residual**2) + jnp.sum(
        few.thresholds * safe_sqrt(jnp.sum(coef * coef, axis=1))
    )
    length = lengths[
        jnp.argmax(changes <= jnp.min(changes) + _NOISE * jnp.finfo(coef.dtype).eps * value)
    ]
    return end(length)


def newton_direction(
    model: Model, coef: jax.Array, descent: jax.Array, tolerance: Any = CG_TOLERANCE
) -> jax.Array:
    """An approximate solution d of K d = descent on the blocks that are not zero, or have no
    threshold; 0 on the others.

    K = A A' + blockdiag(threshold_g / ‖b_g‖ (I − u u')), u = b_g / ‖b_g‖: the Hessian of the
    objective where no group is zero. `coef` b [S, q] and `descent` (minus the gradient) [S, q] are
    in the units of the model; `descent` should be of the order of 1.
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
        return (left > tolerance**2 * start) & (steps < MAX_CG_STEPS)

    def advance(carry):
        x, residual, direction, left, start, steps = carry
        image = product(direction)
        curvature = jnp.sum(direction * image)
        length = jnp.where(curvature > 0, left / jnp.where(curvature > 0, curvature, 1.0), 0.0)
        x, residual = x + length * direction, residual - length * image
        solved = precondition(residual)
        new = jnp.sum(residual * solved)
        return (
            x,
            residual,
            solved + new / left * direction,
            new,
            start,
            jnp.where(curvature > 0, steps + 1, MAX_CG_STEPS),
        )

    right_side = moving * descent
    first = precondition(right_side)
    left = jnp.sum(right_side * first)
    return _loops.while_loop(
        running, advance, (jnp.zeros_like(right_side), right_side, first, left, left, jnp.int32(0))
    )[0]


def admissible(coef: Any, direction: Any, thresholds: Any) -> Any:
    """The direction where the penalty is no longer what its second derivative says: a penalised
    group whose norm would pass zero becomes zero, and its turning part is cut to 0.7 ‖b_g‖. Along
    b_g the penalty is linear: growing needs no limit, or the others would be solved for in vain.
    """
    xp = namespace(coef)
    norms = xp.sqrt(xp.sum(coef * coef, axis=1))
    penalised = (thresholds > 0) & (norms > 0)
    unit = coef / xp.where(penalised, norms, 1.0)[:, None]
    growth = xp.sum(unit * direction, axis=1)
    turn = direction - growth[:, None] * unit
    lengths = xp.sqrt(xp.sum(turn * turn, axis=1))
    longest = _LONGEST * norms
    keep = xp.where(lengths > longest, longest / xp.where(lengths == 0, 1.0, lengths), 1.0)
    inside = growth[:, None] * unit + keep[:, None] * turn
    inside = xp.where((growth <= -norms)[:, None], -coef, inside)
    return xp.where(penalised[:, None], inside, direction)
