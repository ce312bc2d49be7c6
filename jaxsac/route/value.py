"""What a router's law would have earned on held-out records: a model of the utility, set right by
the records whose sets were drawn with a known chance.
"""

from typing import Any

import jax
import numpy as np

from jaxsac import control, gibbs
from jaxsac.route.log_file import RouteLog

FEW = 20  # groups that say nothing about others
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

    The interval is that of `control.importance_value` by groups, the error of the fit included,
    within the range of the utilities: all of it where nothing agrees or there is one group.

    * `z`: scores [n, M], −∞ for what was not shown; `actions`: sets, int32 [n, B], padded with −1.
    """
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
        ratio -= ratio.max(initial=-1e300)  # self-normalised weights know no scale
    p = np.asarray(jax.vmap(lambda one: gibbs.marginals(one, **given))(z), float)
    inside = np.take_along_axis(p, np.maximum(actions, 0), axis=1) * (actions >= 0)
    ones, total = np.ones(len(z)), p.sum(axis=1)
    logged = np.stack([ones, (actions >= 0).sum(axis=1), inside.sum(axis=1), total], axis=1)
    expected = np.stack([ones, total, (p * p).sum(axis=1), total], axis=1)
    inverse = np.linalg.inv(logged.T @ logged + _RIDGE * np.eye(logged.shape[1]))
    fit = inverse @ (logged.T @ utilities)
    predicted, model, moved = logged @ fit, expected @ fit, expected.mean(axis=0)
    if drawn is not None and np.exp(ratio).any():
        moved -= np.average(logged, axis=0, weights=np.exp(ratio))
    # What each record does to the value through the fit.
    through = len(z) * (logged @ inverse @ moved) * (utilities - predicted)
    judged = control.importance_value(
        ratio,
        utilities,
        predicted=utilities if drawn is None else predicted,
        expected=model + through - through.mean(),
        groups=np.unique(log.groups, return_inverse=True)[1],
    )
    found, lower, upper = np.clip(judged[:1] + judged[2:4], low, high).astype(float)
    effective = float(np.nan_to_num(judged.effective_sample_size))
    return {
        "value": float(model.mean() if np.isnan(found) else found),
        "lower": float(low if np.isnan(lower) else lower),
        "upper": float(high if np.isnan(upper) else upper),
        "method": "direct" if drawn is None else "doubly robust",
        "effective_groups": effective,
        "few": effective < FEW,
        "records": len(z),
        "of_the_log": float(utilities.mean()),
    }
