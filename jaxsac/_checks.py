"""Checks at trace time: shapes, dtypes and ranges. Every message names the argument and says what
to do.

Nothing here runs on traced values: a check on values applies to concrete input only, and a solver
gives traced bad input a status code.
"""

import operator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def is_concrete(*values: Any) -> bool:
    """Whether no leaf of `values` is traced, so that its numbers can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def real_array(
    name: str, value: Any, shape: tuple[int | str | None, ...], dtype: Any = None
) -> jax.Array:
    """`value` as a floating-point array of `shape`; integers and booleans become the default float
    (or `dtype`).

    An entry of `shape` is a size, or a letter or None for "any size". With `dtype`, a floating
    array of another dtype is an error: mixing precisions silently would hide which one the answer
    has.
    """
    array = jnp.asarray(value)
    require(
        not jnp.issubdtype(array.dtype, jnp.complexfloating),
        f"{name} must be real, got {array.dtype}: pass its real part.",
    )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(dtype or jnp.result_type(float))
    check_shape(name, array, shape)
    if dtype is not None and array.dtype != dtype:
        if getattr(value, "dtype", None) is not None and not getattr(value, "weak_type", False):
            raise ValueError(
                f"{name} has dtype {array.dtype} where the other arrays have {jnp.dtype(dtype)}:"
                " cast it with .astype."
            )
        array = array.astype(dtype)
    return array


def real_scalar(
    name: str, value: Any, dtype: Any, minimum: float | None = None, *, strict: bool = False
) -> jax.Array:
    """`value` as a scalar array of `dtype`, so that Python, numpy and jax numbers share one trace.

    A concrete one must be ≥ `minimum` (with `strict`: above it).
    """
    require(
        np.ndim(value) == 0,
        f"{name} must be a scalar, got shape {np.shape(value)}: use jax.vmap for several values.",
    )
    if minimum is not None and is_concrete(value):
        ok = float(value) > minimum if strict else float(value) >= minimum
        require(
            ok or bool(np.isnan(float(value))),
            f"{name} must be {'>' if strict else '>='} {minimum:g}, got {float(value):g}.",
        )
    return jnp.asarray(value).astype(dtype)


def tolerance(tol: Any, dtype: Any) -> jax.Array:
    """`tol` as a scalar array ≥ 0; None is 1e-6 in float64 and 1e-4 in float32."""
    default = 1e-6 if jnp.finfo(dtype).bits == 64 else 1e-4
    return real_scalar("tol", default if tol is None else tol, dtype, 0.0)


def integer_array(name: str, value: Any, shape: tuple[int | str | None, ...]) -> jax.Array:
    """`value` as an int32 array of `shape`; floating input is an error, and so is what does not
    fit, where it is concrete. Where it is traced it is cut to the ends of int32.
    """
    limits = np.iinfo(np.int32)
    if is_concrete(value):
        numbers = np.asarray(value)
        if np.issubdtype(numbers.dtype, np.integer) and numbers.size:
            require(
                int(numbers.min()) >= limits.min and int(numbers.max()) <= limits.max,
                f"{name} must be within ±2^31, got {int(numbers.min())} to {int(numbers.max())}.",
            )
    array = jnp.asarray(value)
    require(
        jnp.issubdtype(array.dtype, jnp.integer),
        f"{name} must hold integers, got {array.dtype}: cast it with .astype('int32').",
    )
    check_shape(name, array, shape)
    if jnp.iinfo(array.dtype).max > limits.max and not is_concrete(array):
        array = jnp.clip(array, limits.min, limits.max)
    return array.astype(jnp.int32)


def boolean_array(name: str, value: Any, shape: tuple[int | str | None, ...]) -> jax.Array:
    """`value` as booleans of `shape`; numbers are an error."""
    got = np.asarray(value) if isinstance(value, list | tuple) else value
    dtype = getattr(got, "dtype", type(got).__name__)
    require(dtype in (np.bool_, "bool"), f"{name} must be boolean, got {dtype}.")
    array = jnp.asarray(got)
    check_shape(name, array, shape)
    return array


def static_integer(name: str, value: Any, minimum: int) -> int:
    """`value` as a Python int ≥ `minimum`; it decides shapes, so it cannot be traced."""
    if isinstance(value, jax.core.Tracer):
        raise ValueError(
            f"{name} decides array shapes and must be a Python int: mark it static"
            " (static_argnames) or close over it."
        )
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}.") from None
    require(number >= minimum, f"{name} must be at least {minimum}, got {number}.")
    require(number < 2**31, f"{name} must be below 2^31, got {number}.")
    return number


def choice(name: str, value: Any, options: tuple[str, ...]) -> str:
    require(
        value in options, f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}."
    )
    return value


def check_shape(name: str, array: jax.Array, shape: tuple[int | str | None, ...]) -> None:
    fits = array.ndim == len(shape) and all(
        not isinstance(want, int) or want == got
        for want, got in zip(shape, array.shape, strict=True)
    )
    wanted = "[" + ", ".join("any" if want is None else str(want) for want in shape) + "]"
    require(fits, f"{name} must have shape {wanted}, got {list(array.shape)}.")
