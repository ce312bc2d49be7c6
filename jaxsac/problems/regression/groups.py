"""Group-sparse regression and classification with correlated columns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac._arguments import anything, arguments, key, real, size

_DRAWN: dict[str, Any] = {
    "key": key(),
    "num_samples": size(1),
    "num_groups": size(1),
    "group_size": size(1),
    "num_active": size(high="num_groups"),
    "correlation": real(low=-1, high=1),
}


class GroupRegression(NamedTuple):
    """A regression whose coefficients are zero but in some groups."""

    X: jax.Array  # [T, p]
    y: jax.Array  # [T]
    coef: jax.Array  # [p] the true coefficients
    support: jax.Array  # bool [G] the groups that have any


@arguments(
    key=key(),
    num_samples=size(1),
    num_columns=size(1),
    correlation=real(low=-1, high=1),
    dtype=anything("a floating dtype; None: the default of JAX"),
)
def ar1_design(
    key: jax.Array,
    num_samples: int,
    num_columns: int,
    correlation: jax.Array | float = 0.5,
    dtype=None,
) -> jax.Array:
    """Gaussian X [T, p] whose columns follow x_j = ρ x_{j−1} + (1 − ρ²)^½ e_j: variance 1,
    corr(x_i, x_j) = ρ^|i − j|. Consumes the key.
    """
    noise = jax.random.normal(key, (num_columns, num_samples), dtype or jnp.result_type(float))
    rho = jnp.asarray(correlation).astype(noise.dtype)
    spread = jnp.sqrt(1.0 - rho**2)

    def following(last, fresh):
        column = rho * last + spread * fresh
        return column, column

    _, rest = lax.scan(following, noise[0], noise[1:])
    return jnp.concatenate([noise[:1], rest]).T


@arguments(
    **_DRAWN,
    signal_to_noise=real(above=0),
    dtype=anything("a floating dtype; None: the default of JAX"),
)
def group_regression(
    key: jax.Array,
    num_samples: int,
    num_groups: int,
    group_size: int,
    num_active: int,
    *,
    correlation: jax.Array | float = 0.5,
    signal_to_noise: jax.Array | float = 5.0,
    dtype=None,
) -> GroupRegression:
    """y = X b + noise: AR(1) columns, `num_active` random groups with N(0, 1) coefficients, var(X
    b) = `signal_to_noise` · var(noise).

    Consumes the key.
    """
    X, coef, support, key = _signal(
        key, num_samples, num_groups, group_size, num_active, correlation, dtype
    )
    signal = X @ coef
    scale = jnp.std(signal) / jnp.sqrt(jnp.asarray(signal_to_noise).astype(signal.dtype))
    return GroupRegression(
        X, signal + scale * jax.random.normal(key, signal.shape, signal.dtype), coef, support
    )


@arguments(
    **_DRAWN, score_spread=real(low=0), dtype=anything("a floating dtype; None: the default of JAX")
)
def group_classification(
    key: jax.Array,
    num_samples: int,
    num_groups: int,
    group_size: int,
    num_active: int,
    *,
    correlation: jax.Array | float = 0.5,
    score_spread: jax.Array | float = 4.0,
    dtype=None,
) -> GroupRegression:
    """y = ±1 with log-odds X b, scaled so that std(X b) = `score_spread`; otherwise as
    `group_regression`. Consumes the key.
    """
    X, coef, support, key = _signal(
        key, num_samples, num_groups, group_size, num_active, correlation, dtype
    )
    coef = coef * (jnp.asarray(score_spread).astype(coef.dtype) / jnp.std(X @ coef))
    positive = jax.random.uniform(key, (num_samples,), X.dtype) < jax.nn.sigmoid(X @ coef)
    return GroupRegression(X, jnp.where(positive, 1.0, -1.0).astype(X.dtype), coef, support)


def _signal(key, num_samples, num_groups, group_size, num_active, correlation, dtype):
    design_key, support_key, coef_key, rest = jax.random.split(key, 4)
    X = ar1_design(design_key, num_samples, num_groups * group_size, correlation, dtype)
    support = jax.random.permutation(support_key, num_groups) < num_active
    coef = jax.random.normal(coef_key, (num_groups, group_size), X.dtype) * support[:, None].astype(
        X.dtype
    )
    return X, coef.reshape(-1), support, rest
