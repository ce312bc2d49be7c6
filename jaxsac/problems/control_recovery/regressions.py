"""Sparse regressions on dense Gaussian designs and on budgeted actions, in the smallest form that
has the same law. Unbatched: vmap them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsac._arguments import anything, arguments, key, real, size


class Regression(NamedTuple):
    """A regression of n rows that stand for T samples."""

    X: jax.Array  # [n, p]
    y: jax.Array  # [n]
    coef: jax.Array  # [p] the true coefficients
    outside: jax.Array  # [] what (1/T) ‖y − X c‖² of all T samples is larger than (1/n) of these


@arguments(
    key=key(),
    rows=size(),
    size=size(1),
    dtype=anything("a floating dtype; None: the default of JAX"),
)
def sphere(key: jax.Array, rows: int, size: int, dtype=None) -> jax.Array:
    """Independent uniform directions [rows, size] of length 1. The key is consumed."""
    draws = jax.random.normal(key, (rows, size), dtype or jnp.result_type(float))
    return draws / jnp.linalg.norm(draws, axis=1, keepdims=True)


@arguments(key=key(), coef=real("p"), num_samples=real(above=0), noise=real(low=0))
def rotated_regression(
    key: jax.Array, coef: jax.Array, num_samples: jax.Array | float, noise: jax.Array | float
) -> Regression:
    """y = X b + e with X [T, p] standard normal, T ≥ p, e ~ N(0, noise²), rotated into p rows:
    least squares objectives are the same.

    With X = QR (R has positive diagonal): ‖y − X c‖² = ‖Q'y − R c‖² + what does not depend on c; R
    is drawn by Bartlett's decomposition (R_ii² ~ χ²_{T−i}, R_ij ~ N(0, 1) above), Q'y = R b + N(0,
    noise² I). Scaled by √(p / T), so that (1/p) ‖·‖² here is (1/T) ‖·‖² there, up to `outside`, the
    noise's part beside the span of X: noise² χ²_{T−p} / T. T is traced, and costs nothing. Consumes
    the key.
    """
    p, dtype = coef.shape[0], coef.dtype
    above, diagonal, noise_key = jax.random.split(key, 3)
    samples, noise = jnp.asarray(num_samples).astype(dtype), jnp.asarray(noise).astype(dtype)
    freedom = samples - jnp.arange(p + 1).astype(dtype)
    # χ²; the last one the noise's
    squares = 2 * jax.random.gamma(
        diagonal, jnp.maximum(freedom, jnp.finfo(dtype).tiny) / 2, dtype=dtype
    )
    R = jnp.triu(jax.random.normal(above, (p, p), dtype), 1) + jnp.diag(jnp.sqrt(squares[:p]))
    target = jnp.matmul(R, coef, precision="highest") + noise * jax.random.normal(
        noise_key, (p,), dtype
    )
    scale = jnp.sqrt(jnp.asarray(p, dtype) / samples)
    return Regression(scale * R, scale * target, coef, noise**2 * squares[p] / samples)


@arguments(
    key=key(),
    num_samples=size(1),
    num_groups=size(1),
    group_size=size(1),
    num_active=size(),
    noise=real(low=0),
    correlation=real(low=-1, high=1),
)
def gaussian_regression(
    key: jax.Array,
    num_samples: int,
    num_groups: int,
    group_size: int,
    num_active: int,
    noise: jax.Array | float,
    correlation: float = 0.0,
) -> Regression:
    """y = X b + e, X standard normal [T, M q], the first k groups of length 1 in random directions.
    Consumes the key.

    With `correlation` c > 0 group k + i has cosine c with group i, i < k, column by column: near
    duplicates of the tools that matter.
    """
    design, direction, noise_key = jax.random.split(key, 3)
    X = jax.random.normal(design, (num_samples, num_groups, group_size))
    if num_groups >= 2 * num_active:
        c = jnp.asarray(correlation).astype(X.dtype)
        copies = c * X[:, :num_active] + jnp.sqrt(1 - c**2) * X[:, num_active : 2 * num_active]
        X = X.at[:, num_active : 2 * num_active].set(copies)
    coef = (
        jnp.zeros((num_groups, group_size), X.dtype)
        .at[:num_active]
        .set(sphere(direction, num_active, group_size, X.dtype))
        .reshape(-1)
    )
    X = X.reshape(num_samples, -1)
    e = jnp.asarray(noise).astype(X.dtype) * jax.random.normal(noise_key, (num_samples,), X.dtype)
    return Regression(X, jnp.matmul(X, coef, precision="highest") + e, coef, jnp.zeros((), X.dtype))


@arguments(key=key(), num_records=size(), num_actions=size(), budget=size())
def random_actions(key: jax.Array, num_records: int, num_actions: int, budget: int) -> jax.Array:
    """Uniform sets of exactly `budget` of M actions, int32 [T, B]: each draw is a rank among the
    actions not yet taken. Consumes the key.
    """
    taken = jnp.full((num_records, budget), num_actions, jnp.int32)  # ascending, padded with M
    for i in range(budget):
        action = jax.random.randint(
            jax.random.fold_in(key, i), (num_records,), 0, num_actions - i, jnp.int32
        )
        for j in range(i):
            action = action + (action >= taken[:, j]).astype(jnp.int32)
        taken = jnp.sort(taken.at[:, i].set(action), axis=1)
    return taken
