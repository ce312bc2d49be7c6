"""The loops of `lax`, and `jax.grad`, fit for `jax.shard_map` with its default checks.

There a loop must leave each part of its carry varying over the mesh axes over which it entered: a
counter that starts from a constant, or a sum that starts from zeros, does not. These loops let the
whole carry vary over every axis over which any part of it does, before and after. Outside
`shard_map`, and inside it without checks, they are those of `lax` and cost nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def while_loop(test: Callable[[Any], Any], body: Callable[[Any], Any], start: Any) -> Any:
    """`lax.while_loop`."""
    start, vary = _common(body, start)
    return lax.while_loop(test, lambda carry: vary(body(carry)), start)


def fori_loop(lower: Any, upper: Any, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """`lax.fori_loop`."""
    start, vary = _common(lambda carry: body(jnp.asarray(lower, jnp.int32), carry), start, upper)
    return lax.fori_loop(lower, upper, lambda index, carry: vary(body(index, carry)), start)


def scan(
    body: Callable[[Any, Any], tuple[Any, Any]],
    start: Any,
    xs: Any,
    length: Any = None,
    reverse: bool = False,
):
    """`lax.scan`."""

    def once(carry: Any) -> Any:
        return body(carry, jax.tree.map(lambda leaf: leaf[0], xs))[0]

    start, vary = _common(once, start, xs)

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        carry, y = body(carry, x)
        return vary(carry), y

    return lax.scan(step, start, xs, length, reverse)


def cond(test: Any, yes: Callable[..., Any], no: Callable[..., Any], *operands: Any) -> Any:
    """`lax.cond`. Its operands vary alike, as `vmap` needs; what a branch closes over may not."""
    if _checked_axes():
        operands = _varying(operands, _axes(operands))
    return lax.cond(test, *_alike((yes, no), operands), *operands)


def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """`lax.switch`."""
    return lax.switch(index, _alike(branches, operands), *operands)


def platform_dependent(*operands: Any, default: Callable[..., Any], **platforms: Any) -> Any:
    """`lax.platform_dependent`."""
    default, *others = _alike([default, *platforms.values()], operands)
    return lax.platform_dependent(
        *operands, default=default, **dict(zip(platforms, others, strict=True))
    )


def grad(function: Callable[..., Any], argnums: Any = 0) -> Callable[..., Any]:
    """`jax.grad`, on each device by itself: that of `shard_map` sums the gradient in what does not
    vary over the devices, such as a start that is the same on all, over the devices.
    """
    return lambda *operands: jax.grad(function, argnums)(*own(function, *operands))


def own(function: Callable[..., Any], *operands: Any) -> Any:
    """`operands`, varying over the axes over which function(*operands) does."""
    if not _checked_axes():
        return operands
    return _varying(operands, _axes(jax.eval_shape(function, *operands)))


def _alike(branches: Sequence[Callable[..., Any]], operands: Any) -> Sequence[Callable[..., Any]]:
    """The branches, whose results vary over the axes over which that of any of them does."""
    if not _checked_axes():
        return branches
    axes = _axes([jax.eval_shape(branch, *operands) for branch in branches])
    return [lambda *given, branch=branch: _varying(branch(*given), axes) for branch in branches]


def _common(body: Callable[[Any], Any], start: Any, *others: Any) -> tuple[Any, Callable]:
    """`start` varying over the axes of all that goes through a loop, and what lets the same be said
    of a carry that comes out of `body`.
    """
    every = _checked_axes()
    axes = _axes((start, others)) if every else every
    if axes != every:  # what `body` closes over may vary too
        axes |= _axes(jax.eval_shape(body, _varying(start, axes)))
    return _varying(start, axes), lambda carry: _varying(carry, axes)


def _checked_axes() -> frozenset:
    """The mesh axes of the `shard_map` that this is traced in, if it checks what varies over
    them.
    """
    manual = frozenset(jax.sharding.get_abstract_mesh().manual_axes)
    return _axes(lax.pcast(jnp.int32(0), tuple(manual), to="varying")) if manual else manual


def _axes(tree: Any) -> frozenset:
    types = [
        leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
        for leaf in jax.tree.leaves(tree)
    ]
    return frozenset().union(*(kind.manual_axis_type.varying for kind in types))


def _varying(tree: Any, axes: frozenset) -> Any:
    def cast(leaf: Any) -> Any:
        missing = tuple(axes - jax.typeof(leaf).manual_axis_type.varying)
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree) if axes else tree
