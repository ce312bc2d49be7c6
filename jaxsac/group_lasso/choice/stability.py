"""Stability selection: how often a group is chosen from halves of the records."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _checks
from jaxsac._arguments import arguments, either, integer, key as key_of, real, size
from jaxsac.group_lasso.methods import choose
from jaxsac.group_lasso.methods.limits import LOOP, METHODS, Lams, Limits
from jaxsac.group_lasso.methods.loop import programs
from jaxsac.group_lasso.problem.record import PROBLEM, Problem
from jaxsac.group_lasso.solver import path
from jaxsac.prox import Groups, group_norms
from jaxsac.prox.penalty import non_negative
from jaxsac.solution import Solution, Status

_BATCH = 16  # fits at a time, in bounded memory


class Stability(NamedTuple):
    """How often groups are selected over fits to halves of the records."""

    frequency: jax.Array  # of selection over the fits [G]
    selected: jax.Array  # those at or above the threshold, bool [G]
    average: jax.Array  # number of groups that a fit selects []
    bound: jax.Array  # on the expected number of selected groups of low selection probability []
    unimodal_bound: jax.Array  # the same for a unimodal distribution of the frequency []
    status: jax.Array  # the worst of each fit, int32 [2 num_pairs]


@arguments(
    key=key_of(),
    problem=PROBLEM,
    lam=either(real(low=0), real("L", low=0)),
    num_pairs=size(1),
    threshold=real(above=0.5, high=1),
    tol=real(low=0),
    max_steps=integer(low=0),
)
def stability_selection(
    key: jax.Array,
    problem: Problem,
    lam: Any,
    *,
    num_pairs: int = 50,
    threshold: Any = 0.75,
    tol: Any = None,
    max_steps: Any = 20_000,
) -> Stability:
    """How often each group is selected at `lam` from random halves of the records, in complementary
    pairs.

    A half has its weights scaled to the sum of all records' weights, so that lam means what it does
    for all. With q groups a fit on average and B = `num_pairs`, the expected number of selected
    groups whose selection probability is at most q/G is at most

    * `bound`: q²/G / (2 threshold − 1), whatever the distribution;
    * `unimodal_bound`: C q²/G, C = 1/(2(2 threshold − 1 − 1/(2B))) for thresholds up to 0.75 and
      4(1 − threshold + 1/(2B))/(1 + 1/B) above, if the distribution of the frequency over pairs is
      unimodal (their theorem 2).

    The arguments beside the problem, whose key is consumed:

    * `lam`: ≥ 0: a number, or [L]: a fit then selects what any of them does (Meinshausen & Bühlmann
      2010).
    * `threshold`: in (1/2, 1].
    * `tol`, `max_steps`: as in `solve`, for each fit.

    Returns: a `Stability`; G counts the groups that are not empty. A fit that did not converge
    shows in `status`; one that is NONFINITE makes every number NaN.

    Raises: ValueError for a threshold outside its range, a negative lam, fewer than 2 records.

    Source: Shah and Samworth (2013).
    """
    dtype, groups = problem.dtype, problem.groups
    _checks.require(problem.offset.shape[0] >= 2, "stability_selection needs at least 2 records.")
    threshold, lams = jnp.asarray(threshold), jnp.atleast_1d(non_negative(lam))
    limits = Limits.of(tol, max_steps, dtype)
    halves = _halves(key, problem.sample_weight, num_pairs=num_pairs)
    if choose(problem.at(1.0), lams, *limits).name == METHODS[LOOP]:
        chosen, status = _fits(problem, lams, limits, halves)
    else:
        fits = (
            path(problem.with_sample_weight(half), lams=lams, tol=tol, max_steps=max_steps)
            for half in halves
        )
        found = zip(*(_selected(fit, groups) for fit in fits), strict=True)
        chosen, status = (jnp.stack(part) for part in found)
    failed = jnp.any(status == Status.NONFINITE)
    frequency = jnp.where(failed, jnp.nan, jnp.mean(chosen.astype(dtype), axis=0))
    average = jnp.sum(frequency)
    share = average**2 / jnp.sum(groups.sizes > 0).astype(dtype)  # an empty one is no choice
    tail = 1.0 / (2.0 * num_pairs)
    below = 0.5 / (2.0 * threshold - 1.0 - tail)
    above = 4.0 * (1.0 - threshold + tail) / (1.0 + 2.0 * tail)
    factor = jnp.where(threshold <= 0.75, jnp.where(below > 0, below, jnp.inf), above)
    return Stability(
        frequency,
        frequency >= threshold,
        average,
        share / (2.0 * threshold - 1.0),
        share * factor,
        status,
    )


def _selected(fits: Solution, groups: Groups) -> tuple[jax.Array, jax.Array]:
    """Which groups a path selects at any of its lams [G], and the worst of its statuses."""
    active = jax.vmap(lambda coef: group_norms(coef, groups) > 0)(fits.value.coef)
    return jnp.any(active, axis=0), jnp.max(fits.status)


@jax.jit
def _fits(
    problem: Problem, lams: jax.Array, limits: Limits, halves: jax.Array
) -> tuple[jax.Array, jax.Array]:
    ladder = Lams(lams, jnp.ones_like(limits.tol), 1)

    def one(half):
        at = problem.with_sample_weight(half).at(1.0, free_lam=True)
        return _selected(programs.path(at, ladder, limits), problem.groups)

    return lax.map(one, halves, batch_size=_BATCH)


@functools.partial(jax.jit, static_argnames="num_pairs")
def _halves(key: jax.Array, counts: jax.Array, *, num_pairs: int) -> jax.Array:
    """Sample weights of both halves of each pair, [2 num_pairs, T]; with an odd number of records
    one of them is in neither.
    """
    size = counts.shape[0] // 2

    def pair(key):
        order = jax.random.permutation(key, counts.shape[0])
        masks = (
            jnp.zeros((2, counts.shape[0]), counts.dtype)
            .at[0, order[:size]]
            .set(1.0)
            .at[1, order[size : 2 * size]]
            .set(1.0)
        )
        kept = masks * counts[None, :]
        sums = jnp.sum(kept, axis=1, keepdims=True)
        return kept * (jnp.sum(counts) / jnp.where(sums == 0, 1.0, sums))

    return jax.vmap(pair)(jax.random.split(key, num_pairs)).reshape(2 * num_pairs, -1)
