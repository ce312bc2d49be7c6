"""The recurrence over the tools, with the rows as the vector axis.

For scores z [W, N] (W tools, N rows) the weight of all sets of exactly r tools in row t is the
elementary symmetric polynomial h_r(t) = e_r(exp z_1t, …, exp z_Wt), h_r ← h_r + exp(z_jt) h_(r−1).
The carry is a tuple of B + 1 vectors, so that each step is a handful of fused vector operations on
a block of rows that stays in cache. Everything else in the row (other tools) enters through
`log_rest` [B + 1, N]: log_rest[r] is the log weight of all that may accompany r of the W tools, so
that log Z_t = log Σ_r h_r(t) exp(log_rest[r, t]).

A row is scaled by its largest score (or by nothing, if that is negative): a set of r tools with
total score s keeps its weight while r · max(z) − s stays below about 700 in float64 and 87 in
float32.
"""

import functools

import jax
import jax.numpy as jnp

from jaxsac import _loops

# Rows per block: W · (B + 1) · _BLOCK numbers of prefix table stay near the second-level cache.
_BLOCK = 512


def log_size_weights(scores: jax.Array, budget: int) -> jax.Array:
    """log e_r(exp z) for r = 0, …, B as [B + 1, N], from scores [W, N]; −inf scores are absent
    tools. O(W B N), no table.
    """
    weights, offset = _weights(scores)

    def block(weights):
        return jnp.stack(_polynomial(weights, budget)[0])

    sizes = _by_blocks(block, weights)
    degrees = jnp.arange(budget + 1, dtype=scores.dtype)
    return _safe_log(sizes) + degrees[:, None] * offset[None, :]


def marginals(
    scores: jax.Array, log_rest: jax.Array, log_partition: jax.Array, budget: int
) -> jax.Array:
    """P_t(tool j is chosen) as [W, N], given log_rest [B + 1, N] and log Z [N]: the adjoint of the
    recurrence, all terms positive.
    """
    weights, offset = _weights(scores)
    degrees = jnp.arange(budget + 1, dtype=scores.dtype)
    limit = 0.8 * jnp.log(jnp.finfo(scores.dtype).max)
    adjoints = jnp.exp(
        jnp.minimum(log_rest + degrees[:, None] * offset[None, :] - log_partition[None, :], limit)
    )

    def block(weights, adjoints):
        _, prefixes = _polynomial(weights, budget, keep=True)

        def step(adjoint, item):
            weight, prefix = item
            chosen = adjoint[1] * prefix[0]
            for r in range(2, budget + 1):
                chosen = chosen + adjoint[r] * prefix[r - 1]
            lower = tuple(adjoint[r] + weight * adjoint[r + 1] for r in range(budget))
            return (*lower, adjoint[budget]), weight * chosen

        if budget == 0:
            return jnp.zeros_like(weights)
        return _loops.scan(step, tuple(adjoints), (weights, prefixes), reverse=True)[1]

    return _by_blocks(block, weights, adjoints)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def log_partition(scores: jax.Array, log_rest: jax.Array, budget: int) -> jax.Array:
    """log Z [N] = log Σ_r e_r(exp z) exp(log_rest[r]) from scores [W, N] and log_rest [B + 1, N];
    differentiable in both (reverse mode).
    """
    return jax.nn.logsumexp(log_size_weights(scores, budget) + log_rest, axis=0)


def _log_partition_forward(scores, log_rest, budget):
    log_sizes = log_size_weights(scores, budget)
    value = jax.nn.logsumexp(log_sizes + log_rest, axis=0)
    return value, (scores, log_rest, log_sizes, value)


def _log_partition_backward(budget, saved, cotangent):
    scores, log_rest, log_sizes, value = saved
    size_law = jnp.exp(log_sizes + log_rest - value[None, :])
    return cotangent[None, :] * marginals(scores, log_rest, value, budget), cotangent[
        None, :
    ] * size_law


log_partition.defvjp(_log_partition_forward, _log_partition_backward)


def _weights(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights in units of each row's largest (never less than 1), and the offset taken out."""
    offset = jnp.maximum(jnp.max(scores, axis=0, initial=0.0), 0.0)
    return jnp.exp(scores - offset[None, :]), offset


def _polynomial(weights: jax.Array, budget: int, *, keep: bool = False):
    """Coefficients 0, …, B of Π_j (1 + w_j t) as a tuple of row vectors; with `keep` also those
    before each factor.
    """
    one = weights[0] * 0 + 1 if weights.shape[0] else jnp.ones(weights.shape[1:], weights.dtype)
    start = (one,) + (one * 0,) * budget

    def step(sizes, weight):
        grown = (sizes[0], *(sizes[r] + weight * sizes[r - 1] for r in range(1, budget + 1)))
        return grown, (sizes if keep else None)

    return _loops.scan(step, start, weights)


def _by_blocks(function, *arrays: jax.Array) -> jax.Array:
    """`function` over blocks of _BLOCK columns, so that its working set stays in cache; the last
    axis is padded and cut again.
    """
    rows = arrays[0].shape[-1]
    if rows <= _BLOCK:
        return function(*arrays)
    blocks = -(-rows // _BLOCK)
    padded = [jnp.pad(a, ((0, 0), (0, blocks * _BLOCK - rows))) for a in arrays]
    stacked = tuple(a.reshape(a.shape[0], blocks, _BLOCK).transpose(1, 0, 2) for a in padded)
    out = jax.lax.map(lambda block: function(*block), stacked)
    return out.transpose(1, 0, 2).reshape(out.shape[1], blocks * _BLOCK)[:, :rows]


def _safe_log(x: jax.Array) -> jax.Array:
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1)), -jnp.inf)
