"""Exact solution of the k-agent problem: value iteration, accelerated or by policies, in one
compiled loop with certified bounds.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _checks
from jaxsac._implicit import implicit
from jaxsac._iterate import Certificate, iterate
from jaxsac.solution import Solution, Status
from jaxsac.subsample_q.data.histograms import enumerate_counts
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.operators import (
    BACKENDS,
    Plan,
    candidates,
    differentiable_expectation,
    expectation,
    prepare,
    product_test,
)

METHODS = ("anderson", "value_iteration", "modified_policy_iteration", "policy_iteration")
_MEMORY = 5  # past sweeps that Anderson acceleration combines
_DAMPING = (
    0.9  # weight of a sweep under the average criterion: 1 would not settle on periodic chains
)


class Bounds(NamedTuple):
    """lower ≤ V* ≤ upper (MacQueen), both [G, N]; under the average criterion of the gain, both
    [].
    """

    lower: jax.Array
    upper: jax.Array


class QTable(NamedTuple):
    """What k sampled agents learn: q [G, N, A], value [G, N] = max_a q, policy int32 [G, N],
    bounds, histograms int32 [N, L].

    Ties go to the lowest action within 16 ulp of the scale. Under the average criterion q and value
    are relative, value[0, 0] = 0.
    """

    q: jax.Array
    value: jax.Array
    policy: jax.Array
    bounds: Bounds
    histograms: jax.Array


def local_rewards(model: Model, k: int) -> jax.Array:
    """(1/k) <h, local_reward>: [G, N, 1], or [G, N, A] where the reward depends on the action."""
    counts = jnp.asarray(enumerate_counts(k, model.num_local_states), model.dtype)
    rewards = model.local_reward if model.local_reward.ndim == 3 else model.local_reward[:, None, :]
    return jnp.einsum("gal,nl->gna", rewards, counts, precision="highest") / k


def bellman_q(model: Model, k: int, expected: jax.Array, discount: jax.Array) -> jax.Array:
    """q = r_g + mean r_l + discount E[V]: [G, N, A]."""
    return model.global_reward[:, None, :] + local_rewards(model, k) + discount * expected


def greedy(q: jax.Array, tie: jax.Array) -> jax.Array:
    """The lowest action within `tie` of the best, int32."""
    return jnp.argmax(q >= jnp.max(q, axis=-1, keepdims=True) - tie, axis=-1).astype(jnp.int32)


class Objective(NamedTuple):
    """What a problem other than a plain `Model` maximises: stage rewards and value_of(q) [G, N] for
    q of one shape, and max|r|.
    """

    rewards: jax.Array
    value_of: Callable[[jax.Array], jax.Array]
    largest_reward: jax.Array


class _State(NamedTuple):
    proposal: jax.Array  # [G, N], what the next sweep evaluates
    evaluated: jax.Array  # [G, N], what the last sweep evaluated
    expected: jax.Array  # [G, N, A], its expectation
    low: jax.Array  # range of T V - V of the last improvement sweep
    high: jax.Array
    operator_error: jax.Array
    sweep: jax.Array
    method: Any


class _History(NamedTuple):
    images: jax.Array  # [m, G, N], T V of the last accepted sweeps
    residuals: jax.Array  # [m, G, N], T V - V, centred
    products: jax.Array  # [m, m]
    ages: jax.Array  # int32 [m], sweeps since the slot was filled; out of use from m on
    span: jax.Array  # of the last accepted residual


class _Policy(NamedTuple):
    actions: jax.Array  # int32 [G, N]
    remaining: jax.Array  # evaluation sweeps before the next improvement


def solve(
    model: Model,
    k: int,
    *,
    plan: Plan | None = None,
    backend: str = "auto",
    criterion: str = "discounted",
    method: str = "anderson",
    stopping: str = "span",
    tol: Any = None,
    max_steps: Any = 100_000,
    evaluation_sweeps: Any = 20,
    initial: Any = None,
) -> Solution:
    """Solve the k-agent surrogate exactly: the fixed point of the adapted Bellman operator, without
    sampling.

        Q(s_g, h, a) = r_g(s_g, a) + (1/k) <h, r_l(s_g)> + discount E[ max_a' Q(s_g', h', a') ]

    over the N = C(k+L-1, L-1) histograms h of k agents. k = n is the full problem. Returns
    Solution(QTable, status, stats, state); state is value [G, N], and `initial` takes one (that of
    a smaller k through `subsample_q.lift`).

    criterion: "discounted", or "average" (relative value iteration; a unichain model;
    stats["gain"], bounds on the gain). method: "anderson" (value iteration from the best
    combination of the last five sweeps, kept only if the span of its own residual is no larger),
    "value_iteration", "modified_policy_iteration" (`evaluation_sweeps` between improvements) or
    "policy_iteration". stopping: "span" or "sup" of T V - V. CONVERGED: the half-width of the
    MacQueen bounds (span) or discount/(1-discount) sup|T V - V| (sup), plus rounding, is ≤ tol ·
    scale, with scale = max|r| / (1 - discount) (average: max|r|); tol is 1e-6 in float64, 1e-4 in
    float32. The first sweep measures the operator on functions with a known expectation
    (stats["operator_error"]), which counts as rounding. On concrete input a form that fails this
    test is replaced by the next (stats["backend"], a position in `subsample_q.BACKENDS`).

    stats: num_steps (sweeps, the test included), error (absolute), rounding, scale, operator_error,
    backend, gain. Map over models with jax.vmap (with a plan, or few histograms). q, value and
    bounds are differentiable in every array of the model (implicitly; the policy is kept fixed,
    ties are averaged), whatever the form and the rank of the kernels; where the local transitions
    are traced they need a plan, or few histograms. In directions that change a row's sum it is the
    derivative of the polynomial E[W(h')] = sum over the agents' moves of prod_agents P W; second
    derivatives in them need the dense form (ValueError otherwise). Under the average criterion gain
    and relative values are differentiable. Bad input: ValueError for k < 1, discount = 1 without
    "average" and tables beyond memory; traced discounts outside [0, 1) end NONFINITE or MAX_STEPS.
    Source: arXiv 2403.00222, algorithm 1 (m → ∞); bounds: MacQueen 1966; Puterman 1994, sections
    6.6 and 8.5.
    """
    k = _checks.static_integer("k", k, 1)
    _checks.choice("criterion", criterion, ("discounted", "average"))
    _checks.choice("method", method, METHODS)
    _checks.choice("stopping", stopping, ("span", "sup"))
    check_discount(model, criterion)
    if plan is not None:
        _checks.require(
            plan.k == k,
            f"plan was made for k={plan.k}, not k={k}: make one with subsample_q.plan(model, {k}).",
        )
    plans = candidates(model, k, backend) if plan is None else [plan]
    arguments = solver_arguments(model, k, tol, max_steps, evaluation_sweeps, initial)
    for position, candidate in enumerate(plans):
        # On the host where it can be: that is time and compile time saved.
        ready = (
            prepare(model, candidate)
            if candidate.backend == "thinning" and _checks.is_concrete(model, candidate)
            else None
        )
        solution = _solve(
            model,
            candidate,
            ready,
            *arguments,
            criterion=criterion,
            method=method,
            stopping=stopping,
        )
        error = solution.stats["operator_error"]
        if (
            position + 1 == len(plans)
            or not _checks.is_concrete(error)
            or float(error) <= _accepted_error(model.dtype)
        ):
            return solution
    raise AssertionError("unreachable: the last candidate is returned")


def check_discount(model: Model, criterion: str) -> None:
    if _checks.is_concrete(model.discount) and criterion == "discounted" and jnp.ndim(model.discount) == 0:
        _checks.require(
            float(model.discount) < 1.0,
            "discount must lie in [0, 1): use criterion='average' for 1.",
        )


def solver_arguments(
    model: Model, k: int, tol: Any, max_steps: Any, evaluation_sweeps: Any, initial: Any
) -> tuple[jax.Array, ...]:
    """tol, max_steps, evaluation_sweeps and initial as arrays, so that every kind of number shares
    one trace.
    """
    shape = (model.num_global_states, len(enumerate_counts(k, model.num_local_states)))
    start = (
        jnp.zeros(shape, model.dtype)
        if initial is None
        else _checks.real_array("initial", initial, shape, model.dtype)
    )
    tol = (1e-6 if model.dtype == jnp.float64 else 1e-4) if tol is None else tol
    return (
        _checks.real_scalar("tol", tol, model.dtype, 0.0),
        jnp.asarray(max_steps, jnp.int32),
        jnp.asarray(evaluation_sweeps, jnp.int32),
        start,
    )


def _accepted_error(dtype) -> float:
    return 1e-10 if dtype == jnp.float64 else 1e-3


@functools.partial(jax.jit, static_argnames=("criterion", "method", "stopping"))
def _solve(
    model,
    plan,
    operator,
    tol,
    max_steps,
    evaluation_sweeps,
    initial,
    *,
    criterion,
    method,
    stopping,
):
    frozen = jax.tree.map(lax.stop_gradient, model)
    L = model.num_local_states
    operator = prepare(frozen, plan) if operator is None else operator
    solution = fixed_point(
        frozen,
        plan.k,
        lambda values: expectation(operator, values, plan, L),
        product_test(frozen, plan.k),
        (tol, max_steps, evaluation_sweeps, lax.stop_gradient(initial)),
        criterion=criterion,
        method=method,
        stopping=stopping,
    )
    solution.stats["backend"] = jnp.int32(BACKENDS.index(plan.backend))
    return (_attach_average_derivative if criterion == "average" else attach_derivative)(
        model, plan, solution
    )


def attach_derivative(
    model: Model, plan: Plan, solution: Solution, action_weights: jax.Array | None = None
) -> Solution:
    """The solution, with the derivative in `model` of the fixed point that it solves;
    action_weights as in `fixed_point`.
    """

    def value_of(q, weights):
        return jnp.max(q, axis=-1) if weights is None else jnp.sum(weights * q, axis=-1)

    def residual(q, params):
        model, plan, weights = params
        expected = differentiable_expectation(model, value_of(q, weights), plan)
        return bellman_q(model, plan.k, expected, model.discount) - q

    table = solution.value
    q = implicit(residual, krylov, table.q, (model, plan, action_weights), symmetric=False)
    value = value_of(q, action_weights)
    width = (table.bounds.upper - table.bounds.lower) / 2
    middle = value + lax.stop_gradient((table.bounds.upper + table.bounds.lower) / 2 - value)
    return solution._replace(
        value=table._replace(q=q, value=value, bounds=Bounds(middle - width, middle + width)),
        state=value,
    )


def _attach_average_derivative(model: Model, plan: Plan, solution: Solution) -> Solution:
    """As `attach_derivative`, of the gain and the relative values: q = r + E[max q] - gain with
    max_a q[0, 0, a] = 0.
    """

    def residual(unknown, params):
        q, gain = unknown
        model, plan = params
        expected = differentiable_expectation(model, jnp.max(q, axis=-1), plan)
        return bellman_q(model, plan.k, expected, jnp.ones((), q.dtype)) - gain - q, jnp.max(
            q[0, 0]
        )

    table = solution.value
    q, gain = implicit(
        residual, krylov, (table.q, solution.stats["gain"]), (model, plan), symmetric=False
    )
    moved = gain - lax.stop_gradient(gain)  # zero, with the derivative of the gain
    value = jnp.max(q, axis=-1)
    bounds = Bounds(table.bounds.lower + moved, table.bounds.upper + moved)
    table = table._replace(q=q, value=value, bounds=bounds)
    return solution._replace(value=table, stats=solution.stats | {"gain": gain}, state=value)


def krylov(matvec: Callable[[Any], Any], right_side: Any) -> Any:
    """Solve the linearised fixed-point equation, (discount P_π - I) x = right side, to 1,000 ulp of
    the right side.
    """
    eps = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(right_side))).eps)
    return jax.scipy.sparse.linalg.gmres(
        matvec, right_side, tol=1e3 * eps, atol=0.0, restart=20, maxiter=100, solve_method="batched"
    )[0]


def fixed_point(
    model: Model,
    k: int,
    expect: Callable[[jax.Array], jax.Array],
    test: tuple[jax.Array, jax.Array, jax.Array] | None,
    arguments: tuple[jax.Array, ...],
    *,
    criterion: str,
    method: str,
    stopping: str,
    action_weights: jax.Array | None = None,
    objective: Objective | None = None,
) -> Solution:
    """Iterate an expectation operator [G, N] -> [G, N, A] to its certified fixed point; `test` is a
    first input with a known answer.

    With action_weights [G, N, A], the fixed point is the value of that policy instead of the best
    one. An `objective` replaces the stage reward and the best choice of a `Model`; expectation and
    q then have its shape, and the caller makes the policy from q.
    """
    tol, max_steps, evaluation_sweeps, initial = arguments
    dtype, (G, N) = model.dtype, initial.shape
    average = criterion == "average"
    discount = jnp.ones((), dtype) if average else model.discount
    reach = (
        jnp.ones((), dtype) if average else discount / (1 - discount)
    )  # what a residual of one means for the answer
    largest_reward = model.max_reward() if objective is None else objective.largest_reward
    scale = largest_reward * (1 if average else 1 / (1 - discount))
    eps = jnp.finfo(dtype).eps
    rewards = (
        model.global_reward[:, None, :] + local_rewards(model, k)
        if objective is None
        else objective.rewards
    )
    evaluates = method in ("policy_iteration", "modified_policy_iteration")
    memory = _MEMORY if method == "anderson" else 1

    def q_of(expected):
        return rewards + discount * expected

    def value_of(q):
        if objective is not None:
            return objective.value_of(q)
        return (
            jnp.max(q, axis=-1) if action_weights is None else jnp.sum(action_weights * q, axis=-1)
        )

    def half_width(low, high):
        return reach * (
            (high - low) / 2
            if stopping == "span" or average
            else jnp.maximum(jnp.abs(low), jnp.abs(high))
        )

    def damp(before, after):
        if not average:
            return after
        moved = (1 - _DAMPING) * before + _DAMPING * after
        return moved - moved[0, 0]

    def sweep(state: _State) -> _State:
        expected = expect(state.proposal)
        if test is None:
            return learn(state, expected)
        known = test
        return lax.cond(
            state.sweep == 0, lambda: check(state, expected, known), lambda: learn(state, expected)
        )

    def check(
        state: _State, expected: jax.Array, test: tuple[jax.Array, jax.Array, jax.Array]
    ) -> _State:
        _, weights, exact = test
        error = jnp.max(
            jnp.abs(jnp.einsum("gna,a->gn", expected, weights, precision="highest") - exact)
        )
        return state._replace(proposal=initial, operator_error=error, sweep=state.sweep + 1)

    def learn(state: _State, expected: jax.Array) -> _State:
        before = state.proposal
        q = q_of(expected)
        if evaluates:
            improves = state.method.remaining <= 0
            actions = jnp.where(improves, greedy(q, jnp.zeros((), dtype)), state.method.actions)
            after = jnp.take_along_axis(q, actions[..., None], axis=-1)[..., 0]
        else:
            improves, actions = jnp.asarray(True), None
            after = value_of(q)
        difference = after - before
        low, high = jnp.min(difference), jnp.max(difference)
        if evaluates:
            method_state = evaluate_next(state.method, actions, improves, low, high)
            proposal = damp(before, after)
        else:
            image = damp(before, after)
            if memory > 1 and not average:
                image = (
                    image + reach * (low + high) / 2
                )  # the constant that a sweep would take 1/(1 - discount) sweeps to find
            method_state, proposal = combine(state.method, image, difference, high - low)
        return _State(
            proposal,
            jnp.where(improves, before, state.evaluated) if evaluates else before,
            jnp.where(improves, expected, state.expected) if evaluates else expected,
            jnp.where(improves, low, state.low),
            jnp.where(improves, high, state.high),
            state.operator_error,
            state.sweep + 1,
            method_state,
        )

    def evaluate_next(policy: _Policy, actions, improves, low, high) -> _Policy:
        if method == "modified_policy_iteration":
            remaining = jnp.where(improves, evaluation_sweeps, policy.remaining - 1)
        else:
            remaining = (half_width(low, high) > 0.1 * tol * scale).astype(jnp.int32)
        return _Policy(actions, remaining)

    def combine(history: _History, image, difference, span) -> tuple[_History, jax.Array]:
        if memory == 1:
            return history, image
        residual = difference - jnp.mean(difference)
        accept = (span <= history.span) | ~jnp.isfinite(span)
        oldest = jnp.argmax(history.ages)
        newest = jnp.argmin(history.ages)
        products = jnp.matmul(
            history.residuals.reshape(memory, -1), residual.reshape(-1), precision="highest"
        )
        products = products.at[oldest].set(jnp.vdot(residual, residual, precision="highest"))

        def put(array, new):
            return array.at[oldest].set(jnp.where(accept, new, array[oldest]))

        updated = history.products.at[oldest, :].set(products).at[:, oldest].set(products)
        # A rejected combination costs one sweep: forget the history and make a plain sweep from the
        # last accepted image.
        forgotten = jnp.full(memory, memory, jnp.int32).at[newest].set(0)
        history = _History(
            put(history.images, image),
            put(history.residuals, residual),
            jnp.where(accept, updated, history.products),
            jnp.where(accept, jnp.minimum(history.ages + 1, memory).at[oldest].set(0), forgotten),
            jnp.where(accept, span, history.span),
        )
        weights = _mixing(history.products, history.ages < memory, jnp.argmin(history.ages))
        return history, jnp.matmul(
            weights, history.images.reshape(memory, -1), precision="highest"
        ).reshape(G, N)

    def certify(state: _State) -> Certificate:
        error = half_width(state.low, state.high)
        largest = jnp.max(jnp.abs(state.evaluated)) + largest_reward
        rounding = (2 * eps + state.operator_error) * largest * reach
        started = state.sweep > (0 if test is None else 1)
        return Certificate(
            jnp.where(started, error, jnp.finfo(dtype).max / 4),
            jnp.where(started, rounding, 0),
            scale,
        )

    zero = jnp.zeros((), dtype)
    if evaluates:
        method_state = _Policy(jnp.zeros((G, N), jnp.int32), jnp.int32(0))
    else:
        past = jnp.zeros((memory if memory > 1 else 0, G, N), dtype)
        method_state = _History(
            past,
            past,
            jnp.zeros((memory, memory), dtype),
            jnp.full(memory, memory, jnp.int32),
            jnp.full((), jnp.finfo(dtype).max, dtype),
        )
    unknown = jnp.zeros(jax.eval_shape(expect, initial).shape, dtype)
    start = _State(
        initial if test is None else test[0],
        initial,
        unknown,
        zero,
        zero,
        zero,
        jnp.int32(0),
        method_state,
    )
    patience = {"policy_iteration": 1_000_000, "modified_policy_iteration": 2_000}.get(method, 200)
    end = iterate(sweep, certify, start, tol=tol, max_steps=max_steps, patience=patience)

    state: _State = end.state
    q = q_of(state.expected)
    value = value_of(q)
    tie = 16 * eps * scale
    stats = {
        "num_steps": end.num_steps,
        "error": end.certificate.error,
        "rounding": end.certificate.rounding,
        "scale": scale,
        "operator_error": state.operator_error,
    }
    if average:
        gain = (state.low + state.high) / 2
        stats["gain"] = gain
        shift, bounds = -value[0, 0], Bounds(state.low, state.high)
    else:
        shift = reach * (state.low + state.high) / 2
        width = reach * (state.high - state.low) / 2
        bounds = Bounds(value + shift - width, value + shift + width)
    status = jnp.where(
        jnp.all(jnp.isfinite(q)) | (end.status == Status.MAX_STEPS),
        end.status,
        jnp.int32(Status.NONFINITE),
    )
    table = QTable(
        q + shift,
        value + shift,
        greedy(q, tie),
        bounds,
        jnp.asarray(enumerate_counts(k, model.num_local_states)),
    )
    return Solution(table, status, stats, value + shift)


def _mixing(products: jax.Array, used: jax.Array, newest: jax.Array) -> jax.Array:
    """Weights that sum to one and minimise |sum_i w_i residual_i|² over the used slots; the newest
    alone where that is not solvable.
    """
    dtype = products.dtype
    memory = products.shape[0]
    both = used[:, None] & used[None, :]
    size = jnp.max(jnp.where(used, jnp.diagonal(products), 0))
    system = jnp.where(both, products / jnp.where(size > 0, size, 1), 0)
    ridge = jnp.where(used, 10 * jnp.finfo(dtype).eps, 1.0).astype(dtype)
    rows = jnp.concatenate([system + jnp.diag(ridge), used.astype(dtype)[:, None]], axis=1)

    def clear(
        i, rows
    ):  # Gauss-Jordan on a small positive definite system: far less to compile than a general solve
        pivot = rows[i] / rows[i, i]
        return (rows - rows[:, i, None] * pivot[None, :]).at[i].set(pivot)

    solved = lax.fori_loop(0, memory, clear, rows)[:, -1]
    weights = solved / jnp.sum(solved)
    alone = (jnp.arange(memory) == newest).astype(dtype)
    return jnp.where(jnp.all(jnp.isfinite(weights)), weights, alone)
