"""The imitation fit at one lam: working set, block Newton steps, a duality gap over all M tools."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsac.control.data.digest import Digest
from jaxsac.control.data.families import Split
from jaxsac.control.imitation import step
from jaxsac.control.imitation.certificate import Certificate, certify
from jaxsac.control.imitation.likelihood import Evaluation, Working
from jaxsac.control.imitation.working import (
    Point,
    evaluate_point,
    null_point,
    pad,
    regroup,
    working_set,
)
from jaxsac.solution import Status

FIRST = 32  # tools in the first working set
FLOOR_STEPS = 3  # steps from the null model during which the curvature assumes at least a tool's own frequency
SHORTEST = 1e-4  # step length below which a line search gives up
PATIENCE = 10  # steps in a row without a smaller gap or objective
SLOW = 0.2  # the curvature is renewed after a step that leaves more than this of the gap


class Fitted(NamedTuple):
    point: Point  # its working set: tools of zero weights among it keep the intercepts that were certified
    certificate: Certificate
    status: Status | None  # None: the unused tools must enter one by one
    scale: float
    lam_max: float
    num_steps: int
    num_rounds: int
    num_evaluations: int


def solve(
    data: Digest,
    lam: float,
    *,
    budget: int,
    mode: str,
    tol: float,
    max_steps: int,
    start: Point | None = None,
    ridge: float = 0.0,
    fixed: bool = False,
    families: Split | None = None,
    report=None,
) -> Fitted:
    """Minimise from the null model or from `start`; `fixed` keeps the working set of `start` and
    certifies on it alone.
    """
    dtype = data.contexts.dtype
    null, null_found = null_point(data, budget, mode)
    null_certificate = certify(
        data, working_set(data, null.tools), null, null_found, lam, ridge, budget, mode, families
    )
    scale = float(null_found.value)
    lam_max = largest_norm(null_certificate, families)
    point = null if start is None else start
    if not fixed:
        everything = np.ones(point.tools.size, bool)
        point = _add_violators(
            data,
            point,
            null_certificate.norms,
            lam,
            families,
            everything,
            max(FIRST - point.tools.size, 0),
        )
    num_steps = num_rounds = num_evaluations = idle = 0
    while True:
        num_rounds += 1
        working = working_set(data, point.tools)
        size, width = point.tools.size, working.present.size
        measure = functools.partial(_measure, data, working, lam, ridge, budget, mode, families)
        together = None if families is None else _family_step(families, point.tools, width, dtype)
        point, found, certificate = measure(point)
        num_evaluations += 1
        model = None
        while True:
            gap = certificate.inner_gap if fixed else certificate.gap
            status = _status(certificate, gap, tol * scale, num_steps, max_steps)
            if report is not None:
                report(
                    num_rounds, num_steps, num_evaluations, size, certificate, scale, model is None
                )
            if status is not None:
                break
            if not fixed and certificate.inner_gap < 0.3 * gap:
                if _violators(data, point, certificate.norms, lam, families).size:
                    break
                if _unused_enter(point, certificate, lam, families):
                    return Fitted(
                        point,
                        certificate,
                        None,
                        scale,
                        lam_max,
                        num_steps,
                        num_rounds,
                        num_evaluations,
                    )
            if model is None:
                floor = (
                    working.target
                    if start is None and num_steps < FLOOR_STEPS
                    else jnp.zeros_like(working.target)
                )
                model = step.curvature(
                    data.contexts,
                    data.row_weights,
                    found.marginals,
                    floor,
                    np.asarray(ridge, dtype),
                    mode=mode,
                )
            move, intercept_move, change = step.direction(
                pad(point.weights, width).astype(dtype),
                found.weight_gradient,
                found.use,
                working.target,
                model,
                np.asarray(lam, dtype),
                np.asarray(ridge, dtype),
                together,
                mode=mode,
            )
            move, intercept_move = (
                np.asarray(move, np.float64)[:size],
                np.asarray(intercept_move, np.float64)[:size],
            )
            search = _line_search(measure, point, move, intercept_move, certificate, float(change))
            num_steps += 1
            num_evaluations += search.num_evaluations
            progress = search.found is not None and (
                search.certificate.gap < 0.99 * certificate.gap
                or search.certificate.objective < certificate.objective - certificate.rounding
            )
            idle = 0 if progress else idle + 1
            if search.found is None or idle > PATIENCE:
                status = Status.STALLED
                break
            if search.length < 1 or search.certificate.inner_gap > SLOW * certificate.inner_gap:
                model = None
            point, found, certificate = search.point, search.found, search.certificate
        if status is not None:
            break
        keep = (point.norms > 0) | (
            certificate.norms[point.tools]
            > 0.9 * lam * (1 if families is None else 1 - families.share)
        )
        point = _add_violators(
            data, point, certificate.norms, lam, families, keep, max(FIRST, int(keep.sum()))
        )
    return Fitted(
        point, certificate, status, scale, lam_max, num_steps, num_rounds, num_evaluations
    )


def largest_norm(certificate: Certificate, families: Split | None) -> float:
    """The least lam at which this gradient asks for no tool."""
    if families is not None:
        return float(families.dual_norm(certificate.norms, certificate.unused_norm)[0])
    return max(float(certificate.norms.max(initial=0.0)), certificate.unused_norm)


def _measure(
    data: Digest,
    working: Working,
    lam: float,
    ridge: float,
    budget: int,
    mode: str,
    families: Split | None,
    point: Point,
):
    """The point with its intercepts optimised, the likelihood there, and the certificate."""
    point, found = evaluate_point(data, working, point, budget, mode)
    return point, found, certify(data, working, point, found, lam, ridge, budget, mode, families)


class _Search(NamedTuple):
    point: Point
    found: Evaluation | None  # None: no step decreased the objective
    certificate: Certificate
    length: float
    num_evaluations: int


def _line_search(
    measure, point: Point, move, intercept_move, certificate: Certificate, change: float
) -> _Search:
    """The longest of the steps 1, 1/2, 1/4, ... that keeps a part of the predicted change, up to
    the rounding of the objective.
    """
    length, trials = 1.0, 0
    while length >= SHORTEST:
        trial = point._replace(
            weights=point.weights + length * move,
            intercept=point.intercept + length * intercept_move,
        )
        trial, found, new = measure(trial)
        trials += 1
        if new.objective <= certificate.objective + 1e-4 * length * change + certificate.rounding:
            return _Search(trial, found, new, length, trials)
        length /= 2
    return _Search(point, None, certificate, 0.0, trials)


def _status(
    certificate: Certificate, gap: float, allowed: float, num_steps: int, max_steps: int
) -> Status | None:
    if not np.isfinite(gap):
        return Status.NONFINITE
    if gap + certificate.rounding <= allowed:
        return Status.CONVERGED
    if gap <= certificate.rounding:
        return Status.STALLED  # all that is left is rounding
    return Status.MAX_STEPS if num_steps >= max_steps else None


def _excess(point: Point, norms: np.ndarray, lam: float, families: Split | None) -> np.ndarray:
    """By how much each used tool's gradient asks it to leave zero, [U]; not above 0: it need
    not.
    """
    return (
        norms - lam
        if families is None
        else families.excess(norms, point.tools[point.norms > 0], lam)
    )


def _unused_enter(
    point: Point, certificate: Certificate, lam: float, families: Split | None
) -> bool:
    if families is None:
        return certificate.unused_norm > lam
    return families.unused_enter(
        certificate.norms, certificate.unused_norm, point.tools[point.norms > 0], lam
    )


def _violators(
    data: Digest, point: Point, norms: np.ndarray, lam: float, families: Split | None
) -> np.ndarray:
    outside = _excess(point, norms, lam, families) > 0
    outside[point.tools] = False
    return np.flatnonzero(outside)


def _add_violators(
    data: Digest,
    point: Point,
    norms: np.ndarray,
    lam: float,
    families: Split | None,
    keep: np.ndarray,
    room: int,
) -> Point:
    """The kept tools and the worst violators among the others, at most `room`."""
    violators = _violators(data, point, norms, lam, families)
    worst = violators[np.argsort(-norms[violators], kind="stable")][:room]
    return regroup(data, point, keep, worst)


def _family_step(families: Split, tools: np.ndarray, width: int, dtype) -> step.FamilyStep:
    """Labels numbered within the working set; its padding has a family of its own, of norm zero."""
    label = np.unique(families.label[tools], return_inverse=True)[1].reshape(-1)
    padded = np.append(
        label, np.full(width - tools.size, min(label.max(initial=-1) + 1, width - 1))
    )
    return step.FamilyStep(jnp.asarray(padded, jnp.int32), jnp.asarray(families.share, dtype))
