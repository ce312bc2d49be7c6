"""APSEE, which verifies its support before it exploits: when the support is locked, and after how
many steps it must be.
"""

import bisect
from typing import Any

import jax
import jax.numpy as jnp

from jaxsac import _checks, _loops
from jaxsac._arguments import arguments, real, record
from jaxsac.bandits.estimate.radii import KINDS, radius_at
from jaxsac.bandits.phased.rule import Number, Rule, scheduled
from jaxsac.bandits.phased.schedule import Phased, Plan, make_plan, noise_level, phased
from jaxsac.bandits.sets.action_set import ActionSet, no_choice, put, sized, take
from jaxsac.bandits.sets.modular import CrossPolytope, Simplex

_ARGUMENTS = (
    "action_set",
    "sparsity",
    "sigma",
    "delta",
    "radius",
    "radius_scale",
    "basis",
    "schedule_scale",
    "commit_at",
)


@phased(*_ARGUMENTS)
def apsee(
    action_set: ActionSet,
    *,
    sparsity: int,
    sigma: Number | str,
    delta: Number = 0.05,
    radius: str = "l2",
    radius_scale: Number = 1.0,
    basis: Any = None,
    schedule_scale: Number = 1.0,
    commit_at: jax.Array | int | None = None,
) -> Phased:
    """Adaptive phased sparse exploration and exploitation (APSEE): explore until the support of the
    s largest scores is verified, then exploit.

    After cycle c the support is locked when |theta_c|_(s) − |theta_c|_(s+1) > 2 eps_c; from then on
    every cycle plays the basis once and x*(theta_c) on the locked support c times. Wrong locks have
    probability at most `delta`; ties and theta = 0 never lock. Regret O(d √T) up to logarithms. The
    paper's own radius "l2" is loose: theta uniform in [−1, 1]^10 and sigma = 0.1 rarely lock within
    2,000 steps.

    * `action_set`: a `ranked` one (Ball, LpBall, Box, `Masked` ones of these).
    * `sparsity`: s, static.
    * `sigma`: a bound on the sub-Gaussian scale of the noise, or "auto" to bound it from the data
      (Gaussian noise only, half of delta is spent on it).
    * `radius`: see `error_radius`; `radius_scale` multiplies it (below 1 the guarantee is gone).
    * `basis`: None for the unit vectors, each as long as the set allows (a coordinate whose axis
      has length 0 is taken to be useless), or actions [m, d] of the set, from `exploration_basis`;
      rows that are dense are played as they are.
    * `schedule_scale`: multiplies the c steps of exploitation.
    * `commit_at`: lock without proof at the end of the first cycle after so many steps.

    Raises: ValueError for other sets and numbers out of range.

    Source: arXiv 2605.10151, Algorithm 1.
    """
    _checks.require(
        action_set.ranked,
        "apsee needs an action_set on which the largest scores are the best support (Ball, LpBall,"
        " Box): use apsee_greedy.",
    )
    return Phased(
        action_set,
        _MARGIN,
        sparsity=sparsity,
        sigma=sigma,
        delta=delta,
        radius=radius,
        radius_scale=radius_scale,
        basis=basis,
        schedule_scale=schedule_scale,
        commit_at=commit_at,
    )


@phased(*_ARGUMENTS, "gap_factor")
def apsee_greedy(
    action_set: ActionSet,
    *,
    sparsity: int,
    sigma: Number | str,
    delta: Number = 0.05,
    radius: str = "l2",
    radius_scale: Number = 1.0,
    gap_factor: Number = 2.0,
    basis: Any = None,
    schedule_scale: Number = 1.0,
    commit_at: jax.Array | int | None = None,
) -> Phased:
    """APSEE with greedy supports (APSEE-G), for strongly convex sets: as `apsee`, with the greedy
    choice verified step by step.

    The support is locked when the smallest greedy lead of theta_c exceeds gap_factor L eps_c, L the
    largest norm of an s-sparse action (times √s for the radius "coord"). Its regret is measured
    against greedy, or against alpha times the best.

    * `radius`: also "local" (Ball, Ellipsoid), which takes the error of "hkz" and compares the
      leads with how far the maximisers are apart instead of with their norms, plus a proved bound
      on the curvature: never later, several times earlier, and a slower test.
    * `gap_factor`: 2 suffices for the proof, 4 is the literal reading of the paper.
    * the others: as in `apsee`.

    Raises: ValueError for the cross-polytope and the simplex with s > 1, where every lead is 0.

    Source: arXiv 2605.10151, Algorithm 2.
    """
    _checks.require(
        sparsity == 1 or not isinstance(action_set, CrossPolytope | Simplex),
        "action_set has no second coordinate to verify, since one axis is as good as more: use"
        " sparsity=1, or phased_greedy.",
    )
    return Phased(
        action_set,
        _GREEDY,
        sparsity=sparsity,
        sigma=sigma,
        delta=delta,
        radius=radius,
        radius_scale=radius_scale,
        gap_factor=gap_factor,
        basis=basis,
        schedule_scale=schedule_scale,
        commit_at=commit_at,
    )


