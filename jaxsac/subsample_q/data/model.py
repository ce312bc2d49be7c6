"""The models: one global agent who acts, and many local agents who are driven by the global state,
are of several types, or act too.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, either, function, real, record, size


class Model(eqx.Module):
    """A global agent (state s_g, action a) above n exchangeable local agents (states s_1..s_n) with
    mean local reward.

        s_g' ~ global_transition[s_g, a, ·],   s_i' ~ local_transition[s_g, s_i, ·]
        independently, given the current s_g;
        reward = global_reward[s_g, a] + (1/n) Σ_i local_reward[s_g, s_i]

    with G global states, A actions, L local states. Absorbing states are rows with a one on the
    diagonal. All arrays share one floating dtype, and concrete rows are normalised. Map over models
    with `jax.vmap`, replace a field with `dataclasses.replace`.

    Raises: ValueError for concrete rows that are negative or do not sum to one within 1e-6.

    Source: arXiv 2403.00222, section 2.
    """

    global_transition: jax.Array  # [G, A, G], rows sum to one
    local_transition: jax.Array  # [G, L, L]; [G, A, L, L] where the action drives the agents too
    global_reward: jax.Array  # [G, A]
    local_reward: jax.Array  # [G, L]; may then be [G, A, L]
    discount: jax.Array  # [], in [0, 1]; 1 for the average criterion alone

    @arguments(
        global_transition=real("G", "A", "G", low=0),
        local_transition=either(real("G", "L", "L", low=0), real("G", "A", "L", "L", low=0)),
        global_reward=real("G", "A"),
        local_reward=either(real("G", "L"), real("G", "A", "L")),
        discount=real(low=0, high=1),
    )
    def __init__(
        self,
        global_transition: Any,
        local_transition: Any,
        global_reward: Any,
        local_reward: Any,
        discount: Any,
    ):
        self.global_transition = _stochastic("global_transition", global_transition)
        self.local_transition = _stochastic("local_transition", local_transition)
        self.global_reward = _finite("global_reward", global_reward)
        self.local_reward = _finite("local_reward", local_reward)
        _checks.require(
            self.local_reward.ndim == 2 or self.local_transition.ndim == 4,
            "local_reward [G, A, L] needs local_transition [G, A, L, L]: repeat it over the"
            " actions.",
        )
        self.discount = jnp.asarray(discount)

    @property
    def num_global_states(self) -> int:
        return self.global_transition.shape[-3]

    @property
    def num_actions(self) -> int:
        return self.global_transition.shape[-2]

    @property
    def num_local_states(self) -> int:
        return self.local_transition.shape[-1]

    @property
    def action_drives_agents(self) -> bool:
        return self.local_transition.ndim == 4

    @property
    def dtype(self) -> Any:
        return self.global_transition.dtype

    def max_reward(self) -> jax.Array:
        """max|r| of a stage, over states, actions and local states: the bound r̃ of the paper."""
        local = self.local_reward if self.local_reward.ndim == 3 else self.local_reward[:, None, :]
        return jnp.max(jnp.abs(self.global_reward) + jnp.max(jnp.abs(local), axis=-1))


def check_discount(model: Any) -> None:
    """Refuse a discount that is known and is 1."""
    known = _checks.is_concrete(model.discount) and jnp.ndim(model.discount) == 0
    _checks.require(
        not known or float(model.discount) < 1.0,
        "discount must lie in [0, 1): use criterion='average' for 1.",
    )


def _stochastic(name: str, array: jax.Array) -> jax.Array:
    _checks.require(0 not in array.shape, f"{name} has an empty axis: {list(array.shape)}.")
    if not _checks.is_concrete(array):
        return array
    rows = np.asarray(array)
    _checks.require(bool(np.all(np.isfinite(rows))), f"{name} has a NaN or an infinity.")
    _checks.require(bool(np.all(rows >= 0)), f"{name} has a negative probability ({rows.min():g}).")
    sums = rows.sum(axis=-1)
    worst = np.unravel_index(np.argmax(np.abs(sums - 1)), sums.shape)
    _checks.require(
        bool(abs(sums[worst] - 1) <= 1e-6),
        f"{name}: row {tuple(map(int, worst))} sums to {sums[worst]:g}, not to one: divide each row"
        " by its sum.",
    )
    return jnp.asarray(rows / sums[..., None], array.dtype)


def _finite(name: str, array: jax.Array) -> jax.Array:
    _checks.require(
        not _checks.is_concrete(array) or bool(np.all(np.isfinite(np.asarray(array)))),
        f"{name} has a NaN or an infinity.",
    )
    return array


class TypedModel(eqx.Module):
    """A `Model` whose local agents are of E types with their own transitions and rewards; types do
    not change.

        s_i' ~ local_transition[e_i, s_g, s_i, ·]
        reward = global_reward[s_g, a] + Σ_e shares_e mean over type e of local_reward[e, s_g, s_i]

    Letters as in `Model`. Types with fewer local states are padded with absorbing ones that nobody
    is in. Bad input as for `Model`.
    """

    global_transition: jax.Array  # [G, A, G]
    local_transition: jax.Array  # [E, G, L, L]
    global_reward: jax.Array  # [G, A]
    local_reward: jax.Array  # [E, G, L]
    shares: jax.Array  # [E], n_e / n of each type, non-negative with sum one
    discount: jax.Array  # []

    @arguments(
        global_transition=real("G", "A", "G", low=0),
        local_transition=real("E", "G", "L", "L", low=0),
        global_reward=real("G", "A"),
        local_reward=real("E", "G", "L"),
        shares=real("E", low=0),
        discount=real(low=0, high=1),
    )
    def __init__(
        self,
        global_transition: Any,
        local_transition: Any,
        global_reward: Any,
        local_reward: Any,
        shares: Any,
        discount: Any,
    ):
        models = [
            Model(global_transition, transition, global_reward, reward, discount)
            for transition, reward in zip(local_transition, local_reward, strict=True)
        ]
        _checks.require(
            len(models) > 0, "local_transition has no type: shape [E, G, L, L] with E ≥ 1."
        )
        first = models[0]
        self.global_transition, self.global_reward = first.global_transition, first.global_reward
        self.discount = first.discount
        self.local_transition = jnp.stack([model.local_transition for model in models])
        self.local_reward = jnp.stack([model.local_reward for model in models])
        self.shares = shares
        if _checks.is_concrete(self.shares):
            given = np.asarray(self.shares)
            _checks.require(abs(given.sum() - 1) <= 1e-6, f"shares must sum to one, got {given}.")

    @property
    def num_types(self) -> int:
        return self.local_transition.shape[0]

    @property
    def num_local_states(self) -> int:
        return self.local_transition.shape[-1]

    @property
    def dtype(self) -> Any:
        return self.global_transition.dtype

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
    * `allowed`: (s_g, z) -> bool, likewise: which assignments there are (at least one for every
      state and histogram).

    Raises: ValueError as `Model` does.

    Source: arXiv 2412.00661.
    """

    base: Model  # holds the arrays, of the shapes above
    share_reward: Callable[..., Any] | None = eqx.field(static=True)
    allowed: Callable[..., Any] | None = eqx.field(static=True)

    @arguments(
        global_transition=real("G", "A", "G", low=0),
        local_transition=real("G", "B", "L", "L", low=0),
        global_reward=real("G", "A"),
        local_reward=real("G", "B", "L"),
        discount=real(low=0, high=1),
        share_reward=function("(s_g, shares [L, B]) -> []"),
        allowed=function("(s_g, counts [L, B]) -> bool"),
    )
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
        G, B, _ = np.shape(local_reward)
        # The checks and the normalisation of a plain model whose action drives the agents, for the
        # agents' part ...
        stay = jnp.broadcast_to(jnp.eye(G, dtype=global_transition.dtype)[:, None], (G, B, G))
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


MODEL, TYPED_MODEL, LOCAL_ACTION_MODEL = (
    record(cls, sizes=_sizes) for cls in (Model, TypedModel, LocalActionModel)
)
