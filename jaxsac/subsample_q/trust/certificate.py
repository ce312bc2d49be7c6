"""Bounds on the best value on n agents, certificates of the executed policy, and the k that closes
the gap.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, choice, flag, integer, key, real, record, size
from jaxsac.solution import register
from jaxsac.subsample_q.data.histograms import largest_k, num_histograms
from jaxsac.subsample_q.data.model import MODEL, Model, check_discount
from jaxsac.subsample_q.data.sampling import (
    STATE,
    TYPED_STATE,
    check_state,
    hypergeometric_weights,
    lifted,
)
from jaxsac.subsample_q.exact.agent_types import TYPED_TABLE, table_ks
from jaxsac.subsample_q.exact.local_actions import AssignmentTable
from jaxsac.subsample_q.exact.solver import evaluate, solve
from jaxsac.subsample_q.exact.table import TABLE, QTable, table_sizes
from jaxsac.subsample_q.trust.gap import rollout_losses, upper_limit


@arguments(table=record(QTable, AssignmentTable, sizes=table_sizes), initial=STATE)
def upper_bound(table: Any, initial: tuple[Any, Any]) -> jax.Array:
    """U_k = Σ_{h_k} Hyp(h_k; h_n) V_k*(s_g, h_k) ≥ V_n*(s_g, h_n), from the upper MacQueen bound of
    V_k*.

    Any k-subset of the n agents, driven by any policy of the whole, is a controlled k-agent system,
    so its value is at most V_k*, and the full reward is the average over subsets. U_k does not
    increase in k, and U_n = V_n*.

    * `table`: a `QTable` of `solve` with the discounted criterion, an `AssignmentTable` of a model
      without share_reward and allowed, or the Solution of one.
    * `initial`: (s_g, counts int32 [L]).

    Returns: U_k, [], with the rounding of its own sum; NaN for a traced state that does not exist.

    Raises: ValueError for fewer than k agents, states that do not exist, and tables whose bounds
    are on something else: the gain, the value of a policy, agents that share_reward couples.
    """
    (k,) = table.meaning.ks
    weights = hypergeometric_weights(initial[1], k, table.value.dtype)
    return _upper(weights, table, initial, k)


@arguments(
    table=TYPED_TABLE,
    ks=anything("E integers ≥ 1: agents sampled of each type"),
    initial=TYPED_STATE,
)
def upper_bound_types(table: Any, ks: Sequence[int], initial: tuple[Any, Any]) -> jax.Array:
    """U = Σ over stratified samples of their chance times V*(s_g, h) ≥ V_n*(s_g, counts), for
    counts int32 [E, L]: as `upper_bound`, [].
    """
    ks, dtype = table_ks(table, ks), table.value.dtype
    weights = [hypergeometric_weights(initial[1][e], k, dtype) for e, k in enumerate(ks)]
    joint = functools.reduce(
        lambda left, right: (left[:, None] * right[None, :]).reshape(-1), weights
    )
    return _upper(joint, table, initial, ks)


def _upper(weights: jax.Array, table: Any, initial: Any, ks: Any) -> jax.Array:
    """⟨weights [N], upper bounds [G, N] at the global state⟩, []."""
    on = table.meaning.bounds
    _checks.require(
        on == "optimum",
        f"table holds no bounds on the best value, but on {on!r}: pass that of a discounted `solve`"
        " of a model without share_reward and allowed.",
    )
    valid = check_state(initial, table.policy.shape[0], ks)
    return jnp.where(valid, _mean_at(weights, table.bounds.upper, initial), jnp.nan)


def _mean_at(weights: jax.Array, values: jax.Array, initial: Any) -> jax.Array:
    """⟨weights [N], values [G, N] at the global state of `initial`⟩, []."""
    return jnp.vdot(weights, values[initial[0]], precision="highest")


@register
class ValueBounds(NamedTuple):
    """lower ≤ value of the executed policy ≤ V_n* ≤ upper at one state; a `lower` from the normal
    interval is approximate.
    """

    lower: jax.Array  # []
    upper: jax.Array  # []
    gap: jax.Array  # [], upper − lower


@arguments(
    key=key(),
    model=MODEL,
    table=TABLE,
    num_agents=integer(low=1),
    initial=STATE,
    upper=TABLE,
    num_rollouts=size(2),
    confidence=real(above=0, below=1),
    interval=choice("normal", "bounded"),
    horizon=size(1),
    exact=flag(),
)
def certify(
    key: jax.Array,
    model: Model,
    table: Any,
    num_agents: Any,
    initial: tuple[Any, Any],
    *,
    upper: Any = None,
    num_rollouts: int = 256,
    confidence: Any = 0.95,
    interval: str = "normal",
    horizon: int | None = None,
    exact: bool = False,
) -> ValueBounds:
    """Bounds on the best value on n agents and on what the executed policy of k attains, at one
    initial state.

        U_k' − V^π = E Σ_t discount^t D(s_t, a_t),
        D(s_g, h_n, a) = Σ_h Hyp(h; h_n) [V_k'*(s_g, h) − Q_k'*(s_g, h, a)] ≥ 0

    for the table of any k' (performance difference lemma; the agents are exchangeable), so rollouts
    estimate the gap itself: without the noise of the rewards, and 0 where all samples agree.

        gap = upper confidence limit of the mean of Σ_{t < H} discount^t D
              + discount^H max D / (1 − discount) + 2 ε

    with ε the half-width of the bounds of the table of k' (its Bellman residual / (1 − discount)),
    once for V_k' and once for what its differences miss, and max D over the actions of the policy.
    `upper` = U_k' (see `upper_bound`, no confidence involved), `lower` = upper − gap.
    Not valid where local agents interact or differ.

    * `key`: consumed.
    * `table`: a `QTable` whose policy is executed, or its Solution.
    * `num_agents`: n, at least k and k'.
    * `initial`: (s_g, counts int32 [L] that sum to num_agents).
    * `upper`: the table of k' that gives V_k' and Q_k', of `solve` with the discounted criterion on
      the same model; by default `table`. U does not increase in k': give the largest that you can
      afford, and always for a policy that was learnt, whose own bounds are trivial.
    * `num_rollouts`: R ≥ 2, static.
    * `confidence`: in (0, 1).
    * `interval`: "normal": Student's, approximate, for it trusts that means are normal, which
      losses rarer than one in some R betray. "bounded": holds for every law, by betting; wider, by
      about 4 max D / ((1 − discount) R) at a confidence of 95 %.
    * `horizon`: H, static; by default discount^H ≤ 1e-4. A traced discount needs it.
    * `exact`: the exact value of the policy instead of rollouts and confidence, for small n
      (num_agents static then).

    Returns: `ValueBounds`.

    Raises: ValueError for a discount of 1, and as `upper_bound` and `simulate` do.

    Source: Kakade and Langford 2002 (the lemma); Waudby-Smith and Ramdas 2024 (betting).
    """
    check_discount(model)
    reference = table if upper is None else upper
    top = upper_bound(reference, initial)
    if exact:
        n = size(1).take("num_agents", num_agents)
        valid = check_state(initial, model.num_global_states, table.meaning.ks[0], n)
        bounds = evaluate(model, table, n).value.bounds
        weights = hypergeometric_weights(initial[1], n, model.dtype)
        lower = jnp.where(valid, _mean_at(weights, bounds.lower, initial), jnp.nan)
        return ValueBounds(lower, top, top - lower)
    if horizon is None:
        _checks.require(_checks.is_concrete(model.discount), "discount is traced: pass horizon=.")
        discount = float(model.discount)
        horizon = 1 if discount == 0 else max(1, math.ceil(math.log(1e-4) / math.log(discount)))
    losses = rollout_losses(
        key, model, table, reference, num_agents, initial, num_rollouts, horizon
    )
    limit = upper_limit(losses, jnp.asarray(confidence), interval=interval)
    bounds, discount = reference.bounds, jnp.asarray(model.discount)
    width = jnp.max(bounds.upper - bounds.lower)
    # of V − Q, in every term of the sum over time
    rounding = 4 * jnp.finfo(width.dtype).eps * jnp.max(jnp.abs(bounds.upper)) / (1 - discount)
    gap = limit + losses.tail + width + rounding
    return ValueBounds(top - gap, top, gap)


@arguments(
    key=key(),
    model=MODEL,
    num_agents=size(1),
    gap=real(low=0),
    initial=STATE,
    max_k=size(1),
    num_rollouts=size(2),
    confidence=real(above=0, below=1),
    interval=choice("normal", "bounded"),
    tol=real(low=0),
    exact=flag(),
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
    interval: str = "normal",
    tol: Any = None,
    exact: bool = False,
) -> tuple[int, ValueBounds]:
    """The smallest k on the ladder 1, 2, 4, 8, ..., max_k whose certified gap at `initial` is at
    most `gap`; on the host.

    Each k starts from the lifted value of the one before. The confidence is shared over the ladder
    (union bound), so it holds, as approximately as that of `certify`, for the k that is returned.

    * `key`: consumed.
    * `gap`: in units of the value.
    * `max_k`: by default the largest k ≤ num_agents with at most 50,000 histograms.
    * the others: as in `certify` and `solve`.

    Returns: (k, its `ValueBounds`); if no k meets the target, those of the least gap: check
    `bounds.gap <= gap`.
    """
    L = model.num_local_states
    check_discount(model)
    check_state(initial, model.num_global_states, 1, num_agents, model.dtype)
    ladder = _ladder(num_agents, max_k, L)
    best: tuple[int, ValueBounds] | None = None
    previous = None
    shared = 1 - (1 - confidence) / len(ladder)
    for position, k in enumerate(ladder):
        start = None if previous is None else lifted(previous, L, k)
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
            interval=interval,
            exact=exact,
        )
        least = math.nan if best is None else float(best[1].gap)
        if math.isnan(least) or float(bounds.gap) < least:
            best = k, bounds
        if float(bounds.gap) <= gap:
            return k, bounds
    assert best is not None
    return best


def _ladder(num_agents: int, max_k: int | None, num_states: int) -> list[int]:
    if max_k is None:
        most = min(num_agents, 4096)
        max_k = largest_k(most + 1, lambda k: num_histograms(k, num_states) <= 50_000)
    top = min(num_agents, max_k)
    steps = [1]
    while steps[-1] < top:
        steps.append(min(top, 2 * steps[-1]))
    return steps
