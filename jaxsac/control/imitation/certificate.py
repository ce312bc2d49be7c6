"""The duality gap of the imitation fit over all M tools.

Primal, with w_t = c_t / T, prior weight w₀ and targets n_j = Σ_{t: j ∈ a_t} w_t + w₀ m:

    P = Σ_t w_t A_B(z_t) − Σ_j (⟨θ_j, G_j⟩ + n_j b_j) + w₀ Σ_j softplus(b_j)
        + Σ_j (lam ‖θ_j‖ + ridge/2 ‖θ_j‖²),    G_j = Σ_{t: j ∈ a_t} w_t ψ_t.

Let μ be the model's marginals, g_j = Σ_t w_t μ_tj ψ_t and n'_j its uses, the prior's included. The
intercepts are unpenalised, so a dual point must meet their targets exactly: take α_j μ_tj with α_j
= n_j / n'_j. In every row it equals (1 − τ) μ + τ v for a point v of the polytope {0 ≤ x ≤ 1, Σ x ≤
B} once τ covers what x ≥ 0, x ≤ 1 and the budget ask for, and the conjugate of A_B (minus an
entropy, hence ≤ 0) is convex: it costs no more than a share τ of the entropy. With a penalty lam
alone, mix s of that point with 1 − s of the recorded sets themselves (conjugate ≤ 0), so that every
gradient norm ‖α_j g_j − G_j‖ shrinks to lam. Hence, exactly feasible for all M tools,

    D = s (1 − τ) Σ_t w_t H(π_t),    s = min(1, lam / max_j ‖α_j g_j − G_j‖)

(with families the maximum is their dual norm of these gradient norms), and with a ridge

    D = (1 − τ) Σ_t w_t H(π_t) − Σ_j (‖α_j g_j − G_j‖ − lam)₊² / (2 ridge),

whichever is larger. H includes the prior's. The gap is P − D.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsac.control.data.digest import Digest
from jaxsac.control.data.families import omega
from jaxsac.control.imitation.likelihood import Evaluation, Working
from jaxsac.control.imitation.working import Point, to_host, unpad_groups

_LEAST = 1e-30  # use of a tool


class DualGap(NamedTuple):
    """P − D at a point, and the gradient norms from which it is made."""

    objective: float
    gap: float
    inner_gap: float  # of the problem restricted to the working set
    rounding: float  # bound on the rounding error of the gap
    norms: np.ndarray  # [U]: gradient norms of the used tools
    unused_norm: float  # and of every unused one


def dual_gap(
    data: Digest, working: Working, point: Point, found: Evaluation, lam: float, ridge: float
) -> DualGap:
    """The gap at a point from one evaluation there: O(U q) on the host, for the unused tools one
    norm.
    """
    size, groups, families = point.tools.size, data.group_size.size, data.families
    penalty = point.norms.sum()
    if families is not None:
        penalty = omega(point.norms, families.label[point.tools], families.share)
    objective = float(found.value) + lam * float(penalty) + ridge / 2 * float((point.coef**2).sum())
    counts = unpad_groups(to_host(working.counts), groups)
    live = counts > 0
    use, group_use = to_host(found.use)[:size], unpad_groups(to_host(found.group_use), groups)
    alpha, group_alpha, lost = np.ones(size), np.ones(groups), False
    if data.task.intercept == "per_tool":
        # A use that has vanished cannot be scaled to its target: no entropy is left.
        least = min(use.min(initial=1), group_use.min(initial=1, where=live))
        lost = bool(least < _LEAST)
        alpha = (data.frequency[point.tools] + data.prior_use) / np.maximum(use, _LEAST)
        target = data.group_frequency + data.prior_use
        group_alpha = np.where(live, target / np.maximum(group_use, _LEAST), 1)
    elif data.task.intercept == "shared":
        total = data.mean_size + data.task.num_actions * data.prior_use
        share = total / (use.sum() + counts @ group_use)
        alpha, group_alpha = share * alpha, share * group_alpha

    features = unpad_groups(to_host(found.group_features), groups)
    gradient = (group_alpha[:, None] * features)[data.group] - data.feature_sums
    own_features = to_host(found.coef_gradient)[:size] + data.feature_sums[point.tools]
    gradient[point.tools] = alpha[:, None] * own_features - data.feature_sums[point.tools]
    norms = np.sqrt(np.einsum("uq,uq->u", gradient, gradient))
    unused = float(group_alpha[-1] * np.linalg.norm(features[-1])) if counts[-1] > 0 else 0.0

    alphas = np.concatenate([alpha, group_alpha[live]])
    group_odds = unpad_groups(to_host(found.group_top_odds), groups)[live]
    odds = np.concatenate([to_host(found.top_odds)[:size], group_odds])
    # A tool that is used for sure in some record has infinite odds there. Beside them a rise within
    # rounding of 0 counts as none.
    eps = float(jnp.finfo(data.contexts.dtype).eps)
    rising = alphas > np.where(odds > 1 / (64 * eps), 1 + 64 * eps, 1)
    rise = alphas[rising] - 1
    with np.errstate(over="ignore"):
        needs = [1 - alphas, rise * odds[rising], [np.inf] * lost]
    if data.task.budget < data.task.num_actions:
        needs.append(rise * float(found.top_load))
    # NaN stays NaN, and fails the comparison.
    tau = float(np.max(np.concatenate(needs), initial=0.0))
    entropy = float(found.entropy) * (1 - tau) if tau <= 1 else 0.0

    def dual(norms: np.ndarray, beside: float, chosen: np.ndarray | None = None) -> float:
        if families is None:
            largest = float(norms.max(initial=beside))
        else:
            largest = float(families.dual_norm(norms, beside, chosen)[0])
        scaled = entropy * min(1.0, lam / largest) if largest > 0 else entropy
        if ridge == 0:
            return scaled
        over = float((np.maximum(np.append(norms, beside) - lam, 0) ** 2).sum())
        return max(scaled, entropy - over / (2 * ridge))

    return DualGap(
        objective=objective,
        gap=objective - dual(norms, unused),
        inner_gap=objective - dual(norms[point.tools], 0.0, point.tools),
        rounding=16 * eps * (abs(objective) + abs(float(found.value)) + abs(entropy)),
        norms=norms,
        unused_norm=unused,
    )


def largest_norm(data: Digest, gap: DualGap) -> float:
    """The least lam at which this gradient asks for no tool."""
    if data.families is not None:
        return float(data.families.dual_norm(gap.norms, gap.unused_norm)[0])
    return max(float(gap.norms.max(initial=0.0)), gap.unused_norm)
