"""Tools scored from their own features, so that a tool that no record has used can be routed."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._iterate import Certificate, iterate
from jaxsac.control.data.log import Log, checked
from jaxsac.control.policy.sparse import SparsePolicy
from jaxsac.gibbs import rows
from jaxsac.solution import Solution

CG_STEPS = 50
SHORTEST = 1e-6


class ToolModel(eqx.Module):
    """Scores z_tj = <phi_j, A psi_t + c> + constant of any tool with features phi_j: A [d, q], c
    [d], constant []. A pytree.
    """

    interaction: jax.Array
    tool_effect: jax.Array
    constant: jax.Array
    budget: int = eqx.field(static=True)

    def policy(self, tool_features: Any) -> SparsePolicy:
        """The policy over the tools with these features [M', d], known or new: theta_j = A' phi_j,
        b_j = <phi_j, c> + constant.
        """
        features = _checks.real_array(
            "tool_features", tool_features, ("M", self.tool_effect.shape[0]), self.interaction.dtype
        )
        return SparsePolicy(
            positions=jnp.arange(features.shape[0], dtype=jnp.int32),
            weights=jnp.matmul(features, self.interaction, precision="highest"),
            intercept=jnp.matmul(features, self.tool_effect, precision="highest") + self.constant,
            background=jnp.zeros(0, jnp.int32),
            tools=None,
            budget=self.budget,
        )


def fit_tool_model(
    log: Log,
    tool_features: Any,
    *,
    budget: int,
    ridge: Any = 1e-3,
    tol: Any = None,
    max_steps: Any = 100,
    state: ToolModel | None = None,
) -> Solution:
    """Learn how a tool's own features decide when it is used, from T records over M tools with d
    features each.

        minimise  (1/T) sum_t [A_B(z_t) - sum_{j in a_t} z_tj] + ridge/2 (||A||^2 + ||c||^2 +
        constant^2), z_tj = <phi_j, A psi_t + c> + constant

    * `log`: contexts psi [T, q] and sets; tools numbered by the rows of `tool_features` phi [M, d]
      (an embedding of the description, its family, its cost). Scale both kinds of features to the
      order of 1: `ridge` > 0 acts on their coefficients.
    * `tol` relative to the objective at 0 (stats["scale"]); None is 1e-6 in float64, 1e-4 in
      float32. `state`: a model to start from.

    Returns a `Solution` with a `ToolModel`, whose `.policy(features)` also takes tools that are in
    no record; stats objective, gap (exact, by strong convexity: ||gradient||^2 / (2 ridge)), scale,
    num_steps. Its few parameters are shared by all tools: it generalises where `fit` remembers, and
    is coarser on tools with many records. An evaluation costs O(T M (B + d)); the steps are
    Newton's, by conjugate gradients. Where records offer their own tools only those count.
    ValueError for logs that `fit` refuses and features that do not fit.

    Source: the Gibbs policy of arXiv 2601.08271 with theta_j linear in phi_j, a conditional logit
    in features (McFadden 1974).
    """
    features = _checks.real_array("tool_features", tool_features, ("M", "d"))
    num_actions = features.shape[0]
    log = checked(log, num_actions, _checks.static_integer("budget", budget, 1))
    contexts = jnp.asarray(log.contexts)
    features = features.astype(contexts.dtype)
    _checks.require(bool(jnp.all(jnp.isfinite(features))), "tool_features must be finite.")
    dtype = contexts.dtype
    available = np.ones((1, 1), bool)
    if log.available is not None:
        lists = np.asarray(log.available)
        available = np.zeros((lists.shape[0], num_actions + 1), bool)
        np.put_along_axis(available, np.where(lists < 0, num_actions, lists), True, axis=1)
        available = available[:, :-1]
    tol = _checks.real_scalar(
        "tol", (1e-4 if dtype == jnp.float32 else 1e-6) if tol is None else tol, dtype, 0.0
    )
    ridge = _checks.real_scalar("ridge", ridge, dtype, 0.0, strict=True)
    budget = min(budget, num_actions)
    if state is None:
        zero = jnp.zeros((features.shape[1], contexts.shape[1]), dtype)
        state = ToolModel(zero, zero[:, 0], zero[0, 0], budget)
    return _fit(
        contexts,
        jnp.asarray(log.actions),
        jnp.asarray(available),
        features,
        ridge,
        tol,
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
        pull = (
            jnp.matmul(contexts, model.interaction.T, precision="highest")
            + model.tool_effect[None, :]
        )
        scores = jnp.matmul(features, pull.T, precision="highest") + model.constant  # [M, T]
        offered = jnp.where(available.T, scores, -jnp.inf)
        chosen = jnp.take_along_axis(scores.T, jnp.maximum(actions, 0), axis=1)
        likelihood = jnp.mean(
            jnp.asarray(rows.log_partition(offered, free, budget))
            - jnp.sum(jnp.where(actions >= 0, chosen, 0), axis=1)
        )
        return likelihood + 0.5 * ridge * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(model))

    scale = objective(jax.tree.map(jnp.zeros_like, start))
    gradient_of = jax.grad(objective)

    def step(model: ToolModel) -> ToolModel:
        """Newton's direction by conjugate gradients, and the longest of the steps 1, 1/2, 1/4, ...
        that descends enough.
        """
        gradient = gradient_of(model)
        square = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))

        def curvature(direction):
            return jax.jvp(gradient_of, (model,), (direction,))[1]

        direction, _ = jax.scipy.sparse.linalg.cg(curvature, gradient, tol=0.1, maxiter=CG_STEPS)
        slope = sum(
            jnp.vdot(a, b)
            for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        here = objective(model)

        def moved(length):
            return jax.tree.map(lambda at, by: at - length * by, model, direction)

        def too_long(length):
            enough = here - 1e-4 * length * slope + 8 * jnp.finfo(dtype).eps * jnp.abs(here)
            return ~(objective(moved(length)) <= enough) & (length > SHORTEST)

        length = jax.lax.while_loop(too_long, lambda length: length / 2, jnp.ones((), dtype))
        return jax.tree.map(lambda new, old: jnp.where(square > 0, new, old), moved(length), model)

    def certify(model: ToolModel) -> Certificate:
        value, gradient = jax.value_and_grad(objective)(model)
        gap = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)) / (2 * ridge)
        return Certificate(gap, 16 * jnp.finfo(dtype).eps * jnp.abs(value), scale)

    outcome = iterate(step, certify, start, tol=tol, max_steps=max_steps)
    model = outcome.state
    stats = {
        "objective": objective(model),
        "gap": outcome.certificate.error,
        "scale": scale,
        "num_steps": outcome.num_steps,
    }
    return Solution(model, outcome.status, stats, model)
