"""The compiled loop, from a state to a certified outcome: of one problem, or of a batch, whose
lanes share what they have in common; and its programs: one problem, a path, and what another method
left unfinished.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxsac import _checks, _loops
from jaxsac._iterate import Certificate, Outcome, iterate, iterate_lanes
from jaxsac.group_lasso.methods.limits import LOOP, Lams, Limits
from jaxsac.group_lasso.methods.loop.fista import (
    Curvature,
    Iterate,
    State,
    begin,
    fista_step,
    measure_curvature,
    start,
    state_of,
)
from jaxsac.group_lasso.methods.loop.rounds import Scaled, applies, fixed_model, run_rounds
from jaxsac.group_lasso.problem.certificate import duality_gap, violation
from jaxsac.group_lasso.problem.free import (
    fit_null,
    geometric,
    null_objective,
    null_pull,
    refit_target,
)
from jaxsac.group_lasso.problem.objective import (
    Coefficients,
    Objective,
    recentre,
    shifted,
    uncentre,
    uncentred,
    when,
    with_lam,
)
from jaxsac.group_lasso.problem.support import carrying, with_derivatives
from jaxsac.solution import Reason, Solution, Status

_LOOP: dict[str, Any] = dict(check_every=10, patience=50)  # 500 steps without a smaller gap


class Setup(NamedTuple):
    """What does not depend on lam: the null model, its objective, ‖C^½ x_j‖ [p], and what the two
    methods need: `fixed_model` and the curvature, which are None where they are to be found when
    they are needed, if they are.
    """

    null: Coefficients
    scale: jax.Array
    columns: jax.Array
    model: Scaled | None
    curvature: Curvature | None


def set_up(problem: Objective, *, measured: bool) -> Setup:
    columns = jnp.sqrt(problem.design.column_squares(problem.sample_weight))
    null, predictions = fit_null(problem, columns)
    model = fixed_model(problem, columns) if applies(problem) else None
    return Setup(
        null,
        null_objective(problem, predictions),
        columns,
        model,
        _curvature(problem) if measured else None,
    )


@custom_vmap
def run(
    problem: Objective, setup: Setup, tol: jax.Array, max_steps: jax.Array, state: State
) -> Outcome:
    """The loop from a state, in centred coordinates, to an Outcome with one; nothing here is
    differentiated.
    """

    def certified(point: Coefficients) -> Certificate:
        return certify(problem, setup, tol, point)

    def run_from(state: State, max_steps: jax.Array) -> Outcome:
        step = functools.partial(fista_step, problem, setup.curvature or _curvature(problem))
        ended = iterate(
            step,
            lambda at: certified(at.point),
            begin(problem, state),
            tol=tol,
            max_steps=max_steps,
            **_LOOP,
        )
        return ended._replace(state=state_of(ended.state))

    def rounds_first(state: State, max_steps: jax.Array) -> Outcome:
        model = setup.model or fixed_model(problem, setup.columns)
        early = run_rounds(
            problem,
            setup.columns,
            model,
            Coefficients(state.coef, state.intercept),
            certified,
            tol,
            max_steps,
        )
        finite = early.status != Status.NONFINITE
        reached = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), start(early.state), state
        )

        def go_on() -> Outcome:
            late = run_from(reached, max_steps - early.num_steps)
            return late._replace(num_steps=late.num_steps + early.num_steps)

        return when(early.status != Status.CONVERGED, go_on, early._replace(state=reached))

    if not applies(problem):
        return run_from(state, max_steps)
    # Block after block is the wrong order of work elsewhere.
    return _loops.platform_dependent(state, max_steps, cpu=rounds_first, default=run_from)


@run.def_vmap
def _run_batch(size: int, batched: Any, *arguments: Any) -> tuple[Outcome, Any]:
    """The lanes in step if they share the products with X; else, on CPUs, one after another, for
    working sets differ, lanes that have an X each share nothing, and a batch waits for its slowest.
    """
    own, shared = eqx.partition(arguments, tuple(batched))

    def one_by_one(own: Any, shared: Any) -> Outcome:
        if jax.tree.leaves(own[1].model):  # made for one lane at a time it takes the memory of one
            own, shared = _without_model(own), _without_model(shared)
        return lax.map(lambda lane: run(*eqx.combine(lane, shared)), own)

    def in_step(own: Any, shared: Any) -> Outcome:
        return _in_step(_without_model(own), _without_model(shared))

    def of_a_lane(leaf: jax.Array, is_own: bool) -> Any:  # its shape, for there may be no lane
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if is_own else leaf

    a_lane = jax.tree.map(of_a_lane, arguments[0], batched[0])
    if _shares_design(own) and not applies(a_lane):
        outcome = in_step(own, shared)
    else:
        outcome = _loops.platform_dependent(own, shared, cpu=one_by_one, default=in_step)
    return outcome, jax.tree.map(lambda _: True, outcome)


def _loop_in_step(own: Any, shared: Any) -> Outcome:
    """The loop of all lanes at once; the leaves of `own` have a leading axis, and the others are
    those of `shared`.
    """

    def first(lane: Any) -> tuple[Curvature, Iterate]:
        problem, setup, _, _, state = eqx.combine(lane, shared)
        return setup.curvature or _curvature(problem), begin(problem, state)

    def step(lane: Any, at: Iterate) -> Iterate:
        lane, curvature = lane
        return fista_step(eqx.combine(lane, shared)[0], curvature, at)

    def certified(lane: Any, at: Iterate) -> Certificate:
        problem, setup, tol, _, _ = eqx.combine(lane[0], shared)
        return certify(problem, setup, tol, at.point)

    curvatures, iterates = jax.vmap(first)(own)
    _, _, tol, max_steps, _ = eqx.combine(own, shared)
    ended = iterate_lanes(
        step,
        certified,
        (own, curvatures),
        iterates,
        tol=tol,
        max_steps=max_steps,
        compact=_shares_design(own),
        **_LOOP,
    )
    return ended._replace(state=state_of(ended.state))


_in_step = custom_vmap(_loop_in_step)


@_in_step.def_vmap
def _in_step_batch(size: int, batched: Any, own: Any, shared: Any) -> tuple[Outcome, Any]:
    """A batch of batches is one long batch where the design is the same for all."""
    inner = jax.tree.leaves(own)[0].shape[1 if jax.tree.leaves(batched[0])[0] else 0]
    theirs, common = eqx.partition(shared, batched[1])
    if _shares_design(own) and _shares_design(theirs):

        def long(leaf, has_outer, has_inner):
            leaf = leaf if has_outer else leaf[None]
            leaf = leaf if has_inner else leaf[:, None]
            return jnp.broadcast_to(leaf, (size, inner, *leaf.shape[2:])).reshape(
                size * inner, *leaf.shape[2:]
            )

        own = jax.tree.map(lambda leaf, has_outer: long(leaf, has_outer, True), own, batched[0])
        theirs = jax.tree.map(lambda leaf: long(leaf, True, False), theirs)
        outcome = _in_step(eqx.combine(own, theirs), common)
        outcome = jax.tree.map(lambda leaf: leaf.reshape(size, inner, *leaf.shape[1:]), outcome)
    else:
        lanes, common = eqx.partition((own, shared), tuple(batched))
        outcome = _loops.platform_dependent(
            lanes,
            common,
            cpu=lambda lanes, common: lax.map(
                lambda lane: _in_step(*eqx.combine(lane, common)), lanes
            ),
            default=lambda lanes, common: jax.vmap(
                lambda lane: _loop_in_step(*eqx.combine(lane, common))
            )(lanes),
        )
    return outcome, jax.tree.map(lambda _: True, outcome)


def _shares_design(own: Any) -> bool:
    """Whether no lane has a design of its own, but for its centre; `own` are `run`'s arguments
    without those that are shared.
    """
    return not jax.tree.leaves(uncentred(own[0]))


def _without_model(arguments: Any) -> Any:
    """`run`'s arguments without what only the rounds need."""
    problem, setup, *others = arguments
    return (problem, setup._replace(model=None), *others)


