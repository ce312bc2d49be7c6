"""What a policy would have earned on logged contexts: importance weighting and its doubly robust
form, with confidence intervals.
"""

import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac.control.data.log import Log, checked
from jaxsac.control.fits.fit import fit
from jaxsac.control.policy.scoring import log_probabilities, marginals
from jaxsac.control.policy.sparse import SparsePolicy
from jaxsac.control.trust.resampling import take

METHODS = ("doubly_robust", "self_normalised", "inverse_propensity")


class OffPolicyValue(NamedTuple):
    """`value` with its `standard_error` and confidence interval `lower`..`upper`, [];
    `effective_sample_size` (sum w)^2 / sum w^2 of the importance weights w, their `mean_weight` (1
    in expectation: far from it, propensities or overlap are wrong) and `largest_weight`.
    """

    value: jax.Array
    standard_error: jax.Array
    lower: jax.Array
    upper: jax.Array
    effective_sample_size: jax.Array
    mean_weight: jax.Array
    largest_weight: jax.Array


def importance_value(
    log_ratio: Any,
    utilities: Any,
    *,
    predicted: Any = None,
    expected: Any = None,
    self_normalised: bool = True,
    clip: Any = np.inf,
    confidence: float = 0.95,
) -> OffPolicyValue:
    """The mean utility under another policy from T logged draws, w_t = min(pi(a_t | x_t) / p_t,
    clip):

        value = sum_t (w_t / W) (u_t - m_t) + (1/T) sum_t e_t,      W = sum_t w_t (self-normalised)
        or T

    * log_ratio [T] = log pi(a_t | x_t) - log p_t (-inf: the policy never draws it), utilities u
      [T].
    * predicted m [T] and expected e [T]: a model's utility of the logged set, and its mean over the
      policy's sets in the same context; both or neither (then 0). Right model or right propensities
      suffice (doubly robust).
    * `clip` caps the weights: less variance, and a bias that the interval does not know.
      `confidence` of the normal interval, whose standard error comes from the influence of each
      record: T w_t (u_t - m_t - c) / W + e_t - mean e, c = sum w (u - m) / W if self-normalised,
      else w_t (u_t - m_t) + e_t - value.

    Pure, to be jitted and vmapped over logs. NaN where every weight is 0 and W is their sum.
    Source: Horvitz & Thompson 1952; Swaminathan & Joachims 2015 (self-normalised); Dudík, Langford
    & Li 2011 (doubly robust).
    """
    log_ratio = _checks.real_array("log_ratio", log_ratio, ("T",))
    dtype, size = log_ratio.dtype, log_ratio.shape[0]
    utilities = _checks.real_array("utilities", utilities, (size,), dtype)
    _checks.require(
        (predicted is None) == (expected is None),
        "predicted and expected go together: pass both or neither.",
    )
    zero = jnp.zeros(size, dtype)
    predicted = (
        zero if predicted is None else _checks.real_array("predicted", predicted, (size,), dtype)
    )
    expected = (
        zero if expected is None else _checks.real_array("expected", expected, (size,), dtype)
    )
    _checks.require(0 < confidence < 1, f"confidence must lie in (0, 1), got {confidence:g}.")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    return _importance_value(
        log_ratio,
        utilities,
        predicted,
        expected,
        _checks.real_scalar("clip", clip, dtype, 0.0),
        jnp.asarray(z, dtype),
        bool(self_normalised),
    )


@jax.jit(static_argnums=6)
def _importance_value(
    log_ratio, utilities, predicted, expected, clip, z, self_normalised: bool
) -> OffPolicyValue:
    size = jnp.asarray(utilities.shape[0], utilities.dtype)
    weights = jnp.minimum(jnp.exp(log_ratio), clip)
    total = jnp.sum(weights)
    error = utilities - predicted
    divisor = total if self_normalised else size
    corrected = jnp.sum(weights * error) / divisor
    value = corrected + jnp.mean(expected)
    centre = corrected if self_normalised else jnp.zeros_like(value)
    influence = size / divisor * weights * (error - centre) + expected
    standard_error = jnp.std(influence, ddof=1) / jnp.sqrt(size)
    return OffPolicyValue(
        value=value,
        standard_error=standard_error,
        lower=value - z * standard_error,
        upper=value + z * standard_error,
        effective_sample_size=total**2 / jnp.sum(weights**2),
        mean_weight=total / size,
        largest_weight=jnp.max(weights),
    )


