"""What all kinds of arguments share: the sizes of a call, and how a value is shown."""

import abc
import dataclasses
from typing import Any

import jax
import numpy as np

Sizes = dict[str, int]  # the sizes that the letters of a call stand for so far


@dataclasses.dataclass(frozen=True)
class Kind(abc.ABC):
    """What an argument may be."""

    @abc.abstractmethod
    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        """What the function gets, or ValueError; real numbers in `dtype`. Notes new sizes."""

    def take(self, name: str, value: Any, dtype: Any = None, **sizes: int) -> Any:
        """The same for a value that no declaration sees, such as a field of a record."""
        dtype = self.dtype(value) if dtype is None else dtype
        return self.convert(name, value, sizes, np.dtype(dtype or computed(np.float64)))

    def dtype(self, value: Any) -> Any:
        """The floating dtype that `value` gives to its call, or None."""
        return None


_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def computed(dtype: Any) -> np.dtype:
    """Half precision is computed in float32; float64 where the configuration of JAX allows it."""
    return _DOUBLE if dtype == _DOUBLE and jax.config.read("jax_enable_x64") else _SINGLE


def bind(
    name: str, letter: str, number: int, sizes: Sizes, shape: Any = None, got: Any = None
) -> None:
    """Let `letter` be `number` in this call; an error where it is another one already."""
    base, _, more = letter.partition(" + ")
    if more and base in sizes:
        sizes[letter] = sizes[base] + int(more)
    if sizes.setdefault(letter, number) != number:
        if shape is None:
            raise ValueError(f"{name} must have {letter} = {sizes[letter]}, got {number}.")
        wanted = ", ".join(str(sizes.get(want, want)) for want in shape)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(got)}.")


def shown(value: Any) -> str:
    """A value in a message: short, and what it is where it is long."""
    if isinstance(value, str | int | float | complex | bool | None):
        text = repr(value)
        return text if len(text) < 60 else text[:57] + "..."
    shape = getattr(value, "shape", None)
    cls = type(value)
    said = cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"
    if shape is not None and hasattr(value, "dtype"):
        return f"{said} of {value.dtype} {list(shape)}"
    return f"a {said}"
