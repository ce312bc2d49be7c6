"""The likelihood when each record offers its own tools: every offered tool is a row of the
recurrence, there is no common background.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _loops, gibbs
from jaxsac.control.imitation.likelihood import (
    Evaluation,
    Prior,
    RowLaws,
    Working,
    assemble,
    log_odds_step,
    settle,
    shift_step,
    top_odds,
)


class Offers(NamedTuple):
    """A working set and the tools that records offer. The groups of `working` are here the offered
    tools one by one (counts 0 inside the working set), then one group for the tools that no record
    offers, which is also the padding of `slots`.
    """

    working: Working
    slots: jax.Array  # int32 [V, N]: the groups that a record offers
    place: jax.Array  # int32 [G]: a group's row in the working set, W if outside


class _Laws(NamedTuple):
    intercepts: jax.Array  # [G]
    scores: jax.Array  # [V, N]
    log_partition: jax.Array  # [N]
    sizes: jax.Array  # [B + 1, N]


@functools.partial(jax.jit, static_argnames=("budget", "mode"))
def evaluate_offered(
    contexts, row_weights, offers: Offers, coef, intercept, group_intercept, *, budget: int, mode
) -> Evaluation:
    """As `likelihood.evaluate`; O(T V B) a pass for V offered tools a record."""
    dtype, (working, slots, place) = contexts.dtype, offers
    width, groups = coef.shape[0], group_intercept.shape[0]
    present, counts, w0 = working.present, working.counts, working.prior_weight
    degrees = jnp.arange(budget + 1, dtype=dtype)
    columns = jnp.arange(contexts.shape[0])[None, :]
    offered, inside = slots < groups - 1, place < width
    own = jnp.matmul(coef, contexts.T, precision="highest")
    own = jnp.pad(own, ((0, 1), (0, 0)))[place[slots], columns]
    here = jnp.minimum(place, width - 1)
    target = jnp.where(inside, working.target[here], working.group_target)
    # Offered tools count once, in the working set or not.
    one = (jnp.arange(groups) < groups - 1) & ((counts > 0) | inside)
    everyone = jnp.where(one, 1, counts)
    start = jnp.where(inside, intercept[here], group_intercept)
    if mode == "per_tool":  # tools that no record offers have the prior alone
        share = working.group_target[-1] / w0
        start = start.at[-1].set(jnp.log(share) - jnp.log1p(-share))
    mass = jnp.sum(row_weights) + w0

    def at(intercepts) -> _Laws:
        scores = jnp.where(offered, own + intercepts[slots], -jnp.inf)
        log_sizes = gibbs.rows.log_size_weights(scores, budget)
        log_partition = jax.nn.logsumexp(log_sizes, axis=0)
        return _Laws(intercepts, scores, log_partition, jnp.exp(log_sizes - log_partition[None, :]))

    def chosen(laws: _Laws):
        """Marginals [V, N], and the uses [G] with the prior's."""
        rest = jnp.zeros((budget + 1, slots.shape[1]), dtype)
        marginals = gibbs.rows.marginals(laws.scores, rest, budget)
        use = jnp.zeros(groups, dtype).at[slots].add(marginals * row_weights[None, :])
        return marginals, use + w0 * jax.nn.sigmoid(laws.intercepts)

    def update(laws: _Laws):
        mean = degrees @ laws.sizes
        variance = jnp.maximum(row_weights @ (degrees**2 @ laws.sizes - mean**2), 0)
        if mode == "shared":
            rate = jax.nn.sigmoid(laws.intercepts)
            wanted = everyone @ target
            excess = row_weights @ mean + w0 * (everyone @ rate) - wanted
            move = shift_step(excess, variance + w0 * (everyone @ (rate * (1 - rate))))
            return jnp.abs(excess) / wanted, laws.intercepts + move
        free, use = one & ~inside, chosen(laws)[1]
        others = jnp.sum(jnp.where(one & inside, use * (1 - use / mass), 0))
        error, move = log_odds_step(use, target, free.astype(dtype), mass, variance, others)
        return error, jnp.where(free, laws.intercepts + move, laws.intercepts)

    if mode == "none":
        laws = at(start)
    else:
        loose = 1e-10 if dtype == jnp.float64 else 1e-5
        precise = 32 * jnp.finfo(dtype).eps
        laws = settle(at, update, start, loose if mode == "per_tool" else precise)
    final = laws.intercepts
    marginals, use = chosen(laws)
    own_marginals = jnp.zeros((width + 1, contexts.shape[0]), dtype)
    own_marginals = own_marginals.at[place[slots], columns].add(marginals)[:width]

    def add(sums, item):
        slot, marginal = item
        return sums.at[slot].add(contexts * (marginal * row_weights)[:, None]), None

    group_features = _loops.scan(
        add, jnp.zeros((groups, contexts.shape[1]), dtype), (slots, marginals)
    )[0]
    highest = jnp.full(groups, -jnp.inf, dtype).at[slots].max(laws.scores)

    def of_working(values):
        """values [G] at the tools of the working set, [W]."""
        return jnp.zeros(width + 1, dtype).at[place].set(values)[:width]

    intercept = jnp.where(present, of_working(final), intercept)
    score = jnp.sum(marginals * jnp.where(offered, laws.scores, 0), axis=0)
    return assemble(
        contexts,
        row_weights,
        working,
        coef,
        RowLaws(laws.log_partition, score, degrees @ laws.sizes, own_marginals),
        Prior(
            everyone @ jax.nn.softplus(final),
            everyone @ (jax.nn.sigmoid(final) * final),
            final @ (everyone * target),
        ),
        budget,
        intercept=intercept,
        group_intercept=jnp.where(inside, group_intercept, final),
        use=jnp.where(present, of_working(use), 0),
        group_use=use,
        group_features=group_features,
        top_odds=top_odds(of_working(highest), intercept),
        group_top_odds=top_odds(highest, final),
    )
