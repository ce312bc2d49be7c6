"""The exact expectation over one move of all k agents, by vertex exchange on a Bézier net.

A function of histograms is a control net on the simplex of the L local states, and "every agent
moves by P" reads the same polynomial off the simplex whose vertices are the rows of P. One step
puts row r into slot i: with c the coordinates of that row in the current simplex, b^0 = W, b^m(x) =
Σ_j c_j b^{m−1}(x + e_j), and the new net is W'(h) = b^{h_i}(h − h_i e_i) (de Casteljau). L steps
are K_P.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _loops
from jaxsac.subsample_q.data.histograms import (
    additions,
    enumerate_counts,
    graded_rank,
    num_histograms,
)
from jaxsac.subsample_q.exact.operator.forms.thinning import permute


@functools.lru_cache(maxsize=8)
def _tables(k: int, L: int) -> tuple[np.ndarray, np.ndarray]:
    """[L-1, N_{k-1}]: index after adding an agent; assembly [L, N]: where W'(h) stands in the
    stacked levels b^0, b^1, ...
    """
    counts = enumerate_counts(k, L)
    sizes = [num_histograms(k - level, L) for level in range(k + 1)]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    assembly = np.empty((L, len(counts)), np.int32)
    for slot in range(L):
        emptied = counts.copy()
        emptied[:, slot] = 0
        assembly[slot] = starts[counts[:, slot]] + graded_rank(emptied[:, :-1], k)
    return np.stack([additions(k, L, j) for j in range(L - 1)]), assembly


def coordinates(
    kernel: jax.Array, rows: jax.Array, columns: jax.Array, replacements: jax.Array
) -> jax.Array:
    """Coordinates [L, L] (step, slot) of the row that each step puts in, in the simplex of that
    moment. Differentiable in P.
    """

    def put(state, step):
        row, column, replacement = step
        flat = replacement[0] == -2
        chosen = state[row]
        ratio = jnp.where(flat, 0, state[:, column] / jnp.where(flat, 1, chosen[column]))
        return (state - ratio[:, None] * chosen[None, :]).at[:, column].set(ratio), chosen

    return _loops.scan(put, kernel, (rows, columns, replacements))[1]


class Exchange(NamedTuple):
    """One kernel, made ready: coordinates of each step and the gathers into and out of the
    slots.
    """

    weights: jax.Array  # [L, L]
    entry: jax.Array  # int32 [N]
    leave: jax.Array  # int32 [N]


def prepare_exchange(
    kernel: jax.Array, rows: jax.Array, columns: jax.Array, replacements: jax.Array, k: int
) -> Exchange:
    """The operator of one kernel [L, L], L ≥ 2, for pivots as in `Order`."""
    L = kernel.shape[-1]
    counts = jnp.asarray(enumerate_counts(k, L))
    # Slots are renamed by the step that fills them, so that the order of the steps is 0..L-1 for
    # every kernel.
    slot_of_column = jnp.zeros(L, jnp.int32).at[columns].set(jnp.arange(L, dtype=jnp.int32))
    entry = graded_rank(counts[:, slot_of_column[: L - 1]], k)
    leave = graded_rank(counts[:, rows[: L - 1]], k)
    return Exchange(coordinates(kernel, rows, columns, replacements)[:, columns], entry, leave)


def apply_exchange(operator: Exchange, values: jax.Array, k: int, L: int) -> jax.Array:
    """E[W(h') | h] for W = values [C, N] in graded order, as [N, C]."""
    added, assembly = _tables(k, L)

    def exchange(net, step):
        weight, where = step
        level, levels = net, [net]
        for size in (num_histograms(k - m, L) for m in range(1, k + 1)):
            moved = (
                weight[L - 1] * level[:size]
            )  # adding an agent in the last slot does not change the index
            for j in range(L - 1):
                moved = moved + weight[j] * permute(level, added[j, :size])
            level = moved
            levels.append(level)
        return permute(jnp.concatenate(levels), where), None

    net, _ = _loops.scan(
        exchange, permute(values.T, operator.entry), (operator.weights, jnp.asarray(assembly))
    )
    return permute(net, operator.leave)
