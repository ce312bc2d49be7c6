"""One fit of what the log teaches about tools and what is known of them beside it."""

import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, flag, real, record, size, tolerance
from jaxsac.control.data.channels import Channels, hidden_tools, sizes as channel_sizes
from jaxsac.control.data.log import offered
from jaxsac.control.data.task import Task, sizes
from jaxsac.control.fits.fit import as_arrays
from jaxsac.control.imitation.joint import Data, Penalties, Point
from jaxsac.control.imitation.joint_solve import solve
from jaxsac.control.policy.joint import JointPolicy
from jaxsac.solution import Solution

_POSITIVE = real(above=0, below=np.inf)


@arguments(
    on_host=True,
    task=record(Task, sizes=sizes),
    channels=record(Channels, sizes=channel_sizes),
    lam=_POSITIVE,
    ridge=real(low=0, below=np.inf),
    weight_ridge=_POSITIVE,
    intercept_ridge=_POSITIVE,
    exactly=flag(),
    tol=real(low=0),
    max_steps=size(),
    state=record(JointPolicy, Solution),
)
def fit_joint(
    task: Task,
    channels: Channels,
    *,
    lam: float,
    ridge: float = 0.0,
    weight_ridge: float = 1e-4,
    intercept_ridge: float = 1e-4,
    exactly: bool = False,
    tol: float | None = None,
    max_steps: int | None = None,
    state: JointPolicy | Solution | None = None,
) -> Solution:
    """Learn which tools the log teaches something about that the channels do not say, and how much
    to trust each channel, from T records over M tools.

    With z_tj = ⟨θ_j, ψ_t⟩ + Σ_c w_c r_c(t, j) + b_j for the U tools that the log uses it minimises

        Σ_t c_t/T [A(z_t) − Σ_{j ∈ a_t} z_tj + κ (A(z°_t) − Σ_{j ∈ a_t} z°_tj)] / (1 + κ)
            + lam Ω(θ) + ridge/2 ‖θ‖² + weight_ridge/2 ‖w‖²
            + intercept_ridge/2 (‖b − b₀‖² + (offset − b₀)²),

    A(z) = log Σ_{|a| ≤ B} exp Σ_{j ∈ a} z_j, b₀ the logarithm of the mean frequency of a used tool.
    The second row z° scores all M tools: those that no record of another fold uses, the never used
    ones too, by offset + Σ_c w_c r_c over the channels that are not learnt, the others as z. κ is
    the channels' `cold_weight`, 0 where they name no folds.

    * `task`: of objective "imitation" or "weighted", with intercepts per tool; its smoothing does
      not enter. Ω is its penalty: Σ_j ‖θ_j‖, or that of its families.
    * `channels`: a `Channels` for the same records and tools.
    * `lam` > 0, in units of the gradient norm: above stats["lam_max"] (of the null model) channels
      and intercepts may do alone. The ridges make the duality gap finite; with some `ridge`, say
      lam / 50, it is small after a fourth of the steps.
    * `exactly`: sets of exactly B tools alone, as every record must have then; B = 1 is a
      multinomial model.
    * `tol` ≥ 0, relative to stats["scale"], the objective of equal scores; None is 1e-6 in float64,
      1e-4 in float32. `max_steps`: of 5 quasi-Newton steps each; None is 400.
    * `state`: a policy or a solution of the same tools and channels to start from.

    An evaluation costs O(T (U q + M (B + C))), by products alone. Runs on concrete arrays.

    Returns: a `Solution` with a `JointPolicy`. stats: lam, lam_max, objective, error (the duality
    gap over all parameters; also as gap), rounding, scale, num_steps, num_evaluations, reason.

    Raises: ValueError for another task, for channels of other records or tools, and for `exactly`
    where a record uses fewer tools.

    Source: the estimator of arXiv 2601.08271 with features of (context, tool) beside those of the
    context, a conditional logit (McFadden 1974); the steps are those of Themelis, Stella & Patrinos
    2018.
    """
    _checks.require(
        task.objective != "utility" and task.intercept == "per_tool",
        'fit_joint needs a task of objective="imitation" or "weighted" with intercept="per_tool".',
    )
    log, actions, dtype = task.log, np.asarray(task.log.actions), task.dtype
    chosen = np.zeros((task.num_records, task.num_actions + 1), bool)
    np.put_along_axis(chosen, np.where(actions >= 0, actions, task.num_actions), True, axis=1)
    chosen = chosen[:, :-1]
    _checks.require(
        channels.values.shape[1:] == chosen.shape,
        f"channels are of {channels.values.shape[1:]} records and tools, the task of"
        f" {chosen.shape}.",
    )
    _checks.require(
        not exactly or bool((chosen.sum(1) == task.budget).all()),
        f"exactly=True: some records do not use exactly {task.budget} tools.",
    )
    uses = chosen.any(0)
    order = np.argsort(~uses, kind="stable")
    used = int(uses.sum())
    _checks.require(used > 0, "no record uses a tool: there is nothing to learn.")
    weights = np.asarray(task.sample_weight, float) / task.num_records
    families = task.families
    label = np.arange(used) if families is None else np.asarray(families.label)[order[:used]]
    hidden = None if channels.fold is None else hidden_tools(channels, chosen)[:, order]
    if hidden is not None and not hidden.any():
        hidden = None  # the second row is the first
    data = Data(
        contexts=jnp.asarray(log.contexts),
        row_weights=jnp.asarray(weights, dtype),
        chosen=jnp.asarray(chosen.T[order]),
        channels=jnp.asarray(np.swapaxes(channels.values, 1, 2)[:, order], dtype),
        learnt=jnp.asarray(channels.learnt),
        hidden=None if hidden is None else jnp.asarray(hidden),
        fold=jnp.asarray(np.zeros(len(chosen), int) if hidden is None else channels.fold),
        cold_weight=jnp.asarray(0 if hidden is None else channels.cold_weight, dtype),
        allowed=None
        if log.available is None
        else jnp.asarray(np.asarray(offered(log, task.num_actions)).T[order]),
    )
    mean_use = float(weights @ chosen.sum(1)) / used
    penalties = Penalties(
        *map(float, (lam, ridge, weight_ridge, intercept_ridge)),
        centre=float(np.log(mean_use)),
        label=np.unique(label, return_inverse=True)[1].reshape(-1),
        share=0.0 if families is None else float(families.share),
    )
    start = state.value if isinstance(state, Solution) else state
    fitted = solve(
        data,
        penalties,
        None if start is None else _start(start, order, used),
        budget=task.budget,
        exactly=bool(exactly),
        tol=float(tolerance(tol, dtype)),
        max_steps=400 if max_steps is None else max_steps,
    )
    policy = _policy(fitted.point, order, channels.learnt, task)
    stats = {
        "lam": lam,
        "lam_max": fitted.lam_max,
        "objective": fitted.objective,
        **fitted.outcome.stats,
        "num_evaluations": fitted.num_evaluations,
    }
    stats["gap"] = stats["error"]
    return Solution(policy, jnp.int32(fitted.outcome.status), as_arrays(stats, dtype), policy)


