"""The paper's theorems on regret as numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, integer, real, record
from jaxsac.bandits.estimate.radii import BELOW_ONE, radius_at
from jaxsac.bandits.phased.apsee import stopping_time
from jaxsac.bandits.phased.rule import FOREVER
from jaxsac.bandits.phased.schedule import Phased, make_plan
from jaxsac.bandits.sets.action_set import sized
from jaxsac.bandits.sets.supports import greedy_support


@arguments(
    on_host=True,
    algorithm=record(Phased, sizes=sized),
    theta=real("d"),
    horizon=integer(low=1, below=FOREVER),
    sigma=real(low=0, below=float("inf")),
    delta=BELOW_ONE,
)
def regret_bound(
    algorithm: Phased, theta: jax.Array, horizon: Any, *, sigma: Any = None, delta: Any = 0.05
) -> float:
    """A bound on the regret after T steps that holds with the probability of the algorithm's error
    radius; on the host.

        min(T (f* + f(−theta)), C Σ_i (f* − ⟨theta, b_i⟩) + Σ_{c ≤ C} ℓ_c loss_c)

    f* is the value of the greedy support of theta, C the number of cycles if the support is locked
    as late as it may be, ℓ_c their steps of exploitation, and with L the largest norm of an action

        loss_c = min(2 L eps_c, 2 J eps_c² / ‖theta_S‖)  once a support is proved, 2 L eps_c else,

    where J is the set's `action_slope`: ⟨theta, x − x_c⟩ ≤ ⟨theta − theta_c, x − x_c⟩, since x_c is
    best for theta_c.

    * `algorithm`: of `apsee` or `apsee_greedy`, against greedy; or of `phased_greedy` on a set
      whose greedy supports are best.
    * `theta`: [d]. `horizon`: T.
    * `sigma`, `delta`: of the radius "l2" for `phased_greedy`, which has none of its own.

    Returns: the bound, in units of the reward; NaN if theta is not finite.

    Raises: ValueError for other algorithms, and for sigma="auto".

    Source: arXiv 2605.10151, Theorems 1 to 3 (equations 10, 16 and their kin), summed as their
    proofs do instead of in closed form.
    """
    proves, action_set = algorithm.rule.gap is not None, algorithm.action_set
    _checks.require(
        proves or (algorithm.rule.verify is None and action_set.greedy_is_exact),
        "algorithm must be of apsee or apsee_greedy, or of phased_greedy on a set whose greedy"
        " supports are best.",
    )
    _checks.require(proves or sigma is not None, "sigma must be given: phased_greedy has none.")
    if not bool(jnp.all(jnp.isfinite(theta))):
        return float("nan")
    plan, dimension = make_plan(algorithm, theta.shape[0], theta.dtype), theta.shape[0]
    number, best = plan.basis.shape[0], greedy_support(action_set, theta, algorithm.sparsity)
    last = stopping_time(algorithm, theta) / number if proves else 1.0
    cycles, lengths, ends = jnp.arange(1, 513), np.zeros(0), np.zeros(1)
    while ends[-1] < int(horizon):
        cycles = jnp.arange(1, 2 * cycles.shape[0] + 1)
        lengths = np.asarray(jax.vmap(lambda c: algorithm.rule.length(plan.algorithm, c))(cycles))
        played = np.where(np.asarray(cycles) >= last, lengths, 0)
        ends = np.cumsum(number + played.astype(np.int64))
    count = int(np.searchsorted(ends, int(horizon))) + 1  # the last one may be cut
    believed = (algorithm.sigma, algorithm.delta) if proves else (sigma, delta)
    sigma, delta = (jnp.asarray(value).astype(theta.dtype) for value in believed)
    at = cycles[:count].astype(theta.dtype)
    error = radius_at(algorithm.radius, plan.numbers, dimension, at, sigma, delta)
    error = np.asarray(error * algorithm.radius_scale, np.float64)
    if algorithm.radius == "coord":
        error = error * algorithm.sparsity**0.5
    loss = 2.0 * float(action_set.norm_bound(algorithm.sparsity, dimension)) * error
    size = float(jnp.linalg.norm(jnp.where(best.mask, theta, 0.0)))
    if proves and size > 0:
        loss = np.minimum(
            loss, 2.0 * float(action_set.action_slope(algorithm.sparsity)) * error**2 / size
        )
    cost = number * float(best.value) - float(jnp.sum(plan.basis @ theta))
    worst = float(best.value) + float(action_set.support(-theta))
    return min(int(horizon) * worst, count * cost + float(np.sum(lengths[:count] * loss)))
