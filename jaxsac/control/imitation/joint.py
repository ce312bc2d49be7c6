"""The likelihood of a policy of three parts, z_j = ⟨θ_j, ψ⟩ + Σ_c w_c r_c(j) + b_j, its second row
for tools without records, and the duality gap of its penalised form.

With L(z) = Σ_t w_t [A(z_t) − ⟨y_t, z_t⟩], h the penalties and g the gradient of L in the
parameters, every s in [0, 1] gives the lower bound

    D(s) = s Σ_t w_t H(π_t) − h*(−s g),

as L* is convex and L*(0) ≤ 0 (the records themselves are sets of the policy). It is finite for s
up to min(1, lam / max_j ‖g_j‖), and for all s where θ has a ridge.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.control.data.families import Split, omega
from jaxsac.gibbs import rows

_NARROWED = 40  # times the interval of the best share is cut by a third


class Point(NamedTuple):
    """Parameters: θ [U, q] of the used tools, w [C], b [U], the offset [] of all other tools."""

    coef: jax.Array
    weights: jax.Array
    intercept: jax.Array
    offset: jax.Array


class Data(NamedTuple):
    """T records over M tools, the U used ones first.

    * `contexts` [T, q]; `row_weights` w [T], of sum 1; `chosen` bool [M, T].
    * `channels` [C, M, T]; `learnt` bool [C].
    * `hidden`: bool [F, M], by fold, the tools that no other fold uses, or None where there is no
      second row; `fold`: int [T].
    * `cold_weight` κ [].
    * `allowed`: bool [M, T], or None where all tools are.
    """

    contexts: jax.Array
    row_weights: jax.Array
    chosen: jax.Array
    channels: jax.Array
    learnt: jax.Array
    hidden: jax.Array | None
    fold: jax.Array
    cold_weight: jax.Array
    allowed: jax.Array | None


class Penalties(NamedTuple):
    """lam Ω(θ) + coef/2 ‖θ‖² + weights/2 ‖w‖² + intercept/2 (‖b − b₀‖² + (offset − b₀)²), with Ω(θ)
    = (1 − share) Σ_j ‖θ_j‖ + share Σ_F ‖θ_F‖ over the families F.
    """

    lam: float
    coef: float
    weights: float
    intercept: float
    centre: float  # b₀
    label: np.ndarray  # int [U]: the family of each tool
    share: float  # 0: no families

    def excess(self, norms: np.ndarray, lam: float) -> np.ndarray:
        """By how much norms [U] of a gradient exceed what lam Ω lets pass, by family [F]."""
        inside = np.maximum(norms - lam * (1 - self.share), 0)
        together = np.sqrt(np.bincount(self.label, inside**2))
        return np.maximum(together - lam * self.share, 0)

    def norm(self, norms: np.ndarray) -> float:
        """Ω of tools of norms [U]."""
        return omega(norms, self.label, self.share)

    def dual_norm(self, norms: np.ndarray) -> float:
        """Ω* of them: the least lam at which lam Ω lets a gradient of these norms [U] pass."""
        none = np.zeros(self.label.max(initial=-1) + 2)
        return float(Split(self.label, none, self.share).dual_norm(norms, 0.0)[0])


class Evaluation(NamedTuple):
    """L, its gradient, Σ_t w_t H(π_t), the entropies of both rows, and their marginals' mean."""

    value: jax.Array  # []
    gradient: Point
    entropy: jax.Array  # []
    marginals: jax.Array  # [U, T]


