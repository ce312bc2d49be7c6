"""Ridge-penalised Gibbs policies: the dense baseline (all tools look at the context), and the refit
of a sparse one (its support does).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.gibbs import rows

Scores = Callable[[np.ndarray], np.ndarray]


class RidgeFit(NamedTuple):
    """Scores z_j = <weights_j, psi> + intercept_j for tools of `support` [k], intercept_j for the
    others; and how the optimiser ended.
    """

    support: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray
    objective: float
    gradient: float
    evaluations: int

    def scores(self, features: np.ndarray) -> np.ndarray:
        """z [n, M] for feature rows [n, q]."""
        scores = np.tile(self.intercept, (len(features), 1))
        scores[:, self.support] += features @ self.weights.T
        return scores


def fit_ridge(
    features: np.ndarray,
    actions: np.ndarray,
    num_tools: int,
    budget: int,
    ridge: float,
    support: np.ndarray | None = None,
    start: RidgeFit | None = None,
    max_steps: int = 60,
) -> RidgeFit:
    """Minimise mean_t [log Z_t - sum_{j in a_t} z_tj] + ridge/2 sum_j ||theta_j||², z_tj =
    <theta_j, psi_t> [j in support] + b_j.

    Features [T, q], sets `actions` int32 [T, budget] padded with -1, M = num_tools tools, each used
    at least once. The intercepts b are not penalised. L-BFGS, each coordinate scaled by the square
    root of its curvature at the frequencies (mean uses times the feature's mean square, plus the
    ridge). Computed in float32: the objective is good to about 1e-6 of its value.
    """
    import scipy.optimize

    support = np.arange(num_tools) if support is None else np.asarray(support)
    records, size = features.shape
    uses = np.bincount(actions[actions >= 0], minlength=num_tools)
    rate = np.maximum(uses, 0.5) / records
    scale_weights = 1 / np.sqrt(rate[support, None] * np.mean(features**2, axis=0) + ridge)
    scale_intercept = 1 / np.sqrt(rate)
    weights, intercept = np.zeros((support.size, size)), np.log(rate)
    if start is not None:
        intercept = start.intercept
        _, here, there = np.intersect1d(support, start.support, return_indices=True)
        weights[here] = start.weights[there]
    in_support = np.isin(np.arange(num_tools), support)
    chosen = np.zeros((num_tools, records), bool)
    row, column = np.nonzero(actions >= 0)
    chosen[actions[row, column], row] = True
    single = functools.partial(jnp.asarray, dtype=jnp.float32)
    data = (
        single(features),
        jnp.asarray(chosen[support]),
        jnp.asarray(support),
        jnp.asarray(np.flatnonzero(~in_support)),
        single(rate),
    )

    def value_and_gradient(point):
        theta = single(point[: weights.size].reshape(weights.shape) * scale_weights)
        bias = single(point[weights.size :] * scale_intercept)
        value, (theta_gradient, bias_gradient) = _objective(
            theta, bias, *data, single(ridge), budget
        )
        gradient = [
            np.asarray(theta_gradient, float) * scale_weights,
            np.asarray(bias_gradient, float) * scale_intercept,
        ]
        return float(value), np.concatenate([part.ravel() for part in gradient])

    point = np.concatenate([(weights / scale_weights).ravel(), intercept / scale_intercept])
    limits = {"maxiter": max_steps, "maxcor": 10, "ftol": 1e-6, "gtol": 1e-6}
    found = scipy.optimize.minimize(
        value_and_gradient, point, jac=True, method="L-BFGS-B", options=limits
    )
    return RidgeFit(
        support=support,
        weights=found.x[: weights.size].reshape(weights.shape) * scale_weights,
        intercept=found.x[weights.size :] * scale_intercept,
        objective=float(found.fun),
        gradient=float(np.linalg.norm(found.jac)),
        evaluations=int(found.nfev),
    )


def tune_ridge(
    fit: Callable[[float, RidgeFit | None], RidgeFit],
    quality: Callable[[Scores], float],
    first: float,
    most: int = 8,
) -> tuple[RidgeFit, list[dict[str, Any]]]:
    """The fit of best `quality` among ridges `first` * 2^i: down from `first` while it pays, or up
    if it did not; and what was tried.

    `fit(ridge, start)` fits from a warm start, `quality(scores)` judges a function from feature
    rows [n, q] to scores [n, M]. At most `most` fits on either side.
    """
    tried: list[dict[str, Any]] = []

    def judged(ridge: float, start: RidgeFit | None) -> tuple[float, RidgeFit]:
        found = fit(ridge, start)
        value = quality(found.scores)
        tried.append(
            {
                "ridge": ridge,
                "validation": value,
                "evaluations": found.evaluations,
                "gradient": found.gradient,
            }
        )
        return value, found

    value, best = middle = judged(first, None)
    for factor in (0.5, 2.0):
        ridge, start = first, middle[1]
        for _ in range(most):
            ridge *= factor
            found = judged(ridge, start)
            if found[0] <= value:
                break
            value, best = found
            start = best
        if best is not middle[1]:
            break
    return best, tried


@functools.partial(jax.jit, static_argnames="budget")
@functools.partial(jax.value_and_grad, argnums=(0, 1))
def _objective(theta, bias, features, chosen, support, rest, rate, ridge, budget):
    """Mean negative log-likelihood plus ridge. Tools outside the support enter once, as size
    weights of a record-free background.
    """
    scores = jnp.matmul(theta, features.T) + bias[support][:, None]
    background = rows.log_size_weights(bias[rest][:, None], budget)[:, 0]
    at_most = jax.lax.cumlogsumexp(background)  # sets of at most r of the other tools
    log_rest = jnp.broadcast_to(at_most[::-1, None], (budget + 1, features.shape[0]))
    log_partition = jnp.asarray(rows.log_partition(scores, log_rest, budget))
    linear = jnp.sum(jnp.where(chosen, scores, 0)) / features.shape[0] + jnp.sum(
        bias[rest] * rate[rest]
    )
    return jnp.mean(log_partition) - linear + 0.5 * ridge * jnp.sum(theta**2)
