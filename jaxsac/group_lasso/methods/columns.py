"""The loop on the columns that matter, driven from the host: for large matrices, where the methods
by blocks do not apply.

A step takes two products with X, and on the few columns that a solution needs they take little. A
round takes steps on the columns that are not zero or should not be, to a tolerance that follows the
gap, and ends with a certificate over all columns.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac._iterate import Certificate, Outcome
from jaxsac._sizes import padded
from jaxsac.designs import Dense, MultiOutput
from jaxsac.group_lasso.methods.limits import COLUMNS, Lams, Limits, one_after_another
from jaxsac.group_lasso.methods.loop import rounds
from jaxsac.group_lasso.methods.loop.fista import allowed, start
from jaxsac.group_lasso.methods.loop.programs import Setup, certify, finish, finished, run, set_up
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, uncentred
from jaxsac.group_lasso.problem.support import restrict_to_columns
from jaxsac.prox.groups import labels_of
from jaxsac.solution import RUNNING, Solution, Status, reason_of, verdict

_WORTHWHILE = 1 << 18  # numbers in X, below which the loop on all columns takes no longer
_FEW = 256  # columns, likewise
_FEWEST = 32  # groups, or features, that a round admits
_SMALLEST, _COARSER = 64, 4  # columns of a set, and the ratio of sizes: each is compiled
# Tolerance of a round: a share of that of the whole, or of the gap while columns are missing.
_INNER, _LOOSE = 0.3, 0.05
_PATIENCE = 4  # rounds without progress


def applies(problem: Objective) -> bool:
    """Whether this method is for a concrete problem: a large matrix on a CPU, for which there is no
    method by blocks.
    """
    matrix = _matrix(problem)
    if matrix is None or matrix.size < _WORTHWHILE or matrix.shape[1] < _FEW or problem.free_lam:
        return False
    return not rounds.applies(problem) and next(iter(matrix.devices())).platform == "cpu"


_prepare = jax.jit(functools.partial(set_up, measured=False))


def solve(problem: Objective, limits: Limits, at: Coefficients | None) -> Solution:
    """The solution of a concrete problem from a point in centred coordinates."""
    return finished(problem, limits, run_rounds(problem, _prepare(problem), limits, at))


def solve_path(problem: Objective, lams: Lams, limits: Limits) -> Solution:
    """Solutions [L], each from the last."""
    setup = _prepare(problem)

    def one(here: Objective, at: Coefficients | None) -> Solution:
        return finished(here, limits, run_rounds(here, setup, limits, at))

    return one_after_another(problem, lams, one)


def run_rounds(
    problem: Objective, setup: Setup, limits: Limits, at: Coefficients | None
) -> Solution:
    """Rounds from a point until the certificate meets the tolerance; `num_steps` counts them, each
    of at most `max_steps` steps.

    STALLED: it no longer falls, or half of the columns are needed; the loop on all of them may go
    on from there.
    """
    tol, max_steps = limits
    point = setup.null if at is None else at._replace(coef=allowed(problem, at.coef))
    unit, free = _units(problem), np.asarray(problem.unpenalised)
    by_column = isinstance(uncentred(problem), MultiOutput)
    num_units, num_columns = int(unit.max()) + 1, _matrix(problem).shape[1]
    best, since, num_passes = np.inf, 0, 0
    while True:
        solution, left = _check(problem, setup, tol, point)
        certificate = tuple(float(solution.stats[name]) for name in Certificate._fields)
        gap, _, scale = certificate
        since = 0 if gap < 0.9 * best else since + 1
        best = min(best, gap)
        score = np.bincount(unit, np.asarray(left) ** 2, num_units)
        needed = np.bincount(unit[(np.asarray(point.coef) != 0) | free], minlength=num_units) > 0
        new = np.flatnonzero((score > 0) & ~needed)
        most = max(_FEWEST, 2 * np.count_nonzero(needed))
        complete = len(new) <= most
        needed[new if complete else new[np.argpartition(-score[new], most)[:most]]] = True
        columns = np.flatnonzero(needed if by_column else needed[unit]).astype(np.int32)

        progress = since < _PATIENCE and 2 * len(columns) <= num_columns
        more = num_passes < int(max_steps)
        status = verdict(certificate, float(tol), progress=progress, more=more)
        if status != RUNNING:
            told = {
                "num_steps": jnp.int32(num_passes),
                "reason": reason_of(status, certificate),
                "method": jnp.int32(COLUMNS),
            }
            return solution._replace(status=jnp.int32(status), stats={**solution.stats, **told})
        inner = _INNER * float(tol) if complete else max(_INNER * float(tol), _LOOSE * gap / scale)
        point = _steps(
            problem,
            setup,
            _filled_up(columns, num_columns),
            jnp.asarray(inner, tol.dtype),
            max_steps,
            point,
        )
        num_passes += 1


def _matrix(problem: Objective) -> Any:
    """What the design has columns of, or None."""
    design = uncentred(problem)
    if isinstance(design, MultiOutput):
        return design.features
    return design.matrix if isinstance(design, Dense) else None


def _units(problem: Objective) -> np.ndarray:
    """Which coefficients come and go together [p]: those of a group, or with several outputs those
    of a feature.
    """
    design = uncentred(problem)
    if isinstance(design, MultiOutput):
        features = np.arange(design.features.shape[1], dtype=np.int32)
        return (
            np.tile(features, design.num_outputs)
            if design.by == "output"
            else np.repeat(features, design.num_outputs)
        )
    return labels_of(problem.groups)


def _filled_up(columns: np.ndarray, num_columns: int) -> np.ndarray:
    size = padded(len(columns), _SMALLEST, _COARSER)
    size = max(min(size, num_columns // 2), len(columns))
    return np.append(columns, np.full(size - len(columns), num_columns, np.int32))


@jax.jit
def _check(
    problem: Objective, setup: Setup, tol: jax.Array, point: Coefficients
) -> tuple[Solution, jax.Array]:
    """The point as a solution, and how far the gradient is from the penalty's for each coefficient
    [p].
    """
    outcome = Outcome(
        start(point), certify(problem, setup, tol, point), jnp.int32(Status.STALLED), jnp.int32(0)
    )
    pull = problem.design.adjoint(problem.residual(problem.predict(point)))
    return finish(problem, problem, outcome), problem.whole_penalty.violation(
        point.coef, pull, problem.lam
    )


@jax.jit
def _steps(
    problem: Objective,
    setup: Setup,
    columns: jax.Array,
    tol: jax.Array,
    max_steps: jax.Array,
    point: Coefficients,
) -> Coefficients:
    """The point after steps on these columns alone, those out of range being none."""
    small, indices = restrict_to_columns(problem, columns)

    def part(of_all: jax.Array) -> jax.Array:
        return of_all.at[indices].get(mode="fill", fill_value=0)

    first = Coefficients(part(point.coef), point.intercept)
    own = Setup(first, setup.scale, part(setup.columns), None, None)
    end = run(small, own, tol, max_steps, start(first)).state
    return Coefficients(
        jnp.zeros_like(point.coef).at[indices].set(end.coef, mode="drop"), end.intercept
    )
