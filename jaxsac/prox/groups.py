"""Groups of coefficients: a partition of [0, p), stored so that sums over groups are cheap whatever
the sizes.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _arguments, _checks
from jaxsac._arguments import anything, arguments, integer, real, record
from jaxsac.solution import register

# Padded groups are dense and fast on every device; beyond this much padding, sums over segments
# touch fewer numbers.
_MAX_PADDING = 2.0


@register
@arguments(
    num_groups=_arguments.size(1),
    num_coefficients=_arguments.size(1),
    max_size=_arguments.size(1),
    labels=anything("made by from_labels"),
    members=anything("made by from_labels"),
)
class Groups(eqx.Module):
    """A partition of p coefficients into G groups, some of which may be empty.

    Build one with `Groups.equal(num_groups, size)` (consecutive blocks), `Groups.from_sizes([...])`
    (consecutive blocks of these sizes) or `Groups.from_labels([...])` (the group of each
    coefficient, in any order). Coefficient vectors have shape [p], numbers per group [G]. A pytree:
    pass it through `jit` as an ordinary argument.
    """

    num_groups: int = eqx.field(static=True)  # G
    num_coefficients: int = eqx.field(static=True)  # p
    max_size: int = eqx.field(static=True)  # of the largest group
    labels: Any = None  # int32 [p]; None: equal consecutive blocks, handled by reshape
    # int32 [G, max_size], padded with p; None: equal blocks, or sums over segments
    members: Any = None  # int32

    @staticmethod
    @arguments(num_groups=_arguments.size(1), size=_arguments.size(1))
    def equal(num_groups: int, size: int) -> "Groups":
        """`num_groups` consecutive blocks of `size` coefficients each."""
        return Groups(num_groups, num_groups * size, size)

    @staticmethod
    @arguments(sizes=integer("G", low=0))
    def from_sizes(sizes: Sequence[int]) -> "Groups":
        """Consecutive blocks: the first sizes[0] coefficients are group 0, and so on. A size of 0
        is an empty group.
        """
        array = np.asarray(sizes)
        _checks.require(bool(array.any()), "sizes must hold a group that is not empty.")
        return Groups.from_labels(np.repeat(np.arange(array.size), array), num_groups=array.size)

    @staticmethod
    def from_labels(
        labels: Sequence[int] | np.ndarray | jax.Array, num_groups: int | None = None
    ) -> "Groups":
        """labels[i] in [0, num_groups) is the group of coefficient i; `num_groups` defaults to the
        largest label plus one.
        """
        _checks.require(
            not isinstance(labels, jax.core.Tracer),
            "labels decide array shapes: build Groups outside jit and pass it in.",
        )
        array = np.asarray(labels)
        _checks.require(
            array.ndim == 1 and array.size > 0,
            f"labels must have shape [p] with p >= 1, got {array.shape}.",
        )
        advice = "use numpy.unique(labels, return_inverse=True)[1]."
        _checks.require(
            bool(np.issubdtype(array.dtype, np.integer)),
            f"labels must be integers, got {array.dtype}: {advice}",
        )
        largest = int(array.max())
        if num_groups is None:
            num_groups = largest + 1
        num_groups = int(_arguments.size(1).take("num_groups", num_groups))
        _checks.require(
            int(array.min()) >= 0 and largest < num_groups,
            f"labels must lie in [0, {num_groups}): {advice}",
        )
        array = array.astype(np.int32)
        sizes = np.bincount(array, minlength=num_groups)
        max_size = int(sizes.max())
        if (sizes == max_size).all() and (np.diff(array) >= 0).all():
            return Groups.equal(num_groups, max_size)
        if num_groups * max_size > _MAX_PADDING * array.size + 64:
            return Groups(num_groups, array.size, max_size, array)
        order = np.argsort(array, kind="stable").astype(np.int32)
        place = np.arange(array.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        members = np.full((num_groups, max_size), array.size, np.int32)
        members[array[order], place] = order
        return Groups(num_groups, array.size, max_size, array, members)

    @property
    def sizes(self) -> jax.Array:
        """How many coefficients each group has, int32 [G]."""
        if self.labels is None:
            return jnp.full(self.num_groups, self.max_size, jnp.int32)
        return jnp.bincount(jnp.asarray(self.labels), length=self.num_groups).astype(jnp.int32)

    def sum(self, values: jax.Array) -> jax.Array:
        """Sum of `values` [p] over each group, [G]; 0 where a group is empty."""
        if self.labels is not None and self.members is None:
            _checks.check_shape("values", values, (self.num_coefficients,))
            return jax.ops.segment_sum(
                values, jnp.asarray(self.labels), num_segments=self.num_groups
            )
        return self.blocks(values).sum(axis=1)

    def max(self, values: jax.Array) -> jax.Array:
        """Largest of the non-negative `values` [p] in each group, [G]; 0 where a group is empty."""
        if self.labels is not None and self.members is None:
            _checks.check_shape("values", values, (self.num_coefficients,))
            largest = jax.ops.segment_max(
                values, jnp.asarray(self.labels), num_segments=self.num_groups
            )
            return jnp.where(largest < 0, 0.0, largest)
        return self.blocks(values).max(axis=1)

    def blocks(self, values: jax.Array) -> jax.Array:
        """`values` [p] as one row per group, [G, max_size], padded with zeros."""
        _checks.check_shape("values", values, (self.num_coefficients,))
        if self.labels is None:
            return values.reshape(self.num_groups, self.max_size)
        if self.members is None:
            raise ValueError(
                "groups of very unequal sizes have no block form: use sum, max and spread."
            )
        return values.at[jnp.asarray(self.members)].get(mode="fill", fill_value=0)

    def spread(self, per_group: jax.Array) -> jax.Array:
        """The number of its group for each coefficient: [G] to [p]."""
        _checks.check_shape("per_group", per_group, (self.num_groups,))
        if self.labels is None:
            return jnp.broadcast_to(per_group[:, None], (self.num_groups, self.max_size)).reshape(
                -1
            )
        return per_group[jnp.asarray(self.labels)]


def labels_of(groups: Groups) -> np.ndarray:
    """The group of each coefficient of concrete groups, int32 [p]."""
    return (
        np.repeat(np.arange(groups.num_groups, dtype=np.int32), groups.max_size)
        if groups.labels is None
        else np.asarray(groups.labels)
    )


def power_of_two(size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A power of two near `size` ≥ 0 (its exponent bits) and its inverse, both normal numbers, so
    that scaling by them rounds nothing.
    """
    info = jnp.finfo(size.dtype)
    bits = lax.bitcast_convert_type(size, jnp.uint32 if info.bits == 32 else jnp.uint64)
    exponent_bits = ((1 << info.nexp) - 1) << info.nmant
    power = lax.bitcast_convert_type(bits & jnp.asarray(exponent_bits, bits.dtype), size.dtype)
    largest = 2.0 ** (info.maxexp - 3)
    power = jnp.clip(power, 1.0 / largest, largest)
    return power, 1.0 / power


