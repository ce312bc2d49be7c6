"""The joint fit at one lam: forward-backward steps on scaled parameters, a gap over all of them."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsac._iterate import Certificate, Outcome
from jaxsac._rounds import Progress, rounds
from jaxsac.control.imitation.forward_backward import RENEWED, ForwardBackward, curvatures, shrunk
from jaxsac.control.imitation.joint import (
    Data,
    Evaluation,
    Penalties,
    Point,
    dual_value,
    evaluate,
    objective,
)

_STEPS = 5  # between two looks at the gap
_PATIENCE = 20  # looks without a smaller one or a smaller objective


class Fitted(NamedTuple):
    """Where a fit ended."""

    point: Point
    objective: float
    lam_max: float
    outcome: Outcome
    num_evaluations: int


class _At(NamedTuple):
    point: Point
    found: Evaluation


class _Scaled:
    """The problem in parameters of about equal curvature, as one vector: θ, w, b, the offset."""

    def __init__(self, data: Data, penalties: Penalties, **given) -> None:
        self.data, self.penalties, self.given = data, penalties, given
        used, q = penalties.label.size, data.contexts.shape[1]
        self.shapes = [(used, q), (data.channels.shape[0],), (used,), ()]
        self.cuts = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        ridges = penalties.coef, penalties.weights, penalties.intercept, penalties.intercept
        centres = 0.0, 0.0, penalties.centre, penalties.centre
        self.ridge, self.centre = self._spread(ridges), self._spread(centres)
        self.tool_scale, self.scale = np.ones(used), np.ones(self.cuts[-1] + 1)

    def rescale(self, found: Evaluation, floored: bool) -> None:
        """Units of about equal curvature where the marginals are these, or, `floored`, where tools
        will have half of their frequency at least.
        """
        self.tool_scale, *rest = _scales(self.data, self.penalties, found, floored)
        self.scale = self._spread([self.tool_scale[:, None], *rest])

    def _spread(self, parts) -> np.ndarray:
        pairs = zip(parts, self.shapes, strict=True)
        return np.concatenate([np.broadcast_to(part, shape).ravel() for part, shape in pairs])

    def flat(self, point: Point) -> np.ndarray:
        """The vector of a point."""
        return self._spread([np.asarray(part, float) for part in point]) / self.scale

    def point(self, x: np.ndarray) -> Point:
        """The point of a vector."""
        pairs = zip(np.split(x * self.scale, self.cuts), self.shapes, strict=True)
        return Point(
            *(jnp.asarray(p.reshape(shape), self.data.contexts.dtype) for p, shape in pairs)
        )

    def evaluate(self, point: Point) -> Evaluation:
        return evaluate(point, self.data, **self.given)

    def smooth(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """L and the ridges, with their gradient."""
        found, away = self.evaluate(self.point(x)), x * self.scale - self.centre
        gradient = self._spread([np.asarray(part, float) for part in found.gradient])
        value = float(found.value) + 0.5 * float((self.ridge * away) @ away)
        return value, (gradient + self.ridge * away) * self.scale

    def proximal(self, x: np.ndarray, size: float) -> tuple[np.ndarray, float]:
        """The proximal point of size lam Ω, and lam Ω there."""
        penalties, count = self.penalties, self.cuts[0]
        reach = size * penalties.lam * self.tool_scale
        coef = x[:count].reshape(self.shapes[0])
        coef, norms = shrunk(coef, reach, penalties.label, penalties.share)
        return np.append(coef, x[count:]), penalties.lam * penalties.norm(norms * self.tool_scale)


def solve(
    data: Data,
    penalties: Penalties,
    start: Point | None,
    *,
    budget: int,
    exactly: bool,
    tol: float,
    max_steps: int,
) -> Fitted:
    """Minimise L + lam Ω + ridges from `start`, or from the null model of equal scores."""
    problem = _Scaled(data, penalties, budget=budget, exactly=exactly)
    null = problem.point(problem.centre)
    null_found = problem.evaluate(null)
    null_value = objective(null, null_found, penalties)
    eps = float(jnp.finfo(data.contexts.dtype).eps)
    evaluations = 0

    def begin(point: Point, found: Evaluation, floored: bool) -> ForwardBackward:
        problem.rescale(found, floored)
        return ForwardBackward(problem.smooth, problem.proximal, problem.flat(point), eps)

    if start is None:
        iteration = begin(null, null_found, True)
    else:
        start = problem.point(problem.flat(start))  # in the dtype of the contexts
        iteration = begin(start, problem.evaluate(start), False)

    def look() -> _At:
        point = problem.point(iteration.step.target)
        return _At(point, problem.evaluate(point))

    def certify(at: _At) -> Certificate:
        primal, dual = objective(at.point, at.found, penalties), dual_value(at.found, penalties)
        rounding = 16 * eps * (abs(primal) + abs(dual))
        return Certificate(np.maximum(primal - dual, 0), rounding, null_value)  # pyright: ignore

    def advance(at: _At, progress: Progress) -> _At:
        nonlocal iteration, evaluations
        beyond = penalties.lam * penalties.norm(np.linalg.norm(np.asarray(at.point.coef), axis=1))
        if iteration.shorten(objective(at.point, at.found, penalties) - beyond):
            return look()
        if progress.num_steps in RENEWED:
            evaluations += iteration.evaluations
            iteration = begin(at.point, at.found, False)
        for _ in range(_STEPS):
            iteration.advance()
        return look()

    least = [np.inf, np.inf]  # gap and objective

    def useful(at: _At, certificate: Certificate) -> bool:
        """Whether the gap or the objective fell: from a solution at another lam the gap may be
        above its first value for many looks, while the objective falls at once.
        """
        gap, value = float(certificate.error), objective(at.point, at.found, penalties)
        better = gap < 0.999 * least[0] or value < least[1] - 8 * eps * abs(value)
        least[:] = min(least[0], gap), min(least[1], value)
        return better

    given = {"tol": tol, "max_steps": max_steps, "patience": _PATIENCE, "useful": useful}
    outcome = rounds(advance, certify, look(), **given)
    end: _At = outcome.state
    norms = np.linalg.norm(np.asarray(null_found.gradient.coef, float), axis=1)
    value = objective(end.point, end.found, penalties)
    evaluations += iteration.evaluations
    return Fitted(end.point, value, penalties.dual_norm(norms), outcome, evaluations)


def _scales(data: Data, penalties: Penalties, found: Evaluation, floored: bool) -> list[np.ndarray]:
    """One over the roots of the curvatures."""
    used = penalties.label.size
    weights, chosen = np.asarray(data.row_weights, float), np.asarray(data.chosen[:used])
    rate = np.maximum(chosen @ weights, 0.5 / weights.size)
    floor = jnp.asarray(rate / 2 * floored, data.contexts.dtype)
    of_tools = curvatures(data.contexts, found.marginals, data.row_weights, floor)
    largest, spread = (np.asarray(part, float) for part in of_tools)
    together = np.zeros(used)
    np.maximum.at(together, penalties.label, largest)
    channels = []
    for one in data.channels:  # at equal scores, or where the used tools stand out by the channel
        squares = np.asarray(one[:used], float) ** 2
        apart = np.sum(squares, axis=0, where=chosen) @ weights
        channels.append(max(rate @ (squares @ weights), apart))
    cold = float(rate.mean()) * data.chosen.shape[0] * float(data.cold_weight)
    all_parts = (
        together[penalties.label] + penalties.coef,
        np.asarray(channels) + penalties.weights,
        spread + penalties.intercept,
        np.asarray(cold + penalties.intercept),
    )
    return [1 / np.sqrt(np.maximum(part, 1e-12)) for part in all_parts]
