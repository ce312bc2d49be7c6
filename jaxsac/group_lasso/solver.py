"""Group lasso: minimise (1/T) Σ_t c_t ℓ(y_t, o_t + (X b)_t + intercept) + lam Σ_g w_g ‖b_g‖₂, with
a certified duality gap.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac._checks import (
    check_shape,
    is_concrete,
    real_array,
    real_scalar,
    require,
    static_integer,
)
from jaxsac.group_lasso.methods.columns import prepare, restrictable, solve_on_columns
from jaxsac.group_lasso.methods.host.path import path_on_host
from jaxsac.group_lasso.methods.host.rounds import covers, solve_on_host
from jaxsac.group_lasso.methods.host.square_root import scaled_on_host
from jaxsac.group_lasso.methods.loop.batches import finish, run, set_up
from jaxsac.group_lasso.methods.loop.fista import State, start
from jaxsac.group_lasso.methods.loop.rounds import applies
from jaxsac.group_lasso.problem.arguments import make_problem as _problem
from jaxsac.group_lasso.problem.derivative import differentiable
from jaxsac.group_lasso.problem.null import geometric, lam_max_of, null_pull
from jaxsac.group_lasso.problem.record import Coefficients, Problem, recentre, with_lam
from jaxsac.losses import Loss
from jaxsac.prox import Groups, Penalty
from jaxsac.solution import Solution, Status


def solve(
    X: Any,
    y: Any,
    groups: Groups,
    lam: Any,
    *,
    loss: str | Loss = "squared",
    weights: Any = None,
    sample_weight: Any = None,
    offset: Any = None,
    intercept: bool = False,
    penalty: Penalty | None = None,
    tol: Any = None,
    max_steps: Any = 20_000,
    state: State | None = None,
) -> Solution:
    """Minimise P(b) = (1/T) Σ_t c_t ℓ(y_t, z_t) + lam Σ_g w_g ‖b_g‖₂, z = offset + X b + intercept,
    to a certified gap.

    Letters: T samples, p coefficients, G groups, M outputs. X is a matrix [T, p] or a design of
    `jaxsac.designs`; columns are used as they are: centring and standardising them is the caller's
    choice. y, z and `offset` are [T], or [T, M] for a design with M outputs.

    * `groups`: `jaxsac.Groups` over the p coefficients. `lam` ≥ 0, in units of ℓ per unit of
      coefficient.
    * `loss`: "squared", "logistic" (y = ±1), "huber", "sqrt", "poisson", "multinomial", or a
      `losses.Loss`. With "sqrt" F is (Σ_t c_t r_t² / T)^½, r = y − z, for which the right lam does
      not depend on the noise (`simulated_lam`; see `losses.SquareRoot`).
    * `weights` w ≥ 0 [G]: None is 1 for every group, "sqrt_size" the square root of its size; 0 is
      unpenalised.
    * `sample_weight` c ≥ 0 [T]: None is 1. They are not normalised: P divides by T. A record of
      weight 2 is the same record twice in a data set whose T is not changed.
    * `intercept`: an unpenalised constant, one for each output.
    * `penalty`: a `jaxsac.prox.Penalty` to be added: a ridge, an l1 norm, families of groups, b ≥
      0. Its norms are multiplied by lam. Where nothing but b ≥ 0 holds a coefficient (lam = 0,
      weight 0) there is no certificate: STALLED.
    * `tol`: CONVERGED means gap + rounding bound ≤ tol · scale, scale being the objective of the
      null model (b = 0 but for unpenalised parts, which are fitted). None is 1e-6 in float64 and
      1e-4 in float32. `max_steps` counts pairs of products with X, or rounds.
    * `state`: that of another solution of the same shapes, to start from.

    Returns a `Solution`: `value.coef` [p], `value.intercept` [] or [M]; `stats`: objective, gap,
    rounding, scale, num_steps, kkt (largest violation of the optimality conditions, in units of the
    gradient), num_active (groups with b_g ≠ 0). lam ≥ lam_max gives the null model without a step.

    Three methods, one certificate. Traced arrays, and small problems, go through a compiled loop of
    accelerated proximal gradient steps (Beck & Teboulle 2009), which on CPUs up to ten rounds of
    working sets precede where X is dense and not tiny. Concrete arrays with a large dense X on a
    CPU, one output and groups of not too unequal sizes go through working sets driven from the
    host. A round of either kind is block descent in float32, Newton steps on the support, and one
    pass over X (`num_steps` counts those; Massias et al. 2018, Bertrand & Massias 2021). With more
    in the penalty, several outputs or very unequal groups, concrete arrays with a large X on a CPU
    go through rounds of the loop on the columns that matter, each of up to `max_steps` steps and
    one pass over X (`num_steps` counts the rounds). Where any of these stalls, the loop goes on
    from there.

    Under `vmap`, also under several, lanes that share X take their steps together, as products of
    matrices, and of many lanes those that have ended are left out. On CPUs lanes that have an X
    each, or go through working sets, are solved one after another. Differentiable in lam, y, X,
    weights, sample_weight, offset and the penalty's numbers on the support (implicit function
    theorem; the derivative of what is zero is zero), exact to rounding where `tol` is small enough
    for the support to be that of the solution.

    ValueError: shapes that do not fit, negative lam or weights (traced ones: NONFINITE), unknown
    names. NaN or infinite data: NONFINITE. A tolerance that the dtype cannot reach: STALLED. The
    estimator is that of arXiv 2601.08271; the dual certificates are classical (Ndiaye et al. 2017).
    """
    problem = _problem(X, y, groups, lam, loss, weights, sample_weight, offset, intercept, penalty)
    dtype = problem.offset.dtype
    tol = tolerance(tol, dtype)
    if state is not None:
        check_shape("state.coef", state.coef, (groups.num_coefficients,))
        check_shape("state.intercept", state.intercept, problem.offset.shape[1:])
        if not intercept:
            state = state._replace(
                intercept=jnp.zeros_like(state.intercept),
                previous_intercept=jnp.zeros_like(state.previous_intercept),
            )
    max_steps = step_limit(max_steps)
    # Outside jit the values that are differentiated are known: they are solved on the host as any
    # others.
    still = problem
    if not is_concrete(problem, tol, state):  # else there is nothing to stop, and it takes time
        still, tol, state = lax.stop_gradient((problem, tol, state))
    concrete = is_concrete(still, tol, max_steps, state)
    by_blocks = concrete and for_host(still)
    if not by_blocks and not (concrete and restrictable(still)):
        return _solve(problem, tol, max_steps, state)
    at = None if state is None else recentre(still, Coefficients(state.coef, state.intercept))
    if not by_blocks:
        solution = solve_on_columns(still, prepare(still), tol, max_steps, at)
    elif still.loss.separable:
        solution = solve_on_host(still, float(tol), int(max_steps), at)
    else:  # whatever the status: it is the loop's
        solution = _solve(
            still, tol, max_steps, scaled_on_host(still, float(tol), int(max_steps), at)
        )
        return solution if is_concrete(problem) else differentiable(problem, solution)
    if int(solution.status) in (Status.CONVERGED, Status.MAX_STEPS):
        return solution if is_concrete(problem) else differentiable(problem, solution)
    return _gone_on(problem, tol, max_steps, solution, state)


def _gone_on(
    problem: Problem,
    tol: jax.Array,
    max_steps: jax.Array,
    unfinished: Solution,
    state: State | None = None,
) -> Solution:
    """What rounds could not reach, the loop may: it goes on from there, or from `state` where that
    is not finite, and has the last word.
    """
    done = unfinished.stats["num_steps"]
    solution = _solve(
        problem,
        tol,
        max_steps - done,
        unfinished.state if int(unfinished.status) == Status.STALLED else state,
    )
    return solution._replace(
        stats={**solution.stats, "num_steps": solution.stats["num_steps"] + done}
    )


def lam_max(
    X: Any,
    y: Any,
    groups: Groups,
    *,
    loss: str | Loss = "squared",
    weights: Any = None,
    sample_weight: Any = None,
    offset: Any = None,
    intercept: bool = False,
    penalty: Penalty | None = None,
) -> jax.Array:
    """The least lam at which all penalised coefficients are zero: max_g ‖X_g' ρ₀‖ / w_g, ρ₀ = −∇F
    at the null model, [].

    The keywords are those of `solve`; groups of weight 0 and the intercept are fitted in the null
    model and left out of the maximum. 0 where nothing is penalised, NaN for data with NaN.
    Differentiable.
    """
    return lam_max_of(
        _problem(X, y, groups, 0.0, loss, weights, sample_weight, offset, intercept, penalty)
    )


def path(
    X: Any,
    y: Any,
    groups: Groups,
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
) -> Solution:
    """Solve for `lams` [L], best in falling order, each started from the last.

    None is `num_lams` values in geometric progression from lam_max to min_ratio · lam_max.

    A `Solution` with a leading axis [L] in value, status, stats and state, each lam with its own
    certificate; stats["lam"] has the values. The keywords are those of `solve`, `max_steps` counts
    for each lam; the methods are those of `solve`. Where working sets are driven from the host, a
    lam starts from the secant of the last two solutions on the groups that the sequential strong
    rule keeps (Tibshirani et al. 2012), and up to four lams near each other share a pass over X,
    which `num_steps` counts for each of them.
    """
    problem = _problem(X, y, groups, 0.0, loss, weights, sample_weight, offset, intercept, penalty)
    dtype = problem.offset.dtype
    tol = tolerance(tol, dtype)
    min_ratio = real_scalar("min_ratio", min_ratio, dtype, 0.0, strict=True)
    num_lams, max_steps = static_integer("num_lams", num_lams, 1), step_limit(max_steps)
    if lams is not None:
        lams = real_array("lams", lams, ("L",), dtype)
        require(lams.shape[0] > 0, "lams must hold at least one value.")
        require(
            not is_concrete(lams) or not bool(np.any(np.asarray(lams) < 0)), "lams must be >= 0."
        )
        lams = jnp.where(lams >= 0, lams, jnp.nan)
    penalised = lams is None or (is_concrete(lams) and bool(np.all(np.asarray(lams) > 0)))
    # A path from lam_max has lam = 0 only where the null model is a solution for every lam.
    problem = dataclasses.replace(problem, free_lam=not penalised)
    at_one = with_lam(problem, jnp.ones_like(problem.lam))
    concrete = is_concrete(problem, tol, max_steps, min_ratio) and penalised
    by_blocks = concrete and for_host(at_one)
    if by_blocks and problem.loss.separable:

        def otherwise(here: Problem, unfinished: Solution) -> Solution:
            return _gone_on(here, tol, max_steps, unfinished)

        return path_on_host(
            problem, lams, num_lams, float(min_ratio), float(tol), int(max_steps), otherwise
        )
    if not by_blocks and not (concrete and restrictable(at_one)):
        return compiled_path(problem, lams, min_ratio, tol, max_steps, num_lams=num_lams)
    setup = None if by_blocks else prepare(problem)

    def solved(here: Problem, at: Coefficients | None) -> Solution:
        if setup is None:
            return _solve(
                here, tol, max_steps, scaled_on_host(here, float(tol), int(max_steps), at)
            )
        answer = solve_on_columns(here, setup, tol, max_steps, at)
        return (
            answer
            if int(answer.status) in (Status.CONVERGED, Status.MAX_STEPS)
            else _gone_on(here, tol, max_steps, answer)
        )

    return _one_after_another(
        problem,
        geometric(lam_max_of(problem), min_ratio, num_lams) if lams is None else lams,
        solved,
    )


def _one_after_another(
    problem: Problem, lams: jax.Array, solved: Callable[[Problem, Coefficients | None], Solution]
) -> Solution:
    """The path whose solution at a lam is `solved(problem, at)`, from where the last one ended."""
    found, at = [], None
    for lam in lams:
        answer = solved(with_lam(problem, lam), at)
        answer.stats["lam"] = lam
        found.append(answer)
        at = recentre(problem, answer.value)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def for_host(problem: Problem) -> bool:
    """Whether the host-driven method is for a concrete problem: its penalty has nothing beside the
    norms of the groups, and it is large.
    """
    return problem.extra is None and covers(problem)


def tolerance(tol: Any, dtype: Any) -> jax.Array:
    return real_scalar(
        "tol", (1e-4 if dtype == jnp.float32 else 1e-6) if tol is None else tol, dtype, 0.0
    )


def step_limit(max_steps: Any) -> jax.Array:
    if is_concrete(max_steps):
        static_integer("max_steps", max_steps, 0)
    return jnp.asarray(max_steps, jnp.int32)


@jax.jit
def _solve(problem: Problem, tol: jax.Array, max_steps: jax.Array, state: State | None) -> Solution:
    still, tol, state = lax.stop_gradient((problem, tol, state))
    setup = set_up(still, measured=not applies(still))
    if state is None:
        inner = start(setup.null)
    else:
        last = recentre(still, Coefficients(state.coef, state.intercept))
        before = recentre(still, Coefficients(state.previous_coef, state.previous_intercept))
        inner = State(*last, *before, state.momentum, state.inflation)
    return finish(problem, still, run(still, setup, tol, max_steps, inner))


@functools.partial(jax.jit, static_argnames="num_lams")
def compiled_path(
    problem: Problem,
    lams: jax.Array | None,
    min_ratio: jax.Array,
    tol: jax.Array,
    max_steps: jax.Array,
    *,
    num_lams: int,
) -> Solution:
    still, tol = lax.stop_gradient((problem, tol))
    setup = set_up(still, measured=True)
    if lams is None:
        largest = null_pull(with_lam(problem, jnp.zeros_like(problem.lam)), setup.null)
        lams = geometric(largest, min_ratio, num_lams)

    def one(at: State, lam: jax.Array):
        here = with_lam(problem, lam)
        quiet = lax.stop_gradient(here)
        outcome = run(quiet, setup, tol, max_steps, at)
        solution = finish(here, quiet, outcome)
        solution.stats["lam"] = lam
        end = outcome.state
        return start(Coefficients(end.coef, end.intercept))._replace(
            inflation=end.inflation
        ), solution

    return lax.scan(one, start(setup.null), lams)[1]
