"""How the next value to sweep is made: value iteration, accelerated or not."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _linear
from jaxsac.subsample_q.exact.iteration.criterion import Criterion

_MEMORY = 5  # past sweeps that Anderson acceleration combines


class Scheme(NamedTuple):
    """`init(initial)` is the first memory; `next(memory, before, after, learns)` the next one, and
    what to evaluate next [G, N], for the values before a sweep and after it [G, N]. A sweep that
    does not learn leaves nothing behind.
    """

    init: Callable[[jax.Array], Any]
    next: Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[Any, jax.Array]]


class _History(NamedTuple):
    past: jax.Array  # [m, 2, G N], T V of the last sweeps and T V − V, centred; a ring
    products: jax.Array  # [m, m], of the residuals
    newest: jax.Array  # int32 [], slot of the last accepted sweep
    used: jax.Array  # int32 [], how many slots up to it count
    span: jax.Array  # [], of the last accepted residual


def value_iteration(criterion: Criterion) -> Scheme:
    """Evaluate T V next."""
    return Scheme(
        lambda initial: (),
        lambda memory, before, after, learns: (memory, criterion.damp(before, after)),
    )


def anderson(criterion: Criterion) -> Scheme:
    """Evaluate the combination of the last five images whose residuals nearly cancel, unless the
    last one did not shrink the span.

    Source: Walker and Ni (2011).
    """

    def init(initial):
        past = jnp.zeros((_MEMORY, 2, initial.size), initial.dtype)
        products = jnp.zeros((_MEMORY, _MEMORY), initial.dtype)
        largest = jnp.full((), jnp.finfo(initial.dtype).max, initial.dtype)
        return _History(past, products, jnp.int32(_MEMORY - 1), jnp.int32(0), largest)

    def next_sweep(history, before, after, learns):
        difference = after - before
        low, high = jnp.min(difference), jnp.max(difference)
        image = criterion.damp(before, after)
        if not (criterion.average or criterion.ends):
            # the constant that a sweep would take 1 / (1 − discount) sweeps to find
            image = image + criterion.reach * (low + high) / 2
        history = _remember(history, image, difference, high - low, learns)
        age = (history.newest - jnp.arange(_MEMORY, dtype=jnp.int32)) % _MEMORY
        weights = _mixing(history.products, age < history.used, age == 0)
        mixed = jnp.matmul(weights, history.past[:, 0], precision="highest")
        return history, mixed.reshape(before.shape)

    return Scheme(init, next_sweep)


def _remember(
    history: _History, image: jax.Array, difference: jax.Array, span: jax.Array, learns: jax.Array
) -> _History:
    """Into the slot after the newest, which counts if it is accepted. A rejected combination costs
    one sweep: forget the others and make a plain sweep from the last accepted image.
    """
    residual = (difference - jnp.mean(difference)).reshape(-1)
    accept = learns & ((span <= history.span) | ~jnp.isfinite(span))
    slot = (history.newest + 1) % _MEMORY
    past = history.past.at[slot].set(jnp.stack([image.reshape(-1), residual]))
    products = jnp.matmul(past[:, 1], residual, precision="highest")
    products = history.products.at[slot, :].set(products).at[:, slot].set(products)
    more = jnp.minimum(history.used + 1, _MEMORY)
    kept = jnp.where(learns, jnp.minimum(history.used, 1), history.used)
    return _History(
        past,
        products,
        jnp.where(accept, slot, history.newest),
        jnp.where(accept, more, kept),
        jnp.where(accept, span, history.span),
    )


def _mixing(products: jax.Array, used: jax.Array, newest: jax.Array) -> jax.Array:
    """Weights that sum to one and minimise |Σ_i w_i residual_i|² over the used slots; the newest
    alone where that is not solvable.
    """
    both = used[:, None] & used[None, :]
    size = jnp.max(jnp.where(used, jnp.diagonal(products), 0))
    system = jnp.where(both, products / jnp.where(size > 0, size, 1), 0)
    ridge = jnp.where(used, 10 * jnp.finfo(products.dtype).eps, 1.0).astype(products.dtype)
    inverse = _linear.inverse(system + jnp.diag(ridge))
    solved = jnp.sum(jnp.where(used, inverse, 0), axis=1)
    weights = solved / jnp.sum(solved)
    return jnp.where(jnp.all(jnp.isfinite(weights)), weights, newest.astype(products.dtype))
