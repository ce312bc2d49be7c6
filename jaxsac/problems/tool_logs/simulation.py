"""Simulated logs of tool use, drawn from the sparse budgeted Gibbs model itself; memory does not
grow with T times M.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac._arguments import arguments, key, real, size


class ToolLog(NamedTuple):
    """A simulated log of T records, and the truth behind it."""

    contexts: np.ndarray  # [T, q]
    actions: np.ndarray  # int32 [T, B] padded with −1
    utilities: np.ndarray  # [T]
    support: np.ndarray  # [k] the tools that matter, ascending
    weights: np.ndarray  # [k, q] their coefficients
    intercept: np.ndarray  # [M]


@arguments(
    on_host=True,
    key=key(),
    num_records=size(1),
    num_actions=size(1),
    num_features=size(1),
    budget=size(),
    num_relevant=size(),
    mean_size=real(above=0, below=np.inf),
    relevant_share=real(low=0, high=1),
    strength=real(low=0, below=np.inf),
    noise=real(low=0, below=np.inf),
)
def sparse_tool_log(
    key: jax.Array,
    *,
    num_records: int,
    num_actions: int,
    num_features: int = 16,
    budget: int = 5,
    num_relevant: int = 20,
    mean_size: float = 2.5,
    relevant_share: float = 0.5,
    strength: float = 1.5,
    noise: float = 0.5,
) -> ToolLog:
    """Records with contexts ψ ~ N(0, I) and sets drawn exactly from the budgeted Gibbs policy.

        π(a | ψ) ∝ exp Σ_{j ∈ a} (⟨θ_j, ψ⟩ + b_j),   |a| ≤ B

    `num_relevant` tools at random places have ‖θ_j‖ = `strength`; the other M − k share one
    intercept. The intercepts are such that independent tools would be used `mean_size` times a
    record, a share `relevant_share` of it by the relevant ones. The utility is Σ_{j ∈ a} ⟨θ_j, ψ⟩ +
    noise. Works at M = 10⁶: the irrelevant tools are drawn by their number, then uniformly without
    repetition. The key is consumed.
    """
    k, q, m = num_relevant, num_features, num_actions
    seed = np.asarray(jax.random.bits(key, (4,), jnp.uint32))
    random = np.random.default_rng(seed)
    contexts = random.normal(size=(num_records, q))
    support = np.sort(random.choice(m, size=k, replace=False))
    directions = random.normal(size=(k, q))
    weights = strength * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    intercept = np.full(m, _log_odds((1 - relevant_share) * mean_size / max(m - k, 1)))
    intercept[support] = _log_odds(relevant_share * mean_size / max(k, 1)) - strength**2 / 2 * (
        k > 0
    )

    # Joint law of the relevant tools' sets: prefix polynomials, then backwards; the rest enters
    # through its polynomial C(m - k, r) e^{r b}.
    scores = contexts @ weights.T + intercept[support]
    rest = np.array(
        [
            _log_binomial(m - k, r)
            + (r * intercept[np.setdiff1d(np.arange(min(m, k + 1)), support)[0]] if r else 0.0)
            for r in range(budget + 1)
        ]
    )
    prefix = np.full((k + 1, num_records, budget + 1), -np.inf)
    prefix[0, :, 0] = 0.0
    for j in range(k):
        prefix[j + 1] = prefix[j]
        prefix[j + 1, :, 1:] = np.logaddexp(
            prefix[j, :, 1:], prefix[j, :, :-1] + scores[:, j, None]
        )
    joint = prefix[k][:, :, None] + rest[None, None, :]
    degrees = np.arange(budget + 1)
    joint = np.where(degrees[:, None] + degrees[None, :] <= budget, joint, -np.inf).reshape(
        num_records, -1
    )
    pick = np.argmax(joint + random.gumbel(size=joint.shape), axis=1)
    left, others = pick // (budget + 1), pick % (budget + 1)
    actions = np.full((num_records, budget), -1, np.int32)
    filled = np.zeros(num_records, int)
    rows = np.arange(num_records)
    for j in reversed(range(k)):
        with np.errstate(invalid="ignore"):
            probability = np.exp(
                np.where(
                    left > 0,
                    prefix[j, rows, np.maximum(left - 1, 0)]
                    + scores[:, j]
                    - prefix[j + 1, rows, left],
                    -np.inf,
                )
            )
        take = random.uniform(size=num_records) < probability
        actions[rows[take], filled[take]] = support[j]
        filled, left = filled + take, left - take
    utilities = np.where(
        actions >= 0,
        np.take_along_axis(
            contexts @ weights.T, np.clip(np.searchsorted(support, actions), 0, k - 1), axis=1
        ),
        0.0,
    ).sum(1)
    utilities = utilities + noise * random.normal(size=num_records)
    for t in np.flatnonzero(others):
        fresh = _distinct(random, m - k, others[t])
        actions[t, filled[t] : filled[t] + others[t]] = fresh + np.searchsorted(
            support - np.arange(k), fresh, side="right"
        )
    return ToolLog(contexts, actions, utilities, support, weights, intercept)


def _distinct(random: np.random.Generator, n: int, size: int) -> np.ndarray:
    """`size` different numbers below n, by redrawing: size is at most the budget, so this ends at
    once unless n is tiny.
    """
    if n < 4 * size:
        return random.permutation(n)[:size]
    while True:
        draw = random.integers(0, n, size=size)
        if np.unique(draw).size == size:
            return draw


def _log_odds(p: float) -> float:
    p = min(p, 0.95)
    return float(np.log(p / (1 - p))) if p > 0 else -30.0


def _log_binomial(n: int, r: int) -> float:
    if r > n:
        return -np.inf
    return float(np.sum(np.log((n - np.arange(r)) / (np.arange(r) + 1))))
