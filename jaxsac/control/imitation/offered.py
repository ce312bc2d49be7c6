"""The likelihood when each record offers its own tools: every offered tool is a row of the
recurrence, there is no common background.

Costs O(T V B) a pass for V offered tools a record. The groups of `Working` are here the offered
tools one by one (counts 0 inside the working set), then one group for the tools that no record
offers, which also serves as the padding of `slots`.
"""

import functools

import jax
import jax.numpy as jnp

from jaxsac.control.imitation.likelihood import HIGHEST, MAX_ROUNDS, Evaluation, Working
from jaxsac.gibbs import rows


@functools.partial(jax.jit, static_argnames=("budget", "mode"))
def evaluate_offered(
    contexts,
    row_weights,
    slots,
    place,
    working: Working,
    weights,
    intercept,
    group_intercept,
    *,
    budget: int,
    mode: str,
) -> Evaluation:
    """As `likelihood.evaluate`; slots int32 [V, N] groups of the offered tools, place int32 [G]
    their row in the working set (W if outside).
    """
    dtype = contexts.dtype
    width, groups = weights.shape[0], group_intercept.shape[0]
    present, counts, w0 = working.present, working.counts, working.prior_weight
    degrees = jnp.arange(budget + 1, dtype=dtype)
    columns = jnp.arange(contexts.shape[0])
    offered = slots < groups - 1
    own = jnp.matmul(weights, contexts.T, precision=HIGHEST)
    own = jnp.concatenate([own, jnp.zeros((1, own.shape[1]), dtype)])[
        place[slots], columns[None, :]
    ]
    inside = place < width
    target = jnp.where(inside, working.target[jnp.minimum(place, width - 1)], working.group_target)
    one = jnp.where(
        jnp.arange(groups) < groups - 1, (counts > 0) | inside, False
    )  # offered tools, in the working set or not
    start = jnp.where(inside, intercept[jnp.minimum(place, width - 1)], group_intercept)
    if mode == "per_tool":  # tools that no record offers have the prior alone
        share = working.group_target[-1] / w0
        start = start.at[-1].set(jnp.log(share) - jnp.log1p(-share))
    mass = jnp.sum(row_weights) + w0

    def law(intercepts):
        scores = jnp.where(offered, own + intercepts[slots], -jnp.inf)
        log_sizes = rows.log_size_weights(scores, budget)
        log_partition = jax.nn.logsumexp(log_sizes, axis=0)
        return scores, log_partition, jnp.exp(log_sizes - log_partition[None, :])

    def chosen(scores, log_partition):
        marginals = rows.marginals(
            scores, jnp.zeros((budget + 1, scores.shape[1]), dtype), log_partition, budget
        )
        return marginals, jnp.zeros((groups,), dtype).at[slots].add(
            marginals * row_weights[None, :]
        )

    def update(intercepts):
        scores, log_partition, size_law = law(intercepts)
        rate0 = jax.nn.sigmoid(intercepts)
        mean = degrees @ size_law
        variance = jnp.maximum(row_weights @ (degrees**2 @ size_law - mean**2), 0)
        if mode == "shared":
            everyone = jnp.where(one, 1, counts)
            wanted = everyone @ target
            excess = row_weights @ mean + w0 * (everyone @ rate0) - wanted
            move = jnp.clip(
                -excess / jnp.maximum(variance + w0 * (everyone @ (rate0 * (1 - rate0))), 1e-30),
                -1,
                1,
            )
            return jnp.abs(excess) / wanted, intercepts + move
        free = one & ~inside
        use = chosen(scores, log_partition)[1] + w0 * rate0
        error = jnp.max(jnp.where(free, jnp.abs(use / target - 1), 0))
        rate = jnp.where(free, jnp.clip(use / mass, 1e-30, 1 - 1e-9), 0.5)
        wanted = jnp.where(free, target / mass, 0.5)
        step = jnp.log(wanted / rate) - jnp.log((1 - wanted) / (1 - rate))
        spread = jnp.sum(jnp.where(one, use / mass * (1 - use / mass), 0)) * mass
        excess = jnp.sum(jnp.where(free, use - target, 0))
        common = (
            (variance - spread)
            / jnp.maximum(spread, 1e-30)
            * excess
            / jnp.maximum(variance, 1e-3 * spread + 1e-30)
        )
        step = step + jnp.where(one, jnp.clip(common, -2, 2), 0)
        return error, jnp.where(free, intercepts + jnp.clip(step, -4, 4), intercepts)

    tolerance = (
        (1e-10 if dtype == jnp.float64 else 1e-5)
        if mode == "per_tool"
        else 32 * jnp.finfo(dtype).eps
    )
    final = start
    if mode != "none":

        def body(carry):
            _, _, following, steps = carry
            error, new = update(following)
            return following, error, new, steps + 1

        def more(carry):
            return (carry[1] > tolerance) & (carry[3] < MAX_ROUNDS)

        final = jax.lax.while_loop(
            more, body, (start, jnp.asarray(jnp.inf, dtype), start, jnp.asarray(0))
        )[0]

    scores, log_partition, size_law = law(final)
    marginals, use = chosen(scores, log_partition)
    prior = jax.nn.sigmoid(final)
    use = use + w0 * prior
    everyone = jnp.where(one, 1, counts)
    intercept = jnp.where(present, _take(final, place, width, intercept), intercept)
    own_marginals = (
        jnp.zeros((width + 1, contexts.shape[0]), dtype)
        .at[place[slots], columns[None, :]]
        .add(marginals)[:width]
    )

    def add(sums, item):
        slot, marginal = item
        return sums.at[slot].add(contexts * (marginal * row_weights)[:, None]), None

    group_features = jax.lax.scan(
        add, jnp.zeros((groups, contexts.shape[1]), dtype), (slots, marginals)
    )[0]
    features = jnp.matmul(own_marginals * row_weights[None, :], contexts, precision=HIGHEST)
    inner = jnp.sum(marginals * jnp.where(offered, scores, 0), axis=0)
    soft = everyone @ jax.nn.softplus(final)
    size = degrees @ size_law
    highest = jnp.full((groups,), -jnp.inf, dtype).at[slots].max(scores)
    return Evaluation(
        value=row_weights @ log_partition
        + w0 * soft
        - jnp.sum(weights * working.feature_sums)
        - final @ (everyone * target),
        weight_gradient=jnp.where(present[:, None], features - working.feature_sums, 0),
        intercept=intercept,
        group_intercept=jnp.where(inside, group_intercept, final),
        use=jnp.where(present, _take(use, place, width, intercept), 0),
        group_use=use,
        group_features=group_features,
        entropy=row_weights @ (log_partition - inner) + w0 * (soft - everyone @ (prior * final)),
        top_odds=jnp.exp(jnp.maximum(_take(highest, place, width, intercept), intercept)),
        group_top_odds=jnp.exp(jnp.maximum(highest, final)),
        top_load=jnp.max(size / jnp.maximum(budget - size, jnp.finfo(dtype).tiny)),
        marginals=own_marginals,
    )


def _take(values, place, width: int, like):
    """values [G] at the tools of the working set, [W]."""
    return jnp.zeros((width + 1,), like.dtype).at[place].set(values)[:width]
