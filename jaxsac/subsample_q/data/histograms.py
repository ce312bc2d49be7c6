"""Histograms of k agents over L local states, in an order whose prefix is the order of every
smaller k.

A histogram h (counts that sum to k) is stored without its last count, x = (h_1..h_{L-1}).
Histograms are ordered by |x| and, within one |x|, lexicographically. Neither the order nor the
index depends on k, so the histograms of k−1 agents are the first ones of those of k agents (the
identity is "add an agent in the last state"), tables are shared, and a table for k contains the
tables for every smaller k.
"""

import bisect
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, integer, size

_INT32_MAX = 2**31 - 1


@functools.lru_cache(maxsize=32)
def enumerate_counts(k: int, num_states: int) -> np.ndarray:
    """All histograms of k agents over `num_states` states in graded order: int32 [N, num_states],
    read-only.
    """
    counts, rest = np.zeros((1, 0), np.int32), np.array([k])
    for _ in range(num_states - 1):
        repeats = rest + 1
        parents = np.repeat(np.arange(len(rest)), repeats)
        column = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        counts = np.concatenate([counts[parents], column[:, None].astype(np.int32)], axis=1)
        rest = rest[parents] - column
    order = np.argsort(counts.sum(axis=1), kind="stable")
    return _frozen(np.concatenate([counts[order], rest[order, None]], axis=1))


@functools.lru_cache(maxsize=8)
def enumerate_products(ks: tuple[int, ...], num_states: int) -> np.ndarray:
    """int32 [N, E, num_states]: every product of a histogram of ks[e] agents for each e, the last
    running fastest.
    """
    grids = np.meshgrid(*(np.arange(num_histograms(k, num_states)) for k in ks), indexing="ij")
    pairs = zip(ks, grids, strict=True)
    return np.stack([enumerate_counts(k, num_states)[g.reshape(-1)] for k, g in pairs], axis=1)


@functools.lru_cache(maxsize=32)
def binomials(size: int, order: int) -> np.ndarray:
    """C(n, j) for n < size, j ≤ order as int64; what does not fit in int32 is capped there (an
    index never gets that large).
    """
    return np.array(
        [[min(math.comb(n, j), _INT32_MAX) for j in range(order + 1)] for n in range(size)],
        dtype=np.int64,
    )


def graded_rank(x: Any, max_total: int) -> Any:
    """Index of x = (h_1..h_{L-1}) [..., L-1] in graded order, int32, for numpy and jax arrays
    alike; |x| ≤ max_total.
    """
    d = x.shape[-1]
    if d == 0:
        return x.sum(axis=-1, dtype=np.int32)
    table = binomials(max_total + d + 1, d).astype(np.int32)
    choose = (
        (lambda n, j: jnp.asarray(table)[n, j])
        if isinstance(x, jax.Array)
        else (lambda n, j: table[n, j])
    )
    total = x.sum(axis=-1, dtype=np.int32)
    size = total + d - 1
    rank = (
        choose(size, d) + choose(size, d - 1) - 1
    )  # C(|x|+d-1, d) histograms have a smaller total; count back from the last of this one
    bar = -1
    for i in range(d - 1):
        bar = bar + x[..., i] + 1
        rank = rank - choose(size - 1 - bar, d - 1 - i)
    return rank


@functools.lru_cache(maxsize=64)
def additions(k: int, num_states: int, state: int) -> np.ndarray:
    """Index among the histograms of k agents after adding one in `state` to each of those of k-1:
    int32 [N_{k-1}], read-only.
    """
    x = enumerate_counts(k - 1, num_states)[:, :-1] + (np.arange(num_states - 1) == state).astype(
        np.int32
    )
    return _frozen(graded_rank(x, k))


@functools.lru_cache(maxsize=64)
def removals(k: int, num_states: int, state: int) -> np.ndarray:
    """Index among the histograms of k-1 agents after one left `state`: int32 [N_k], read-only; any
    index where nobody is there.
    """
    x = enumerate_counts(k, num_states)[:, :-1] - (np.arange(num_states - 1) == state).astype(
        np.int32
    )
    return _frozen(
        np.minimum(graded_rank(np.maximum(x, 0), k), num_histograms(k - 1, num_states) - 1)
    )


