"""The host-driven path: each lam starts from a prediction, on the groups that the sequential strong rule keeps; several share a pass over X.

‖X_g' ρ‖ changes so slowly with lam that it tells which groups the next lams need: their rounds are taken one after another on one working
set, and one product with X, with a vector for each lam, certifies all. A lam that it does not certify goes on alone, and the rest begins again.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.group_lasso.problem import Problem, with_lam
from jaxsac.group_lasso.slots import Setup, full
from jaxsac.group_lasso.working_set import Place, check, checks, grow, improve, run, set_up, solution
from jaxsac.losses import Squared
from jaxsac.solution import Solution, Status

_MOST_AHEAD = 4  # lams that share a pass over X
_REACH, _CURVED_REACH = 0.75, 0.8  # of the last lam: a batch goes no further down; larger sets cost more where the curvature changes
_LEAST = 0.95  # of lam: on a coarse grid the strong rule would keep everything, and the check adds what is missing


def path_on_host(
    problem: Problem,
    lams: jax.Array | None,
    num_lams: int,
    min_ratio: float,
    tol: float,
    max_passes: int,
    otherwise: Callable[[Problem, Solution], Solution],
) -> Solution:
    """Solutions for `lams` > 0 (None: in geometric progression from lam_max). `otherwise(problem, solution)` finishes one that did not converge."""
    setup, place = set_up(with_lam(problem, jnp.ones_like(problem.lam)), tol)
    weights = setup.weights
    if lams is None:
        largest = np.max(np.asarray(place.check.norms)[weights > 0] / weights[weights > 0], initial=0.0)
        powers = np.linspace(0.0, 1.0, num_lams) if num_lams > 1 else np.zeros(1)
        values = (largest * min_ratio**powers).astype(weights.dtype)
    else:
        values = np.asarray(lams)

    reach = _REACH if isinstance(problem.loss, Squared) else _CURVED_REACH
    found: list[Solution] = []
    before: np.ndarray | None = None  # coefficients one lam earlier
    ahead = 1
    while len(found) < len(values):
        k = len(found)
        if k == 0:
            places, num_passes = [check(setup, values[0], place.set, place.point)], 0
        else:
            within = np.append(values[k : k + ahead] >= reach * values[k - 1], False)
            which = slice(k, k + max(1, int(np.argmin(within))))
            places, num_passes = _ahead(setup, place, before, values, which), 1
        kept, whole = 0, True
        for lam, start in zip(values[k:], places, strict=False):
            before = full(setup, place.set, place.point.coef) if k + kept > 0 else None
            ended = run(setup, lam, max_passes, start, num_passes)
            answer = solution(setup, ended)
            if ended.status not in (Status.CONVERGED, Status.MAX_STEPS):
                answer = jax.device_get(otherwise(with_lam(problem, lam), answer))
            answer.stats["lam"] = lam
            found.append(answer)
            place, kept = ended.place, kept + 1
            whole = place is start and ended.status == Status.CONVERGED
            if not whole:
                break  # the rest of the batch began from what has changed
        ahead = min(_MOST_AHEAD, 2 * ahead) if whole else max(1, kept - 1)
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *found)


def _ahead(setup: Setup, place: Place, before: np.ndarray | None, values: np.ndarray, which: slice) -> list[Place]:
    """A round for each of several lams on one working set, and one pass over X for all of them.

    The groups are those with ‖X_g' ρ‖ above what the sequential strong rule asks (Tibshirani et al. 2012); each round begins from the
    secant of the last two solutions.
    """
    lams, last = values[which], values[which.start - 1]
    keep = max(2.0 * lams.min() - last, _LEAST * lams.min()) * setup.weights
    chosen, point = grow(setup, place, keep, keep.size)
    earlier = None if before is None else before[chosen.rows]
    place, points = Place(chosen, point, place.check), []
    for lam, at, one_earlier in zip(lams, values[which.start - 1 :], [None, *values][which.start - 1 :], strict=False):
        now = np.asarray(place.point.coef)
        share = 0.0 if one_earlier is None or one_earlier == at else (at - lam) / (one_earlier - at)
        start = None
        if earlier is not None and share > 0:
            both = (earlier != 0).any(axis=1) & (now != 0).any(axis=1)
            start = np.where(both[:, None], now + np.asarray(share, now.dtype) * (now - earlier), now)
        # Where the curvature changes, so does the model, and descent on the last one takes a cycle more.
        cycles = 0 if isinstance(setup.problem.loss, Squared) else 1
        place = improve(setup, place, lam * setup.weights, cycles=cycles, exact=False, ahead=start, stale=True)
        earlier = now
        points.append(place.point)
    # A pass for fewer would be another program.
    size = len(points) if len(points) == 1 else _MOST_AHEAD
    filled = [*points, *[points[-1]] * (size - len(points))]
    every = np.concatenate([lams, np.full(size - len(points), lams[-1])])
    return checks(setup, every, place.set, filled)[: len(points)]
