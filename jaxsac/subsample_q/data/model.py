"""The model: one global agent who acts, many alike local agents who are driven by the global
state.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks


class Model(eqx.Module):
    """A global agent (state s_g, action a) above n exchangeable local agents (states s_1..s_n) with
    mean local reward.

        s_g' ~ global_transition[s_g, a, .]       s_i' ~ local_transition[s_g, s_i, .]
        independently, given the current s_g reward = global_reward[s_g, a] + (1/n) sum_i
        local_reward[s_g, s_i]

    Shapes (G global states, A actions, L local states): global_transition [G, A, G],
    local_transition [G, L, L], global_reward [G, A], local_reward [G, L], discount a scalar in [0,
    1] (1 only for the average-reward criterion). Where the action also drives the local agents,
    local_transition is [G, A, L, L] and local_reward may be [G, A, L].

    All arrays share one floating dtype. Concrete rows must be non-negative and sum to one within
    1e-6, and are then normalised; anything else is a ValueError that names the argument. Absorbing
    states are rows with a one on the diagonal. A pytree: map over models with jax.vmap, replace a
    field with dataclasses.replace. Source: arXiv 2403.00222, section 2.
    """

    global_transition: jax.Array
    local_transition: jax.Array
    global_reward: jax.Array
    local_reward: jax.Array
    discount: jax.Array

    def __init__(
        self,
        global_transition: Any,
        local_transition: Any,
        global_reward: Any,
        local_reward: Any,
        discount: Any,
    ):
        self.global_transition = _stochastic(
            "global_transition", _checks.real_array("global_transition", global_transition, ("G", "A", "G"))
        )
        dtype = self.global_transition.dtype
        G, A, targets = self.global_transition.shape
        _checks.require(
            targets == G, f"global_transition must have shape [G, A, G], got {[G, A, targets]}."
        )
        local = jnp.asarray(local_transition)
        L = local.shape[-1] if local.ndim else 0
        kernel_shape = (G, A, L, L) if local.ndim == 4 else (G, L, L)
        self.local_transition = _stochastic(
            "local_transition",
            _checks.real_array("local_transition", local_transition, kernel_shape, dtype),
        )
        self.global_reward = _finite(
            "global_reward", _checks.real_array("global_reward", global_reward, (G, A), dtype)
        )
        reward_shape = (G, A, L) if np.ndim(local_reward) == 3 else (G, L)
        self.local_reward = _finite(
            "local_reward", _checks.real_array("local_reward", local_reward, reward_shape, dtype)
        )
        _checks.require(
            self.local_reward.ndim == 2 or self.local_transition.ndim == 4,
            "local_reward [G, A, L] needs local_transition [G, A, L, L]: repeat it over the actions.",
        )
        self.discount = _checks.real_scalar("discount", discount, dtype, 0.0)
        if _checks.is_concrete(discount):
            _checks.require(
                float(discount) <= 1.0,
                f"discount must lie in [0, 1), or be 1 with criterion='average'; got {float(discount):g}.",
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

    def max_reward(self) -> jax.Array:
        """max |r| over states, actions and local states: the bound r~ of the paper for one
        stage.
        """
        local = self.local_reward if self.local_reward.ndim == 3 else self.local_reward[:, None, :]
        return jnp.max(jnp.abs(self.global_reward) + jnp.max(jnp.abs(local), axis=-1))


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
        f"{name}: row {tuple(map(int, worst))} sums to {sums[worst]:g}, not to one: divide each row by its sum.",
    )
    return jnp.asarray(rows / sums[..., None], array.dtype)


def _finite(name: str, array: jax.Array) -> jax.Array:
    _checks.require(
        not _checks.is_concrete(array) or bool(np.all(np.isfinite(np.asarray(array)))),
        f"{name} has a NaN or an infinity.",
    )
    return array
