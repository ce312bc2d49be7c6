"""The groups that are worked on: slots for their columns and their quadratic model, of a few sizes, so that few programs are compiled."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac.group_lasso import rounds
from jaxsac.group_lasso.problem import Problem
from jaxsac.group_lasso.rounds import Scaled, uncentred

_SMALLEST, _SMALLEST_OF_MANY = 32, 8  # slots, and where they are of many numbers
_MANY = 1 << 16
_COARSE = np.inf  # in a set empty slots are cheap, and a size costs programs and a copy


class Setup(NamedTuple):
    """A problem, whose lam does not matter, the tolerance, and what is the same at every lam: the rows of coefficients of each group [G, q]
    (padded with p), w [G], how many groups are unpenalised, ‖C^½ x_j‖ [p], the size of a column, the null objective, and how small a
    decrease is left to the refit of what is unpenalised."""

    problem: Problem
    tol: float
    rows: np.ndarray
    weights: np.ndarray
    num_free: int
    columns: jax.Array | np.ndarray
    unit: jax.Array | np.ndarray
    scale: jax.Array | np.ndarray
    target: np.ndarray


class WorkingSet(NamedTuple):
    """Slots for some groups, the unpenalised ones first: which group [C] (−1: empty), its rows of coefficients [C, q], its columns [C, q, T]
    (zeros if empty), and the quadratic model of the loss on them where it was last made."""

    groups: np.ndarray
    rows: np.ndarray
    blocks: jax.Array
    scaled: Scaled | None

    @property
    def used(self) -> np.ndarray:
        return self.groups >= 0


def working_set(setup: Setup, groups: np.ndarray) -> WorkingSet:
    """A set of its own with these groups."""
    size = capacity(setup, len(groups), coarse_below=_COARSE) if len(groups) else 1  # the null model's need not be large
    slots = padded(groups, size, -1)
    rows = _rows(setup, slots)
    return WorkingSet(slots, rows, rounds.gather(matrix(setup.problem), rows), None)


def exchanged(setup: Setup, chosen: WorkingSet, members: np.ndarray) -> WorkingSet:
    """The set with these groups instead: those that stay keep their slots, and only what is new is gathered. May consume `chosen`."""
    size = max(capacity(setup, len(members), coarse_below=_COARSE), len(chosen.groups))
    groups = np.concatenate([chosen.groups, np.full(size - len(chosen.groups), -1, np.int32)])
    stays = (groups >= 0) & np.isin(groups, members)
    if not stays.any():
        return working_set(setup, members)
    fresh = np.setdiff1d(members, groups[stays], assume_unique=True)
    # Slots that were left come first; what is not taken again is emptied: an empty slot holds zeros.
    left, empty = np.flatnonzero((groups >= 0) & ~stays), np.flatnonzero(groups < 0)
    slots = np.concatenate([left, empty])[: max(len(left), len(fresh))].astype(np.int32)
    fresh = padded(fresh, len(slots), -1)
    groups = np.where(stays, groups, -1).astype(np.int32)
    groups[slots] = fresh
    rows, scaled = _rows(setup, groups), chosen.scaled
    room = capacity(setup, len(fresh))
    blocks = rounds.gather(matrix(setup.problem), _rows(setup, padded(fresh, room, -1)))
    # The root belongs to the samples, not to the slots.
    old = chosen.blocks, None if scaled is None else scaled._replace(root=None)
    new = blocks, None if scaled is None else model(setup, blocks, scaled.root)._replace(root=None)
    if size > len(chosen.groups):
        old = rounds.widen(old, size=size)
    blocks, put = rounds.put(old, new, padded(slots, room, size))
    return WorkingSet(groups, rows, blocks, None if scaled is None else put._replace(root=scaled.root))


def model(setup: Setup, blocks: jax.Array, root: jax.Array) -> Scaled:
    """The quadratic model on some blocks, h^½ = `root`."""
    scaled = rounds.scale_blocks(setup.problem, blocks, root, setup.unit)
    grams, bounds = rounds.grams_of(scaled)
    return Scaled(scaled, grams, bounds, root)


def full(setup: Setup, chosen: WorkingSet, coef: jax.Array | np.ndarray) -> np.ndarray:
    """Coefficients of the working set [C, q] as those of all columns, [p + 1]; the last is 0."""
    spread = np.zeros(setup.problem.groups.num_coefficients + 1, coef.dtype)
    spread[chosen.rows] = coef
    spread[-1] = 0.0
    return spread


def capacity(setup: Setup, count: int, *, coarse_below: float = 0) -> int:
    """The least size for `count` groups: each is half as large again as the last, but below `coarse_below` every other one is left out."""
    size = _SMALLEST if setup.rows.shape[1] * setup.problem.num_samples < _MANY else _SMALLEST_OF_MANY
    while size < count:
        size = size * 3 // 2 if size >= coarse_below else size * 9 // 4
    return min(size, len(setup.weights))


def _rows(setup: Setup, groups: np.ndarray) -> np.ndarray:
    """The rows of coefficients of some groups (−1: none)."""
    return np.where((groups >= 0)[:, None], setup.rows[groups], np.int32(setup.problem.groups.num_coefficients)).astype(np.int32)


def padded(numbers: np.ndarray, size: int, fill: Any) -> np.ndarray:
    return np.concatenate([numbers, np.full(size - len(numbers), fill, numbers.dtype)])


def matrix(problem: Problem) -> jax.Array:
    """X as it was given."""
    return uncentred(problem).matrix
