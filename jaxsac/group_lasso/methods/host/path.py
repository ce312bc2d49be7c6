"""The host-driven path: each lam starts from a prediction, on the groups that the sequential strong
rule keeps; several share a pass over X.

‖X_g' ρ‖ changes so slowly with lam that it tells which groups the next lams need: their rounds are
taken one after another on one working set, and one product with X, with a vector for each lam,
certifies all. A lam that it does not certify goes on alone, and the rest begins again.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.group_lasso.methods.host.check import Place, check, checks, set_up, solution
from jaxsac.group_lasso.methods.host.rounds import grow, run
from jaxsac.group_lasso.methods.host.slots import Setup, full
from jaxsac.group_lasso.methods.host.steps import improve, roughly
from jaxsac.group_lasso.problem.null import geometric
from jaxsac.group_lasso.problem.record import Problem, with_lam
from jaxsac.solution import Solution, Status

_MOST_AHEAD = 4  # lams that share a pass over X
_REACH = 0.75  # of the last lam: a batch goes no further down
_ALWAYS = 72  # groups for which, where the curvature changes, a batch may need a larger set, whose model is made anew at every lam
_FURTHEST = 2.0  # that a secant goes, in lengths of its own: of two lams that are nearly the same it tells little
_LEAST = 0.95  # of lam: on a coarse grid the strong rule would keep everything, and the check adds what is missing


@np.errstate(all="ignore")  # the statuses say what is not finite
def path_on_host(
    problem: Problem,
    lams: jax.Array | None,
    num_lams: int,
    min_ratio: float,
    tol: float,
    max_passes: int,
    otherwise: Callable[[Problem, Solution], Solution],
) -> Solution:
    """Solutions for `lams` > 0 (None: in geometric progression from lam_max). `otherwise(problem,
    solution)` finishes one that did not converge.
    """
    setup, place = set_up(with_lam(problem, jnp.ones_like(problem.lam)), tol)
    weights = setup.weights
    if lams is None:
        largest = np.max(place.check.norms[weights > 0] / weights[weights > 0], initial=0.0)
        values = np.asarray(geometric(largest, min_ratio, num_lams))
    else:
        values = np.asarray(lams)

    found: list[Solution] = []
    before: np.ndarray | None = None  # coefficients one lam earlier
    ahead = 1
    while len(found) < len(values):
        k = len(found)
        if k == 0 or max_passes == 0:
            places, num_passes = [check(setup, values[k], place.set, place.point)], 0
        else:
            size = _batch_size(setup, place, values[k - 1], values[k : k + ahead])
            places, num_passes = _ahead(setup, place, before, values, slice(k, k + size)), 1
        kept, whole = 0, True
        for lam, start in zip(values[k:], places, strict=False):
            before = full(setup, place.set, place.point.coef) if k + kept > 0 else None
            ended = run(setup, lam, max_passes, start, num_passes)
            answer = solution(setup, *ended)
            if ended.status not in (Status.CONVERGED, Status.MAX_STEPS):
                answer = jax.device_get(otherwise(with_lam(problem, lam), answer))
            answer.stats["lam"] = lam
            found.append(answer)
            place, kept = ended.place, kept + 1
            whole = place is start and ended.status == Status.CONVERGED
            if not whole:
                break  # the rest of the batch began from what has changed
        ahead = min(_MOST_AHEAD, 2 * ahead) if whole else max(1, kept - 1)
    return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *found))


def _batch_size(setup: Setup, place: Place, last: np.ndarray, lams: np.ndarray) -> int:
    """How many of the next lams may share a pass: at least one."""
    within = lams >= _REACH * last
    if not setup.problem.loss.quadratic:
        room = max(_ALWAYS, len(place.set.groups))
        kept = [int(np.count_nonzero(place.check.norms > _kept(setup, last, lam))) for lam in lams]
        within &= np.asarray(kept) <= room
    return max(1, int(np.argmin(np.append(within, False))))


def _kept(setup: Setup, last: np.ndarray, lam: np.ndarray) -> np.ndarray:
    """The norms of X_g' ρ at the last lam [G] above which the sequential strong rule keeps a group
    (Tibshirani et al. 2012).
    """
    return max(2.0 * lam - last, _LEAST * lam) * setup.weights


def _ahead(
    setup: Setup, place: Place, before: np.ndarray | None, values: np.ndarray, which: slice
) -> list[Place]:
    """A round for each of several lams on one working set, and one pass over X for all of them.

    The groups are those that the sequential strong rule keeps; each round begins from the secant of
    the last two solutions.
    """
    lams, last = values[which], values[which.start - 1]
    chosen, point = grow(setup, place, _kept(setup, last, lams.min()), len(setup.weights))
    earlier = None if before is None else before[chosen.rows]
    place, points = Place(chosen, point, place.check), []
    for k, (lam, at, one_earlier) in enumerate(
        zip(lams, values[which.start - 1 :], [None, *values][which.start - 1 :], strict=False)
    ):
        now = place.point.coef
        share = (
            0.0
            if one_earlier is None or one_earlier == at
            else min((at - lam) / (one_earlier - at), _FURTHEST)
        )
        start = None
        if earlier is not None and share > 0:
            both = (earlier != 0).any(axis=1) & (now != 0).any(axis=1)
            start = np.where(
                both[:, None], now + np.asarray(share, now.dtype) * (now - earlier), now
            )
        # Where the curvature changes, so does the model, and descent on the last one takes a cycle
        # more.
        cycles = 0 if setup.problem.loss.quadratic else 1
        place, slope = improve(
            setup, place, lam * setup.weights, cycles=cycles, exact=False, ahead=start, stale=True
        )
        place = roughly(place, slope) if k + 1 < len(lams) else place
        earlier = now
        points.append(place.point)
    # A pass for fewer would be another program.
    size = len(points) if len(points) == 1 else _MOST_AHEAD
    filled = [*points, *[points[-1]] * (size - len(points))]
    every = np.concatenate([lams, np.full(size - len(points), lams[-1])])
    return checks(setup, every, place.set, filled)[: len(points)]
