"""Tools scored from their own features, so that a tool that no record has used can be routed."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxsac import _checks, _loops, gibbs
from jaxsac._arguments import arguments, integer, real, record, size, tolerance
from jaxsac._iterate import Certificate, iterate
from jaxsac._linear import add, conjugate_gradient, dot, square
from jaxsac.control.data.log import offered
from jaxsac.control.data.task import Task, require_objective, sizes
from jaxsac.control.policy.sparse import SparsePolicy
from jaxsac.solution import Solution, register

_CG_STEPS, _CG_TOLERANCE = 50, 0.1
_SHORTEST = 1e-6
_FEATURES = real("M", "d")


@register
@arguments(interaction=real("d", "q"), tool_effect=real("d"), constant=real(), budget=size())
class ToolModel(eqx.Module):
    """Scores z_tj = ⟨φ_j, A ψ_t + c⟩ + constant of any tool with features φ_j; a pytree."""

    interaction: jax.Array  # A [d, q], in nats per unit of both features
    tool_effect: jax.Array  # c [d], in nats per unit of a tool's feature
    constant: jax.Array  # [], in nats
    budget: int = eqx.field(static=True)  # B

    def policy(self, tool_features: Any) -> SparsePolicy:
        """The policy over the tools with these features [M', d], known or new: θ_j = A' φ_j, b_j =
        ⟨φ_j, c⟩ + constant.
        """
        features = _FEATURES.take(
            "tool_features", tool_features, self.interaction.dtype, d=self.tool_effect.shape[0]
        )
        return SparsePolicy(
            positions=jnp.arange(features.shape[0], dtype=jnp.int32),
            coef=jnp.matmul(features, self.interaction, precision="highest"),
            intercept=jnp.matmul(features, self.tool_effect, precision="highest") + self.constant,
            background=jnp.zeros(0, jnp.int32),
            tools=None,
            budget=self.budget,
        )

    __hash__ = object.__hash__  # so that jax.jit takes its methods


@arguments(
    on_host=True,
    task=record(Task, sizes=sizes),
    tool_features=_FEATURES,
    ridge=real(above=0, below=jnp.inf),
    tol=real(low=0),
    max_steps=integer(low=0),
    state=record(ToolModel, sizes=lambda m: dict(zip("dq", m.interaction.shape, strict=True))),
)
def fit_tool_model(
    task: Task,
    tool_features: Any,
    *,
    ridge: Any = 1e-3,
    tol: Any = None,
    max_steps: Any = 100,
    state: Any = None,
) -> Solution:
    """Learn how a tool's own features decide when it is used, from T records over M tools with d
    features each.

        minimise  (1/T) Σ_t [A_B(z_t) − Σ_{j ∈ a_t} z_tj] + ridge/2 (‖A‖² + ‖c‖² + constant²),
        z_tj = ⟨φ_j, A ψ_t + c⟩ + constant

    * `task`: of objective "imitation" and without families; its intercepts and their smoothing do
      not enter, the model has the constant and c in their place.
    * `tool_features` φ [M, d]: an embedding of the description, its family, its cost. Scale both
      kinds of features to the order of 1: `ridge` > 0 acts on their coefficients.
    * `tol` ≥ 0, relative to stats["scale"], the objective at 0; None is 1e-6 in float64, 1e-4 in
      float32. `state`: a model or a solution to start from.

    Its few parameters are shared by all tools: it generalises where `fit` remembers, and is coarser
    on tools with many records. An evaluation costs O(T M (B + d)); the steps are Newton's, by
    conjugate gradients. Where records offer their own tools only those count. Runs on concrete
    arrays.

    Returns: a `Solution` with a `ToolModel`, whose `.policy(features)` also takes tools that are in
    no record; stats objective, error (the gap by strong convexity, ‖gradient‖² / (2 ridge); also as
    gap), rounding, scale, num_steps, reason.

    Raises: ValueError for another task and for features that do not fit it.

    Source: the Gibbs policy of arXiv 2601.08271 with θ_j linear in φ_j, a conditional logit in
    features (McFadden 1974).
    """
    require_objective(task, "imitation", "fit_tool_model")
    contexts = jnp.asarray(task.log.contexts)
    dtype = contexts.dtype
    _checks.require(bool(jnp.all(jnp.isfinite(tool_features))), "tool_features must be finite.")
    if state is None:
        zero = jnp.zeros((tool_features.shape[1], contexts.shape[1]), dtype)
        state = ToolModel(zero, zero[:, 0], jnp.zeros((), dtype), task.budget)
    return _fit(
        contexts,
        jnp.asarray(task.log.actions),
        jnp.asarray(offered(task.log, task.num_actions)),
        tool_features,
        jnp.asarray(ridge, dtype),
        tolerance(tol, dtype),
        jnp.asarray(max_steps, jnp.int32),
        state,
    )


@jax.jit
def _fit(
    contexts, actions, available, features, ridge, tol, max_steps, start: ToolModel
) -> Solution:
    budget, records, dtype = start.budget, contexts.shape[0], contexts.dtype
    free = jnp.zeros((budget + 1, records), dtype)

    def objective(model: ToolModel) -> jax.Array:
        pull = jnp.matmul(contexts, model.interaction.T, precision="highest")
        pull = pull + model.tool_effect[None, :]
        scores = jnp.matmul(features, pull.T, precision="highest") + model.constant  # [M, T]
        possible = jnp.where(available.T, scores, -jnp.inf)
        chosen = jnp.take_along_axis(scores.T, jnp.maximum(actions, 0), axis=1)
        likelihood = jnp.mean(
            jnp.asarray(gibbs.rows.log_partition(possible, free, budget))
            - jnp.sum(jnp.where(actions >= 0, chosen, 0), axis=1)
        )
        return likelihood + 0.5 * ridge * square(model)

    scale = objective(jax.tree.map(jnp.zeros_like, start))
    gradient_of = jax.grad(objective)

    def step(model: ToolModel) -> ToolModel:
        """Newton's direction by conjugate gradients, and the longest of the steps 1, ½, ¼, ... that
        descends enough.
        """
        gradient = gradient_of(model)

        def curvature(direction):
            return jax.jvp(gradient_of, (model,), (direction,))[1]

        direction = conjugate_gradient(
            curvature, gradient, tol=_CG_TOLERANCE, max_steps=_CG_STEPS
        ).x
        slope, here = dot(gradient, direction), objective(model)

        def too_long(length):
            enough = here - 1e-4 * length * slope + 8 * jnp.finfo(dtype).eps * jnp.abs(here)
            return ~(objective(add(model, -length, direction)) <= enough) & (length > _SHORTEST)

        length = _loops.while_loop(too_long, lambda length: length / 2, jnp.ones((), dtype))
        return add(model, -length, direction)

    def certify(model: ToolModel) -> Certificate:
        value, gradient = jax.value_and_grad(objective)(model)
        gap = square(gradient) / (2 * ridge)
        return Certificate(gap, 16 * jnp.finfo(dtype).eps * jnp.abs(value), scale)

    outcome = iterate(step, certify, start, tol=tol, max_steps=max_steps)
    stats = {"objective": objective(outcome.state), **outcome.stats}
    stats["gap"] = outcome.certificate.error
    return Solution(outcome.state, outcome.status, stats, outcome.state)
