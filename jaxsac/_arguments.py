"""The one way in. A public function declares its arguments; each call is converted and checked
before the function runs, and a refusal names the argument and says what to do:

    @arguments(v=real("d"), radius=real(low=0))
    def project_l2_ball(v, radius): ...

* A real array may come as anything that holds numbers; integers and booleans become floats, half
  precision is computed in float32. All real arrays of a call have one dtype, that of the first with
  a floating dtype; numbers follow it.
* Integers are int32; what does not fit is refused, never cut.
* A letter in a shape is a size: the same one wherever a call, or a record in it, has that letter.
* Ranges are looked at where a value is concrete and holds at most `LOOKED_AT` numbers; NaN fails a
  range. Traced values are converted, and left to the function's status.
* None passes where it is the default.

`declared` gives the declarations back: the documentation's tables and the fault test are made from
them.
"""

import dataclasses
import functools
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxsac.solution import Solution

LOOKED_AT = 100_000  # numbers; a larger array is not searched for values out of range
_INT32 = np.iinfo(np.int32)

Function = TypeVar("Function", bound=Callable[..., Any])
Sizes = dict[str, int]
Limit = float | str | None


@dataclasses.dataclass(frozen=True)
class Range:
    """low ≤ value ≤ high, above < value < below; a letter stands for a size of the call."""

    low: Limit = None
    high: Limit = None
    above: Limit = None
    below: Limit = None

    @functools.cached_property
    def ends(self) -> tuple[tuple[float | str, Callable[[Any, Any], Any], str], ...]:
        """The limits that there are, each with what compares and its sign."""
        every = (
            (self.low, operator.ge, "≥"),
            (self.above, operator.gt, ">"),
            (self.high, operator.le, "≤"),
            (self.below, operator.lt, "<"),
        )
        return tuple((limit, *rest) for limit, *rest in every if limit is not None)

    def check(self, name: str, value: Any, sizes: Sizes) -> None:
        if not self.ends or isinstance(value, jax.core.Tracer):
            return
        numbers = value if type(value) is int else np.asarray(value)
        scalar = type(value) is int or not numbers.ndim
        if not scalar and not 0 < numbers.size <= LOOKED_AT:
            return
        for limit, holds, sign in self.ends:
            end = sizes.get(limit) if isinstance(limit, str) else limit
            if end is None:
                continue
            fits = holds(numbers, end)
            if not (fits if scalar else fits.all()):
                wrong = numbers if scalar else numbers[np.logical_not(fits)][0]
                said = f"{limit} = {end}" if isinstance(limit, str) else f"{end:g}"
                where = "" if scalar else " everywhere"
                raise ValueError(f"{name} must be {sign} {said}{where}, got {wrong:g}.")

    def __str__(self) -> str:
        return ", ".join(f"{sign} {limit}" for limit, _, sign in self.ends)


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


@dataclasses.dataclass(frozen=True)
class Real(Kind):
    """Real numbers; see `real`."""

    shape: tuple[int | str, ...] | None
    range: Range
    own: bool  # keeps its dtype, whatever the others have

    def dtype(self, value: Any) -> Any:
        got = getattr(value, "dtype", None)
        if got is None or self.own or self.shape == () or not value.shape:
            return None
        return _computed(got) if _floating(got) else None

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        array = _numbers(name, value, "real numbers")
        got = array.dtype
        if got != dtype:
            if got.kind == "c":
                raise ValueError(f"{name} must be real, got {got}: pass its real part.")
            if _floating(got) and self.own:
                dtype = _computed(got)
            elif _floating(got) and array.ndim and hasattr(value, "dtype"):
                if _computed(got) != dtype:
                    raise ValueError(
                        f"{name} has dtype {got} where the other arrays have {dtype}: cast it"
                        " with .astype."
                    )
        _match(name, array, self.shape, sizes)
        self.range.check(name, array, sizes)
        if isinstance(array, jax.Array):
            return array if got == dtype else array.astype(dtype)
        return jnp.asarray(array, dtype) if array.ndim else dtype.type(array)

    def __str__(self) -> str:
        what = "real" if self.shape != () else "number"
        return _described(what, self.shape, self.range)


