"""The model of local agents of several types."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac.subsample_q.data.model import Model


class TypedModel(eqx.Module):
    """A `Model` whose local agents are of E types with their own transitions and rewards; types do
    not change.

        s_i' ~ local_transition[e_i, s_g, s_i, .],   reward = global_reward[s_g, a] + sum_e shares_e
        mean over type e of local_reward[e, s_g, s_i]

    Shapes (letters as in `Model`): local_transition [E, G, L, L], local_reward [E, G, L]; shares
    [E], the fraction n_e / n of each type, non-negative with sum one. Types with fewer local states
    are padded with absorbing ones that nobody is in. Bad input as for `Model`.
    """

    global_transition: jax.Array
    local_transition: jax.Array
    global_reward: jax.Array
    local_reward: jax.Array
    shares: jax.Array
    discount: jax.Array

    def __init__(
        self,
        global_transition: Any,
        local_transition: Any,
        global_reward: Any,
        local_reward: Any,
        shares: Any,
        discount: Any,
    ):
        _checks.require(
            np.ndim(local_transition) == 4,
            f"local_transition must have shape [E, G, L, L], got {list(np.shape(local_transition))}.",
        )
        _checks.require(
            np.shape(local_reward) == np.shape(local_transition)[:3],
            f"local_reward must have shape [E, G, L] = {list(np.shape(local_transition)[:3])}, got {list(np.shape(local_reward))}.",
        )
        models = [
            Model(global_transition, transition, global_reward, reward, discount)
            for transition, reward in zip(local_transition, local_reward, strict=True)
        ]
        _checks.require(len(models) > 0, "local_transition has no type: shape [E, G, L, L] with E ≥ 1.")
        self.global_transition, self.global_reward, self.discount = (
            models[0].global_transition,
            models[0].global_reward,
            models[0].discount,
        )
        self.local_transition = jnp.stack([model.local_transition for model in models])
        self.local_reward = jnp.stack([model.local_reward for model in models])
        self.shares = _checks.real_array("shares", shares, (len(models),), self.global_transition.dtype)
        if _checks.is_concrete(self.shares):
            given = np.asarray(self.shares)
            _checks.require(
                bool(np.all(given >= 0)) and abs(given.sum() - 1) <= 1e-6,
                f"shares must be non-negative and sum to one, got {given}.",
            )

    @property
    def num_types(self) -> int:
        return self.local_transition.shape[0]

    @property
    def num_local_states(self) -> int:
        return self.local_transition.shape[-1]

    def of_type(self, index: int) -> Model:
        """The model in which all agents are of one type."""
        return Model(
            self.global_transition,
            self.local_transition[index],
            self.global_reward,
            self.local_reward[index],
            self.discount,
        )
