"""The imitation fit at one lam: working sets, block Newton steps, a gap over all M tools."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsac._iterate import Certificate, Outcome
from jaxsac._rounds import Progress, rounds
from jaxsac.control.data.digest import Digest, digest
from jaxsac.control.imitation import step
from jaxsac.control.imitation.certificate import DualGap, dual_gap, largest_norm
from jaxsac.control.imitation.forward_backward import RENEWED
from jaxsac.control.imitation.likelihood import Evaluation, Working
from jaxsac.control.imitation.products import Products, products
from jaxsac.control.imitation.working import (
    Point,
    evaluate_point,
    intercepts,
    null_point,
    pad,
    point_from,
    regroup,
    to_host,
    working_set,
)

_FIRST = 32  # tools in the first working set
_FIRST_BY_PRODUCTS = 1024  # and where a tool costs no matrix
_FLOOR_STEPS = 3  # from the null model, at a curvature of at least a tool's own frequency
_SHORTEST = 1e-4  # step length below which a line search gives up
_PATIENCE = 10  # steps in a row without a smaller gap or objective
_SLOW = 0.2  # the curvature is renewed after a step that leaves more than this of the gap
_MATRICES = 96  # features up to which every tool has a curvature matrix
_STEPS = 5  # quasi-Newton steps between two looks at the gap
_POLISHES = 2  # of the intercepts, at such a look
_INSIDE = 0.3  # a working set is left once it holds less than this of the gap


class Fitted(NamedTuple):
    """Where a fit ended. `point.tools` and `gap.norms` are positions in `data.used`."""

    data: Digest  # the one given, or that with every tool listed where unused ones had to enter
    point: Point  # tools of zero coefficients among it keep the intercepts that were certified
    gap: DualGap
    outcome: Outcome
    lam_max: float
    num_evaluations: int


class _At(NamedTuple):
    """Where the rounds are: a point, its likelihood and gap, on a working set."""

    data: Digest
    working: Working
    point: Point
    found: Evaluation
    gap: DualGap
    model: step.Curvature | Products | None  # None: to be made anew
    floored: bool  # whether the curvature may take a tool's frequency for granted
    idle: int  # steps in a row without progress
    num_evaluations: int


def solve(
    data: Digest,
    lam: float,
    *,
    tol: float,
    max_steps: int,
    start: Point | None = None,
    ridge: float = 0.0,
    fixed: bool = False,
) -> Fitted:
    """Minimise from the null model or from `start`; `fixed` keeps the working set of `start` and
    certifies on it alone.
    """
    null, null_found = null_point(data)
    null_gap = dual_gap(data, working_set(data, null.tools), null, null_found, lam, ridge)
    point = null if start is None else start
    if not fixed:
        everything = np.ones(point.tools.size, bool)
        room = max(_first(data) - point.tools.size, 0)
        point = _with_violators(data, point, null_gap.norms, lam, everything, room)

    def certify(at: _At) -> Certificate:
        error = np.maximum(at.gap.inner_gap if fixed else at.gap.gap, 0)  # NaN stays NaN
        return Certificate(error, at.gap.rounding, float(null_found.value))  # pyright: ignore

    def advance(at: _At, progress: Progress) -> _At:
        if not fixed:
            at = _next_set(at, lam, ridge)
        if data.task.num_features > _MATRICES:
            return _quasi_newton_steps(at, lam, ridge, progress.num_steps)
        return _newton_step(at, lam, ridge, progress.num_steps)

    outcome = rounds(
        advance,
        certify,
        _enter(data, point, lam, ridge, floored=start is None),
        tol=tol,
        max_steps=max_steps,
        patience=1,
        useful=lambda at, _: at.idle <= _PATIENCE,
    )
    end: _At = outcome.state
    lam_max = largest_norm(data, null_gap)
    return Fitted(end.data, end.point, end.gap, outcome, lam_max, end.num_evaluations)


def _enter(
    data: Digest, point: Point, lam: float, ridge: float, *, floored: bool, before: int = 0
) -> _At:
    """The start on a new working set, after so many evaluations."""
    working = working_set(data, point.tools)
    point, found, gap = _measure(data, working, lam, ridge, point)
    return _At(data, working, point, found, gap, None, floored, 0, before + 1)


def _measure(data: Digest, working: Working, lam: float, ridge: float, point: Point):
    """The point with its intercepts optimised, the likelihood there, and the gap."""
    point, found = evaluate_point(data, working, point)
    return point, found, dual_gap(data, working, point, found, lam, ridge)


def _next_set(at: _At, lam: float, ridge: float) -> _At:
    """Further on the working set, or on the next ones: the tools that are not zero or nearly so,
    and the worst violators, as many. Where even tools that nobody used ask to enter (few tools, no
    intercepts of their own), all tools are listed one by one.
    """
    share = 1 if at.data.families is None else 1 - at.data.families.share
    while at.gap.inner_gap < _INSIDE * at.gap.gap:
        data, point, norms = at.data, at.point, at.gap.norms
        if _violators(data, point, norms, lam).size:
            keep = (point.norms > 0) | (norms[point.tools] > 0.9 * lam * share)
            room = max(_first(data), int(keep.sum()))
            point, floored = _with_violators(data, point, norms, lam, keep, room), at.floored
        elif _unused_enter(at, lam):
            parameters = data.used[point.tools], point.coef, intercepts(data, point)
            data, floored = digest(data.task, everyone=True), False
            point = point_from(data, *parameters)
        else:
            break
        entered = _enter(data, point, lam, ridge, floored=floored, before=at.num_evaluations)
        at = entered._replace(idle=at.idle)
    return at


def _newton_step(at: _At, lam: float, ridge: float, num_steps: int) -> _At:
    """Every tool's own model minimised, and a line search along all these steps together."""
    data, working, point, model = at.data, at.working, at.point, at.model
    dtype, mode = data.contexts.dtype, data.task.intercept
    size, width = point.tools.size, working.present.size
    if model is None:
        floored = at.floored and num_steps < _FLOOR_STEPS
        floor = working.target if floored else jnp.zeros_like(working.target)
        marginals = at.found.marginals
        model = step.curvature(
            data.contexts, data.row_weights, marginals, floor, np.asarray(ridge, dtype), mode=mode
        )
    *move, change = step.direction(
        pad(point.coef, width).astype(dtype),
        at.found.coef_gradient,
        at.found.use,
        working.target,
        model,
        np.asarray(lam, dtype),
        np.asarray(ridge, dtype),
        _family_step(data, point.tools, width),
        mode=mode,
    )
    coef_move, intercept_move = (np.asarray(part, np.float64)[:size] for part in move)
    measure = functools.partial(_measure, data, working, lam, ridge)
    # The longest of the steps 1, ½, ¼, ... that keeps a part of the predicted change, up to the
    # rounding of the objective.
    length, trials = 1.0, 0
    while length >= _SHORTEST:
        trial = point._replace(
            coef=point.coef + length * coef_move,
            intercept=point.intercept + length * intercept_move,
        )
        trial, found, gap = measure(trial)
        trials += 1
        allowed = 1e-4 * length * float(change) + at.gap.rounding
        if gap.objective <= at.gap.objective + allowed:
            break
        length /= 2
    else:  # no step decreases the objective
        return at._replace(idle=_PATIENCE + 1, num_evaluations=at.num_evaluations + trials)
    better = gap.gap < 0.99 * at.gap.gap or gap.objective < at.gap.objective - at.gap.rounding
    stale = length < 1 or gap.inner_gap > _SLOW * at.gap.inner_gap
    return at._replace(
        point=trial,
        found=found,
        gap=gap,
        model=None if stale else model,
        idle=0 if better else at.idle + 1,
        num_evaluations=at.num_evaluations + trials,
    )


