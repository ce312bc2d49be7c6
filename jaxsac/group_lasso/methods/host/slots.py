"""The groups that are worked on: slots for their columns and for their quadratic model, in memory
that stays where it is.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxsac._sizes import padded
from jaxsac.group_lasso.methods.host.trace import traced
from jaxsac.group_lasso.model.descent import Model, eigenvalue_bounds
from jaxsac.group_lasso.problem.objective import Objective

_SMALLEST, _SMALLEST_OF_MANY = 32, 8  # groups of a set, and where they are of many numbers
_MANY = 1 << 16
_ROOM = 1024  # slots of a store; the system gives the memory where it is first written
_VISITED = 128  # slots that the compiled descent sees; a size is a program
_ALIGNED = 64  # bytes, or a compiled function would copy
_RECORDS = 256  # gathered together: a column of more lies on too many pages
_TOGETHER = 1 << 17  # numbers scaled together, that they stay in the cache


class Setup(NamedTuple):
    """A problem, whose lam does not matter, the tolerance, and what is the same at every lam: X,
    the rows of coefficients of each group [G, q] (padded with p), w [G], how many groups are
    unpenalised, ‖C^½ x_j‖ [p + 1] (the last is 0), their `Pulls.bound`, the size of a column, the
    null objective, and how small a decrease is left to the refit of what is unpenalised.
    """

    problem: Objective
    tol: float
    matrix: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    num_free: int
    columns: np.ndarray
    bound: np.ndarray
    unit: np.ndarray
    scale: np.ndarray
    target: np.ndarray


class Store(NamedTuple):
    """Room for the columns of C groups [C, q, T], and in float32 for their model: h^½ X_g / unit,
    Gram matrices, bounds, whether it is made.

    What lies beyond the slots of the set, and the Gram matrices and bounds where no model is made,
    is whatever the memory held.
    """

    blocks: np.ndarray
    scaled: np.ndarray
    grams: np.ndarray
    bounds: np.ndarray
    made: np.ndarray


class WorkingSet(NamedTuple):
    """Slots for some groups, the unpenalised ones first: which group [C] (−1: empty), its rows of
    coefficients [C, q], and their store, whose empty slots hold zeros. `root` is h^½ [T] of the
    model, None where there is none yet. `exchanged` and `modelled` consume a set: what they return
    has the same store, changed.
    """

    groups: np.ndarray
    rows: np.ndarray
    store: Store
    root: np.ndarray | None

    @property
    def used(self) -> np.ndarray:
        return self.groups >= 0

    @property
    def blocks(self) -> np.ndarray:
        return self.store.blocks[: len(self.groups)]

    @property
    def scaled(self) -> np.ndarray:
        return self.store.scaled[: len(self.groups)]


def working_set(setup: Setup, groups: np.ndarray) -> WorkingSet:
    """A set of its own with these groups."""
    store = _store(setup, max(_ROOM, len(groups)))
    slots = groups if len(groups) else np.full(1, -1, np.int32)
    chosen = WorkingSet(slots, rows_of(setup, slots), store, None)
    _empty(store, np.flatnonzero(slots < 0))
    _fill(setup, chosen, np.arange(len(groups)))
    return chosen


@traced
def exchanged(setup: Setup, chosen: WorkingSet, members: np.ndarray) -> WorkingSet:
    """The set with these groups instead, in the same memory: those that stay keep their slots, and
    only what is new is gathered. Consumes `chosen`.
    """
    stays = chosen.used & np.isin(chosen.groups, members)
    fresh = np.setdiff1d(members, chosen.groups[stays], assume_unique=True).astype(np.int32)
    # Slots that were left come first; what is not taken again is emptied.
    left, empty = np.flatnonzero(chosen.used & ~stays), np.flatnonzero(~chosen.used)
    old = len(chosen.groups)
    slots = np.concatenate(
        [left, empty, np.arange(old, old + max(0, len(fresh) - len(left) - len(empty)))]
    )
    emptied, slots = left[len(fresh) :], slots[: len(fresh)]
    groups = np.full(max(old, int(np.max(slots, initial=-1)) + 1), -1, np.int32)
    groups[:old] = np.where(stays, chosen.groups, -1)
    groups[slots] = fresh
    store = chosen.store
    if len(groups) > len(store.blocks):
        store = _store(setup, 2 * len(groups))
        for new, former in zip(store, chosen.store, strict=True):
            new[:old] = former[:old]
    grown = WorkingSet(groups, rows_of(setup, groups), store, chosen.root)
    _empty(store, emptied)
    _fill(setup, grown, slots)
    return grown


def modelled(chosen: WorkingSet, root: np.ndarray) -> WorkingSet:
    """The set with the quadratic model in which h^½ is `root`; it is made where `make` asks for it.
    Consumes `chosen`.
    """
    chosen.store.made[:] = False
    return chosen._replace(root=root)


@traced
def make(setup: Setup, chosen: WorkingSet, wanted: np.ndarray) -> None:
    """Make the model on those of the slots marked in `wanted` [C] where it is not.

    A column is h^½ (x − its mean) / unit; the mean, if there is an intercept, in the metric h, in
    which the intercept drops out.
    """
    root, (blocks, scaled, grams, bounds, made) = chosen.root, chosen.store
    assert root is not None
    slots = np.flatnonzero(wanted & chosen.used & ~made[: len(wanted)])
    factor, shares = root / setup.unit, root**2 / np.sum(root**2)
    size = max(1, _TOGETHER // blocks[0].size)
    for start in range(0, len(slots), size):
        some = slots[start : start + size]
        some = (
            slice(some[0], some[-1] + 1) if some[-1] - some[0] == len(some) - 1 else some
        )  # a slice is no copy
        part: Any = blocks[some]
        if setup.problem.intercept:
            part = part - (part @ shares)[:, :, None]
        scaled[some] = part * factor
        own = scaled[some]
        grams[some] = own @ own.transpose(0, 2, 1)
    bounds[slots] = eigenvalue_bounds(grams[slots])
    made[slots] = True


def visited(chosen: WorkingSet) -> tuple[np.ndarray, np.ndarray]:
    """The model's columns and bounds on one of a few numbers of slots: as few programs are compiled
    for them. Those beyond the set are not to be read, not even times zero.
    """
    size = padded(len(chosen.groups), _VISITED, 4)
    return chosen.store.scaled[:size], chosen.store.bounds[:size]


def model_on(chosen: WorkingSet, slots: np.ndarray, thresholds: np.ndarray) -> Model:
    """The model on some slots, contiguous: for many products."""
    every = len(slots) == len(chosen.groups)
    part: Any = slice(len(slots)) if every else slots
    return Model(
        chosen.store.scaled[part],
        chosen.store.grams[part],
        chosen.store.bounds[part],
        thresholds[part],
    )


@traced
def combined(blocks: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """Σ_g b_g' X_g [..., T], from blocks [C, q, T] and coefficients [..., C, q]."""
    nonzero = np.flatnonzero(
        coef.any(axis=tuple(k for k in range(coef.ndim) if k != coef.ndim - 2))
    )
    if 3 * len(nonzero) < len(blocks):  # else the copy takes as long as the products
        blocks, coef = blocks[nonzero], coef[..., nonzero, :]
    return coef.reshape(*coef.shape[:-2], -1) @ blocks.reshape(-1, blocks.shape[2])


