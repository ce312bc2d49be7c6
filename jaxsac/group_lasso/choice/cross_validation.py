"""The choice of lam by cross-validation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac._checks import (
    integer_array,
    is_concrete,
    real_array,
    real_scalar,
    require,
    static_integer,
)
from jaxsac.designs import as_design
from jaxsac.group_lasso.methods.columns import restrictable
from jaxsac.group_lasso.methods.loop.rounds import applies
from jaxsac.group_lasso.problem.arguments import make_problem
from jaxsac.group_lasso.problem.null import geometric
from jaxsac.group_lasso.solver import lam_max, path
from jaxsac.losses import Loss, resolve
from jaxsac.prox import Groups, Penalty
from jaxsac.solution import Solution


class CrossValidation(NamedTuple):
    """Held-out losses for each lam: `lam` [L], `error` and its `standard_error` over folds [L],
    `fold_error` [K, L], the `best` lam, the largest lam whose error is within one standard error of
    the best, `best_within_error`, and the `status` of each fit [K, L].
    """

    lam: jax.Array
    error: jax.Array
    standard_error: jax.Array
    fold_error: jax.Array
    best: jax.Array
    best_within_error: jax.Array
    status: jax.Array


def cross_validate(
    X: Any,
    y: Any,
    groups: Groups,
    folds: Any,
    *,
    lams: Any = None,
    num_lams: int = 100,
    min_ratio: Any = 0.01,
    loss: str | Loss = "squared",
    weights: Any = None,
    sample_weight: Any = None,
    offset: Any = None,
    intercept: bool = False,
    penalty: Penalty | None = None,
    tol: Any = None,
    max_steps: Any = 20_000,
) -> CrossValidation:
    """The mean loss on held-out records, Σ_t∈fold c_t ℓ(y_t, z_t) / Σ_t∈fold c_t, for each lam and
    fold, z_t from the fit without the fold.

    `folds` int [T] in [0, K): the fold of each record; make them at random, or keep related records
    together. The fit without a fold gives its records weight 0 and scales the other weights to the
    same sum, so that lam means the same in every fit; X is never cut. `lams` [L] defaults to those
    of `path` on all records; the other keywords are those of `path`, each fit with its own
    certificate.

    ValueError for folds that are not integers, or fewer than two of them. A fit that did not
    converge shows in `status`.
    """
    design = as_design(X)
    resolved, dtype, num_samples = resolve(loss), design.dtype, design.prediction_shape[0]
    known = integer_array("folds", folds, (num_samples,))
    require(
        is_concrete(known),
        "folds decide how many fits there are and must be concrete: call cross_validate outside jit.",
    )
    labels = np.asarray(known)
    num_folds = int(labels.max()) + 1
    require(
        labels.min() >= 0 and len(np.unique(labels)) == num_folds >= 2,
        "folds must use every label in [0, K), K >= 2.",
    )
    target = resolved.target(y, design.prediction_shape, dtype)
    counts = (
        jnp.ones(num_samples, dtype)
        if sample_weight is None
        else real_array("sample_weight", sample_weight, (num_samples,), dtype)
    )
    keywords = {
        "loss": resolved,
        "weights": weights,
        "offset": offset,
        "intercept": intercept,
        "penalty": penalty,
        "tol": tol,
        "max_steps": max_steps,
    }
    if lams is None:
        place = {
            name: keyword for name, keyword in keywords.items() if name not in ("tol", "max_steps")
        }
        min_ratio = real_scalar("min_ratio", min_ratio, dtype, 0.0, strict=True)
        largest = lam_max(X, y, groups, sample_weight=sample_weight, **place)
        lams = geometric(largest, min_ratio, static_integer("num_lams", num_lams, 1))
    base = (
        jnp.zeros(design.prediction_shape, dtype)
        if offset is None
        else real_array("offset", offset, design.prediction_shape, dtype)
    )

    held_out = jnp.where(
        known[None, :] == jnp.arange(num_folds, dtype=known.dtype)[:, None], counts[None], 0.0
    )  # [K, T]
    kept = counts[None] - held_out
    kept = kept * (jnp.sum(counts) / jnp.sum(kept, axis=1, keepdims=True))

    def fit(sample_weight: jax.Array) -> Solution:
        return path(X, y, groups, lams=lams, sample_weight=sample_weight, **keywords)

    # Folds share the products with X in a batch; by working sets, which differ, or on few columns,
    # they are faster one after another.
    problem = make_problem(
        X, y, groups, 1.0, resolved, weights, kept[0], offset, intercept, penalty
    )
    if (applies(problem) and jax.default_backend() == "cpu") or (
        is_concrete(problem) and restrictable(problem)
    ):
        fits = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(fit(sample_weight) for sample_weight in kept)
        )
    else:
        fits = jax.vmap(fit)(kept)
    fold_error = jax.vmap(_errors, in_axes=(None, None, None, None, 0, 0))(
        design, resolved, target, base, held_out, fits.value
    )
    error = jnp.mean(fold_error, axis=0)
    spread = jnp.std(fold_error, axis=0, ddof=1) / jnp.sqrt(jnp.asarray(num_folds, dtype))
    lams = jnp.asarray(lams, dtype)
    at = jnp.argmin(error)
    within = jnp.max(jnp.where(error <= error[at] + spread[at], lams, 0.0))
    return CrossValidation(lams, error, spread, fold_error, lams[at], within, fits.status)


@jax.jit
def _errors(
    design: Any, loss: Loss, y: jax.Array, offset: jax.Array, held_out: jax.Array, values: Any
) -> jax.Array:
    """Mean held-out losses [L]."""

    def one(value):
        z = (
            offset
            + design.predict(value.coef)
            + jnp.broadcast_to(value.intercept[None], offset.shape)
        )
        return jnp.sum(held_out * loss.per_sample(z, y)) / jnp.sum(held_out)

    return jax.vmap(one)(values)
