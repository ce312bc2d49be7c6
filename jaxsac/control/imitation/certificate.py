"""The duality gap of the imitation fit over all M tools.

Primal, with w_t = c_t / T, prior weight w₀ and targets n_j = Σ_{t: j ∈ a_t} w_t + w₀ m:

    P = Σ_t w_t A_B(z_t) − Σ_j (⟨θ_j, G_j⟩ + n_j b_j) + w₀ Σ_j softplus(b_j)
        + Σ_j (lam ‖θ_j‖ + ridge/2 ‖θ_j‖²),    G_j = Σ_{t: j ∈ a_t} w_t ψ_t.

Let μ be the model's marginals, g_j = Σ_t w_t μ_tj ψ_t and u_j = Σ_t w_t μ_tj. The intercepts are
unpenalised, so a dual point must meet their targets exactly. What the records' uses miss goes to
the prior's share of the tool, as far as one is left, v_j = (n_j − u_j) / w₀ within [0, 1]: it
weighs w₀ alone, so that this costs next to nothing. The rest is met by α_j μ_tj with α_j = (n_j −
w₀ v_j) / u_j (with one intercept for all tools α multiplies the prior's shares too). In every row
it equals (1 − τ) μ + τ x for a point x of the polytope {0 ≤ x ≤ 1, Σ x ≤ B} once τ covers what x ≥
0, x ≤ 1 and the budget ask for, and the conjugate of A_B (minus an entropy, hence ≤ 0) is convex:
it costs no more than a share τ of the entropy. With a penalty lam alone, mix s of that point with
1 − s of the recorded sets themselves (conjugate ≤ 0), so that every gradient norm ‖α_j g_j − G_j‖
shrinks to lam. Hence, exactly feasible for all M tools, with E = (1 − τ) Σ_t w_t H(π_t) + w₀ Σ_j
H(v_j),

    D = s E,    s = min(1, lam / max_j ‖α_j g_j − G_j‖)

(with families the maximum is their dual norm of these gradient norms), and with a ridge

    D = E − Σ_j (‖α_j g_j − G_j‖ − lam)₊² / (2 ridge),

whichever is larger. The gap is P − D.
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
    entropy, beside = float(found.entropy), 0.0
    if data.task.intercept == "per_tool":
        own = _met(use, data.frequency[point.tools] + data.prior_use, point.intercept, data)
        rest = _met(group_use, data.group_frequency + data.prior_use, point.group_intercept, data)
        alpha, group_alpha = own.alpha, np.where(live, rest.alpha, 1)
        # A use that has vanished cannot be scaled to its target: no entropy is left.
        lost = bool(own.lost.any() or rest.lost[live].any())
        entropy -= float(own.before.sum() + counts @ rest.before)
        beside = float(own.after.sum() + counts @ rest.after)
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
    entropy = beside + (entropy * (1 - tau) if tau <= 1 else 0.0)

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


class _Met(NamedTuple):
    """How tools meet their targets, and the prior's entropy w₀ H of each, [W] or [G]."""

    alpha: np.ndarray
    lost: np.ndarray
    before: np.ndarray  # at the intercept
    after: np.ndarray  # at the share that it takes


def _met(use: np.ndarray, target: np.ndarray, intercept: np.ndarray, data: Digest) -> _Met:
    def entropy(share: np.ndarray) -> np.ndarray:
        inside = np.clip(share, 1e-300, 1)
        other = np.clip(1 - share, 1e-300, 1)
        return -data.prior_weight * (share * np.log(inside) + (1 - share) * np.log(other))

    rate = 1 / (1 + np.exp(-np.clip(intercept, -500, 500)))
    rows = use - data.prior_weight * rate
    wanted = (target - rows) / data.prior_weight
    share = np.clip(wanted, 0, 1)  # NaN stays NaN
    within = share == wanted
    alpha = np.where(within, 1, (target - data.prior_weight * share) / np.maximum(rows, _LEAST))
    return _Met(alpha, ~within & (rows < _LEAST), entropy(rate), entropy(share))


def largest_norm(data: Digest, gap: DualGap) -> float:
    """The least lam at which this gradient asks for no tool."""
    if data.families is not None:
        return float(data.families.dual_norm(gap.norms, gap.unused_norm)[0])
    return max(float(gap.norms.max(initial=0.0)), gap.unused_norm)
