"""Proximal operators, prox_h(v) = argmin_x ½‖x − v‖² + h(x), and Euclidean projections. All are
exact and differentiable almost everywhere.

Thresholds are ≥ 0, scalars or one per group; NaN in gives NaN out.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac.prox.groups import Groups, group_norms, vector_norm
from jaxsac.solution import register


@register
class Level(NamedTuple):
    """One level of a tree of groups: a partition of all coefficients, and the weights of its
    norms.
    """

    groups: Groups  # of [p]
    weights: jax.Array | float  # [] or [G], ≥ 0


def prox_l1(v: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """prox of Σ_i t_i |x_i|: soft thresholding, sign(v) max(|v| − t, 0). `threshold` t is a scalar
    or has the shape of `v`.
    """
    threshold = jnp.asarray(threshold).astype(v.dtype)
    return v - jnp.clip(v, -threshold, threshold)


def prox_group(v: jax.Array, groups: Groups, threshold: jax.Array | float) -> jax.Array:
    """prox of Σ_g t_g ‖x_g‖₂: x_g = max(0, 1 − t_g/‖v_g‖) v_g, and 0 at v_g = 0. `threshold` t is a
    scalar or [G], `v` is [p].
    """
    threshold = jnp.broadcast_to(jnp.asarray(threshold).astype(v.dtype), (groups.num_groups,))
    norms = group_norms(v, groups)
    # A NaN norm fails "<=" and so keeps its factor, NaN; without a penalty the operator is the
    # identity, also for its derivative at 0.
    dropped = (norms <= threshold) & (threshold > 0)
    factor = jnp.where(
        dropped, 0.0, 1.0 - threshold / jnp.where(dropped | (norms == 0), 1.0, norms)
    )
    return v * groups.spread(factor)


def prox_sparse_group(
    v: jax.Array, groups: Groups, l1: jax.Array | float, group: jax.Array | float
) -> jax.Array:
    """prox of l1 ‖x‖₁ + Σ_g group_g ‖x_g‖₂: soft thresholding, then the group prox (Simon et al.
    2013).
    """
    return prox_group(prox_l1(v, l1), groups, group)


def prox_tree(v: jax.Array, levels: Sequence[Level], scale: jax.Array | float = 1.0) -> jax.Array:
    """prox of scale · Σ_levels Σ_g w_g ‖x_g‖₂ for nested groups: the levels' group proxes from the
    innermost to the outermost.

    `levels` go from the innermost to the outermost, each group inside one group of the next level
    (ValueError otherwise, see `check_nested`). `Groups.equal(p, 1)` as the innermost level is an l1
    norm. Jenatton et al. (2011), theorem 1.
    """
    check_nested(levels)
    scale = jnp.asarray(scale).astype(v.dtype)
    for groups, weights in levels:
        v = prox_group(v, groups, scale * jnp.asarray(weights).astype(v.dtype))
    return v


def check_nested(levels: Sequence[Level]) -> None:
    """Raise ValueError unless every group lies inside one group of the next level (looked at where
    the labels are concrete).
    """
    _checks.require(len(levels) > 0, "levels must hold at least one Level.")
    for position, (inner, outer) in enumerate(itertools.pairwise(levels)):
        _checks.require(
            inner.groups.num_coefficients == outer.groups.num_coefficients,
            f"levels {position} and {position + 1} must partition the same coefficients, got"
            f" {inner.groups.num_coefficients} and {outer.groups.num_coefficients}.",
        )
        if not _checks.is_concrete(inner.groups, outer.groups):
            continue
        inner_labels, outer_labels = _labels(inner.groups), _labels(outer.groups)
        family = np.full(inner.groups.num_groups, -1)
        family[inner_labels] = outer_labels
        _checks.require(
            bool((family[inner_labels] == outer_labels).all()),
            f"each group of level {position} must lie inside one group of level {position + 1}:"
            " order the levels from inner to outer.",
        )


def _labels(groups: Groups) -> np.ndarray:
    return (
        np.repeat(np.arange(groups.num_groups), groups.max_size)
        if groups.labels is None
        else np.asarray(groups.labels)
    )


def prox_elastic_net(v: jax.Array, l1: jax.Array | float, l2: jax.Array | float) -> jax.Array:
    """prox of l1 ‖x‖₁ + ½ l2 ‖x‖²: soft thresholding, divided by 1 + l2."""
    return prox_l1(v, l1) / (1.0 + jnp.asarray(l2).astype(v.dtype))


def project_box(v: jax.Array, lower: jax.Array | float, upper: jax.Array | float) -> jax.Array:
    """Projection onto lower ≤ x ≤ upper, elementwise."""
    if _checks.is_concrete(lower, upper):
        _checks.require(
            bool(np.all(np.asarray(lower) <= np.asarray(upper))),
            "lower must be <= upper everywhere.",
        )
    return jnp.clip(v, jnp.asarray(lower).astype(v.dtype), jnp.asarray(upper).astype(v.dtype))


def project_l2_ball(v: jax.Array, radius: jax.Array | float) -> jax.Array:
    """Projection of `v` [d] onto the ball ‖x‖₂ ≤ radius."""
    radius = jnp.asarray(radius).astype(v.dtype)
    norm = vector_norm(v)
    inside = norm <= radius
    return v * jnp.where(inside, 1.0, radius / jnp.where(inside, 1.0, norm))


def project_simplex(v: jax.Array, total: jax.Array | float = 1.0) -> jax.Array:
    """Projection of `v` [d] onto {x ≥ 0, Σ x = total}, by sorting (Held et al. 1974)."""
    total = jnp.asarray(total).astype(v.dtype)
    v = v - jax.lax.stop_gradient(
        jnp.max(v)
    )  # the projection ignores a common shift, and small numbers cancel less
    descending = jnp.sort(v)[::-1]
    counts = jnp.arange(1, v.shape[0] + 1, dtype=v.dtype)
    shifts = (jnp.cumsum(descending) - total) / counts
    kept = jnp.maximum(jnp.sum(descending > shifts), 1)
    return jnp.maximum(v - shifts[kept - 1], 0.0)


def project_l1_ball(v: jax.Array, radius: jax.Array | float) -> jax.Array:
    """Projection of `v` [d] onto ‖x‖₁ ≤ radius (Duchi et al. 2008)."""
    radius = jnp.asarray(radius).astype(v.dtype)
    outside = jnp.sign(v) * project_simplex(jnp.abs(v), radius)
    return jnp.where(jnp.sum(jnp.abs(v)) <= radius, v, outside)
