"""Agents of several types: a stratified sample, k_e of the n_e agents of every type e, and one
histogram for each type.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, integer, real, record, size
from jaxsac.solution import Solution, register
from jaxsac.subsample_q.data.histograms import MEMORY_LIMIT, enumerate_counts, num_histograms
from jaxsac.subsample_q.data.model import TYPED_MODEL, TypedModel, check_discount
from jaxsac.subsample_q.exact.iteration.fixed_point import (
    INITIAL,
    Settings,
    Surrogate,
    differentiable,
    fixed_point,
)
from jaxsac.subsample_q.exact.operator.expectation import (
    Probe,
    apply_tables,
    kernel_tables,
    monomials,
    moved_columns,
    probe_points,
)
from jaxsac.subsample_q.exact.operator.plan import Plan, plan
from jaxsac.subsample_q.exact.table import Bounds, Meaning, best_of, greedy, table_sizes


@register
class TypedTable(NamedTuple):
    """As `QTable`, over the N = Π_e N_e products of one histogram for each type, the last type
    running fastest.
    """

    q: jax.Array  # [G, N, A]
    value: jax.Array  # [G, N], max_a q
    policy: jax.Array  # int32 [G, N]
    bounds: Bounds  # on the value, [G, N]
    histograms: jax.Array  # int32 [N, E, L]
    meaning: Meaning  # how many agents were sampled of each type; no array


TYPED_TABLE = record(
    TypedTable, sizes=lambda table: {**table_sizes(table), "E": table.histograms.shape[-2]}
)


@arguments(
    model=TYPED_MODEL,
    ks=anything("E integers ≥ 1: agents sampled of each type"),
    plans=anything("E of `subsample_q.plan`"),
    tol=real(low=0),
    max_steps=integer(low=0),
    initial=INITIAL,
)
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

        Q(s_g, h, a) = r_g(s_g, a) + Σ_e shares_e ⟨h_e, r_l(e, s_g)⟩ / k_e
                       + discount E[ max_a' Q(s_g', h', a') ],   h = (h_1 ... h_E)

    Types move independently, so the expectation is one exact operator for each type, applied along
    its own axis. Π_e C(k_e+L−1, L−1) states a global state, far fewer than the C(k+EL−1, EL−1) of
    one histogram over (type, state).

    * `ks`: agents sampled of each of the E types.
    * `plans`: one of `subsample_q.plan` for each type, where the transitions are traced or other
      forms are wanted.
    * `tol`, `max_steps`, `initial` [G, N]: as in `solve`.

    Returns: a Solution of a `TypedTable`, status and stats as in `solve`. Differentiable in the
    arrays of the model (implicitly, the policy kept fixed), batched by `jax.vmap`. A form that is
    inaccurate shows in stats["operator_error"], which counts as rounding, and ends STALLED: give
    other plans.

    Raises: ValueError for ks of another length than E, k_e < 1, and tables beyond memory.

    Source: stratified sampling for the heterogeneous case of arXiv 2403.00222.
    """
    sizes = numbers_of_agents(ks, model.num_types)
    (G, A), dtype = model.global_reward.shape, model.dtype
    check_discount(model)
    number = math.prod(num_histograms(k, model.num_local_states) for k in sizes)
    _checks.require(
        number * G * (2 * A + 12) * dtype.itemsize <= MEMORY_LIMIT,
        f"ks={list(sizes)} are {number:,} products of histograms: more than 16 GiB of tables."
        " Sample fewer agents.",
    )
    if plans is None:
        plans = [plan(model.of_type(e), k) for e, k in enumerate(sizes)]
    made = [one.k for one in plans] if all(isinstance(one, Plan) for one in plans) else "no plans"
    _checks.require(made == list(sizes), f"plans were made for k={made}, not {list(sizes)}.")
    settings = Settings.of((G, number), dtype, tol, max_steps, initial)
    return _solve(model, tuple(plans), settings)


def table_ks(table: TypedTable, ks: Any) -> tuple[int, ...]:
    """`ks` as numbers, which must be those of the table."""
    given, solved = numbers_of_agents(ks, table.histograms.shape[-2]), table.meaning.ks
    _checks.require(
        given == solved, f"the table was solved for ks={list(solved)}, not {list(given)}."
    )
    return given


