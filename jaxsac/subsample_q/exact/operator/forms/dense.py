"""The dense kernel of k agents: small sizes, and the oracle of the structured operators."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _loops
from jaxsac.subsample_q.data.histograms import enumerate_counts, removals


@functools.lru_cache(maxsize=8)
def _removals(k: int, L: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First occupied state of each histogram, index after an agent left it, and after one left each
    state (N: nobody there).
    """
    counts = enumerate_counts(k, L)
    number, first = len(counts), np.argmax(counts > 0, axis=1).astype(np.int32)
    each = [np.where(counts[:, j] > 0, removals(k, L, j), number) for j in range(L)]
    removed = np.stack(each).astype(np.int32)
    return first, removed[first, np.arange(number)], removed


def dense_kernel(kernel: jax.Array, k: int) -> jax.Array:
    """K[h, h'] = P(Σ_j Multinomial(h_j, P[j]) = h') for a local kernel P [R, L], as [N_R, N_L]:
    one agent at a time, differentiable.

    K_m(h, h') = Σ_t P[first(h), t] K_{m−1}(h − e_first, h' − e_t). The index of a histogram does
    not depend on m, so one array serves for all m; entries that belong to no histogram of m agents
    hold nothing that a later step reads. R ≠ L where agents are counted before a move in other
    classes than after it.
    """
    first, after, _ = _removals(k, kernel.shape[0])
    removed = _removals(k, kernel.shape[1])[2]
    size = (len(first), removed.shape[1])
    weights = kernel[first]  # [N_R, L]

    def add_agent(table, _):
        rows = jnp.concatenate([table[after], jnp.zeros((size[0], 1), table.dtype)], axis=1)
        return sum(
            (weights[:, t, None] * rows[:, removed[t]] for t in range(1, len(removed))),
            weights[:, 0, None] * rows[:, removed[0]],
        ), None

    nobody = jnp.zeros(size, kernel.dtype).at[0, 0].set(1)
    return _loops.scan(add_agent, nobody, None, length=k)[0]
