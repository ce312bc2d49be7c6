"""Bounds on the best value on n agents, certificates of the executed policy, and the k that closes
the gap.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, choice, either, integer, key, real, size
from jaxsac.solution import register
from jaxsac.subsample_q.data.histograms import largest_k, num_histograms
from jaxsac.subsample_q.data.kinds import MODEL
from jaxsac.subsample_q.data.model import check_discount
from jaxsac.subsample_q.data.sampling import STATE, check_state, lift, sample_weights
from jaxsac.subsample_q.exact.agents import numbers_of_agents
from jaxsac.subsample_q.exact.local_actions import ANY_TABLE
from jaxsac.subsample_q.exact.solver import evaluate, solve
from jaxsac.subsample_q.execute.simulation import POLICY
from jaxsac.subsample_q.trust.gap import longest_time, rollout_losses, upper_limit


@arguments(table=ANY_TABLE, initial=STATE)
def upper_bound(table: Any, initial: tuple[Any, Any]) -> jax.Array:
    """U_k = Σ_{h_k} Hyp(h_k; h_n) V_k*(s_g, h_k) ≥ V_n*(s_g, h_n), from the upper MacQueen bound of
    V_k*; of types Σ over stratified samples.

    Any k-subset of the n agents, driven by any policy of the whole, is a controlled k-agent system,
    so its value is at most V_k*, and the full reward is the average over subsets. U_k does not
    increase in k, and U_n = V_n*.

    * `table`: of `solve`, of any kind of model whose agents share_reward or a joint `allowed` do
      not couple; or the Solution of one. Of the average criterion it is the gain that is bounded,
      at every state.
    * `initial`: (s_g, counts int32 [L], of types [E, L]).

    Returns: U_k, [], with the rounding of its own sum; NaN for a traced state that does not exist.

    Raises: ValueError for fewer than k agents, states that do not exist, and tables whose bounds
    are on something else: the value of a policy, agents that share_reward or an adversary couples.
    """
    on = table.meaning.bounds
    _checks.require(
        on in ("optimum", "gain"),
        f"table holds no bounds on the best value, but on {on!r}: pass that of `solve`"
        " of a model without share_reward, joint choices and an adversary.",
    )
    valid = _exists(table, initial)
    top = table.bounds.upper
    return jnp.where(valid, top if on == "gain" else _mean(table, top, initial), jnp.nan)


def _exists(table: Any, initial: Any, num_agents: Any = None) -> Any:
    shape = (table.policy.shape[0], *table.histograms.shape[1:])
    return check_state(initial, shape, table.meaning.ks, num_agents)


def _mean(table: Any, values: jax.Array, initial: Any) -> jax.Array:
    """Σ over samples of their chance times values [G, N] at the global state of `initial`, []."""
    weights = sample_weights(initial[1], table.meaning.ks, values.dtype)
    return jnp.vdot(weights, values[initial[0]], precision="highest")


@register
class ValueBounds(NamedTuple):
    """lower ≤ value of the executed policy ≤ V_n* ≤ upper at one state; a `lower` from the normal
    interval is approximate, and that of a gain holds for chains that mix within H / 2 steps alone.
    """

    lower: jax.Array  # []
    upper: jax.Array  # []
    gap: jax.Array  # [], upper − lower


@arguments(
    key=key(),
    model=MODEL,
    policy=POLICY,
    num_agents=either(integer(low=1), integer("E", low=1)),
    initial=STATE,
    upper=ANY_TABLE,
    num_rollouts=size(2),
    confidence=real(above=0, below=1),
    interval=choice("normal", "bounded", "exact"),
    horizon=size(1),
)
def certify(
    key: jax.Array,
    model: Any,
    policy: Any,
    num_agents: Any,
    initial: tuple[Any, Any],
    *,
    upper: Any = None,
    num_rollouts: int = 256,
    confidence: Any = 0.95,
    interval: str = "normal",
    horizon: int | None = None,
) -> ValueBounds:
    """Bounds on the best value on n agents and on what the executed policy of k attains, at one
    initial state.

        U_k' − V^π = E Σ_t discount^t D(s_t, a_t),
        D(s_g, h_n, a) = Σ_h Hyp(h; h_n) [V_k'*(s_g, h) − Q_k'*(s_g, h, a)] ≥ 0

    for the table of any k' (performance difference lemma; the agents are exchangeable), so rollouts
    estimate the gap itself: without the noise of the rewards, and 0 where all samples agree.

        gap = upper confidence limit of the mean of Σ_{t < H} discount^t D
              + discount^H max D / (1 − discount) + 2 ε

    with ε the half-width of the bounds of the table of k' (its Bellman residual, and the error of
    its operator, / (1 − discount)), once for V_k' and once for what its differences miss, and max D
    over the actions of the policy. Where agents act, Q_k'*(s_g, z, a) is averaged over the samples
    z of what all of them do. With `terminal` states the longest expected time W to one stands for 1
    / (1 − discount), and 1 − 1 / W for the discount of the rest after H. For a table of the average
    criterion the gap is one of gains: the limit of the mean of D over the steps from H / 2 to H,
    plus the width of the gain's bounds; what H / 2 steps leave of the start is not counted, for it
    has no computable bound. `upper` = U_k' (see `upper_bound`, no confidence involved), `lower` =
    upper − gap. Not valid where local agents interact or differ in other ways than their types.

    * `key`: consumed.
    * `model`: of any kind, as `simulate` takes it.
    * `policy`: as `simulate` takes it: a table, its Solution, or a rule (which needs `upper`).
    * `num_agents`: n, at least k and k'; of types int32 [E].
    * `initial`: (s_g, counts int32 [L] that sum to num_agents; of types [E, L]).
    * `upper`: the table of k' that gives V_k' and Q_k', of `solve` on the same model; by default
      `policy`. U does not increase in k': give the largest that you can afford, and always for a
      policy that was learnt, whose own bounds are trivial.
    * `num_rollouts`: R ≥ 2, static.
    * `confidence`: in (0, 1).
    * `interval`: "normal": Student's, approximate, for it trusts that means are normal, which
      losses rarer than one in some R betray; the only one for the average criterion. "bounded":
      holds for every law, by betting; wider, by about 4 max D / ((1 − discount) R) at a confidence
      of 95 %. "exact": the exact value of the policy instead of rollouts and confidence, for small
      n (num_agents static then), not for agents who act.
    * `horizon`: H, static; by default the rest after it is at most 1e-4 of max D / (1 − discount)
      (average: 1,000; at least 100, and many times what the chain needs to mix). A traced discount
      needs it.

    Returns: `ValueBounds`.

    Raises: ValueError for a discount of 1 without `terminal`, and as `upper_bound` and `simulate`
    do.

    Source: Kakade and Langford 2002 (the lemma); Waudby-Smith and Ramdas 2024 (betting).
    """
    reference = policy if upper is None else upper
    _checks.require(not callable(reference), "policy is a rule: pass upper= a table of `solve`.")
    average = reference.meaning.bounds == "gain"
    if average:
        _checks.require(
            interval == "normal", "interval must be 'normal' for the average criterion."
        )
        _checks.require(
            horizon is None or horizon >= 100,
            f"horizon must be ≥ 100 for the average criterion, got {horizon}.",
        )
    else:
        check_discount(model, may_end=True)
    top = upper_bound(reference, initial)
    if interval == "exact":
        _exists(reference, initial, num_agents)
        ns = np.asarray(num_agents).tolist() if _checks.is_concrete(num_agents) else num_agents
        value = evaluate(model, policy, ns).value
        valid = _exists(value, initial)
        lower = jnp.where(valid, _mean(value, value.bounds.lower, initial), jnp.nan)
        return ValueBounds(lower, top, top - lower)
    if horizon is None and average:
        horizon = 1000
    elif horizon is None:
        known = _checks.is_concrete(model.discount if model.terminal is None else model)
        _checks.require(known, "discount is traced: pass horizon=.")
        rest = 1 - 1 / float(jnp.max(longest_time(model)))
        horizon = 1 if rest <= 0 else max(1, math.ceil(math.log(1e-4) / math.log(rest)))
    losses = rollout_losses(
        key, model, policy, reference, num_agents, initial, num_rollouts, horizon
    )
    limit = upper_limit(losses, jnp.asarray(confidence), interval=interval)
    bounds = reference.bounds
    width = jnp.max(bounds.upper - bounds.lower)
    if average:
        return ValueBounds(top - limit - width, top, limit + width)
    # of V − Q, in every term of the sum over time
    largest = jnp.max(jnp.abs(bounds.upper)) * jnp.max(longest_time(model))
    gap = limit + losses.tail + width + 4 * jnp.finfo(width.dtype).eps * largest
    return ValueBounds(top - gap, top, gap)


@arguments(
    key=key(),
    model=MODEL,
    num_agents=anything("a size ≥ 1; of types a tuple of E of them", like=size(1)),
    gap=real(low=0),
    initial=STATE,
    max_k=size(1),
    num_rollouts=size(2),
    confidence=real(above=0, below=1),
    interval=choice("normal", "bounded", "exact"),
    tol=real(low=0),
)
def choose_k(
    key: jax.Array,
    model: Any,
    num_agents: Any,
    gap: float,
    initial: tuple[Any, Any],
    *,
    max_k: int | None = None,
    num_rollouts: int = 256,
    confidence: float = 0.95,
    interval: str = "normal",
    tol: Any = None,
) -> tuple[Any, ValueBounds]:
    """The smallest k on the ladder 1, 2, 4, 8, ..., max_k whose certified gap at `initial` is at
    most `gap`; on the host.

    Each k starts from the lifted value of the one before (but of types). The confidence is shared
    over the ladder (union bound), so it holds, as approximately as that of `certify`, for the k
    that is returned. Of types all numbers climb together, each up to its num_agents.

    * `key`: consumed.
    * `model`: of any kind whose agents nothing couples.
    * `num_agents`: n; of types a tuple of E numbers.
    * `gap`: in units of the value.
    * `max_k`: by default the largest k ≤ num_agents with at most 50,000 histograms (assignments,
      where agents act).
    * the others: as in `certify` and `solve`.

    Returns: (k, its `ValueBounds`); if no k meets the target, those of the least gap: check
    `bounds.gap <= gap`.
    """
    check_discount(model, may_end=True)
    ns, L = numbers_of_agents(num_agents, model, "num_agents"), model.num_local_states
    types = np.ndim(initial[1]) == 2
    check_state(
        initial, (model.num_global_states, *np.shape(initial[1])), (1,) * len(ns),
        np.asarray(ns) if types else ns[0], model.dtype,
    )  # fmt: skip
    ladder = _ladder(ns, max_k, model)
    best: tuple[Any, ValueBounds] | None = None
    previous = None
    shared = 1 - (1 - confidence) / len(ladder)
    for position, ks in enumerate(ladder):
        k = ks if types else ks[0]
        start = None if previous is None or types else lift(previous, L, ks[0])
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
        )
        least = math.nan if best is None else float(best[1].gap)
        if math.isnan(least) or float(bounds.gap) < least:
            best = k, bounds
        if float(bounds.gap) <= gap:
            return k, bounds
    assert best is not None
    return best


def _ladder(ns: tuple[int, ...], max_k: int | None, model: Any) -> list[tuple[int, ...]]:
    """ks of growing size, each at most the numbers of agents."""
    cells = model.num_local_states * getattr(model, "num_local_actions", 1)

    def number(k: int) -> int:
        return math.prod(num_histograms(min(k, n), cells) for n in ns)

    most = min(max(ns), 4096)
    max_k = largest_k(most + 1, lambda k: number(k) <= 50_000) if max_k is None else max_k
    top = min(max(ns), max_k)
    steps = [1]
    while steps[-1] < top:
        steps.append(min(top, 2 * steps[-1]))
    return [tuple(min(k, n) for n in ns) for k in steps]
