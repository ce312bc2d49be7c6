"""The budgeted Gibbs likelihood on a working set of tools plus a record-free background, with its
intercepts eliminated.

The law of a row is that of (i tools of the working set, u of the background). Given i, the law of u
does not depend on the row, so all that a change of the background needs is the law of i in each
row, [B + 1, N]: eliminating the intercepts of a million tools costs O(N B + G B) an iteration.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _loops, gibbs
from jaxsac.control.policy import background

_MAX_ROUNDS = 60
_TINY = 1e-30


class Working(NamedTuple):
    """The tools in the working set (padded to a capacity) and the groups of equal tools outside it.
    Targets include the prior's uses.
    """

    feature_sums: jax.Array  # [W, q]: G_j = Σ_{t: j ∈ a_t} w_t ψ_t
    target: jax.Array  # [W]: share of records that use the tool
    present: jax.Array  # bool [W]
    counts: jax.Array  # [G]: tools of the group outside the working set
    group_target: jax.Array  # [G]: of one tool
    prior_weight: jax.Array  # w_0 []


class Evaluation(NamedTuple):
    """F at (coef, intercepts), its gradient, and what the certificate needs; of one tool of each
    group where the first axis is G.
    """

    value: jax.Array  # []
    coef_gradient: jax.Array  # [W, q]
    intercept: jax.Array  # [W], after elimination
    group_intercept: jax.Array  # [G], after elimination
    use: jax.Array  # [W]: weighted share of records in which the model uses the tool, with prior
    group_use: jax.Array  # [G]
    group_features: jax.Array  # [G, q]: Σ_t w_t μ_tg ψ_t
    entropy: jax.Array  # []: Σ_t w_t H(policy in row t), prior included
    top_odds: jax.Array  # [W]: bound on μ / (1 − μ) over the rows
    group_top_odds: jax.Array  # [G]
    top_load: jax.Array  # []: largest E|a| / (B − E|a|) over the rows
    marginals: jax.Array  # [W, N]


class RowLaws(NamedTuple):
    """What the rows' policies are, [N] each: log Z, the mean score of a set, its mean size; and the
    marginals of the working set [W, N].
    """

    log_partition: jax.Array
    score: jax.Array
    size: jax.Array
    marginals: jax.Array


class Prior(NamedTuple):
    """Of all intercepts together, []: Σ softplus(b), Σ b σ(b) and Σ b times its target."""

    softplus: jax.Array
    score: jax.Array
    linear: jax.Array


def assemble(
    contexts: jax.Array,
    row_weights: jax.Array,
    working: Working,
    coef: jax.Array,
    laws: RowLaws,
    prior: Prior,
    budget: int,
    **rest: jax.Array,
) -> Evaluation:
    """The evaluation from the laws of the rows; `rest` are its fields that depend on how tools
    outside the working set are listed.
    """
    w0, tiny = working.prior_weight, jnp.finfo(contexts.dtype).tiny
    features = jnp.matmul(laws.marginals * row_weights[None, :], contexts, precision="highest")
    linear = jnp.sum(coef * working.feature_sums) + prior.linear
    entropy = row_weights @ (laws.log_partition - laws.score)
    return Evaluation(
        value=row_weights @ laws.log_partition + w0 * prior.softplus - linear,
        coef_gradient=jnp.where(working.present[:, None], features - working.feature_sums, 0),
        entropy=entropy + w0 * (prior.softplus - prior.score),
        top_load=jnp.max(laws.size / jnp.maximum(budget - laws.size, tiny)),
        marginals=laws.marginals,
        **rest,
    )


@functools.partial(jax.jit, static_argnames=("budget", "mode"))
def evaluate(
    contexts,
    row_weights,
    working: Working,
    coef,
    intercept,
    group_intercept,
    *,
    budget: int,
    mode: str,
) -> Evaluation:
    """F(θ, b) = Σ_t w_t A_B(z_t) − ⟨θ, G⟩ − ⟨b, targets⟩ + prior, with its gradient; F is first
    minimised over the background's intercepts (mode "per_tool") or over the one intercept of all
    tools (mode "shared").
    """
    present, counts = working.present, working.counts
    scores = jnp.matmul(coef, contexts.T, precision="highest") + intercept[:, None]
    scores = jnp.where(present[:, None], scores, -jnp.inf)
    log_sizes = gibbs.rows.log_size_weights(scores, budget)
    log_background, _ = background.size_weights(group_intercept, counts, budget)
    joint = log_sizes + background.beside(log_background)[:, None]
    reference = jax.nn.logsumexp(joint, axis=0)
    # [B + 1, N]: of the number of working tools, at the incoming intercepts
    law = jnp.exp(joint - reference[None, :])
    found = _eliminate(law, log_background, row_weights, working, intercept, group_intercept, mode)
    group_intercept = found.group_intercept
    intercept, scores = intercept + found.shift, scores + found.shift
    scaled = found.factor[:, None] * law
    total = jnp.sum(scaled, axis=0)
    law = scaled / total[None, :]
    log_partition = reference + jnp.log(total) + found.log_scale
    rest = jnp.broadcast_to(background.beside(found.log_background)[:, None], law.shape)
    marginals = gibbs.rows.marginals(scores, rest, budget)

    # [B + 1, N]: of the number of background tools
    size_law = jnp.matmul(found.given, law, precision="highest")
    weighted, share = size_law * row_weights[None, :], found.share
    group_features = jnp.matmul(
        share.T, jnp.matmul(weighted, contexts, precision="highest"), precision="highest"
    )
    rate, group_rate = jax.nn.sigmoid(intercept), jax.nn.sigmoid(group_intercept)
    w0 = working.prior_weight
    use = jnp.matmul(marginals, row_weights, precision="highest") + w0 * rate
    group_use = jnp.matmul(jnp.sum(weighted, axis=1), share, precision="highest") + w0 * group_rate

    own = jnp.where(present, intercept, 0)
    score = jnp.sum(marginals * jnp.where(present[:, None], scores, 0), axis=0)
    group_score = jnp.matmul(share, counts * group_intercept, precision="highest") @ size_law
    softplus = jnp.sum(jnp.where(present, jax.nn.softplus(intercept), 0))
    degrees = jnp.arange(budget + 1, dtype=contexts.dtype)
    return assemble(
        contexts,
        row_weights,
        working,
        coef,
        RowLaws(log_partition, score + group_score, degrees @ law + degrees @ size_law, marginals),
        Prior(
            softplus + counts @ jax.nn.softplus(group_intercept),
            rate @ own + (counts * group_rate) @ group_intercept,
            own @ working.target + group_intercept @ (counts * working.group_target),
        ),
        budget,
        intercept=intercept,
        group_intercept=group_intercept,
        use=jnp.where(present, use, 0),
        group_use=group_use,
        group_features=group_features,
        top_odds=top_odds(jnp.max(scores, axis=1), intercept),
        group_top_odds=jnp.exp(group_intercept),
    )


def top_odds(score, intercept):
    """A tool's odds are e^z times a ratio ≤ 1 (what fits beside it, over what fits without it), z
    its largest score; in the prior they are e^b.
    """
    return jnp.exp(jnp.maximum(score, intercept))


class _Eliminated(NamedTuple):
    group_intercept: jax.Array
    shift: jax.Array  # added to the working set's intercepts too (mode "shared")
    log_background: jax.Array  # [B + 1]
    share: jax.Array  # [B + 1, G]
    given: jax.Array  # [B + 1, B + 1]: law of the background's size given that of the working set
    factor: jax.Array  # [B + 1]: by what the law of a row is multiplied, up to exp(log_scale)
    log_scale: jax.Array


def _eliminate(
    law, log_start, row_weights, working: Working, intercept, group_intercept, mode: str
) -> _Eliminated:
    """Newton on the background's intercepts; `log_start` is the background's log e at the incoming
    ones, at which `law` holds.
    """
    dtype, budget = law.dtype, law.shape[0] - 1
    counts, target, w0 = working.counts, working.group_target, working.prior_weight
    degrees = jnp.arange(budget + 1, dtype=dtype)
    live = counts > 0
    beside_start = background.beside(log_start)
    wanted = jnp.sum(jnp.where(working.present, working.target, 0)) + jnp.sum(
        jnp.where(live, counts * target, 0)
    )
    # Whether the working set's sizes move with the shift.
    own = 1.0 if mode == "shared" else 0.0

    def at(intercepts) -> _Eliminated:
        group_intercept, shift = intercepts
        log_sizes, share = background.size_weights(group_intercept, counts, budget)
        log_factor = background.beside(log_sizes) - beside_start + own * degrees * shift
        scale = jnp.max(log_factor)
        given = background.size_law(log_sizes)
        factor = jnp.exp(log_factor - scale)
        return _Eliminated(group_intercept, shift, log_sizes, share, given, factor, scale)

    def update(now: _Eliminated):
        total = now.factor @ law
        # Mean law of the number of working tools.
        working_law = now.factor * jnp.matmul(law, row_weights / total, precision="highest")
        first = degrees @ now.given + own * degrees
        pairs = degrees[:, None] + own * degrees[None, :]
        second = jnp.sum(pairs**2 * now.given, axis=0)
        mean = (now.factor * first) @ law / total
        variance = jnp.maximum(working_law @ second - row_weights @ mean**2, 0)
        rate = jax.nn.sigmoid(now.group_intercept)
        if mode == "shared":
            own_rate = jnp.where(working.present, jax.nn.sigmoid(intercept + now.shift), 0)
            prior = jnp.sum(own_rate) + counts @ rate
            spread = jnp.sum(own_rate * (1 - own_rate)) + counts @ (rate * (1 - rate))
            excess = row_weights @ mean + w0 * prior - wanted
            move = shift_step(excess, variance + w0 * spread)
            return jnp.abs(excess) / wanted, (now.group_intercept + move, now.shift + move)
        given_law = jnp.matmul(now.given, working_law, precision="highest")
        use = jnp.matmul(given_law, now.share, precision="highest") + w0 * rate
        curvature = variance + w0 * jnp.sum(jnp.where(live, counts * rate * (1 - rate), 0))
        mass = jnp.sum(row_weights) + w0
        error, move = log_odds_step(use, target, jnp.where(live, counts, 0), mass, curvature)
        moved = jnp.where(live, now.group_intercept + move, now.group_intercept)
        return error, (moved, now.shift)

    start = group_intercept, jnp.zeros((), dtype)
    if mode == "none":
        return at(start)
    return settle(at, update, start, 32 * jnp.finfo(dtype).eps)


def settle(at: Callable, update: Callable, intercepts: Any, tolerance: Any) -> Any:
    """`at(intercepts)` where `update` of it, which gives a worst relative error of the uses and the
    next intercepts, finds an error within `tolerance`.
    """
    shapes = jax.eval_shape(at, intercepts)  # replaced in the first round
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def body(carry):
        _, intercepts, _, steps = carry
        now = at(intercepts)
        error, following = update(now)
        return now, following, error, steps + 1

    def more(carry):
        return (carry[2] > tolerance) & (carry[3] < _MAX_ROUNDS)

    dtype = jnp.result_type(*jax.tree.leaves(intercepts))
    return _loops.while_loop(
        more, body, (start, intercepts, jnp.asarray(jnp.inf, dtype), jnp.asarray(0))
    )[0]


def shift_step(excess, curvature):
    """Newton's step of one intercept for all tools."""
    return jnp.clip(-excess / jnp.maximum(curvature, _TINY), -1, 1)


def log_odds_step(use, target, counts, mass, curvature, others: Any = 0.0):
    """Newton's step of free intercepts [G], `counts` tools each (0: not free), and the worst
    relative error of a use.

    Their curvature is diagonal (independent tools) plus rank one, such that the `curvature` of a
    common shift is the exact variance of the size, to which tools that are not free contribute
    `others`; the diagonal part is a step in log odds, exact for rare tools however far the start.
    """
    live = counts > 0
    error = jnp.max(jnp.where(live, jnp.abs(use / target - 1), 0))
    rate = jnp.where(live, jnp.clip(use / mass, _TINY, 1 - 1e-9), 0.5)
    wanted = jnp.where(live, target / mass, 0.5)
    alone = jnp.log(wanted / rate) - jnp.log((1 - wanted) / (1 - rate))
    spread = jnp.sum(jnp.where(live, counts * mass * rate * (1 - rate), 0)) + others
    excess = jnp.sum(jnp.where(live, counts * (use - target), 0))
    relative = (curvature - spread) / jnp.maximum(spread, _TINY)
    common = relative * excess / jnp.maximum(curvature, 1e-3 * spread + _TINY)
    return error, jnp.clip(alone + jnp.clip(common, -2, 2), -4, 4)
