"""Newton steps on the quadratic model in float32, in NumPy: for supports of any size without
padding or compiling. See `newton`.
"""

from typing import Any

import numpy as np

from jaxsac.group_lasso.model.descent import Model
from jaxsac.group_lasso.model.newton import (
    CG_TOLERANCE,
    MAX_CG_STEPS,
    admissible,
    descent_direction,
)
from jaxsac.group_lasso.model.quadratic import LENGTHS

_LOOSEST = 0.3  # of the residual that a direction may leave
_SHORT = 0.4  # a length of a step: below it groups are in the way that should be zero
_EPS = np.finfo(np.float32).eps


def newton_steps(
    few: Model, coef: np.ndarray, residual: np.ndarray, accuracy: float, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` steps, until no group's gradient is further from the penalty's than
    `accuracy` times its threshold.

    A zero group that is further is given its own minimum before a step; after a step that had to be
    cut short, every group that is further is. `coef` b [S, q] of the blocks of `few`, `residual` r
    [T]; returns both.
    """
    relative = np.where(few.thresholds > 0, few.thresholds, np.max(few.thresholds, initial=0))
    relative = np.where(relative > 0, relative, np.float32(1))
    num_steps, visited, length = 0, False, 1.0
    while True:
        descent = descent_direction(few, coef, residual)
        off = norms_of(descent) / relative
        worst = float(np.max(off, initial=0))
        if num_steps >= limit or not worst > accuracy:
            return coef, residual
        zero = (few.thresholds > 0) & ~coef.any(axis=1)
        visits = np.flatnonzero((off > accuracy) & (zero | (length < _SHORT)))
        if len(visits) and not visited:
            coef, residual = _epoch(few, coef, residual, visits)
            visited, length = True, 1.0
        else:
            # The last step need not be solved for more than is asked.
            tolerance = min(max(0.3 * accuracy / worst, CG_TOLERANCE), _LOOSEST)
            coef, residual, length = _newton_step(few, coef, residual, descent, tolerance)
            visited, num_steps = False, num_steps + 1


def norms_of(blocks: np.ndarray) -> np.ndarray:
    """‖b_g‖ [..., S] of blocks [..., S, q] in the units of the model; see `slots.sizes_of` for
    others.
    """
    return np.sqrt(np.einsum("...q,...q->...", blocks, blocks))


def _epoch(
    few: Model, coef: np.ndarray, residual: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """See `descent.epoch`."""
    coef, residual = coef.copy(), residual.copy()
    for i in order:
        block, bound, old = few.blocks[i], few.bounds[i], coef[i]
        pulled = bound * old + block @ residual
        norm = np.sqrt(pulled @ pulled)
        keep = (
            np.maximum(norm - few.thresholds[i], 0) / (norm * bound)
            if norm * bound > 0
            else np.float32(0)
        )
        new = keep * pulled
        residual -= (new - old) @ block
        coef[i] = new
    return coef, residual


def _newton_step(
    few: Model, coef: Any, residual: Any, descent: Any, tolerance: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """The best of a few lengths of a step, the longest of those that rounding cannot tell from the
    best, and that length; see `newton_step`.
    """
    direction = admissible(coef, newton_direction(few, coef, descent, tolerance), few.thresholds)
    if not np.isfinite(direction).all():
        return coef, residual, 0.0
    moved = direction.reshape(-1) @ few.blocks.reshape(-1, few.blocks.shape[2])
    lengths = np.asarray(LENGTHS, np.float32)
    # The change of the objective from differences, which rounding hides less.
    smooth = lengths * (0.5 * lengths * (moved @ moved) - residual @ moved)
    steps = lengths[:, None, None] * direction
    before, after = norms_of(coef), norms_of(coef + steps)
    total = before + after
    grown = np.einsum("lgq,lgq->lg", steps, 2 * coef + steps) / np.where(
        total == 0, np.float32(1), total
    )
    changes = smooth + grown @ few.thresholds
    changes = np.where(np.isnan(changes), np.inf, changes)
    value = 0.5 * (residual @ residual) + few.thresholds @ before
    length = lengths[np.argmax(changes <= changes.min() + _EPS * value)]
    return coef + length * direction, residual - length * moved, float(length)


def newton_direction(
    few: Model, coef: np.ndarray, descent: np.ndarray, tolerance: float = CG_TOLERANCE
) -> np.ndarray:
    """An approximate solution d of K d = descent on the blocks that are not zero, or have no
    threshold, 0 on the others; see `newton`.

    By conjugate gradients, preconditioned by K's own blocks.
    """
    num_groups, size = coef.shape
    flat, norms = few.blocks.reshape(-1, few.blocks.shape[2]), norms_of(coef)
    moving = (norms > 0) | (few.thresholds == 0)
    bend = few.thresholds / np.where(norms == 0, np.float32(np.inf), norms)
    unit = coef / np.where(norms == 0, np.float32(1), norms)[:, None]
    # As one difference: what bends would drown the rest in float32 where a group is nearly zero.
    bends = bend[:, None, None] * (
        np.eye(size, dtype=coef.dtype) - unit[:, :, None] * unit[:, None, :]
    )
    own = few.grams + bends
    diagonal = own.reshape(num_groups, size * size)[:, :: size + 1]
    traces = diagonal.sum(axis=1)
    diagonal += np.where(traces > 0, np.float32(1e-6) * traces + np.float32(1e-30), np.float32(1))[
        :, None
    ]
    try:
        inverse = np.linalg.inv(own)
    except np.linalg.LinAlgError:
        return np.full_like(coef, np.nan)
    inverse[~moving] = 0
    mask = np.repeat(moving, size)

    def product(v):
        image = flat @ (v @ flat)
        image += np.einsum("gab,gb->ga", bends, v.reshape(coef.shape)).reshape(-1)
        image *= mask
        return image

    def precondition(v):
        return np.einsum("gab,gb->ga", inverse, v.reshape(coef.shape)).reshape(-1)

    largest = np.max(np.abs(descent), initial=0)
    largest = largest if largest > 0 else np.float32(1)
    residual = descent.reshape(-1) * mask / largest
    solution, direction = np.zeros_like(residual), precondition(residual)
    left = first = residual @ direction
    for _ in range(MAX_CG_STEPS):
        if not left > tolerance**2 * first:
            break
        image = product(direction)
        curvature = direction @ image
        if not curvature > 0:
            break
        length = left / curvature
        solution += length * direction
        residual -= length * image
        solved = precondition(residual)
        left, before = residual @ solved, left
        direction *= left / before
        direction += solved
    return largest * solution.reshape(coef.shape)