@functools.partial(jax.jit, static_argnames=("budget", "exactly"))
def evaluate(point: Point, data: Data, *, budget: int, exactly: bool) -> Evaluation:
    """L at a point; `exactly`: over the sets of exactly B tools."""
    used, dtype = point.coef.shape[0], data.contexts.dtype
    sizes = jnp.arange(budget + 1)[:, None]
    rest = jnp.where((sizes == budget) | (not exactly), jnp.zeros((), dtype), -jnp.inf)
    rest = jnp.broadcast_to(rest, (budget + 1, data.fold.size))

    def part(scores, share):
        """Share of the likelihood of one row of scores [k, T]: value, residuals, entropies."""
        if data.allowed is not None:
            scores = jnp.where(data.allowed[: scores.shape[0]], scores, -jnp.inf)
        log_partition, pull = jax.vjp(lambda z: rows.log_partition(z, rest, budget), scores)
        weights = share * data.row_weights
        use, chosen = pull(weights)[0], data.chosen[: scores.shape[0]]
        total = weights @ log_partition
        entropy = total - jnp.sum(jnp.where(use > 0, use * scores, 0))
        value = total - jnp.sum(jnp.where(chosen, scores, 0) * weights[None, :])
        return value, use - jnp.where(chosen, weights[None, :], 0), entropy

    shared = jnp.tensordot(point.weights, data.channels, axes=1, precision="highest")
    own = jnp.matmul(point.coef, data.contexts.T, precision="highest")
    scores = own + shared[:used] + point.intercept[:, None]
    share = 1 / (1 + data.cold_weight)
    value, pull, entropy = part(scores, share)

    def gradient(pull):
        return Point(
            jnp.matmul(pull, data.contexts, precision="highest"),
            jnp.einsum("cmt,mt->c", data.channels[:, :used], pull, precision="highest"),
            jnp.sum(pull, axis=1),
            jnp.zeros((), dtype),
        )

    def marginals(pull):
        use = pull + jnp.where(data.chosen[:used], data.row_weights[None, :], 0)
        own = jnp.where(data.row_weights > 0, data.row_weights, 1)
        return jnp.clip(use / own[None, :], 0, 1)

    if data.hidden is None:
        return Evaluation(value, gradient(pull), entropy, marginals(pull))
    hidden = data.hidden[data.fold].T
    kept = jnp.where(data.learnt, 0, point.weights)
    cold = jnp.tensordot(kept, data.channels, axes=1, precision="highest") + point.offset
    beside = jnp.pad(scores, ((0, cold.shape[0] - used), (0, 0)))
    more, both, spread = part(jnp.where(hidden, cold, beside), share * data.cold_weight)
    cold = jnp.where(hidden, both, 0)
    of_cold = jnp.einsum("cmt,mt->c", data.channels, cold, precision="highest")
    pull = pull + (both - cold)[:used]
    found = gradient(pull)._replace(offset=jnp.sum(cold))
    found = found._replace(weights=found.weights + jnp.where(data.learnt, 0, of_cold))
    return Evaluation(value + more, found, entropy + spread, marginals(pull))


def objective(point: Point, found: Evaluation, penalties: Penalties) -> float:
    """L + h."""
    coef, weights, intercept, offset = map(_host, point)
    shifted = np.sum((intercept - penalties.centre) ** 2) + (offset - penalties.centre) ** 2
    smooth = penalties.coef * np.sum(coef**2) + penalties.weights * np.sum(weights**2)
    norms = penalties.norm(np.linalg.norm(coef, axis=1))
    ridges = (smooth + penalties.intercept * shifted) / 2
    return float(found.value) + penalties.lam * norms + float(ridges)


def dual_value(found: Evaluation, penalties: Penalties) -> float:
    """The largest D(s), which is concave in s, over the shares for which it is finite."""
    coef, weights, intercept, offset = map(_host, found.gradient)
    norms, entropy = np.linalg.norm(coef, axis=1), float(found.entropy)
    squares = np.sum(weights**2) / (2 * penalties.weights)
    squares += (np.sum(intercept**2) + offset**2) / (2 * penalties.intercept)
    linear = entropy + penalties.centre * (intercept.sum() + offset)

    def bound(share: float) -> float:
        value = share * linear - share**2 * squares
        if penalties.coef > 0:
            over = penalties.excess(share * norms, penalties.lam)
            value -= np.sum(over**2) / (2 * penalties.coef)
        return float(value)

    low, high = 0.0, 1.0
    if penalties.coef == 0:
        high = float(penalties.lam / np.maximum(penalties.lam, penalties.dual_norm(norms)))
    for _ in range(_NARROWED):
        third = (high - low) / 3
        first, second = bound(low + third), bound(high - third)
        low, high = (low + third, high) if first < second else (low, high - third)
    return max(bound(low), bound(high))


def _host(array) -> np.ndarray:
    return np.asarray(array, np.float64)
