"""One step of the imitation fit: every tool's own penalised quadratic model, solved exactly.

Given the other tools, a tool's marginal is a logistic regression on its own score: log odds = z_j +
(something free of z_j). So the diagonal blocks of the Hessian are Σ_t w_t μ (1 − μ) ψ ψ', and what
they leave out is the coupling through the budget, which is weak.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _loops

_BLOCK = 512  # rows whose pairs of features are made at a time
_FAMILY_ROUNDS = 12


class Curvature(NamedTuple):
    """H_j = V diag(values) V' per tool, centred by its intercept's column."""

    values: jax.Array  # [W, q]
    vectors: jax.Array  # V [W, q, q]
    cross: jax.Array  # [W, q]: that column
    own: jax.Array  # [W]: and its diagonal


@functools.partial(jax.jit, static_argnames=("mode",))
def curvature(contexts, row_weights, marginals, floor, ridge, *, mode: str) -> Curvature:
    """The blocks at p = max(μ, floor_j): a tool that is not fitted yet has less probability where
    it will be used than it will get there.
    """
    p = jnp.maximum(marginals, jnp.minimum(floor[:, None], 0.5))
    spread = p * (1 - p) * row_weights[None, :]
    own = jnp.maximum(jnp.sum(spread, axis=1), jnp.finfo(contexts.dtype).tiny)
    cross = jnp.matmul(spread, contexts, precision="highest")
    hessian = _second_moments(contexts, spread)
    if mode == "per_tool":
        hessian = hessian - cross[:, :, None] * (cross / own[:, None])[:, None, :]
    values, vectors = jnp.linalg.eigh(hessian)
    # Directions that the records hardly show keep a little curvature, so that a step along them
    # stays bounded.
    values = jnp.maximum(values, 1e-6 * jnp.max(values, axis=1, keepdims=True)) + ridge
    return Curvature(
        jnp.maximum(values, jnp.finfo(contexts.dtype).tiny * 1e10), vectors, cross, own
    )


def _second_moments(contexts, weights):
    """Σ_t weights[j, t] ψ_t ψ_t', [W, q, q]: the products of pairs of features, made once for
    a block of rows, times all weights. Half the work of a product for every tool.
    """
    (num_rows, q), num_tools = contexts.shape, weights.shape[0]
    first, second = np.triu_indices(q)
    blocks = -(-num_rows // _BLOCK)
    contexts = jnp.pad(contexts, ((0, blocks * _BLOCK - num_rows), (0, 0))).reshape(
        blocks, _BLOCK, q
    )
    weights = (
        jnp.pad(weights, ((0, 0), (0, blocks * _BLOCK - num_rows)))
        .reshape(num_tools, blocks, _BLOCK)
        .transpose(1, 0, 2)
    )

    def add(total, block):
        rows, weights = block
        return total + jnp.matmul(
            weights, rows[:, first] * rows[:, second], precision="highest"
        ), None

    upper = _loops.scan(
        add, jnp.zeros((num_tools, first.size), contexts.dtype), (contexts, weights)
    )[0]
    place = np.zeros((q, q), np.int32)
    place[first, second] = place[second, first] = np.arange(first.size)
    return upper[:, place]


class FamilyStep(NamedTuple):
    """Families of the tools in the working set."""

    label: jax.Array  # int32 [W], below W
    share: jax.Array  # []: of the penalty that is on the families' norms


@functools.partial(jax.jit, static_argnames=("mode",))
def direction(
    coef,
    coef_gradient,
    use,
    target,
    model: Curvature,
    lam,
    ridge,
    families: FamilyStep | None = None,
    *,
    mode: str,
):
    """Minimiser of every tool's g'd + d'Hd/2 + lam ‖θ + d‖, its intercept eliminated: the step, the
    intercepts' step and the predicted change of the objective. With families, of every family's:
    their tools share the norm lam share ‖θ_F + d_F‖.
    """
    smooth, intercept_gradient = coef_gradient + ridge * coef, use - target
    gradient = (
        smooth - model.cross * (intercept_gradient / model.own)[:, None]
        if mode == "per_tool"
        else smooth
    )
    pull = model.values * _rotate(model, coef) - _rotate(model, gradient)
    own = lam if families is None else lam * (1 - families.share)
    norm = jnp.sqrt(jnp.sum(pull**2, axis=1))

    def minimised(values):
        """Every tool's minimiser, in its eigenvectors, where its curvatures are `values` [W, q]."""

        def newton(_, length):
            # Root of ‖v / (s length + lam)‖ = 1 by Newton on its inverse, which is nearly linear:
            # monotone from 0.
            scale = values * length[:, None] + own
            squares = jnp.sum((pull / scale) ** 2, axis=1)
            slope = jnp.sum(values * pull**2 / scale**3, axis=1)
            return length + jnp.maximum(
                squares * (jnp.sqrt(squares) - 1) / jnp.where(slope > 0, slope, 1), 0
            )

        penalised = own > 0
        length = _loops.fori_loop(0, jnp.where(penalised, 16, 0), newton, jnp.zeros_like(norm))
        scale = jnp.where(
            penalised, values + own / jnp.where(length > 0, length, 1)[:, None], values
        )
        return jnp.where((norm > own)[:, None], pull / scale, 0)  # without a penalty: all

    rotated = (
        minimised(model.values)
        if families is None
        else _with_families(minimised, model.values, coef, norm, own, lam, families)
    )
    step = jnp.einsum("wij,wj->wi", model.vectors, rotated, precision="highest") - coef
    if mode == "per_tool":
        intercept_step = -(intercept_gradient + jnp.sum(model.cross * step, axis=1)) / model.own
    else:
        intercept_step = jnp.zeros_like(intercept_gradient)
    growth = jnp.sqrt(jnp.sum((coef + step) ** 2, axis=1)) - jnp.sqrt(jnp.sum(coef**2, axis=1))
    change = (
        jnp.sum(smooth * step)
        + jnp.sum(intercept_gradient * intercept_step)
        + own * jnp.sum(growth)
    )
    if families is not None:
        together = _family_norms(coef + step, families.label) - _family_norms(coef, families.label)
        change = change + lam * families.share * jnp.sum(together)
    return step, intercept_step, change


def _with_families(minimised, values, coef, norm, own, lam, families: FamilyStep):
    """The families' minimisers. At a norm r of its family a tool has lam share / r more curvature:
    r ← ‖minimiser at r‖ rises or falls to the one fixed point, from the present norm. A family is
    zero iff ‖((‖pull_j‖ − lam (1 − share))₊)_F‖ ≤ lam share.
    """
    over = jnp.sqrt(jax.ops.segment_sum(jnp.maximum(norm - own, 0) ** 2, families.label, norm.size))
    alive = over > lam * families.share
    now = _family_norms(coef, families.label)

    def at(radius):
        safe = jnp.where(radius > 0, radius, 1)
        return jnp.where(
            alive[families.label][:, None],
            minimised(values + (lam * families.share / safe)[families.label][:, None]),
            0,
        )

    radius = jnp.where(now > 0, now, _family_norms(minimised(values), families.label))
    radius = _loops.fori_loop(
        0, _FAMILY_ROUNDS, lambda _, radius: _family_norms(at(radius), families.label), radius
    )
    return at(radius)


def _family_norms(coef, label):
    """‖θ_F‖ [W] by label."""
    return jnp.sqrt(jax.ops.segment_sum(jnp.sum(coef**2, axis=1), label, label.size))


def _rotate(model: Curvature, vectors):
    return jnp.einsum("wij,wi->wj", model.vectors, vectors, precision="highest")
