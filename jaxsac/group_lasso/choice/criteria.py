"""Which groups to keep: degrees of freedom, the extended Bayesian information criterion, stability
selection, and a refit on the support.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import gammaln

from jaxsac._checks import is_concrete, real_array, real_scalar, require, static_integer
from jaxsac.group_lasso.problem.arguments import make_problem
from jaxsac.group_lasso.problem.record import (
    Coefficients,
    Problem,
    recentre,
    with_lam,
    with_sample_weight,
)
from jaxsac.group_lasso.problem.support import degrees, indices_of, restrict
from jaxsac.group_lasso.solver import compiled_path, for_host, path, solve, step_limit, tolerance
from jaxsac.losses import Loss, Squared, SquareRoot
from jaxsac.prox import Groups, Penalty, group_norms
from jaxsac.solution import Solution

_BATCH = 16  # fits at a time, in bounded memory
_REFIT_LAM = 1e12  # in units of lam_max: nothing that keeps a weight moves


class Criterion(NamedTuple):
    """For each lam [L]: `score`, `degrees` of freedom, `num_active` groups; `best` is the lam of
    the least score, `solution` the path.
    """

    lam: jax.Array
    score: jax.Array
    degrees: jax.Array
    best: jax.Array
    solution: Solution


class Stability(NamedTuple):
    """`frequency` [G] of selection over the fits, `selected` bool [G] those at or above the
    threshold, `average` number of groups a fit selects, `bound` and `unimodal_bound` on the
    expected number of selected groups of low selection probability, `status` of each fit.
    """

    frequency: jax.Array
    selected: jax.Array
    average: jax.Array
    bound: jax.Array
    unimodal_bound: jax.Array
    status: jax.Array


def degrees_of_freedom(
    X: Any,
    y: Any,
    groups: Groups,
    lam: Any,
    value: Coefficients,
    *,
    loss: str | Loss = "squared",
    weights: Any = None,
    sample_weight: Any = None,
    offset: Any = None,
    intercept: bool = False,
    penalty: Penalty | None = None,
) -> jax.Array:
    """The degrees of freedom of a solution, df = Σ_t ∂ẑ_t/∂y_t on its support, [].

    tr(X_S K^-1 X_S' C / T), K = X_S' C X_S / T + lam blockdiag(w_g/‖b_g‖ (I − b_g b_g'/‖b_g‖²)) and
    what the penalty and the intercept add (Kato 2009; Vaiter et al. 2017): for Gaussian noise of
    variance σ² the expectation of df is Σ_t cov(ẑ_t, y_t)/σ² (Stein 1981). For other losses C is
    ∇²F, the usual generalisation. `value` is that of a solution at `lam`, and the keywords are
    those it had. On concrete arrays only the columns of the support are touched, at a cost cubic in
    their number; traced ones form a p × p matrix. NaN for what is not finite.
    """
    problem = make_problem(
        X, y, groups, lam, loss, weights, sample_weight, offset, intercept, penalty
    )
    return _degrees(problem, recentre(problem, Coefficients(*value)))


def support_margin(
    X: Any,
    y: Any,
    groups: Groups,
    lam: Any,
    value: Coefficients,
    *,
    loss: str | Loss = "squared",
    weights: Any = None,
    sample_weight: Any = None,
    offset: Any = None,
    intercept: bool = False,
    penalty: Penalty | None = None,
) -> jax.Array:
    """How far a solution is from another support: min_g |‖κ b_g + X_g' ρ‖ / (lam w_g) − 1|, κ the
    largest curvature of a column, [].

    For a group at zero it is 1 − ‖X_g' ρ‖ / (lam w_g), the margin of strict complementarity; for
    another, its norm in units of the step that lam w_g takes. The derivative of a solution is that
    of its support: where the margin is within the errors of the solution (say below 100 times the
    square root of its relative gap) it may be one-sided, or that of a support which is not quite
    the right one. The keywords are those of `solve`; +inf where nothing is penalised, NaN for what
    is not finite.
    """
    problem = make_problem(
        X, y, groups, lam, loss, weights, sample_weight, offset, intercept, penalty
    )
    return _margin_of(problem, Coefficients(*value))


@jax.jit
def _margin_of(problem: Problem, value: Coefficients) -> jax.Array:
    problem, value = lax.stop_gradient((problem, value))
    at = recentre(problem, value)
    predictions = problem.predict(at)
    pull = problem.design.adjoint(problem.residual(predictions))
    bent = problem.curvature_product(predictions, jnp.ones_like(predictions)).reshape(
        problem.num_samples, -1
    )
    curvature = jnp.max(problem.design.column_squares(jnp.max(jnp.abs(bent), axis=1)))
    pull = pull if problem.ridge is None else pull - problem.ridge * at.coef
    return problem.whole_penalty.margin(at.coef, pull, problem.lam, curvature)


def ebic(
    X: Any,
    y: Any,
    groups: Groups,
    *,
    gamma: Any = 0.5,
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
) -> Criterion:
    """The extended Bayesian information criterion over a path: −2 log L + df log N + 2 gamma log
    C(G, k) (Chen & Chen 2008).

    k is the number of groups that are not zero among the G, df the exact degrees of freedom, N =
    Σ_t c_t. −2 log L is 2 T F for a loss that is a negative log-likelihood, and N log(Σ_t c_t r_t²
    / N) for "squared" and "sqrt", whose noise level is not known. gamma = 0 is the ordinary
    criterion; 0.5 suits G near or above N. The other keywords are those of `path`; outside jit.
    Each df costs the cube of the support's coefficients: end the path where supports are no longer
    of interest.
    """
    keywords: dict[str, Any] = dict(
        loss=loss, weights=weights, sample_weight=sample_weight, offset=offset, intercept=intercept, penalty=penalty
    )  # fmt: skip
    found = path(
        X,
        y,
        groups,
        lams=lams,
        num_lams=num_lams,
        min_ratio=min_ratio,
        tol=tol,
        max_steps=max_steps,
        **keywords,
    )
    require(is_concrete(found.value), "ebic counts supports on the host: call it outside jit.")
    problem = make_problem(
        X, y, groups, 0.0, loss, weights, sample_weight, offset, intercept, penalty
    )
    gamma = real_scalar("gamma", gamma, problem.offset.dtype, 0.0)
    freedom = []
    for k, lam in enumerate(found.stats["lam"]):
        at = jax.tree.map(lambda leaf, k=k: leaf[k], found.value)
        freedom.append(_degrees(with_lam(problem, lam), recentre(problem, at)))
    freedom = jnp.stack(freedom)
    score = _scores(problem, found.value, found.stats["num_active"], freedom, gamma)
    return Criterion(
        found.stats["lam"], score, freedom, found.stats["lam"][jnp.nanargmin(score)], found
    )


def stability_selection(
    key: jax.Array,
    X: Any,
    y: Any,
    groups: Groups,
    lam: Any,
    *,
    num_pairs: int = 50,
    threshold: Any = 0.75,
    loss: str | Loss = "squared",
    weights: Any = None,
    sample_weight: Any = None,
    offset: Any = None,
    intercept: bool = False,
    penalty: Penalty | None = None,
    tol: Any = None,
    max_steps: Any = 20_000,
) -> Stability:
    """How often each group is selected at `lam` from random halves of the records, in complementary
    pairs (Shah & Samworth 2013).

    `lam` is a number, or [L]: a fit then selects what any of them does (Meinshausen & Bühlmann
    2010). A half has its weights doubled (in total: those of all records), so that lam means what
    it does for all. With q groups a fit on average and B = `num_pairs`, the expected number of
    selected groups whose selection probability is at most q/G is at most

    * `bound`: q²/G / (2 threshold − 1), whatever the distribution;
    * `unimodal_bound`: C q²/G, C = 1/(2(2 threshold − 1 − 1/(2B))) for thresholds up to 0.75 and
      4(1 − threshold + 1/(2B))/(1 + 1/B) above, if the distribution of the frequency over pairs is
      unimodal (their theorem 2).

    The key is consumed; the other keywords are those of `solve`. ValueError for a threshold outside
    (1/2, 1].
    """
    num_pairs = static_integer("num_pairs", num_pairs, 1)
    problem = make_problem(
        X, y, groups, 0.0, loss, weights, sample_weight, offset, intercept, penalty
    )
    dtype, records = problem.offset.dtype, problem.num_samples
    require(records >= 2, "stability_selection needs at least 2 records.")
    threshold = real_scalar("threshold", threshold, dtype)
    if is_concrete(threshold):
        require(
            0.5 < float(threshold) <= 1.0,
            f"threshold must lie in (0.5, 1], got {float(threshold):g}.",
        )
    lams = real_array("lam", lam, (() if jnp.ndim(lam) == 0 else ("L",)), dtype)
    require(not is_concrete(lams) or not bool(np.any(np.asarray(lams) < 0)), "lam must be >= 0.")
    halves = _halves(key, problem.sample_weight, num_pairs=num_pairs)
    if is_concrete(problem, lams, tol, max_steps) and for_host(
        with_lam(problem, jnp.ones_like(problem.lam))
    ):
        keywords: dict[str, Any] = dict(
            loss=loss,
            weights=weights,
            offset=offset,
            intercept=intercept,
            tol=tol,
            max_steps=max_steps,
        )
        fits = (
            path(X, y, groups, lams=jnp.atleast_1d(lams), sample_weight=half, **keywords)
            for half in halves
        )
        chosen, status = (
            jnp.stack(part) for part in zip(*(_selected(fit, groups) for fit in fits), strict=True)
        )
    else:
        chosen, status = _fits(
            problem, jnp.atleast_1d(lams), tolerance(tol, dtype), step_limit(max_steps), halves
        )
    frequency = jnp.mean(chosen.astype(dtype), axis=0)
    average = jnp.sum(frequency)
    share = average**2 / groups.num_groups
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


def refit(
    X: Any,
    y: Any,
    groups: Groups,
    value: Coefficients,
    *,
    loss: str | Loss = "squared",
    sample_weight: Any = None,
    offset: Any = None,
    intercept: bool = False,
    penalty: Penalty | None = None,
    tol: Any = None,
    max_steps: Any = 20_000,
) -> Solution:
    """The unpenalised fit on the groups that are not zero in `value`: least squares, or the loss's,
    without the bias of the penalty.

    Solves with weight 0 on those groups and a lam that holds the others at zero, by damped Newton
    steps; `penalty` may add a ridge, which makes the fit unique where there are more coefficients
    than records. Certified as every solution.
    """
    chosen = group_norms(value.coef, groups) > 0
    require(
        penalty is None or (penalty.l1 is None and not penalty.levels and not penalty.nonnegative),
        "refit's penalty may only be a ridge.",
    )
    weights = jnp.where(chosen, 0.0, 1.0).astype(value.coef.dtype)
    problem = make_problem(X, y, groups, 0.0, loss, None, sample_weight, offset, intercept)
    pulls = group_norms(
        problem.design.adjoint(problem.residual(jnp.zeros_like(problem.offset))), groups
    )
    lam = _REFIT_LAM * jnp.maximum(jnp.max(pulls), jnp.finfo(pulls.dtype).tiny)
    keywords: dict[str, Any] = dict(
        loss=loss,
        weights=weights,
        sample_weight=sample_weight,
        offset=offset,
        intercept=intercept,
        penalty=penalty,
    )
    return solve(X, y, groups, lam, tol=tol, max_steps=max_steps, **keywords)


def _degrees(problem: Problem, point: Coefficients) -> jax.Array:
    if not is_concrete(problem, point):
        return _degrees_of(problem, point)
    moving = ~np.asarray(problem.whole_penalty.pinned(point.coef, problem.lam))
    indices = jnp.asarray(indices_of(moving))
    return _degrees_of(
        restrict(problem, indices),
        point._replace(coef=point.coef.at[indices].get(mode="fill", fill_value=0)),
    )


_degrees_of = jax.jit(degrees)


@jax.jit
def _scores(
    problem: Problem,
    values: Coefficients,
    num_active: jax.Array,
    freedom: jax.Array,
    gamma: jax.Array,
) -> jax.Array:
    total, num_groups = jnp.sum(problem.sample_weight), problem.groups.num_groups

    def deviance(value):
        z = problem.offset + problem.predict(recentre(problem, value))
        if not isinstance(problem.loss, Squared | SquareRoot):
            return (
                2.0 * problem.num_samples * problem.loss.value(z, problem.y, problem.sample_weight)
            )
        outputs = 1 if z.ndim == 1 else z.shape[1]
        squares = 2.0 * jnp.sum(problem.sample_weight * problem.loss.per_sample(z, problem.y))
        return outputs * total * jnp.log(squares / (outputs * total))

    active = num_active.astype(freedom.dtype)
    ways = gammaln(num_groups + 1.0) - gammaln(active + 1.0) - gammaln(num_groups - active + 1.0)
    return lax.map(deviance, values) + freedom * jnp.log(total) + 2.0 * gamma * ways


def _selected(fits: Solution, groups: Groups) -> tuple[jax.Array, jax.Array]:
    """Which groups a path selects at any of its lams [G], and the worst of its statuses."""
    active = jax.vmap(lambda coef: group_norms(coef, groups) > 0)(fits.value.coef)
    return jnp.any(active, axis=0), jnp.max(fits.status)


@jax.jit
def _fits(
    problem: Problem, lams: jax.Array, tol: jax.Array, max_steps: jax.Array, halves: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def one(half):
        here = with_sample_weight(problem, half)
        return _selected(
            compiled_path(here, lams, jnp.ones_like(tol), tol, max_steps, num_lams=1),
            problem.groups,
        )

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
