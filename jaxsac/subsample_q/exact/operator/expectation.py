"""The exact expectation behind one call, whatever its form; its derivative, and functions of which
it is known in closed form.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxsac import _checks
from jaxsac.subsample_q.data.histograms import additions, enumerate_counts, removals
from jaxsac.subsample_q.exact.operator.forms.dense import dense_kernel
from jaxsac.subsample_q.exact.operator.forms.exchange import apply_exchange, prepare_exchange
from jaxsac.subsample_q.exact.operator.forms.lumping import apply_lumped, prepare_lumped
from jaxsac.subsample_q.exact.operator.forms.thinning import apply_thinning, prepare_thinning
from jaxsac.subsample_q.exact.operator.plan import Plan


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
        if _checks.is_concrete(kernels, pivots, gathers):  # nothing to compile
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


def apply_tables(tables: Any, columns: jax.Array, plan: Plan, num_local_states: int) -> jax.Array:
    """E[W(h') | h] of each kernel by its tables, for its own W = columns [K, C, N]: [K, C, N].

    Not to be differentiated by the kernels.
    """

    def one(table, own):
        return _apply(table, own, plan, num_local_states).T

    if plan.backend in ("dense", "lumped") or jax.default_backend() != "cpu":
        return jax.vmap(one)(tables, columns)
    # One after the other: the working set of one fits in the cache of a CPU.
    return lax.map(lambda kernel: one(*kernel), (tables, columns))


@jax.custom_jvp
def moved_columns(kernels: jax.Array, columns: jax.Array, plan: Plan) -> jax.Array:
    """E[W(h') | h] of each kernel [K, L, L] for its own W = columns [K, C, N]: [K, C, N], with a
    derivative in the kernels that is right for every kernel and every form.

        d E[W(h') | h] = E[dW(h') | h] + Σ_{i,j} h_i dP_ij E_{k−1}[W(h' + e_j) | h − e_i]

    (each agent in i takes the perturbed step while the k−1 others move). The operator is linear in
    each agent's row, so this holds for equal and dependent rows too, where a pivot order cannot be
    differentiated. In directions that change the sum of a row it is the derivative of that
    polynomial, as of the dense kernel. Second derivatives that would pass through the pivots are
    refused.
    """
    return apply_tables(
        kernel_tables(kernels if plan.backend == "dense" else _sealed(kernels), plan),
        columns,
        plan,
        kernels.shape[-1],
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
    _checks.require(
        isinstance(tangents[0], SymbolicZero),
        "Second derivatives in local_transition need the dense form: pass"
        " plan=subsample_q.plan(model, k, backend='dense').",
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
    """Σ_{i,j} h_i dP_ij E_{k−1}[W(h' + e_j) | h − e_i]: [K, C, N], linear in the direction
    [K, L, L].
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


class Probe(NamedTuple):
    """Functions whose expectation is known: Σ_a weights_a E[values | s_g, h, a] = exact."""

    values: jax.Array  # [G, N], W for one x in each row: signs and sizes mixed, |x_j|^k ≥ 0.1
    weights: jax.Array  # [A]
    exact: jax.Array  # [G, N]


def probe_points(
    G: int, A: int, L: int, k: int, dtype: Any, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """x [G, L] and weights [A] of a `Probe`."""
    generator = np.random.default_rng(seed)
    points = np.where(generator.random((G, L)) < 0.5, -1.0, 1.0) * (
        0.1 + 0.9 * generator.random((G, L))
    ) ** (1.0 / k)
    return points.astype(dtype), (generator.choice([-1.0, 1.0], A) / A).astype(dtype)


def monomials(x: Any, k: int) -> Any:
    """Π_j x_j^{h_j} of x [..., L] for all histograms h of k agents: [..., N]; numpy for numpy,
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
