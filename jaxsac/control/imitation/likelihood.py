"""The budgeted Gibbs likelihood on a working set of tools plus a record-free background, with its
intercepts eliminated.

The law of a row is that of (i tools of the working set, u of the background). Given i, the law of u
does not depend on the row, so all that a change of the background needs is the law of i in each
row, [B + 1, N]: eliminating the intercepts of a million tools costs O(N B + G B) an iteration.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsac.control.policy import background
from jaxsac.gibbs import rows

HIGHEST = jax.lax.Precision.HIGHEST
MAX_ROUNDS = 60


class Working(NamedTuple):
    """The tools in the working set (padded to a capacity) and the groups of equal tools outside it.
    Targets include the prior's uses.
    """

    feature_sums: jax.Array  # [W, q]: (1/T) sum_{t: j in a_t} c_t psi_t
    target: jax.Array  # [W]: share of records that use the tool
    present: jax.Array  # bool [W]
    counts: jax.Array  # [G]: tools of the group outside the working set
    group_target: jax.Array  # [G]: of one tool
    prior_weight: jax.Array  # []


class Evaluation(NamedTuple):
    """F at (weights, intercepts), its gradient, and what the certificate needs. "One tool of each
    group" where the first axis is G.
    """

    value: jax.Array
    weight_gradient: jax.Array  # [W, q]
    intercept: jax.Array  # [W], after elimination
    group_intercept: jax.Array  # [G], after elimination
    use: (
        jax.Array
    )  # [W]: weighted share of records in which the model uses the tool, prior included
    group_use: jax.Array  # [G]
    group_features: jax.Array  # [G, q]: (1/T) sum_t c_t mu_gt psi_t
    entropy: jax.Array  # sum_t w_t H(policy in row t), prior included
    top_odds: jax.Array  # [W]: bound on mu / (1 - mu) over the rows
    group_top_odds: jax.Array  # [G]
    top_load: jax.Array  # largest E|a| / (B - E|a|) over the rows
    marginals: jax.Array  # [W, N]


@functools.partial(jax.jit, static_argnames=("budget", "mode"))
def evaluate(
    contexts,
    row_weights,
    working: Working,
    weights,
    intercept,
    group_intercept,
    *,
    budget: int,
    mode: str,
) -> Evaluation:
    """F(weights, b) = sum_t w_t A_B(z_t) - <weights, G> - <b, targets> + prior, with its gradient;
    F is first minimised over the background's intercepts (mode "per_tool") or over the one
    intercept of all tools (mode "shared").
    """
    dtype = contexts.dtype
    degrees = jnp.arange(budget + 1, dtype=dtype)
    present, counts = working.present, working.counts
    scores = jnp.matmul(weights, contexts.T, precision=HIGHEST) + intercept[:, None]
    scores = jnp.where(present[:, None], scores, -jnp.inf)
    log_sizes = rows.log_size_weights(scores, budget)
    log_background, _ = background.size_weights(group_intercept, counts, budget)
    joint = log_sizes + _beside(log_background)[:, None]
    reference = jax.nn.logsumexp(joint, axis=0)
    law = jnp.exp(
        joint - reference[None, :]
    )  # [B + 1, N]: of the number of working tools, at the incoming intercepts
    found = _eliminate(
        law, log_background, row_weights, working, intercept, group_intercept, budget, mode
    )
    shift = found.shift
    group_intercept = found.group_intercept
    intercept = intercept + shift
    scores = scores + shift
    scaled = found.factor[:, None] * law
    total = jnp.sum(scaled, axis=0)
    law = scaled / total[None, :]
    log_partition = reference + jnp.log(total) + found.log_scale
    rest = jnp.broadcast_to(_beside(found.log_background)[:, None], law.shape)
    marginals = rows.marginals(scores, rest, log_partition, budget)

    size_law = jnp.matmul(
        found.given, law, precision=HIGHEST
    )  # [B + 1, N]: of the number of background tools
    weighted = size_law * row_weights[None, :]
    share = found.share
    group_features = jnp.matmul(
        share.T, jnp.matmul(weighted, contexts, precision=HIGHEST), precision=HIGHEST
    )
    prior, group_prior = jax.nn.sigmoid(intercept), jax.nn.sigmoid(group_intercept)
    w0 = working.prior_weight
    use = jnp.where(present, jnp.matmul(marginals, row_weights, precision=HIGHEST) + w0 * prior, 0)
    group_use = jnp.matmul(jnp.sum(weighted, axis=1), share, precision=HIGHEST) + w0 * group_prior
    features = jnp.matmul(marginals * row_weights[None, :], contexts, precision=HIGHEST)

    finite = jnp.where(present, intercept, 0)
    inner = jnp.sum(marginals * jnp.where(present[:, None], scores, 0), axis=0)
    group_inner = jnp.matmul(share, counts * group_intercept, precision=HIGHEST) @ size_law
    soft = jnp.sum(jnp.where(present, jax.nn.softplus(intercept), 0)) + counts @ jax.nn.softplus(
        group_intercept
    )
    soft_inner = (
        jnp.sum(jnp.where(present, prior * finite, 0)) + (counts * group_prior) @ group_intercept
    )
    linear = (
        jnp.sum(weights * working.feature_sums)
        + finite @ working.target
        + group_intercept @ (counts * working.group_target)
    )
    size = degrees @ law + degrees @ size_law
    return Evaluation(
        value=row_weights @ log_partition + w0 * soft - linear,
        weight_gradient=jnp.where(present[:, None], features - working.feature_sums, 0),
        intercept=intercept,
        group_intercept=group_intercept,
        use=use,
        group_use=group_use,
        group_features=group_features,
        entropy=row_weights @ (log_partition - inner - group_inner) + w0 * (soft - soft_inner),
        top_odds=top_odds(scores, intercept),
        group_top_odds=jnp.exp(group_intercept),
        top_load=jnp.max(size / jnp.maximum(budget - size, jnp.finfo(dtype).tiny)),
        marginals=marginals,
    )


def top_odds(scores, intercept):
    """A tool's odds are e^z times a ratio <= 1 (what fits beside it, over what fits without it); in
    the prior they are e^b.
    """
    return jnp.exp(jnp.maximum(jnp.max(scores, axis=1), intercept))


class _Eliminated(NamedTuple):
    group_intercept: jax.Array
    shift: jax.Array  # added to the working set's intercepts too (mode "shared")
    log_background: jax.Array  # [B + 1]
    share: jax.Array  # [B + 1, G]
    given: (
        jax.Array
    )  # [B + 1, B + 1]: law of the number of background tools given that of working tools
    factor: (
        jax.Array
    )  # [B + 1]: what the row's law is multiplied with (then normalised), up to exp(log_scale)
    log_scale: jax.Array


def _beside(log_background):
    """[B + 1]: log weight of all backgrounds that fit beside i working tools."""
    budget = log_background.shape[0] - 1
    fits = jnp.arange(budget + 1)[:, None] + jnp.arange(budget + 1)[None, :] <= budget
    return jax.nn.logsumexp(jnp.where(fits, log_background[None, :], -jnp.inf), axis=1)


def _eliminate(
    law,
    log_start,
    row_weights,
    working: Working,
    intercept,
    group_intercept,
    budget: int,
    mode: str,
) -> _Eliminated:
    """Newton on the background's intercepts: curvature diagonal (independent tools) plus rank one,
    such that the curvature of a common shift is the exact variance of the size; the diagonal part
    as a step in log odds, which is exact for rare tools however far the start.
    """
    dtype = law.dtype
    counts, target, w0 = working.counts, working.group_target, working.prior_weight
    degrees = jnp.arange(budget + 1, dtype=dtype)
    live = counts > 0
    mass = jnp.sum(row_weights) + w0
    tolerance = 32 * jnp.finfo(dtype).eps
    log_beside_start = _beside(log_start)
    fits = jnp.arange(budget + 1)[:, None] + jnp.arange(budget + 1)[None, :] <= budget
    wanted_total = jnp.sum(jnp.where(working.present, working.target, 0)) + jnp.sum(
        jnp.where(live, counts * target, 0)
    )
    own_weight = (
        1.0 if mode == "shared" else 0.0
    )  # whether the working set's sizes move with the shift

    def parts(group_intercept, shift) -> _Eliminated:
        log_background, share = background.size_weights(group_intercept, counts, budget)
        beside = _beside(log_background)
        given = jnp.where(fits, jnp.exp(log_background[:, None] - beside[None, :]), 0)
        log_factor = beside - log_beside_start + own_weight * degrees * shift
        log_scale = jnp.max(log_factor)
        return _Eliminated(
            group_intercept,
            shift,
            log_background,
            share,
            given,
            jnp.exp(log_factor - log_scale),
            log_scale,
        )

    def update(now: _Eliminated):
        """Worst relative error of a use, and the next intercepts."""
        total = now.factor @ law
        scaled = row_weights / total
        working_law = now.factor * jnp.matmul(
            law, scaled, precision=HIGHEST
        )  # mean law of the number of working tools
        first = degrees @ now.given + own_weight * degrees
        pairs = degrees[:, None] + own_weight * degrees[None, :]
        second = jnp.sum(pairs**2 * now.given, axis=0)
        mean = (now.factor * first) @ law / total
        variance = jnp.maximum(working_law @ second - row_weights @ mean**2, 0)
        rate0 = jax.nn.sigmoid(now.group_intercept)
        if mode == "shared":
            own0 = jax.nn.sigmoid(intercept + now.shift)
            prior = jnp.sum(jnp.where(working.present, own0, 0)) + counts @ rate0
            spread0 = jnp.sum(jnp.where(working.present, own0 * (1 - own0), 0)) + counts @ (
                rate0 * (1 - rate0)
            )
            excess = row_weights @ mean + w0 * prior - wanted_total
            move = jnp.clip(-excess / jnp.maximum(variance + w0 * spread0, 1e-30), -1, 1)
            return jnp.abs(excess) / wanted_total, now.group_intercept + move, now.shift + move
        use = (
            jnp.matmul(
                jnp.matmul(now.given, working_law, precision=HIGHEST), now.share, precision=HIGHEST
            )
            + w0 * rate0
        )
        error = jnp.max(jnp.where(live, jnp.abs(use / target - 1), 0))
        rate = jnp.where(live, jnp.clip(use / mass, 1e-30, 1 - 1e-9), 0.5)
        wanted = jnp.where(live, target / mass, 0.5)
        own = jnp.log(wanted / rate) - jnp.log((1 - wanted) / (1 - rate))
        spread = jnp.sum(jnp.where(live, counts * mass * rate * (1 - rate), 0))
        exact = variance + w0 * jnp.sum(jnp.where(live, counts * rate0 * (1 - rate0), 0))
        excess = jnp.sum(jnp.where(live, counts * (use - target), 0))
        common = (
            (exact - spread)
            / jnp.maximum(spread, 1e-30)
            * excess
            / jnp.maximum(exact, 1e-3 * spread + 1e-30)
        )
        move = jnp.clip(own + jnp.clip(common, -2, 2), -4, 4)
        return error, jnp.where(live, now.group_intercept + move, now.group_intercept), now.shift

    zero = jnp.zeros((), dtype)
    if mode == "none":
        return parts(group_intercept, zero)
    start = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(parts, group_intercept, zero)
    )  # replaced in round one

    def body(carry):
        _, group_intercept, shift, _, steps = carry
        now = parts(group_intercept, shift)
        error, group_intercept, shift = update(now)
        return now, group_intercept, shift, error, steps + 1

    def more(carry):
        return (carry[3] > tolerance) & (carry[4] < MAX_ROUNDS)

    return jax.lax.while_loop(
        more, body, (start, group_intercept, zero, jnp.asarray(jnp.inf, dtype), jnp.asarray(0))
    )[0]