def _curvature(problem: Objective) -> Curvature:
    return measure_curvature(problem, jnp.zeros_like(problem.offset))


def certify(problem: Objective, setup: Setup, tol: jax.Array, point: Coefficients) -> Certificate:
    target = refit_target(tol, setup.scale)
    return duality_gap(problem, point, columns=setup.columns, scale=setup.scale, target=target)


def finish(problem: Objective, still: Objective, outcome: Outcome) -> Solution:
    """The solution with its derivatives; `still` is the problem without them."""
    at = outcome.state
    end = Coefficients(at.coef, at.intercept)
    point = with_derivatives(problem, carrying(end, outcome.status))
    objective = problem.smooth_value(problem.predict(point)) + problem.penalty(point.coef)
    active = problem.groups.sum((end.coef != 0).astype(jnp.int32)) > 0
    stats = {
        **outcome.stats,
        "objective": objective,
        "gap": outcome.certificate.error,
        "kkt": violation(still, end),
        "num_active": jnp.sum(active, dtype=jnp.int32),
        "method": jnp.int32(LOOP),
    }
    last, before = (
        uncentre(still, end),
        uncentre(still, Coefficients(at.previous_coef, at.previous_intercept)),
    )
    return Solution(
        uncentre(problem, point),
        outcome.status,
        stats,
        State(*last, *before, at.momentum, at.inflation),
    )