def _frozen(table: np.ndarray) -> np.ndarray:
    table = table.astype(np.int32)
    table.setflags(write=False)
    return table


class HistogramSpace:
    """Histograms h of k agents over L local states: N = C(k+L−1, L−1) of them, in an order that
    does not depend on k.

    `table` is the int32 array [N, L] of all histograms, `index(counts)` the position of one (or of
    many, [..., L], also under jit). The first `size_of(j)` rows are, without the last column, those
    of j ≤ k agents. Raises ValueError where N does not fit in int32.
    """

    @arguments(k=size(1), num_states=size(1))
    def __init__(self, k: int, num_states: int):
        self.k, self.num_states = k, num_states
        check_size(k, num_states, 4 * num_states)

    def __repr__(self) -> str:
        return f"HistogramSpace(k={self.k}, num_states={self.num_states})"

    def __len__(self) -> int:
        return self.size_of(self.k)

    @property
    def table(self) -> np.ndarray:
        return enumerate_counts(self.k, self.num_states)

    def size_of(self, k: int) -> int:
        return num_histograms(k, self.num_states)

    @arguments(counts=integer(...))
    def index(self, counts: Any) -> jax.Array:
        """Position int32 [...] of `counts` [..., L], integers ≥ 0 that sum to k along the last axis
        (ValueError for others, -1 where they are traced).
        """
        _checks.require(
            counts.ndim > 0 and counts.shape[-1] == self.num_states,
            f"counts must have {self.num_states} columns, got shape {list(counts.shape)}.",
        )
        if _checks.is_concrete(counts):
            held = np.asarray(counts)
            known = np.all(held >= 0, axis=-1) & (held.sum(axis=-1, dtype=np.int64) == self.k)
            _checks.require(bool(np.all(known)), f"counts must be ≥ 0 and sum to k={self.k}.")
            with jax.ensure_compile_time_eval():
                return jnp.asarray(graded_rank(held[..., :-1], self.k))
        known = jnp.all((counts >= 0) & (counts <= self.k), axis=-1)
        clipped = jnp.clip(counts, 0, self.k)
        known &= jnp.sum(clipped, axis=-1, dtype=jnp.int32) == self.k
        return jnp.where(known, graded_rank(clipped[..., :-1], self.k), -1)


def num_histograms(k: int, num_states: int) -> int:
    """C(k+L−1, L−1), or 2^62 where that is less."""
    return min(math.comb(k + num_states - 1, min(k, num_states - 1, 62)), 2**62)


def largest_k(k: int, fits: Callable[[int], bool]) -> int:
    """The largest number of agents below k that fits, 1 if none does; more agents take more."""
    return max(1, bisect.bisect_left(range(1, k), True, key=lambda k: not fits(k)))


MEMORY_LIMIT = 16 * 2**30


def check_size(
    k: int,
    num_states: int,
    bytes_per_histogram: int,
    name: str = "k",
    *,
    with_smaller: bool = False,
) -> int:
    """N, or a ValueError that says how large the tables would be and which k fits (int32 indices,
    16 GiB); the number of agents is the argument `name`, and `with_smaller` counts the histograms
    of 0 to k of them.
    """

    def number(k: int) -> int:
        # the sum of N_m over m ≤ k is N_k over one state more
        return num_histograms(k, num_states + with_smaller)

    size = number(k)
    most = min(_INT32_MAX, MEMORY_LIMIT // max(1, bytes_per_histogram))
    if size > most:
        fits = largest_k(k, lambda k: number(k) <= most)
        smaller = ", with those of fewer agents," if with_smaller else ""
        raise ValueError(
            f"{name}={k} sampled agents over {num_states} local states{smaller} are {size:,}"
            f" histograms, about {size * bytes_per_histogram / 2**30:,.1f} GiB: "
            f"more than int32 indices or {MEMORY_LIMIT // 2**30} GiB allow. {name}={fits} fits; so"
            " do fewer local states."
        )
    return size
