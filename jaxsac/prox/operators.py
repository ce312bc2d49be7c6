"""Proximal operators, prox_h(v) = argmin_x ½‖x − v‖² + h(x), and Euclidean projections. All are
exact and differentiable almost everywhere.

Thresholds are ≥ 0, scalars or one per group; NaN in gives NaN out.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, either, real
from jaxsac.prox.groups import GROUPS, Groups, labels_of, power_of_two, safe_sqrt, scaled_norms
from jaxsac.solution import register

OF_GROUPS = either(real(low=0), real("G", low=0))
OF_COEFFICIENTS = either(real(low=0), real("p", low=0))
LEVELS = anything("a sequence of Level from the innermost to the outermost")


@register
class Level(NamedTuple):
    """One level of a tree of groups: a partition of all coefficients, and the weights of its
    norms.
    """

    groups: Groups  # of [p]
    weights: jax.Array | float  # [] or [G], ≥ 0


@arguments(v=real(...), threshold=real(..., low=0))
def prox_l1(v: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """prox of Σ_i t_i |x_i|: soft thresholding, sign(v) max(|v| − t, 0). `threshold` t ≥ 0 is a
    scalar or has the shape of `v`.
    """
    # As in `prox_group`: NaN fails "<=", and the identity has the derivative 1 at 0 too.
    dropped = (jnp.abs(v) <= threshold) & (threshold > 0)
    return jnp.where(dropped, 0.0, v - jnp.sign(v) * jnp.where(dropped, 0.0, threshold))


@arguments(v=real("p"), groups=GROUPS, threshold=OF_GROUPS)
def prox_group(v: jax.Array, groups: Groups, threshold: jax.Array | float) -> jax.Array:
    """prox of Σ_g t_g ‖x_g‖₂: x_g = max(0, 1 − t_g/‖v_g‖) v_g, and 0 at v_g = 0. `threshold` t ≥ 0
    is a scalar or [G], `v` is [p].
    """
    return shrunk(v, groups, threshold)


def shrunk(v: jax.Array, groups: Groups, threshold: Any) -> jax.Array:
    """`prox_group` without checks."""
    threshold = jnp.broadcast_to(threshold, (groups.num_groups,))
    _, norms, inverse = scaled_norms(v, groups)
    scaled = threshold * inverse
    # A NaN norm fails "<=" and so keeps its factor, NaN; without a penalty the operator is the
    # identity, also for its derivative at 0.
    dropped = (norms <= scaled) & (threshold > 0)
    share = jnp.where(dropped, 0.0, scaled) / jnp.where(dropped | (norms == 0), 1.0, norms)
    return v * groups.spread(jnp.where(dropped, 0.0, 1.0 - share))


@arguments(v=real("p"), groups=GROUPS, l1=OF_COEFFICIENTS, group=OF_GROUPS)
def prox_sparse_group(
    v: jax.Array, groups: Groups, l1: jax.Array | float, group: jax.Array | float
) -> jax.Array:
    """prox of Σ_j l1_j |x_j| + Σ_g group_g ‖x_g‖₂ at v [p]: soft thresholding, then the group prox
    (Simon et al. 2013). l1 ≥ 0 is a scalar or [p], group ≥ 0 a scalar or [G].
    """
    return prox_group(prox_l1(v, l1), groups, group)


@arguments(v=real("p"), levels=LEVELS, scale=real(low=0))
def prox_tree(v: jax.Array, levels: Sequence[Level], scale: jax.Array | float = 1.0) -> jax.Array:
    """prox of scale · Σ_levels Σ_g w_g ‖x_g‖₂ for nested groups: the levels' group proxes from the
    innermost to the outermost.

    `levels` go from the innermost to the outermost, each group inside one group of the next level
    (ValueError otherwise). `Groups.equal(p, 1)` as the innermost level is an l1 norm. Jenatton et
    al. (2011), theorem 1.
    """
    for groups, weights in nested(levels, v):
        v = prox_group(v, groups, scale * weights)
    return v


def nested(levels: Sequence[Level], v: jax.Array) -> list[tuple[Groups, Any]]:
    """The levels with weights of the dtype of `v` [p]; ValueError unless they fit it, and every
    group lies inside one group of the next level (looked at where the labels are concrete).
    """
    known = isinstance(levels, Sequence) and all(isinstance(level, Level) for level in levels)
    _checks.require(known and len(levels) > 0, "levels must hold at least one Level.")
    for position, (inner, outer) in enumerate(itertools.pairwise(levels)):
        _checks.require(
            inner.groups.num_coefficients == outer.groups.num_coefficients,
            f"levels {position} and {position + 1} must partition the same coefficients, got"
            f" {inner.groups.num_coefficients} and {outer.groups.num_coefficients}.",
        )
        if not _checks.is_concrete(inner.groups, outer.groups):
            continue
        inner_labels, outer_labels = labels_of(inner.groups), labels_of(outer.groups)
        family = np.full(inner.groups.num_groups, -1)
        family[inner_labels] = outer_labels
        _checks.require(
            bool((family[inner_labels] == outer_labels).all()),
            f"each group of level {position} must lie inside one group of level {position + 1}:"
            " order the levels from inner to outer.",
        )
    found = []
    for position, (groups, weights) in enumerate(levels):
        name, sizes = f"levels[{position}]", {"p": v.shape[0]}
        GROUPS.convert(f"{name}.groups", groups, sizes, v.dtype)
        found.append((groups, OF_GROUPS.convert(f"{name}.weights", weights, sizes, v.dtype)))
    return found


@arguments(v=real(...), l1=real(..., low=0), l2=real(..., low=0))
def prox_elastic_net(v: jax.Array, l1: jax.Array | float, l2: jax.Array | float) -> jax.Array:
    """prox of l1 ‖x‖₁ + ½ l2 ‖x‖²: soft thresholding, divided by 1 + l2; l1, l2 ≥ 0 are scalars or
    have the shape of `v`.
    """
    return prox_l1(v, l1) / (1.0 + l2)


@arguments(v=real(...), lower=real(...), upper=real(...))
def project_box(v: jax.Array, lower: jax.Array | float, upper: jax.Array | float) -> jax.Array:
    """Projection onto lower ≤ x ≤ upper, elementwise; the ends are scalars or have the shape of
    `v`.
    """
    _checks.require_known(np.less_equal, "lower must be <= upper everywhere.", lower, upper)
    return jnp.clip(v, lower, upper)


@arguments(v=real("d"), radius=real(low=0))
def project_l2_ball(v: jax.Array, radius: jax.Array | float) -> jax.Array:
    """Projection of `v` [d] onto the ball ‖x‖₂ ≤ radius, radius ≥ 0."""
    _, inverse = power_of_two(jnp.max(jnp.abs(jax.lax.stop_gradient(v)), initial=0.0))
    norm, scaled = safe_sqrt(jnp.sum((v * inverse) ** 2)), radius * inverse
    inside = norm <= scaled
    return v * jnp.where(inside, 1.0, jnp.where(inside, 0.0, scaled) / jnp.where(inside, 1.0, norm))


@arguments(v=real("d"), total=real(low=0))
def project_simplex(v: jax.Array, total: jax.Array | float = 1.0) -> jax.Array:
    """Projection of `v` [d] onto {x ≥ 0, Σ x = total}, total ≥ 0, by sorting (Held et al. 1974)."""
    _checks.require(v.shape[0] > 0, "v must hold at least one number.")
    v = v - jax.lax.stop_gradient(
        jnp.max(v)
    )  # the projection ignores a common shift, and small numbers cancel less
    # Which are kept is a constant of differentiation; their mean is not, in any order of them.
    still, least = jax.lax.stop_gradient((v, total))
    descending = jnp.sort(still)[::-1]
    counts = jnp.arange(1, v.shape[0] + 1, dtype=v.dtype)
    shifts = (jnp.cumsum(descending) - least) / counts
    last = jnp.maximum(jnp.sum(descending > shifts), 1) - 1
    kept = still >= descending[last]
    left = v - (jnp.sum(jnp.where(kept, v, 0.0)) - total) / jnp.sum(kept, dtype=v.dtype)
    return jnp.where(left <= 0, 0.0, left)  # NaN fails "<="


@arguments(v=real("d"), radius=real(low=0))
def project_l1_ball(v: jax.Array, radius: jax.Array | float) -> jax.Array:
    """Projection of `v` [d] onto ‖x‖₁ ≤ radius, radius ≥ 0 (Duchi et al. 2008)."""
    outside = jnp.sign(v) * project_simplex(jnp.abs(v), radius)
    return jnp.where(jnp.sum(jnp.abs(v)) <= radius, v, outside)
