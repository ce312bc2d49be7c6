"""The duality gap of the imitation fit over all M tools.

Primal, with w_t = c_t / T, prior weight w_0 and targets n_j = (1/T) sum_{t: j in a_t} c_t + w_0 m:

    P = sum_t w_t A_B(z_t) - sum_j (<theta_j, G_j> + n_j b_j) + w_0 sum_j softplus(b_j) + sum_j (lam
    ||theta_j|| + ridge/2 ||theta_j||^2)

Let mu be the model's marginals, c_j = sum_t w_t mu_tj psi_t and n'_j its uses (prior included). The
intercepts are unpenalised, so a dual point must meet their targets exactly: take alpha_j mu_tj with
alpha_j = n_j / n'_j. It equals (1 - tau) mu + tau v for a point v of the polytope {0 <= x <= 1, sum
x <= B} in every row once tau covers what x >= 0, x <= 1 and the budget ask for, and the conjugate
of A_B (minus an entropy, hence <= 0) is convex: it costs no more than a factor 1 - tau of the
entropy. With a penalty lam alone, mix s of that point with 1 - s of the recorded sets themselves
(conjugate <= 0) so that every gradient norm ||alpha_j c_j - G_j|| shrinks to lam. Hence, exactly
feasible for all M tools,

    D = s (1 - tau) sum_t w_t H(pi_t),  s = min(1, lam / max_j ||alpha_j c_j - G_j||),

(with families the maximum is their dual norm of these gradient norms), and with a ridge

    D = (1 - tau) sum_t w_t H(pi_t) - sum_j (||alpha_j c_j - G_j|| - lam)_+^2 / (2 ridge),

whichever is larger. H includes the prior's.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsac.control.data.digest import Digest
from jaxsac.control.data.families import Split
from jaxsac.control.imitation.likelihood import Evaluation, Working
from jaxsac.control.imitation.working import Point, to_host, unpad_groups


class Certificate(NamedTuple):
    objective: float
    gap: float
    inner_gap: float  # of the problem restricted to the working set
    rounding: float  # bound on the rounding error of the gap
    intercept_share: float  # tau
    norms: np.ndarray  # [U]: gradient norms of the used tools
    unused_norm: float  # and of every unused one


def certify(
    data: Digest,
    working: Working,
    point: Point,
    found: Evaluation,
    lam: float,
    ridge: float,
    budget: int,
    mode: str,
    families: Split | None = None,
) -> Certificate:
    """The gap at a point from one evaluation there: O(U q) on the host, for the unused tools one
    norm.
    """
    size, groups = point.tools.size, data.group_size.size
    penalty = (
        float(point.norms.sum()) if families is None else families.value(point.tools, point.weights)
    )
    objective = float(found.value) + lam * penalty + ridge / 2 * float((point.weights**2).sum())
    counts = unpad_groups(to_host(working.counts), groups)
    live = counts > 0
    use, group_use = to_host(found.use)[:size], unpad_groups(to_host(found.group_use), groups)
    target, group_target = (
        data.frequency[point.tools] + data.prior_use,
        data.group_frequency + data.prior_use,
    )
    if mode == "per_tool":
        alpha = target / use
        group_alpha = np.where(live, group_target / np.where(live, group_use, 1), 1)
    elif mode == "shared":
        total = data.mean_size + data.num_actions * data.prior_use
        alpha = np.full(size, total / (use.sum() + counts @ group_use))
        group_alpha = np.full(groups, total / (use.sum() + counts @ group_use))
    else:
        alpha, group_alpha = np.ones(size), np.ones(groups)

    features = unpad_groups(to_host(found.group_features), groups)
    gradient = (group_alpha[:, None] * features)[data.group] - data.feature_sums
    own_features = to_host(found.weight_gradient)[:size] + data.feature_sums[point.tools]
    gradient[point.tools] = alpha[:, None] * own_features - data.feature_sums[point.tools]
    norms = np.sqrt(np.einsum("uq,uq->u", gradient, gradient))
    unused = float(group_alpha[-1] * np.linalg.norm(features[-1])) if counts[-1] > 0 else 0.0

    alphas = np.concatenate([alpha, group_alpha[live]])
    odds = np.concatenate(
        [to_host(found.top_odds)[:size], unpad_groups(to_host(found.group_top_odds), groups)[live]]
    )
    # A tool that is used for sure in some record has infinite odds there. Beside them a rise within
    # rounding of 0 counts as none.
    slack = 64 * float(jnp.finfo(data.contexts.dtype).eps)
    rising = alphas > np.where(odds * slack > 1, 1 + slack, 1)
    rise = alphas[rising] - 1
    needs = [1 - alphas, rise * odds[rising]]
    if budget < data.num_actions:
        needs.append(rise * float(found.top_load))
    tau = float(
        np.max(np.concatenate(needs), initial=0.0)
    )  # NaN stays NaN, and fails the comparison below
    entropy = float(found.entropy) * (1 - tau) if tau <= 1 else 0.0

    def dual(norms: np.ndarray, beside: float, chosen: np.ndarray | None = None) -> float:
        largest = float(
            norms.max(initial=beside)
            if families is None
            else families.dual_norm(norms, beside, chosen)[0]
        )
        scaled = entropy * min(1.0, lam / largest) if largest > 0 else entropy
        over = float((np.maximum(np.append(norms, beside) - lam, 0) ** 2).sum())
        return max(scaled, entropy - over / (2 * ridge)) if ridge > 0 else scaled

    eps = float(jnp.finfo(data.contexts.dtype).eps)
    rounding = 16 * eps * (abs(objective) + abs(float(found.value)) + abs(entropy))
    return Certificate(
        objective=objective,
        gap=objective - dual(norms, unused),
        inner_gap=objective - dual(norms[point.tools], 0.0, point.tools),
        rounding=rounding,
        intercept_share=tau,
        norms=norms,
        unused_norm=unused,
    )
