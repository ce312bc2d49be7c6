"""The decorator."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.core
import numpy as np

from jaxsac._arguments.kind import Kind, Sizes, computed

_DECLARED = "__arguments__"
Function = TypeVar("Function", bound=Callable[..., Any])


def arguments(*, on_host: bool = False, **kinds: Kind) -> Callable[[Function], Function]:
    """Declare the arguments of a function, or of a class's constructor: every call is converted and
    checked, in the order of the declaration. What runs `on_host` refuses traced values.
    """

    def declare(function: Function) -> Function:
        if isinstance(function, type):
            made: Any = function
            made.__init__ = declare(made.__init__)
            return made
        parameters = inspect.signature(function).parameters
        absent = (inspect.Parameter.empty, None)
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
            if name in parameters and not any(parameters[name].default is each for each in absent)
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
            if on_host:
                _refuse_traced(function.__qualname__.removesuffix(".__init__"), given)
            given = defaults | given
            dtypes = (kinds[name].dtype(given[name]) for name in floats if name in given)
            dtype = next((each for each in dtypes if each is not None), computed(np.float64))
            sizes: Sizes = {}
            for name, kind in kinds.items():
                if name in given and (given[name] is not None or name in required):
                    given[name] = kind.convert(name, given[name], sizes, dtype)
            return function(**given)

        setattr(checked, _DECLARED, kinds)
        return checked  # pyright: ignore[reportReturnType]

    return declare


def _refuse_traced(function: str, given: dict[str, Any]) -> None:
    for name, value in given.items():
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
            raise ValueError(
                f"{name} must be concrete, not traced: {function} runs on the host, outside jax.jit"
                " and jax.vmap."
            )


def passes_on(to: Callable[..., Any], **own: Kind) -> Callable[[Function], Function]:
    """Declare a function that hands its arguments to `to`, which converts them, but for its
    `own`.
    """

    def declare(function: Function) -> Function:
        checked: Any = arguments(on_host=False, **own)
        passing = checked(functools.wraps(function)(lambda *a, **k: function(*a, **k)))
        setattr(passing, _DECLARED, declared(to) | own)
        return passing  # pyright: ignore[reportReturnType]

    return declare


def declared(function: Callable[..., Any]) -> dict[str, Kind]:
    """What `arguments` said of a function, or of a class's constructor; {} where nothing was."""
    if isinstance(function, type):
        function = function.__init__
    return dict(getattr(function, _DECLARED, {}))