def numbers_of_agents(ks: Any, num_types: int) -> tuple[int, ...]:
    """`ks` as a tuple of integers ≥ 1, one for each type."""
    given = tuple(ks) if isinstance(ks, Sequence | np.ndarray) else ()
    _checks.require(
        len(given) == num_types,
        f"ks must have one number for each of the {num_types} types, got {ks}.",
    )
    return tuple(size(1).take("ks", k) for k in given)


@jax.jit
def _solve(model, plans, settings):
    frozen = jax.tree.map(lax.stop_gradient, model)
    ks, L = tuple(one.k for one in plans), model.num_local_states
    tables = [
        kernel_tables(kernels, one)
        for kernels, one in zip(frozen.local_transition, plans, strict=True)
    ]

    def move(e, columns):
        return apply_tables(tables[e], columns, plans[e], L)

    settings = settings._replace(initial=lax.stop_gradient(settings.initial))
    found = fixed_point(_surrogate(frozen, ks, move), _probe(frozen, ks), settings)

    def surrogate_of(params):
        model, plans = params

        def move(e, columns):
            return moved_columns(model.local_transition[e], columns, plans[e])

        return _surrogate(model, ks, move)

    found = differentiable(found, surrogate_of, (model, plans))
    policy = greedy(found.q, found.stats["scale"])
    histograms = jnp.asarray(_products(ks, L))
    meaning = Meaning(ks, "optimum")
    table = TypedTable(found.q, found.value, policy, found.bounds, histograms, meaning)
    return Solution(table, found.status, found.stats, found.value)


def _surrogate(model: TypedModel, ks: tuple[int, ...], move: Callable) -> Surrogate:
    """move(e, columns [G, C, N_e]) is the expectation over the moves of the agents of type e."""
    L = model.num_local_states
    sizes = tuple(num_histograms(k, L) for k in ks)
    weights = model.shares / jnp.asarray(ks, model.shares.dtype)
    counts = jnp.asarray(_products(ks, L), weights.dtype)
    own = jnp.einsum("e,egl,nel->gn", weights, model.local_reward, counts, precision="highest")
    rewards = model.global_reward[:, None, :] + own[..., None]

    def expect(values):
        transition = model.global_transition
        mixed = jnp.einsum("gac,cn->gan", transition, values, precision="highest")
        G, A, N = mixed.shape
        for e, number in enumerate(sizes):
            last = jnp.moveaxis(mixed.reshape(G, A, *sizes), e + 2, -1)
            moved = move(e, last.reshape(G, -1, number))
            mixed = jnp.moveaxis(moved.reshape(last.shape), -1, e + 2).reshape(G, A, N)
        return mixed.transpose(0, 2, 1)

    return Surrogate(rewards, expect, best_of, model.discount)


@functools.lru_cache(maxsize=8)
def _products(ks: tuple[int, ...], L: int) -> np.ndarray:
    """int32 [N, E, L]: every product of histograms, the last type running fastest."""
    grids = np.meshgrid(*(np.arange(num_histograms(k, L)) for k in ks), indexing="ij")
    return np.stack(
        [enumerate_counts(k, L)[grid.reshape(-1)] for k, grid in zip(ks, grids, strict=True)],
        axis=1,
    )


def _probe(model: TypedModel, ks: tuple[int, ...]) -> Probe:
    """The product over types of one function with a known expectation for each."""
    (G, A), L, dtype = model.global_reward.shape, model.num_local_states, model.shares.dtype
    values, moved, weights = jnp.ones((G, 1), dtype), jnp.ones((G, G, 1), dtype), np.ones(A)
    for e, k in enumerate(ks):
        points, weights = probe_points(G, A, L, k, dtype, seed=e)
        reached = jnp.einsum("gij,cj->gci", model.local_transition[e], points, precision="highest")
        after = monomials(reached, k)
        values = (values[:, :, None] * jnp.asarray(monomials(points, k))[:, None, :]).reshape(G, -1)
        moved = (moved[:, :, :, None] * after[:, :, None, :]).reshape(G, G, -1)
    mixed = jnp.einsum("a,gac->gc", weights, model.global_transition, precision="highest")
    exact = jnp.einsum("gc,gcn->gn", mixed, moved, precision="highest")
    return Probe(values, jnp.asarray(weights), exact)