@dataclasses.dataclass(frozen=True)
class Integer(Kind):
    """Integers that may be traced; see `integer`."""

    shape: tuple[int | str, ...] | None
    range: Range

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        array = _numbers(name, value, "integers")
        if array.dtype.kind not in "iu":
            empty = isinstance(value, list | tuple) and not array.size
            if not empty:
                raise ValueError(
                    f"{name} must hold integers, got {array.dtype}: cast it with .astype('int32')."
                )
        _match(name, array, self.shape, sizes)
        traced = isinstance(array, jax.core.Tracer)
        wide = not (array.dtype.itemsize < 4 or array.dtype == np.int32)
        if wide and not traced and array.size:
            least, most = int(np.min(array)), int(np.max(array))
            if least < _INT32.min or most > _INT32.max:
                raise ValueError(f"{name} must be within ±2^31, got {least} to {most}.")
        if wide and traced:
            array = jnp.clip(array, max(_INT32.min, jnp.iinfo(array.dtype).min), _INT32.max)
        self.range.check(name, array, sizes)
        if isinstance(array, jax.Array):
            return array if array.dtype == np.int32 else array.astype(np.int32)
        return jnp.asarray(array, np.int32) if array.ndim else np.int32(array)

    def __str__(self) -> str:
        return _described("int32" if self.shape != () else "integer", self.shape, self.range)


@dataclasses.dataclass(frozen=True)
class Size(Kind):
    """A Python integer that decides shapes or loops; see `size`."""

    range: Range

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        if isinstance(value, jax.core.Tracer):
            raise ValueError(
                f"{name} decides array shapes and must be a Python int: mark it static"
                " (static_argnames) or close over it."
            )
        try:
            number = operator.index(value)
        except TypeError:
            raise ValueError(f"{name} must be an integer, got {_shown(value)}.") from None
        if isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be an integer, got {value}.")
        if number > _INT32.max:
            raise ValueError(f"{name} must be below 2^31, got {number}.")
        self.range.check(name, number, sizes)
        return number

    def __str__(self) -> str:
        return _described("size, a Python int", (), self.range)


@dataclasses.dataclass(frozen=True)
class Choice(Kind):
    """One of a few words; see `choice`."""

    options: tuple[Any, ...]

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        # `in` would compare an array element by element
        if not any(type(value) is type(option) and value == option for option in self.options):
            known = ", ".join(map(repr, self.options))
            raise ValueError(f"{name} must be one of {known}, got {_shown(value)}.")
        return value

    def __str__(self) -> str:
        return " or ".join(f'"{option}"' for option in self.options)


@dataclasses.dataclass(frozen=True)
class Flag(Kind):
    """True or False, known when the function is traced; see `flag`."""

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False, got {_shown(value)}.")
        return bool(value)

    def __str__(self) -> str:
        return "True or False"


