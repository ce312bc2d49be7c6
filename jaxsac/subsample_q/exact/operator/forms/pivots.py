"""Pivot orders for the two exact operators, by beam search on the host.

Thinning factors a stochastic P as E_1 ... E_L Π: E_t sends every local state i ≠ r_t to state r_t
with some (signed) weight and leaves it otherwise, which clears column p_t of the other rows; Π is a
permutation. Exchange replaces the vertices of a simplex, slot by slot, by the rows of P. Both are
exact for every order without a division by zero; the order decides how far rounding is amplified.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Order(NamedTuple):
    """Pivots of one or many kernels [..., L, L].

    rows, columns [..., L] int32; replacements [..., L, L] int32: in step t row i becomes the unit
    row of that number (-1: it does not); amplification [...]: 1 is perfect, inf says that no order
    was found.
    """

    rows: np.ndarray
    columns: np.ndarray
    replacements: np.ndarray
    amplification: np.ndarray


class _Beam(NamedTuple):
    matrices: np.ndarray  # [b, L, L]
    rows: np.ndarray  # [b, t]
    columns: np.ndarray  # [b, t]
    replacements: np.ndarray  # [b, t, L]
    cost: np.ndarray  # [b], log amplification
    log_pivots: np.ndarray  # [b]


def pivot_order(kernel: np.ndarray, form: str, width: int = 32) -> Order:
    """Pivots of a form: of "thinning" (row, column), minimising Π_t max_i (|α_i| + |β_i|); of
    "exchange" (row of P, vertex slot), of least Π_t ‖coordinates of the row‖₁.
    """
    cost, step = _FORMS[form]
    tiny = 64 * float(np.finfo(kernel.dtype).eps)  # what is smaller is rounding
    L, batch = kernel.shape[-1], kernel.shape[:-2]
    found = [
        _best(one, width, cost, step, tiny) for one in kernel.reshape(-1, L, L).astype(np.float64)
    ]
    parts = [np.array(part) for part in zip(*found, strict=True)]
    rows, columns, replacements, log_amplification = (
        part.reshape((*batch, *part.shape[1:])) for part in parts
    )
    return Order(
        rows.astype(np.int32),
        columns.astype(np.int32),
        replacements.astype(np.int32),
        np.exp(log_amplification),
    )


def _best(kernel: np.ndarray, width: int, cost: Callable, step: Callable, tiny: float):
    L = len(kernel)
    none = np.zeros((1, 0), int)
    beam = _Beam(kernel[None], none, none, np.zeros((1, 0, L), int), np.zeros(1), np.zeros(1))
    for _ in range(L):
        open_rows = np.ones((len(beam.cost), L), bool)
        open_columns = open_rows.copy()
        np.put_along_axis(open_rows, beam.rows, False, axis=1)
        np.put_along_axis(open_columns, beam.columns, False, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            step_cost, pivot = cost(beam.matrices, open_rows, tiny)
        allowed = open_rows[:, :, None] & open_columns[:, None, :] & np.isfinite(step_cost)
        total = np.where(allowed, beam.cost[:, None, None] + step_cost, np.inf)
        log_pivots = beam.log_pivots[:, None, None] + np.log(np.maximum(pivot, 1e-300))
        # Among nearly equal amplifications prefer large pivots: they keep the remaining rows
        # independent.
        ranked = np.argsort((total - 1e-3 * log_pivots).reshape(-1), kind="stable")[:width]
        ranked = ranked[np.isfinite(total.reshape(-1)[ranked])]
        if ranked.size == 0:
            return np.arange(L), np.arange(L), np.full((L, L), -1), np.inf
        parent, row, column = np.unravel_index(ranked, total.shape)
        columns = np.concatenate([beam.columns[parent], column[:, None]], axis=1)
        rows = np.concatenate([beam.rows[parent], row[:, None]], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            matrices, replaced = step(beam.matrices[parent], rows, columns, tiny)
        replacements = np.concatenate([beam.replacements[parent], replaced[:, None]], axis=1)
        beam = _Beam(
            matrices,
            rows,
            columns,
            replacements,
            total.reshape(-1)[ranked],
            log_pivots.reshape(-1)[ranked],
        )
    return beam.rows[0], beam.columns[0], beam.replacements[0], float(beam.cost[0])


def _thinning_cost(
    matrices: np.ndarray, open_rows: np.ndarray, tiny: float
) -> tuple[np.ndarray, np.ndarray]:
    """log max_i (|α_i| + |β_i|) and pivot size of every (row r, column p): [b, L, L]."""
    beta = matrices[:, :, None, :] / matrices[:, None, :, :]  # [b, i, r, p]
    alpha = 1.0 - beta
    same = np.eye(matrices.shape[-1], dtype=bool)[None, :, :, None]
    distance = np.abs(matrices[:, :, None, :] - matrices[:, None, :, :]).max(axis=-1)[..., None]
    undefined = (
        (np.abs(alpha) < tiny) & (distance > 16 * tiny) & ~same
    )  # alpha = 0 is exact only where row i equals row r
    size = np.where(same, 1.0, np.where(undefined, np.inf, np.abs(alpha) + np.abs(beta)))
    pivot = np.abs(matrices)
    return np.where(pivot > tiny, np.log(size.max(axis=1)), np.inf), pivot


def _thinning_step(
    matrices: np.ndarray, rows: np.ndarray, columns: np.ndarray, tiny: float
) -> tuple[np.ndarray, np.ndarray]:
    beams, L = np.arange(len(matrices)), matrices.shape[-1]
    row, column = rows[:, -1], columns[:, -1]
    pivot_row = matrices[beams, row]
    beta = matrices[beams, :, column] / pivot_row[beams, column][:, None]
    alpha = 1.0 - beta
    after = (matrices - beta[:, :, None] * pivot_row[:, None]) / alpha[:, :, None]
    after[beams, row] = pivot_row
    # A row equal to the pivot row is sent there with weight one, so anything may replace it: a unit
    # row that clears the used columns.
    replaced = np.full((len(matrices), L), -1)
    copies = np.abs(alpha) < tiny
    copies[beams, row] = False
    for beam in np.flatnonzero(copies.any(axis=1)):
        unused = iter(sorted(set(range(L)) - set(columns[beam].tolist())))
        own = dict(zip(rows[beam].tolist(), columns[beam].tolist(), strict=True))
        for i in np.flatnonzero(copies[beam]):
            replaced[beam, i] = own[i] if i in own else next(unused)
            after[beam, i] = np.eye(L)[replaced[beam, i]]
    return after, replaced


def _exchange_cost(
    matrices: np.ndarray, open_rows: np.ndarray, tiny: float
) -> tuple[np.ndarray, np.ndarray]:
    """log ‖coordinates of row r‖₁ and pivot size of putting row r into slot i: [b, L, L]."""
    pivot = np.abs(matrices)
    size = np.log(pivot.sum(axis=-1))[:, :, None]
    # A zero pivot flattens the simplex: allowed only when no other open row still needs that
    # vertex.
    others = (
        open_rows[:, None, :, None] & ~np.eye(matrices.shape[-1], dtype=bool)[None, :, :, None]
    )  # [b, r, other, 1]
    needed = (pivot[:, None] * others).max(axis=2)
    return np.where((pivot > tiny) | (needed <= tiny), size, np.inf), pivot


def _exchange_step(
    matrices: np.ndarray, rows: np.ndarray, columns: np.ndarray, tiny: float
) -> tuple[np.ndarray, np.ndarray]:
    beams, L = np.arange(len(matrices)), matrices.shape[-1]
    row, column = rows[:, -1], columns[:, -1]
    pivot_row = matrices[beams, row]
    pivot = pivot_row[beams, column][:, None]
    # Coordinates in the new simplex, whose vertex `column` is the row itself; -2 marks a flat
    # exchange.
    flat = np.abs(pivot) <= tiny
    ratio = np.where(flat, 0.0, matrices[beams, :, column] / pivot)
    after = matrices - ratio[:, :, None] * pivot_row[:, None]
    after[beams, :, column] = ratio
    return after, np.where(flat, -2, np.full((1, L), -1))


_FORMS = {
    "thinning": (_thinning_cost, _thinning_step),
    "exchange": (_exchange_cost, _exchange_step),
}
