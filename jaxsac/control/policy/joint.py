"""The fitted policy of three parts: what the log taught beyond the channels, the channels' weights,
and an intercept for every tool.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxsac._arguments import arguments, integer, real, size
from jaxsac.solution import Hashable, register


@register
@arguments(
    positions=integer("k", low=0, below="M"),
    coef=real("k", "q"),
    weights=real("C"),
    intercept=real("M"),
    cold=integer("M", low=0, high=1),
    learnt=integer("C", low=0, high=1),
    budget=size(),
)
class JointPolicy(Hashable):
    """Scores z_j = ⟨θ_j, ψ⟩ + Σ_c w_c r_c(j) + b_j of M tools, and the budget of a set; a pytree.

    A tool that no record used is cold: it has θ_j = 0, the offset as its intercept, and the
    channels that the log taught do not count for it.
    """

    positions: jax.Array  # int32 [k], ascending: the support, tools with θ
    coef: jax.Array  # [k, q]
    weights: jax.Array  # w [C], in nats per unit of a channel
    intercept: jax.Array  # b [M], the offset where cold
    cold: jax.Array  # [M], 1 for tools that no record used
    learnt: jax.Array  # [C], 1 for channels that the log taught
    budget: int = eqx.field(static=True)  # B

    @property
    def support(self) -> jax.Array:
        """The tools that the log has taught something beyond the channels, int32 [k]."""
        return self.positions

    def scores(self, context: Any, channels: Any) -> jax.Array:
        """z [M] in nats, of a context ψ [q] and the channels [C, M] of all tools beside it.

        Hand them to `jaxsac.gibbs`: `gibbs.mode(z, budget=policy.budget)` is the best set.
        """
        dtype = self.coef.dtype
        psi = real("q").take("context", context, dtype, q=self.coef.shape[1])
        shape = {"C": self.weights.shape[0], "M": self.intercept.shape[0]}
        values = real("C", "M").take("channels", channels, dtype, **shape)
        silent = (self.learnt[:, None] > 0) & (self.cold[None, :] > 0)
        values = jnp.sum(jnp.where(~silent, self.weights[:, None] * values, 0), axis=0)
        own = jnp.matmul(self.coef, psi, precision="highest")
        return (self.intercept + values).at[self.positions].add(own)
