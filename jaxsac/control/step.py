"""One step of the imitation fit: every tool's own penalised quadratic model, solved exactly."""

import functools

import jax
import jax.numpy as jnp

from jaxsac.control.likelihood import HIGHEST


@functools.partial(jax.jit, static_argnames=("mode",))
def curvature(contexts, row_weights, marginals, floor, *, mode: str):
    """Per tool the eigendecomposition of H_j = sum_t w_t p(1-p) psi psi' (centred where the tool has its own intercept), p = max(mu_tj, floor_j).

    Given the others, a tool's marginal is a logistic regression on its own score, so the blocks are exact; only the coupling through the budget is left out.
    """
    p = jnp.clip(jnp.maximum(marginals, floor[:, None]), 0, 1)
    p = jnp.where(p > 0.5, marginals, p)
    spread = p * (1 - p) * row_weights[None, :]
    own = jnp.maximum(jnp.sum(spread, axis=1), 1e-30)
    cross = jnp.matmul(spread, contexts, precision=HIGHEST)

    def block(spread):
        return jnp.matmul((contexts * spread[:, None]).T, contexts, precision=HIGHEST)

    hessian = jax.lax.map(block, spread)
    if mode == "per_tool":
        hessian = hessian - cross[:, :, None] * (cross / own[:, None])[:, None, :]
    values, vectors = jnp.linalg.eigh(hessian)
    values = jnp.maximum(values, 1e-6 * jnp.max(values, axis=1, keepdims=True) + 1e-30)
    return values, vectors, cross, own


@functools.partial(jax.jit, static_argnames=("mode",))
def direction(weights, weight_gradient, intercept_gradient, model, lam, *, mode: str):
    """Minimiser of every tool's model: g'd + d'H d/2 + lam ||theta + d||, its intercept eliminated. Returns the step and the model's decrease."""
    values, vectors, cross, own = model
    gradient = weight_gradient
    if mode == "per_tool":
        gradient = gradient - cross * (intercept_gradient / own)[:, None]
    rotated = jnp.einsum("wij,wi->wj", vectors, weights, precision=HIGHEST)
    target = values * rotated - jnp.einsum("wij,wi->wj", vectors, gradient, precision=HIGHEST)
    norm = jnp.sqrt(jnp.sum(target**2, axis=1))
    alive = norm > lam

    def newton(_, length):
        # Root of ||v / (s length + lam)|| = 1 by Newton on its inverse, which is nearly linear: monotone from 0.
        scale = values * length[:, None] + lam
        squares = jnp.sum((target / scale) ** 2, axis=1)
        slope = -jnp.sum(values * target**2 / scale**3, axis=1)
        return jnp.maximum(length + squares * (jnp.sqrt(squares) - 1) / -slope, 0)

    length = jax.lax.fori_loop(0, 12, newton, jnp.zeros_like(norm))
    length = jnp.where(alive, length, 0)
    new = jnp.where(alive[:, None], target * (length[:, None] / jnp.where(alive[:, None], values * length[:, None] + lam, 1)), 0)
    step = jnp.einsum("wij,wj->wi", vectors, new, precision=HIGHEST) - weights
    step = jnp.where(alive[:, None], step, -weights)
    if mode == "per_tool":
        intercept_step = -(intercept_gradient + jnp.sum(cross * step, axis=1)) / own
    else:
        intercept_step = jnp.zeros_like(intercept_gradient)
    change = jnp.sqrt(jnp.sum((weights + step) ** 2, axis=1)) - jnp.sqrt(jnp.sum(weights**2, axis=1))
    decrease = jnp.sum(weight_gradient * step) + jnp.sum(intercept_gradient * intercept_step) + lam * jnp.sum(change)
    return step, intercept_step, decrease
