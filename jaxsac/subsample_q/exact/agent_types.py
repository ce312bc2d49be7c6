"""Agents of several types: a stratified sample, k_e of the n_e agents of every type e, and one
histogram for each type.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks
from jaxsac._implicit import implicit
from jaxsac.solution import Solution
from jaxsac.subsample_q.data.histograms import enumerate_counts, graded_rank, num_histograms
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.operators import (
    Plan,
    apply_tables,
    kernel_tables,
    monomials,
    moved_columns,
    plan,
    probe_points,
)
from jaxsac.subsample_q.data.sampling import draw_counts, hypergeometric_weights
from jaxsac.subsample_q.simulate import Run, move_global, split
from jaxsac.subsample_q.solver import (
    Bounds,
    Objective,
    check_discount,
    fixed_point,
    greedy,
    krylov,
    solver_arguments,
)


class TypedTable(NamedTuple):
    """q [G, N, A], value [G, N], policy int32 [G, N] and bounds over the N = prod_e N_e products of
    one histogram for each type, the last type running fastest; histograms int32 [N, E, L].
    """

    q: jax.Array
    value: jax.Array
    policy: jax.Array
    bounds: Bounds
    histograms: jax.Array


def solve_types(
    model: TypedModel,
    ks: Sequence[int],
    *,
    plans: Sequence[Plan] | None = None,
    tol: Any = None,
    max_steps: Any = 100_000,
    initial: Any = None,
) -> Solution:
    """Solve the problem of ks[e] agents of each type exactly; ks[e] = n_e for all e is the full
    problem.

        Q(s_g, h, a) = r_g(s_g, a) + sum_e shares_e <h_e, r_l(e, s_g)> / k_e + discount E[ max_a'
        Q(s_g', h', a') ],  h = (h_1 ... h_E)

    Types move independently, so the expectation is one exact operator for each type, applied along
    its own axis (form as in `plan`; plans for traced transitions). prod_e C(k_e+L-1, L-1) states a
    global state, far fewer than the C(k+EL-1, EL-1) of one histogram over (type, state). Returns
    Solution(TypedTable, status, stats, state), tol, status and stats as in `solve`. Differentiable
    in the arrays of the model (implicitly, the policy kept fixed), batched by jax.vmap. A form that
    is inaccurate shows in stats["operator_error"], which counts as rounding, and ends STALLED: give
    other plans. ValueError for ks of another length than E, k_e < 1, and tables beyond memory.
    Source: stratified sampling for the heterogeneous case of arXiv 2403.00222.
    """
    _checks.require(
        len(ks) == model.num_types,
        f"ks must have one number for each of the {model.num_types} types, got {list(ks)}.",
    )
    sizes = tuple(_checks.static_integer("ks", k, 1) for k in ks)
    L, G, A = model.num_local_states, *model.global_reward.shape
    check_discount(model.of_type(0), "discounted")
    number = math.prod(num_histograms(k, L) for k in sizes)
    _checks.require(
        number * G * (2 * A + 12) * model.shares.dtype.itemsize <= 2**34,
        f"ks={list(sizes)} are {number:,} products of histograms: more than 16 GiB of tables. Sample fewer agents.",
    )
    chosen = (
        tuple(plan(model.of_type(e), k) for e, k in enumerate(sizes))
        if plans is None
        else tuple(plans)
    )
    _checks.require(
        tuple(p.k for p in chosen) == sizes,
        f"plans were made for k={[p.k for p in chosen]}, not {list(sizes)}.",
    )
    return _solve(model, chosen, *_arguments(model, number, tol, max_steps, initial), ks=sizes)


def _arguments(model: TypedModel, number: int, tol, max_steps, initial):
    base = model.of_type(0)
    tol, max_steps, none, _ = solver_arguments(base, 1, tol, max_steps, 0, None)
    shape = (base.num_global_states, number)
    return (
        tol,
        max_steps,
        none,
        jnp.zeros(shape, base.dtype)
        if initial is None
        else _checks.real_array("initial", initial, shape, base.dtype),
    )


@functools.partial(jax.jit, static_argnames="ks")
def _solve(model, plans, tol, max_steps, evaluation_sweeps, initial, *, ks):
    frozen = jax.tree.map(lax.stop_gradient, model)
    scale = jnp.max(jnp.abs(frozen.global_reward)) + jnp.sum(
        frozen.shares * jnp.max(jnp.abs(frozen.local_reward), axis=(1, 2))
    )
    L = model.num_local_states
    histograms = _products(ks, L)
    tables = [
        kernel_tables(kernels, one)
        for kernels, one in zip(frozen.local_transition, plans, strict=True)
    ]
    solution = fixed_point(
        frozen.of_type(0),
        1,
        lambda values: _expect(
            frozen.global_transition,
            values,
            ks,
            L,
            lambda e, columns: apply_tables(tables[e], columns, plans[e], L),
        ),
        _product_test(frozen, ks),
        (tol, max_steps, evaluation_sweeps, lax.stop_gradient(initial)),
        criterion="discounted",
        method="anderson",
        stopping="span",
        objective=Objective(_rewards(frozen, histograms, ks), lambda q: jnp.max(q, axis=-1), scale),
    )

    def residual(q, params):
        model, plans = params

        def move(e, columns):
            return moved_columns(model.local_transition[e], columns, plans[e])

        expected = _expect(model.global_transition, jnp.max(q, axis=-1), ks, L, move)
        return _rewards(model, histograms, ks) + model.discount * expected - q

    table = solution.value
    q = implicit(residual, krylov, table.q, (model, plans), symmetric=False)
    value = jnp.max(q, axis=-1)
    moved = value - lax.stop_gradient(value)  # zero, with the derivative of the value
    bounds = Bounds(table.bounds.lower + moved, table.bounds.upper + moved)
    policy = greedy(q, 16 * jnp.finfo(q.dtype).eps * solution.stats["scale"])
    return solution._replace(
        value=TypedTable(q, value, policy, bounds, jnp.asarray(histograms)), state=value
    )


@functools.lru_cache(maxsize=8)
def _products(ks: tuple[int, ...], L: int) -> np.ndarray:
    """int32 [N, E, L]: every product of histograms, the last type running fastest."""
    grids = np.meshgrid(*(np.arange(num_histograms(k, L)) for k in ks), indexing="ij")
    return np.stack(
        [enumerate_counts(k, L)[grid.reshape(-1)] for k, grid in zip(ks, grids, strict=True)],
        axis=1,
    )


def _product_test(model: TypedModel, ks: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `product_test`: the product over types of one function with a known expectation for
    each.
    """
    G, A, L = *model.global_reward.shape, model.num_local_states
    values, moved, weights = (
        jnp.ones((G, 1), model.shares.dtype),
        jnp.ones((G, G, 1), model.shares.dtype),
        np.ones(A),
    )
    for e, k in enumerate(ks):
        points, weights = probe_points(G, A, L, k, model.shares.dtype, seed=e)
        after = monomials(
            jnp.einsum("gij,cj->gci", model.local_transition[e], points, precision="highest"), k
        )
        values = (values[:, :, None] * jnp.asarray(monomials(points, k))[:, None, :]).reshape(G, -1)
        moved = (moved[:, :, :, None] * after[:, :, None, :]).reshape(G, G, -1)
    mixed = jnp.einsum("a,gac->gc", weights, model.global_transition, precision="highest")
    return values, jnp.asarray(weights), jnp.einsum("gc,gcn->gn", mixed, moved, precision="highest")


def _rewards(model: TypedModel, histograms: np.ndarray, ks: tuple[int, ...]) -> jax.Array:
    weights = model.shares / jnp.asarray(ks, model.shares.dtype)
    own = jnp.einsum(
        "e,egl,nel->gn",
        weights,
        model.local_reward,
        jnp.asarray(histograms, weights.dtype),
        precision="highest",
    )
    return model.global_reward[:, None, :] + own[..., None]


def _expect(
    transition: jax.Array,
    values: jax.Array,
    ks: tuple[int, ...],
    num_local_states: int,
    move: Callable,
) -> jax.Array:
    """E[V(s_g', h') | s_g, h, a]: [G, N, A]; move(e, columns [G, C, N_e]) is the expectation over
    the moves of one type.
    """
    sizes = tuple(num_histograms(k, num_local_states) for k in ks)
    mixed = jnp.einsum("gac,cn->gan", transition, values, precision="highest")
    G, A, N = mixed.shape
    for e, size in enumerate(sizes):
        last = jnp.moveaxis(mixed.reshape(G, A, *sizes), e + 2, -1)
        moved = move(e, last.reshape(G, -1, size))
        mixed = jnp.moveaxis(moved.reshape(last.shape), -1, e + 2).reshape(G, A, N)
    return mixed.transpose(0, 2, 1)


