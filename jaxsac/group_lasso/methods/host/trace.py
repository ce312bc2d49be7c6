"""A hook that tells a benchmark how long the parts of the host-driven method take.

    spent = collections.defaultdict(list)
    with tracing(lambda part, seconds: spent[part].append(seconds)):
        group_lasso.solve(X, y, groups, lam)

A part is a function marked `@traced`, called by its name: first_pass, scales, refit, gradients,
certify, descend (the compiled ones), roots, residual, values_along (what asks the loss), exchanged,
make (the working set and its model), combined, products, newton_steps and newton_direction (NumPy).
What one part calls of another is the caller's time. A part's result is waited for, so that the
seconds are its own; without a listener a call of a part costs one comparison more.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

Listener = Callable[[str, float], Any]  # (name of the part, seconds)
Part = TypeVar("Part", bound=Callable[..., Any])

_listeners: list[Listener] = []  # the last one hears


@contextlib.contextmanager
def tracing(listener: Listener) -> Iterator[None]:
    """While it lasts, `listener(part, seconds)` hears of every call of a part."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def traced(part: Part) -> Part:
    """The part, of whose calls a listener hears."""

    @functools.wraps(part)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if not _listeners:
            return part(*arguments, **keywords)
        hearing = _listeners[:]
        _listeners.clear()  # what this part calls is its own time
        start = time.perf_counter()
        try:
            result = jax.block_until_ready(part(*arguments, **keywords))
        finally:
            _listeners.extend(hearing)
        hearing[-1](part.__name__, time.perf_counter() - start)
        return result

    return call  # pyright: ignore[reportReturnType]
