"""The host-driven path: each lam starts from a prediction, on the groups that the sequential strong
rule keeps; several share a pass over X.

‖X_g' ρ‖ changes so slowly with lam that it tells which groups the next lams need: their rounds are
taken one after another on one working set, and one product with X, with a vector for each lam,
certifies all. A lam that it does not certify goes on alone, and the rest begins again.
"""

import jax
import numpy as np

from jaxsac.group_lasso.methods.host.check import Place, check, checks, set_up, solution
from jaxsac.group_lasso.methods.host.rounds import grow, run
from jaxsac.group_lasso.methods.host.slots import Setup, full
from jaxsac.group_lasso.methods.host.steps import Plan, improve, roughly
from jaxsac.group_lasso.methods.limits import Lams, Limits
from jaxsac.group_lasso.methods.loop.programs import finished
from jaxsac.group_lasso.problem.free import geometric
from jaxsac.group_lasso.problem.objective import Objective, with_lam
from jaxsac.solution import Solution, Status

_MOST_AHEAD = 4  # lams that share a pass over X
_REACH = 0.75  # of the last lam: a batch goes no further down
# Groups for which, where the curvature changes, a batch may need a larger set, whose model is made
# anew at every lam.
_ALWAYS = 72
# That a secant goes, in lengths of its own: of two lams that are nearly the same it tells little.
_FURTHEST = 2.0
# Of lam: on a coarse grid the strong rule would keep everything; the check adds what is missing.
_LEAST = 0.95


@np.errstate(all="ignore")  # the statuses say what is not finite
def solve_path(problem: Objective, lams: Lams, limits: Limits) -> Solution:
    """Solutions [L] for lams > 0 of a concrete problem, whose own is above 0."""
    max_passes = int(limits.max_steps)
    setup, place = set_up(problem, float(limits.tol))
    weights = setup.weights
    if lams.values is None:
        largest = np.max(place.check.norms[weights > 0] / weights[weights > 0], initial=0.0)
        values = np.asarray(geometric(largest, float(lams.min_ratio), lams.num))
    else:
        values = np.asarray(lams.values)

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
            answer = solution(setup, ended)
            if ended.status not in (Status.CONVERGED, Status.MAX_STEPS):
                answer = jax.device_get(finished(with_lam(problem, lam), limits, answer))
            answer.stats["lam"] = lam
            found.append(answer)
            place, kept = ended.state.place, kept + 1
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
    grown = grow(setup, place, _kept(setup, last, lams.min()), len(setup.weights))
    earlier = None if before is None else before[grown.set.rows]
    place, points = grown, []
    # Where the curvature changes, so does the model: descent on the last one takes a cycle more.
    cycles = 0 if setup.problem.loss.quadratic else 1
    for lam, at, one_earlier in zip(
        lams, values[which.start - 1 :], [None, *values][which.start - 1 :], strict=False
    ):
        now = place.point.coef
        ahead = None
        if earlier is not None and one_earlier is not None and one_earlier != at:
            share = min((at - lam) / (one_earlier - at), _FURTHEST)
            ahead = _secant(earlier, now, share) if share > 0 else None
        plan = Plan(cycles=cycles, exact=False, ahead=ahead, stale=True)
        place, slope = improve(setup, place, lam * setup.weights, plan)
        points.append(place.point)
        place = roughly(place, slope) if len(points) < len(lams) else place
        earlier = now
    # A pass for fewer would be another program.
    size = len(points) if len(points) == 1 else _MOST_AHEAD
    filled = [*points, *[points[-1]] * (size - len(points))]
    every = np.concatenate([lams, np.full(size - len(points), lams[-1])])
    return checks(setup, every, place.set, filled)[: len(points)]


def _secant(earlier: np.ndarray, now: np.ndarray, share: float) -> np.ndarray:
    """Coefficients [C, q] as much further as `share` says, of the groups that are not zero in
    either.
    """
    both = (earlier != 0).any(axis=1) & (now != 0).any(axis=1)
    return np.where(both[:, None], now + np.asarray(share, now.dtype) * (now - earlier), now)
