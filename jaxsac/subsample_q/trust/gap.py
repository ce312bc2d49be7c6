"""The loss of an executed policy against a table, from rollouts on n agents, and upper confidence
limits of its mean.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac._quantiles import crossing, student_quantile
from jaxsac.subsample_q.data.sampling import sample_weights
from jaxsac.subsample_q.exact.iteration.criterion import expected_time
from jaxsac.subsample_q.exact.local_actions import AssignmentTable, assignments_of, possible
from jaxsac.subsample_q.execute.simulation import check_kind, simulate

_NUM_BETS = 16  # of different sizes, which `betting_limit` makes at once


class Losses(NamedTuple):
    """Σ_t discount^t D(g_t, h_t, a_t) of each rollout, within 0 and `most`; under the average
    criterion the mean of D over the later half.
    """

    sums: jax.Array  # [R]
    most: jax.Array  # []
    tail: jax.Array  # [], the most that is lost after the horizon


def longest_time(model: Any) -> jax.Array:
    """1 / (1 − discount), [1], or the longest expected time to the end, [G]."""
    if model.terminal is None:
        return 1 / (1 - jnp.atleast_1d(jnp.asarray(model.discount)))
    return expected_time(getattr(model, "base", model))


def rollout_losses(
    key: jax.Array,
    model: Any,
    policy: Any,
    reference: Any,
    num_agents: Any,
    initial: Any,
    num_rollouts: int,
    horizon: int,
) -> Losses:
    """What each of `num_rollouts` runs of `policy` loses, D(g, h_n, a) = Σ_h Hyp(h; h_n) [V(g, h) −
    Q(g, h, a)] a step, for V and Q = those of `reference`; where agents act, over the samples of
    what all of them do.
    """
    check_kind(model, reference)
    missed = _advantages(model, reference)

    average, discount = reference.meaning.bounds == "gain", model.discount
    time = jnp.arange(horizon, dtype=model.dtype)
    later = (time >= horizon // 2).astype(model.dtype)
    weights = later / jnp.sum(later) if average else discount**time

    def one(key):
        run = simulate(key, model, policy, num_agents, horizon, initial)
        return _lost(run, missed, reference.meaning.ks, weights)

    sums = jax.vmap(one)(jax.random.split(key, num_rollouts))
    if not callable(policy):  # of the actions that it takes
        A = reference.q.shape[-1]
        taken = jnp.any(jax.nn.one_hot(policy.policy, A, dtype=bool), axis=1)  # [G, A]
        missed = jnp.where(taken[:, None], missed, 0)
    worst = jnp.max(missed)
    if average:
        return Losses(sums, worst, 0 * worst)
    longest = jnp.max(longest_time(model))
    rest = (1 - 1 / longest) ** horizon
    ends = discount == 1
    terms = jnp.where(ends, horizon, (1 - discount**horizon) / jnp.where(ends, 1, 1 - discount))
    return Losses(sums, worst * terms, worst * rest * longest)


def _advantages(model: Any, table: Any) -> jax.Array:
    """V − Q ≥ 0 where it may be chosen, else 0: [G, N, A], of assignments [G, M, A]."""
    if not isinstance(table, AssignmentTable):
        allowed = True if model.allowed is None else model.allowed[:, None, :]
        return jnp.where(allowed, jnp.max(table.q, axis=-1, keepdims=True) - table.q, 0)
    (k,), (L, B) = table.meaning.ks, table.assignments.shape[1:]
    assignments, belongs = assignments_of(k, L, B)
    may = possible(model, assignments)[..., None]
    return jnp.where(may, table.value[:, belongs, None] - table.q, 0)


@functools.partial(jax.jit, static_argnames="ks")
def _lost(run, missed, ks, weights):
    def step(total, stage):
        global_state, agents, action, reward, weight = stage
        chances = sample_weights(agents, ks, missed.dtype)
        lost = jnp.vdot(chances, missed[global_state, :, action], precision="highest")
        # a run from a state that does not exist has NaN rewards
        return total + weight * (lost + 0 * reward), None

    agents = run.counts
    if run.local_actions is not None:
        agents = run.local_actions.reshape(len(run.actions), -1)
    stages = run.global_states, agents, run.actions, run.rewards, weights
    return _loops.scan(step, 0 * weights[0], stages)[0]


@functools.partial(jax.jit, static_argnames="interval")
def upper_limit(losses: Losses, confidence: jax.Array, *, interval: str) -> jax.Array:
    """The upper confidence limit of the mean loss, before the horizon: [].

    "normal": mean + t · standard error, t Student's one-sided quantile at R − 1 degrees of freedom.
    "bounded": `betting_limit`.
    """
    sums, most, _ = losses
    if interval == "bounded":
        known = most > 0
        shares = jnp.clip(sums / jnp.where(known, most, 1), 0, 1)
        limit = most * betting_limit(shares, confidence)
        return jnp.where(jnp.isfinite(jnp.mean(sums)), jnp.where(known, limit, 0), jnp.nan)
    count, variance = sums.shape[0], jnp.var(sums, ddof=1)
    # the root has no derivative where all sums are equal: that of zero then
    varies = variance > 0
    error = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1)), 0) / math.sqrt(count)
    return jnp.mean(sums) + student_quantile(confidence, count - 1) * error


def betting_limit(shares: jax.Array, confidence: jax.Array) -> jax.Array:
    """Upper confidence limit of the mean of independent x_i in [0, 1], for any law: the largest m
    with

        Σ_λ weight_λ Π_i (1 − λ (x_i − m)) < 1 / (1 − confidence)

    For the true mean each product is a martingale from 1 (a bet of the part λ that x_i is less than
    m), so the sum exceeds 1 / (1 − confidence) with at most that chance (Ville); it increases in m.
    Half of the weight is on λ = 1, the best bet where x_i are nearly always 0; the rest on smaller
    ones, down to the best at the largest variance, 1/4.

    * `shares`: [R].

    Source: Waudby-Smith and Ramdas 2024, section 4 (mixtures of bets of fixed size).
    """
    count, goal = shares.shape[0], -jnp.log1p(-confidence)
    least = jnp.minimum(jnp.sqrt(8 * goal / count), 0.5)
    exponents = jnp.linspace(0, 1, _NUM_BETS, dtype=shares.dtype)
    bets = least**exponents  # the first is 1
    weights = jnp.where(exponents == 0, 0.5, 0.5 / (_NUM_BETS - 1)).astype(shares.dtype)

    def beyond(mean):
        won = jnp.log1p(jnp.maximum(-bets[:, None] * (shares[None, :] - mean), -1))
        return jax.nn.logsumexp(jnp.sum(won, axis=1) + jnp.log(weights)) >= goal

    zero = 0 * jnp.sum(shares)
    return crossing(beyond, zero, zero + 1, jnp.finfo(shares.dtype).nmant + 8)
