"""The budgeted Gibbs likelihood on a working set of tools plus a record-free background, with its intercepts eliminated where that is cheap."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsac.control import background
from jaxsac.gibbs import rows

HIGHEST = jax.lax.Precision.HIGHEST


class Working(NamedTuple):
    """The tools in the working set (padded to a capacity) and the groups outside it."""

    feature_sums: jax.Array  # [W, q]
    target: jax.Array  # [W]: frequency + prior use
    present: jax.Array  # bool [W]
    counts: jax.Array  # [G]: tools of the group outside the working set
    group_target: jax.Array  # [G]


class Evaluation(NamedTuple):
    """F and its parts at (weights, intercept, group intercept); `marginals` [W, N]; moments that give every other tool's gradient."""

    value: jax.Array
    weight_gradient: jax.Array  # [W, q]
    intercept_gradient: jax.Array  # [W]
    group_gradient: jax.Array  # [G], per tool of the group
    intercept: jax.Array  # [W]
    group_intercept: jax.Array  # [G]
    marginals: jax.Array  # [W, N]
    common_gradient: jax.Array  # [G, q]: (1/T) sum_t c_t mu_gt psi_t for one tool of each group
    prior_use: jax.Array  # [W]: marginals in the prior record
    group_prior_use: jax.Array  # [G]
    prior_size: jax.Array  # E|a| in the prior record
    entropy: jax.Array  # sum over data rows of weight * (A_t - <mu_t, z_t>) >= 0
    prior_entropy: jax.Array  # the same for the prior record


@functools.partial(jax.jit, static_argnames=("budget", "mode"))
def evaluate(contexts, row_weights, working: Working, weights, intercept, group_intercept, *, budget: int, mode: str) -> Evaluation:
    """F(weights, b) = sum_t w_t A_B(z_t) - <weights, G> - <b, targets>, minimised over the background's intercepts (mode "per_tool") or over the one
    intercept (mode "shared"), with its gradient."""
    dtype = contexts.dtype
    degrees = jnp.arange(budget + 1, dtype=dtype)
    scores = jnp.matmul(weights, contexts.T, precision=HIGHEST) + intercept[:, None]
    scores = jnp.where(working.present[:, None], scores, -jnp.inf)
    log_sizes = rows.log_size_weights(scores, budget)
    if mode == "per_tool":
        group_intercept = _eliminate(log_sizes, row_weights, working, group_intercept, budget)
    elif mode == "shared":
        total = jnp.sum(jnp.where(working.present, working.target, 0)) + working.counts @ working.group_target
        shift = _common_shift(log_sizes, row_weights, working, group_intercept, total, budget)
        group_intercept = group_intercept + shift
        intercept = intercept + shift
        scores = scores + shift
        log_sizes = log_sizes + degrees[:, None] * shift
    log_background = background.log_size_weights(group_intercept, working.counts, budget)
    log_rest = jnp.flip(_log_cumsum(log_background))  # [B + 1]: log weight of all backgrounds that fit beside r tools
    joint = log_sizes + log_rest[:, None]
    log_partition = jax.nn.logsumexp(joint, axis=0)
    marginals = rows.marginals(scores, jnp.broadcast_to(log_rest[:, None], joint.shape), log_partition, budget)

    # Law of the number of background tools in each row, and what one tool of each group gets from it.
    law = jnp.exp(log_background[:, None] + jnp.flip(_log_cumsum(log_sizes), axis=0) - log_partition[None, :])  # [B + 1, N]
    share = _shares(group_intercept, working.counts, budget)  # [B + 1, G]: marginal of one tool of the group given r background tools
    weighted = law * row_weights[None, :]
    group_use = jnp.matmul(jnp.sum(weighted, axis=1), share, precision=HIGHEST)
    common_gradient = jnp.matmul(share.T, jnp.matmul(weighted, contexts, precision=HIGHEST), precision=HIGHEST)
    group_prior_use = jnp.matmul(law[:, 0], share, precision=HIGHEST)

    use = jnp.matmul(marginals, row_weights, precision=HIGHEST)
    weight_gradient = jnp.matmul(marginals * row_weights[None, :], contexts, precision=HIGHEST) - working.feature_sums
    intercept_gradient = jnp.where(working.present, use - working.target, 0)
    group_gradient = group_use - working.group_target
    finite_scores = jnp.where(working.present[:, None], scores, 0)
    finite_intercept = jnp.where(working.present, intercept, 0)
    inner = jnp.sum(marginals * finite_scores, axis=0)  # [N]
    group_inner = jnp.matmul(share, working.counts * group_intercept, precision=HIGHEST) @ law  # [N]
    entropy = log_partition - inner - group_inner
    value = (
        row_weights @ log_partition
        - jnp.sum(weights * working.feature_sums)
        - finite_intercept @ working.target
        - group_intercept @ (working.counts * working.group_target)
    )
    prior_size = jnp.sum(marginals[:, 0]) + working.counts @ group_prior_use
    return Evaluation(
        value=value,
        weight_gradient=jnp.where(working.present[:, None], weight_gradient, 0),
        intercept_gradient=intercept_gradient,
        group_gradient=group_gradient,
        intercept=intercept,
        group_intercept=group_intercept,
        marginals=marginals,
        common_gradient=common_gradient,
        prior_use=marginals[:, 0],
        group_prior_use=group_prior_use,
        prior_size=prior_size,
        entropy=row_weights[1:] @ entropy[1:],
        prior_entropy=row_weights[0] * entropy[0],
    )


