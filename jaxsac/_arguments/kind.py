"""What all kinds of arguments share: the sizes of a call, and how a value is shown."""

import dataclasses
from typing import Any

Sizes = dict[str, int]  # the sizes that the letters of a call stand for so far


@dataclasses.dataclass(frozen=True)
class Kind:
    """What an argument may be. `convert(name, value, sizes, dtype)` returns what the function
    gets, or raises ValueError.
    """

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        raise NotImplementedError

    def dtype(self, value: Any) -> Any:
        """The floating dtype that `value` gives to its call, or None."""
        return None


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
