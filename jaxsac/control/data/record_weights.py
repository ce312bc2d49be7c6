"""How much each logged record counts: by its advantage, or by inverse propensity."""

import numpy as np

from jaxsac import _checks
from jaxsac.control.data.log import Log

SCHEMES = ("advantage", "propensity")


def record_weights(log: Log, scheme: str, advantage_scale: float | None, clip: float) -> np.ndarray:
    """c_t with mean 1, [T]: exp((u_t - mean u) / beta) or max(u_t, 0) / p_t, each clipped at `clip`
    times its mean before it is normalised.
    """
    _checks.choice("weighting", scheme, SCHEMES)
    _checks.require(log.utilities is not None, 'objective="weighted" needs log.utilities.')
    assert log.utilities is not None
    _checks.require(
        float(clip) >= 1,
        f"clip must be at least 1 (weights above clip times their mean are cut), got {clip:g}.",
    )
    utilities = np.asarray(log.utilities, np.float64)
    if scheme == "advantage":
        spread = utilities.std()
        beta = (
            float(advantage_scale)
            if advantage_scale is not None
            else (spread if spread > 0 else 1.0)
        )
        _checks.require(
            bool(beta > 0),
            f"advantage_scale must be > 0, got {beta:g}: it is the advantage that multiplies a weight by e.",
        )
        scaled = (utilities - utilities.mean()) / beta
        raw = np.exp(scaled - scaled.max())
    else:
        _checks.require(
            log.propensities is not None, 'weighting="propensity" needs log.propensities.'
        )
        assert log.propensities is not None
        raw = np.maximum(utilities, 0) / np.asarray(log.propensities, np.float64)
        _checks.require(
            bool(raw.max() > 0),
            'weighting="propensity" needs a positive utility: with none, every weight is zero. Shift the utilities.',
        )
        raw = raw / raw.max()
    raw = np.minimum(raw, clip * raw.mean())
    return raw / raw.mean()


def effective_sample_size(weights: np.ndarray) -> float:
    """(sum c)^2 / sum c^2."""
    return float(weights.sum() ** 2 / (weights**2).sum())