@jax.jit
def solve(problem: Objective, limits: Limits, state: State | None) -> Solution:
    """The solution from a state, or from the null model, with its derivatives."""
    still, limits, state = lax.stop_gradient((problem, limits, state))
    near = shifted(still)
    setup = set_up(near, measured=not applies(near))
    if state is None:
        inner = start(setup.null)
    else:
        last = recentre(still, Coefficients(state.coef, state.intercept))
        before = recentre(still, Coefficients(state.previous_coef, state.previous_intercept))
        inner = State(*last, *before, state.momentum, state.inflation)
    return finish(problem, still, run(near, setup, *limits, inner))


def solve_or_again(problem: Objective, limits: Limits, state: State | None) -> Solution:
    """`solve`, and where that stalls on a small problem, from there once more by rounds: to compile
    those takes longer than most small problems take to solve.
    """
    first = solve(problem, limits, state)
    return _or_again(problem, first, lambda hard: _go_on(hard, limits, first, first.state))


def again_after(first: Solution, again: Solution) -> Solution:
    """The second attempt, which counts the steps of both."""
    steps = first.stats["num_steps"] + again.stats["num_steps"]
    return again._replace(stats={**again.stats, "num_steps": steps})


def path_or_again(problem: Objective, lams: Lams, limits: Limits) -> Solution:
    """`path`, and where that stalls on a small problem, once more by rounds."""
    first = path(problem, lams, limits)
    return _or_again(problem, first, lambda hard: again_after(first, path(hard, lams, limits)))


def _or_again(
    problem: Objective, first: Solution, again: Callable[[Objective], Solution]
) -> Solution:
    """The second attempt where a loop without rounds gave up that rounds could precede."""
    hard = dataclasses.replace(problem, hard=True)
    if applies(problem) or not applies(hard) or not _checks.is_concrete(first.status):
        return first
    stalled = np.any(np.asarray(first.stats["reason"]) == Reason.PATIENCE)
    return again(hard) if stalled else first


def _go_on(problem: Objective, limits: Limits, first: Solution, state: State | None) -> Solution:
    """`solve` with the steps that `first` has left."""
    left = limits._replace(max_steps=limits.max_steps - first.stats["num_steps"])
    return again_after(first, solve(problem, left, state))


@jax.jit
def path(problem: Objective, lams: Lams, limits: Limits) -> Solution:
    """Solutions [L], each from the last, with their derivatives."""
    still, limits = lax.stop_gradient((problem, limits))
    near = shifted(still)
    setup = set_up(near, measured=True)
    values = lams.values
    if values is None:
        largest = null_pull(with_lam(problem, jnp.zeros_like(problem.lam)), setup.null)
        values = geometric(largest, lams.min_ratio, lams.num)

    def one(at: State, lam: jax.Array) -> tuple[State, Solution]:
        here = with_lam(problem, lam)
        outcome = run(with_lam(near, lax.stop_gradient(lam)), setup, *limits, at)
        solution = finish(here, lax.stop_gradient(here), outcome)
        solution.stats["lam"] = lam
        end = outcome.state
        following = start(Coefficients(end.coef, end.intercept))
        return following._replace(inflation=end.inflation), solution

    return _loops.scan(one, start(setup.null), values)[1]


def finished(problem: Objective, limits: Limits, solution: Solution) -> Solution:
    """What rounds on the host could not reach, the loop may: it goes on from there, or from the
    null model where that is not finite, and has the last word.
    """
    if int(solution.status) in (Status.CONVERGED, Status.MAX_STEPS):
        return solution
    at = solution.state if int(solution.status) == Status.STALLED else None
    return _go_on(problem, limits, solution, at)
