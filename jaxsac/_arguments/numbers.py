"""Arguments that are numbers: real, int32, and Python integers that decide shapes."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxsac._arguments.kind import Kind, Sizes, bind, computed, shown

LOOKED_AT = 100_000  # numbers; a larger array is not searched for values out of range
_INT32 = np.iinfo(np.int32)
Limit = float | str | None


@dataclasses.dataclass(frozen=True)
class Range:
    """low ≤ value ≤ high, above < value < below; a letter stands for a size of the call."""

    low: Limit = None
    high: Limit = None
    above: Limit = None
    below: Limit = None

    @functools.cached_property
    def ends(self) -> list[tuple[Any, Callable[[Any, Any], Any], str]]:
        """The limits that there are, each with what compares and its sign."""
        every: list[tuple[Any, Callable[[Any, Any], Any], str]] = [
            (self.low, operator.ge, "≥"),
            (self.above, operator.gt, ">"),
            (self.high, operator.le, "≤"),
            (self.below, operator.lt, "<"),
        ]
        return [end for end in every if end[0] is not None]

    def check(self, name: str, value: Any, sizes: Sizes) -> None:
        if not self.ends or isinstance(value, jax.core.Tracer):
            return
        numbers: Any = value if type(value) is int else np.asarray(value)
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

    def or_nan(self, number: Any, sizes: Sizes) -> Any:
        """A traced `number`, NaN where it is out of range: nobody can be told, but no plausible
        answer comes of it.
        """
        ends = [(sizes.get(end) if isinstance(end, str) else end, by) for end, by, _ in self.ends]
        holds = [by(number, end) for end, by in ends if end is not None]
        return (
            jnp.where(functools.reduce(jnp.logical_and, holds), number, jnp.nan)
            if holds
            else number
        )

    def __str__(self) -> str:
        return ", ".join(f"{sign} {limit}" for limit, _, sign in self.ends)


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
        return computed(got) if _floating(got) else None

    def convert(self, name: str, value: Any, sizes: Sizes, dtype: Any) -> Any:
        array = _numbers(name, value, "real numbers")
        got = array.dtype
        if got != dtype:
            if got.kind == "c":
                raise ValueError(f"{name} must be real, got {got}: pass its real part.")
            if _floating(got) and self.own:
                dtype = computed(got)
            explicit = _floating(got) and array.ndim and hasattr(value, "dtype")
            if explicit and not self.own and computed(got) != dtype:
                raise ValueError(
                    f"{name} has dtype {got} where the other arrays have {dtype}: cast it with"
                    " .astype."
                )
        _match(name, array, self.shape, sizes)
        if not array.ndim and not isinstance(array, jax.Array):
            array = dtype.type(array)  # before the range, since a small number may become 0
            self.range.check(name, array, sizes)
            return array
        self.range.check(name, array, sizes)
        array = _as_array(array, dtype)
        parameter = self.shape == () and isinstance(array, jax.core.Tracer)
        return self.range.or_nan(array, sizes) if parameter else array

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
            if isinstance(value, bool | float):
                raise ValueError(f"{name} must be a whole number, got {value}.")
            if not empty:
                raise ValueError(
                    f"{name} must hold integers, got {array.dtype}: cast it with .astype('int32')."
                )
        _match(name, array, self.shape, sizes)
        traced = isinstance(array, jax.core.Tracer)
        wide = not (array.dtype.itemsize < 4 or array.dtype == np.int32)
        if wide and not traced and array.size:
            held = np.asarray(array)
            least, most = int(held.min()), int(held.max())
            if least < _INT32.min or most > _INT32.max:
                raise ValueError(f"{name} must be within ±2^31, got {least} to {most}.")
        if wide and traced:
            array = jnp.clip(array, max(_INT32.min, jnp.iinfo(array.dtype).min), _INT32.max)
        self.range.check(name, array, sizes)
        scalar = not array.ndim and not isinstance(array, jax.Array)
        return np.int32(array) if scalar else _as_array(array, np.dtype(np.int32))

    def __str__(self) -> str:
        return _described("int32" if self.shape != () else "integer", self.shape, self.range)


@dataclasses.dataclass(frozen=True)
class Size(Kind):
    """A Python integer that decides shapes or loops, and is a size by its name; see `size`."""

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
            raise ValueError(f"{name} must be an integer, got {shown(value)}.") from None
        if isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be an integer, got {value}.")
        if number > _INT32.max:
            raise ValueError(f"{name} must be below 2^31, got {number}.")
        self.range.check(name, number, sizes)
        sizes[name] = number
        return number

    def __str__(self) -> str:
        return _described("size, a Python int", (), self.range)


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


def _floating(dtype: Any) -> bool:
    """Half precisions that NumPy does not know are asked of JAX, which takes longer; other
    libraries' dtypes and those of keys have no kind.
    """
    kind = getattr(dtype, "kind", "O")
    return kind == "f" or (kind == "V" and jnp.issubdtype(dtype, jnp.floating))


def _numbers(name: str, value: Any, what: str) -> Any:
    """`value` as an array of JAX or NumPy that holds numbers."""
    if isinstance(value, jax.Array):
        array = value
    else:
        try:
            array = np.asarray(value)
        except Exception:
            raise ValueError(f"{name} must hold {what}, got {shown(value)}.") from None
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            raise ValueError(f"{name} must be float64 or narrower, got {array.dtype}.")
    dtype = array.dtype
    # "V" is a half precision of JAX, or a record of NumPy; a key of JAX has no kind
    if getattr(dtype, "kind", "O") not in "biufcV" or (dtype.kind == "V" and not _floating(dtype)):
        raise ValueError(f"{name} must hold {what}, got {shown(value)}.")
    return array


def _as_array(array: Any, dtype: np.dtype) -> jax.Array:
    """`array` in `dtype`; what is concrete stays so within a function that is being traced."""
    if isinstance(array, jax.Array) and array.dtype == dtype and not array.weak_type:
        return array  # what is weakly typed would be traced again
    if isinstance(array, jax.core.Tracer):
        return array.astype(dtype)
    with jax.ensure_compile_time_eval():
        return jnp.asarray(array, dtype)


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
            bind(name, want, number, sizes, shape, got)
        elif want != number:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(got)}.")


def _shape(shape: tuple[Any, ...]) -> tuple[int | str, ...] | None:
    return None if shape == (...,) else shape


def _described(what: str, shape: Any, range: Range) -> str:
    dims = " of any shape" if shape is None else f" [{', '.join(map(str, shape))}]" * bool(shape)
    return what + dims + (f", {range}" if range.ends else "")


def tolerance(tol: Any, dtype: Any) -> Any:
    """`tol` as a number ≥ 0; None is 1e-6 in float64 and 1e-4 in float32."""
    default = 1e-6 if jnp.finfo(dtype).bits == 64 else 1e-4
    return real(low=0).take("tol", default if tol is None else tol, dtype)
