"""What a policy would have earned on logged contexts: importance weighting and its doubly robust
form, with confidence intervals.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, choice, flag, integer, key, real, record, size
from jaxsac._quantiles import student_quantile
from jaxsac.control.data.log import Log, checked, logged_sets, offered, take
from jaxsac.control.data.sample_weight import effective_sample_size
from jaxsac.control.data.task import Task
from jaxsac.control.fits.fit import LAM, fit
from jaxsac.control.policy.scoring import log_probabilities, marginals
from jaxsac.control.policy.sparse import SparsePolicy
from jaxsac.solution import register

_MAX_WEIGHT, _CONFIDENCE = real(low=0), real(above=0, below=1)
_METHODS = ("doubly_robust", "self_normalised", "inverse_propensity")


@register
class OffPolicyValue(NamedTuple):
    """A policy's mean utility, and the importance weights w that it rests on; scalars."""

    value: jax.Array  # in units of utility
    standard_error: jax.Array  # in units of utility
    lower: jax.Array  # of the confidence interval
    upper: jax.Array  # of the confidence interval
    effective_sample_size: jax.Array  # (Σ w)² / Σ w², in records, or of sums by group in groups
    mean_weight: jax.Array  # 1 in expectation: far from it, propensities or overlap are wrong
    largest_weight: jax.Array  # max w


@arguments(
    log_ratio=real("T"),
    utilities=real("T"),
    predicted=real("T"),
    expected=real("T"),
    groups=integer("T", low=0, below="T"),
    self_normalised=flag(),
    max_weight=_MAX_WEIGHT,
    confidence=_CONFIDENCE,
)
@functools.partial(jax.jit, static_argnames="self_normalised")
def importance_value(
    log_ratio: Any,
    utilities: Any,
    *,
    predicted: Any = None,
    expected: Any = None,
    groups: Any = None,
    self_normalised: bool = True,
    max_weight: Any = np.inf,
    confidence: float = 0.95,
) -> OffPolicyValue:
    """The mean utility under another policy from T logged draws, w_t = min(π(a_t | x_t) / p_t,
    max_weight):

        value = Σ_t (w_t / W) (u_t − m_t) + (1/T) Σ_t e_t,    W = Σ_t w_t (self-normalised) or T

    * `log_ratio` [T]: log π(a_t | x_t) − log p_t (−∞: it never draws it). `utilities` u [T].
    * `predicted` m [T] and `expected` e [T]: a model's utility of the logged set, and its mean over
      the policy's sets in the same context; both or neither (then 0). Right model or right
      propensities suffice (doubly robust).
    * `max_weight` ≥ 0 caps the weights: less variance, and a bias that the interval does not know.
    * `confidence` in (0, 1) of the normal interval, whose standard error comes from the influence
      of each record: T w_t (u_t − m_t − c) / W + e_t − mean e, c = Σ w (u − m) / W if
      self-normalised, else w_t (u_t − m_t) + e_t − value.
    * `groups` [T] (numbers as of np.unique(names, return_inverse=True)[1]): records of one vary
      together. The error is then that of the G groups' sums of influence, of which few may bear
      all weight, so with n = (Σ_g w_g)² / Σ_g w_g²

          standard error² = G / (G − 1) Σ_g (Σ_{t ∈ g} influence_t / T)² + ((max u − min u) / 2n)²

      and the interval is Student's at max(n − 1, 1) degrees.

    Pure, to be jitted and vmapped over logs.

    Returns: an `OffPolicyValue`; NaN where every weight is 0 and W is their sum, its error and ends
    NaN for a single record or group.

    Source: Horvitz & Thompson 1952; Swaminathan & Joachims 2015 (self-normalised); Dudík, Langford
    & Li 2011 (doubly robust); Liang & Zeger 1986 (groups); Kish 1965 (n).
    """
    _checks.require(
        (predicted is None) == (expected is None),
        "predicted and expected go together: pass both or neither.",
    )
    if predicted is None:
        predicted = expected = jnp.zeros_like(log_ratio)
    size = jnp.asarray(utilities.shape[0], utilities.dtype)
    weights = jnp.minimum(jnp.exp(log_ratio), max_weight)
    total = jnp.sum(weights)
    error = utilities - predicted
    divisor = total if self_normalised else size
    corrected = jnp.sum(weights * error) / divisor
    value = corrected + jnp.mean(expected)
    centre = corrected if self_normalised else jnp.zeros_like(value)
    influence = size / divisor * weights * (error - centre) + expected
    one_each = groups is None
    sums = functools.partial(
        jax.ops.segment_sum,
        segment_ids=jnp.arange(utilities.shape[0]) if one_each else groups,
        num_segments=utilities.shape[0],
    )
    count = jnp.sum(sums(jnp.ones_like(weights)) > 0).astype(value.dtype)
    effective = effective_sample_size(sums(weights))
    moved = jnp.sum(sums(influence - jnp.mean(influence)) ** 2)
    standard_error = jnp.sqrt(count / (count - 1) * moved) / size
    level = jnp.asarray((1 + confidence) / 2, value.dtype)
    if one_each:
        quantile = jax.scipy.special.ndtri(level)
    else:
        least = (jnp.max(utilities) - jnp.min(utilities)) / (2 * effective)
        standard_error = jnp.hypot(standard_error, least)
        quantile = student_quantile(level, jnp.maximum(effective - 1, 1))
    return OffPolicyValue(
        value=value,
        standard_error=standard_error,
        lower=value - quantile * standard_error,
        upper=value + quantile * standard_error,
        effective_sample_size=effective,
        mean_weight=total / size,
        largest_weight=jnp.max(weights),
    )


