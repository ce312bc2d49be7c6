"""Losses of classes and of sets."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr

from jaxsac import _checks, gibbs
from jaxsac._arguments import arguments, flag, integer, real, size
from jaxsac.losses.protocol import Loss, inner
from jaxsac.solution import register


@register
class Logistic(Loss):
    """The logistic loss, ℓ = log(1 + e^{−y z}) for y = ±1."""

    @property
    def curvature(self) -> float | None:
        return 0.25

    def target(self, y, prediction_shape, dtype):
        y = real(*prediction_shape).take("y", y, dtype)
        _checks.require_known(
            lambda y: (np.abs(y) == 1) | np.isnan(y),
            "y must be +1 or -1 for the logistic loss: pass 2 * y - 1 for labels 0 and 1.",
            y,
        )
        return y

    def per_sample(self, z, y):
        return jnp.where(jnp.abs(y) == 1, jax.nn.softplus(-y * z), jnp.nan)

    def descent(self, z, y):
        return y * jax.nn.sigmoid(-y * z)

    def dual_per_sample(self, z, y, penalised, scale):
        share = scale * jax.nn.sigmoid(-y * z)
        # 1 − share without cancellation
        rest = jax.nn.sigmoid(y * z) + (1.0 - scale) * jax.nn.sigmoid(-y * z)
        return entr(share) + entr(rest) - share * y * (z - penalised)


@register
class Multinomial(Loss):
    """ℓ = log Σ_j e^{z_j} − z_y for classes y in [0, M), z [T, M]."""

    @property
    def curvature(self) -> float | None:
        return 0.5

    def target(self, y, prediction_shape, dtype):
        _checks.require(
            len(prediction_shape) == 2,
            "the multinomial loss needs predictions [T, M]: pass X as"
            " designs.MultiOutput(features, M).",
        )
        y = integer(*prediction_shape[:1]).take("y", y)
        _checks.require_known(
            lambda y: (y >= 0) & (y < prediction_shape[1]),
            f"y must hold classes in [0, {prediction_shape[1]}).",
            y,
        )
        return y

    def per_sample(self, z, y):
        return (
            jax.nn.logsumexp(z, axis=1)
            - jnp.take_along_axis(z, y[:, None], axis=1, mode="fill")[:, 0]
        )

    def descent(self, z, y):
        return jax.nn.one_hot(y, z.shape[1], dtype=z.dtype) - jax.nn.softmax(z, axis=1)

    def dual_per_sample(self, z, y, penalised, scale):
        target = jax.nn.one_hot(y, z.shape[1], dtype=z.dtype)
        probability = jax.nn.softmax(z, axis=1)
        mixed = (1.0 - scale) * target + scale * probability
        return jnp.sum(entr(mixed), axis=1) - scale * inner(target - probability, z - penalised)

    def magnitude(self, z, y):
        return jnp.log(z.shape[1] + 1.0) + jnp.max(
            jnp.where(jnp.isfinite(z), jnp.abs(z), 0.0), axis=1
        )


@register
class BudgetedGibbs(Loss):
    """ℓ = log Z(z_t) − Σ_{j ∈ a_t} z_tj: the negative log-likelihood of the set a_t under the
    budgeted Gibbs policy with scores z_t [M].

    y = a [T, W] int32, padded with −1. |a| ≤ budget (`exactly`: = budget; `costs`: integer costs
    [M], whose total is ≤ budget).
    """

    budget: int = eqx.field(static=True)  # B ≥ 0
    exactly: bool = eqx.field(static=True, default=False)  # |a| = B
    costs: tuple[int, ...] | None = eqx.field(static=True, default=None)  # [M] ≥ 0

    @arguments(budget=size(), exactly=flag(), costs=integer("M", low=0))
    def __init__(self, budget: int, exactly: bool = False, costs: Any = None):
        _checks.require(
            _checks.is_concrete(costs), "costs bound the curvature and must be concrete integers."
        )
        _checks.require(costs is None or not exactly, "exactly=True is for budgets without costs.")
        self.budget, self.exactly = budget, exactly
        self.costs = None if costs is None else tuple(np.asarray(costs).tolist())

    @property
    def curvature(self) -> float | None:
        if self.costs is None:
            return 0.5
        largest = int(np.searchsorted(np.cumsum(np.sort(self.costs)), self.budget, side="right"))
        return 0.5 * max(largest, 1)

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "exactly": self.exactly,
            "costs": None if self.costs is None else jnp.asarray(self.costs, jnp.int32),
        }

    def target(self, y, prediction_shape, dtype):
        _checks.require(
            len(prediction_shape) == 2,
            "the budgeted Gibbs loss needs predictions [T, M]: pass X as"
            " designs.MultiOutput(features, M).",
        )
        y = integer(prediction_shape[0], "W").take("y", y)
        if _checks.is_concrete(y):
            known = np.asarray(y)
            _checks.require(
                known.size == 0 or known.max() < prediction_shape[1],
                f"y must hold actions below {prediction_shape[1]}, padded with -1.",
            )
            ordered = np.sort(known, axis=1)
            twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
            _checks.require(
                not twice.any(), "y lists an action twice in one row: list it once, pad with -1."
            )
            cost = (
                (known >= 0).sum(axis=1)
                if self.costs is None
                else np.where(known >= 0, np.asarray(self.costs)[known], 0).sum(axis=1)
            )
            fits = (cost == self.budget) if self.exactly else (cost <= self.budget)
            _checks.require(
                bool(fits.all()),
                f"y has {int((~fits).sum())} rows outside the budget {self.budget}: drop them or"
                " raise the budget.",
            )
        return y

    def per_sample(self, z, y):
        log_partition = jax.vmap(
            lambda scores: gibbs.log_partition(scores, self.budget, **self._options)
        )(z)
        chosen = jnp.take_along_axis(z, jnp.where(y < 0, 0, y), axis=1)
        return log_partition - jnp.sum(jnp.where(y < 0, 0.0, chosen), axis=1)

    def descent(self, z, y):
        marginals = jax.vmap(lambda scores: gibbs.marginals(scores, self.budget, **self._options))(
            z
        )
        rows = jnp.arange(z.shape[0], dtype=jnp.int32)[:, None]
        return (-marginals).at[rows, jnp.where(y < 0, z.shape[1], y)].add(1.0, mode="drop")

    def magnitude(self, z, y):
        chosen = jnp.take_along_axis(z, jnp.where(y < 0, 0, y), axis=1)
        return 8.0 * (
            jnp.abs(self.per_sample(z, y)) + jnp.sum(jnp.where(y < 0, 0.0, jnp.abs(chosen)), axis=1)
        )
