"""The exact Bellman expectation behind one call, and the plan that says which form of it to use."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxsac import _checks
from jaxsac.subsample_q.exact.operator.forms.dense import dense_kernel
from jaxsac.subsample_q.exact.operator.forms.exchange import apply_exchange, prepare_exchange
from jaxsac.subsample_q.data.histograms import (
    additions,
    check_size,
    enumerate_counts,
    num_histograms,
    removals,
)
from jaxsac.subsample_q.exact.operator.forms.lumping import apply_lumped, find_lumping, prepare_lumped
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.exact.operator.forms.pivots import Order, exchange_order, thinning_order
from jaxsac.subsample_q.exact.operator.forms.thinning import apply_thinning, gathers_of, prepare_thinning

BACKENDS = (
    "dense",
    "exchange",
    "thinning",
    "sampled",
    "lumped",
)  # stats["backend"] is a position in this tuple
_SMALL = 300  # up to this many histograms a dense product is the fastest form
_DENSE_LIMIT = 2**31  # bytes of dense kernels that may be built


class Plan(eqx.Module):
    """How the expectation over the next histogram is evaluated: the form, and the pivot order (or
    the classes) of every kernel.

    Made by `plan` from concrete local transitions; traced ones may then differ from those, as in a
    gradient or a batch of near-by models: the order decides the rounding, not the answer, and every
    solve measures that rounding.
    """

    backend: str = eqx.field(static=True)
    k: int = eqx.field(static=True)
    reason: str = eqx.field(static=True)
    rows: jax.Array | None = None
    columns: jax.Array | None = None
    replacements: jax.Array | None = None
    entry: jax.Array | None = None
    leave: jax.Array | None = None
    classes: jax.Array | None = None
    num_classes: int = eqx.field(static=True, default=0)
    by_rows: bool = eqx.field(static=True, default=False)


def plan(model: Model, k: int, *, backend: str = "auto") -> Plan:
    """Choose the form of the exact operator for k agents, and its pivots; on the host, from
    concrete local transitions.

    backend: "thinning" (2 L (L-1) C(k+L, L) flops a column), "exchange" (about the same, other
    rounding), "dense" (N² a column), "lumped" (N N_R a column, where local states have R < L
    different rows, or non-proportional columns; N_R histograms of R classes) or "auto": dense up to
    300 histograms, else lumped where that is less work, else thinning. Leading axes of a batch of
    models are kept (map over the plan too). Raises ValueError for traced transitions (unless
    dense), for tables beyond memory, and where no such form exists.
    """
    return candidates(model, _checks.static_integer("k", k, 1), backend)[0]


def candidates(model: Model, k: int, backend: str) -> list[Plan]:
    """Plans to try in this order; the solve's own test says whether one is accurate enough."""
    _checks.choice("backend", backend, ("auto", "dense", "exchange", "thinning", "lumped"))
    L = model.num_local_states
    G, A = model.num_global_states, model.num_actions
    itemsize = model.dtype.itemsize
    size = check_size(k, L, itemsize * G * (2 * A + 12) + 16 * L)
    kernels = G * (A if model.action_drives_agents else 1)
    dense_fits = kernels * size**2 * itemsize <= _DENSE_LIMIT
    why = (
        "asked for"
        if backend == "dense"
        else "few histograms"
        if size <= _SMALL
        else "the structured forms failed their test"
    )
    dense = Plan("dense", k, why)
    if backend == "dense" or L == 1 or (backend == "auto" and size <= _SMALL):
        _checks.require(
            dense_fits,
            f"backend='dense' needs {kernels * size**2 * itemsize / 2**30:,.1f} GiB for {size:,} histograms at k={k}: "
            "use backend='thinning', or a smaller k.",
        )
        return [dense]
    if not _checks.is_concrete(model.local_transition):
        _checks.require(
            backend == "auto" and dense_fits and size <= 4 * _SMALL,
            f"local_transition is traced, and the exact operator over {size:,} histograms needs pivots: "
            "pass plan=subsample_q.plan(model, k) made from concrete values.",
        )
        return [Plan("dense", k, "traced transitions without a plan")]
    if backend in ("auto", "lumped"):
        lumping = find_lumping(np.asarray(model.local_transition))
        lumped = num_histograms(k, lumping.num_classes) if lumping else size
        lumped_bytes = 2 * kernels * size * lumped * itemsize
        if (
            lumping
            and lumped_bytes <= _DENSE_LIMIT
            and (backend == "lumped" or 2 * lumped < L * (L - 1) * (k + L) / L)
        ):
            reason = f"{lumping.num_classes} classes of {'equal rows' if lumping.by_rows else 'exchangeable states'} among {L} local states"
            classes = jnp.asarray(lumping.classes)
            return [
                Plan(
                    "lumped",
                    k,
                    reason,
                    classes=classes,
                    num_classes=lumping.num_classes,
                    by_rows=lumping.by_rows,
                )
            ]
        _checks.require(
            backend == "auto",
            f"backend='lumped' needs local states with equal rows or proportional columns, few enough that their tables fit in memory; "
            f"here {lumped:,} histograms of classes and {lumped_bytes / 2**30:,.1f} GiB: use backend='auto', or a smaller k.",
        )
    names = {
        "auto": ("thinning", "exchange"),
        "thinning": ("thinning",),
        "exchange": ("exchange",),
    }[backend]
    found = []
    for name in names:
        order = (thinning_order if name == "thinning" else exchange_order)(
            np.asarray(model.local_transition)
        )
        if np.all(np.isfinite(order.amplification)):
            reason = (
                "asked for" if backend != "auto" else "many histograms"
            ) + f", amplification {order.amplification.max():.2f}"
            entry, leave = _gathers(order, k) if name == "thinning" else (None, None)
            rows, columns, replacements = (jnp.asarray(part) for part in order[:3])
            found.append(Plan(name, k, reason, rows, columns, replacements, entry, leave))
    if backend == "auto" and dense_fits and size <= 4000:
        found.append(dense)
    fits = k
    while fits > 1 and kernels * num_histograms(fits, L) ** 2 * itemsize > _DENSE_LIMIT:
        fits -= 1
    _checks.require(
        bool(found),
        f"no pivot order exists for backend={backend!r} on this local_transition: "
        f"use backend='dense' (k={fits} fits) or learn(), which samples.",
    )
    return found


def _gathers(order: Order, k: int) -> tuple[jax.Array, jax.Array]:
    L = order.rows.shape[-1]
    pairs = [
        gathers_of(rows, columns, k)
        for rows, columns in zip(
            order.rows.reshape(-1, L), order.columns.reshape(-1, L), strict=True
        )
    ]
    entry, leave = (
        jnp.asarray(np.stack(part)).reshape(*order.rows.shape[:-1], -1)
        for part in zip(*pairs, strict=True)
    )
    return entry, leave


