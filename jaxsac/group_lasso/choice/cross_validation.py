"""The choice of lam by cross-validation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, integer, real, size
from jaxsac.group_lasso.choice.criteria import best_lam
from jaxsac.group_lasso.methods import apart
from jaxsac.group_lasso.problem.free import geometric
from jaxsac.group_lasso.problem.record import PROBLEM, LinearModel, Problem
from jaxsac.group_lasso.solver import lam_max, path
from jaxsac.solution import Solution, Status


class CrossValidation(NamedTuple):
    """Losses on held-out records for every lam of a path."""

    lam: jax.Array  # [L]
    error: jax.Array  # the mean over folds [L], in units of ℓ
    standard_error: jax.Array  # of that [L]
    fold_error: jax.Array  # [K, L]
    best: jax.Array  # the lam of the least error where every fold converged, or NaN []
    best_within_error: jax.Array  # the largest lam within one standard error of the best []
    status: jax.Array  # of each fit, int32 [K, L]


@arguments(
    problem=PROBLEM,
    folds=integer("T", low=0),
    lams=real("L", low=0),
    num_lams=size(1),
    min_ratio=real(above=0, high=1),
    tol=real(low=0),
    max_steps=integer(low=0),
)
def cross_validate(
    problem: Problem,
    folds: Any,
    *,
    lams: Any = None,
    num_lams: int = 100,
    min_ratio: Any = 0.01,
    tol: Any = None,
    max_steps: Any = 20_000,
) -> CrossValidation:
    """The mean loss on held-out records, Σ_t∈fold c_t ℓ(y_t, z_t) / Σ_t∈fold c_t, for each lam and
    fold, z_t from the fit without the fold.

    The fit without a fold gives its records weight 0 and scales the other weights to the same sum,
    so that lam means the same in every fit; X is never cut.

    * `folds`: int [T] in [0, K), such as `jnp.arange(T) % 5`: the fold of each record; make them at
      random, or keep related records together.
    * `lams`: [L]; None is those of `path` on all records, for which `num_lams` and `min_ratio` are.
    * `tol`, `max_steps`: as in `solve`, for each fit, which has its own certificate.

    Returns: a `CrossValidation`; a fit that did not converge shows in `status`.

    Raises: ValueError for folds that are not integers, or fewer than two of them; as `path`.
    """
    dtype, counts = problem.dtype, problem.sample_weight
    known: jax.Array = folds
    _checks.require(
        _checks.is_concrete(known),
        "folds decide how many fits there are and must be concrete: call cross_validate outside"
        " jit.",
    )
    labels = np.asarray(known)
    num_folds = int(labels.max()) + 1
    _checks.require(
        labels.min() >= 0 and len(np.unique(labels)) == num_folds >= 2,
        "folds must use every label in [0, K), K >= 2.",
    )
    if lams is None:
        lams = geometric(lam_max(problem), min_ratio, num_lams)
    fold = jnp.arange(num_folds, dtype=known.dtype)[:, None]
    held_out = jnp.where(known[None, :] == fold, counts[None], 0.0)  # [K, T]
    kept = counts[None] - held_out
    kept = kept * (jnp.sum(counts) / jnp.sum(kept, axis=1, keepdims=True))

    def fit(sample_weight: jax.Array) -> Solution:
        part = problem.with_sample_weight(sample_weight)
        return path(part, lams=lams, tol=tol, max_steps=max_steps)

    if apart(problem.at(1.0)):
        fits = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(fit, kept))
    else:  # folds share the products with X
        fits = jax.vmap(fit)(kept)
    fold_error = jax.vmap(_errors, in_axes=(None, 0, 0))(problem, held_out, fits.value)
    error = jnp.mean(fold_error, axis=0)
    spread = jnp.std(fold_error, axis=0, ddof=1) / jnp.sqrt(jnp.asarray(num_folds, dtype))
    lams = jnp.asarray(lams, dtype)
    best = best_lam(lams, error, fits.status)
    at = jnp.argmax(lams == best)
    near = (error <= error[at] + spread[at]) & jnp.all(fits.status == Status.CONVERGED, axis=0)
    within = jnp.max(jnp.where(near, lams, 0.0)) + 0.0 * best  # NaN without a best
    return CrossValidation(lams, error, spread, fold_error, best, within, fits.status)


@jax.jit
def _errors(problem: Problem, held_out: jax.Array, values: LinearModel) -> jax.Array:
    """Mean held-out losses [L]."""

    def one(value: LinearModel) -> jax.Array:
        losses = problem.loss.per_sample(problem.offset + value.predict(problem.X), problem.y)
        return jnp.sum(held_out * losses) / jnp.sum(held_out)

    return jax.vmap(one)(values)
