"""Penalties and their dual norms, Ω*(v) = max {v'x : Ω(x) ≤ 1}."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops
from jaxsac._arguments import arguments, real
from jaxsac.prox.groups import GROUPS, Groups, group_norms, power_of_two
from jaxsac.prox.operators import LEVELS, OF_COEFFICIENTS, OF_GROUPS, Level, nested, shrunk

# Never reached: the steps below end when nothing moves any more, after 3 to 12.
_MAX_NEWTON_STEPS = 200


@arguments(v=real("p"), groups=GROUPS, weights=OF_GROUPS)
def group_norm(v: jax.Array, groups: Groups, weights: jax.Array | float = 1.0) -> jax.Array:
    """The group norm Ω(v) = Σ_g w_g ‖v_g‖₂ [] of v [p], weights w ≥ 0 [] or [G]."""
    return jnp.sum(weights * group_norms(v, groups))


@arguments(v=real("p"), groups=GROUPS, l1=OF_COEFFICIENTS, group=OF_GROUPS)
def sparse_group_norm(
    v: jax.Array, groups: Groups, l1: jax.Array | float, group: jax.Array | float
) -> jax.Array:
    """The sparse-group norm Ω(v) = Σ_j l1_j |v_j| + Σ_g group_g ‖v_g‖₂ [] of v [p], l1 ≥ 0 [] or
    [p], group ≥ 0 [] or [G].
    """
    return jnp.sum(l1 * jnp.abs(v)) + group_norm(v, groups, group)


@arguments(v=real("p"), levels=LEVELS)
def tree_norm(v: jax.Array, levels: Sequence[Level]) -> jax.Array:
    """The tree-structured norm Ω(v) = Σ_levels Σ_g w_g ‖v_g‖₂ [] of v [p]; `levels` as in
    `prox_tree`.
    """
    return sum(
        (group_norm(v, groups, weights) for groups, weights in nested(levels, v)),
        jnp.zeros((), v.dtype),
    )


@arguments(v=real("p"), groups=GROUPS, weights=OF_GROUPS)
def dual_group_norm(v: jax.Array, groups: Groups, weights: jax.Array | float = 1.0) -> jax.Array:
    """Ω*(v) = max_g ‖v_g‖₂ / w_g [] of v [p], w ≥ 0 [] or [G]; a group of weight 0 counts +inf,
    unless v_g = 0.
    """
    return jnp.max(_ratio(group_norms(v, groups), jnp.asarray(weights)))


@arguments(v=real("p"), groups=GROUPS, l1=OF_COEFFICIENTS, group=OF_GROUPS)
def dual_sparse_group_norm(
    v: jax.Array, groups: Groups, l1: jax.Array | float, group: jax.Array | float
) -> jax.Array:
    """The least t ≥ 0 [] with ‖(|v_g| − t l1)₊‖₂ ≤ t group_g for every g of v [p]: the dual of
    `sparse_group_norm`.
    """
    return dual_tree_norm(
        v, (Level(Groups.equal(groups.num_coefficients, 1), l1), Level(groups, group))
    )


@arguments(v=real("p"), levels=LEVELS)
def dual_tree_norm(v: jax.Array, levels: Sequence[Level]) -> jax.Array:
    """Ω*(v) [] of a tree-structured norm of v [p]: the least t ≥ 0 at which `prox_tree(v, levels,
    t)` is 0.

    For each group g of the outermost level, h_g(t) = ‖prox of the inner levels at t, restricted to
    g‖ − t w_g is convex and decreasing, so Newton's method from the left, t₀ = ‖v_g‖²/Ω_g(v_g),
    climbs to its root without overshooting. Groups whose weights are all 0 count +inf, unless v_g =
    0. Differentiable in `v` and the weights.
    """
    full = [
        (groups, jnp.broadcast_to(weights, (groups.num_groups,)))
        for groups, weights in nested(levels, v)
    ]
    *inner, (outer, outer_weights) = full
    scale, inverse = power_of_two(outer.max(jnp.abs(lax.stop_gradient(v))))
    v = v * outer.spread(inverse)

    def excess(t: jax.Array, v: jax.Array, inner: list, outer_weights: jax.Array) -> jax.Array:
        per_coefficient = outer.spread(t)
        for groups, weights in inner:
            # All coefficients of an inner group share the t of their outer group: any of them will
            # do, and max finds one.
            v = shrunk(v, groups, weights * groups.max(per_coefficient))
        return group_norms(v, outer) - t * outer_weights

    start = lax.stop_gradient((v, inner, outer_weights))
    squares = group_norms(start[0], outer) ** 2
    sums = start[2] * group_norms(start[0], outer)
    for groups, weights in start[1]:
        shares = (
            weights * group_norms(start[0], groups) / jnp.maximum(groups.sizes, 1).astype(v.dtype)
        )
        sums = sums + outer.sum(groups.spread(shares))
    first = _ratio(squares, sums)
    penalised = jnp.isfinite(first)
    first = jnp.where(penalised, first, 0.0)

    def newton_step(t, *of):
        value, slope = jax.jvp(lambda u: excess(u, *of), (t,), (jnp.ones_like(t),))
        return t - value / jnp.where(slope < 0, slope, -1.0)

    def climb(carry):
        t, _, step = carry
        risen = jnp.maximum(t, newton_step(t, *start))
        return risen, jnp.any(risen > t * (1.0 + 2.0 * jnp.finfo(t.dtype).eps)), step + 1

    t, _, _ = _loops.while_loop(
        lambda c: c[1] & (c[2] < _MAX_NEWTON_STEPS), climb, (first, jnp.asarray(True), jnp.int32(0))
    )
    # Two more steps, whose value is rounding but whose derivatives up to the third order are those
    # of the root: each doubles the order.
    for _ in range(2):
        t = newton_step(t, v, inner, outer_weights)
    return jnp.max(jnp.where(penalised, scale * t, jnp.where(jnp.isnan(squares), jnp.nan, jnp.inf)))


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """numerator / denominator for non-negative numbers, with 0/0 = 0, and no NaN in the
    gradient.
    """
    zero = (numerator == 0) & (denominator == 0)
    return jnp.where(zero, 0.0, numerator / jnp.where(zero, 1.0, denominator))
