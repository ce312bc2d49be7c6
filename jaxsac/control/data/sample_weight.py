"""How much each logged record counts: by its advantage, or by inverse propensity."""

from typing import Any

import numpy as np

from jaxsac import _checks
from jaxsac.control.data.log import Log

WEIGHTINGS = ("advantage", "propensity")


def sample_weight(
    log: Log, weighting: str, advantage_scale: float | None, clip: float
) -> np.ndarray:
    """c_t of mean 1, [T], of a checked log: exp((u_t − mean u) / β) or max(u_t, 0) / p_t, each cut
    at `clip` times its mean before it is normalised; β = `advantage_scale`.
    """
    _checks.choice("weighting", weighting, WEIGHTINGS)
    _checks.require(log.utilities is not None, 'objective="weighted" needs log.utilities.')
    _checks.require(
        clip >= 1,
        f"clip must be at least 1 (weights above clip times their mean are cut), got {clip:g}.",
    )
    utilities = np.asarray(log.utilities, np.float64)
    if weighting == "advantage":
        spread = utilities.std()
        beta = (spread if spread > 0 else 1.0) if advantage_scale is None else advantage_scale
        _checks.require(
            bool(beta > 0),
            f"advantage_scale must be > 0, got {beta:g}: it is the advantage that multiplies a"
            " weight by e.",
        )
        scaled = (utilities - utilities.mean()) / beta
        raw = np.exp(scaled - scaled.max())
    else:
        _checks.require(
            log.propensities is not None, 'weighting="propensity" needs log.propensities.'
        )
        raw = np.maximum(utilities, 0) / np.asarray(log.propensities, np.float64)
        _checks.require(
            bool(raw.max() > 0),
            'weighting="propensity" needs a positive utility: with none, every weight is zero.'
            " Shift the utilities.",
        )
        raw = raw / raw.max()
    raw = np.minimum(raw, clip * raw.mean())
    return raw / raw.mean()


def effective_sample_size(weights: Any) -> Any:
    """(Σ c)² / Σ c² of NumPy or JAX weights."""
    return weights.sum() ** 2 / (weights**2).sum()
