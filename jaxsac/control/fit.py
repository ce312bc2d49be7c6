"""From a log to a sparse policy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac.control import imitation, tuning
from jaxsac.control.digest import Digest, digest
from jaxsac.control.imitation import Point
from jaxsac.control.log import Log, checked
from jaxsac.control.policy import SparsePolicy
from jaxsac.solution import Solution

OBJECTIVES = ("imitation",)
INTERCEPTS = ("per_tool", "shared", "none")


class FitState(NamedTuple):
    """Where a later fit may start: tools int32 [k], weights [k, q], intercept [M]."""

    tools: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray


def fit(
    key: jax.Array,
    log: Log,
    *,
    num_actions: int,
    budget: int,
    objective: str = "imitation",
    lam: str | float = "simulated",
    intercept: str = "per_tool",
    refit: bool = False,
    smoothing: float = 1.0,
    tol: float | None = None,
    max_steps: int = 500,
    state: FitState | None = None,
) -> Solution:
    """Sparse policy from a log."""
    num_actions = _checks.static_integer("num_actions", num_actions, 1)
    budget = _checks.static_integer("budget", budget, 1)
    _checks.choice("objective", objective, OBJECTIVES)
    _checks.choice("intercept", intercept, INTERCEPTS)
    log = checked(log, num_actions, budget)
    dtype = jnp.asarray(log.contexts[:1]).dtype
    if tol is None:
        tol = 1e-6 if dtype == jnp.float64 else 1e-4
    data = digest(log, np.ones(log.contexts.shape[0]), num_actions, budget, smoothing if intercept != "none" else 0.0)
    null, found = imitation.null_point(data, budget, intercept)
    if isinstance(lam, str):
        _checks.choice("lam", lam, ("simulated", "theory"))
        rates, unused_rate = tuning.null_rates(data, found)
        lam = tuning.simulated(key, data, rates, unused_rate) if lam == "simulated" else tuning.theory(data, rates, unused_rate)
    start = None if state is None else _start(data, state, null)
    fitted = imitation.solve(data, float(lam), budget=budget, mode=intercept, tol=float(tol), max_steps=max_steps, start=start)
    policy = _policy(data, fitted.point, log, budget, dtype)
    stats = {
        "lam": lam,
        "lam_max": fitted.lam_max,
        "objective": fitted.certificate.objective,
        "gap": fitted.certificate.gap,
        "scale": fitted.scale,
        "num_steps": fitted.num_steps,
        "num_evaluations": fitted.num_evaluations,
    }
    stats = {name: jnp.asarray(value) for name, value in stats.items()}
    new_state = FitState(np.asarray(policy.positions), np.asarray(policy.weights), np.asarray(policy.intercept))
    return Solution(policy, jnp.asarray(int(fitted.status), jnp.int32), stats, new_state)


def _start(data: Digest, state: FitState, null: Point) -> Point:
    """A point of this log's problem from another fit's: tools it does not use start at no weights."""
    positions = np.searchsorted(data.used, state.tools)
    inside = np.isin(state.tools, data.used)
    tools = positions[inside]
    return Point(
        tools, state.weights[inside].astype(np.float64), state.intercept[data.used[tools]].astype(np.float64), null.group_intercept
    )


def _policy(data: Digest, point: Point, log: Log, budget: int, dtype: Any) -> SparsePolicy:
    support = data.used[point.tools]
    intercept = np.full(data.num_actions, point.group_intercept[-1])
    intercept[data.used] = point.group_intercept[data.group]
    intercept[support] = point.intercept
    background = _background(np.asarray(log.contexts), support, point.weights, intercept, budget)
    return SparsePolicy(
        positions=jnp.asarray(support, jnp.int32),
        weights=jnp.asarray(point.weights, dtype),
        intercept=jnp.asarray(intercept, dtype),
        background=jnp.asarray(background, jnp.int32),
        tools=None,
        budget=budget,
    )


def _background(contexts: np.ndarray, support: np.ndarray, weights: np.ndarray, intercept: np.ndarray, budget: int) -> np.ndarray:
    """Tools outside the support that are among the `budget` best of some context: their order never changes, so only the first few can be."""
    outside = intercept.copy()
    outside[support] = -np.inf
    first = np.argsort(-outside, kind="stable")[: min(budget, intercept.size - support.size)]
    scores = contexts @ weights.T + intercept[support]
    above = (scores[:, :, None] >= outside[first]).sum(1) if support.size else np.zeros((contexts.shape[0], first.size), int)
    reached = (above + np.arange(first.size) < budget).any(0)
    return np.sort(first[reached])
