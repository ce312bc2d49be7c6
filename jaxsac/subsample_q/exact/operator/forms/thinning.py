"""The exact expectation over one move of all k agents, as a product of one-dimensional binomial
thinnings.

With P = E_1 ... E_L Π (see pivots), the operator (K_P W)(h) = E[W(h') | h] factors too. An E_t is
L−1 commuting shears "each agent in slot i goes to slot t with weight β, else stays", and on the
line {h_i + h_t = const} a shear is the lower-triangular matrix M[r, s] = C(r, s) α^s β^(r−s),
whatever the line. Stored with h_i outermost and h_t implied, row s of the other counts is a prefix
of row s−1, so a shear is k+1 sums of contiguous slices; one gather then brings the next slot
outermost. L(L−1) shears in all: 2 L (L−1) C(k+L, L) flops and as many passes of N numbers for each
column, exact for signed weights as well.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _loops
from jaxsac.subsample_q.data.histograms import enumerate_counts, graded_rank, num_histograms


class _Layout(NamedTuple):
    counts: np.ndarray  # [N, L]: (outer, inner..., implied) counts of each position
    sizes: tuple[int, ...]  # length of row o
    offsets: tuple[int, ...]  # start of row o
    rotate: np.ndarray  # [N]: the innermost slot comes outermost
    swap: np.ndarray  # [N]: outer and implied slot change places


@functools.lru_cache(maxsize=16)
def _layout(k: int, L: int) -> _Layout:
    sizes = tuple(num_histograms(k - o, L - 1) for o in range(k + 1))
    offsets = tuple(int(offset) for offset in np.concatenate([[0], np.cumsum(sizes)[:-1]]))
    inner = enumerate_counts(k, L - 1)[:, :-1]
    rows = []
    for outer, size in enumerate(sizes):
        z = inner[:size]
        rows.append(
            np.concatenate(
                [np.full((size, 1), outer), z, (k - outer - z.sum(axis=1))[:, None]], axis=1
            )
        )
    counts = np.concatenate(rows).astype(np.int32)
    rotate = _position(counts[:, [*range(1, L - 1), 0, L - 1]], offsets, k)
    swap = _position(counts[:, [L - 1, *range(1, L - 1), 0]], offsets, k)
    return _Layout(counts, sizes, offsets, rotate, swap)


def _position(counts, offsets: tuple[int, ...], k: int):
    """Where the histogram with layout coordinates `counts` [..., L] is stored."""
    starts = np.asarray(offsets, np.int32)
    start = (
        jnp.asarray(starts)[counts[..., 0]]
        if isinstance(counts, jax.Array)
        else starts[counts[..., 0]]
    )
    return start + graded_rank(counts[..., 1:-1], k)


def eliminate(
    kernels: Any, rows: Any, columns: Any, replacements: Any, xp: Any = jnp
) -> tuple[Any, Any]:
    """alpha, beta [K, L, L] of P = E_1 ... E_L Π for the pivots of K kernels [K, L, L]: entry (t,
    i) belongs to row i in step t.

    xp is numpy on the host, where this takes no time, or jax.numpy for traced kernels.
    """
    K, L, _ = kernels.shape
    each, numbers = np.arange(K), np.arange(L, dtype=np.int32)
    state, alphas, betas = kernels, [], []
    for t in range(L):
        row, replacement = rows[:, t], replacements[:, t]
        own, replaced = numbers[None, :] == row[:, None], replacement >= 0
        pivot_row = state[each, row]
        beta = state[each, :, columns[:, t]] / pivot_row[each, columns[:, t]][:, None]
        alpha = xp.where(replaced | own, 1, 1 - beta).astype(state.dtype)
        cleared = (state - beta[:, :, None] * pivot_row[:, None, :]) / alpha[:, :, None]
        cleared = xp.where(own[:, :, None], pivot_row[:, None, :], cleared)
        unit = (replacement[:, :, None] == numbers[None, None, :]).astype(state.dtype)
        state = xp.where(replaced[:, :, None], unit, cleared)
        alphas.append(xp.where(replaced, 0, alpha).astype(state.dtype))
        betas.append(xp.where(replaced, 1, beta).astype(state.dtype))
    return xp.stack(alphas, axis=1), xp.stack(betas, axis=1)


@functools.lru_cache(maxsize=16)
def _schedule(L: int) -> tuple[list[tuple[int, int]], np.ndarray, list[int]]:
    """(target slot, source slot) of each shear, the pivot of each slot (the implied slot of block b
    belongs to pivot L-1-b: E_L acts first on W), and the order of the slots (outer, inner...,
    implied) after the last gather.

    The layout is rotated after every shear, until each slot has been outermost; then outer and
    implied slot change places.
    """
    order = list(range(L))
    shears = []
    for _ in range(L):
        for source in range(L - 1):
            shears.append((order[-1], order[0]))
            if source < L - 2:
                order = [order[L - 2], *order[: L - 2], order[-1]]
            else:
                order[0], order[-1] = order[-1], order[0]
    pivot_of_slot = np.zeros(L, np.int32)
    pivot_of_slot[[target for target, _ in shears[:: L - 1]]] = np.arange(L)[::-1]
    return shears, pivot_of_slot, order


def gathers_of(rows: Any, columns: Any, k: int) -> tuple[Any, Any]:
    """Gathers into and out of the layout, int32 [N] each, for the pivots [L] of one kernel; numpy
    and jax arrays alike.
    """
    L = rows.shape[0]
    layout = _layout(k, L)
    _, pivot_of_slot, final_order = _schedule(L)
    xp = jnp if isinstance(rows, jax.Array) else np
    # At the entry the slot of pivot t holds the count of column p_t, at the exit that of row r_t.
    slot_of_column = xp.asarray(np.argsort(pivot_of_slot).astype(np.int32))[xp.argsort(columns)]
    entry = graded_rank(xp.asarray(layout.counts)[:, slot_of_column[: L - 1]], k)
    leave = _position(
        xp.asarray(enumerate_counts(k, L))[:, rows[pivot_of_slot[final_order]]], layout.offsets, k
    )
    return entry, xp.asarray(layout.swap)[leave]


class Thinning(NamedTuple):
    """Kernels, made ready: the triangles of their shears and the gathers into, between and out of
    the layouts.
    """

    triangles: Any  # [K, L(L-1), k+1, k+1]
    entry: Any  # int32 [K, N]
    gathers: Any  # int32 [K, 3, N]


def prepare_thinning(
    kernels: Any, pivots: tuple[Any, Any, Any], gathers: tuple[Any, Any] | None, k: int
) -> Thinning:
    """The operators of kernels [K, L, L], L ≥ 2, for pivots as in `Order`; `gathers` as in
    `gathers_of`, if they are there already.
    """
    rows, columns, replacements = pivots
    xp = np if isinstance(kernels, np.ndarray) else jnp
    K, L, _ = kernels.shape
    layout, (shears, pivot_of_slot, _) = _layout(k, L), _schedule(L)
    steps = pivot_of_slot[[target for target, _ in shears]]
    sources = rows[:, pivot_of_slot[[source for _, source in shears]]]
    alpha, beta = eliminate(kernels, rows, columns, replacements, xp)
    each = np.arange(K)[:, None]
    triangles = _triangles(
        alpha[each, steps[None], sources], beta[each, steps[None], sources], k, xp
    )
    entry, leave = (
        jax.vmap(lambda r, c: gathers_of(r, c, k))(rows, columns) if gathers is None else gathers
    )
    rotate, swap = (
        xp.broadcast_to(xp.asarray(part), entry.shape) for part in (layout.rotate, layout.swap)
    )
    return Thinning(triangles, entry, xp.stack([rotate, swap, leave], axis=1))


def apply_thinning(operator: Thinning, values: jax.Array, k: int, L: int) -> jax.Array:
    """E[W(h') | h] for W = values [C, N] in graded order, as [N, C]."""
    layout, C = _layout(k, L), values.shape[0]
    choice = np.array(([0] * (L - 2) + [1]) * L, np.int32)
    choice[-1] = 2

    def shear(carried, step):
        triangle, gather = step
        flat = carried.reshape(-1)
        out = []
        for r, size in enumerate(layout.sizes):
            terms = [
                triangle[r, s] * flat[layout.offsets[s] * C : (layout.offsets[s] + size) * C]
                for s in range(r + 1)
            ]
            out.append(sum(terms[1:], terms[0]))
        # Without the barrier XLA would evaluate the sums inside the gather.
        sheared = lax.optimization_barrier(jnp.concatenate(out).reshape(-1, C))
        return permute(sheared, operator.gathers[gather]), None

    return _loops.scan(
        shear, permute(values.T, operator.entry), (operator.triangles, jnp.asarray(choice))
    )[0]


def permute(values: jax.Array, index: jax.Array | np.ndarray) -> jax.Array:
    return values.at[index].get(mode="promise_in_bounds", unique_indices=True)


def _triangles(alpha: Any, beta: Any, k: int, xp: Any) -> Any:
    """M[.., r, s] = C(r, s) alpha^s beta^(r-s) for s ≤ r ≤ k, else 0: [K, T, k+1, k+1] for alpha,
    beta [K, T].
    """
    binomial = np.array(
        [[math.comb(r, s) for s in range(k + 1)] for r in range(k + 1)], float
    ).astype(alpha.dtype)
    exponent = np.maximum(np.arange(k + 1)[:, None] - np.arange(k + 1)[None, :], 0)

    def powers(base):
        repeated = xp.broadcast_to(base[:, :, None], (*base.shape, k))
        return xp.concatenate(
            [xp.ones((*base.shape, 1), base.dtype), xp.cumprod(repeated, axis=-1)], axis=-1
        )

    return binomial[None, None] * powers(alpha)[:, :, None, :] * powers(beta)[:, :, exponent]
