"""How good scores are: recall@B, nDCG@B and log-likelihood on held-out records, with standard
errors that respect the groups.
"""

import functools
from collections.abc import Iterator
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


def log_likelihood(
    scores: np.ndarray, actions: np.ndarray, budget: int, *, exactly: bool = False
) -> np.ndarray:
    """log pi(a) [n] of the sets (as in `measure`, or empty) under the Gibbs policies of the scores;
    `exactly`: of sets of exactly B tools.
    """
    chosen, _, judged = _of_sets(scores, actions)
    value = chosen - _log_partitions(scores, budget, exactly)
    return np.where(judged, value, np.nan)


def stretch(
    scores: np.ndarray, actions: np.ndarray, budget: int, *, exactly: bool = False
) -> tuple[float, float]:
    """The slope a > 0 and the constant c under which the sets (as in `log_likelihood`) are most
    probable by the scores a z + c: temperature scaling (Guo et al. 2017) of a policy over sets.

    A normal prior of unit variance around (1, 0), a record's worth, keeps both finite.
    """
    import scipy.optimize

    chosen, sizes, judged = _of_sets(scores, actions)
    rows_judged, start = np.flatnonzero(judged), np.array([1.0, 0.0])
    scores, chosen, sizes = scores[rows_judged], chosen[rows_judged], sizes[rows_judged]

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        value = point[0] * chosen.sum() + point[1] * sizes.sum()
        gradient = np.array([chosen.sum(), sizes.sum()], float)
        for block, count in _blocks(scores):
            lost, slope = _stretched_partition(jnp.asarray(point), block, count, budget, exactly)
            value, gradient = value - float(lost), gradient - np.asarray(slope, float)
        apart = point - start
        return apart @ apart / 2 - value, apart - gradient

    bounds = (1e-3, None), (None, None)
    found = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return float(found.x[0]), float(found.x[1])


def _of_sets(scores: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Σ z over each set, its size, and whether it is judged, [n]: one that has only tools which the
    scores do not know is not.
    """
    known = (actions >= 0) & (actions < scores.shape[1])
    z = np.take_along_axis(scores, np.where(known, actions, 0), axis=1)
    sizes = known.sum(axis=1)
    return np.where(known, z, 0.0).sum(axis=1), sizes, (sizes > 0) | (actions < 0).all(axis=1)


def masked(scores: np.ndarray, available: np.ndarray | None) -> np.ndarray:
    """Scores [n, M] with −∞ for what is not available, bool [n, M] or None."""
    return scores if available is None else np.where(available, scores, -np.inf)


def _log_partitions(scores: np.ndarray, budget: int, exactly: bool) -> np.ndarray:
    """log Z [n]."""
    found = [_block_log_partitions(block, budget, exactly) for block, _ in _blocks(scores)]
    return np.concatenate([np.zeros(0), *found])[: len(scores)]


def _blocks(scores: np.ndarray) -> Iterator[tuple[jax.Array, int]]:
    """Blocks of rows of equal shape, so that one compilation serves every number of records, and
    how many rows of each are scores.
    """
    for first in range(0, len(scores), _BLOCK):
        block = scores[first : first + _BLOCK]
        rest = ((0, _BLOCK - len(block)), (0, 0))
        yield jnp.asarray(np.pad(block, rest)), len(block)


@functools.partial(jax.jit, static_argnames=("budget", "exactly"))
def _block_log_partitions(scores, budget, exactly):
    rest = jnp.zeros((budget + 1, scores.shape[0]), scores.dtype)
    rest = rest.at[:budget].set(-jnp.inf) if exactly else rest
    return rows.log_partition(scores.T, rest, budget)


@functools.partial(jax.jit, static_argnames=("budget", "exactly"))
@jax.value_and_grad
def _stretched_partition(point, scores, count, budget, exactly):
    """Σ log Z of the first `count` rows of the scores a z + c."""
    offered = jnp.isfinite(scores)
    slope, constant = point.astype(scores.dtype)
    z = jnp.where(offered, slope * jnp.where(offered, scores, 0) + constant, -jnp.inf)
    found = _block_log_partitions(z, budget, exactly)
    return jnp.sum(jnp.where(jnp.arange(scores.shape[0]) < count, found, 0))


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
