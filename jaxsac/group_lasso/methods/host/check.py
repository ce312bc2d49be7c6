"""Points on the host and their certificates: the null model, refits of what is unpenalised, and one
pass over X for several points.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac._iterate import Certificate, Outcome
from jaxsac.group_lasso.methods.host import kernels
from jaxsac.group_lasso.methods.host.kernels import Refit
from jaxsac.group_lasso.methods.host.slots import (
    Setup,
    WorkingSet,
    combined,
    full,
    sizes_of,
    working_set,
)
from jaxsac.group_lasso.methods.limits import WORKING_SETS
from jaxsac.group_lasso.methods.loop.fista import State
from jaxsac.group_lasso.model.quadratic import Point
from jaxsac.group_lasso.problem.free import refit_target
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, uncentred
from jaxsac.solution import Solution


class Check(NamedTuple):
    """A full pass at a lam: the certificate, the objective, X' ρ [p], its ‖X_g' ρ‖ [G], |Σ_t ρ_t|
    if there is an intercept, and the mean of X b.
    """

    lam: Any
    certificate: Certificate
    objective: Any
    gradient: Any
    norms: Any
    unbalanced: Any
    centre: Any


class Place(NamedTuple):
    """The working set, the point on it, and the last check: of this point if it was refitted; else
    of an earlier one, with rough norms.
    """

    set: WorkingSet
    point: Point
    check: Check


def set_up(problem: Objective, tol: float) -> tuple[Setup, Place]:
    """The null model, which gives the scale, and its check."""
    groups, weights = problem.groups, np.asarray(problem.weights)
    if groups.members is not None:
        rows = np.asarray(groups.members)
    else:
        rows = np.arange(groups.num_coefficients, dtype=np.int32).reshape(
            groups.num_groups, groups.max_size
        )
    free = np.flatnonzero(weights == 0).astype(np.int32)
    matrix = np.asarray(uncentred(problem).matrix)
    nothing = np.zeros(len(matrix), weights.dtype)
    at_zero = float(kernels.value(problem, nothing)) if len(free) or problem.intercept else 0.0
    target = np.asarray(4.0 * at_zero * np.finfo(weights.dtype).eps ** 2, weights.dtype)
    later: Any = np.ones(
        (), weights.dtype
    )  # what the null model will tell, and does not matter to it; nor does its lam
    setup = Setup(
        problem,
        tol,
        matrix,
        rows,
        weights,
        len(free),
        columns=later,
        bound=later,
        unit=later,
        scale=later,
        target=target,
    )
    chosen = working_set(setup, free)
    zeros = Point(np.zeros(chosen.rows.shape, weights.dtype), np.zeros((), weights.dtype), nothing)
    points, at = _refitted(setup, chosen, [zeros])
    columns, gradients = kernels.first_pass(problem, at.predictions)
    scale, unit, bound = map(np.asarray, kernels.scales(problem, columns, at.predictions[0]))
    target = np.asarray(refit_target(tol, float(scale)), weights.dtype)
    setup = setup._replace(
        columns=np.append(columns, np.zeros(1, weights.dtype)),
        bound=bound,
        unit=unit,
        scale=scale,
        target=target,
    )
    (place,) = _certified(setup, np.asarray(problem.lam)[None], chosen, points, at, gradients)
    return setup, place


def place_at(setup: Setup, at: Coefficients) -> Place:
    """A checked start from coefficients [p] in centred coordinates."""
    spread = np.append(np.asarray(at.coef), np.zeros(1, at.coef.dtype))
    free = setup.weights == 0
    matter = (spread[setup.rows] != 0).any(axis=1) & ~free
    chosen = working_set(
        setup, np.concatenate([np.flatnonzero(free), np.flatnonzero(matter)]).astype(np.int32)
    )
    point = Point(
        spread[chosen.rows], np.asarray(at.intercept), np.asarray(setup.problem.offset)
    )  # the check recomputes the predictions
    return check(setup, np.asarray(setup.problem.lam), chosen, point)


def check(setup: Setup, lam: np.ndarray, chosen: WorkingSet, point: Point) -> Place:
    """Refit what is unpenalised and certify: one pass over X."""
    return checks(setup, lam[None], chosen, [point])[0]


def checks(setup: Setup, lams: np.ndarray, chosen: WorkingSet, points: list[Point]) -> list[Place]:
    """Points at several lams [B] refitted and certified in one pass."""
    # What is certified is what is returned: an empty slot returns nothing.
    returned = [
        point._replace(coef=np.where(chosen.used[:, None], point.coef, 0)) for point in points
    ]
    refitted, at = _refitted(setup, chosen, returned)
    return _certified(
        setup, lams, chosen, refitted, at, kernels.gradients(setup.problem, at.predictions)
    )


def _refitted(setup: Setup, chosen: WorkingSet, points: list[Point]) -> tuple[list[Point], Refit]:
    """The points with predictions recomputed and what is unpenalised at its best."""
    problem, count = setup.problem, setup.num_free
    coefs, intercepts = (
        np.stack([point.coef for point in points]),
        np.stack([point.intercept for point in points]),
    )
    predictions = combined(chosen.blocks, coefs)
    if count or problem.intercept:
        blocks = chosen.blocks[:count]
        at = kernels.refit(
            problem, setup.target, blocks, coefs[:, :count], intercepts, predictions, num_free=count
        )
        at = jax.tree.map(np.asarray, at)
        coefs[:, :count] = at.free
    else:
        nothing = np.zeros_like(intercepts)
        at = Refit(coefs[:, :0], intercepts, predictions, predictions, nothing, nothing)
    return [Point(*leaves) for leaves in zip(coefs, at.intercept, at.predictions, strict=True)], at


def _certified(
    setup: Setup,
    lams: np.ndarray,
    chosen: WorkingSet,
    points: list[Point],
    at: Refit,
    gradients: jax.Array,
) -> list[Place]:
    coefs = np.stack([point.coef for point in points])
    weights = np.where(chosen.used, setup.weights[chosen.groups], 0)
    spreads = np.sqrt(np.sum((coefs * setup.columns[chosen.rows]) ** 2, axis=(1, 2)))
    without = at._replace(free=None)  # of another shape for every problem
    certificates, objectives, norms, unbalanced = kernels.certify(
        setup.problem,
        lams,
        setup.scale,
        setup.bound,
        sizes_of(coefs) @ weights,
        spreads,
        without,
        gradients,
    )
    every = Check(lams, certificates, objectives, gradients, norms, unbalanced, at.centre)
    every = jax.tree.map(np.asarray, every)
    return [
        Place(chosen, point, jax.tree.map(lambda leaf, k=k: leaf[k], every))
        for k, point in enumerate(points)
    ]


def violation(setup: Setup, place: Place) -> np.ndarray:
    """The largest violation of the optimality conditions; see `certificate.violation`."""
    chosen, point, last = place
    # b_g = 0: how far ‖X_g' ρ‖ is beyond the threshold; else how far X_g' ρ is from the penalty's
    # gradient.
    beyond = np.maximum(last.norms - last.lam * setup.weights, 0)
    sizes = sizes_of(point.coef)
    held = np.flatnonzero(sizes > 0)
    groups, rows = chosen.groups[held], chosen.rows[held]
    pull = np.where(rows < len(last.gradient), last.gradient.take(rows, mode="clip"), 0)
    beyond[groups] = sizes_of(
        pull - (last.lam * setup.weights[groups] / sizes[held])[:, None] * point.coef[held]
    )
    return np.maximum(np.max(beyond), last.unbalanced)


def solution(setup: Setup, ended: Outcome) -> Solution:
    """The answer in NumPy arrays, the intercept that of the design as it was given, not centred;
    the state of the run that `ended` has a place.
    """
    place: Place = ended.state.place
    chosen, point, last = place
    coef: Any = full(setup, chosen, point.coef)[:-1]
    intercept: Any = np.asarray(point.intercept - last.centre)
    code: Any = np.int32(ended.status)
    one: Any = np.ones((), coef.dtype)
    stats = {
        **ended.stats,
        "objective": last.objective,
        "gap": last.certificate.error,
        "kkt": violation(setup, place),
        "num_active": np.int32(np.sum((point.coef != 0).any(axis=1))),
        "method": np.int32(WORKING_SETS),
    }
    return Solution(
        Coefficients(coef, intercept),
        code,
        stats,
        State(coef, intercept, coef, intercept, one, one),
    )