@dataclasses.dataclass(frozen=True)
class Key(Kind):
    """A key of jax.random; see `key`."""

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        got, shape = getattr(value, "dtype", None), np.shape(value)
        typed = got is not None and jnp.issubdtype(got, jax.dtypes.prng_key) and shape == ()
        if not typed and not (got == np.uint32 and shape in ((2,), (4,))):
            raise ValueError(
                f"{name} must be one key, as from jax.random.key(0), got {_shown(value)}."
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
        return np.dtype(got) if got is not None and jnp.issubdtype(got, jnp.floating) else None

    def _opened(self, value: Any) -> Any:
        held = isinstance(value, Solution) and Solution not in self.types
        return value.value if held else value

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        value = self._opened(value)
        if not isinstance(value, self.types):
            raise ValueError(f"{name} must be {self}, got {_shown(value)}.")
        if self.sizes is not None:
            for letter, number in self.sizes(value).items():
                _bind(name, letter, number, sizes)
        return value

    def __str__(self) -> str:
        names = [cls.__name__ for cls in self.types]
        return " or ".join(("an " if name[0] in "AEIOU" else "a ") + name for name in names)


@dataclasses.dataclass(frozen=True)
class Callback(Kind):
    """A function of the user; see `function`."""

    form: str

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        if not callable(value):
            raise ValueError(f"{name} must be a function {self.form}, got {_shown(value)}.")
        return value

    def __str__(self) -> str:
        return f"a function {self.form}"


@dataclasses.dataclass(frozen=True)
class Parts(Kind):
    """A tuple of several arguments; see `parts`."""

    kinds: Mapping[str, Kind]

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        if not isinstance(value, tuple | list) or len(value) != len(self.kinds):
            raise ValueError(f"{name} must be {self}, got {_shown(value)}.")
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
        # a word is refused by the words that may stand there, a number by its range
        chosen = [isinstance(kind, Choice) == isinstance(value, str) for kind in self.kinds]
        raise ValueError(refusals[chosen.index(True) if True in chosen else 0])

    def __str__(self) -> str:
        return ", or ".join(map(str, self.kinds))


@dataclasses.dataclass(frozen=True)
class Anything(Kind):
    """What the function itself looks at; see `anything`."""

    meaning: str

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        return value

    def __str__(self) -> str:
        return self.meaning


def real(
    *shape: Any,
    low: Limit = None,
    high: Limit = None,
    above: Limit = None,
    below: Limit = None,
    own: bool = False,
) -> Real:
    """Real numbers of `shape` (a number without one, any shape for `...`) within a range."""
    return Real(_shape(shape), Range(low, high, above, below), own)


def integer(*shape: Any, low: Limit = None, high: Limit = None, below: Limit = None) -> Integer:
    """Integers of `shape` (one without it, any shape for `...`) within a range; may be traced."""
    return Integer(_shape(shape), Range(low, high, None, below))


def size(low: Limit = 0, high: Limit = None) -> Size:
    """A Python integer, low ≤ size ≤ high, that decides shapes or the length of a loop."""
    return Size(Range(low, high))


def choice(*options: Any) -> Choice:
    """One of `options`."""
    return Choice(options)


def flag() -> Flag:
    """True or False."""
    return Flag()


def key() -> Key:
    """One key of jax.random, typed or raw."""
    return Key()


def record(*types: type, sizes: Callable[[Any], Mapping[str, int]] | None = None) -> Record:
    """An object of one of `types`, or a Solution that holds one; `sizes` reads its letters."""
    return Record(types, sizes)


def function(form: str = "") -> Callback:
    """A function of the user; `form` writes it out, as in "(x, y) -> scalar"."""
    return Callback(form)


def parts(**kinds: Kind) -> Parts:
    """A tuple of several arguments."""
    return Parts(kinds)


def either(*kinds: Kind) -> Either:
    """The first of `kinds` that takes the value."""
    return Either(kinds)


def anything(meaning: str) -> Anything:
    """What the function itself looks at; `meaning` says what it may be."""
    return Anything(meaning)


def arguments(**kinds: Kind) -> Callable[[Function], Function]:
    """Declare the arguments of a function: every call is converted and checked, in the order of
    the declaration.
    """

    def declare(function: Function) -> Function:
        parameters = inspect.signature(function).parameters
        variadic = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        unknown = [] if variadic else [name for name in kinds if name not in parameters]
        if unknown:
            raise TypeError(f"{function.__qualname__} has no parameter {', '.join(unknown)}.")
        names = [
            each.name for each in parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD
        ]
        defaults = {
            name: parameters[name].default
            for name in kinds
            if name in parameters
            and parameters[name].default not in (inspect.Parameter.empty, None)
        }
        required = {
            name for name in kinds if name in parameters and parameters[name].default is not None
        }
        floats = [name for name, kind in kinds.items() if type(kind).dtype is not Kind.dtype]

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False)) | kwargs
            if len(args) > len(names) or len(given) < len(args) + len(kwargs):
                return function(*args, **kwargs)  # Python says what is wrong
            given = defaults | given
            dtype = None
            for name in floats:
                if name in given:
                    dtype = kinds[name].dtype(given[name])
                    if dtype is not None:
                        break
            else:
                dtype = _computed(np.float64)
            sizes: Sizes = {}
            for name, kind in kinds.items():
                if name in given and (given[name] is not None or name in required):
                    given[name] = kind.convert(name, given[name], sizes, dtype)
            return function(**given)

        checked.__arguments__ = kinds  # pyright: ignore[reportFunctionMemberAccess]
        return checked  # pyright: ignore[reportReturnType]

    return declare