def sizes_of(coef: np.ndarray) -> np.ndarray:
    """‖b_g‖ [..., C] of coefficients [..., C, q], right at every scale of the dtype."""
    scale = np.max(np.abs(coef), axis=-1, keepdims=True, initial=0)
    parts = coef / np.where((scale > 0) & np.isfinite(scale), scale, 1)
    return np.where(scale > 0, scale, 1)[..., 0] * np.sqrt(
        np.einsum("...q,...q->...", parts, parts)
    )


@traced
def products(blocks: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """X_g' v for each block, [C, q]."""
    return (blocks.reshape(-1, blocks.shape[2]) @ vector).reshape(blocks.shape[:2])


def full(setup: Setup, chosen: WorkingSet, coef: np.ndarray) -> np.ndarray:
    """Coefficients of the working set [C, q] as those of all columns, [p + 1]; the last is 0."""
    spread = np.zeros(setup.problem.groups.num_coefficients + 1, coef.dtype)
    spread[chosen.rows] = coef
    spread[-1] = 0.0
    return spread


def capacity(setup: Setup, count: int) -> int:
    """A size with room for `count` groups, from a ladder whose steps are half as large again as the
    last.
    """
    size = _SMALLEST if setup.rows.shape[1] * len(setup.matrix) < _MANY else _SMALLEST_OF_MANY
    return min(padded(count, size, 1.5), len(setup.weights))


def rows_of(setup: Setup, groups: np.ndarray) -> np.ndarray:
    """The rows of coefficients of some groups (−1: none)."""
    return np.where(
        (groups >= 0)[:, None], setup.rows[groups], np.int32(setup.problem.groups.num_coefficients)
    ).astype(np.int32)


def _empty(store: Store, slots: np.ndarray) -> None:
    for array in store:
        array[slots] = 0


def _fill(setup: Setup, chosen: WorkingSet, slots: np.ndarray) -> None:
    columns, num_columns = chosen.rows[slots], setup.matrix.shape[1]
    inside = np.minimum(columns, num_columns - 1)
    for start in range(0, len(setup.matrix), _RECORDS):
        part = slice(start, start + _RECORDS)
        chosen.store.blocks[slots, :, part] = setup.matrix[part].T[inside]
    padding = np.nonzero(columns == num_columns)
    chosen.store.blocks[slots[padding[0]], padding[1]] = 0
    chosen.store.scaled[slots] = 0
    chosen.store.made[slots] = False


def _store(setup: Setup, count: int) -> Store:
    num_groups, size = setup.rows.shape
    count, num_samples = min(count, num_groups), len(setup.matrix)
    return Store(
        np.empty((count, size, num_samples), setup.matrix.dtype),
        _aligned_empty((count, size, num_samples)),
        np.empty((count, size, size), np.float32),
        _aligned_empty((count,)),
        np.zeros(count, bool),
    )


def _aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    size = 4 * int(np.prod(shape))
    memory = np.empty(
        size + _ALIGNED, np.uint8
    )  # from the system, which gives it where it is first written
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + size].view(np.float32).reshape(shape)
