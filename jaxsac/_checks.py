"""Checks at trace time of what the declarations of arguments (`_arguments`) cannot say. Every
message names the argument and says what to do.

Nothing here runs on traced values: a check on values applies to concrete input only, and a solver
gives traced bad input a status code.
"""

from collections.abc import Callable
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


def require_known(test: Callable[..., Any], message: str, *arrays: Any) -> None:
    """Refuse known arrays of which test(*arrays), in NumPy, does not hold everywhere."""
    if is_concrete(arrays):
        require(bool(np.all(test(*map(np.asarray, arrays)))), message)


def boolean_array(name: str, value: Any, shape: tuple[int | str | None, ...]) -> jax.Array:
    """`value` as booleans of `shape`; numbers are an error."""
    got = np.asarray(value) if isinstance(value, list | tuple) else value
    dtype = getattr(got, "dtype", type(got).__name__)
    require(dtype in (np.bool_, "bool"), f"{name} must be boolean, got {dtype}.")
    array = jnp.asarray(got)
    check_shape(name, array, shape)
    return array


def check_shape(name: str, array: jax.Array, shape: tuple[int | str | None, ...]) -> None:
    fits = array.ndim == len(shape) and all(
        not isinstance(want, int) or want == got
        for want, got in zip(shape, array.shape, strict=True)
    )
    wanted = "[" + ", ".join("any" if want is None else str(want) for want in shape) + "]"
    require(fits, f"{name} must have shape {wanted}, got {list(array.shape)}.")
