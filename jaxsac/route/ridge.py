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
    """Scores z_j = ⟨coef_j, ψ⟩ + intercept_j for tools of the support, intercept_j for the others;
    and how the optimiser ended.

    * `support`: int [k]; `coef`: [k, q]; `intercept`: [M].
    * `objective`, `gradient`: the value and the norm of the (scaled) gradient at the end.
    * `evaluations`: how often both were computed.
    """

    support: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    objective: float
    gradient: float
    evaluations: int

    def scores(self, features: np.ndarray) -> np.ndarray:
        """z [n, M] for feature rows [n, q]."""
        scores = np.tile(self.intercept, (len(features), 1))
        scores[:, self.support] += features @ self.coef.T
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
    weights: np.ndarray | None = None,
) -> RidgeFit:
    """Minimise mean_t c_t [log Z_t − Σ_{j in a_t} z_tj] + ridge/2 Σ_j ‖θ_j‖², with z_tj =
    ⟨θ_j, ψ_t⟩ [j in support] + b_j.

    L-BFGS, each coordinate scaled by the square root of its curvature at the frequencies (mean uses
    times the feature's mean square, plus the ridge). Computed in float32: the objective is good to
    about 1e-6 of its value. The intercepts b are not penalised.

    * `features`: rows ψ [T, q].
    * `actions`: sets, int32 [T, budget] padded with −1.
    * `num_tools`: M tools, each used at least once.
    * `support`: the tools with θ, int [k]; None: all.
    * `start`: a fit to start from.
    * `weights`: c of mean 1, [T]; None is 1.
    """
    import scipy.optimize

    support = np.arange(num_tools) if support is None else np.asarray(support)
    records, size = features.shape
    weights = np.ones(records) if weights is None else np.asarray(weights)
    row, column = np.nonzero(actions >= 0)
    uses = np.bincount(actions[row, column], weights[row], num_tools)
    rate = np.maximum(uses, 0.5) / records
    coef, intercept = np.zeros((support.size, size)), np.log(rate)
    if start is not None:
        intercept = start.intercept
        _, here, there = np.intersect1d(support, start.support, return_indices=True)
        coef[here] = start.coef[there]
    curvature = rate[support, None] * np.mean(features**2, axis=0) + ridge
    scale = 1 / np.sqrt(np.concatenate([curvature.ravel(), rate]))
    chosen = np.zeros((num_tools, records), bool)
    chosen[actions[row, column], row] = True
    rest = np.setdiff1d(np.arange(num_tools), support)
    single = functools.partial(jnp.asarray, dtype=jnp.float32)
    sets = jnp.asarray(chosen[support]), jnp.asarray(support), jnp.asarray(rest)
    shares = single(uses / records), single(weights / records)
    data = single(features), *sets, *shares, single(ridge)

    def parts(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return point[: coef.size].reshape(coef.shape), point[coef.size :]

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _objective(*map(single, parts(point * scale)), *data, budget)
        flat = np.concatenate([np.asarray(part, float).ravel() for part in gradient])
        return float(value), flat * scale

    found = scipy.optimize.minimize(
        value_and_gradient,
        np.concatenate([coef.ravel(), intercept]) / scale,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_steps, "maxcor": 10, "ftol": 1e-6, "gtol": 1e-6},
    )
    gradient = float(np.linalg.norm(found.jac))
    return RidgeFit(support, *parts(found.x * scale), float(found.fun), gradient, int(found.nfev))


def tune_ridge(
    fit: Callable[[float, RidgeFit | None], RidgeFit],
    quality: Callable[[Scores], float],
    first: float,
    most: int = 8,
) -> tuple[RidgeFit, list[dict[str, Any]]]:
    """The fit of best `quality` among the ridges first · 2^i: down from `first` while it pays, or
    up if it did not; and what was tried.

    * `fit`: `fit(ridge, start)` fits from a warm start.
    * `quality`: judges a function from feature rows [n, q] to scores [n, M]; larger is better.
    * `most`: at most so many fits on either side.
    """
    tried: list[dict[str, Any]] = []

    def judged(ridge: float, start: RidgeFit | None) -> tuple[float, RidgeFit]:
        found = fit(ridge, start)
        value = quality(found.scores)
        row = {"ridge": ridge, "validation": value, "evaluations": found.evaluations}
        tried.append(row | {"gradient": found.gradient})
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
def _objective(theta, bias, features, chosen, support, rest, rate, share, ridge, budget):
    """Weighted mean negative log-likelihood plus ridge. Tools outside the support enter once, as
    size weights of a record-free background.
    """
    scores = jnp.matmul(theta, features.T) + bias[support][:, None]
    background = rows.log_size_weights(bias[rest][:, None], budget)[:, 0]
    at_most = jax.lax.cumlogsumexp(background)  # sets of at most r of the other tools
    log_rest = jnp.broadcast_to(at_most[::-1, None], (budget + 1, features.shape[0]))
    log_partition = jnp.asarray(rows.log_partition(scores, log_rest, budget))
    linear = jnp.sum(jnp.where(chosen, scores * share[None, :], 0)) + jnp.sum(
        bias[rest] * rate[rest]
    )
    return jnp.sum(share * log_partition) - linear + 0.5 * ridge * jnp.sum(theta**2)
