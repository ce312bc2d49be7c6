"""Minimise a smooth function plus weights on the norms of blocks: quasi-Newton steps on the
residual of the proximal gradient step, on the host.

The forward-backward envelope of F + h at x, φ(x) = F(x) + ⟨∇F, x̄ − x⟩ + ‖x̄ − x‖²/(2γ) + h(x̄) with x̄
= prox_γh(x − γ ∇F), has the same minimisers; a step is accepted where it lowers φ, and x̄ itself
always does. So products with the data are all that is asked for, and blocks that are zero are
exactly zero in x̄.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _loops

_MEMORY = 12
_LENGTHS = (1.0, 0.5, 0.25, 0.0)  # of a quasi-Newton step; 0 is the proximal gradient step
_TURNS = 8  # of the power method
RENEWED = (3, 7)  # looks after which curvatures are taken anew, where tools are fitted
_LEAST = 1e-12  # step size γ below which nothing is halved any more


class Step(NamedTuple):
    """Where the iteration is: x, its proximal gradient point, the residual and the envelope."""

    x: np.ndarray
    value: float
    gradient: np.ndarray
    target: np.ndarray  # x̄
    residual: np.ndarray  # x − x̄
    envelope: float


class ForwardBackward:
    """The iteration; `x̄` is read by `.step.target`.

    * `smooth`: x → F(x) and its gradient.
    * `penalty`: (x, γ) → the proximal point of h at x, and h there.
    * `eps`: the relative rounding error of F.
    """

    def __init__(self, smooth: Callable, penalty: Callable, x: np.ndarray, eps: float) -> None:
        self.eps = 64 * eps
        self.smooth, self.penalty, self.size, self.evaluations = smooth, penalty, 1.0, 0
        self.pairs: deque = deque(maxlen=_MEMORY)
        self.step = self._at(x)

    def _at(self, x: np.ndarray) -> Step:
        value, gradient = self.smooth(x)
        self.evaluations += 1
        return self._towards(x, value, gradient)

    def _towards(self, x: np.ndarray, value: float, gradient: np.ndarray) -> Step:
        target, beyond = self.penalty(x - self.size * gradient, self.size)
        residual = x - target
        model = _dot(residual, residual) / (2 * self.size) - _dot(gradient, residual)
        envelope = value + model + beyond
        return Step(x, value, gradient, target, residual, envelope)

    def advance(self) -> None:
        """One step, or a shorter γ where the step shows that the quadratic model does not hold."""
        here = self.step
        direction = self._direction(here.residual)
        enough = 1e-6 * _dot(here.residual, here.residual) / self.size
        rounding = self.eps * abs(here.envelope)
        there = here
        for length in _LENGTHS:
            there = self._at(here.target + length * (here.residual + direction))
            if there.envelope <= here.envelope - enough + rounding:
                break
        if self._halve(there.x, there.value):
            return
        move, change = there.x - here.x, there.residual - here.residual
        product = _dot(move, change)
        if product > 1e-10 * np.sqrt(_dot(move, move) * _dot(change, change)):
            self.pairs.append((move, change, 1 / product))
        self.step = there

    def shorten(self, value: float) -> bool:
        """Halve γ where F at x̄, whose `value` this is, lies above its quadratic model: the envelope
        is then no lower bound. Says whether it did.
        """
        return self._halve(self.step.target, value)

    def _halve(self, x: np.ndarray, value: float) -> bool:
        here = self.step
        move = x - here.x
        bound = here.value + _dot(here.gradient, move) + _dot(move, move) / (2 * self.size)
        if value <= bound + self.eps * abs(bound) or self.size < _LEAST:
            return False
        self.size /= 2
        self.pairs.clear()
        self.step = self._towards(here.x, here.value, here.gradient)
        return True

    def _direction(self, residual: np.ndarray) -> np.ndarray:
        """−H residual by the two loops of L-BFGS (Nocedal 1980)."""
        direction, shares = -residual, []
        for move, change, scale in reversed(self.pairs):
            shares.append(scale * _dot(move, direction))
            direction = direction - shares[-1] * change
        if self.pairs:
            move, change, scale = self.pairs[-1]
            direction = direction / (scale * _dot(change, change))
        for (move, change, scale), share in zip(self.pairs, reversed(shares), strict=True):
            direction = direction + (share - scale * _dot(change, direction)) * move
        return direction


def _dot(first: np.ndarray, second: np.ndarray) -> float:
    """By one core: threads that wait for a busy one spin for longer than such a sum takes."""
    return float(np.einsum("i,i->", first, second))


def shrunk(
    coef: np.ndarray, reach: np.ndarray, label: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [U, q] shrunk by reach (1 − share) each, then by reach · share together with those of
    equal label; and their norms. A family has one reach, so that the proximal points of its tools'
    norms and of its own follow each other (Yuan, Liu & Ye 2011).
    """
    norms = np.sqrt(np.einsum("uq,uq->u", coef, coef))
    kept = np.maximum(norms - reach * (1 - share), 0)
    if share > 0:
        together = np.sqrt(np.bincount(label, kept**2))[label]
        kept *= np.maximum(1 - reach * share / np.where(together > 0, together, 1), 0)
    return coef * (kept / np.where(norms > 0, norms, 1))[:, None], kept


@jax.jit
def curvatures(
    contexts: jax.Array, marginals: jax.Array, row_weights: jax.Array, floor: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of every tool, with s_t = w_t max(μ_tj (1 − μ_tj), floor_j): nearly the largest eigenvalue of
    Σ_t s_t ψ_t ψ_t', and Σ_t s_t; from marginals [W, N]. The records of one tool are alike, so that
    their direction may have many times the curvature that it has among all records.
    """
    spread = jnp.maximum(marginals * (1 - marginals), floor[:, None]) * row_weights[None, :]

    def turn(_, found):
        vectors = found / jnp.maximum(jnp.linalg.norm(found, axis=1, keepdims=True), 1e-30)
        along = spread * jnp.matmul(vectors, contexts.T, precision="highest")
        return jnp.matmul(along, contexts, precision="highest")

    shape = marginals.shape[0], contexts.shape[1]
    start = jax.random.normal(jax.random.key(0), shape, contexts.dtype)
    found = _loops.fori_loop(0, _TURNS, turn, start)
    return jnp.linalg.norm(found, axis=1), jnp.sum(spread, axis=1)
