"""Utility regression that a share of wild records cannot move: Huber's loss with its scale fitted,
then least squares without the records that it shows to be wild; leverage weights, outlier flags.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _loops, group_lasso, losses
from jaxsac._arguments import arguments, choice, either, integer, key, real, record, size
from jaxsac.control.data.digest import digest
from jaxsac.control.data.task import Task, require_utility
from jaxsac.control.fits import utility
from jaxsac.control.policy.sparse import SparsePolicy
from jaxsac.group_lasso import State
from jaxsac.solution import Solution

_NORMAL = 1.4826  # standard deviation of a normal per median absolute deviation
_PILOTS = 2
_THRESHOLD, _REJECT = real(above=0, below=np.inf), real(above=0)


@arguments(
    problem=record(group_lasso.Problem),
    lam=real(low=0),
    threshold=_THRESHOLD,
    reject=_REJECT,
    num_rounds=size(),
    num_reweights=size(),
    tol=real(low=0),
    max_steps=integer(low=0),
)
def robust_regression(
    problem: group_lasso.Problem,
    lam: Any,
    *,
    threshold: Any = 1.345,
    reject: Any = 3.0,
    num_rounds: int = 5,
    num_reweights: int = 2,
    tol: Any = None,
    max_steps: Any = 20_000,
) -> Solution:
    """Group lasso by Huber's loss with the residuals' scale fitted in turn, then by least squares
    on the records that it does not reject.

        num_rounds + 1 times:      minimise (1/T) Σ_t c_t huber_δ(r_t) + lam Σ_g w_g ‖b_g‖,
                                   δ = threshold · scale
        num_reweights times then:  minimise (1/2T) Σ_t c'_t r_t² + lam Σ_g w_g ‖b_g‖,
                                   c'_t ∝ c_t 1[|r_t before| ≤ reject · scale]

    r_t = y_t − z_t, scale = 1.4826 median_t |r_t − median r| of the fit before, c' of the same sum
    as c.

    * `problem`: a `group_lasso.Problem` of loss "squared"; `lam`, `tol`, `max_steps`: as in
      `group_lasso.solve`.
    * `threshold` > 0 and `reject` > 0, in scales of the residuals.
    * `num_rounds` ≥ 0, `num_reweights` ≥ 0.

    Huber's loss bounds what a wild record can do; the second stage takes away the bias that this
    bound leaves, and what Huber's loss gives away on normal noise (a threshold of 1.345 shrinks as
    a lam larger by a fifth would; reject = 3 leaves out 1 normal record in 370). `num_reweights` =
    0 is Huber's fit itself: for heavy tails without contamination with a threshold of about (T / (q
    + log M))^½ (Fan, Li & Wang 2017). All this while the share of wild y is clearly below one half;
    wild rows of X need weights c_t, see `leverage_weights`. Pure, to be jitted and vmapped.

    Returns: the last round's `Solution`, certified for its own weights; stats also noise [] (the
    scale of its residuals), delta [] and scale_change [] (relative) of the last round by Huber's
    loss, outlier bool [T]: |r_t| > reject · noise.

    Raises: ValueError for another loss, several outputs, ranges that are left.

    Source: Huber 1981; Gervini & Yohai 2002 (reweighting); the robust extension of arXiv
    2601.08271.
    """
    if problem.loss_name != "squared" or problem.y.ndim != 1:
        raise ValueError(
            f"problem must have loss='squared' and one output, got {problem.loss_name!r}."
        )
    dtype, weight = problem.dtype, problem.sample_weight
    # Traced limits out of range end as lam = NaN does.
    lam = jnp.where((threshold > 0) & (threshold < jnp.inf) & (reject > 0), lam, jnp.nan)
    threshold, reject = jnp.asarray(threshold), jnp.asarray(reject)

    def residual_of(solution: Solution) -> jax.Array:
        return problem.y - problem.offset - solution.value.predict(problem.X)

    def solve(delta, weight, state) -> Solution:
        # Huber's loss at an infinite delta is least squares: one compilation for both stages.
        loss = losses.Huber(jnp.maximum(delta, jnp.finfo(dtype).tiny))
        huber = dataclasses.replace(problem, loss=loss).with_sample_weight(weight)
        return group_lasso.solve(huber, lam=lam, tol=tol, max_steps=max_steps, state=state)

    def without_wild(residual):
        """δ and c of the second stage, from the residuals before; all c where every record is
        wild.
        """
        kept = jnp.where(jnp.abs(residual) <= reject * _scale(residual), weight, 0)
        total = jnp.sum(kept)
        share = jnp.sum(weight) / jnp.where(total > 0, total, 1)
        return jnp.full_like(threshold, jnp.inf), jnp.where(total > 0, kept * share, weight)

    def again(number, carry):
        solution, delta, change = carry
        residual = residual_of(solution)
        first = number <= num_rounds
        by_huber = threshold * _scale(residual), weight
        own_delta, kept = jax.tree.map(
            functools.partial(jnp.where, first), by_huber, without_wild(residual)
        )
        solution = jax.tree.map(  # with the dtypes that the loop carries
            lambda new, old: jnp.asarray(new, jnp.result_type(old)),
            solve(own_delta, kept, solution.state),
            solution,
        )
        before, after = _scale(residual), _scale(residual_of(solution))
        moved = jnp.abs(after / jnp.where(before > 0, before, 1) - 1)
        return solution, jnp.where(first, own_delta, delta), jnp.where(first, moved, change)

    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    origin = jnp.zeros(problem.groups.num_coefficients, dtype)
    state = State(origin, zero, origin, zero, one, one)
    shapes = jax.eval_shape(solve, zero, weight, state)
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    solution, delta, change = _loops.fori_loop(
        0, num_rounds + 1 + num_reweights, again, (start._replace(state=state), zero, zero)
    )
    residual = residual_of(solution)
    noise = _scale(residual)
    stats = {"noise": noise, "delta": delta, "scale_change": change}
    stats["outlier"] = jnp.abs(residual) > reject * noise
    return solution._replace(stats=solution.stats | stats)


@arguments(contexts=real("T", "q"), quantile=real(low=0, high=1))
def leverage_weights(contexts: Any, quantile: float = 0.95) -> jax.Array:
    """min(1, τ / ‖ψ_t − median ψ‖) [T], τ the `quantile` in [0, 1] of these distances: records far
    out in `contexts` [T, q] count less. NaN where a context is NaN, or so many are infinite that τ
    is.
    """
    if not contexts.shape[0]:
        raise ValueError("contexts must have at least one record.")
    distance = jnp.linalg.norm(contexts - jnp.median(contexts, axis=0)[None, :], axis=1)
    tau = jnp.quantile(distance, quantile)
    weight = jnp.where(distance > tau, tau / jnp.where(distance > tau, distance, 1), 1)
    return jnp.where(jnp.isfinite(tau), weight, jnp.nan)


@arguments(rows=real("T", "p"), num_blocks=size(1, "T"), num_steps=size())
def median_of_means(rows: Any, num_blocks: int, num_steps: int = 50) -> jax.Array:
    """The geometric median of the means of `num_blocks` consecutive blocks of rows [T, p], [p]: a
    mean that fewer than half as many wild rows as there are blocks cannot carry away. Weiszfeld's
    iteration from the median of the means; T below `num_blocks` is an error.

    For a gradient, rows are the records' gradients of one tool. Source: Minsker 2015.
    """
    label = jnp.arange(rows.shape[0]) * num_blocks // rows.shape[0]
    sums = jax.ops.segment_sum(rows, label, num_blocks)
    means = sums / jnp.bincount(label, length=num_blocks).astype(rows.dtype)[:, None]

    def step(_, point):
        distance = jnp.linalg.norm(means - point[None, :], axis=1)
        weight = 1 / jnp.maximum(distance, jnp.finfo(rows.dtype).eps * (1 + jnp.linalg.norm(point)))
        return jnp.sum(weight[:, None] * means, axis=0) / jnp.sum(weight)

    return _loops.fori_loop(0, num_steps, step, jnp.median(means, axis=0))


@arguments(
    on_host=True,
    key=key(),
    task=record(Task),
    lam=either(real(above=0, below=np.inf), choice("simulated")),
    threshold=_THRESHOLD,
    reject=_REJECT,
    num_reweights=size(),
    leverage=real(low=0, high=1),
    tol=real(low=0),
    max_steps=size(),
)
def fit_robust(
    key: jax.Array,
    task: Task,
    *,
    lam: Any = "simulated",
    threshold: float = 1.345,
    reject: float = 3.0,
    num_reweights: int = 2,
    leverage: float | None = None,
    tol: float | None = None,
    max_steps: int = 20_000,
) -> Solution:
    """`fit` of a task of utilities by `robust_regression`: a share of wild utilities cannot move
    the kept tools.

    Huber's loss of u_t − Σ_{j ∈ a_t} ⟨θ_j, ψ_t⟩ − constant at a fitted scale, then least squares
    without the records that it rejects, each + lam Σ_j ‖θ_j‖.

    * `task`: of objective "utility", with its constant and without families.
    * `lam`: a number > 0, or "simulated": 1.1 × the 95 % quantile of the largest gradient norm
      under multipliers, of the residuals within `reject` scales of a pilot: first of the median
      alone, then of the fit so found, twice.
    * `leverage`: None, or the quantile of context lengths beyond which records count less.
      `threshold`, `reject` and `num_reweights`: as in `robust_regression`.

    Runs on the host. The key is consumed.

    Returns: a `Solution` with a `SparsePolicy` of zero intercepts; stats of `robust_regression`
    (outlier bool [T] flags the wild records), lam and constant.

    Raises: ValueError for another task, lam ≤ 0, other names.

    Source: as `robust_regression`.
    """
    require_utility(task, "fit_robust")
    data = digest(task)
    problem = utility.problem(data)
    if leverage is not None:
        problem = problem.with_sample_weight(leverage_weights(task.log.contexts, leverage))
    utilities, dtype = problem.y, problem.dtype
    limits = jnp.asarray(threshold, dtype), jnp.asarray(reject, dtype)

    def solve(lam) -> tuple[Solution, jax.Array]:
        lam = jnp.asarray(lam, dtype)
        solution = _compiled(
            problem,
            lam,
            threshold=limits[0],
            reject=limits[1],
            num_reweights=num_reweights,
            tol=tol,
            max_steps=max_steps,
        )
        return solution, utilities - solution.value.predict(problem.X)

    if isinstance(lam, str):
        residual = utilities - jnp.median(utilities)
        for pilot in range(_PILOTS):
            lam = _noise_level(jax.random.fold_in(key, pilot), data, residual, limits[1])
            residual = solve(lam)[1]
        lam = _noise_level(jax.random.fold_in(key, _PILOTS), data, residual, limits[1])
    solution = solve(lam)[0]
    coef = np.asarray(solution.value.coef).reshape(-1, task.num_features)
    alive = np.flatnonzero(np.any(coef != 0, axis=1))
    policy = SparsePolicy.of(
        data.used[alive],
        coef[alive],
        np.zeros(task.num_actions),
        task.budget,
        dtype=dtype,
        meaning=task.meaning,
    )
    stats = solution.stats | {"lam": jnp.asarray(lam, dtype), "constant": solution.value.intercept}
    return solution._replace(value=policy, stats=stats)


_compiled = jax.jit(robust_regression, static_argnames="num_reweights")


def _noise_level(key: jax.Array, data: Any, residual: jax.Array, reject: jax.Array) -> float:
    """The multiplier quantile of the residuals about their median, 0 beyond `reject` scales."""
    centred = residual - jnp.median(residual)
    within = jnp.where(jnp.abs(centred) <= reject * _scale(residual), centred, 0)
    # without noise there is nothing to measure
    least = float(jnp.finfo(residual.dtype).tiny)
    return max(utility.noise_quantile(key, data, np.asarray(within, np.float64)), least)


def _scale(residual: jax.Array) -> jax.Array:
    return _NORMAL * jnp.median(jnp.abs(residual - jnp.median(residual)))
