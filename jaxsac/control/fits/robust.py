"""Utility regression that a share of wild records cannot move: Huber's loss with its scale fitted,
then least squares without the records that it shows to be wild; leverage weights, outlier flags.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, designs, group_lasso, losses
from jaxsac.control.data.digest import digest
from jaxsac.control.data.log import Log, checked
from jaxsac.control.fits.tuning import Entries, multiplier_quantile
from jaxsac.control.policy.sparse import SparsePolicy
from jaxsac.group_lasso.methods.loop.fista import State
from jaxsac.prox import Groups
from jaxsac.solution import Solution

NORMAL = 1.4826  # standard deviation of a normal per median absolute deviation
PILOTS = 2


def robust_regression(
    X: Any,
    y: Any,
    groups: Groups,
    lam: Any,
    *,
    threshold: Any = 1.345,
    reject: Any = 3.0,
    sample_weight: Any = None,
    intercept: bool = False,
    num_rounds: int = 5,
    num_reweights: int = 2,
    tol: Any = None,
    max_steps: Any = 20_000,
) -> Solution:
    """Group lasso by Huber's loss with the residuals' scale fitted in turn, then by least squares
    on the records that it does not reject.

        num_rounds + 1 times:     minimise (1/T) sum_t c_t huber_delta(r_t) + lam sum_g ||b_g||,
        delta = threshold * scale num_reweights times then: minimise (1/2T) sum_t c'_t r_t^2 + lam
        sum_g ||b_g||,           c'_t ∝ c_t 1[|r_t before| <= reject * scale]

    r_t = y_t - z_t, scale = 1.4826 median_t |r_t - median r| of the fit before, c' of the same sum
    as c. X (matrix or design), y [T], `groups`, lam, `sample_weight` c, `intercept`, `tol` and
    `max_steps` as in `group_lasso.solve`. Returns the last round's `Solution`, certified for its
    own weights; stats also noise [] (the scale of its residuals), delta [] and scale_change []
    (relative) of the last round by Huber's loss, outlier [T] booleans: |r_t| > reject * noise.

    Huber's loss bounds what a wild record can do; the second stage takes away the bias that this
    bound leaves, and what Huber's loss gives away on normal noise (a threshold of 1.345 shrinks as
    a lam larger by a fifth would; reject = 3 leaves out 1 normal record in 370). `num_reweights` =
    0 is Huber's fit itself: for heavy tails without contamination with a threshold of about sqrt(T
    / (q + log M)) (Fan, Li & Wang 2017). All this while the share of wild y is clearly below one
    half; wild rows of X need weights c_t, see `leverage_weights`. Pure, to be jitted and vmapped.
    Source: Huber 1981; Gervini & Yohai 2002 (reweighting); the robust extension of arXiv
    2601.08271.
    """
    design = designs.as_design(X)
    dtype = design.dtype
    y = _checks.real_array("y", y, design.prediction_shape, dtype)
    threshold = _checks.real_scalar("threshold", threshold, dtype, 0.0, strict=True)
    reject = _checks.real_scalar("reject", reject, dtype, 0.0, strict=True)
    num_rounds, num_reweights = (
        _checks.static_integer("num_rounds", num_rounds, 0),
        _checks.static_integer("num_reweights", num_reweights, 0),
    )
    weight = (
        jnp.ones_like(y)
        if sample_weight is None
        else _checks.real_array("sample_weight", sample_weight, y.shape, dtype)
    )

    def residual_of(solution: Solution) -> jax.Array:
        return y - design.predict(solution.value.coef) - solution.value.intercept

    def solve(delta, weight, state) -> Solution:
        # Huber's loss at an infinite delta is least squares: one compilation for both.
        options = {
            "sample_weight": weight,
            "intercept": intercept,
            "tol": tol,
            "max_steps": max_steps,
            "state": state,
        }
        return group_lasso.solve(design, y, groups, lam, loss=losses.Huber(delta), **options)

    def again(number, carry):
        solution, scale, _ = carry
        residual = residual_of(solution)
        before = _scale(residual)
        by_huber = number <= num_rounds
        kept = jnp.where(by_huber | (jnp.abs(residual) <= reject * before), weight, 0)
        total = jnp.sum(kept)
        kept = jnp.where(
            total > 0, kept * (jnp.sum(weight) / jnp.where(total > 0, total, 1)), weight
        )
        solution = _aligned(
            solve(jnp.where(by_huber, threshold * before, jnp.inf), kept, solution.state), solution
        )
        scale = jnp.where(by_huber, before, scale)
        after = _scale(residual_of(solution))
        return (
            solution,
            scale,
            jnp.where(by_huber, jnp.abs(after / jnp.where(before > 0, before, 1) - 1), carry[2]),
        )

    zero = jnp.zeros((), dtype)
    point, one = (jnp.zeros(groups.num_coefficients, dtype), zero), jnp.ones((), dtype)
    state = State(*point, *point, one, one)
    start = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(solve, zero, weight, state)
    )._replace(state=state)
    solution, scale, change = jax.lax.fori_loop(
        0, num_rounds + 1 + num_reweights, again, (start, zero, zero)
    )
    residual = residual_of(solution)
    noise = _scale(residual)
    stats = {
        "noise": noise,
        "delta": threshold * scale,
        "scale_change": change,
        "outlier": jnp.abs(residual) > reject * noise,
    }
    return solution._replace(stats=solution.stats | stats)


def leverage_weights(contexts: Any, quantile: float = 0.95) -> jax.Array:
    """min(1, tau / ||psi_t - median psi||) [T], tau the `quantile` of these distances: records far
    out in context count less.
    """
    contexts = _checks.real_array("contexts", contexts, ("T", "q"))
    distance = jnp.linalg.norm(contexts - jnp.median(contexts, axis=0)[None, :], axis=1)
    tau = jnp.quantile(distance, quantile)
    return jnp.where(distance > tau, tau / jnp.where(distance > tau, distance, 1), 1)


def median_of_means(rows: Any, num_blocks: int, num_steps: int = 50) -> jax.Array:
    """The geometric median of the means of `num_blocks` consecutive blocks of rows [T, p], [p]: a
    mean that fewer than half as many wild rows as there are blocks cannot carry away. Weiszfeld's
    iteration from the mean of the blocks; T below `num_blocks` is an error.

    For a gradient, rows are the records' gradients of one tool. Source: Minsker 2015.
    """
    rows = _checks.real_array("rows", rows, ("T", "p"))
    num_blocks = _checks.static_integer("num_blocks", num_blocks, 1)
    _checks.require(
        rows.shape[0] >= num_blocks,
        f"num_blocks must be at most T = {rows.shape[0]}, got {num_blocks}.",
    )
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
    reject: float = 3.0,
    num_reweights: int = 2,
    leverage: float | None = None,
    tol: float | None = None,
    max_steps: int = 20_000,
) -> Solution:
    """`fit(objective="utility")` by `robust_regression`: a share of wild utilities cannot move the
    kept tools.

    Huber's loss of u_t - sum_{j in a_t} <theta_j, psi_t> - constant at a fitted scale, then least
    squares without the records that it rejects, each + lam sum_j ||theta_j||.

    * `lam`: a number > 0, or "simulated": 1.1 x the 95 % quantile of the largest gradient norm
      under multipliers, of the residuals within `reject` scales of a pilot: first of the median
      alone, then of the fit so found, twice.
    * `leverage`: None, or the quantile of context lengths beyond which records count less.
      `threshold`, `reject` and `num_reweights` as in `robust_regression`.

    Returns a `Solution`: a `SparsePolicy` with zero intercepts; stats of `robust_regression`
    (outlier [T] flags the wild records), lam and constant. Runs on the host. ValueError as `fit`.
    The key is consumed.
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

    limits = jnp.asarray(threshold, dtype), jnp.asarray(reject, dtype)

    def solve(lam) -> tuple[Solution, jax.Array]:
        solution = _robust(
            design,
            utilities,
            groups,
            jnp.asarray(lam, dtype),
            *limits,
            weight,
            tol,
            max_steps,
            num_reweights,
        )
        return solution, utilities - design.predict(solution.value.coef) - solution.value.intercept

    if not isinstance(lam, str):
        solution, residual = solve(lam)
    else:
        _checks.choice("lam", lam, ("simulated",))
        solution, residual = None, utilities - jnp.median(utilities)
        for pilot in range(PILOTS + 1):
            within = np.asarray(_within(residual, reject), np.float64)
            entries = Entries(data.entry_tool, data.entry_record, within[data.entry_record])
            lam = multiplier_quantile(
                jax.random.fold_in(key, pilot), data, entries, within, np.zeros(data.used.size), 0.0
            )
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
    stats = solution.stats | {"lam": jnp.asarray(lam, dtype), "constant": solution.value.intercept}
    return solution._replace(value=policy, stats=stats)


@functools.partial(jax.jit, static_argnames="num_reweights")
def _robust(
    design, utilities, groups, lam, threshold, reject, weight, tol, max_steps, num_reweights: int
) -> Solution:
    options = {
        "threshold": threshold,
        "reject": reject,
        "sample_weight": weight,
        "tol": tol,
        "max_steps": max_steps,
    }
    return robust_regression(
        design, utilities, groups, lam, intercept=True, num_reweights=num_reweights, **options
    )


def _within(residual: jax.Array, reject: Any) -> jax.Array:
    """The residuals about their median, 0 beyond `reject` scales."""
    centred = residual - jnp.median(residual)
    return jnp.where(
        jnp.abs(centred) <= jnp.asarray(reject, residual.dtype) * _scale(residual), centred, 0
    )


def _scale(residual: jax.Array) -> jax.Array:
    return NORMAL * jnp.median(jnp.abs(residual - jnp.median(residual)))


def _aligned(solution: Solution, like: Solution) -> Solution:
    """The same numbers with the dtypes of `like`, so that a loop can carry them."""
    return jax.tree.map(lambda a, b: jnp.asarray(a, jnp.result_type(b)), solution, like)
