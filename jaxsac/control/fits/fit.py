"""From a task to a sparse policy."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, choice, either, flag, key, real, record, size, tolerance
from jaxsac.control.data.digest import Digest, digest
from jaxsac.control.data.log import Log
from jaxsac.control.data.sample_weight import effective_sample_size
from jaxsac.control.data.task import Task, task_of
from jaxsac.control.fits import likelihood, utility
from jaxsac.control.imitation.working import FitState
from jaxsac.control.policy.sparse import SparsePolicy
from jaxsac.solution import Solution

LAM = either(real(above=0, below=np.inf), choice("simulated", "theory", "scaled"))


@arguments(
    on_host=True,
    key=key(),
    task=record(Task, Log),
    lam=LAM,
    refit=flag(),
    tol=real(low=0),
    max_steps=size(),
    state=record(FitState, Solution),
)
def fit(
    key: jax.Array,
    task: Task | Log,
    *,
    lam: Any = "simulated",
    refit: bool = False,
    tol: float | None = None,
    max_steps: int | None = None,
    state: FitState | Solution | None = None,
    **words: Any,
) -> Solution:
    """Learn which few of M tools look at the context, from T logged records.

    With z_tj = ⟨θ_j, ψ_t⟩ + b_j and A_B(z) = log Σ_{|a| ≤ B} exp Σ_{j ∈ a} z_j, it minimises

        "imitation"  (1/T) Σ_t c_t [A_B(z_t) − Σ_{j ∈ a_t} z_tj]
                     + (s/T) Σ_j [softplus(b_j) − (m/M) b_j] + lam Σ_j ‖θ_j‖₂,    c_t = 1,
        "weighted"   the same with weights c_t of mean 1,
        "utility"    (1/2T) Σ_t (u_t − Σ_{j ∈ a_t} ⟨θ_j, ψ_t⟩ − constant)² + lam Σ_j ‖θ_j‖₂.

    * `task`: a `Task`, which has the objective and all that goes with it; or a `Log` and, as
      `words`, those of `Task` (`num_actions`, `budget`, `objective`, ...).
    * `lam`: a finite number > 0, in units of the gradient norm; or "simulated", 1.1 × the 95 %
      quantile of the largest gradient norm under Gaussian multipliers, in 500 draws at the null
      model; or "theory", 2 σ_g ((q/T)^½ + (2 log M / T)^½), σ_g² the largest variance of a
      gradient; or, for "utility", "scaled": the simulation for noise of unit variance times the
      standard deviation of the fit's own residuals, both found together.
    * `refit`: fit once more on the support without the penalty, with (1/2T) Σ_j ‖θ_j‖² instead, a
      standard normal prior that keeps it finite.
    * `tol` ≥ 0, relative to stats["scale"], the objective of the null model; None is 1e-6 in
      float64, 1e-4 in float32. `max_steps`: None is 500 (20,000 for "utility").
    * `state`: another solution, or its state, to start from.

    The loop runs on the host (compiled kernels at a few padded sizes): call it outside jit and
    vmap. The key is consumed.

    Returns: a `Solution` with a `SparsePolicy`. stats: lam, lam_max, objective, error (the duality
    gap over all M tools; also as gap), rounding (a bound on its rounding error), scale, num_steps,
    reason, effective_sample_size (Σ c)² / Σ c²; num_evaluations of the likelihood, or the constant
    of "utility"; refit_objective and refit_gap. CONVERGED: error + rounding ≤ tol · scale.

    Raises: ValueError for what `Task` refuses, lam ≤ 0, tol < 0, a state of another problem.

    Source: the estimator of arXiv 2601.08271; the scaled lasso of Sun & Zhang 2012 for "scaled";
    the multiplier simulation and the dual certificate are classical; so are the steps, block-wise
    Newton for up to 96 features, the quasi-Newton ones of `fit_joint` (products alone) beyond.
    """
    task = task_of(task, words)
    data = digest(task)
    dtype, objective = data.contexts.dtype, _objective(task)
    start = state.state if isinstance(state, Solution) else state
    if start is not None:
        _require_state(start, task)
    chosen = _chosen_lam(key, data, lam)
    reached, status, found = objective.fit(
        data,
        chosen,
        tol=float(tolerance(tol, dtype)),
        max_steps=objective.MAX_STEPS if max_steps is None else max_steps,
        state=start,
        refit=refit,
    )
    per_tool = task.intercept == "per_tool"
    policy = SparsePolicy.of(
        reached.tools,
        reached.coef,
        reached.intercept,
        task.budget,
        contexts=task.log.contexts if per_tool else None,
        dtype=dtype,
        meaning=task.meaning,
    )
    stats = {"lam": chosen, **found, "gap": found["error"]}
    stats["effective_sample_size"] = effective_sample_size(np.asarray(task.sample_weight))
    return Solution(policy, jnp.int32(status), as_arrays(stats, dtype), reached)


@arguments(on_host=True, task=record(Task, Log))
def lam_max(task: Task | Log, **words: Any) -> jax.Array:
    """The least lam at which no tool looks at the context, []: max_j ‖gradient_j‖ (with families
    their dual norm) at the null model, whose intercepts are fitted.

    * `task`: a `Task`, or a `Log` and the words of `Task`.
    """
    data = digest(task_of(task, words))
    return jnp.asarray(_objective(data.task).lam_max(data), data.contexts.dtype)


@arguments(on_host=True, key=key(), task=record(Task))
def simulated_lam(key: jax.Array, task: Task) -> jax.Array:
    """The lam that `fit(key, task, lam="simulated")` takes, []: 1.1 × the 95 % quantile, over 500
    draws of Gaussian multipliers, of the largest gradient norm at the null model. The key is
    consumed.
    """
    data = digest(task)
    return jnp.asarray(_chosen_lam(key, data, "simulated"), data.contexts.dtype)


def as_arrays(stats: dict[str, Any], dtype: Any) -> dict[str, jax.Array]:
    """Counts and codes as int32, the rest as `dtype`."""
    return {
        name: jnp.asarray(value, jnp.int32 if name.startswith(("num_", "reason")) else dtype)
        for name, value in stats.items()
    }


def _require_state(state: Any, task: Task) -> None:
    fits = isinstance(state, FitState)
    if fits:
        sizes = np.size(state.tools), task.num_features, task.num_actions
        fits = (*np.shape(state.coef), *np.shape(state.intercept)) == sizes
    _checks.require(
        fits,
        "state belongs to another problem: pass a FitState, or a Solution of `fit`, with"
        f" {task.num_actions} tools and {task.num_features} features.",
    )


def _objective(task: Task) -> ModuleType:
    return utility if task.objective == "utility" else likelihood


def _chosen_lam(key: jax.Array, data: Digest, lam: Any) -> float:
    if not isinstance(lam, str):
        return float(lam)
    ways = _objective(data.task).LAMS
    choice(*tuple(ways)).take("lam", lam)
    # A log of zero contexts has no noise to measure.
    return max(ways[lam](key, data), float(np.finfo(np.float32).tiny))
