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

from jaxsac._checks import choice, is_concrete, require, static_integer
from jaxsac.subsample_q.dense import dense_kernel
from jaxsac.subsample_q.exchange import apply_exchange, prepare_exchange
from jaxsac.subsample_q.histograms import (
    additions,
    check_size,
    enumerate_counts,
    num_histograms,
    removals,
)
from jaxsac.subsample_q.lumping import apply_lumped, find_lumping, prepare_lumped
from jaxsac.subsample_q.model import Model
from jaxsac.subsample_q.pivots import Order, exchange_order, thinning_order
from jaxsac.subsample_q.thinning import apply_thinning, gathers_of, prepare_thinning

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
    return candidates(model, static_integer("k", k, 1), backend)[0]


def candidates(model: Model, k: int, backend: str) -> list[Plan]:
    """Plans to try in this order; the solve's own test says whether one is accurate enough."""
    choice("backend", backend, ("auto", "dense", "exchange", "thinning", "lumped"))
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
        require(
            dense_fits,
            f"backend='dense' needs {kernels * size**2 * itemsize / 2**30:,.1f} GiB for {size:,} histograms at k={k}: "
            "use backend='thinning', or a smaller k.",
        )
        return [dense]
    if not is_concrete(model.local_transition):
        require(
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
        require(
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
    require(
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


class Operator(NamedTuple):
    """The expectation of one model, made ready: per-kernel tables and the global transitions."""

    tables: Any
    global_transition: jax.Array


def prepare(model: Model, plan: Plan) -> Operator:
    """Tables of every kernel; leading axis G (or G·A where actions drive the agents)."""
    L = model.num_local_states
    return Operator(
        kernel_tables(model.local_transition.reshape(-1, L, L), plan), model.global_transition
    )


def kernel_tables(kernels: jax.Array, plan: Plan) -> Any:
    """What the form of `plan` needs of each kernel [K, L, L], made once."""
    L = kernels.shape[-1]
    if plan.backend == "dense":
        return jax.vmap(lambda kernel: dense_kernel(kernel, plan.k))(kernels)
    if plan.backend == "lumped":
        assert plan.classes is not None
        make = functools.partial(
            prepare_lumped, k=plan.k, num_classes=plan.num_classes, by_rows=plan.by_rows
        )
        return jax.vmap(make)(kernels, plan.classes.reshape(-1, L))
    assert plan.rows is not None and plan.columns is not None and plan.replacements is not None
    pivots = (
        plan.rows.reshape(-1, L),
        plan.columns.reshape(-1, L),
        plan.replacements.reshape(-1, L, L),
    )
    if plan.backend == "exchange":
        return jax.vmap(
            lambda kernel, r, c, replaced: prepare_exchange(kernel, r, c, replaced, plan.k)
        )(kernels, *pivots)
    gathers = None
    if plan.entry is not None and plan.leave is not None:
        gathers = (
            plan.entry.reshape(kernels.shape[0], -1),
            plan.leave.reshape(kernels.shape[0], -1),
        )
        if is_concrete(kernels, pivots, gathers):  # nothing to compile
            kernels, pivots, gathers = jax.tree.map(np.asarray, (kernels, pivots, gathers))
    return prepare_thinning(kernels, pivots, gathers, plan.k)


def _apply(table: Any, columns: jax.Array, plan: Plan, L: int) -> jax.Array:
    """E[W(h') | h] of one kernel for W = columns [C, N]: [N, C]."""
    if plan.backend == "dense":
        return jnp.matmul(table, columns.T, precision="highest")
    if plan.backend == "lumped":
        return apply_lumped(table, columns, plan.by_rows)
    apply = apply_thinning if plan.backend == "thinning" else apply_exchange
    return apply(table, columns, plan.k, L)


def _each(plan: Plan, function: Callable, *arguments: Any) -> jax.Array:
    """Apply to the kernels in turn, or to all at once."""
    return (
        jax.vmap(function)(*arguments)
        if plan.backend in ("dense", "lumped")
        else _map(function, *arguments)
    )


def expectation(
    operator: Operator, values: jax.Array, plan: Plan, num_local_states: int
) -> jax.Array:
    """E[V(s_g', h') | s_g, h, a] for V = values [G, N], as [G, N, A].

    Given (s_g, a), s_g' and h' are independent, so either the A mixtures of V or its G columns pass
    through the kernel, the fewer.
    """
    transition = operator.global_transition
    G, A, _ = transition.shape
    N = values.shape[1]
    kernels = jax.tree.leaves(operator.tables)[0].shape[0]

    def move(table, columns):
        return _apply(table, columns, plan, num_local_states)

    if kernels > G:  # a kernel for each (s_g, a)
        mixtures = jnp.einsum("gac,cn->gan", transition, values, precision="highest").reshape(
            G * A, 1, N
        )
        return _each(plan, move, operator.tables, mixtures).reshape(G, A, N).transpose(0, 2, 1)
    if A < G:
        return _each(
            plan,
            lambda table, mixing: move(table, jnp.matmul(mixing, values, precision="highest")),
            operator.tables,
            transition,
        )
    moved = _each(plan, lambda table: move(table, values), operator.tables)
    return jnp.einsum("gac,gnc->gna", transition, moved, precision="highest")


def differentiable_expectation(model: Model, values: jax.Array, plan: Plan) -> jax.Array:
    """`expectation` of the model itself, with a derivative in the local transitions that is right
    for every kernel and every form.

        d E[W(h') | h] = E[dW(h') | h] + sum_{i,j} h_i dP_ij E_{k-1}[W(h' + e_j) | h - e_i]

    (each agent in i takes the perturbed step while the k-1 others move). The operator is linear in
    each agent's row, so this holds for equal and dependent rows too, where a pivot order cannot be
    differentiated. In directions that change the sum of a row it is the derivative of that
    polynomial, as of the dense kernel. Second derivatives that would pass through the pivots are
    refused.
    """
    G, A, L = model.num_global_states, model.num_actions, model.num_local_states
    transition = model.global_transition
    kernels = model.local_transition.reshape(-1, L, L)
    if model.action_drives_agents or A < G:
        columns = jnp.einsum("gac,cn->gan", transition, values, precision="highest")
        moved = moved_columns(kernels, columns.reshape(kernels.shape[0], -1, values.shape[1]), plan)
        return (
            moved.reshape(G, A, -1).transpose(0, 2, 1)
            if model.action_drives_agents
            else moved.transpose(0, 2, 1)
        )
    moved = moved_columns(
        kernels, jnp.broadcast_to(values, (kernels.shape[0], *values.shape)), plan
    )
    return jnp.einsum("gac,gcn->gna", transition, moved, precision="highest")


@jax.custom_jvp
def moved_columns(kernels: jax.Array, columns: jax.Array, plan: Plan) -> jax.Array:
    """E[W(h') | h] of each kernel [K, L, L] for its own W = columns [K, C, N]: [K, C, N]."""
    return apply_tables(
        kernel_tables(kernels if plan.backend == "dense" else _sealed(kernels), plan),
        columns,
        plan,
        kernels.shape[-1],
    )


def apply_tables(tables: Any, columns: jax.Array, plan: Plan, num_local_states: int) -> jax.Array:
    """As `moved_columns`, of kernels whose tables are there; not to be differentiated by the
    kernels.
    """
    return _each(
        plan, lambda table, own: _apply(table, own, plan, num_local_states).T, tables, columns
    )


@jax.custom_jvp
def _sealed(kernels: jax.Array) -> jax.Array:
    """The kernels, where pivots are about to use them: a derivative that gets here would be wrong,
    so it stops here.

    Reverse mode inlines the rule of `moved_columns`, and a second derivative of that would go
    through the pivots.
    """
    return kernels


@functools.partial(_sealed.defjvp, symbolic_zeros=True)
def _sealed_jvp(primals, tangents):
    require(
        isinstance(tangents[0], SymbolicZero),
        "Second derivatives in local_transition need the dense form: pass plan=subsample_q.plan(model, k, backend='dense').",
    )
    return primals[0], jnp.zeros_like(primals[0])


@functools.partial(moved_columns.defjvp, symbolic_zeros=True)
def _moved_columns_jvp(primals, tangents):
    kernels, columns, plan = primals
    kernels_dot, columns_dot, _ = tangents
    out = moved_columns(kernels, columns, plan)
    out_dot = jnp.zeros_like(out)
    if not isinstance(columns_dot, SymbolicZero):
        out_dot = out_dot + moved_columns(kernels, columns_dot, plan)
    if not isinstance(kernels_dot, SymbolicZero):
        out_dot = out_dot + _perturbed(kernels, kernels_dot, columns, plan)
    return out, out_dot


def _perturbed(
    kernels: jax.Array, direction: jax.Array, columns: jax.Array, plan: Plan
) -> jax.Array:
    """sum_{i,j} h_i dP_ij E_{k-1}[W(h' + e_j) | h - e_i]: [K, C, N], linear in the direction [K, L,
    L].
    """
    (K, C, _), L, k = columns.shape, kernels.shape[-1], plan.k
    after = jnp.stack(
        [columns[..., additions(k, L, j)] for j in range(L)], axis=1
    )  # [K, L, C, N_{k-1}]
    if k > 1:
        others = dataclasses.replace(plan, k=k - 1, entry=None, leave=None)
        after = moved_columns(kernels, after.reshape(K, L * C, -1), others).reshape(after.shape)
    counts = enumerate_counts(k, L)
    total = jnp.zeros_like(columns)
    for i in range(L):
        moved = jnp.einsum("kj,kjcn->kcn", direction[:, i], after, precision="highest")
        total = (
            total
            + jnp.asarray(counts[None, None, :, i], columns.dtype) * moved[..., removals(k, L, i)]
        )
    return total


def _map(function, *args):
    """One kernel after the other on a CPU, where the working set of one fits in cache; all at once
    elsewhere.
    """
    if jax.default_backend() == "cpu":
        return lax.map(lambda arg: function(*arg), args)
    return jax.vmap(function)(*args)


def product_test(model: Model, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Functions of which the expectation is known in closed form, to measure the error of an
    operator at full size.

    W(h) = prod_j x_j^{h_j} has E[W(h') | h] = prod_i ((P x)_i)^{h_i}. Returns W [G, N] (one x for
    each column, signs and sizes mixed, |x_j|^k ≥ 0.1), weights [A] and the exact sum_a weights_a
    E[W | s_g, h, a], [G, N].
    """
    G, A, L = model.num_global_states, model.num_actions, model.num_local_states
    points, weights = probe_points(G, A, L, k, model.dtype)
    kernels = (
        model.local_transition if model.action_drives_agents else model.local_transition[:, None]
    )
    moved = monomials(
        jnp.einsum("gaij,cj->gaci", kernels, points, precision="highest"), k
    )  # [G, A or 1, G', N]
    mixed = model.global_transition * jnp.asarray(weights)[None, :, None]
    if not model.action_drives_agents:
        mixed = mixed.sum(axis=1, keepdims=True)
    exact = jnp.einsum("gac,gacn->gn", mixed, moved, precision="highest")
    return jnp.asarray(monomials(points, k)), jnp.asarray(weights), exact


def probe_points(
    G: int, A: int, L: int, k: int, dtype: Any, seed: int = 2403
) -> tuple[np.ndarray, np.ndarray]:
    """x [G, L] and weights [A] of `product_test`."""
    generator = np.random.default_rng(seed)
    points = np.where(generator.random((G, L)) < 0.5, -1.0, 1.0) * (
        0.1 + 0.9 * generator.random((G, L))
    ) ** (1.0 / k)
    return points.astype(dtype), (generator.choice([-1.0, 1.0], A) / A).astype(dtype)


def monomials(x: Any, k: int) -> Any:
    """prod_j x_j^{h_j} of x [..., L] for all histograms h of k agents: [..., N]; numpy for numpy,
    which leaves nothing to compile.
    """
    xp = jnp if isinstance(x, jax.Array) else np
    counts = enumerate_counts(k, x.shape[-1])
    powers = xp.concatenate(
        [xp.ones((*x.shape, 1), x.dtype), xp.cumprod(xp.repeat(x[..., None], k, axis=-1), axis=-1)],
        axis=-1,
    )
    result = powers[..., 0, counts[:, 0]]
    for j in range(1, x.shape[-1]):
        result = result * powers[..., j, counts[:, j]]
    return result
