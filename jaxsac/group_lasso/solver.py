"""Group lasso: minimise (1/T) Σ_t c_t ℓ(y_t, o_t + (X b)_t + intercept) + lam Σ_g w_g ‖b_g‖₂, with
a certified duality gap.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import design, integer, passes_on, real, record, size
from jaxsac.group_lasso.methods import choose, values_of
from jaxsac.group_lasso.methods.limits import Lams, Limits
from jaxsac.group_lasso.methods.loop.fista import State
from jaxsac.group_lasso.problem.basis import Basis, in_basis
from jaxsac.group_lasso.problem.free import lam_max_of
from jaxsac.group_lasso.problem.objective import Coefficients
from jaxsac.group_lasso.problem.record import Problem
from jaxsac.losses import Loss
from jaxsac.prox import Groups, Penalty
from jaxsac.solution import Reason, Solution, Status


@passes_on(
    Problem,
    X=design((Problem,)),
    lam=real(low=0),
    tol=real(low=0),
    max_steps=integer(low=0),
    state=record(State, Solution),
)
def solve(
    X: Any,
    y: Any = None,
    groups: Groups | None = None,
    lam: Any = None,
    *,
    loss: str | Loss | None = None,
    weights: Any = None,
    sample_weight: Any = None,
    offset: Any = None,
    intercept: bool | None = None,
    penalty: Penalty | None = None,
    tol: Any = None,
    max_steps: Any = 20_000,
    state: State | Solution | None = None,
) -> Solution:
    """Minimise P(b) = (1/T) Σ_t c_t ℓ(y_t, z_t) + lam Σ_g w_g ‖b_g‖₂, z = offset + X b + intercept,
    to a certified gap: `solve(problem, lam)`, or `solve(X, y, groups, lam)` with the words of
    `Problem`.

    Letters: T samples, p coefficients, G groups, M outputs.

    * `X`: a `Problem`, which then says all that `y`, `groups` and the words from `loss` to
      `penalty` would; or what these words are about, see `Problem`.
    * `lam`: ≥ 0 [], in units of ℓ per unit of coefficient.
    * `tol`: CONVERGED means gap + rounding bound ≤ tol · scale, scale being the objective of the
      null model (b = 0 but for unpenalised parts, which are fitted). None is 1e-6 in float64 and
      1e-4 in float32.
    * `max_steps`: how many steps may be taken; see below.
    * `state`: another solution of the same shapes, or its state, to start from.

    A method is chosen by what is static, and all give the same certificate; `stats["method"]` is
    its place in `METHODS`, `num_steps` counts passes over X:

    * "working_sets": concrete arrays with a large dense X on a CPU, one output and groups of not
      too unequal sizes, driven from the host. A step is a round: block descent in float32 and
      Newton steps on the groups that matter, and one product X' ρ with all of X (Massias et al.
      2018, Bertrand & Massias 2021).
    * "columns": concrete arrays with another large X on a CPU. A step is a round of the loop on the
      columns that matter, itself of at most `max_steps` steps, and one product X b and X' ρ.
    * "loop": all else, traced arrays too. A step of accelerated proximal gradient is one product
      X b and one X' ρ (Beck & Teboulle 2009); every tenth is followed by a certificate, which is
      not counted. On CPUs up to ten rounds of working sets precede it where X is dense and not
      tiny; such a step reads X, or its float32 copy, up to five times.

    Where another method stalls, the loop goes on from there, and `method` says so. Outside `jit` a
    small problem on which the loop alone stalls is solved once more, by rounds first; `num_steps`
    counts both.

    Under `vmap`, also under several, lanes that share X take their steps together, as products of
    matrices, and of many lanes those that have ended are left out. On CPUs lanes that have an X
    each, or go through working sets, are solved one after another. Differentiable in lam, y, X,
    weights, sample_weight, offset and the penalty's numbers on the support (implicit function
    theorem; the derivative of what is zero is zero), exact to rounding where `tol` is small enough
    for the support to be that of the solution.

    Returns: a `Solution`; `value` a `LinearModel`: `coef` [p], `intercept` [] or [M], `predict(X)`;
    `stats`: objective, error (the gap; also as gap), rounding, scale, num_steps, reason, method,
    lam, kkt (largest violation of the optimality conditions, in units of the gradient), num_active
    (groups with b_g ≠ 0). lam ≥ lam_max gives the null model without a step.

    Raises: ValueError for shapes that do not fit, negative lam or weights (traced ones: NONFINITE),
    unknown names, words beside a `Problem`. NaN or infinite data: NONFINITE. A tolerance that the
    dtype cannot reach: STALLED; so is lam = 0 where nothing but b ≥ 0 holds a coefficient, for
    which there is no certificate.

    Source: the estimator of arXiv 2601.08271; the dual certificates are classical (Ndiaye et al.
    2017).
    """
    if isinstance(X, Problem) and lam is None:
        y, lam = None, y
    problem = Problem.of(
        X,
        y,
        groups,
        loss=loss,
        weights=weights,
        sample_weight=sample_weight,
        offset=offset,
        intercept=intercept,
        penalty=penalty,
    )
    _checks.require(lam is not None, "lam is missing: solve(problem, lam).")
    at_lam, basis = in_basis(problem.at(lam))
    limits = Limits.of(tol, max_steps, problem.dtype)
    still, limits, start = values_of((at_lam, limits, _start(problem, basis, state)))
    solution = choose(still, limits, start).solve(at_lam, limits, start)
    return _answer(problem, solution, at_lam.lam, basis)


@passes_on(Problem, X=design((Problem,)))
def lam_max(
    X: Any,
    y: Any = None,
    groups: Groups | None = None,
    *,
    loss: str | Loss | None = None,
    weights: Any = None,
    sample_weight: Any = None,
    offset: Any = None,
    intercept: bool | None = None,
    penalty: Penalty | None = None,
) -> jax.Array:
    """The least lam at which all penalised coefficients are zero: max_g ‖X_g' ρ₀‖ / w_g, ρ₀ = −∇F
    at the null model: `lam_max(problem)`, or `lam_max(X, y, groups)` with the words of `Problem`.

    Groups of weight 0 and the intercept are fitted in the null model and left out of the maximum.

    * `X`: a `Problem`, or what the other words are about.

    Returns: [], in units of ℓ per unit of coefficient; 0 where nothing is penalised, NaN for data
    with NaN. Differentiable.

    Raises: as `solve`.
    """
    problem = Problem.of(
        X,
        y,
        groups,
        loss=loss,
        weights=weights,
        sample_weight=sample_weight,
        offset=offset,
        intercept=intercept,
        penalty=penalty,
    )
    return lam_max_of(in_basis(problem.at(0.0))[0])


@passes_on(
    Problem,
    X=design((Problem,)),
    lams=real("L", low=0),
    num_lams=size(1),
    min_ratio=real(above=0, high=1),
    tol=real(low=0),
    max_steps=integer(low=0),
)
def path(
    X: Any,
    y: Any = None,
    groups: Groups | None = None,
    *,
    lams: Any = None,
    num_lams: int = 100,
    min_ratio: Any = 0.01,
    loss: str | Loss | None = None,
    weights: Any = None,
    sample_weight: Any = None,
    offset: Any = None,
    intercept: bool | None = None,
    penalty: Penalty | None = None,
    tol: Any = None,
    max_steps: Any = 20_000,
) -> Solution:
    """Solve for several lams, each started from the last: `path(problem)`, or `path(X, y, groups)`
    with the words of `Problem`.

    * `X`: a `Problem`, or what the other words are about.
    * `lams`: ≥ 0 [L], best in falling order; None is `num_lams` values in geometric progression
      from lam_max to `min_ratio` · lam_max.
    * `tol`, `max_steps`: as in `solve`, for each lam.

    The methods are those of `solve`. By working sets driven from the host, a lam starts from the
    secant of the last two solutions on the groups that the sequential strong rule keeps (Tibshirani
    et al. 2012), and up to four lams near each other share a pass over X, which `num_steps` counts
    for each of them.

    Returns: a `Solution` with a leading axis [L] in value, status, stats and state, each lam with
    its own certificate; stats["lam"] has the values.

    Raises: as `solve`; ValueError for no lam, a negative one, `min_ratio` outside (0, 1],
    `num_lams` < 1.
    """
    problem = Problem.of(
        X,
        y,
        groups,
        loss=loss,
        weights=weights,
        sample_weight=sample_weight,
        offset=offset,
        intercept=intercept,
        penalty=penalty,
    )
    limits = Limits.of(tol, max_steps, problem.dtype)
    min_ratio = jnp.asarray(min_ratio)
    if lams is not None:
        _checks.require(lams.shape[0] > 0, "lams must hold at least one value.")
        lams = jnp.where((lams >= 0) & ~jnp.isnan(min_ratio), lams, jnp.nan)
    # A path from lam_max has lam = 0 only where the null model is a solution for every lam.
    penalised = lams is None or (_checks.is_concrete(lams) and bool(np.all(np.asarray(lams) > 0)))
    every_lam, basis = in_basis(problem.at(1.0, free_lam=not penalised))
    method = choose(every_lam, limits, min_ratio)
    solution = method.path(every_lam, Lams(lams, min_ratio, num_lams), limits)
    return _answer(problem, solution, solution.stats["lam"], basis)


def _start(problem: Problem, basis: Basis | None, state: State | Solution | None) -> State | None:
    """What is started from, without an intercept where there is none."""
    if state is None:
        return None
    at: State = state.state if isinstance(state, Solution) else state
    _checks.check_shape("state.coef", at.coef, (problem.groups.num_coefficients,))
    _checks.check_shape("state.intercept", at.intercept, problem.offset.shape[1:])
    if basis is not None:
        at = at._replace(coef=basis.to(at.coef), previous_coef=basis.to(at.previous_coef))
    if problem.intercept:
        return at
    zero = jnp.zeros_like(at.intercept)
    return at._replace(intercept=zero, previous_intercept=zero)


def _answer(problem: Problem, solution: Solution, lam: jax.Array, basis: Basis | None) -> Solution:
    """With the names that give the value a meaning, and its lam; no array of the problem."""
    point: Coefficients = solution.value
    if basis is not None:
        end: State = solution.state
        end = end._replace(coef=basis.back(end.coef), previous_coef=basis.back(end.previous_coef))
        point, solution = point._replace(coef=basis.back(point.coef)), solution._replace(state=end)
    stats = {**solution.stats, "lam": lam}
    penalty = problem.penalty
    if penalty is not None and penalty.nonnegative and penalty.ridge is None:
        # What nothing but b ≥ 0 holds has no dual point: there is no bound on what is missing.
        unheld = lam == 0
        if penalty.l1 is None and not penalty.levels:
            unheld |= jnp.any(problem.weights == 0)
        no_minimiser = unheld & (solution.status == Status.STALLED)
        stats["reason"] = jnp.where(no_minimiser, jnp.int32(Reason.NO_MINIMISER), stats["reason"])
    return solution._replace(value=problem.model(point), stats=stats)
