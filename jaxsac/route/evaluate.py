"""How good scores are: recall@B, nDCG@B and log-likelihood on held-out records, with standard
errors that respect the groups.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.gibbs import rows

_DRAWS = 2000
_BLOCK = 256


class Measured(NamedTuple):
    """Per record [n]: recall@B, nDCG@B, and the log-likelihood of the logged set (None for rankings
    that are no policy).
    """

    ndcg: np.ndarray
    recall: np.ndarray
    log_likelihood: np.ndarray | None


def measure(scores: np.ndarray, actions: np.ndarray, budget: int, *, policy: bool) -> Measured:
    """Judge scores [n, M] of M tools on the sets `actions` int32 [n, budget] (padded with -1, none
    empty).

    The B best scores (ties to the lowest index) against the set a: recall@B = |best ∩ a| / |a|,
    nDCG@B = sum_{ranks i of hits} 1 / log2(i + 1), divided by its largest value sum_{i <= min(|a|,
    B)} 1 / log2(i + 1); log pi(a) = sum_{j in a} z_j - log Z with Z over all sets of at most B of
    the M tools, in nats. Numbers of M and above in `actions` are tools that the scores do not know:
    misses to the ranking, left out of the set for the log-likelihood (NaN where none is left).
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :budget]
    hits = (best[:, :, None] == actions[:, None, :]).any(axis=2)
    sizes = (actions >= 0).sum(axis=1)
    discounts = 1 / np.log2(np.arange(2, budget + 2))
    ideal = np.cumsum(discounts)[np.minimum(sizes, budget) - 1]
    return Measured(
        ndcg=hits @ discounts[: best.shape[1]] / ideal,
        recall=hits.sum(axis=1) / sizes,
        log_likelihood=log_likelihood(scores, actions, budget) if policy else None,
    )


def log_likelihood(scores: np.ndarray, actions: np.ndarray, budget: int) -> np.ndarray:
    """log pi(a) [n] of the sets (as in `measure`) under the Gibbs policies of the scores."""
    known = (actions >= 0) & (actions < scores.shape[1])
    chosen = np.where(
        known, np.take_along_axis(scores, np.where(known, actions, 0), axis=1), 0.0
    ).sum(axis=1)
    value = chosen - _log_partitions(scores, budget)
    return np.where(known.any(axis=1), value, np.nan)


def masked(scores: np.ndarray, available: np.ndarray | None) -> np.ndarray:
    """Scores [n, M] with −∞ for what is not available, bool [n, M] or None."""
    return scores if available is None else np.where(available, scores, -np.inf)


def _log_partitions(scores: np.ndarray, budget: int) -> np.ndarray:
    """log Z [n], by blocks of equal shape so that one compilation serves every number of
    records.
    """
    blocks = -(-len(scores) // _BLOCK)
    padded = np.zeros((blocks * _BLOCK, scores.shape[1]), scores.dtype)
    padded[: len(scores)] = scores
    found = [
        np.asarray(_block_log_partitions(jnp.asarray(block), budget))
        for block in np.split(padded, blocks)
    ]
    return np.concatenate(found)[: len(scores)]


@functools.partial(jax.jit, static_argnames="budget")
def _block_log_partitions(scores, budget):
    free = jnp.zeros((budget + 1, scores.shape[0]), scores.dtype)
    return rows.log_partition(scores.T, free, budget)


def cluster_errors(
    values: np.ndarray, groups: list[str], draws: int = _DRAWS, seed: int = 0
) -> float:
    """The standard error of the mean of `values` [n] when whole groups are drawn: a bootstrap over
    groups; NaN with fewer than two.

    Each draw takes as many groups as there are, with replacement, and forms the mean over their
    records.
    """
    _, inverse = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(inverse, weights=values), np.bincount(inverse).astype(float)
    if sums.size < 2:
        return float("nan")
    times = times_drawn(sums.size, draws, seed)
    return float(np.std((times @ sums) / (times @ counts), ddof=1))


@functools.lru_cache(maxsize=1)  # one split's measures share it
def times_drawn(groups: int, draws: int = _DRAWS, seed: int = 0) -> np.ndarray:
    """How often each draw takes each group, float [draws, groups]."""
    chances = np.full(groups, 1 / groups)
    return np.random.default_rng(seed).multinomial(groups, chances, size=draws).astype(float)


def summarise(measured: Measured, groups: list[str]) -> dict[str, dict[str, float]]:
    """Means and group-bootstrap standard errors: {"ndcg": {"mean", "error"}, "recall": ...,
    "log_likelihood": ...}.
    """
    return {
        name: summary(values, groups)
        for name, values in measured._asdict().items()
        if values is not None
    }


def compare(first: Measured, second: Measured, groups: list[str]) -> dict[str, dict[str, float]]:
    """first - second, record by record: means and group-bootstrap standard errors of the paired
    differences.
    """
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in Measured._fields}
    return {
        name: summary(a - b, groups)
        for name, (a, b) in pairs.items()
        if a is not None and b is not None
    }


def summary(values: np.ndarray, groups: list[str]) -> dict[str, float]:
    """The mean of values [n] that are no NaN, and its group-bootstrap standard error."""
    judged = ~np.isnan(values)
    groups = [group for group, taken in zip(groups, judged, strict=True) if taken]
    return {
        "mean": float(values[judged].mean()),
        "error": cluster_errors(values[judged], groups),
        "records": int(judged.sum()),
    }


def calibration_error(shown: np.ndarray, used: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean |share used − mean probability shown| over bins of equal
    count.
    """
    parts = np.array_split(np.argsort(shown, kind="stable"), bins)
    gaps = [(part.size, abs(shown[part].mean() - used[part].mean())) for part in parts if part.size]
    return float(sum(size * gap for size, gap in gaps) / shown.size)