def off_policy_value(
    policy: SparsePolicy,
    log: Log,
    *,
    method: str = "doubly_robust",
    lam: Any = "simulated",
    folds: int = 2,
    clip: float = np.inf,
    confidence: float = 0.95,
    key: jax.Array | None = None,
) -> OffPolicyValue:
    """The mean utility that `policy` would have had on the log's contexts, with a confidence
    interval.

    * `log`: with utilities [T] and propensities [T], the probability with which the logged set was
      chosen. Best a log that the policy was not fitted to: on its own log the value is too good.
    * `method`: "self_normalised" or "inverse_propensity" (see `importance_value`), or
      "doubly_robust": beside the weights a model m(x, a) = constant + sum_{j in a} <theta_j, psi>,
      fitted by `fit(objective="utility", lam=lam)` on the other `folds`, so that no record judges a
      model that has seen it. Its mean under the policy is exact: constant + sum_j P(j in a | x)
      <theta_j, psi>.
    * `key` of the folds; None is `jax.random.key(0)`. It is consumed. The rest as in
      `importance_value`.

    A pruned policy gives probability 0 to sets with other tools. Runs on the host. ValueError for a
    log without utilities or propensities. Few effective records (`effective_sample_size`) mean that
    policy and log hardly overlap: do not trust the interval.
    """
    _checks.choice("method", method, METHODS)
    folds = _checks.static_integer("folds", folds, 2)
    _checks.require(log.utilities is not None, "off_policy_value needs log.utilities.")
    _checks.require(
        log.propensities is not None,
        "off_policy_value needs log.propensities: with what probability was the logged set chosen?",
    )
    names = np.arange(policy.num_actions) if policy.tools is None else np.asarray(policy.tools)
    num_actions = int(max(names.max(initial=0), np.max(np.asarray(log.actions), initial=0))) + 1
    log = checked(log, num_actions, max(np.shape(log.actions)[1], 1))
    utilities, propensities = (
        np.asarray(log.utilities, np.float64),
        np.asarray(log.propensities, np.float64),
    )
    # In the policy's own numbering: a record with a tool that it lacks cannot be drawn.
    own = np.full(num_actions + 1, -1, np.int32)
    own[names] = np.arange(names.size)
    actions = np.asarray(log.actions)
    foreign = ((actions >= 0) & (own[actions] < 0)).any(1)
    local = log._replace(
        actions=np.where(actions >= 0, own[actions], -1),
        available=_local_offers(log, names, num_actions),
    )
    full = SparsePolicy(
        policy.positions, policy.weights, policy.intercept, policy.background, None, policy.budget
    )
    log_ratio = np.where(foreign, -np.inf, log_probabilities(full, local) - np.log(propensities))
    predicted = expected = None
    if method == "doubly_robust":
        key = jax.random.key(0) if key is None else key
        predicted, expected = _model(key, full, log, local, own, num_actions, lam, folds)
    return importance_value(
        log_ratio,
        utilities,
        predicted=predicted,
        expected=expected,
        self_normalised=method != "inverse_propensity",
        clip=clip,
        confidence=confidence,
    )


def _local_offers(log: Log, names: np.ndarray, num_actions: int) -> np.ndarray | None:
    if log.available is None:
        return None
    lists = np.asarray(log.available)
    table = np.zeros((lists.shape[0], num_actions + 1), bool)
    np.put_along_axis(table, np.where(lists < 0, num_actions, lists), True, axis=1)
    return table[:, names]


def _model(
    key,
    policy: SparsePolicy,
    log: Log,
    local: Log,
    own: np.ndarray,
    num_actions: int,
    lam,
    folds: int,
):
    """The additive model's utility of each logged set and its mean under the policy, each from the
    other folds, [T] and [T].
    """
    records = np.shape(log.contexts)[0]
    _checks.require(folds <= records, f"folds must be at most the {records} records, got {folds}.")
    fold = np.asarray(jax.random.permutation(key, records)) % folds
    contexts, actions = np.asarray(log.contexts, np.float64), np.asarray(log.actions)
    predicted, expected = np.zeros(records), np.zeros(records)
    for number in range(folds):
        held = np.flatnonzero(fold == number)
        training = take(log, np.flatnonzero(fold != number))._replace(available=None)
        solution = fit(
            key,
            training,
            num_actions=num_actions,
            budget=actions.shape[1],
            objective="utility",
            lam=lam,
        )
        tools, constant = np.asarray(solution.value.support), float(solution.stats["constant"])
        weights = np.zeros((num_actions + 1, contexts.shape[1]))
        weights[tools] = np.asarray(solution.value.weights)
        predicted[held] = constant + np.einsum("tq,twq->t", contexts[held], weights[actions[held]])
        known = tools[own[tools] >= 0]
        probability = marginals(policy, take(local, held), own[known])
        expected[held] = constant + (probability * (contexts[held] @ weights[known].T)).sum(1)
    return predicted, expected
