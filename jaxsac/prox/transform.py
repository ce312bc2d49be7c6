"""A proximal step for optax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsac._arguments import arguments, either, function, real
from jaxsac.solution import register


@register
class ProximalState(NamedTuple):
    """What `proximal` keeps: a learning-rate schedule is read by it."""

    num_updates: jax.Array  # [] int32, updates so far


@arguments(
    prox=function("(params, step) -> params"),
    learning_rate=either(real(low=0, own=True), function("step -> number")),
)
def proximal(
    prox: Callable[[Any, jax.Array], Any], learning_rate: float | jax.Array | Callable
) -> optax.GradientTransformation:
    """An optax transformation that turns the update d of the optimisers before it into prox(params
    + d, step) − params.

    `prox(params, step)` is the proximal operator of step · penalty on the tree of parameters, for
    example `lambda b, step: prox_group(b, groups, lam * step)`. Put it last:
    `optax.chain(optax.sgd(rate), proximal(prox, rate))`.

    It is exact proximal gradient descent only after an update of the form −rate · gradient with the
    same `learning_rate` (a number or a schedule): plain SGD. After momentum it is a common
    heuristic; after a preconditioner (Adam, RMSProp, ...) the Euclidean prox is not the prox in the
    preconditioner's metric, and the fixed points are not minimisers of loss + penalty. `update`
    needs `params`.
    """

    def init(params):
        del params
        return ProximalState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("proximal needs the parameters: call update(updates, state, params).")
        step = learning_rate(state.num_updates) if callable(learning_rate) else learning_rate
        step = jnp.asarray(step).astype(jnp.result_type(*jax.tree.leaves(params)))
        moved = prox(optax.apply_updates(params, updates), step)
        return jax.tree.map(lambda new, old: new - old, moved, params), ProximalState(
            state.num_updates + 1
        )

    return optax.GradientTransformation(init, update)
