"""Bounds on the best value on n agents, certificates of the executed policy, and the k that closes
the gap.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac.solution import register
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.data.sampling import agents_of, hypergeometric_weights, lift
from jaxsac.subsample_q.exact.solver import evaluate, solve
from jaxsac.subsample_q.exact.table import value_of
from jaxsac.subsample_q.execute.simulation import simulate


def upper_bound(table: Any, initial: tuple[Any, Any]) -> jax.Array:
    """U_k = Σ_{h_k} Hyp(h_k; h_n) V_k*(s_g, h_k) ≥ V_n*(s_g, h_n), from the upper MacQueen bound of
    V_k*.

    Any k-subset of the n agents, driven by any policy of the whole, is a controlled k-agent system,
    so its value is at most V_k*, and the full reward is the average over subsets. U_k does not
    increase in k, and U_n = V_n*.

    * `table`: a `QTable` of `solve`, or its Solution.
    * `initial`: (s_g, counts int32 [L]).

    Returns: U_k, [].

    Raises: ValueError for fewer than k agents.
    """
    table, counts = value_of(table), jnp.asarray(initial[1], jnp.int32)
    k = agents_of(table.value.shape[1], counts.shape[0])
    _checks.require(
        not _checks.is_concrete(initial[1]) or int(np.sum(initial[1])) >= k,
        f"the table samples k={k} agents, more than the {np.sum(initial[1])} of initial.",
    )
    weights = hypergeometric_weights(counts, k, table.value.dtype)
    return mean_at(weights, table.bounds.upper, initial[0])


def upper_bound_types(table: Any, ks: Sequence[int], initial: tuple[Any, Any]) -> jax.Array:
    """U = Σ over stratified samples of their chance times V*(s_g, h) ≥ V_n*(s_g, counts), for
    counts int32 [E, L]: as `upper_bound`, [].
    """
    table, counts = value_of(table), jnp.asarray(initial[1], jnp.int32)
    weights = [hypergeometric_weights(counts[e], k, table.value.dtype) for e, k in enumerate(ks)]
    joint = functools.reduce(
        lambda left, right: (left[:, None] * right[None, :]).reshape(-1), weights
    )
    return mean_at(joint, table.bounds.upper, initial[0])


def mean_at(weights: jax.Array, values: jax.Array, global_state: Any) -> jax.Array:
    """⟨weights [N], values [G, N] at the global state⟩, []."""
    return jnp.vdot(weights, values[jnp.asarray(global_state, jnp.int32)], precision="highest")


@register
class GapBounds(NamedTuple):
    """lower ≤ value of the executed policy ≤ V_n* ≤ upper at one state."""

    lower: jax.Array  # []
    upper: jax.Array  # []
    gap: jax.Array  # [], upper − lower


def certify(
    key: jax.Array,
    model: Model,
    table: Any,
    num_agents: Any,
    initial: tuple[Any, Any],
    *,
    num_rollouts: int = 256,
    confidence: Any = 0.95,
    horizon: int | None = None,
    exact: bool = False,
) -> GapBounds:
    """Bounds on the best value on n agents and on what the executed policy of k attains, at one
    initial state.

        upper = U_k (see `upper_bound`, no confidence involved)
        lower = mean of the discounted returns − t · standard error
                + discount^H min(r) / (1 − discount)

    with t the one-sided Student quantile of `confidence` at num_rollouts − 1 degrees of freedom,
    and the last term a bound on the reward after the horizon H. Not valid where local agents
    interact or differ. Proof of U_k: see `upper_bound`.

    * `key`: consumed.
    * `table`: a `QTable` of `solve` with the discounted criterion, or its Solution: a sampled table
      has no upper bound.
    * `initial`: (s_g, counts int32 [L] that sum to num_agents).
    * `num_rollouts`: ≥ 2, static.
    * `horizon`: H, static; by default discount^H ≤ 1e-4. A traced discount needs it.
    * `exact`: the exact value of the policy instead of rollouts and confidence, for small n
      (num_agents static then).

    Returns: `GapBounds`.
    """
    table = value_of(table)
    upper = upper_bound(table, initial)
    if exact:
        n = _checks.static_integer("num_agents", num_agents, 1)
        bounds = evaluate(model, table, n).value.bounds
        weights = hypergeometric_weights(jnp.asarray(initial[1], jnp.int32), n, model.dtype)
        lower = mean_at(weights, bounds.lower, initial[0])
        return GapBounds(lower, upper, upper - lower)
    _checks.static_integer("num_rollouts", num_rollouts, 2)
    if horizon is None:
        _checks.require(_checks.is_concrete(model.discount), "discount is traced: pass horizon=.")
        discount = float(model.discount)
        horizon = 1 if discount == 0 else max(1, math.ceil(math.log(1e-4) / math.log(discount)))
    returns = jax.vmap(
        lambda key: simulate(key, model, table, num_agents, horizon, initial).discounted_return
    )(jax.random.split(key, num_rollouts))
    confidence = _checks.real_scalar("confidence", confidence, model.dtype)
    lower = _lower_bound(returns, model, confidence, horizon)
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
    most `gap`; on the host.

    Each k starts from the lifted value of the one before. The confidence is shared over the ladder
    (union bound), so it holds for the k that is returned.

    * `key`: consumed.
    * `gap`: in units of the value.
    * `max_k`: by default the largest k ≤ num_agents with at most 50,000 histograms.
    * the others: as in `certify` and `solve`.

    Returns: (k, its `GapBounds`); if no k meets the target, those of the least gap: check
    `bounds.gap <= gap`.
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
            solution,
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
