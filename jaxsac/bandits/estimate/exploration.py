"""What is played to learn: bases of feasible actions."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, choice, flag, key, size
from jaxsac.bandits.sets.action_set import ActionSet, a_set, check_dimension

_KINDS = ("standard", "block_orthogonal", "weighing", "gaussian_orthogonal", "uniform_orthogonal")


@arguments(
    key=key(),
    action_set=a_set,
    dimension=size(1),
    sparsity=size(1),
    kind=choice(*_KINDS),
    allow_dense=flag(),
    dtype=anything("a floating dtype; None: the default of JAX"),
)
def exploration_basis(
    key: jax.Array,
    action_set: ActionSet,
    dimension: int,
    sparsity: int,
    *,
    kind: str = "block_orthogonal",
    allow_dense: bool = False,
    dtype=None,
) -> jax.Array:
    """Draw d feasible actions [d, d], row by row, whose repetition identifies theta. The key is
    consumed.

    * "standard": the unit vectors, each as long as the set allows;
    * "block_orthogonal": a random partition of the coordinates into blocks of at most s, a random
      rotation in each: s-sparse and orthogonal;
    * "weighing": the same with Hadamard matrices instead of rotations, in blocks of a power of two,
      each coordinate as long as both its sides allow: on the box [−1, 1]^d a block of h coordinates
      is measured h times as precisely as by unit vectors;
    * "gaussian_orthogonal", "uniform_orthogonal": the Q factor of a Gaussian or uniform matrix. Its
      rows are dense, so they are no s-sparse actions and break the paper's Assumption 3 for s < d,
      although its figures use them: ask for them with allow_dense=True.

    Rows are made as long as the set allows.

    Raises: ValueError where some row is no action at any length, as rotations are on sets of one
    sign (Box(0, 1), Simplex), or an axis has no length; a traced set gives NaN rows.

    Source: arXiv 2605.10151, Assumption 3 and Figure 2.
    """
    check_dimension(action_set, dimension, sparsity)
    dtype = jnp.result_type(float) if dtype is None else dtype
    if kind == "standard":
        reach = action_set.reach(dimension, dtype)
        return jnp.diag(_checked(kind, jnp.where(reach == 0, jnp.nan, reach)))
    if kind in ("block_orthogonal", "weighing"):
        order_key, key = jax.random.split(key)
        order = jax.random.permutation(order_key, dimension)
        blocks, start = jnp.zeros((dimension, dimension), dtype), 0
        while start < dimension:
            size = min(sparsity, dimension - start)
            if kind == "weighing":
                size = 2 ** (size.bit_length() - 1)
                block = jnp.asarray(_hadamard(size), dtype)
            else:
                block = _rotation(
                    jax.random.normal(jax.random.fold_in(key, start), (size, size), dtype)
                )
            blocks = blocks.at[start : start + size, start : start + size].set(block)
            start += size
        rows = jnp.zeros_like(blocks).at[:, order].set(blocks)
        if kind == "weighing":
            sides = _sides(action_set, dimension, dtype)
            rows = rows * _checked(kind, jnp.where(sides > 0, sides, jnp.nan))[None, :]
    else:
        dense = allow_dense or sparsity == dimension
        _checks.require(
            dense,
            f"the rows of {kind!r} are dense, not {sparsity}-sparse actions: use"
            " 'block_orthogonal', or say allow_dense=True.",
        )
        draw = (
            jax.random.normal
            if kind == "gaussian_orthogonal"
            else lambda k, shape, t: jax.random.uniform(k, shape, t, -1.0)
        )
        rows = _rotation(draw(key, (dimension, dimension), dtype))
    gauge = jax.vmap(action_set.gauge)(rows)
    return rows / _checked(kind, jnp.where(jnp.isinf(gauge), jnp.nan, gauge))[:, None]


def _checked(kind: str, lengths: jax.Array) -> jax.Array:
    _checks.require_known(
        np.isfinite,
        f"no basis of kind={kind!r} fits this action_set: it lacks a coordinate, or one of the"
        " signs that the rows need: use kind='standard', or leave basis=None.",
        lengths,
    )
    return lengths


def _hadamard(size: int) -> np.ndarray:
    """Sylvester's matrix of signs with orthogonal rows, for a power of two."""
    codes = np.arange(size)
    return 1.0 - 2.0 * (np.bitwise_count(codes[:, None] & codes[None, :]) % 2)


def _sides(action_set: ActionSet, dimension: int, dtype) -> jax.Array:
    """How far each axis [d] reaches to its shorter side."""
    axes = jnp.eye(dimension, dtype=dtype)
    return jax.vmap(
        lambda axis: jnp.minimum(
            action_set.support(axis, axis > 0), action_set.support(-axis, axis > 0)
        )
    )(axes)


def _rotation(matrix: jax.Array) -> jax.Array:
    """The Q factor with the signs that make it Haar distributed for a Gaussian matrix."""
    q, r = jnp.linalg.qr(matrix)
    return q * jnp.where(jnp.diag(r) < 0, -1.0, 1.0).astype(q.dtype)[None, :]