def safe_sqrt(squares: jax.Array) -> jax.Array:
    """√squares with the gradient 0 at 0 instead of an infinity."""
    zero = squares == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))


def sizes_of(groups: Groups) -> dict[str, int]:
    """The letters of a call that takes groups."""
    return {"p": groups.num_coefficients, "G": groups.num_groups}


GROUPS = record(Groups, sizes=sizes_of)


def scaled_norms(v: jax.Array, groups: Groups) -> tuple[jax.Array, jax.Array, jax.Array]:
    """v_g / s_g [p], its norms [G], and 1 / s_g [G]: powers of two near ‖v_g‖, so that what is
    divided by a norm has no square of a small number in its derivatives.
    """
    _, inverse = power_of_two(groups.max(jnp.abs(lax.stop_gradient(v))))
    small = v * groups.spread(inverse)
    return small, safe_sqrt(groups.sum(small**2)), inverse


@arguments(v=real("p"), groups=GROUPS)
def group_norms(v: jax.Array, groups: Groups) -> jax.Array:
    """Euclidean norm of each group, ‖v_g‖₂ [G] of v [p], right at every scale of the dtype, with
    the gradient 0 at v_g = 0; NaN gives NaN.
    """
    _, norms, inverse = scaled_norms(v, groups)
    return norms / inverse


@arguments(v=real(...))
def vector_norm(v: jax.Array) -> jax.Array:
    """Euclidean norm of a whole array, right at every scale of the dtype, with the gradient 0 at
    0; NaN gives NaN.
    """
    scale, inverse = power_of_two(jnp.max(jnp.abs(lax.stop_gradient(v)), initial=0.0))
    return scale * safe_sqrt(jnp.sum((v * inverse) ** 2))