def _policy(point: Point, order: np.ndarray, learnt: np.ndarray, task: Task) -> JointPolicy:
    coef, dtype = np.asarray(point.coef), task.dtype
    alive = np.flatnonzero(np.any(coef != 0, axis=1))  # ascending, as the used tools are
    intercept = np.full(task.num_actions, np.asarray(point.offset))
    cold = np.ones(task.num_actions, np.int32)
    used = order[: coef.shape[0]]
    intercept[used], cold[used] = np.asarray(point.intercept), 0
    return JointPolicy(
        positions=jnp.asarray(used[alive], jnp.int32),
        coef=jnp.asarray(coef[alive]),
        weights=point.weights,
        intercept=jnp.asarray(intercept, dtype),
        cold=jnp.asarray(cold),
        learnt=jnp.asarray(learnt, jnp.int32),
        budget=task.budget,
    )


def _start(policy: JointPolicy, order: np.ndarray, used: int) -> Point:
    fits = policy.intercept.shape[0] == order.size
    _checks.require(fits, f"state is of another problem: it must have {order.size} tools.")
    coef = np.zeros((order.size, policy.coef.shape[1]))
    coef[np.asarray(policy.positions)] = np.asarray(policy.coef)
    intercept, cold = np.asarray(policy.intercept, float), np.asarray(policy.cold) > 0
    offset = intercept[cold].mean() if cold.any() else intercept.min()
    ordered = coef[order[:used]], policy.weights, intercept[order[:used]], offset
    return Point(*map(jnp.asarray, ordered))
