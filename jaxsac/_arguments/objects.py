"""Arguments that are no numbers: words, flags, keys, records, functions, and several in one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac._arguments.kind import Kind, Sizes, bind, computed, shown
from jaxsac._arguments.numbers import real
from jaxsac.solution import Solution


@dataclasses.dataclass(frozen=True)
class Choice(Kind):
    """One of a few words; see `choice`."""

    options: tuple[Any, ...]

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        # `in` would compare an array element by element
        if not any(type(value) is type(option) and value == option for option in self.options):
            known = ", ".join(map(repr, self.options))
            raise ValueError(f"{name} must be one of {known}, got {shown(value)}.")
        return value

    def __str__(self) -> str:
        return " or ".join(f'"{option}"' for option in self.options)


@dataclasses.dataclass(frozen=True)
class Flag(Kind):
    """True or False, known when the function is traced."""

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False, got {shown(value)}.")
        return bool(value)

    def __str__(self) -> str:
        return "True or False"


@dataclasses.dataclass(frozen=True)
class Key(Kind):
    """One key of jax.random, typed or raw."""

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        got, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
        typed = got is not None and jnp.issubdtype(got, jax.dtypes.prng_key) and shape == ()
        if not typed and not (got == np.uint32 and shape in ((2,), (4,))):
            raise ValueError(
                f"{name} must be one key, as from jax.random.key(0), got {shown(value)}."
            )
        return value

    def __str__(self) -> str:
        return "a key of jax.random"


@dataclasses.dataclass(frozen=True)
class Record(Kind):
    """An object of the library, or a `Solution` that holds one; see `record`."""

    types: tuple[type, ...]
    sizes: Callable[[Any], Mapping[str, int]] | None

    def dtype(self, value: Any) -> Any:
        got = getattr(self._opened(value), "dtype", None)
        return computed(got) if got is not None and jnp.issubdtype(got, jnp.floating) else None

    def _opened(self, value: Any) -> Any:
        held = isinstance(value, Solution) and Solution not in self.types
        return value.value if held else value

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        value = self._opened(value)
        if not isinstance(value, self.types):
            raise ValueError(f"{name} must be {self}, got {shown(value)}.")
        if self.sizes is not None:
            for letter, number in self.sizes(value).items():
                bind(name, letter, number, sizes)
        return value

    def __str__(self) -> str:
        names = [cls.__name__ for cls in self.types]
        return " or ".join(("an " if name[0] in "AEIOU" else "a ") + name for name in names)


MATRIX = real("T", "p")


@dataclasses.dataclass(frozen=True)
class Design(Kind):
    """A matrix, or a linear map with `predict` and `adjoint`, which has its sizes and dtype; or a
    record that holds one.
    """

    types: tuple[type, ...] = ()

    def dtype(self, value: Any) -> Any:
        got = getattr(value, "dtype", None)
        return computed(got) if got is not None and jnp.issubdtype(got, jnp.floating) else None

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        if isinstance(value, self.types):
            return value
        if hasattr(value, "todense"):
            raise ValueError(
                f"{name} is sparse: pass {name}.toarray(), or a design with predict and adjoint of"
                " your own."
            )
        if not (hasattr(value, "predict") and hasattr(value, "adjoint")):
            matrix = MATRIX.convert(name, value, sizes, dtype)
            if not matrix.size:
                raise ValueError(
                    f"{name} must have at least one row and one column, got shape"
                    f" {list(matrix.shape)}."
                )
            return matrix
        bind(name, "T", value.prediction_shape[0], sizes)
        bind(name, "p", value.num_coefficients, sizes)
        return value

    def __str__(self) -> str:
        return ", or a ".join([str(MATRIX), "design", *(cls.__name__ for cls in self.types)])


@dataclasses.dataclass(frozen=True)
class Callback(Kind):
    """A function of the user; `form` writes it out, as in "(x, y) -> scalar"."""

    form: str = ""

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        if not callable(value):
            raise ValueError(f"{name} must be a function {self.form}, got {shown(value)}.")
        return value

    def __str__(self) -> str:
        return f"a function {self.form}"


@dataclasses.dataclass(frozen=True)
class Parts(Kind):
    """A tuple of several arguments; see `parts`."""

    kinds: Mapping[str, Kind]

    def dtype(self, value: Any) -> Any:
        if not isinstance(value, tuple | list):
            return None
        pairs = zip(self.kinds.values(), value, strict=False)
        return next((d for kind, each in pairs if (d := kind.dtype(each)) is not None), None)

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        if not isinstance(value, tuple | list) or len(value) != len(self.kinds):
            raise ValueError(f"{name} must be {self}, got {shown(value)}.")
        return tuple(
            kind.convert(f"{name}: {part}", each, sizes, dtype)
            for (part, kind), each in zip(self.kinds.items(), value, strict=True)
        )

    def __str__(self) -> str:
        return "(" + ", ".join(f"{part}: {kind}" for part, kind in self.kinds.items()) + ")"


@dataclasses.dataclass(frozen=True)
class Either(Kind):
    """One of several kinds; see `either`."""

    kinds: tuple[Kind, ...]

    def dtype(self, value: Any) -> Any:
        return next((d for kind in self.kinds if (d := kind.dtype(value)) is not None), None)

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        refusals = []
        for kind in self.kinds:
            try:
                return kind.convert(name, value, sizes, dtype)
            except ValueError as refusal:
                refusals.append(str(refusal))
        rank = getattr(value, "ndim", int(isinstance(value, list | tuple)))

        def likely(at: int) -> tuple[bool, bool]:
            """A word is refused by the words that may stand there, numbers by their shape."""
            shape = getattr(self.kinds[at], "shape", None)
            fits = shape is not None and len(shape) == rank
            return isinstance(self.kinds[at], Choice) == isinstance(value, str), fits

        raise ValueError(refusals[max(range(len(refusals)), key=likely)])

    def __str__(self) -> str:
        return ", or ".join(map(str, self.kinds))


@dataclasses.dataclass(frozen=True)
class Anything(Kind):
    """What the function itself looks at; `meaning` says what it may be, and it is refused where
    `like` would be.
    """

    meaning: str
    like: Kind | None = None

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        return value

    def __str__(self) -> str:
        return self.meaning


@dataclasses.dataclass(frozen=True)
class Variables(Kind):
    """A pytree whose real arrays, of one dtype, are variables. Beside them all else is constant, as
    in equinox; without any, numbers are variables.
    """

    def dtype(self, value: Any) -> Any:
        dtypes = (getattr(leaf, "dtype", None) for leaf in jax.tree.leaves(value))
        return next((computed(got) for got in dtypes if self._floats(got)), None)

    def _floats(self, dtype: Any) -> bool:
        return dtype is not None and jnp.issubdtype(dtype, jnp.floating)

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        alone = self.dtype(value) is None

        def variable(leaf: Any) -> Any:
            got = getattr(leaf, "dtype", None)
            if got is None and not (alone and isinstance(leaf, int | float)):
                return leaf
            if got is not None and not alone and not jnp.issubdtype(got, jnp.inexact):
                raise ValueError(
                    f"{name} holds {got} beside the floating arrays that are variables: let the"
                    " functions close over integers and keys, or pass them as data."
                )
            if self._floats(got) and computed(got) != dtype:
                raise ValueError(
                    f"{name} holds {got} where the other variables are {dtype}: cast with .astype."
                )
            return jnp.asarray(real(...).convert(name, leaf, sizes, dtype))

        value = jax.tree.map(variable, value)
        if self.dtype(value) is None:
            raise ValueError(f"{name} has no arrays: there is nothing to optimise in it.")
        return value

    def __str__(self) -> str:
        return "a tree of real arrays"


def choice(*options: Any) -> Choice:
    """One of `options`."""
    return Choice(options)


def record(*types: type, sizes: Callable[[Any], Mapping[str, int]] | None = None) -> Record:
    """An object of one of `types`, or a Solution that holds one; `sizes` reads its letters."""
    return Record(types, sizes)


def parts(**kinds: Kind) -> Parts:
    """A tuple of several arguments."""
    return Parts(kinds)


def either(*kinds: Kind) -> Either:
    """The first of `kinds` that takes the value."""
    return Either(kinds)


flag, key, function, design = Flag, Key, Callback, Design
anything, variables = Anything, Variables
