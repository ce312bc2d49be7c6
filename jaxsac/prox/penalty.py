"""Nested group norms, an l1 norm, a ridge and a sign constraint in any combination, as one record
with one prox and one dual norm.
"""

import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxsac import _checks
from jaxsac._arguments import arguments, either, flag, real
from jaxsac.prox.groups import Groups, group_norms, scaled_norms
from jaxsac.prox.norms import dual_group_norm, dual_tree_norm
from jaxsac.prox.operators import LEVELS, OF_COEFFICIENTS, Level, nested, prox_group, prox_l1
from jaxsac.solution import register


def _as_tuple(levels: Sequence[Level]) -> tuple[Level, ...]:  # its type is the constructor's
    return tuple(levels)


@register
@arguments(
    levels=LEVELS,
    l1=either(real(low=0, own=True), real("p", low=0, own=True)),
    ridge=real(low=0, own=True),
    nonnegative=flag(),
)
class Penalty(eqx.Module):
    """lam Ω(b) + ½ ridge ‖b‖², Ω(b) = Σ_levels Σ_g w_g ‖b_g‖₂ + Σ_j l1_j |b_j|, and b ≥ 0 if
    `nonnegative`; a pytree.

    * `levels`: partitions from the innermost to the outermost, `prox.Level(groups, weights)` each,
      every group inside one of the next.
    * `l1`: None, a scalar or one number for each coefficient. `ridge`: None or a scalar, which lam
      does not multiply.

    Passed to a solver of `jaxsac.group_lasso` it is added to the norms of that solver's groups, to
    which its `levels` are families. So l1 = a with weights (1 − a) √q_g is the sparse-group lasso
    (Simon et al. 2013), a ridge alone the group elastic net, one level a tree-structured norm
    (Jenatton et al. 2011). What is None costs nothing.

    The prox is that of the sign constraint and the l1 norm, then of each level, then of the ridge:
    exact, for a Euclidean norm's prox composes with that of every positively homogeneous function
    inside it (Yu 2013).
    """

    levels: tuple[Level, ...] = eqx.field(default=(), converter=_as_tuple)  # from inner to outer
    l1: Any = None  # [] or [p] ≥ 0
    ridge: Any = None  # [] ≥ 0
    nonnegative: bool = eqx.field(static=True, default=False)  # whether b ≥ 0 is asked for

    def value(self, b: jax.Array, lam: jax.Array | float = 1.0) -> jax.Array:
        """lam Ω(b) + ½ ridge ‖b‖²; of `b` ≥ 0 if that is asked for."""
        total = jnp.zeros((), b.dtype)
        for groups, thresholds in self._thresholds(lam, b.dtype):
            norms = group_norms(b, groups)
            total = total + jnp.sum(jnp.where(norms == 0, 0.0, thresholds) * norms)
        if self.l1 is not None:
            total = total + jnp.sum(self._l1(lam, b.dtype) * jnp.abs(b))
        if self.ridge is not None:
            total = total + 0.5 * self._ridge(b.dtype) * jnp.sum(b**2)
        return total

    def prox(
        self, v: jax.Array, lam: jax.Array | float = 1.0, step: jax.Array | float = 1.0
    ) -> jax.Array:
        """argmin_x ½ ‖x − v‖² + step · (lam Ω(x) + ½ ridge ‖x‖²) over the x allowed."""
        step = jnp.asarray(step).astype(v.dtype)
        if self.nonnegative:
            v = jnp.maximum(v, 0.0)
        if self.l1 is not None:
            v = prox_l1(v, step * self._l1(lam, v.dtype))
        for groups, thresholds in self._thresholds(lam, v.dtype):
            v = prox_group(v, groups, step * thresholds)
        return v if self.ridge is None else v / (1.0 + step * self._ridge(v.dtype))

    def dual_norm(self, v: jax.Array) -> jax.Array:
        """max {v'x : Ω(x) ≤ 1, x allowed}, the least lam whose prox of `v` is 0; +inf where `v`
        meets no penalty.
        """
        if self.nonnegative:
            v = jnp.maximum(v, 0.0)
        levels = self.levels
        if self.l1 is not None:
            levels = (
                Level(Groups.equal(v.shape[0], 1), jnp.asarray(self.l1).astype(v.dtype)),
                *levels,
            )
        _checks.require(
            len(levels) > 0, "a penalty needs levels or an l1 weight to have a dual norm."
        )
        return dual_group_norm(v, *levels[0]) if len(levels) == 1 else dual_tree_norm(v, levels)

    def dual_norm_bound(self, v: jax.Array) -> jax.Array:
        """An upper bound of `dual_norm`, without iterations: the better of two.

        Each coefficient is left to the level that weighs it most; or, every level is bounded below
        by norms of the innermost groups, ‖x_g‖₁ ≥ ‖x_g‖₂ inside one and ‖x_F‖₂ ≥ Σ_g ‖x_g‖₂ / k^½
        for the k groups of a family.
        """
        if self.l1 is None and len(self.levels) == 1:
            return self.dual_norm(v)
        spread = [
            groups.spread(thresholds) for groups, thresholds in self._thresholds(1.0, v.dtype)
        ]
        own = (
            jnp.zeros_like(v)
            if self.l1 is None
            else jnp.broadcast_to(self._l1(1.0, v.dtype), v.shape)
        )
        heaviest = functools.reduce(jnp.maximum, spread, own)
        taken = own == heaviest
        mine = jnp.where(taken & (v != 0), jnp.abs(v), 0.0)
        total = jnp.max(mine / jnp.where(mine == 0, 1.0, own))
        for weights, (groups, thresholds) in zip(
            spread, self._thresholds(1.0, v.dtype), strict=True
        ):
            total = total + dual_group_norm(
                jnp.where((weights == heaviest) & ~taken, v, 0.0), groups, thresholds
            )
            taken = taken | (weights == heaviest)
        return total if not self.levels else jnp.minimum(total, self._by_inner_groups(v, own))

    def _by_inner_groups(self, v: jax.Array, l1: jax.Array) -> jax.Array:
        (inner, weights), *outer = self._thresholds(1.0, v.dtype)
        largest = jnp.max(l1)
        weights = weights + jnp.where(inner.sizes > 0, largest - inner.max(largest - l1), 0.0)
        shares = inner.spread(1.0 / jnp.maximum(inner.sizes, 1).astype(v.dtype))
        for families, of_family in outer:
            per_group = of_family / jnp.sqrt(jnp.maximum(families.sum(shares), 1.0))
            weights = weights + inner.max(families.spread(per_group))
        return dual_group_norm(v, inner, weights)

    def unpenalised(self, num_coefficients: int) -> jax.Array:
        """Which coefficients no norm and no constraint holds, bool [p]."""
        free = jnp.full(num_coefficients, not self.nonnegative)
        for groups, weights in self.levels:
            free = free & groups.spread(
                jnp.broadcast_to(jnp.asarray(weights) == 0, (groups.num_groups,))
            )
        return free if self.l1 is None else free & (jnp.asarray(self.l1) == 0)

    def pinned(self, b: jax.Array, lam: jax.Array | float = 1.0) -> jax.Array:
        """Which coefficients a kink or the constraint holds at zero, bool [p]."""
        zero = b == 0
        held = zero if self.nonnegative else jnp.zeros_like(zero)
        for groups, thresholds in self._thresholds(lam, b.dtype):
            held = held | groups.spread((group_norms(b, groups) == 0) & (thresholds > 0))
        return held if self.l1 is None else held | (zero & (self._l1(lam, b.dtype) > 0))

    def gradient(self, b: jax.Array, lam: jax.Array | float = 1.0) -> jax.Array:
        """The gradient of the terms that have one at `b`, [p]."""
        total = jnp.zeros_like(b)
        for groups, thresholds in self._thresholds(lam, b.dtype):
            small, norms, _ = scaled_norms(b, groups)
            zero = norms == 0
            per_norm = jnp.where(zero, 0.0, thresholds) / jnp.where(zero, 1.0, norms)
            total = total + small * groups.spread(per_norm)
        if self.l1 is not None:
            total = total + self._l1(lam, b.dtype) * jnp.sign(b)
        return total if self.ridge is None else total + self._ridge(b.dtype) * b

    def violation(self, b: jax.Array, pull: jax.Array, lam: jax.Array | float = 1.0) -> jax.Array:
        """`pull` less the nearest subgradient at `b`, [p]: zero if and only if b minimises the
        penalty minus pull'b.
        """
        left, zero = pull - self.gradient(b, lam), b == 0
        if self.nonnegative:
            left = jnp.where(zero, jnp.maximum(left, 0.0), left)
        if self.l1 is not None:
            left = prox_l1(left, jnp.where(zero, self._l1(lam, b.dtype), 0.0))
        for groups, thresholds in self._thresholds(lam, b.dtype):
            left = prox_group(left, groups, jnp.where(group_norms(b, groups) == 0, thresholds, 0.0))
        return left

    def margin(
        self, b: jax.Array, pull: jax.Array, lam: jax.Array | float, curvature: jax.Array | float
    ) -> jax.Array:
        """How far the kinks are at a minimiser b with −gradient `pull`: the least |‖v_g‖ / (lam
        w_g) − 1| over all groups and l1 terms, [].

        v = curvature · b + pull is where a proximal step of length 1/curvature starts: a group
        below its threshold ends at zero, one above it does not. 0 means that the least change of
        the problem may change the support.
        """
        v = jnp.asarray(curvature).astype(b.dtype) * b + pull
        found = jnp.asarray(jnp.inf, b.dtype)

        def nearest(sizes, thresholds):
            penalised = thresholds > 0
            return jnp.min(
                jnp.where(
                    penalised, jnp.abs(sizes / jnp.where(penalised, thresholds, 1.0) - 1.0), jnp.inf
                )
            )

        if self.nonnegative:
            v = jnp.maximum(v, 0.0)
        if self.l1 is not None:
            l1 = jnp.broadcast_to(self._l1(lam, b.dtype), v.shape)
            found, v = jnp.minimum(found, nearest(jnp.abs(v), l1)), prox_l1(v, l1)
        for groups, thresholds in self._thresholds(lam, b.dtype):
            found = jnp.minimum(
                found, nearest(group_norms(v, groups), jnp.where(groups.sizes > 0, thresholds, 0.0))
            )
            v = prox_group(v, groups, thresholds)
        return found

    def checked(self, groups: Groups, dtype: Any) -> "Penalty":
        """The penalty as arrays of `dtype` that fit `groups`, NaN where traced numbers are
        negative; ValueError naming what does not fit.
        """
        like = jnp.zeros(groups.num_coefficients, dtype)
        levels = [Level(*level) for level in nested((Level(groups, 1.0), *self.levels), like)[1:]]
        levels = [level._replace(weights=non_negative(level.weights)) for level in levels]
        l1, ridge, sizes = self.l1, self.ridge, {"p": groups.num_coefficients}
        if l1 is not None:
            l1 = jnp.asarray(l1).astype(dtype)  # numbers follow what they are applied to
            l1 = non_negative(OF_COEFFICIENTS.convert("penalty.l1", l1, sizes, dtype))
        if ridge is not None:
            ridge = non_negative(real(low=0).take("penalty.ridge", ridge, dtype))
        return Penalty(levels, l1, ridge, self.nonnegative)

    def _thresholds(self, lam, dtype):
        for groups, weights in self.levels:
            weights = jnp.broadcast_to(jnp.asarray(weights).astype(dtype), (groups.num_groups,))
            yield groups, jnp.asarray(lam).astype(dtype) * weights

    def _l1(self, lam, dtype):
        return jnp.asarray(lam).astype(dtype) * jnp.asarray(self.l1).astype(dtype)

    def _ridge(self, dtype):
        return jnp.asarray(self.ridge).astype(dtype)


def non_negative(numbers: Any) -> jax.Array:
    """The numbers, NaN for what is negative."""
    return jnp.where(numbers >= 0, numbers, jnp.nan)