def _shares(group_intercept, counts, budget: int):
    """d log e_r / d score of ONE tool of each group: [B + 1, G]."""
    jacobian = jax.jacrev(lambda o: background.log_size_weights(o, counts, budget))(group_intercept)
    return jacobian / jnp.maximum(counts, 1)[None, :]


def _log_cumsum(x):
    """Cumulated logsumexp along axis 0 (B + 1 terms: unrolled, stable)."""
    parts = [x[0]]
    for r in range(1, x.shape[0]):
        parts.append(jnp.logaddexp(parts[-1], x[r]))
    return jnp.stack(parts)


def _eliminate(log_sizes, row_weights, working: Working, group_intercept, budget: int):
    """Background intercepts at which every background tool is used as often as its target says, the working set held fixed.

    F depends on them through the B + 1 size weights alone, so an iteration costs O(N B + G B). Newton with the curvature
    diag + rank one: independent tools, corrected so that the curvature of a common shift is the exact variance of the size.
    """
    dtype = log_sizes.dtype
    counts, target = working.counts, working.group_target
    degrees = jnp.arange(budget + 1, dtype=dtype)
    live = counts > 0
    log_beside = jnp.flip(_log_cumsum(log_sizes), axis=0)
    start = background.log_size_weights(group_intercept, counts, budget)
    joint = start[:, None] + log_beside
    law = jnp.exp(joint - jax.nn.logsumexp(joint, axis=0)[None, :])
    mass = jnp.sum(row_weights)
    wanted = jnp.where(live, target / mass, 0.5)
    tolerance = 64 * jnp.finfo(dtype).eps

    def use(group_intercept):
        log_background, pull = jax.vjp(lambda o: background.log_size_weights(o, counts, budget), group_intercept)
        ratio = jnp.where(jnp.isfinite(start), jnp.exp(jnp.where(jnp.isfinite(start), log_background - start, 0)), 0)
        scaled = row_weights / (ratio @ law)
        sizes = ratio * jnp.matmul(law, scaled, precision=HIGHEST)
        mean = ((ratio * degrees) @ law) / (ratio @ law)
        variance = sizes @ degrees**2 - row_weights @ mean**2
        return pull(sizes)[0], variance

    def body(carry):
        group_intercept, _, steps = carry
        total, variance = use(group_intercept)
        rate = jnp.where(live, jnp.clip(total / jnp.maximum(counts, 1) / mass, 1e-30, 1 - 1e-9), 0.5)
        error = jnp.max(jnp.where(live, jnp.abs(rate / wanted - 1), 0))
        own = jnp.log(wanted / rate) - jnp.log((1 - wanted) / (1 - rate))
        spread = mass * jnp.sum(jnp.where(live, counts * rate * (1 - rate), 0))
        excess = jnp.sum(jnp.where(live, total - counts * target, 0))
        shift = (variance - spread) / jnp.maximum(spread, 1e-30) * excess / jnp.maximum(variance, 1e-3 * spread + 1e-30)
        step = jnp.clip(own + jnp.clip(shift, -2, 2), -4, 4)
        done = error <= tolerance
        return jnp.where(live & ~done, group_intercept + step, group_intercept), error, steps + 1

    def more(carry):
        return (carry[1] > tolerance) & (carry[2] < 40)

    start_carry = (group_intercept, jnp.asarray(jnp.inf, dtype), jnp.asarray(0))
    return jax.lax.while_loop(more, body, start_carry)[0]


def _common_shift(log_sizes, row_weights, working: Working, group_intercept, total, budget: int):
    """The d at which adding d to every score makes the mean size meet `total`: Newton in one variable on the size law."""
    dtype = log_sizes.dtype
    degrees = jnp.arange(budget + 1, dtype=dtype)
    log_background = background.log_size_weights(group_intercept, working.counts, budget)
    sizes = [jax.nn.logsumexp(jnp.stack([log_sizes[i] + log_background[r - i] for i in range(r + 1)]), axis=0) for r in range(budget + 1)]
    joint = jnp.stack(sizes)
    law = jnp.exp(joint - jax.nn.logsumexp(joint, axis=0)[None, :])

    def body(carry):
        shift, _, steps = carry
        ratio = jnp.exp(degrees * shift)
        partition = ratio @ law
        mean = (ratio * degrees) @ law / partition
        square = (ratio * degrees**2) @ law / partition
        gradient = row_weights @ mean - total
        curvature = row_weights @ (square - mean**2)
        error = jnp.abs(gradient) / total
        step = jnp.clip(-gradient / jnp.maximum(curvature, 1e-30), -1, 1)
        return jnp.where(error > tolerance, shift + step, shift), error, steps + 1

    tolerance = 64 * jnp.finfo(dtype).eps

    def more(carry):
        return (carry[1] > tolerance) & (carry[2] < 60)

    return jax.lax.while_loop(more, body, (jnp.zeros((), dtype), jnp.asarray(jnp.inf, dtype), jnp.asarray(0)))[0]