@arguments(
    on_host=True,
    policy=record(SparsePolicy),
    log=record(Log),
    method=choice(*_METHODS),
    lam=LAM,
    folds=size(2),
    max_weight=_MAX_WEIGHT,
    confidence=_CONFIDENCE,
    key=key(),
)
def off_policy_value(
    policy: Any,
    log: Log,
    *,
    method: str = "doubly_robust",
    lam: Any = "simulated",
    folds: int = 2,
    max_weight: float = np.inf,
    confidence: float = 0.95,
    key: jax.Array | None = None,
) -> OffPolicyValue:
    """The mean utility that `policy` would have had on the log's contexts, with a confidence
    interval.

    * `policy`: a solution, its policy, or a pruned one, which gives probability 0 to sets with
      other tools.
    * `log`: with utilities [T] and propensities [T], the probability with which the logged set was
      chosen. Best a log that the policy was not fitted to: on its own log the value is too good.
    * `method`: "self_normalised" or "inverse_propensity" (see `importance_value`), or
      "doubly_robust": beside the weights a model m(x, a) = constant + Σ_{j ∈ a} ⟨θ_j, ψ⟩, fitted by
      `fit(objective="utility", lam=lam)` on the other `folds` ≥ 2, so that no record judges a model
      that has seen it. Its mean under the policy is exact: constant + Σ_j P(j ∈ a | x) ⟨θ_j, ψ⟩.
    * `key`: of the folds and of the model's lam; needed for "doubly_robust" alone. It is consumed.
    * `max_weight`, `confidence`: as in `importance_value`.

    Runs on the host. Few effective records (`effective_sample_size`) mean that policy and log
    hardly overlap: do not trust the interval.

    Returns: an `OffPolicyValue`.

    Raises: ValueError for a log without utilities or propensities, "doubly_robust" without a key.

    Source: as `importance_value`.
    """
    _checks.require(
        key is not None or method != "doubly_robust",
        'pass key=jax.random.key(...): method="doubly_robust" draws the folds of its model.',
    )
    _checks.require(log.utilities is not None, "off_policy_value needs log.utilities.")
    _checks.require(
        log.propensities is not None,
        "off_policy_value needs log.propensities: with what probability was the logged set chosen?",
    )
    names = np.arange(policy.num_actions) if policy.tools is None else np.asarray(policy.tools)
    num_actions = int(max(names.max(initial=0), logged_sets(log).max(initial=0))) + 1
    log = checked(log, num_actions, max(np.shape(log.actions)[1], 1))
    utilities = np.asarray(log.utilities, np.float64)
    propensities = np.asarray(log.propensities, np.float64)
    # In the policy's own numbering: a record with a tool that it lacks cannot be drawn.
    own = np.full(num_actions + 1, -1, np.int32)
    own[names] = np.arange(names.size)
    actions = np.asarray(log.actions)
    foreign = ((actions >= 0) & (own[actions] < 0)).any(1)
    possible = None if log.available is None else offered(log, num_actions)[:, names]
    local = log._replace(actions=np.where(actions >= 0, own[actions], -1), available=possible)
    full = dataclasses.replace(policy, tools=None)
    log_ratio = np.where(foreign, -np.inf, log_probabilities(full, local) - np.log(propensities))
    predicted = expected = None
    if method == "doubly_robust":
        predicted, expected = _model(key, full, log, local, own, lam, folds)
    return importance_value(
        log_ratio,
        utilities,
        predicted=predicted,
        expected=expected,
        self_normalised=method != "inverse_propensity",
        max_weight=max_weight,
        confidence=confidence,
    )


def _model(key, policy: SparsePolicy, log: Log, local: Log, own: np.ndarray, lam, folds: int):
    """The additive model's utility of each logged set and its mean under the policy, each from the
    other folds, [T] and [T]. `local` is the log in the policy's numbering, `own` [M + 1] that
    number of a tool, -1 without one.
    """
    num_actions = own.size - 1
    records = np.shape(log.contexts)[0]
    _checks.require(folds <= records, f"folds must be at most the {records} records, got {folds}.")
    fold = np.asarray(jax.random.permutation(key, records)) % folds
    contexts, actions = np.asarray(log.contexts, np.float64), np.asarray(log.actions)
    predicted, expected = np.zeros(records), np.zeros(records)
    for number in range(folds):
        held = np.flatnonzero(fold == number)
        task = Task(take(log, fold != number), num_actions, max(actions.shape[1], 1), "utility")
        solution = fit(key, task, lam=lam)
        tools, constant = np.asarray(solution.value.support), float(solution.stats["constant"])
        coef = np.zeros((num_actions + 1, contexts.shape[1]))
        coef[tools] = np.asarray(solution.value.coef)
        predicted[held] = constant + np.einsum("tq,twq->t", contexts[held], coef[actions[held]])
        known = tools[own[tools] >= 0]
        probability = marginals(policy, take(local, held), own[known])
        expected[held] = constant + (probability * (contexts[held] @ coef[known].T)).sum(1)
    return predicted, expected
