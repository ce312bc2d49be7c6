"""How good the executed policy is on n agents: its value, an upper bound on the best value, and the
k that closes the gap.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks
from jaxsac.solution import Solution
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.operators import BACKENDS, Plan, expectation, plan, prepare, product_test
from jaxsac.subsample_q.data.sampling import agents_of, hypergeometric_weights, lift
from jaxsac.subsample_q.simulate import simulate
from jaxsac.subsample_q.solver import (
    QTable,
    attach_derivative,
    fixed_point,
    solve,
    solver_arguments,
)


class GapBounds(NamedTuple):
    """lower ≤ value of the executed policy ≤ V_n* ≤ upper at one state; gap = upper - lower. All
    [].
    """

    lower: jax.Array
    upper: jax.Array
    gap: jax.Array


def execution_weights(table: QTable, num_actions: int, num_agents: int) -> jax.Array:
    """pi(a | s_g, h_n), the chance of each action when k agents are sampled afresh: [G, N_n, A]."""
    one_hot = jax.nn.one_hot(table.policy, num_actions, axis=1, dtype=table.q.dtype)  # [G, A, N_k]
    G, A, _ = one_hot.shape
    lifted = lift(one_hot.reshape(G * A, -1), table.histograms.shape[-1], num_agents)
    return jnp.moveaxis(lifted.reshape(G, A, -1), 1, 2)


def evaluate(
    model: Model,
    table: QTable,
    num_agents: int,
    *,
    plan_n: Plan | None = None,
    tol: Any = None,
    max_steps: Any = 100_000,
) -> Solution:
    """Exact value of the executed policy on a small number of agents: a Solution whose value is a
    QTable over the n-agent histograms.

        V(s_g, h) = sum_a pi(a | s_g, h) Q(s_g, h, a),  pi(a | s_g, h) = sum_{h_k} Hyp(h_k; h)
        1{policy(s_g, h_k) = a}

    value [G, N_n], q [G, N_n, A] and MacQueen bounds on V, with tol and status as in `solve`;
    `policy` is the greedy improvement of V. Differentiable in the model as `solve` is, with the
    policy held fixed. Needs tables over all n-agent histograms: a ValueError says which n fits.
    Source: arXiv 2403.00222, algorithm 2.
    """
    n = _checks.static_integer("num_agents", num_agents, 1)
    k = agents_of(table.policy.shape[1], model.num_local_states)
    _checks.require(
        k <= n, f"the table samples k={k} agents, more than num_agents={n}: solve for a smaller k."
    )
    plan_n = plan(model, n) if plan_n is None else plan_n
    weights = execution_weights(table, model.num_actions, n)
    return _evaluate(model, plan_n, weights, *solver_arguments(model, n, tol, max_steps, 0, None))


@jax.jit
def _evaluate(model, plan_n, weights, tol, max_steps, evaluation_sweeps, initial):
    frozen = jax.tree.map(lax.stop_gradient, model)
    operator = prepare(frozen, plan_n)
    solution = fixed_point(
        frozen,
        plan_n.k,
        lambda values: expectation(operator, values, plan_n, model.num_local_states),
        product_test(frozen, plan_n.k),
        (tol, max_steps, evaluation_sweeps, initial),
        criterion="discounted",
        method="anderson",
        stopping="span",
        action_weights=weights,
    )
    solution.stats["backend"] = jnp.int32(BACKENDS.index(plan_n.backend))
    return attach_derivative(model, plan_n, solution, weights)


def upper_bound(table: QTable, initial: tuple[Any, Any]) -> jax.Array:
    """U_k = sum_{h_k} Hyp(h_k; h_n) V_k*(s_g, h_k) ≥ V_n*(s_g, h_n) at (s_g, counts int32 [L]),
    from the upper MacQueen bound of V_k*: [].

    Any k-subset of the n agents, driven by any policy of the whole, is a controlled k-agent system,
    so its value is at most V_k*, and the full reward is the average over subsets. U_k does not
    increase in k, and U_n = V_n*. ValueError for fewer than k agents.
    """
    counts = jnp.asarray(initial[1], jnp.int32)
    k = agents_of(table.value.shape[1], counts.shape[0])
    if _checks.is_concrete(initial[1]):
        _checks.require(
            int(np.sum(initial[1])) >= k,
            f"the table samples k={k} agents, more than the {np.sum(initial[1])} of initial.",
        )
    weights = hypergeometric_weights(counts, k, table.value.dtype)
    return jnp.vdot(
        weights, table.bounds.upper[jnp.asarray(initial[0], jnp.int32)], precision="highest"
    )


def certify(
    key: jax.Array,
    model: Model,
    table: QTable,
    num_agents: Any,
    initial: tuple[Any, Any],
    *,
    num_rollouts: int = 256,
    confidence: Any = 0.95,
    horizon: int | None = None,
    exact: bool = False,
) -> GapBounds:
    """Bounds on the best value on n agents and on what the executed policy of k attains, at one
    initial state (s_g, counts).

        upper = U_k (see `upper_bound`, no confidence involved) lower = mean of the discounted
        returns - t * standard error + discount^H min(r) / (1 - discount)

    with t the one-sided Student quantile of `confidence` at num_rollouts - 1 degrees of freedom,
    and the last term a bound on the reward after the horizon H (default: discount^H ≤ 1e-4; a
    traced discount needs `horizon`). exact=True replaces rollouts and confidence by the exact value
    of the policy, for small n (num_agents static then). `table` must come from `solve` with the
    discounted criterion: a sampled table has no upper bound. The key is consumed. Not valid where
    local agents interact or differ. Proof of U_k: see `upper_bound`.
    """
    upper = upper_bound(table, initial)
    if exact:
        n = _checks.static_integer("num_agents", num_agents, 1)
        solution = evaluate(model, table, n)
        weights = hypergeometric_weights(jnp.asarray(initial[1], jnp.int32), n, model.dtype)
        lower = jnp.vdot(
            weights,
            solution.value.bounds.lower[jnp.asarray(initial[0], jnp.int32)],
            precision="highest",
        )
        return GapBounds(lower, upper, upper - lower)
    _checks.static_integer("num_rollouts", num_rollouts, 2)
    if horizon is None:
        _checks.require(_checks.is_concrete(model.discount), "discount is traced: pass horizon=.")
        discount = float(model.discount)
        horizon = 1 if discount == 0 else max(1, math.ceil(math.log(1e-4) / math.log(discount)))
    keys = jax.random.split(key, num_rollouts)
    returns = jax.vmap(
        lambda key: simulate(key, model, table, num_agents, horizon, initial).discounted_return
    )(keys)
    lower = _lower_bound(
        returns, model, _checks.real_scalar("confidence", confidence, model.dtype), horizon
    )
    return GapBounds(lower, upper, upper - lower)


@functools.partial(jax.jit, static_argnames="horizon")
def _lower_bound(
    returns: jax.Array, model: Model, confidence: jax.Array, horizon: int
) -> jax.Array:
    count = returns.shape[0]
    error = jnp.std(returns, ddof=1) / math.sqrt(count)
    least = jnp.min(
        jnp.min(model.global_reward, axis=-1)
        + jnp.min(model.local_reward.reshape(model.num_global_states, -1), axis=-1)
    )
    tail = model.discount**horizon * least / (1 - model.discount)
    return jnp.mean(returns) - student_quantile(confidence, count - 1) * error + tail


def student_quantile(confidence: jax.Array, degrees: int) -> jax.Array:
    """Quantile of Student's t by the Cornish-Fisher series (Abramowitz and Stegun 26.7.5); 1e-3 off
    at 10 degrees, less beyond.
    """
    z = jax.scipy.special.ndtri(confidence)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(
        (term / degrees ** (power + 1) for power, term in enumerate(terms[1:], 1)),
        terms[0] / degrees,
    )


def choose_k(
    key: jax.Array,
    model: Model,
    num_agents: int,
    gap: float,
    initial: tuple[Any, Any],
    *,
    max_k: int | None = None,
    num_rollouts: int = 256,
    confidence: float = 0.95,
    tol: Any = None,
    exact: bool = False,
) -> tuple[int, GapBounds]:
    """The smallest k on the ladder 1, 2, 4, 8, ..., max_k whose certified gap at `initial` is at
    most `gap`. On the host.

    Each k starts from the lifted value of the one before. The confidence is shared over the ladder
    (union bound), so it holds for the k that is returned. If no k meets the target, the one with
    the least gap is returned, with its bounds: check `bounds.gap <= gap`. max_k defaults to the
    largest k ≤ num_agents with at most 50,000 histograms. The key is consumed. Arguments as in
    `certify` and `solve`.
    """
    L = model.num_local_states
    ladder = _ladder(num_agents, max_k, L)
    best: tuple[int, GapBounds] | None = None
    previous = None
    shared = 1 - (1 - confidence) / len(ladder)
    for position, k in enumerate(ladder):
        start = None if previous is None else lift(previous, L, k)
        solution = solve(model, k, initial=start, tol=tol).check()
        previous = solution.value.value
        bounds = certify(
            jax.random.fold_in(key, position),
            model,
            solution.value,
            num_agents,
            initial,
            num_rollouts=num_rollouts,
            confidence=shared,
            exact=exact,
        )
        if best is None or float(bounds.gap) < float(best[1].gap):
            best = k, bounds
        if float(bounds.gap) <= gap:
            return k, bounds
    assert best is not None
    return best


def _ladder(num_agents: int, max_k: int | None, num_states: int) -> list[int]:
    n = _checks.static_integer("num_agents", num_agents, 1)
    if max_k is None:
        max_k = 1
        while (
            max_k < n and math.comb(max_k + num_states, num_states - 1) <= 50_000 and max_k < 4096
        ):
            max_k += 1
    top = min(n, _checks.static_integer("max_k", max_k, 1))
    steps = [1]
    while steps[-1] < top:
        steps.append(min(top, 2 * steps[-1]))
    return steps


def sampling_error(num_local_states: int, k: int, num_agents: int) -> float:
    """E TV(sample, population) ≤ 1/2 sqrt((L-1)/k (n-k)/(n-1)): how far a sample's shares are from
    the population's, at most.

    Rigorous (hypergeometric variance and Cauchy-Schwarz) and zero at k = n; the paper's constants
    are far looser and are not used anywhere.
    """
    n, L = num_agents, num_local_states
    return 0.5 * math.sqrt((L - 1) / k * (n - k) / max(n - 1, 1))


def population_state(global_state: int, shares: Any, num_agents: int) -> tuple[int, np.ndarray]:
    """An initial state (s_g, counts int32 [L]) whose counts are num_agents · shares, rounded to the
    largest remainders.
    """
    shares = np.asarray(shares, float) / np.sum(shares)
    counts = np.floor(shares * num_agents).astype(np.int32)
    order = np.argsort(counts - shares * num_agents, kind="stable")
    counts[order[: num_agents - counts.sum()]] += 1
    return global_state, counts
