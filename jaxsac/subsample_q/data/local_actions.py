"""The model of local agents who act too."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac.subsample_q.data.model import Model


class LocalActionModel(eqx.Module):
    """A `Model` whose n exchangeable local agents each take an action b of their own, as in
    SUBSAMPLE-MFQ (arXiv 2412.00661).

        s_g' ~ global_transition[s_g, a, .]       s_i' ~ local_transition[s_g, b_i, s_i, .]
        independently, given the current s_g reward = global_reward[s_g, a] + (1/n) sum_i
        local_reward[s_g, b_i, s_i] + share_reward(s_g, z/n)

    Shapes (G, A, L as in `Model`, B local actions): local_transition [G, B, L, L], local_reward [G,
    B, L]; z int32 [L, B] counts the agents of each state that take each action. Two optional
    functions, pure and made once (each is a part of the trace): share_reward(s_g, shares [L, B]) ->
    [], a reward of the shares that need not be linear in them (U_k is then no upper bound), and
    allowed(s_g, z) -> bool, which assignments there are (at least one for every state and
    histogram). Bad input as for `Model`.
    """

    base: Model
    share_reward: Callable[..., Any] | None = eqx.field(static=True)
    allowed: Callable[..., Any] | None = eqx.field(static=True)

    def __init__(
        self,
        global_transition: Any,
        local_transition: Any,
        global_reward: Any,
        local_reward: Any,
        discount: Any,
        share_reward: Callable[..., Any] | None = None,
        allowed: Callable[..., Any] | None = None,
    ):
        _checks.require(
            np.ndim(local_transition) == 4,
            f"local_transition must have shape [G, B, L, L], got {list(np.shape(local_transition))}.",
        )
        G, B, L, _ = np.shape(local_transition)
        _checks.require(
            np.shape(local_reward) == (G, B, L),
            f"local_reward must have shape [G, B, L] = {[G, B, L]}, got {list(np.shape(local_reward))}.",
        )
        # The checks and the normalisation of a plain model whose action drives the agents, for the
        # agents' part ...
        stay = jnp.broadcast_to(
            jnp.eye(G, dtype=jnp.asarray(global_transition).dtype)[:, None], (G, B, G)
        )
        local = Model(stay, local_transition, jnp.zeros((G, B), stay.dtype), local_reward, discount)
        # ... and of a plain one for the global part.
        plain = Model(
            global_transition,
            local.local_transition[:, 0],
            global_reward,
            local.local_reward[:, 0],
            discount,
        )
        self.base = eqx.tree_at(
            lambda m: (m.local_transition, m.local_reward),
            plain,
            (local.local_transition, local.local_reward),
        )
        self.share_reward, self.allowed = share_reward, allowed

    @property
    def num_local_actions(self) -> int:
        return self.base.local_transition.shape[-3]

    @property
    def num_local_states(self) -> int:
        return self.base.local_transition.shape[-1]

    def pair_kernels(self) -> jax.Array:
        """P(s' | s_g, (s, b)): [G, L B, L], pairs numbered s B + b."""
        G, B, L, _ = self.base.local_transition.shape
        return self.base.local_transition.transpose(0, 2, 1, 3).reshape(G, L * B, L)
