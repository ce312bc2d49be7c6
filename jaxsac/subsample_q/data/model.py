"""The models: one global agent who acts, and many local agents who are driven by the global state,
are of several types, or act too.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, either, real

ALLOWED = anything("bool [G, A], at least one in each row")
TERMINAL = anything("bool [G]")


class Model(eqx.Module):
    """A global agent (state s_g, action a) above n exchangeable local agents (states s_1..s_n) with
    mean local reward.

        s_g' ~ global_transition[s_g, a, ·],   s_i' ~ local_transition[s_g, s_i, ·]
        independently, given the current s_g;
        reward = global_reward[s_g, a] + (1/n) Σ_i local_reward[s_g, s_i]

    with G global states, A actions, L local states. Absorbing states are rows with a one on the
    diagonal. All arrays share one floating dtype, and concrete rows are normalised. Map over models
    with `jax.vmap`, replace a field with `dataclasses.replace`.

    * `allowed`: bool [G, A], at least one in each row: the actions that there are. The others are
      never chosen and count in no scale; what the arrays say of them is not used (any number will
      do, NaN and −inf too, but for transitions).
    * `terminal`: bool [G], where it ends: the value there is 0, and nothing more is paid. The
      discount may then be 1, for the total reward, if every policy ends.

    Raises: ValueError for concrete rows that are negative or do not sum to one within 1e-6, a state
    without an allowed action, and a discount of 1 where some choice of allowed actions never ends.

    Source: arXiv 2403.00222, section 2; total reward: Bertsekas and Tsitsiklis 1991.
    """

    global_transition: jax.Array  # [G, A, G], rows sum to one
    local_transition: jax.Array  # [G, L, L]; [G, A, L, L] where the action drives the agents too
    global_reward: jax.Array  # [G, A]
    local_reward: jax.Array  # [G, L]; may then be [G, A, L]
    discount: jax.Array  # [], in [0, 1]; 1 for the average criterion, or with `terminal`
    allowed: jax.Array | None  # bool [G, A]
    terminal: jax.Array | None  # bool [G]

    @arguments(
        global_transition=real("G", "A", "G", low=0),
        local_transition=either(real("G", "L", "L", low=0), real("G", "A", "L", "L", low=0)),
        global_reward=real("G", "A"),
        local_reward=either(real("G", "L"), real("G", "A", "L")),
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
        discount: Any,
        *,
        allowed: Any = None,
        terminal: Any = None,
    ):
        (G, A), L = global_reward.shape, local_transition.shape[-1]
        self.allowed, self.terminal = (
            marks(allowed, "allowed", G, A),
            marks(terminal, "terminal", G),
        )
        if self.allowed is not None and _checks.is_concrete(self.allowed):
            none = np.flatnonzero(~np.any(np.asarray(self.allowed), axis=1)).tolist()
            _checks.require(not none, f"allowed has no action in global states {none}.")
        possible = self._possible()
        if possible is not None:  # elsewhere nothing happens, whatever the arrays say
            idle = ~possible
            global_transition = put(idle, np.eye(G)[:, None], global_transition)
            global_reward = put(idle, 0, global_reward)
            if local_transition.ndim == 4:
                local_transition = put(idle, np.eye(L), local_transition)
            if local_reward.ndim == 3:
                local_reward = put(idle, 0, local_reward)
            elif self.terminal is not None:
                local_reward = put(self.terminal, 0, local_reward)
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
        if self.terminal is not None and _checks.is_concrete(self):
            endless = _endless(self)
            _checks.require(
                float(self.discount) < 1 or not endless,
                "terminal: with a discount of 1 every policy has to end, but some choice of allowed"
                f" actions never leaves the global states {endless}.",
            )

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

    def _possible(self) -> Any:
        """Where an action does something, bool [G, A] or [G, 1]; None where each does."""
        if self.terminal is None:
            return self.allowed
        return ~self.terminal[:, None] & (True if self.allowed is None else self.allowed)

    def max_reward(self) -> jax.Array:
        """max|r| of a stage, over states, actions and local states: the bound r̃ of the paper."""
        local = self.local_reward if self.local_reward.ndim == 3 else self.local_reward[:, None, :]
        return jnp.max(jnp.abs(self.global_reward) + jnp.max(jnp.abs(local), axis=-1))


def check_discount(model: Any, *, may_end: bool = False) -> None:
    """Refuse a discount that is known and is 1, unless it is one of a model that ends and that may
    be.
    """
    known = _checks.is_concrete(model.discount) and jnp.ndim(model.discount) == 0
    _checks.require(
        not known or float(model.discount) < 1.0 or (may_end and model.terminal is not None),
        "discount must lie in [0, 1): use criterion='average' for 1"
        + (", or terminal= for the total reward." if may_end else "."),
    )


def marks(value: Any, name: str, *shape: int) -> jax.Array | None:
    if value is None:
        return None
    with jax.ensure_compile_time_eval():
        return _checks.boolean_array(name, value, shape)


def put(where: jax.Array, value: Any, array: jax.Array) -> jax.Array:
    """`value` where it is so in the first axes of `array`; concrete if that is."""
    where = where.reshape(*where.shape, *[1] * (array.ndim - where.ndim))
    if _checks.is_concrete(where, array):
        with jax.ensure_compile_time_eval():
            return jnp.where(where, jnp.asarray(value, array.dtype), array)
    return jnp.where(where, jnp.asarray(value, array.dtype), array)


def _endless(model: Model) -> list[int]:
    """The largest set of states that do not end and that some choice of allowed actions never
    leaves.
    """
    possible, moves = np.asarray(model._possible()), np.asarray(model.global_transition) > 0
    inside = ~np.asarray(model.terminal)
    while True:
        stays = possible & ~np.any(moves[..., ~inside], axis=-1)
        left = inside & ~np.any(stays, axis=1)
        if not left.any():
            return np.flatnonzero(inside).tolist()
        inside = inside & ~left


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
