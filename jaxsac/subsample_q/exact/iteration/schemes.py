"""How the next value to sweep is made: value iteration, accelerated or not."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _linear
from jaxsac.subsample_q.exact.iteration.criterion import Criterion

_MEMORY = 5  # past sweeps that Anderson acceleration combines


class Sweep(NamedTuple):
    """What a scheme makes of one expectation."""

    memory: Any
    proposal: jax.Array  # [G, N], what to evaluate next
    low: jax.Array  # [], range of T V − V
    high: jax.Array  # []


class Scheme(NamedTuple):
    """`init(initial)` is the first memory; `next(memory, before, q, learns)` makes a `Sweep` of the
    values before it [G, N] and the q [G, N, A] that they give. A sweep that does not learn leaves
    nothing behind.
    """

    init: Callable[[jax.Array], Any]
    next: Callable[[Any, jax.Array, jax.Array, jax.Array], Sweep]


class _History(NamedTuple):
    images: jax.Array  # [m, G, N], T V of the last accepted sweeps
    residuals: jax.Array  # [m, G, N], T V − V, centred
    products: jax.Array  # [m, m]
    ages: jax.Array  # int32 [m], sweeps since the slot was filled; out of use from m on
    span: jax.Array  # [], of the last accepted residual


def value_iteration(criterion: Criterion, value_of: Callable[[jax.Array], jax.Array]) -> Scheme:
    """Evaluate T V next."""

    def next_sweep(memory, before, q, learns):
        after = value_of(q)
        difference = after - before
        proposal = criterion.damp(before, after)
        return Sweep(memory, proposal, jnp.min(difference), jnp.max(difference))

    return Scheme(lambda initial: (), next_sweep)


def anderson(criterion: Criterion, value_of: Callable[[jax.Array], jax.Array]) -> Scheme:
    """Evaluate the combination of the last five images whose residuals nearly cancel, unless the
    last one did not shrink the span.

    Source: Walker and Ni (2011).
    """

    def init(initial):
        past = jnp.zeros((_MEMORY, *initial.shape), initial.dtype)
        unused = jnp.full(_MEMORY, _MEMORY, jnp.int32)
        largest = jnp.full((), jnp.finfo(initial.dtype).max, initial.dtype)
        return _History(past, past, jnp.zeros((_MEMORY, _MEMORY), initial.dtype), unused, largest)

    def next_sweep(history, before, q, learns):
        after = value_of(q)
        difference = after - before
        low, high = jnp.min(difference), jnp.max(difference)
        image = criterion.damp(before, after)
        if not (criterion.average or criterion.ends):
            # the constant that a sweep would take 1 / (1 − discount) sweeps to find
            image = image + criterion.reach * (low + high) / 2
        history = _remember(history, image, difference, high - low, learns)
        weights = _mixing(history.products, history.ages < _MEMORY, jnp.argmin(history.ages))
        images = history.images.reshape(_MEMORY, -1)
        mixed = jnp.matmul(weights, images, precision="highest").reshape(before.shape)
        return Sweep(history, mixed, low, high)

    return Scheme(init, next_sweep)


def _remember(
    history: _History, image: jax.Array, difference: jax.Array, span: jax.Array, learns: jax.Array
) -> _History:
    residual = difference - jnp.mean(difference)
    accept = learns & ((span <= history.span) | ~jnp.isfinite(span))
    oldest, newest = jnp.argmax(history.ages), jnp.argmin(history.ages)
    past = history.residuals.reshape(_MEMORY, -1)
    products = jnp.matmul(past, residual.reshape(-1), precision="highest")
    products = products.at[oldest].set(jnp.vdot(residual, residual, precision="highest"))

    def put(array, new):
        return array.at[oldest].set(jnp.where(accept, new, array[oldest]))

    updated = history.products.at[oldest, :].set(products).at[:, oldest].set(products)
    # A rejected combination costs one sweep: forget the history and make a plain sweep from the
    # last accepted image.
    forgotten = jnp.full(_MEMORY, _MEMORY, jnp.int32).at[newest].set(0)
    older = jnp.minimum(history.ages + 1, _MEMORY).at[oldest].set(0)
    return _History(
        put(history.images, image),
        put(history.residuals, residual),
        jnp.where(accept, updated, history.products),
        jnp.where(learns, jnp.where(accept, older, forgotten), history.ages),
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
    alone = (jnp.arange(used.shape[0]) == newest).astype(products.dtype)
    return jnp.where(jnp.all(jnp.isfinite(weights)), weights, alone)
