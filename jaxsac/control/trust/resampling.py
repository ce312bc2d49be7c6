"""How a fit behaves on other records: the support over half samples, and what more records do to
it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac.control.data.log import Log, take

_BLIND = 1e6  # times lam: no tool looks at the context
Fit = Callable[[Log, float], Any]
"""fit(log, lam) -> SparsePolicy."""


class Stability(NamedTuple):
    """The support over half samples."""

    frequency: np.ndarray  # [M]: share of them in whose fit a tool looks at the context
    overlap: float  # mean Jaccard index of two of their supports (1 where all are empty)
    sizes: np.ndarray  # [R]: of the supports


class Growth(NamedTuple):
    """Fits on nested shares of the training records."""

    records: np.ndarray  # [S]
    support: np.ndarray  # [S]: sizes
    value: np.ndarray  # [S]: held-out value of the contexts per record
    gain: float  # what the largest share adds to it over the share before
    gain_error: float  # its standard error, by paired differences


def support_stability(
    key: jax.Array, log: Log, lam: float, num_actions: int, fit: Fit, num_resamples: int
) -> Stability:
    """Fit complementary halves of the records, `num_resamples` in all, at √2 lam: the noise in a
    gradient grows by that factor.

    Source: stability selection (Meinshausen & Bühlmann 2010), complementary pairs (Shah & Samworth
    2013). The key is consumed.
    """
    records = np.shape(log.contexts)[0]
    supports = np.zeros((num_resamples, num_actions), bool)
    for number in range(num_resamples):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, number // 2), records))
        start = (number % 2) * (records // 2)
        half = order[start : start + records // 2]
        policy = fit(take(log, np.sort(half)), lam * np.sqrt(2))
        supports[number, np.asarray(policy.support)] = True
    sizes = supports.sum(1)
    counts = supports.astype(float)
    both = counts @ counts.T
    either = sizes[:, None] + sizes[None, :] - both
    pairs = np.triu_indices(num_resamples, 1)
    overlap = np.where(either[pairs] > 0, both[pairs] / np.maximum(either[pairs], 1), 1.0)
    return Stability(
        supports.mean(0), float(overlap.mean()) if overlap.size else float("nan"), sizes
    )


def growth(
    key: jax.Array,
    log: Log,
    lam: float,
    fit: Fit,
    value: Callable[[Any, Log], np.ndarray],
    shares: tuple[float, ...] = (0.25, 0.5, 1.0),
) -> Growth:
    """Nested fits on shares of one half of the records (lam grows as the noise, by 1/√share),
    judged on the other half.

    `value(policy, held_out) [n]` is what a record is worth; what counts is how much more than under
    the fit of the same records that looks at no context. The key is consumed.
    """
    records = np.shape(log.contexts)[0]
    order = np.asarray(jax.random.permutation(key, records))
    training, held_out = order[: records // 2], take(log, np.sort(order[records // 2 :]))
    sizes = [max(2, round(share * training.size)) for share in shares]
    parts = [take(log, np.sort(training[:size])) for size in sizes]
    policies = [
        fit(part, lam * float(np.sqrt(records / size)))
        for part, size in zip(parts, sizes, strict=True)
    ]
    blind = [fit(part, _BLIND * lam) for part in parts]
    values = [
        value(policy, held_out) - value(null, held_out)
        for policy, null in zip(policies, blind, strict=True)
    ]
    gain = values[-1] - values[-2]
    return Growth(
        records=np.array(sizes),
        support=np.array([np.asarray(policy.support).size for policy in policies]),
        value=np.array([found.mean() for found in values]),
        gain=float(gain.mean()),
        gain_error=float(gain.std(ddof=1) / np.sqrt(gain.size)),
    )
