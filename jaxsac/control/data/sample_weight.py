"""How much each logged record counts: by its advantage, or by inverse propensity."""

from typing import Any

import numpy as np

from jaxsac import _checks
from jaxsac.control.data.log import Log

WEIGHTINGS = ("advantage", "propensity")
_HALVINGS = 100  # of the interval of levels: to the last bit


def sample_weight(
    log: Log, weighting: str, advantage_scale: float | None, clip: float
) -> np.ndarray:
    """c_t of mean 1, [T], of a checked log: exp((u_t − mean u) / β) or max(u_t, 0) / p_t, β =
    `advantage_scale`, cut at the largest level at which none is above `clip` times the mean of
    those that are not 0.
    """
    _checks.require(log.utilities is not None, 'objective="weighted" needs log.utilities.')
    utilities = np.asarray(log.utilities, np.float64)
    if weighting == "advantage":
        spread = utilities.std() if advantage_scale is None else advantage_scale
        with np.errstate(over="ignore", invalid="ignore"):
            log_weight = (utilities - utilities.mean()) / (spread if spread > 0 else 1.0)
        _checks.require(
            bool(np.isfinite(spread) and np.isfinite(log_weight).all()),
            "log.utilities are too large for advantage_scale: scale them.",
        )
    else:
        _checks.require(
            log.propensities is not None, 'weighting="propensity" needs log.propensities.'
        )
        known = utilities > 0
        _checks.require(
            bool(known.any()),
            'weighting="propensity" needs a positive number in log.utilities: with none, every'
            " weight is zero. Shift the utilities.",
        )
        log_weight = np.where(known, np.log(np.where(known, utilities, 1)), -np.inf)
        log_weight = log_weight - np.log(np.asarray(log.propensities, np.float64))
    level = _level(log_weight[log_weight > -np.inf], clip)
    weight = np.exp(np.minimum(log_weight - level, 0))
    return weight / weight.mean()


def _level(log_weight: np.ndarray, clip: float) -> float:
    """The largest level at which 1 ≤ clip · mean min(weight / level, 1), all in logarithms: so no
    weight that the cut brings back has underflowed. The mean falls from 1 at the least weight.
    """
    low, high = float(log_weight.min()), float(log_weight.max())
    level = high
    for _ in range(_HALVINGS):
        within = clip * np.exp(np.minimum(log_weight - level, 0)).mean() >= 1
        low, high = (level, high) if within else (low, level)
        level = (low + high) / 2
    return low


def effective_sample_size(weights: Any) -> Any:
    """(Σ c)² / Σ c² of NumPy or JAX weights."""
    return weights.sum() ** 2 / (weights**2).sum()
