"""Utility regression that a share of wild records cannot move: Huber's loss with its scale fitted, leverage weights, outlier flags."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, designs, group_lasso, losses
from jaxsac.control.digest import digest
from jaxsac.control.log import Log, checked
from jaxsac.control.policy import SparsePolicy
from jaxsac.control.tuning import Entries, multiplier_quantile
from jaxsac.prox import Groups
from jaxsac.solution import Solution

NORMAL = 1.4826  # standard deviation of a normal per median absolute deviation
PILOTS = 2
FLAG = 3.5  # scales beyond which a record is flagged: 1 in 2,000 normal ones


def robust_regression(
    X: Any,
    y: Any,
    groups: Groups,
    lam: Any,
    *,
    threshold: Any = 1.345,
    sample_weight: Any = None,
    intercept: bool = False,
    num_rounds: int = 5,
    tol: Any = None,
    max_steps: Any = 20_000,
) -> Solution:
    """Group lasso with Huber's loss at delta = `threshold` times the residuals' scale, both fitted in turn, `num_rounds` times.

        minimise (1/T) sum_t c_t huber_delta(y_t - z_t) + lam sum_g ||b_g||,    delta = threshold * 1.4826 median_t |r_t - median r|

    X (matrix or design), y [T], `groups`, lam, `sample_weight` c, `intercept`, `tol` and `max_steps` as in `group_lasso.solve`. A larger
    threshold is nearer to least squares: 1.345 loses 5 % on normal noise; for heavy tails without contamination
    sqrt(T / (q + log M)) keeps the bias small (Fan, Li & Wang 2017). Returns the last round's `Solution`, certified at its delta; stats
    also noise [] (the residuals' scale), delta [] and scale_change
    (of it, relative, in the last round). One large residual weighs at most delta: the estimate stays
    within its clean error while the share of wild y is clearly below one half; wild rows of X need weights c_t, see `leverage_weights`.
    Pure, to be jitted and vmapped. Source: Huber 1981; the robust extension of arXiv 2601.08271.
    """
    design = designs.as_design(X)
    y = _checks.real_array("y", y, design.prediction_shape, design.dtype)
    threshold = _checks.real_scalar("threshold", threshold, design.dtype, 0.0, strict=True)
    options = {"sample_weight": sample_weight, "intercept": intercept, "tol": tol, "max_steps": max_steps}
    start = group_lasso.solve(design, y, groups, lam, loss=losses.Huber(threshold * _scale(y)), **options)

    def again(_, carry):
        solution, _, _ = carry
        old = _scale(y - design.predict(solution.value.coef) - solution.value.intercept)
        solution = _aligned(group_lasso.solve(design, y, groups, lam, loss=losses.Huber(threshold * old), state=solution.state, **options), start)
        new = _scale(y - design.predict(solution.value.coef) - solution.value.intercept)
        return solution, old, jnp.abs(new / jnp.where(old > 0, old, 1) - 1)

    zero = jnp.zeros((), design.dtype)
    num_rounds = _checks.static_integer("num_rounds", num_rounds, 1)
    solution, scale, change = jax.lax.fori_loop(0, num_rounds, again, (start, zero, zero))
    stats = solution.stats | {"noise": scale, "delta": threshold * scale, "scale_change": change}
    return solution._replace(stats=stats)


def leverage_weights(contexts: Any, quantile: float = 0.95) -> jax.Array:
    """min(1, tau / ||psi_t - median psi||) [T], tau the `quantile` of these distances: records far out in context count less."""
    contexts = _checks.real_array("contexts", contexts, ("T", "q"))
    distance = jnp.linalg.norm(contexts - jnp.median(contexts, axis=0)[None, :], axis=1)
    tau = jnp.quantile(distance, quantile)
    return jnp.where(distance > tau, tau / jnp.where(distance > tau, distance, 1), 1)


def median_of_means(rows: Any, num_blocks: int, num_steps: int = 50) -> jax.Array:
    """The geometric median of the means of `num_blocks` consecutive blocks of rows [T, p], [p]: a mean that fewer than half as many wild
    rows as there are blocks cannot carry away. Weiszfeld's iteration from the mean of the blocks; T below `num_blocks` is an error.

    For a gradient, rows are the records' gradients of one tool. Source: Minsker 2015.
    """
    rows = _checks.real_array("rows", rows, ("T", "p"))
    num_blocks = _checks.static_integer("num_blocks", num_blocks, 1)
    _checks.require(rows.shape[0] >= num_blocks, f"num_blocks must be at most T = {rows.shape[0]}, got {num_blocks}.")
    label = jnp.arange(rows.shape[0]) * num_blocks // rows.shape[0]
    sums = jax.ops.segment_sum(rows, label, num_blocks)
    means = sums / jnp.bincount(label, length=num_blocks).astype(rows.dtype)[:, None]

    def step(_, point):
        distance = jnp.linalg.norm(means - point[None, :], axis=1)
        weight = 1 / jnp.maximum(distance, jnp.finfo(rows.dtype).eps * (1 + jnp.linalg.norm(point)))
        return jnp.sum(weight[:, None] * means, axis=0) / jnp.sum(weight)

    return jax.lax.fori_loop(0, num_steps, step, jnp.median(means, axis=0))


def fit_robust(
    key: jax.Array,
    log: Log,
    *,
    num_actions: int,
    budget: int,
    lam: Any = "simulated",
    threshold: float = 1.345,
    leverage: float | None = None,
    tol: float | None = None,
    max_steps: int = 20_000,
) -> Solution:
    """`fit(objective="utility")` with Huber's loss at a fitted scale: a share of wild utilities cannot move the kept tools.

    minimise (1/T) sum_t c_t huber_delta(u_t - sum_{j in a_t} <theta_j, psi_t> - constant) + lam sum_j ||theta_j||, delta from the residuals'
    median absolute deviation (see `robust_regression`).

    * `lam`: a number > 0, or "simulated": 1.1 x the 95 % quantile of the largest gradient norm under multipliers, of the clipped residuals
      of a pilot: first of the median alone, then of the fit so found, twice.
    * `leverage`: None, or the quantile of context lengths beyond which records count less. `threshold` as in `robust_regression`.

    Returns a `Solution`: a `SparsePolicy` with zero intercepts; stats of `robust_regression`, lam, constant, and outlier, booleans [T]: the
    residual exceeds 3.5 scales. Runs on the host. ValueError as `fit`. The key is consumed.
    """
    num_actions = _checks.static_integer("num_actions", num_actions, 1)
    log = checked(log, num_actions, _checks.static_integer("budget", budget, 1))
    _checks.require(log.utilities is not None, "fit_robust needs log.utilities.")
    contexts = jnp.asarray(log.contexts)
    dtype = contexts.dtype
    utilities = jnp.asarray(np.asarray(log.utilities), dtype)
    data = digest(log, np.ones(contexts.shape[0]), num_actions, budget, 0.0)
    lookup = np.full(num_actions + 1, -1, np.int32)
    lookup[data.used] = np.arange(data.used.size)
    tools = max(data.used.size, 1)
    design = designs.budgeted_choice(lookup[np.asarray(log.actions)], contexts, tools)
    weight = None if leverage is None else leverage_weights(contexts, leverage)
    groups = Groups.equal(num_groups=tools, size=contexts.shape[1])

    def solve(lam) -> tuple[Solution, jax.Array]:
        solution = _robust(design, utilities, groups, jnp.asarray(lam, dtype), jnp.asarray(threshold, dtype), weight, tol, max_steps)
        return solution, utilities - design.predict(solution.value.coef) - solution.value.intercept

    if not isinstance(lam, str):
        solution, residual = solve(lam)
    else:
        _checks.choice("lam", lam, ("simulated",))
        solution, residual = None, utilities - jnp.median(utilities)
        for pilot in range(PILOTS + 1):
            clipped = np.asarray(_clipped(residual, threshold), np.float64)
            entries = Entries(data.entry_tool, data.entry_record, clipped[data.entry_record])
            lam = multiplier_quantile(jax.random.fold_in(key, pilot), data, entries, clipped, np.zeros(data.used.size), 0.0)
            solution, residual = solve(lam)
    assert solution is not None
    coef = np.asarray(solution.value.coef).reshape(tools, -1)
    support = np.flatnonzero(np.any(coef != 0, axis=1))
    policy = SparsePolicy(
        positions=jnp.asarray(data.used[support], jnp.int32),
        weights=jnp.asarray(coef[support], dtype),
        intercept=jnp.zeros(num_actions, dtype),
        background=jnp.zeros(0, jnp.int32),
        tools=None,
        budget=min(budget, num_actions),
    )
    outlier = jnp.abs(residual) > FLAG * solution.stats["noise"]
    stats = solution.stats | {"lam": jnp.asarray(lam, dtype), "constant": solution.value.intercept, "outlier": outlier}
    return solution._replace(value=policy, stats=stats)


@jax.jit
def _robust(design, utilities, groups, lam, threshold, weight, tol, max_steps) -> Solution:
    options = {"threshold": threshold, "sample_weight": weight, "tol": tol, "max_steps": max_steps}
    return robust_regression(design, utilities, groups, lam, intercept=True, **options)


def _clipped(residual: jax.Array, threshold: Any) -> jax.Array:
    bound = jnp.asarray(threshold, residual.dtype) * _scale(residual)
    return jnp.clip(residual - jnp.median(residual), -bound, bound)


def _scale(residual: jax.Array) -> jax.Array:
    return NORMAL * jnp.median(jnp.abs(residual - jnp.median(residual)))


def _aligned(solution: Solution, like: Solution) -> Solution:
    """The same numbers with the dtypes of `like`, so that a loop can carry them."""
    return jax.tree.map(lambda a, b: jnp.asarray(a, jnp.result_type(b)), solution, like)
