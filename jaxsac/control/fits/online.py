"""Learning while the log grows: re-solving in epochs with warm starts, a sliding window,
exploration; and group dual averaging.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, gibbs
from jaxsac.control.data.log import Log
from jaxsac.control.fits.fit import FitState, fit
from jaxsac.control.policy.sparse import NO_ACTION, SparsePolicy


class Learner(NamedTuple):
    """Where learning stands: the records kept, the last fit with its lam and number of records, the
    records seen, and when the next fit is due (in records seen).
    """

    log: Log
    policy: SparsePolicy
    state: FitState
    lam: float
    records: int
    seen: int
    next_fit: int
    num_fits: int


def start_learner(key: jax.Array, log: Log, **options: Any) -> Learner:
    """Fit the first records; `options` are those of `fit` (num_actions, budget, ...). The key is
    consumed.
    """
    solution = fit(key, log, **options)
    seen = np.shape(log.contexts)[0]
    return Learner(
        log, solution.value, solution.state, float(solution.stats["lam"]), seen, seen, 2 * seen, 1
    )


def update_learner(
    key: jax.Array,
    learner: Learner,
    new: Log,
    *,
    growth: float = 2.0,
    window: int | None = None,
    force: bool = False,
    **options: Any,
) -> Learner:
    """Add records; solve again, from the last solution, once the log has grown by the factor
    `growth` since the last fit.

    With growth > 1 the number of fits is logarithmic in the number of records, each warm: the
    amortised cost of a record is O(1) of a fit.
    * `window`: keep the last so many records only (a world that drifts), and fit every (growth - 1)
      window new ones.
    * `force`: fit now. lam is that of the first fit times sqrt(first records / records): the noise
      in a gradient shrinks so; pass `lam` in `options` to set it. The key is consumed.
    """
    _checks.require(
        growth > 1,
        f"growth must be > 1, got {growth:g}: it is the factor by which the log grows between fits.",
    )
    log = join(learner.log, new)
    added = np.shape(new.contexts)[0]
    seen = learner.seen + added
    kept = np.shape(log.contexts)[0]
    if window is not None and kept > window:
        log = Log(*(None if field is None else np.asarray(field)[kept - window :] for field in log))
        kept = window
    if not force and seen < learner.next_fit:
        return learner._replace(log=log, seen=seen)
    lam = options.pop("lam", learner.lam * np.sqrt(learner.records / kept))
    solution = fit(key, log, lam=lam, state=learner.state, **options)
    due = seen + int(np.ceil((growth - 1) * kept))
    return Learner(
        log,
        solution.value,
        solution.state,
        float(solution.stats["lam"]),
        kept,
        seen,
        due,
        learner.num_fits + 1,
    )


def join(first: Log, second: Log) -> Log:
    """The records of both, in order; sets are padded to the wider of the two."""

    def pad(array: np.ndarray, width: int) -> np.ndarray:
        return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=-1)

    joined = []
    for name, a, b in zip(Log._fields, first, second, strict=True):
        _checks.require(
            (a is None) == (b is None), f"log.{name} must be given in both logs or in none."
        )
        if a is None or b is None:
            joined.append(None)
            continue
        a, b = np.asarray(a), np.asarray(b)
        if name in ("actions", "available") and a.dtype != bool:
            width = max(a.shape[1], b.shape[1])
            a, b = pad(a, width), pad(b, width)
        joined.append(np.concatenate([a, b]))
    return Log(*joined)


def explore(
    key: jax.Array, policy: SparsePolicy, context: Any, rate: Any, available: Any = None
) -> tuple[jax.Array, jax.Array]:
    """A draw of the policy in which, with probability `rate`, a uniformly random tool outside it
    joins (or replaces the last of B).

    Without it a tool that no record uses can never enter the support. Returns (set int32 [B] padded
    with -1, whether it explored). The key is consumed; full policies only; pure, to be jitted and
    vmapped.
    """
    _checks.require(
        policy.tools is None,
        "policy must be the full one: a pruned policy has no other tools to try.",
    )
    draw_key, coin_key, tool_key = jax.random.split(key, 3)
    chosen = policy.sample(draw_key, context, available)
    free = jnp.ones(policy.num_actions, bool) if available is None else jnp.asarray(available)
    free = free & ~jnp.any(
        jnp.arange(policy.num_actions, dtype=jnp.int32)[:, None] == chosen[None, :], axis=1
    )
    logits = jnp.where(free, 0.0, -jnp.inf).astype(policy.weights.dtype)
    fresh = jax.random.categorical(tool_key, logits).astype(jnp.int32)
    coin = jax.random.uniform(coin_key, (), policy.weights.dtype) < jnp.asarray(rate).astype(
        policy.weights.dtype
    )
    explores = coin & jnp.any(free)
    empty = jnp.argmax(jnp.append(chosen == NO_ACTION, True))
    place = jnp.minimum(empty, policy.budget - 1)
    return jnp.where(explores, chosen.at[place].set(fresh), chosen), explores


class DualAverage(eqx.Module):
    """Group regularised dual averaging: the mean gradient [M, q] and [M] so far, the number of
    records, and the current point.
    """

    gradient: jax.Array
    intercept_gradient: jax.Array
    weights: jax.Array
    intercept: jax.Array
    count: jax.Array
    budget: int = eqx.field(static=True)


def dual_average(
    num_actions: int, num_features: int, budget: int, dtype: Any = None
) -> DualAverage:
    """The start: no records, weights and intercepts 0."""
    zero = jnp.zeros((num_actions, num_features), dtype or jnp.result_type(float))
    return DualAverage(zero, zero[:, 0], zero, zero[:, 0], jnp.zeros((), jnp.int32), budget)


def dual_average_step(
    at: DualAverage, context: Any, actions: Any, *, lam: Any, step: Any
) -> tuple[DualAverage, jax.Array]:
    """Take in one record; returns the next point and the loss A_B(z) - sum_{j in a} z_j at the
    point before it (for the regret).

        g = mean of the gradients so far,   lam_t = lam sqrt(log M / t), theta_j = - step sqrt(t)
        max(0, 1 - lam_t / ||g_j||) g_j,      b_j = - step sqrt(t) g_b,j

    context [q], actions int32 [any] padded with -1. Sparse at every step, O(M (q + B)). Pure; scan
    it over the records. Source: group RDA, Xiao 2010; Yang, Xu, King & Lyu 2010; the online
    extension of arXiv 2601.08271.
    """
    dtype = at.weights.dtype
    context = _checks.real_array("context", context, (at.weights.shape[1],), dtype)
    actions = _checks.integer_array("actions", actions, (None,))
    return _dual_average_step(
        at, context, actions, jnp.asarray(lam).astype(dtype), jnp.asarray(step).astype(dtype)
    )


@jax.jit
def _dual_average_step(at: DualAverage, context, actions, lam, step):
    dtype, size = at.weights.dtype, at.weights.shape[0]
    scores = jnp.matmul(at.weights, context, precision="highest") + at.intercept
    chosen = jnp.zeros(size, dtype).at[jnp.where(actions < 0, size, actions)].set(1, mode="drop")
    loss = gibbs.log_partition(scores, budget=at.budget) - jnp.vdot(chosen, scores)
    pull = gibbs.marginals(scores, budget=at.budget) - chosen
    count = at.count + 1
    t = count.astype(dtype)
    gradient = at.gradient + (pull[:, None] * context[None, :] - at.gradient) / t
    intercept_gradient = at.intercept_gradient + (pull - at.intercept_gradient) / t
    norms = jnp.sqrt(jnp.sum(gradient**2, axis=1))
    level = lam * jnp.sqrt(jnp.log(jnp.asarray(size, dtype)) / t)
    keep = norms > level
    shrink = jnp.where(keep, 1 - level / jnp.where(keep, norms, 1), 0)
    pace = step * jnp.sqrt(t)
    weights = -pace * shrink[:, None] * gradient
    return DualAverage(
        gradient, intercept_gradient, weights, -pace * intercept_gradient, count, at.budget
    ), loss
