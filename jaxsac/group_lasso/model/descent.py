"""Float32 block coordinate descent on a quadratic model, with Anderson extrapolation: the cheap
part of the working-set method.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops
from jaxsac._linear import inverse
from jaxsac.group_lasso.model.quadratic import namespace
from jaxsac.prox.groups import safe_sqrt

_EPOCHS = 5  # of a cycle: as many differences enter the extrapolation
_SQUARINGS = 6
_SMALL = 16  # columns of a group


class Model(NamedTuple):
    """½ ‖r − Σ_g A_g' d_g‖² + Σ_g threshold_g ‖b_g + d_g‖ over a working set of C blocks of q
    columns; a padded block is zero.

    `blocks` A [C, q, T], `grams` A_g A_g' [C, q, q], `bounds` on their largest eigenvalues [C],
    `thresholds` [C].
    """

    blocks: Any
    grams: Any
    bounds: Any
    thresholds: Any


def gram_matrices(blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A_g A_g' [C, q, q] and bounds on their eigenvalues, of many problems at once too."""
    grams = jnp.einsum("gat,gbt->gab", blocks, blocks, precision="highest")
    return grams, eigenvalue_bounds(grams)


def eigenvalue_bounds(grams: Any) -> Any:
    """An upper bound of the largest eigenvalue of each H_g [C, q, q], (tr H^64)^(1/64), at most
    q^(1/64) too large; of NumPy arrays too.
    """
    xp = namespace(grams)
    power, log_bound = grams, xp.zeros(len(grams), grams.dtype)
    for k in range(_SQUARINGS + 1):
        trace = xp.einsum("gaa->g", power)
        trace = xp.where(trace > 0, trace, 1)
        log_bound = log_bound + xp.log(trace) / 2**k
        power = _squares(power / trace[:, None, None]) if k < _SQUARINGS else power
    return xp.where(xp.einsum("gaa->g", grams) > 0, xp.exp(log_bound), 0).astype(grams.dtype)


def _squares(matrices: Any) -> Any:
    """H_g H_g: compiled as one sum where the matrices are small, for a batched product pays for
    each of them.
    """
    if namespace(matrices) is jnp and matrices.shape[1] <= _SMALL:
        return jnp.sum(matrices[:, :, :, None] * matrices[:, None, :, :], axis=2)
    return matrices @ matrices


def descend(
    model: Model,
    coef: jax.Array,
    residual: jax.Array,
    order: jax.Array,
    count: jax.Array,
    cycles: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """One epoch over the blocks order[:count], `cycles` extrapolated cycles over those that are not
    zero, one more epoch over all.

    `coef` b [C, q], `residual` r [T]. Returns both after the descent. The objective never rises, up
    to rounding. `cycles` None is 0, in a program that compiles in half the time.
    """
    if cycles is None:
        return _loops.fori_loop(
            0, 2, lambda _, at: epoch(model, at[0], at[1], order, count), (coef, residual)
        )
    last = _EPOCHS * cycles + 1

    def visit(k, carry):
        coefs, residuals, support, size = carry
        place = jnp.where(
            k == 0, 0, (k - 1) % _EPOCHS + 1
        )  # of what this epoch leaves in the history of its cycle
        at = jnp.maximum(place - 1, 0)
        everywhere = (k == 0) | (k == last)
        visited = jnp.where(everywhere, order, support)
        coef, residual = epoch(
            model, coefs[at], residuals[at], visited, jnp.where(everywhere, count, size)
        )
        coefs, residuals = coefs.at[place].set(coef), residuals.at[place].set(residual)
        support, size = _loops.cond(
            k == 0, lambda: nonzero_order(coef, order, count), lambda: (support, size)
        )
        return (
            *_loops.cond(
                place == _EPOCHS,
                lambda: _extrapolated(model, coefs, residuals),
                lambda: (coefs, residuals),
            ),
            support,
            size,
        )

    coefs = jnp.zeros((_EPOCHS + 1, *coef.shape), coef.dtype).at[0].set(coef)
    residuals = jnp.zeros((_EPOCHS + 1, *residual.shape), residual.dtype).at[0].set(residual)
    coefs, residuals, _, _ = _loops.fori_loop(0, last + 1, visit, (coefs, residuals, order, count))
    return coefs[1], residuals[1]  # the last epoch is the first of a cycle that ends there


def epoch(
    model: Model, coef: jax.Array, residual: jax.Array, order: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Minimise over one block after another, its Gram matrix replaced by its bound (so that a step
    is a product, a shrinkage, a product).
    """

    def step(k, carry):
        coef, residual = carry
        i = order[k]
        block = lax.dynamic_index_in_dim(model.blocks, i, keepdims=False)
        old = lax.dynamic_index_in_dim(coef, i, keepdims=False)
        bound = model.bounds[i]
        pulled = bound * old + block @ residual
        norm = jnp.sqrt(jnp.sum(pulled * pulled))
        keep = jnp.maximum(norm - model.thresholds[i], 0.0) / jnp.where(
            (norm == 0) | (bound == 0), jnp.inf, norm * bound
        )
        new = keep * pulled
        return lax.dynamic_update_index_in_dim(coef, new, i, 0), residual - (new - old) @ block

    return _loops.fori_loop(0, count, step, (coef, residual))


def nonzero_order(
    coef: jax.Array, order: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The part of order[:count] whose blocks are not zero, first in its order, and its length."""
    capacity = order.shape[0]
    active = jnp.any(coef != 0, axis=1)[order] & (jnp.arange(capacity, dtype=order.dtype) < count)
    # Of equal numbers the first come first; a cumulative sum would take longer to compile.
    return order[lax.top_k(active.astype(jnp.float32), capacity)[1]], jnp.sum(
        active, dtype=order.dtype
    )


def _extrapolated(model: Model, coefs, residuals):
    """The history of a cycle with the affine combination of its points that moves least (Anderson
    1965) first, if it is better.
    """
    moves = (coefs[1:] - coefs[:-1]).reshape(_EPOCHS, -1)
    products = jnp.dot(moves, moves.T, precision="highest")
    regular = products + (1e-10 * jnp.trace(products) + 1e-30) * jnp.eye(_EPOCHS, dtype=coefs.dtype)
    inverted = inverse(regular)
    mix = inverted @ jnp.ones(_EPOCHS, coefs.dtype)
    mix = mix + inverted @ (1.0 - jnp.dot(regular, mix, precision="highest"))
    mix = mix / jnp.sum(mix)
    last, last_residual = coefs[-1], residuals[-1]
    mixed, mixed_residual = jnp.tensordot(mix, coefs[1:], axes=1), mix @ residuals[1:]
    better = change(model, last, last_residual, mixed, mixed_residual) < 0  # False for NaN
    start, start_residual = (
        jnp.where(better, mixed, last),
        jnp.where(better, mixed_residual, last_residual),
    )
    return coefs.at[0].set(start), residuals.at[0].set(start_residual)


def change(model: Model, old, old_residual, new, new_residual):
    """The change of the objective, from differences: the objective itself would hide it in its
    rounding.
    """
    smooth = 0.5 * jnp.sum((new_residual - old_residual) * (new_residual + old_residual))
    before, after = (safe_sqrt(jnp.sum(b * b, axis=1)) for b in (old, new))
    total = before + after
    grown = jnp.sum((new - old) * (new + old), axis=1) / jnp.where(total == 0, 1.0, total)
    return smooth + jnp.sum(model.thresholds * grown)