def declared(function: Callable[..., Any]) -> dict[str, Kind]:
    """What `arguments` said of a function, or of a class's constructor; {} where nothing was."""
    if isinstance(function, type):
        function = function.__init__
    return dict(getattr(function, "__arguments__", {}))


_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def _floating(dtype: Any) -> bool:
    """Half precisions that NumPy does not know are asked of JAX, which takes longer."""
    return dtype.kind == "f" or (dtype.kind == "V" and jnp.issubdtype(dtype, jnp.floating))


def _computed(dtype: Any) -> np.dtype:
    """Half precision is computed in float32; float64 where the configuration of JAX allows it."""
    return _DOUBLE if dtype == _DOUBLE and jax.config.read("jax_enable_x64") else _SINGLE


def _numbers(name: str, value: Any, what: str) -> Any:
    """`value` as an array of JAX or NumPy that holds numbers."""
    if isinstance(value, jax.Array):
        array = value
    else:
        try:
            array = np.asarray(value)
        except Exception:
            raise ValueError(f"{name} must hold {what}, got {_shown(value)}.") from None
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            raise ValueError(f"{name} must be float64 or narrower, got {array.dtype}.")
    dtype = array.dtype
    # "V" is a half precision of JAX, or a record of NumPy; a key of JAX has no kind
    if getattr(dtype, "kind", "O") not in "biufcV" or (dtype.kind == "V" and not _floating(dtype)):
        raise ValueError(f"{name} must hold {what}, got {_shown(value)}.")
    return array


def _match(name: str, array: Any, shape: tuple[int | str, ...] | None, sizes: Sizes) -> None:
    if shape is None:
        return
    got = array.shape
    if not got and not shape:
        return
    if len(got) != len(shape):
        wanted = ", ".join(str(sizes.get(want, want)) for want in shape)  # pyright: ignore
        advice = ": use jax.vmap for several" if len(got) > len(shape) else ""
        if shape == ():
            raise ValueError(f"{name} must be one number, got shape {list(got)}{advice}.")
        raise ValueError(f"{name} must have shape [{wanted}], got {list(got)}{advice}.")
    for want, number in zip(shape, got, strict=True):
        if isinstance(want, str):
            _bind(name, want, number, sizes, shape, got)
        elif want != number:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(got)}.")


def _bind(
    name: str, letter: str, number: int, sizes: Sizes, shape: Any = None, got: Any = None
) -> None:
    if sizes.setdefault(letter, number) != number:
        if shape is None:
            raise ValueError(f"{name} must have {letter} = {sizes[letter]}, got {number}.")
        wanted = ", ".join(str(sizes.get(want, want)) for want in shape)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(got)}.")


def _shape(shape: tuple[Any, ...]) -> tuple[int | str, ...] | None:
    return None if shape == (...,) else shape


def _shown(value: Any) -> str:
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


def _described(what: str, shape: Any, range: Range) -> str:
    dims = " of any shape" if shape is None else f" [{', '.join(map(str, shape))}]" * bool(shape)
    return what + dims + (f", {range}" if range.ends else "")
