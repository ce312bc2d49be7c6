"""Wrong and unusual values for one argument, made from the kind that it is declared with."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac._arguments.kind import Kind
from jaxsac._arguments.numbers import LOOKED_AT, Integer, Range, Real, Size
from jaxsac._arguments.objects import (
    MATRIX,
    Anything,
    Callback,
    Choice,
    Design,
    Either,
    Flag,
    Key,
    Parts,
    Record,
    Variables,
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One call: what the argument is changed to, and what must come of it.

    * "refused": a ValueError that names an argument of the call;
    * "alike": the same as with `like` in its place, be it an answer or a refusal;
    * "trace": a NaN went in: NaN, a status or NO_ACTION comes out, or a refusal;
    * "harmless": an answer or such a refusal, within the time limit.
    """

    label: str
    value: Any
    outcome: str
    like: Any = None


def cells(kind: Kind, value: Any, optional: bool) -> Iterator[Cell]:
    """Every cell of an argument of this kind; `value` is a good one."""
    if isinstance(kind, Anything):
        if kind.like is not None:
            yield from cells(kind.like, value, optional)
        return
    if isinstance(kind, Either):
        chosen = next(each for each in kind.kinds if accepts(each, value))
        others = [each for each in kind.kinds if each is not chosen]
        yield from (
            cell
            for cell in cells(chosen, value, optional)
            if cell.outcome != "refused" or not any(accepts(each, cell.value) for each in others)
        )
        return
    yield Cell("an object", object(), "refused")
    if not optional:
        yield Cell("None", None, "refused")
    yield from _BY_KIND[type(kind)](kind, value)


def accepts(kind: Kind, value: Any) -> bool:
    try:
        kind.convert("value", value, {}, np.dtype(float))
    except ValueError:
        return False
    return True


def _ranges(kind: Range, value: Any) -> Iterator[tuple[str, Any]]:
    """The value with its first number just out of range."""
    outside = ((kind.low, -1), (kind.high, 1), (kind.above, 0), (kind.below, 0))
    for limit, step in outside:
        if isinstance(limit, int | float) and np.isfinite(limit):
            yield f"{limit} + {step}", _with_first(value, limit + step)


def _with_first(value: Any, number: Any) -> Any:
    changed = np.array(value)
    if not changed.size:
        return changed
    changed[(0,) * changed.ndim] = number
    return changed if changed.ndim else changed[()]


def _texts(value: Any) -> Iterator[Cell]:
    yield Cell("text", "text", "refused")
    yield Cell("texts", np.full(np.shape(value), "text"), "refused")
    yield Cell("complex", np.asarray(value) * (1 + 1j), "refused")


def _shapes(kind: Any, value: Any) -> Iterator[Cell]:
    if kind.shape is None:
        return
    array = np.asarray(value)
    yield Cell("one axis more", array[None], "refused")
    if array.ndim and array.shape[0]:
        yield Cell("one axis less", array[0], "refused")
        yield Cell("one short", array[:-1], "harmless")
        yield Cell("empty", array[:0], "harmless")


def _real(kind: Real, value: Any) -> Iterator[Cell]:
    array = np.asarray(value)
    yield from _texts(value)
    yield from _shapes(kind, value)
    for label, outside in _ranges(kind.range, array):
        yield Cell(label, outside, "refused")
    nan = _with_first(array, np.nan)
    seen = kind.range.ends and 0 < array.size <= LOOKED_AT
    if array.size:
        yield Cell("NaN", nan, "refused" if seen else "trace")
        yield Cell("infinite", _with_first(array, np.inf), "harmless")
        yield Cell("times 1e30", array * 1e30, "harmless")
    rounded = np.round(array)
    yield Cell("integers", rounded.astype(int), "alike", rounded)
    yield Cell("booleans", array > 0, "alike", (array > 0).astype(array.dtype))
    half = array.astype(np.float16)
    yield Cell("half precision", half, "alike", half.astype(np.float32))
    if array.ndim:
        yield Cell("a list", array.tolist(), "alike", value)
        yield Cell("strided", np.repeat(array, 2, axis=-1)[..., ::2], "alike", value)
        yield Cell("in Fortran's order", np.asfortranarray(array), "alike", value)


def _integer(kind: Integer, value: Any) -> Iterator[Cell]:
    array = np.asarray(value)
    yield from _texts(value)
    yield from _shapes(kind, value)
    if array.size:
        yield Cell("halves", array + 0.5, "refused")
        yield Cell("2^33", _with_first(array.astype(np.int64), 2**33), "refused")
    for label, outside in _ranges(kind.range, array):
        yield Cell(label, outside, "refused")
    yield Cell("64 bits", array.astype(np.int64), "alike", value)


def _size(kind: Size, value: Any) -> Iterator[Cell]:
    for label, wrong in (("2.5", 2.5), ("text", "two"), ("a list", [value]), ("2^40", 2**40)):
        yield Cell(label, wrong, "refused")
    for label, outside in _ranges(kind.range, np.int64(value)):
        yield Cell(label, int(outside), "refused")
    yield Cell("of NumPy", np.int64(value), "alike", value)


def _choice(kind: Choice, value: Any) -> Iterator[Cell]:
    yield Cell("no such word", "no such word", "refused")
    yield Cell("an array", np.ones(2), "refused")


def _flag(kind: Flag, value: Any) -> Iterator[Cell]:
    yield Cell("text", "yes", "refused")
    yield Cell("of NumPy", np.bool_(value), "alike", value)


def _key(kind: Key, value: Any) -> Iterator[Cell]:
    yield Cell("a number", 0, "refused")
    yield Cell("two keys", jax.random.split(jax.random.key(0)), "refused")


def _record(kind: Kind, value: Any) -> Iterator[Cell]:
    yield Cell("a number", 3, "refused")
    yield Cell("an array", jnp.ones(3), "refused")


def _design(kind: Design, value: Any) -> Iterator[Cell]:
    if hasattr(value, "predict"):
        yield from _record(kind, value)
    else:
        yield from _real(MATRIX, value)
        yield Cell("empty", np.zeros((0, 0)), "refused")


def _callback(kind: Callback, value: Any) -> Iterator[Cell]:
    yield Cell("a number", 3, "refused")


def _parts(kind: Parts, value: Any) -> Iterator[Cell]:
    yield Cell("one part less", tuple(value)[:-1], "refused")
    for at, (name, part) in enumerate(kind.kinds.items()):
        for cell in cells(part, value[at], False):

            def within(changed: Any, at: int = at) -> tuple:
                return (*value[:at], changed, *value[at + 1 :])

            like = within(cell.like) if cell.outcome == "alike" else None
            yield Cell(f"{name}: {cell.label}", within(cell.value), cell.outcome, like)


def _variables(kind: Variables, value: Any) -> Iterator[Cell]:
    """A good one is an array alone."""
    array = np.asarray(value)
    yield Cell("nothing", (), "refused")
    yield Cell("a function", abs, "refused")
    yield Cell("two dtypes", [array.astype(np.float32), array.astype(np.float64)], "refused")
    yield Cell("beside integers", [array, np.arange(3)], "refused")
    yield Cell("beside a key", [array, jax.random.key(0)], "refused")
    yield from (cell for cell in _real(Real(None, Range(), False), value) if cell.label != "a list")


_BY_KIND = {
    Real: _real,
    Integer: _integer,
    Size: _size,
    Choice: _choice,
    Flag: _flag,
    Key: _key,
    Record: _record,
    Design: _design,
    Callback: _callback,
    Parts: _parts,
    Variables: _variables,
}