def _verify(
    plan: Plan, estimate: jax.Array, cycle: jax.Array, within: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """The lock: the lead of the support over the next one exceeds what the radius can hide.

    `within`: the sum of squared deviations within arms.
    """
    algorithm, dimension = plan.algorithm, estimate.shape[0]
    if algorithm.sparsity == dimension:  # nothing is left to choose
        return ~jnp.any(jnp.isnan(estimate)), None
    number, count = plan.basis.shape[0], cycle.astype(estimate.dtype)
    commit = cycle * number >= algorithm.commit_at
    sigma, delta = noise_level(algorithm, count, within, number)
    error = radius_at(algorithm.radius, plan.numbers, dimension, count, sigma, delta)
    threshold = plan.lead * error
    if algorithm.radius == "local":
        # The threshold is gap_factor L eps: half of it is L eps for the gap_factor 2 of the proof.
        norm, error = plan.sensitivity, threshold / (2.0 * plan.sensitivity)
        proved = greedy_is_proved(plan.action_set, estimate, algorithm.sparsity, error, norm)
        return proved | commit, None
    gap, support = algorithm.rule.gap(plan.action_set, estimate, algorithm.sparsity)
    return (gap > threshold) | commit, support


def _margin(action_set: ActionSet, theta: jax.Array, sparsity: int) -> tuple[jax.Array, None]:
    gap = ranked_gap(action_set.scores(theta), sparsity)
    # Where no more than s coordinates can be played there is nothing to tell apart.
    useful = jnp.sum(action_set.reach(theta.shape[0], theta.dtype) != 0)
    return jnp.where((useful > sparsity) | jnp.isnan(gap), gap, jnp.inf), None


def _lead(action_set: ActionSet, theta: jax.Array, sparsity: int) -> tuple[jax.Array, jax.Array]:
    selection = action_set.greedy(theta, sparsity)
    return selection.gap, selection.indices


def _slope(algorithm: Phased, dimension: int, dtype: Any) -> jax.Array:
    """Of a score."""
    return algorithm.action_set.score_slope(jnp.zeros(dimension, dtype))


def _norm(algorithm: Phased, dimension: int, dtype: Any) -> jax.Array:
    """Of f(S), where the radius bounds the l₂ error, or that of a coordinate."""
    widen = algorithm.sparsity**0.5 if algorithm.radius == "coord" else 1.0
    bound = algorithm.action_set.norm_bound(algorithm.sparsity, dimension)
    return jnp.asarray(bound).astype(dtype) * widen


_MARGIN = Rule(_verify, scheduled, _slope, _margin)
_GREEDY = Rule(_verify, scheduled, _norm, _lead, (*KINDS, "local"))


@arguments(on_host=True, algorithm=record(Phased, sizes=sized), theta=real("d"))
def stopping_time(algorithm: Phased, theta: jax.Array) -> float:
    """Steps after which `algorithm` has locked its support for sure, on the event that its error
    radius holds; on the host.

    m c₀ with c₀ the first cycle where (2 + gap_factor radius_scale) L eps_c is below the gap of
    theta: |theta|_(s) − |theta|_(s+1) for `apsee` (L = 1 on balls), the smallest greedy lead for
    `apsee_greedy`.

    Returns: a number of steps; infinite if the gap is 0, NaN if theta is not finite.

    Raises: ValueError for algorithms that verify nothing, and for sigma="auto".

    Source: arXiv 2605.10151, Lemma B.1, by search instead of its closed-form bound.
    """
    _checks.require(
        algorithm.rule.gap is not None,
        "algorithm must be of apsee or apsee_greedy: only these verify a support.",
    )
    _checks.require(
        not algorithm.estimate_sigma,
        "the stopping time needs a known sigma: give one instead of 'auto'.",
    )
    prepared, gap = _planned_gap(algorithm, theta)
    number = prepared.basis.shape[0]
    if algorithm.sparsity == theta.shape[0]:
        return float(number)
    if not bool(jnp.all(jnp.isfinite(theta))):
        return float("nan")
    if not bool(gap > 0):
        return float("inf")

    def enough(cycle: int) -> bool:
        return bool(_clear(prepared, gap, float(cycle)))

    high = 1
    while not enough(high):
        high *= 2
        if high > 2**60:
            return float("inf")
    # The radius falls with the cycle from the first or second one on.
    first = bisect.bisect_left(range(high), True, high // 2 + 1, high, key=enough)
    return float(first * number)


@jax.jit
def _planned_gap(algorithm: Phased, theta: jax.Array):
    prepared = make_plan(algorithm, theta.shape[0], theta.dtype)
    if algorithm.sparsity == theta.shape[0]:
        return prepared, jnp.asarray(jnp.inf, theta.dtype)
    return prepared, algorithm.rule.gap(prepared.action_set, theta, algorithm.sparsity)[0]


@jax.jit
def _clear(plan: Plan, gap: jax.Array, cycle: jax.Array) -> jax.Array:
    algorithm, dimension = plan.algorithm, plan.basis.shape[1]
    sigma, delta = jnp.asarray(algorithm.sigma), jnp.asarray(algorithm.delta)
    cycle = jnp.asarray(cycle).astype(gap.dtype)
    error = radius_at(algorithm.radius, plan.numbers, dimension, cycle, sigma, delta)
    return (plan.lead + 2.0 * plan.sensitivity) * error < gap


def ranked_gap(scores: jax.Array, sparsity: int) -> jax.Array:
    """The s-th largest score minus the next one, s < d, by insertion: comparisons only, no sort,
    fast over many lanes.
    """
    dimension = scores.shape[0]

    def insert(value, top):
        out = []
        for held in top:
            out.append(jnp.maximum(held, value))
            value = jnp.minimum(held, value)
        return tuple(out)

    top = (jnp.asarray(-jnp.inf, scores.dtype),) * (sparsity + 1)
    if dimension * (sparsity + 1) <= 256:
        for i in range(dimension):
            top = insert(scores[i], top)
    else:
        top = _loops.fori_loop(0, dimension, lambda i, top: insert(scores[i], top), top)
    return top[sparsity - 1] - top[sparsity]


def greedy_is_proved(
    action_set: ActionSet,
    estimate: jax.Array,
    sparsity: int,
    error: jax.Array,
    norm_bound: jax.Array,
) -> jax.Array:
    """Whether every theta with ‖theta − estimate‖₂ ≤ error has the greedy support of `estimate`,
    chosen in the same order.

    Greedy prefers i to j if f_i − f_j > error ‖x_i − x_j‖ + L² error² / (2 (f_j − L error)), with f
    and x the value and the maximiser of the estimate on the support so far plus i or j and L the
    `norm_bound`; or if f_i − f_j > 2 L error, the weaker test that needs no shape.

    Proof. Convexity gives f_i(theta) ≥ f_i + ⟨x_i, theta − estimate⟩. Where f_j(theta)² = theta' B
    theta with B ≤ L² I, split theta − estimate into its part along the estimate, in the inner
    product B, and the rest: f_j(theta) = √(p² + q²) ≤ p + q² / (2 p) with p = f_j + ⟨x_j, theta −
    estimate⟩ ≥ f_j − L error > 0 and q ≤ L error.
    """
    dimension = estimate.shape[0]
    slots = jnp.arange(sparsity, dtype=jnp.int32)
    useful = action_set.reach(dimension, estimate.dtype) != 0

    def candidate(indices, slot, j):
        """The value and the maximiser [d] on the chosen coordinates plus j."""
        indices = jnp.where(slots == slot, j, indices)
        part = action_set.restrict(indices, dimension)
        known = take(estimate, indices)
        return part.support(known), put(part.argmax(known), indices, dimension)

    def step(slot, carry):
        indices, chosen, proved = carry
        values, actions = jax.vmap(lambda j: candidate(indices, slot, j))(
            jnp.arange(dimension, dtype=jnp.int32)
        )
        best = jnp.argmax(jnp.where(chosen, -jnp.inf, values)).astype(jnp.int32)
        away = jnp.sqrt(jnp.sum((actions[best][None, :] - actions) ** 2, axis=1))
        floor = values - norm_bound * error
        curvature = (norm_bound * error) ** 2 / (2.0 * jnp.where(floor > 0, floor, 1.0))
        needed = jnp.where(floor > 0, error * away + curvature, jnp.inf)
        needed = jnp.minimum(needed, 2.0 * norm_bound * error)
        rival = useful & ~chosen & (jnp.arange(dimension, dtype=jnp.int32) != best)
        proved &= jnp.all(jnp.where(rival, values[best] - values > needed, True))
        return (
            jnp.where(slots == slot, best, indices),
            chosen | (jnp.arange(dimension, dtype=jnp.int32) == best),
            proved,
        )

    start = (*no_choice(sparsity, dimension), ~jnp.any(jnp.isnan(estimate)))
    return _loops.fori_loop(0, sparsity, step, start)[2]
