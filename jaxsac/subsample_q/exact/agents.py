"""The surrogate of agents who do not act, of one type or several: a stratified sample, k_e of the
n_e agents of every type e, and one histogram for each.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import size
from jaxsac.subsample_q.data.histograms import MEMORY_LIMIT, num_histograms
from jaxsac.subsample_q.data.kinds import TypedModel
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.exact.iteration.fixed_point import Surrogate
from jaxsac.subsample_q.exact.operator.expectation import (
    Probe,
    apply_tables,
    monomials,
    moved_columns,
    probe_points,
)
from jaxsac.subsample_q.exact.operator.plan import Plan, candidates
from jaxsac.subsample_q.exact.table import (
    best_against,
    ended,
    local_kernels,
    permitted,
    stage_rewards,
)


def numbers_of_agents(given: Any, model: Any, name: str = "k") -> tuple[int, ...]:
    """`given` as one integer ≥ 1 for each type; a number for a model without types."""
    if not isinstance(model, TypedModel):
        return (size(1).take(name, given),)
    numbers = tuple(given) if isinstance(given, Sequence | np.ndarray) else ()
    _checks.require(
        len(numbers) == model.num_types,
        f"{name} must have one number for each of the {model.num_types} types, got {given}.",
    )
    return tuple(size(1).take(name, each) for each in numbers)


def plans_of(model: Any, ks: tuple[int, ...], given: Any, backend: str) -> list[tuple[Plan, ...]]:
    """One plan for each type: those that were given, or what to try in this order."""
    G, A = model.num_global_states, model.num_actions
    if given is None:
        types = isinstance(model, TypedModel)
        parts = [model.of_type(e) for e in range(len(ks))] if types else [model]
        number = math.prod(num_histograms(k, model.num_local_states) for k in ks)
        _checks.require(
            len(ks) == 1 or number * G * (2 * A + 12) * model.dtype.itemsize <= MEMORY_LIMIT,
            f"k={list(ks)} are {number:,} products of histograms: more than 16 GiB of tables."
            " Sample fewer agents.",
        )
        lists = [candidates(part, k, backend) for part, k in zip(parts, ks, strict=True)]
        longest = max(map(len, lists))
        return [tuple(each[min(at, len(each) - 1)] for each in lists) for at in range(longest)]
    plans = given if type(given) in (list, tuple) else (given,)
    _checks.require(
        all(isinstance(one, Plan) for one in plans),
        f"plan must be what subsample_q.plan makes, or one for each type, got {given}.",
    )
    made = [one.k for one in plans]
    advice = f": make one with subsample_q.plan(model, {ks[0]})" if len(ks) == 1 else ""
    _checks.require(
        made == list(ks), f"plan was made for k={said(made)}, not k={said(ks)}{advice}."
    )
    return [tuple(plans)]


def said(ks: Sequence[int]) -> Any:
    """Numbers of agents as a reader gave them: one, or a list for types."""
    return ks[0] if len(ks) == 1 else list(ks)


def surrogate(
    model: Model | TypedModel,
    plans: tuple[Plan, ...],
    tables: Any,
    weights: Any = None,
    replies: int = 1,
) -> Surrogate:
    """Of agents who take the best allowed action, against the worst of its `replies`, or those of a
    policy [G, N, A]; by the `tables` of the kernels, or, without, so that they can be
    differentiated.

    Given (s_g, a) all agents and s_g' move independently, so the expectation is one exact operator
    for each type, along its own axis, on the A mixtures of V over s_g' or on its G columns, the
    fewer.
    """
    L = model.num_local_states
    G, A = model.num_global_states, model.num_actions
    kernels, transition = local_kernels(model), model.global_transition
    ks = tuple(plan.k for plan in plans)
    shape = tuple(num_histograms(k, L) for k in ks)

    def move(e: int, columns: jax.Array) -> jax.Array:
        if tables is None:
            return moved_columns(kernels[e], columns, plans[e])
        return apply_tables(tables[e], columns, plans[e], L)

    driven = kernels.shape[1] > G
    by_action = driven or A < G

    def expect(values: jax.Array) -> jax.Array:
        if by_action:
            columns = jnp.einsum("gac,cn->gan", transition, values, precision="highest")
            columns = columns.reshape(kernels.shape[1], -1, values.shape[1])
        else:
            columns = jnp.broadcast_to(values, (G, *values.shape))
        moved = along_types(move, columns, shape)
        if by_action:
            return moved.reshape(G, A, -1).transpose(0, 2, 1)
        return jnp.einsum("gac,gcn->gna", transition, moved, precision="highest")

    def value_of(q: jax.Array) -> jax.Array:
        if weights is None:
            value = best_against(permitted(q, model.allowed), replies)
        else:
            value = jnp.sum(weights * q, axis=-1)
        return ended(value, model.terminal)

    return Surrogate(stage_rewards(model, *ks), expect, value_of, model.discount)


def along_types(
    function: Callable[[int, jax.Array], jax.Array], columns: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """function(e, ·) along the axis of every type e, of columns [K, C, N] over the products of
    histograms, shape = (N_1 ... N_E): [K, C, N'].
    """
    K, C, _ = columns.shape
    columns = columns.reshape(K, C, *shape)
    for e, number in enumerate(shape):
        last = jnp.moveaxis(columns, e + 2, -1)
        after = function(e, last.reshape(K, -1, number)).reshape(*last.shape[:-1], -1)
        columns = jnp.moveaxis(after, -1, e + 2)
    return columns.reshape(K, C, -1)


def probe(model: Model | TypedModel, ks: tuple[int, ...]) -> Probe:
    """The product over types of one function with a known expectation for each."""
    G, A, L = model.num_global_states, model.num_actions, model.num_local_states
    kernels, dtype = local_kernels(model), model.dtype
    driven = kernels.shape[1] > G
    values, weights = jnp.ones((G, 1), dtype), np.ones(A)
    moved = jnp.ones((G, A if driven else 1, G, 1), dtype)
    for e, k in enumerate(ks):
        points, weights = probe_points(G, A, L, k, dtype, seed=2403 + e)
        each = kernels[e].reshape(G, -1, L, L)
        reached = jnp.einsum("gaij,cj->gaci", each, points, precision="highest")
        after = monomials(reached, k)  # [G, A or 1, G', N_e]
        values = (values[:, :, None] * jnp.asarray(monomials(points, k))[:, None]).reshape(G, -1)
        moved = moved[..., :, None] * after[..., None, :]
        moved = moved.reshape(*after.shape[:3], -1)
    mixed = model.global_transition * jnp.asarray(weights)[None, :, None]
    mixed = mixed if driven else mixed.sum(axis=1, keepdims=True)
    exact = jnp.einsum("gac,gacn->gn", mixed, moved, precision="highest")
    return Probe(values, jnp.asarray(weights), exact)