def _quasi_newton_steps(at: _At, lam: float, ridge: float, num_steps: int) -> _At:
    """Some steps by products, and a look at the gap where they end."""
    model = at.model
    if not isinstance(model, Products) or num_steps in RENEWED:
        floored = at.floored and num_steps < _FLOOR_STEPS
        model = products(at.data, at.working, at.point, at.found, lam, ridge, floored)
    before = model.iteration.evaluations
    for _ in range(_STEPS):
        model.iteration.advance()
    measure = functools.partial(_measure, at.data, at.working, lam, ridge)
    point, found, gap = measure(model.point(model.iteration.step.target))
    model.iteration.shorten(float(found.value) + ridge / 2 * float((point.coef**2).sum()))
    evaluations = at.num_evaluations + model.iteration.evaluations - before + 1
    for _ in range(_POLISHES if at.data.task.intercept == "per_tool" else 0):
        polished = measure(_with_uses(at, point, found))
        evaluations += 1
        if not polished[2].gap < gap.gap:
            break
        point, found, gap = polished
    better = gap.gap < 0.99 * at.gap.gap or gap.objective < at.gap.objective - at.gap.rounding
    return at._replace(
        point=point,
        found=found,
        gap=gap,
        model=model,
        idle=0 if better else at.idle + 1,
        num_evaluations=evaluations,
    )


def _with_uses(at: _At, point: Point, found: Evaluation) -> Point:
    """The point after a Newton step of each intercept to its target use. The gap weighs what is
    missing there by a tool's largest odds, while the objective hardly feels it.
    """
    spread = found.marginals * (1 - found.marginals)
    curvature = jnp.matmul(spread, at.data.row_weights, precision="highest")
    step = (at.working.target - found.use) / jnp.maximum(curvature, at.working.target / 8)
    return point._replace(intercept=point.intercept + to_host(step)[: point.tools.size])


def _first(data: Digest) -> int:
    return _FIRST if data.task.num_features <= _MATRICES else _FIRST_BY_PRODUCTS


def _violators(data: Digest, point: Point, norms: np.ndarray, lam: float) -> np.ndarray:
    """Positions of tools outside the working set whose gradients ask them to leave zero."""
    families = data.families
    excess = norms - lam if families is None else families.excess(norms, point.alive, lam)
    outside = excess > 0
    outside[point.tools] = False
    return np.flatnonzero(outside)


def _unused_enter(at: _At, lam: float) -> bool:
    families, gap = at.data.families, at.gap
    if families is None:
        return gap.unused_norm > lam
    return families.unused_enter(gap.norms, gap.unused_norm, at.point.alive, lam)


def _with_violators(
    data: Digest, point: Point, norms: np.ndarray, lam: float, keep: np.ndarray, room: int
) -> Point:
    """The kept tools and the worst violators among the others, at most `room`."""
    violators = _violators(data, point, norms, lam)
    worst = violators[np.argsort(-norms[violators], kind="stable")][:room]
    return regroup(data, point, keep, worst)


def _family_step(data: Digest, tools: np.ndarray, width: int) -> step.FamilyStep | None:
    """Labels numbered within the working set; its padding has a family of its own, of norm zero."""
    families = data.families
    if families is None:
        return None
    label = np.unique(families.label[tools], return_inverse=True)[1].reshape(-1)
    last = min(label.max(initial=-1) + 1, width - 1)
    label = np.append(label, np.full(width - tools.size, last))
    share = jnp.asarray(families.share, data.contexts.dtype)
    return step.FamilyStep(jnp.asarray(label, jnp.int32), share)
