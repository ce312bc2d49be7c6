"""Exact solution of the k-agent problem, and the exact value of a policy on few agents."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _checks
from jaxsac._arguments import arguments, choice, integer, real, record, size
from jaxsac.solution import Solution
from jaxsac.subsample_q.data.histograms import check_size, enumerate_counts, num_histograms
from jaxsac.subsample_q.data.model import MODEL, Model, check_discount
from jaxsac.subsample_q.data.sampling import lifted
from jaxsac.subsample_q.exact.iteration.fixed_point import (
    INITIAL,
    METHODS,
    FixedPoint,
    Settings,
    Surrogate,
    differentiable,
    differentiable_average,
    fixed_point,
)
from jaxsac.subsample_q.exact.operator.expectation import (
    differentiable_expectation,
    expectation,
    model_probe,
    prepare,
)
from jaxsac.subsample_q.exact.operator.plan import (
    BACKENDS,
    CHOICE_OF_BACKEND,
    Plan,
    candidates,
    plan,
)
from jaxsac.subsample_q.exact.table import TABLE, Meaning, QTable, best_of, greedy, stage_rewards


@arguments(
    model=MODEL,
    k=size(1),
    plan=record(Plan),
    backend=CHOICE_OF_BACKEND,
    criterion=choice("discounted", "average"),
    method=choice(*METHODS),
    stopping=choice("span", "sup"),
    tol=real(low=0),
    max_steps=integer(low=0),
    initial=INITIAL,
)
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
    initial: Any = None,
) -> Solution:
    """Solve the k-agent surrogate exactly: the fixed point of the adapted Bellman operator, without
    sampling.

        Q(s_g, h, a) = r_g(s_g, a) + (1/k) ⟨h, r_l(s_g)⟩ + discount E[ max_a' Q(s_g', h', a') ]

    over the N = C(k+L−1, L−1) histograms h of k agents. k = n is the full problem.

    * `plan`: from `subsample_q.plan`, where the local transitions are traced and the histograms are
      many; `backend` is that of `subsample_q.plan`.
    * `criterion`: "discounted", or "average" (relative value iteration; a unichain model).
    * `method`: "anderson" (value iteration from the best combination of the last five sweeps, kept
      only if the span of its own residual is no larger) or "value_iteration".
    * `stopping`: "span" or "sup" of T V − V.
    * `tol`: relative to the scale, 1e-6 in float64 and 1e-4 in float32. CONVERGED: the half-width
      of the MacQueen bounds (span) or discount / (1 − discount) · sup|T V − V| (sup), plus
      rounding, is ≤ tol · scale, with scale = half the range of max_a r / (1 − discount), or
      the size of the largest where that is more, up to 100 times the range (average: without the
      division; where max_a r is everywhere the same, its size). An action that pays
      −10^9 so that nobody takes it changes nothing, and states that pay so count at most 100 times
      the distance from the best one that nine in ten of the others have.
    * `max_steps`: sweeps at most. Without one the bounds are those of the stage rewards, min and
      max of max_a r / (1 − discount).
    * `initial`: a first value [G, N], that of a smaller k through `subsample_q.lift`, or a
      Solution.

    Returns: a Solution of a `QTable` whose state is its value [G, N]. The first sweep measures the
    operator on functions with a known expectation (stats["operator_error"]), which counts as
    rounding, in the bounds too; on concrete input a form that fails this test is replaced by the next. stats["method"]
    is a position in `subsample_q.METHODS` and stats["backend"] one in `subsample_q.BACKENDS`;
    num_steps counts sweeps, the test included; "average" adds stats["gain"], and the bounds are
    those of the gain.

    Map over models with `jax.vmap` (with a plan, or few histograms). q, value and bounds (average:
    gain and relative values) are differentiable in every array of the model, implicitly: the policy
    is kept fixed, one best action where several tie. In directions that change the sum of a row it
    is the derivative of the polynomial E[W(h')] = Σ over the agents' moves of Π_agents P W; second
    derivatives in them need the dense form.

    Raises: ValueError for k < 1, a discount of 1 without "average", tables beyond memory, and
    second derivatives that would be wrong. Traced discounts outside [0, 1) end NONFINITE or
    MAX_STEPS.

    Source: arXiv 2403.00222, algorithm 1 (m → ∞); bounds: MacQueen 1966; Puterman 1994, sections
    6.6 and 8.5.
    """
    if criterion == "discounted":
        check_discount(model)
    if plan is not None:
        _checks.require(
            plan.k == k,
            f"plan was made for k={plan.k}, not k={k}: make one with subsample_q.plan(model, {k}).",
        )
    plans = candidates(model, k, backend) if plan is None else [plan]
    shape = (model.num_global_states, len(enumerate_counts(k, model.num_local_states)))
    settings = Settings.of(shape, model.dtype, tol, max_steps, initial)
    for position, candidate in enumerate(plans):
        # On the host where it can be: that is time and compile time saved.
        ready = (
            prepare(model, candidate)
            if candidate.backend == "thinning" and _checks.is_concrete(model, candidate)
            else None
        )
        solution = _solve(
            model, candidate, ready, settings, criterion=criterion, method=method, stopping=stopping
        )
        error = solution.stats["operator_error"]
        last = position + 1 == len(plans) or not _checks.is_concrete(error)
        if last or float(error) <= (1e-10 if model.dtype == jnp.float64 else 1e-3):
            return solution
    raise AssertionError("unreachable: the last candidate is returned")


@functools.partial(jax.jit, static_argnames=("criterion", "method", "stopping"))
def _solve(model, plan, operator, settings, *, criterion, method, stopping):
    found = _solve_for(
        model, plan, operator, settings, None, criterion=criterion, method=method, stopping=stopping
    )
    found.stats["method"] = jnp.int32(METHODS.index(method))
    return _solution(model, plan, found, "gain" if criterion == "average" else "optimum")


def value_of_policy(model: Model, plan: Plan, weights: jax.Array, settings: Settings) -> Solution:
    """The QTable of the policy that takes actions with the chances `weights` [G, N, A]."""
    found = _solve_for(model, plan, None, settings, weights)
    return _solution(model, plan, found, "policy")


def _solve_for(model, plan, operator, settings, weights, **options) -> FixedPoint:
    frozen = jax.tree.map(lax.stop_gradient, model)
    ready = prepare(frozen, plan) if operator is None else operator
    surrogate = _surrogate(
        frozen,
        plan.k,
        lambda values: expectation(ready, values, plan, model.num_local_states),
        weights,
    )
    settings = settings._replace(initial=lax.stop_gradient(settings.initial))
    found = fixed_point(surrogate, model_probe(frozen, plan.k), settings, **options)
    found.stats["backend"] = jnp.int32(BACKENDS.index(plan.backend))

    def surrogate_of(params):
        model, plan, weights = params
        return _surrogate(
            model, plan.k, lambda values: differentiable_expectation(model, values, plan), weights
        )

    average = options.get("criterion") == "average"
    attach = differentiable_average if average else differentiable
    return attach(found, surrogate_of, (model, plan, weights))


def _surrogate(model: Model, k: int, expect: Any, weights: jax.Array | None = None) -> Surrogate:
    """Of a plain model, whose agents take the best action, or those of a policy [G, N, A]."""

    def value_of(q):
        return best_of(q) if weights is None else jnp.sum(weights * q, axis=-1)

    return Surrogate(stage_rewards(model, k), expect, value_of, model.discount)


def _solution(model: Model, plan: Plan, found: FixedPoint, bounds: str) -> Solution:
    """`bounds`: what the bounds are on, of MEANINGS."""
    counts = jnp.asarray(enumerate_counts(plan.k, model.num_local_states))
    policy, meaning = greedy(found.q, found.stats["scale"]), Meaning((plan.k,), bounds)
    table = QTable(found.q, found.value, policy, found.bounds, counts, meaning)
    return Solution(table, found.status, found.stats, found.value)


_value_of_policy = jax.jit(value_of_policy)


@arguments(
    model=MODEL,
    table=TABLE,
    num_agents=size(1),
    plan_n=record(Plan),
    tol=real(low=0),
    max_steps=integer(low=0),
)
def evaluate(
    model: Model,
    table: Any,
    num_agents: int,
    *,
    plan_n: Plan | None = None,
    tol: Any = None,
    max_steps: Any = 100_000,
) -> Solution:
    """Exact value of the executed policy on a small number of agents n.

        V(s_g, h) = Σ_a π(a | s_g, h) Q(s_g, h, a),
        π(a | s_g, h) = Σ_{h_k} Hyp(h_k; h) 1{policy(s_g, h_k) = a}

    * `table`: a `QTable` of k ≤ n agents, or its Solution.
    * `num_agents`: n, static.
    * `plan_n`: `subsample_q.plan` for n agents, where the transitions are traced.
    * `tol`, `max_steps`: as in `solve`.

    Returns: a Solution of a `QTable` over the n-agent histograms: value [G, N_n], q [G, N_n, A],
    MacQueen bounds on V, and as policy the greedy improvement of V; status and stats as in `solve`.
    Differentiable in the model as `solve` is, with the policy held fixed.

    Raises: ValueError for k > n, and where the tables over all n-agent histograms do not fit.

    Source: arXiv 2403.00222, algorithm 2.
    """
    check_discount(model)
    k, n = table.meaning.ks[0], num_agents
    _checks.require(
        k <= n, f"the table samples k={k} agents, more than num_agents={n}: solve for a smaller k."
    )
    L = model.num_local_states
    check_size(n, L, model.num_global_states * (2 * model.num_actions + 12) * 8, "num_agents")
    plan_n = plan(model, n) if plan_n is None else plan_n
    _checks.require(plan_n.k == n, f"plan_n was made for k={plan_n.k}, not num_agents={n}.")
    weights = _execution_weights(table, model.num_actions, n)
    shape = (model.num_global_states, num_histograms(n, L))
    settings = Settings.of(shape, model.dtype, tol, max_steps, None)
    return _value_of_policy(model, plan_n, weights, settings)


def _execution_weights(table: QTable, num_actions: int, num_agents: int) -> jax.Array:
    """π(a | s_g, h_n), the chance of each action when k agents are sampled afresh: [G, N_n, A]."""
    one_hot = jax.nn.one_hot(table.policy, num_actions, axis=1, dtype=table.q.dtype)  # [G, A, N_k]
    G, A, _ = one_hot.shape
    weights = lifted(one_hot.reshape(G * A, -1), table.histograms.shape[-1], num_agents)
    return jnp.moveaxis(weights.reshape(G, A, -1), 1, 2)
