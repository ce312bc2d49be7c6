"""Phased algorithms by name, and when they are sure to stop exploring."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac.bandits.sets.action_set import ActionSet
from jaxsac.bandits.phased import FOREVER, Phased, Plan, plan, ranked_gap
from jaxsac.bandits.estimate.radii import KINDS, check_numbers, radius_at

Number = jax.Array | float


def _phased(
    action_set: ActionSet,
    sparsity: int,
    rule: str,
    *,
    basis: jax.Array | str | None = None,
    sigma: Number | str = 0.0,
    delta: Number = 0.5,
    commit_at: jax.Array | int | None = None,
    radius: str = "l2",
    schedule_scale: Number = 1.0,
    schedule_power: float = 1.0,
    radius_scale: Number = 1.0,
    gap_factor: Number = 2.0,
    lam: Number = 0.0,
    enough: Number = 0.0,
    lasso: bool = False,
) -> Phased:
    sparsity = _checks.static_integer("sparsity", sparsity, 1)
    _checks.choice("radius", radius, (*KINDS, "local") if rule == "greedy" else KINDS)
    local = "radius='local' needs a set whose f(S)^2 is quadratic (Ball, Ellipsoid): use 'hkz'."
    _checks.require(radius != "local" or action_set.quadratic, local)
    auto = isinstance(sigma, str)
    if isinstance(sigma, str):
        _checks.choice("sigma", sigma, ("auto",))
        sigma = 0.0
    check_numbers(jnp.result_type(float), sigma=sigma, delta=delta)
    if isinstance(basis, str):
        _checks.choice("basis", basis, ("standard",))
        basis = None
    if basis is not None:
        basis = _checks.real_array("basis", basis, ("m", "d"))
        if _checks.is_concrete(basis):
            rank = np.linalg.matrix_rank(np.asarray(basis, np.float64))
            _checks.require(
                rank == basis.shape[1],
                f"basis must span all {basis.shape[1]} coordinates, its rank is {rank}: add actions.",
            )
    numbers = {
        "radius_scale": radius_scale,
        "gap_factor": gap_factor,
        "schedule_scale": schedule_scale,
        "lam": lam,
        "enough": enough,
    }
    for name, number in numbers.items():
        _checks.real_scalar(name, number, jnp.result_type(float), 0)
    if commit_at is not None and _checks.is_concrete(commit_at):
        _checks.require(int(commit_at) >= 1, f"commit_at counts from 1, got {commit_at}.")
    return Phased(
        action_set=action_set,
        basis=basis,
        sigma=sigma,
        delta=delta,
        commit_at=FOREVER if commit_at is None else commit_at,
        sparsity=sparsity,
        rule=rule,
        radius=radius,
        schedule_power=schedule_power,
        estimate_sigma=auto,
        lasso=lasso,
        **numbers,
    )


def apsee(
    action_set: ActionSet,
    *,
    sparsity: int,
    sigma: Number | str,
    delta: Number = 0.05,
    radius: str = "l2",
    radius_scale: Number = 1.0,
    basis: jax.Array | str | None = None,
    schedule_scale: Number = 1.0,
    commit_at: jax.Array | int | None = None,
) -> Phased:
    """Adaptive phased sparse exploration and exploitation (APSEE): explore until the support of the
    s largest scores is verified, then exploit.

    After cycle c the support is locked when |theta_c|_(s) - |theta_c|_(s+1) > 2 eps_c; from then on
    every cycle plays the basis once and x*(theta_c) on the locked support c times. Wrong locks have
    probability at most `delta`. `action_set` must be modular (Ball, LpBall, Box). `sigma`: a bound
    on the sub-Gaussian scale of the noise, or "auto" to bound it from the data (Gaussian noise
    only, half of delta is spent on it). `radius`: see `error_radius`; `radius_scale` multiplies it
    (below 1 the guarantee is gone). `basis`: None for the unit vectors, each as long as the set
    allows (a coordinate whose axis has length 0 is taken to be useless), or [m, d] from
    `exploration_basis`. `commit_at`: lock without proof at the end of the first cycle after so many
    steps. Ties and theta = 0 never lock. Regret O(d sqrt(T)) up to logarithms. Source: arXiv
    2605.10151, Algorithm 1. The paper's own radius "l2" is loose: theta uniform in [-1, 1]^10 and
    sigma = 0.1 rarely lock within 2,000 steps.
    """
    _checks.require(
        action_set.modular,
        "apsee needs a set on which the largest scores are the best support (Ball, LpBall, Box): use apsee_greedy.",
    )
    return _phased(
        action_set, sparsity, "margin", sigma=sigma, delta=delta, radius=radius, radius_scale=radius_scale, basis=basis,
        schedule_scale=schedule_scale, commit_at=commit_at,
    )  # fmt: skip


def apsee_greedy(
    action_set: ActionSet,
    *,
    sparsity: int,
    sigma: Number | str,
    delta: Number = 0.05,
    radius: str = "l2",
    radius_scale: Number = 1.0,
    gap_factor: Number = 2.0,
    basis: jax.Array | str | None = None,
    schedule_scale: Number = 1.0,
    commit_at: jax.Array | int | None = None,
) -> Phased:
    """APSEE with greedy supports (APSEE-G), for strongly convex sets: as `apsee`, with the greedy
    choice verified step by step.

    The support is locked when the smallest greedy lead of theta_c exceeds gap_factor L eps_c, L the
    largest norm of an s-sparse action (times sqrt(s) for the radius "coord"). `radius="local"`
    (Ball, Ellipsoid) takes the error of "hkz" and compares the leads with how far the maximisers
    are apart instead of with their norms, plus a proved bound on the curvature: never later,
    several times earlier, and a slower test. gap_factor = 2 suffices for the proof, 4 is the
    literal reading of the paper. Its regret is measured against greedy, or against alpha times the
    best. Other arguments as in `apsee`. Source: arXiv 2605.10151, Algorithm 2.
    """
    return _phased(
        action_set, sparsity, "greedy", sigma=sigma, delta=delta, radius=radius, radius_scale=radius_scale, gap_factor=gap_factor,
        basis=basis, schedule_scale=schedule_scale, commit_at=commit_at,
    )  # fmt: skip


def phased_greedy(
    action_set: ActionSet,
    *,
    sparsity: int,
    basis: jax.Array | str | None = None,
    schedule_scale: Number = 1.0,
    schedule_power: float = 0.5,
) -> Phased:
    """The schedule for compact sets: no verification; every cycle explores, then plays the greedy
    action ceil(k c^q) times.

    k = schedule_scale, q = schedule_power (static): q = 1/2 has regret O(d T^(2/3)), and k =
    sqrt(d) improves it to O((d T)^(2/3)). Nothing is ever locked. Source: arXiv 2605.10151, Section
    5.
    """
    return _phased(
        action_set,
        sparsity,
        "always",
        basis=basis,
        schedule_scale=schedule_scale,
        schedule_power=float(schedule_power),
    )


def explore_then_commit(
    action_set: ActionSet,
    *,
    sparsity: int,
    num_cycles: jax.Array | int,
    basis: jax.Array | str | None = None,
) -> Phased:
    """Play the basis `num_cycles` times, then the greedy action of the estimate for ever: the
    baseline of Robbins (1952).
    """
    return _phased(action_set, sparsity, "commit", basis=basis, commit_at=num_cycles)


def e2tc(
    action_set: ActionSet,
    *,
    sparsity: int,
    sigma: Number,
    horizon: Number,
    scale: Number = 1.0,
    basis: jax.Array | str | None = None,
) -> Phased:
    """Explore until the size of the estimate says that it is enough (E2TC), then commit to its
    greedy action for ever.

    Stops at the first cycle c with c f(theta_c) >= scale sigma sqrt(horizon / 2), f the value of
    the greedy support. On the unit ball with s = d, c cycles cost at most c d ||theta|| and the
    steps after them about (d - 1) sigma^2 / (2 c ||theta||) each, whose sum is least about there.
    The noise alone, f(theta_c) ~ sigma sqrt(d / c), stops no earlier than c ~ horizon / (2 d):
    regret of order min(d sigma sqrt(horizon) + d ||theta||, ||theta|| horizon), the best possible
    for s = d on balls, and on ellipsoids {x : x'Ax <= 1} with a `basis` B of its axes, B A B' = I.
    For s < d the support is that of the estimate, unproved. Source: Zhang, Hadiji and Combes
    (2025), whose separate estimation of ||theta|| is merged with the exploration here.
    """
    sigma = _checks.real_scalar("sigma", sigma, jnp.result_type(float), 0)
    steps = _checks.real_scalar("horizon", horizon, jnp.result_type(float), 1)
    enough = _checks.real_scalar("scale", scale, jnp.result_type(float), 0) * sigma * jnp.sqrt(steps / 2.0)
    return _phased(action_set, sparsity, "value", basis=basis, enough=enough)


def estc(
    action_set: ActionSet,
    *,
    sparsity: int,
    num_cycles: jax.Array | int,
    lam: Number,
    basis: jax.Array | str | None = None,
) -> Phased:
    """Explore the sparsity, then commit: as `explore_then_commit`, with the Lasso estimate of the n
    = m num_cycles first rewards,

        minimise  (1/n) sum_t (r_t - <b_t, theta>)^2 + lam ||theta||_1.

    Source: Hao, Lattimore and Wang (2020), who take lam = 4 sigma sqrt(log(d) / n); their
    exploration distribution is here the basis.
    """
    return _phased(
        action_set, sparsity, "commit", basis=basis, commit_at=num_cycles, lam=lam, lasso=True
    )


def stopping_time(algorithm: Phased, theta: jax.Array) -> float:
    """Steps after which `algorithm` has locked its support for sure, on the event that its error
    radius holds; on the host.

    m c_0 with c_0 the first cycle where (2 + gap_factor radius_scale) L eps_c is below the gap of
    theta: |theta|_(s) - |theta|_(s+1) for `apsee` (L = 1 on balls), the smallest greedy lead for
    `apsee_greedy`. Infinite if the gap is 0. Source: arXiv 2605.10151, Lemma B.1, by search instead
    of its closed-form bound.
    """
    theta = _checks.real_array("theta", theta, ("d",))
    _checks.require(
        algorithm.rule in ("margin", "greedy"),
        "only apsee and apsee_greedy verify a support: no stopping time to prove.",
    )
    _checks.require(
        not algorithm.estimate_sigma,
        "the stopping time needs a known sigma: give one instead of 'auto'.",
    )
    prepared, gap = _planned_gap(algorithm, theta)
    number = prepared.basis.shape[0]
    if algorithm.sparsity == theta.shape[0]:
        return float(number)
    if not bool(gap > 0):
        return float("inf")

    def enough(cycle: int) -> bool:
        return bool(_clear(algorithm.radius, prepared, gap, float(cycle)))

    high = 1
    while not enough(high):
        high *= 2
        if high > 2**60:
            return float("inf")
    low = high // 2  # the radius falls with the cycle from the first or second one on
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return float(high * number)


@jax.jit
def _planned_gap(algorithm: Phased, theta: jax.Array):
    prepared = plan(algorithm, theta.shape[0], theta.dtype)
    if algorithm.sparsity == theta.shape[0]:
        return prepared, jnp.asarray(jnp.inf, theta.dtype)
    if algorithm.rule == "margin":
        return prepared, ranked_gap(prepared.action_set.scores(theta), algorithm.sparsity)  # pyright: ignore[reportAttributeAccessIssue]
    return prepared, prepared.action_set.greedy(theta, algorithm.sparsity).gap


@partial(jax.jit, static_argnums=0)
def _clear(radius: str, prepared: Plan, gap: jax.Array, cycle: jax.Array) -> jax.Array:
    cycle, dimension = jnp.asarray(cycle).astype(gap.dtype), prepared.basis.shape[1]
    error = radius_at(radius, prepared.numbers, dimension, cycle, prepared.sigma, prepared.delta)
    return (prepared.lead + 2.0 * prepared.sensitivity) * error < gap
