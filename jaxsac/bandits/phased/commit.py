"""Schedules that verify nothing: exploit at once, or commit after a number of cycles."""

from typing import Any

import jax

from jaxsac._arguments import real
from jaxsac.bandits.phased.rule import Number, Rule, forever, scheduled
from jaxsac.bandits.phased.schedule import Phased, Plan, phased
from jaxsac.bandits.sets.action_set import ActionSet


@phased("action_set", "sparsity", "basis", "schedule_scale", "schedule_power")
def phased_greedy(
    action_set: ActionSet,
    *,
    sparsity: int,
    basis: Any = None,
    schedule_scale: Number = 1.0,
    schedule_power: float = 0.5,
) -> Phased:
    """The schedule for compact sets: no verification; every cycle explores, then plays the greedy
    action ⌈k c^q⌉ times. Nothing is ever locked.

    * `schedule_scale`, `schedule_power`: k and q (static): q = 1/2 has regret O(d T^(2/3)), and
      k = √d improves it to O((d T)^(2/3)).
    * the others: as in `apsee`.

    Source: arXiv 2605.10151, Section 5.
    """
    return Phased(
        action_set,
        Rule(None, scheduled),
        sparsity=sparsity,
        basis=basis,
        schedule_scale=schedule_scale,
        schedule_power=schedule_power,
    )


@phased("action_set", "sparsity", "num_cycles", "basis")
def explore_then_commit(
    action_set: ActionSet, *, sparsity: int, num_cycles: jax.Array | int, basis: Any = None
) -> Phased:
    """Play the basis `num_cycles` times, then the greedy action of the estimate for ever.

    Source: Robbins (1952).
    """
    return Phased(action_set, _COMMIT, sparsity=sparsity, basis=basis, commit_at=num_cycles)


@phased("action_set", "sparsity", "num_cycles", "lam", "basis")
def estc(
    action_set: ActionSet,
    *,
    sparsity: int,
    num_cycles: jax.Array | int,
    lam: Number,
    basis: Any = None,
) -> Phased:
    """Explore the sparsity, then commit: as `explore_then_commit`, with the Lasso estimate of the
    n = m num_cycles first rewards,

        minimise  (1/n) Σ_t (r_t − ⟨b_t, theta⟩)² + lam ‖theta‖₁.

    Source: Hao, Lattimore and Wang (2020), who take lam = 4 sigma √(log(d) / n); their exploration
    distribution is here the basis.
    """
    return Phased(
        action_set,
        _COMMIT,
        sparsity=sparsity,
        basis=basis,
        commit_at=num_cycles,
        lam=lam,
        lasso=True,
    )


@phased(
    "action_set",
    "sparsity",
    "basis",
    sigma=real(low=0, below=float("inf")),
    horizon=real(low=1, below=float("inf")),
    scale=real(low=0, below=float("inf")),
)
def e2tc(
    action_set: ActionSet,
    *,
    sparsity: int,
    sigma: Number,
    horizon: Number,
    scale: Number = 1.0,
    basis: Any = None,
) -> Phased:
    """Explore until the size of the estimate says that it is enough (E2TC), then commit to its
    greedy action for ever.

    Stops at the first cycle c with c f(theta_c) ≥ scale sigma √(horizon / 2), f the value of the
    greedy support. On the unit ball with s = d, c cycles cost at most c d ‖theta‖ and the steps
    after them about (d − 1) sigma² / (2 c ‖theta‖) each, whose sum is least about there. The noise
    alone, f(theta_c) ~ sigma √(d / c), stops no earlier than c ~ horizon / (2 d): regret of order
    min(d sigma √horizon + d ‖theta‖, ‖theta‖ horizon), the best possible for s = d on balls, and on
    ellipsoids {x : x'Ax ≤ 1} with a `basis` B of its axes, B A B' = I. For s < d the support is
    that of the estimate, unproved.

    Source: Zhang, Hadiji and Combes (2025), whose separate estimation of ‖theta‖ is merged with the
    exploration here.
    """
    enough = scale * sigma * (horizon / 2.0) ** 0.5
    return Phased(action_set, _VALUE, sparsity=sparsity, basis=basis, enough=enough)


def _at_a_cycle(plan: Plan, estimate: jax.Array, cycle: jax.Array, within: jax.Array):
    return cycle == plan.algorithm.commit_at, None


def _at_a_value(plan: Plan, estimate: jax.Array, cycle: jax.Array, within: jax.Array):
    selection = plan.action_set.greedy(estimate, plan.algorithm.sparsity)
    reached = cycle.astype(estimate.dtype) * selection.value
    return reached >= plan.algorithm.enough, selection.indices


_COMMIT, _VALUE = Rule(_at_a_cycle, forever), Rule(_at_a_value, forever)
