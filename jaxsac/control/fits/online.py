"""Learning while the log grows: re-solving in epochs with warm starts, a sliding window,
exploration; and group dual averaging.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, gibbs
from jaxsac._arguments import anything, arguments, flag, integer, key, real, record, size
from jaxsac.control.data.log import Log, join, take
from jaxsac.control.data.task import Task
from jaxsac.control.fits.fit import LAM, fit
from jaxsac.control.policy.sparse import SparsePolicy
from jaxsac.solution import Hashable, Solution, register

_FIT = {"lam": LAM, "refit": flag(), "tol": real(low=0), "max_steps": size()}


@arguments(
    task=record(Task),
    solution=record(Solution),
    records=size(),
    seen=size(),
    next_fit=size(),
    num_fits=size(),
    options=anything("refit, tol, max_steps of `fit`"),
)
class Learner(Hashable):
    """Where learning stands: what is to be learnt, from which records, and the last fit."""

    task: Task  # with the records kept
    solution: Solution  # of the last fit
    records: int  # how many that fit had
    seen: int  # records seen so far
    next_fit: int  # when the next fit is due, in records seen
    num_fits: int  # how many fits so far
    options: dict[str, Any]  # refit, tol, max_steps of `fit`

    @property
    def policy(self) -> SparsePolicy:
        return self.solution.value

    @property
    def lam(self) -> float:
        """Of the last fit."""
        return float(self.solution.stats["lam"])


@arguments(on_host=True, key=key(), task=record(Task), **_FIT)
def start_learner(
    key: jax.Array,
    task: Task,
    *,
    lam: Any = "simulated",
    refit: bool = False,
    tol: float | None = None,
    max_steps: int | None = None,
) -> Learner:
    """Fit the first records; the options are those of `fit`, and hold for all later fits. The key
    is consumed.
    """
    options = {"refit": refit, "tol": tol, "max_steps": max_steps}
    solution, seen = fit(key, task, lam=lam, **options), task.num_records
    return Learner(task, solution, seen, seen, 2 * seen, 1, options)


@arguments(
    on_host=True,
    learner=record(Learner),
    log=record(Log),
    growth=real(above=1, below=np.inf),
    window=size(1),
    force=flag(),
    lam=real(above=0, below=np.inf),
)
def update_learner(
    learner: Learner,
    log: Log,
    *,
    growth: float = 2.0,
    window: int | None = None,
    force: bool = False,
    lam: float | None = None,
) -> Learner:
    """Add the records of `log`; solve again, from the last solution, once the log has grown by the
    factor `growth` since the last fit.

    With growth > 1 the number of fits is logarithmic in the number of records, each warm: the
    amortised cost of a record is O(1) of a fit.

    * `growth` > 1 and finite. `window` ≥ 1: keep the last so many records only (a world that
      drifts), and fit every (growth − 1) window new ones.
    * `force`: fit now.
    * `lam` > 0 of that fit; None is that of the last one times √(its records / records): the noise
      in a gradient shrinks so.
    """
    new = learner.task.checked(log)
    joined = join(learner.task.log, new)
    kept = joined.contexts.shape[0]
    if window is not None and kept > window:
        joined, kept = take(joined, slice(kept - window, None)), window
    task, seen = learner.task.with_log(joined), learner.seen + new.contexts.shape[0]
    if not force and seen < learner.next_fit:
        return dataclasses.replace(learner, task=task, seen=seen)
    if lam is None:
        lam = learner.lam * float(np.sqrt(learner.records / kept))
    unused = jax.random.key(0)  # nothing is drawn: lam is a number
    solution = fit(unused, task, lam=lam, state=learner.solution, **learner.options)
    due = min(seen + int(np.ceil((growth - 1) * kept)), 2**31 - 1)
    return Learner(task, solution, kept, seen, due, learner.num_fits + 1, learner.options)


@arguments(
    key=key(),
    policy=record(SparsePolicy, sizes=lambda policy: {"q": policy.coef.shape[1]}),
    context=real("q"),
    rate=real(low=0, high=1),
    available=anything("None, or booleans [M]"),
)
def explore(
    key: jax.Array, policy: SparsePolicy, context: Any, rate: Any, available: Any = None
) -> tuple[jax.Array, jax.Array]:
    """A draw of the policy in which, with probability `rate` in [0, 1], a uniformly random tool
    outside it joins (or replaces the last of B). `context` [q], `available` as in `sample`.

    Without it a tool that no record uses can never enter the support. Full policies only; pure, to
    be jitted and vmapped. The key is consumed.

    Returns: the set int32 [B] padded with -1, and whether it explored, bool []. All -1 for a
    traced rate out of range, and where a score is NaN.
    """
    _checks.require(
        policy.tools is None,
        "policy must be the full one: a pruned policy has no other tools to try.",
    )
    dtype, rate = policy.dtype, jnp.asarray(rate)
    draw_key, coin_key, tool_key = jax.random.split(key, 3)
    scores = policy.scores(context, available)
    chosen = gibbs.sample(draw_key, scores, budget=policy.budget, num_samples=1)[0]
    usable = (rate >= 0) & (rate <= 1) & jnp.all(scores < jnp.inf)
    free = jnp.ones(policy.num_actions, bool) if available is None else jnp.asarray(available)
    tools = jnp.arange(policy.num_actions, dtype=jnp.int32)
    free = free & ~jnp.any(tools[:, None] == chosen[None, :], axis=1)
    logits = jnp.where(free, 0.0, -jnp.inf).astype(dtype)
    fresh = jax.random.categorical(tool_key, logits).astype(jnp.int32)
    coin = jax.random.uniform(coin_key, (), dtype) < rate
    explores = coin & jnp.any(free) & usable
    empty = jnp.argmax(jnp.append(chosen == gibbs.NO_ACTION, True))
    place = jnp.minimum(empty, policy.budget - 1)
    chosen = jnp.where(explores, chosen.at[place].set(fresh), chosen)
    return jnp.where(usable, chosen, gibbs.NO_ACTION), explores


@register
@arguments(
    gradient=real("M", "q"),
    intercept_gradient=real("M"),
    coef=real("M", "q"),
    intercept=real("M"),
    count=integer(low=0),
    budget=size(),
)
class DualAverage(eqx.Module):
    """Group regularised dual averaging: the mean gradients so far, and the current point."""

    gradient: jax.Array  # [M, q]
    intercept_gradient: jax.Array  # [M]
    coef: jax.Array  # θ [M, q]
    intercept: jax.Array  # b [M]
    count: jax.Array  # int32 []: records taken in
    budget: int = eqx.field(static=True)  # B

    @property
    def dtype(self) -> Any:
        return self.coef.dtype


@arguments(
    num_actions=size(1),
    num_features=size(1),
    budget=size(),
    dtype=anything("None, or a floating dtype"),
)
def dual_average(
    num_actions: int, num_features: int, budget: int, dtype: Any = None
) -> DualAverage:
    """The start: no records, coefficients and intercepts 0, for `num_actions` tools of
    `num_features` features each in sets of at most `budget`.

    * `dtype`: None is the default float.
    """
    dtype = jnp.result_type(float) if dtype is None else dtype
    floating = isinstance(dtype, type | np.dtype | str) and jnp.issubdtype(dtype, jnp.floating)
    _checks.require(floating, f"dtype must be a floating one, got {dtype}.")
    zero = jnp.zeros((num_actions, num_features), dtype)
    return DualAverage(zero, zero[:, 0], zero, zero[:, 0], jnp.zeros((), jnp.int32), budget)


@arguments(
    at=record(DualAverage, sizes=lambda at: dict(zip("Mq", at.coef.shape, strict=True))),
    context=real("q"),
    actions=integer("any", low=-1, below="M"),
    lam=real(low=0),
    step=real(above=0, below=np.inf),
)
@jax.jit
def dual_average_step(
    at: DualAverage, context: Any, actions: Any, *, lam: Any, step: Any
) -> tuple[DualAverage, jax.Array]:
    """Take in one record.

        g = mean of the gradients so far,    lam_t = lam (log M / t)^½,
        θ_j = −step √t (1 − lam_t / ‖g_j‖)₊ g_j,    b_j = −step √t g_b,j

    * `context` [q], `actions` int32 [any] padded with -1, a tool named twice counting once. `lam`
      ≥ 0, `step` > 0. Sparse at every step, O(M (q + B)). Pure; scan it over the records.

    Returns: the next point, and the loss A_B(z) − Σ_{j ∈ a} z_j at the point before it (for the
    regret). NaN, and so all later ones, after a set of more than B tools, and where a tool, lam or
    step is traced and out of range.

    Source: group RDA, Xiao 2010; Yang, Xu, King & Lyu 2010; the online extension of arXiv
    2601.08271.
    """
    dtype, size = at.coef.dtype, at.coef.shape[0]
    scores = jnp.matmul(at.coef, context, precision="highest") + at.intercept
    chosen = jnp.zeros(size, dtype).at[jnp.where(actions < 0, size, actions)].set(1, mode="drop")
    loss = gibbs.log_partition(scores, budget=at.budget) - jnp.vdot(chosen, scores)
    known = jnp.all((actions >= -1) & (actions < size)) & (jnp.sum(chosen) <= at.budget)
    possible = known & (lam >= 0) & (step > 0)
    loss = jnp.where(possible, loss, jnp.nan)
    pull = jnp.where(possible, gibbs.marginals(scores, budget=at.budget) - chosen, jnp.nan)
    count = at.count + 1
    t = count.astype(dtype)
    gradient = at.gradient + (pull[:, None] * context[None, :] - at.gradient) / t
    intercept_gradient = at.intercept_gradient + (pull - at.intercept_gradient) / t
    norms = jnp.sqrt(jnp.sum(gradient**2, axis=1))
    level = lam * jnp.sqrt(jnp.log(jnp.asarray(size, dtype)) / t)
    shrink = jnp.maximum(1 - level / jnp.where(norms > 0, norms, 1), 0)
    pace = step * jnp.sqrt(t)
    coef = -pace * shrink[:, None] * gradient
    intercept = -pace * intercept_gradient
    return DualAverage(gradient, intercept_gradient, coef, intercept, count, at.budget), loss
