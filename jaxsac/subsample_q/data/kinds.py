"""Models whose local agents are of several types, or act too, and what takes any kind of model."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, either, function, real, record, size
from jaxsac.subsample_q.data.model import ALLOWED, TERMINAL, Model, marks, put


class TypedModel(eqx.Module):
    """A `Model` whose local agents are of E types with their own transitions and rewards; types do
    not change.

        s_i' ~ local_transition[e_i, s_g, s_i, ·]
        reward = global_reward[s_g, a] + Σ_e shares_e mean over type e of local_reward[e, s_g, s_i]

    Letters, `allowed` and `terminal` as in `Model`; with local_transition [E, G, A, L, L] the
    action drives the agents too (repeat the rows of a type that it does not). Types with fewer
    local states are padded with absorbing ones that nobody is in. Bad input as for `Model`.
    """

    global_transition: jax.Array  # [G, A, G]
    local_transition: jax.Array  # [E, G, L, L]; [E, G, A, L, L] where the action drives agents
    global_reward: jax.Array  # [G, A]
    local_reward: jax.Array  # [E, G, L]; may then be [E, G, A, L]
    shares: jax.Array  # [E], n_e / n of each type, non-negative with sum one
    discount: jax.Array  # []
    allowed: jax.Array | None  # bool [G, A]
    terminal: jax.Array | None  # bool [G]

    @arguments(
        global_transition=real("G", "A", "G", low=0),
        local_transition=either(
            real("E", "G", "L", "L", low=0), real("E", "G", "A", "L", "L", low=0)
        ),
        global_reward=real("G", "A"),
        local_reward=either(real("E", "G", "L"), real("E", "G", "A", "L")),
        shares=real("E", low=0),
        discount=real(low=0, high=1),
        allowed=ALLOWED,
        terminal=TERMINAL,
    )
    def __init__(
        self,
        global_transition: Any,
        local_transition: Any,
        global_reward: Any,
        local_reward: Any,
        shares: Any,
        discount: Any,
        *,
        allowed: Any = None,
        terminal: Any = None,
    ):
        ends = {"allowed": allowed, "terminal": terminal}
        models = [
            Model(global_transition, transition, global_reward, reward, discount, **ends)
            for transition, reward in zip(local_transition, local_reward, strict=True)
        ]
        _checks.require(
            len(models) > 0, "local_transition has no type: shape [E, G, L, L] with E ≥ 1."
        )
        first = models[0]
        self.global_transition, self.global_reward = first.global_transition, first.global_reward
        self.discount, self.allowed, self.terminal = first.discount, first.allowed, first.terminal
        self.local_transition = jnp.stack([model.local_transition for model in models])
        self.local_reward = jnp.stack([model.local_reward for model in models])
        self.shares = shares
        _checks.require_known(
            lambda shares: abs(shares.sum() - 1) <= 1e-6,
            f"shares must sum to one, got {shares}.",
            shares,
        )

    # by the same axes as those of a `Model`
    num_global_states, num_actions = Model.num_global_states, Model.num_actions
    num_local_states, dtype = Model.num_local_states, Model.dtype

    @property
    def num_types(self) -> int:
        return self.local_transition.shape[0]

    def of_type(self, index: int) -> Model:
        """The model in which all agents are of one type, 0 ≤ index < E."""
        index = size().take("index", index)
        _checks.require(index < self.num_types, f"index must be < {self.num_types}, got {index}.")
        return Model(
            self.global_transition,
            self.local_transition[index],
            self.global_reward,
            self.local_reward[index],
            self.discount,
            allowed=self.allowed,
            terminal=self.terminal,
        )


class LocalActionModel(eqx.Module):
    """A `Model` whose n exchangeable local agents each take an action b of their own, as in
    SUBSAMPLE-MFQ.

        s_g' ~ global_transition[s_g, a, ·],   s_i' ~ local_transition[s_g, b_i, s_i, ·]
        independently, given the current s_g;
        reward = global_reward[s_g, a] + (1/n) Σ_i local_reward[s_g, b_i, s_i]
                 + share_reward(s_g, z/n)

    Letters as in `Model`, B local actions; z int32 [L, B] counts the agents of each state that take
    each action.

    * `local_transition`: [G, B, L, L]; `local_reward`: [G, B, L]; the others as in `Model`.
    * `share_reward`: (s_g, shares [L, B]) -> [], pure and made once, for it is a part of the trace:
      a reward of the shares that need not be linear in them (U_k is then no upper bound).
    * `allowed`: bool [G, L, B], at least one in each row: the actions of an agent in that state;
      or (s_g, z) -> bool, made once: which assignments there are (at least one for every state and
      histogram; agents who choose alone cannot keep to that).
    * `terminal`: as in `Model`.

    Raises: ValueError as `Model` does.

    Source: arXiv 2412.00661.
    """

    base: Model  # holds the arrays, of the shapes above
    share_reward: Callable[..., Any] | None = eqx.field(static=True)
    joint: Callable[..., Any] | None = eqx.field(static=True)  # (s_g, z) -> bool
    allowed: jax.Array | None  # bool [G, L, B]

    @arguments(
        global_transition=real("G", "A", "G", low=0),
        local_transition=real("G", "B", "L", "L", low=0),
        global_reward=real("G", "A"),
        local_reward=real("G", "B", "L"),
        discount=real(low=0, high=1),
        share_reward=function("(s_g, shares [L, B]) -> []"),
        allowed=anything("bool [G, L, B], or a function (s_g, counts [L, B]) -> bool"),
        terminal=TERMINAL,
    )
    def __init__(
        self,
        global_transition: Any,
        local_transition: Any,
        global_reward: Any,
        local_reward: Any,
        discount: Any,
        share_reward: Callable[..., Any] | None = None,
        allowed: Any = None,
        *,
        terminal: Any = None,
    ):
        G, B, L = np.shape(local_reward)
        self.joint = allowed if callable(allowed) else None
        self.allowed = None if callable(allowed) else marks(allowed, "allowed", G, L, B)
        if self.allowed is not None:
            _checks.require_known(
                lambda allowed: np.any(allowed, axis=2),
                "allowed must have an action in every row [G, L].",
                self.allowed,
            )
            idle = ~self.allowed.transpose(0, 2, 1)
            local_transition = put(idle, np.eye(L), local_transition)
            local_reward = put(idle, 0, local_reward)
        # The checks and the normalisation of a plain model whose action drives the agents, for the
        # agents' part ...
        stay = jnp.broadcast_to(jnp.eye(G, dtype=global_transition.dtype)[:, None], (G, B, G))
        nothing = jnp.zeros((G, B), stay.dtype)
        local = Model(stay, local_transition, nothing, local_reward, 0.0, terminal=terminal)
        # ... and of a plain one for the global part.
        plain = Model(
            global_transition,
            local.local_transition[:, 0],
            global_reward,
            local.local_reward[:, 0],
            discount,
            terminal=terminal,
        )
        self.base = eqx.tree_at(
            lambda m: (m.local_transition, m.local_reward),
            plain,
            (local.local_transition, local.local_reward),
        )
        self.share_reward = share_reward

    @property
    def discount(self) -> jax.Array:
        return self.base.discount

    @property
    def terminal(self) -> jax.Array | None:
        return self.base.terminal

    @property
    def num_global_states(self) -> int:
        return self.base.num_global_states

    @property
    def num_actions(self) -> int:
        return self.base.num_actions

    @property
    def couples_agents(self) -> bool:
        """Whether rewards or choices depend on several agents at once."""
        return self.share_reward is not None or self.joint is not None

    @property
    def num_local_actions(self) -> int:
        return self.base.local_transition.shape[-3]

    @property
    def num_local_states(self) -> int:
        return self.base.local_transition.shape[-1]

    @property
    def dtype(self) -> Any:
        return self.base.dtype

    def pair_kernels(self) -> jax.Array:
        """P(s' | s_g, (s, b)): [G, L B, L], pairs numbered s B + b."""
        G, B, L, _ = self.base.local_transition.shape
        return self.base.local_transition.transpose(0, 2, 1, 3).reshape(G, L * B, L)


def _sizes(model: Any) -> dict[str, int]:
    base = model.base if isinstance(model, LocalActionModel) else model
    _checks.require(base.global_reward.ndim == 2, "model holds several models: use jax.vmap.")
    (G, A), L = base.global_reward.shape, base.local_transition.shape[-1]
    types = {"E": model.num_types} if isinstance(model, TypedModel) else {}
    return {"G": G, "A": A, "L": L, **types}


MODEL, PLAIN_MODEL = (
    record(*kinds, sizes=_sizes) for kinds in ((Model, TypedModel, LocalActionModel), (Model,))
)
