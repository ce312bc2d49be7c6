"""Exact solution of the k-agent problem, and the exact value of a policy on few agents; once for
every kind of model.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, choice, either, function, integer, real, size
from jaxsac.solution import Solution
from jaxsac.subsample_q.data.histograms import (
    check_size,
    enumerate_counts,
    enumerate_products,
    num_histograms,
)
from jaxsac.subsample_q.data.kinds import MODEL, LocalActionModel, TypedModel
from jaxsac.subsample_q.data.model import Model, check_discount
from jaxsac.subsample_q.data.sampling import lift
from jaxsac.subsample_q.exact.agents import (
    along_types,
    numbers_of_agents,
    plans_of,
    probe,
    said,
    surrogate,
)
from jaxsac.subsample_q.exact.iteration.criterion import expected_time
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
from jaxsac.subsample_q.exact.local_actions import (
    assignment_table,
    check_kernels,
    surrogate as surrogate_of_choices,
)
from jaxsac.subsample_q.exact.operator.expectation import kernel_tables
from jaxsac.subsample_q.exact.operator.plan import CHOICE_OF_BACKEND
from jaxsac.subsample_q.exact.table import (
    TABLE,
    Meaning,
    QTable,
    chances_of,
    greedy,
    local_kernels,
    of_each_state,
    permitted,
)

_K = anything("a size ≥ 1; of types a tuple of E of them", like=size(1))
_PLAN = anything("a `Plan`; of types a tuple of E of them")


@arguments(
    model=MODEL,
    k=_K,
    plan=_PLAN,
    backend=CHOICE_OF_BACKEND,
    criterion=choice("discounted", "average"),
    method=choice(*METHODS),
    stopping=choice("span", "sup"),
    tol=real(low=0),
    max_steps=integer(low=0),
    initial=INITIAL,
    replies=size(1),
)
def solve(
    model: Model | TypedModel | LocalActionModel,
    k: Any,
    *,
    plan: Any = None,
    backend: str = "auto",
    criterion: str = "discounted",
    method: str = "anderson",
    stopping: str = "span",
    tol: Any = None,
    max_steps: Any = 100_000,
    initial: Any = None,
    replies: int = 1,
) -> Solution:
    """Solve the k-agent surrogate exactly: the fixed point of the adapted Bellman operator, without
    sampling.

        Q(s_g, h, a) = r_g(s_g, a) + (1/k) ⟨h, r_l(s_g)⟩ + discount E[ max_a' Q(s_g', h', a') ]

    over the N = C(k+L−1, L−1) histograms h of k agents. k = n is the full problem. Of a
    `TypedModel`, with k_e agents of each type,

        Q(s_g, h, a) = r_g(s_g, a) + Σ_e shares_e ⟨h_e, r_l(e, s_g)⟩ / k_e
                       + discount E[ max_a' Q(s_g', h', a') ],   h = (h_1 ... h_E)

    over Π_e C(k_e+L−1, L−1) products of histograms, far fewer than the C(k+EL−1, EL−1) of one
    histogram over (type, state). Of a `LocalActionModel`

        Q(s_g, z, a) = r(s_g, z, a)
            + discount E[ max over a' and the z' of h' of Q(s_g', z', a') | s_g, z, a ]

    for all M = C(k+LB−1, LB−1) assignments z, with one dense kernel [M, N] for each s_g.

    * `model`: a `Model`, `TypedModel` or `LocalActionModel`.
    * `k`: agents that are sampled; of types a tuple of E numbers.
    * `plan`: from `subsample_q.plan`, where the local transitions are traced and the histograms are
      many (of types a tuple of E plans); `backend` is that of `subsample_q.plan`.
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
      the distance from the best one that nine in ten of the others have. With `terminal` states
      sup|T V − V| is multiplied by the longest expected time to one instead, for any discount.
    * `max_steps`: sweeps at most. Without one the bounds are those of the stage rewards, min and
      max of max_a r / (1 − discount).
    * `initial`: a first value [G, N], that of a smaller k through `subsample_q.lift`, or a
      Solution.
    * `replies`: static, R; more than 1 for an adversary, who sees the state and what the agent
      does. The A actions are then pairs, number a R + b for its reply b, the maximum is max_a min_b
      (one and the same of many equal replies), and the policy holds both: `simulate` and `evaluate`
      execute them on the same sample. A type of agents that the adversary moves is that of a
      `TypedModel` with local_transition [E, G, A, L, L]. U_k bounds nothing then.

    Returns: a Solution of a `QTable`, of local actions an `AssignmentTable` (NONFINITE where a
    state has no assignment that is allowed), whose state is its value [G, N]. The first sweep
    measures the operator on functions with a known expectation (stats["operator_error"]), which
    counts as rounding, in the bounds too; on concrete input a form that fails this test is replaced
    by the next. stats["method"] is a position in `subsample_q.METHODS` and stats["backend"] one in
    `subsample_q.BACKENDS`;
    num_steps counts sweeps, the test included; "average" adds stats["gain"], and the bounds are
    those of the gain.

    Map over models with `jax.vmap` (with a plan, or few histograms). q, value and bounds (average:
    gain and relative values) are differentiable in every array of the model, implicitly: the policy
    is kept fixed, one best action where several tie. In directions that change the sum of a row it
    is the derivative of the polynomial E[W(h')] = Σ over the agents' moves of Π_agents P W; second
    derivatives in them need the dense form.

    Raises: ValueError for k < 1, a discount of 1 without "average" or `terminal` and the average
    with it, tables and kernels beyond memory with the k that fits, other numbers of agents and
    plans than there are types, and second derivatives that would be wrong. Traced discounts outside
    [0, 1) end NONFINITE or MAX_STEPS.

    Source: arXiv 2403.00222, algorithm 1 (m → ∞), with stratified samples of types; local actions:
    arXiv 2412.00661, algorithm 1. Bounds: MacQueen 1966; Puterman 1994, sections 6.6 and 8.5.
    """
    average = criterion == "average"
    if not average:
        check_discount(model, may_end=True)
    _checks.require(
        not average or model.terminal is None,
        "criterion='average' of what ends is 0: drop terminal.",
    )
    ks = numbers_of_agents(k, model)
    if isinstance(model, LocalActionModel):
        check_kernels(model, k)
        attempts: Any = [None]
    else:
        attempts = plans_of(model, ks, plan, backend)
    plain = not isinstance(model, LocalActionModel) and model.allowed is None
    _checks.require(
        replies == 1 or (plain and model.num_actions % replies == 0),
        f"replies={replies} needs a model of pairs of an action and a reply, A = actions · replies,"
        " without local actions and allowed.",
    )
    settings = _settings(model, ks, tol, max_steps, initial)
    while True:
        plans = attempts.pop(0)
        solution = _solve(
            model, plans, _ready(model, plans), settings, None,
            ks=ks, replies=replies, criterion=criterion, method=method, stopping=stopping,
        )  # fmt: skip
        error = solution.stats["operator_error"]
        last = not attempts or not _checks.is_concrete(error)
        if last or float(error) <= (1e-10 if model.dtype == jnp.float64 else 1e-3):
            return solution


def _settings(model: Any, ks: Any, tol: Any, max_steps: Any, initial: Any = None) -> Settings:
    number = math.prod(num_histograms(k, model.num_local_states) for k in ks)
    return Settings.of((model.num_global_states, number), model.dtype, tol, max_steps, initial)


def _ready(model: Any, plans: Any) -> Any:
    """The tables of the kernels, made on the host where they can be: that is time and compile time
    saved.
    """
    if plans is None or not _checks.is_concrete(model, plans):
        return None
    thinning = all(plan.backend == "thinning" for plan in plans)
    return _tables(model, plans) if thinning else None


def _tables(model: Any, plans: Any) -> Any:
    kernels = local_kernels(model)
    return [kernel_tables(each, plan) for each, plan in zip(kernels, plans, strict=True)]


@functools.partial(jax.jit, static_argnames=("ks", "replies", "criterion", "method", "stopping"))
def _solve(
    model, plans, tables, settings, weights, *,
    ks, replies=1, criterion="discounted", method="anderson", stopping="span",
):  # fmt: skip
    """`weights` [G, N, A] are the chances of a policy's actions; without them the best is taken."""
    frozen = jax.tree.map(lax.stop_gradient, model)
    settings = settings._replace(initial=lax.stop_gradient(settings.initial))
    acts = isinstance(model, LocalActionModel)
    tables = _tables(frozen, plans) if tables is None and not acts else tables
    found = fixed_point(
        _surrogate(frozen, ks, plans, tables, weights, replies),
        None if acts else probe(frozen, ks),
        settings,
        None if model.terminal is None else expected_time(model.base if acts else frozen),
        criterion=criterion,
        method=method,
        stopping=stopping,
        backend="dense" if acts else plans[0].backend,
    )

    def problem(params):
        model, plans, weights = params
        return _surrogate(model, ks, plans, None, weights, replies)

    average = criterion == "average"
    attach = differentiable_average if average else differentiable
    found = attach(found, problem, (model, plans, weights))
    coupled = replies > 1 or (acts and model.couples_agents)
    on = "gain" if average else "policy" if weights is not None else "optimum"
    meaning = Meaning(ks, "coupled" if coupled else on)
    if acts:
        table = assignment_table(model, ks[0], found, meaning)
    else:
        table = _table(model, found, meaning, replies)
    return Solution(table, found.status, found.stats, found.value)


def _surrogate(
    model: Any, ks: Any, plans: Any, tables: Any, weights: Any, replies: int
) -> Surrogate:
    if isinstance(model, LocalActionModel):
        return surrogate_of_choices(model, ks[0])
    return surrogate(model, plans, tables, weights, replies)


def _table(model: Any, found: FixedPoint, meaning: Meaning, replies: int) -> QTable:
    q, ks, L = permitted(found.q, model.allowed), meaning.ks, model.num_local_states
    policy, types = greedy(q, found.stats["scale"], replies), isinstance(model, TypedModel)
    counts = enumerate_products(ks, L) if types else enumerate_counts(ks[0], L)
    return QTable(q, found.value, policy, found.bounds, jnp.asarray(counts), meaning)


@arguments(
    model=MODEL,
    policy=either(TABLE, function("(s_g, counts) -> action [], or chances [A]")),
    num_agents=_K,
    plan_n=_PLAN,
    tol=real(low=0),
    max_steps=integer(low=0),
)
def evaluate(
    model: Model | TypedModel,
    policy: Any,
    num_agents: Any,
    *,
    plan_n: Any = None,
    tol: Any = None,
    max_steps: Any = 100_000,
) -> Solution:
    """Exact value of the executed policy on a small number of agents n.

        V(s_g, h) = Σ_a π(a | s_g, h) Q(s_g, h, a),
        π(a | s_g, h) = Σ_{h_k} Hyp(h_k; h) 1{policy(s_g, h_k) = a}

    * `model`: a `Model` or `TypedModel`.
    * `policy`: a `QTable` of k ≤ n agents, or its Solution; or a rule of your own, a function of
      (s_g, counts int32 [L], of types [E, L]) that gives an action or the chances [A] of all.
    * `num_agents`: n, static; of types a tuple of E numbers.
    * `plan_n`: `subsample_q.plan` for n agents, where the transitions are traced.
    * `tol`, `max_steps`: as in `solve`.

    Returns: a Solution of a `QTable` over the n-agent histograms: value [G, N_n], q [G, N_n, A],
    MacQueen bounds on V, and as policy the greedy improvement of V; status and stats as in `solve`.
    Differentiable in the model as `solve` is, with the policy held fixed. A rule that takes an
    action that is not allowed ends NONFINITE.

    Raises: ValueError for k > n, local actions, and where the tables over all n-agent histograms do
    not fit.

    Source: arXiv 2403.00222, algorithm 2.
    """
    check_discount(model, may_end=True)
    _checks.require(
        not isinstance(model, LocalActionModel),
        "model: agents who act are not evaluated exactly: simulate, or certify.",
    )
    ns, rule = numbers_of_agents(num_agents, model, "num_agents"), not isinstance(policy, QTable)
    ks = ns if rule else policy.meaning.ks
    _checks.require(
        len(ks) == len(ns) and all(k <= n for k, n in zip(ks, ns, strict=True)),
        f"the table samples k={said(ks)} agents, more than num_agents={said(ns)}: solve for a"
        " smaller k.",
    )
    L = model.num_local_states
    for n in ns:
        size_of = model.num_global_states * (2 * model.num_actions + 12) * 8
        check_size(n, L, size_of, "num_agents")
    (plans,) = plans_of(model, ns, plan_n, "auto")[:1]
    weights = _chances(model, policy, ns) if rule else _execution_weights(policy, ns)
    if model.allowed is not None:
        wrong = (weights > 0) & ~model.allowed[:, None, :]
        weights = jnp.where(wrong, jnp.nan, weights)
    settings = _settings(model, ns, tol, max_steps)
    return _solve(model, plans, _ready(model, plans), settings, weights, ks=ns)


def _execution_weights(table: QTable, ns: tuple[int, ...]) -> jax.Array:
    """π(a | s_g, h_n), the chance of each action when agents are sampled afresh: [G, N_n, A]."""
    A, L = table.q.shape[-1], table.histograms.shape[-1]
    chosen = jax.nn.one_hot(table.policy, A, axis=1, dtype=table.q.dtype)
    shape = tuple(num_histograms(k, L) for k in table.meaning.ks)

    def lift_one(e, values):
        return lift(values.reshape(-1, values.shape[-1]), L, ns[e])

    return jnp.moveaxis(along_types(lift_one, chosen, shape), 1, 2)


def _chances(model: Any, rule: Any, ns: tuple[int, ...]) -> jax.Array:
    """The same of a rule."""
    counts = enumerate_products(ns, model.num_local_states)
    counts = jnp.asarray(counts if isinstance(model, TypedModel) else counts[:, 0])
    return of_each_state(
        model,
        lambda state, held: chances_of(rule(state, held), model.num_actions, model.dtype),
        counts,
    )
