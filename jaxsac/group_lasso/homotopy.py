"""The host-driven path: each lam starts from a prediction, on the groups that the sequential strong rule keeps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.group_lasso.problem import Problem, with_lam
from jaxsac.group_lasso.working_set import Place, check, full, grow, improve, refit_target, run, set_up, solution
from jaxsac.losses import Squared
from jaxsac.solution import Solution, Status

_CYCLES = 0  # of descent: one more where the curvature changes
_NEWTON_STEPS = 6
_LEAST = 0.9  # of lam: on a coarse grid the strong rule would keep everything, and the check adds what is missing


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
    problem = with_lam(problem, jnp.ones_like(problem.lam))
    setup, place = set_up(problem)
    weights = np.asarray(problem.weights)
    if lams is None:
        largest = np.max(np.asarray(place.check.norms)[weights > 0] / weights[weights > 0], initial=0.0)
        powers = np.linspace(0.0, 1.0, num_lams) if num_lams > 1 else np.zeros(1)
        values = (largest * min_ratio**powers).astype(weights.dtype)
    else:
        values = np.asarray(lams)

    found: list[Solution] = []
    before: np.ndarray | None = None  # coefficients one lam earlier
    for k, lam in enumerate(values):
        here = with_lam(problem, lam)
        if k == 0:
            place = check(here, setup, place.set, place.point, refit_target(setup, tol))
            ended = run(here, setup, tol, max_passes, place)
        else:
            last = full(setup, place.set, place.point.coef)
            turn = k == 1 or values[k - 2] == values[k - 1]
            share = 0.0 if turn else (values[k - 1] - lam) / (values[k - 2] - values[k - 1])
            place = _predicted(here, setup, place, before, share, max(2.0 * lam - values[k - 1], _LEAST * lam) * weights, tol)
            before = last
            ended = run(here, setup, tol, max_passes, place, num_passes=1)
        place = ended.place
        answer = solution(here, setup, ended)
        if ended.status not in (Status.CONVERGED, Status.MAX_STEPS):
            answer = otherwise(here, answer)
        answer.stats["lam"] = jnp.asarray(lam)
        found.append(answer)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def _predicted(problem: Problem, setup, place: Place, before: np.ndarray | None, share: float, keep: np.ndarray, tol: float) -> Place:
    """One round at a new lam: groups with ‖X_g' ρ‖ above `keep` (Tibshirani et al. 2012), from the last two solutions' secant."""
    chosen, point = grow(problem, setup, place, keep, keep.size)
    ahead = None
    if before is not None and share > 0:
        earlier, now = before[chosen.rows], np.asarray(point.coef)
        both = (earlier != 0).any(axis=1) & (now != 0).any(axis=1)
        ahead = np.where(both[:, None], now + np.asarray(share, now.dtype) * (now - earlier), now)
    place = Place(chosen, point, place.check)
    cycles = _CYCLES + (not isinstance(problem.loss, Squared))
    chosen, point = improve(
        problem, setup, place, tol=tol, cycles=cycles, newton_steps=_NEWTON_STEPS, exact=False, ahead=ahead, stale=True
    )
    return check(problem, setup, chosen, point, refit_target(setup, tol))
