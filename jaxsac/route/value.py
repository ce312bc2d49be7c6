"""What a router's law would have earned on held-out records: a model of the utility, set right by
the records whose sets were drawn with a known chance.
"""

from typing import Any

import jax
import numpy as np

from jaxsac import gibbs
from jaxsac.route import evaluate
from jaxsac.route.log_file import RouteLog

FEW = 20  # groups that say nothing about others
_LEVEL = 0.975
_RIDGE = 1e-3  # of a record


def value(
    z: np.ndarray, actions: np.ndarray, log: RouteLog, budget: int, *, exactly: bool = False
) -> dict[str, Any] | None:
    """The mean utility of records, had sets been drawn from π(a) ∝ exp Σ z, |a| ≤ B (or = B), with
    its 95 % interval; None where no utility differs from another.

        value = mean_t E_π m(x_t, ·) + Σ_t w_t (u_t − m(x_t, a_t)) / Σ_t w_t,   w_t = π(a_t) / p_t

    m is the least-squares fit of u by the size of the set, the sum of its tools' probabilities
    under π, and that of all tools. Of the records with a propensity p, where two or more have one
    (doubly robust, Dudík, Langford & Li 2011; self-normalised); else of all, the first term alone
    (direct): then it is right as far as m is.

    The standard error is a bootstrap's over groups, and not below half of the utilities' range in
    parts of the effective number of groups, (Σ_g w_g)² / Σ_g w_g² (Kish 1965); the interval is
    Student's with one degree of freedom less than that number, within the range.

    * `z`: scores [n, M], −∞ for what was not shown; `actions`: sets, int32 [n, B], padded with −1.
    """
    import scipy.stats

    drawn = None if log.propensities is None else np.flatnonzero(np.isfinite(log.propensities))
    if drawn is not None and drawn.size >= 2:
        z, actions, log = z[drawn], actions[drawn], log.take(drawn)
    else:
        drawn = None
    utilities, (low, high) = log.utilities, (log.utilities.min(), log.utilities.max())
    if low == high:
        return None
    given: dict[str, Any] = {"budget": budget, "exactly": exactly}
    ratio = np.zeros(len(z))
    if drawn is not None:
        law = jax.vmap(lambda a, one: gibbs.log_prob(a, one, **given))(actions, z)
        ratio = np.asarray(law, float) - np.log(np.asarray(log.propensities))
    # Self-normalised weights know no scale; so none overflows.
    weights = np.exp(ratio - ratio.max(initial=-1e300))
    p = np.asarray(jax.vmap(lambda one: gibbs.marginals(one, **given))(z), float)
    inside = np.take_along_axis(p, np.maximum(actions, 0), axis=1) * (actions >= 0)
    ones, total = np.ones(len(z)), p.sum(axis=1)
    logged = np.stack([ones, (actions >= 0).sum(axis=1), inside.sum(axis=1), total], axis=1)
    expected = np.stack([ones, total, (p * p).sum(axis=1), total], axis=1)
    _, group = np.unique(log.groups, return_inverse=True)

    def sums(values: np.ndarray) -> np.ndarray:
        """Of each group, [G, ...]."""
        found = np.zeros((group.max() + 1, *values.shape[1:]))
        np.add.at(found, group, values)
        return found

    size = logged.shape[1]
    squares = sums(logged[:, :, None] * logged[:, None, :]).reshape(-1, size * size)
    products, means, mass = sums(logged * utilities[:, None]), sums(expected), sums(weights)
    gains, models = sums(weights * utilities), sums(weights[:, None] * logged)

    def values(times: np.ndarray) -> np.ndarray:
        """By how often each group counts, [draws, G]."""
        normal = (times @ squares).reshape(-1, size, size) + _RIDGE * np.eye(size)
        fit = np.linalg.solve(normal, (times @ products)[:, :, None])[:, :, 0]
        model = np.sum(times @ means * fit, axis=1) / (times @ means)[:, 0]
        error = times @ gains - np.sum(times @ models * fit, axis=1)
        return model + error / np.maximum(times @ mass, 1e-300) * (drawn is not None)

    # 0 where the law never does what was drawn: the interval is the whole range.
    groups, effective = mass.size, float(mass.sum() ** 2 / max(np.sum(mass**2), 1e-300))
    (found,) = values(np.ones((1, groups)))
    spread = np.std(values(evaluate.times_drawn(groups)), ddof=1)
    error = np.hypot(spread, (high - low) / max(2 * effective, 1e-9))
    reach = error * scipy.stats.t.ppf(_LEVEL, max(effective - 1, 1e-2))
    return {
        "value": float(found),
        "lower": float(np.clip(found - reach, low, high)),
        "upper": float(np.clip(found + reach, low, high)),
        "method": "direct" if drawn is None else "doubly robust",
        "effective_groups": effective,
        "few": effective < FEW,
        "records": len(z),
        "of_the_log": float(utilities.mean()),
    }
