"""The two real-data bilevel problems for peers that have jax but not jaxsac: lower and upper
functions on slices of rows.
"""

from typing import Any, NamedTuple


class Functions(NamedTuple):
    """`lower(y, x, start, size)` and `upper(y, x, start, size)` on `size` rows from `start`; y and
    x are flat vectors.
    """

    lower: Any
    upper: Any
    x: Any
    y: Any
    num_train: int
    num_valid: int


def functions(arrays, problem: str) -> Functions:
    """`problem`: "weights" (a regularisation weight per feature) or "cleaning" (a weight per
    training row).
    """
    import jax
    import jax.numpy as jnp

    train, valid = jnp.asarray(arrays["train"]), jnp.asarray(arrays["valid"])
    train_targets, valid_targets = (
        jnp.asarray(arrays["train_targets"]),
        jnp.asarray(arrays["valid_targets"]),
    )

    def rows(array, start, size):
        return jax.lax.dynamic_slice_in_dim(array, start, size)

    def logistic(y, features, signs):
        return jnp.mean(jax.nn.softplus(-signs * (features @ y)))

    def entropy(y, features, classes):
        scores = features @ y.reshape(features.shape[1], 10)
        return (
            jax.nn.logsumexp(scores, axis=1)
            - jnp.take_along_axis(scores, classes[:, None], axis=1)[:, 0]
        )

    if problem == "weights":
        num_x = num_y = train.shape[1]

        def lower(y, x, start, size):
            loss = logistic(y, rows(train, start, size), rows(train_targets, start, size))
            return loss + 0.5 * jnp.sum(jnp.exp(x) * y**2)

        def upper(y, x, start, size):
            return logistic(y, rows(valid, start, size), rows(valid_targets, start, size))
    else:
        num_x, num_y = train.shape[0], train.shape[1] * 10

        def lower(y, x, start, size):
            losses = entropy(y, rows(train, start, size), rows(train_targets, start, size))
            return jnp.mean(jax.nn.sigmoid(rows(x, start, size)) * losses) + 1e-3 * jnp.sum(y**2)

        def upper(y, x, start, size):
            return jnp.mean(entropy(y, rows(valid, start, size), rows(valid_targets, start, size)))

    zeros = (jnp.zeros(num, train.dtype) for num in (num_x, num_y))
    return Functions(lower, upper, *zeros, train.shape[0], valid.shape[0])


def project(x, problem: str):
    """What the outer steps that can project do: log-weights stay in [-10, 1]."""
    import jax.numpy as jnp

    return jnp.clip(x, -10.0, 1.0) if problem == "weights" else x
