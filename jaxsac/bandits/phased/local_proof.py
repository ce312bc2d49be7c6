"""A sharper proof that greedy on the estimate is greedy on the parameter, for sets whose values are
norms of an inner product.
"""

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac.bandits.sets.action_set import ActionSet, no_choice, put, take


def greedy_is_proved(
    action_set: ActionSet,
    estimate: jax.Array,
    sparsity: int,
    error: jax.Array,
    norm_bound: jax.Array,
) -> jax.Array:
    """Whether every theta with ‖theta − estimate‖₂ ≤ error has the greedy support of `estimate`,
    chosen in the same order.

    Greedy prefers i to j if f_i − f_j > error ‖x_i − x_j‖ + L² error² / (2 (f_j − L error)), with f
    and x the value and the maximiser of the estimate on the support so far plus i or j and L the
    `norm_bound`; or if f_i − f_j > 2 L error, the weaker test that needs no shape.

    Proof. Convexity gives f_i(theta) ≥ f_i + ⟨x_i, theta − estimate⟩. Where f_j(theta)² = theta' B
    theta with B ≤ L² I, split theta − estimate into its part along the estimate, in the inner
    product B, and the rest: f_j(theta) = √(p² + q²) ≤ p + q² / (2 p) with p = f_j + ⟨x_j, theta −
    estimate⟩ ≥ f_j − L error > 0 and q ≤ L error.
    """
    dimension = estimate.shape[0]
    slots = jnp.arange(sparsity, dtype=jnp.int32)

    def candidate(indices, slot, j):
        """The value and the maximiser [d] on the chosen coordinates plus j."""
        indices = jnp.where(slots == slot, j, indices)
        part = action_set.restrict(indices, dimension)
        known = take(estimate, indices)
        return part.support(known), put(part.argmax(known), indices, dimension)

    def step(slot, carry):
        indices, chosen, proved = carry
        values, actions = jax.vmap(lambda j: candidate(indices, slot, j))(
            jnp.arange(dimension, dtype=jnp.int32)
        )
        best = jnp.argmax(jnp.where(chosen, -jnp.inf, values)).astype(jnp.int32)
        away = jnp.sqrt(jnp.sum((actions[best][None, :] - actions) ** 2, axis=1))
        floor = values - norm_bound * error
        curvature = (norm_bound * error) ** 2 / (2.0 * jnp.where(floor > 0, floor, 1.0))
        needed = jnp.where(floor > 0, error * away + curvature, jnp.inf)
        needed = jnp.minimum(needed, 2.0 * norm_bound * error)
        rival = ~chosen & (jnp.arange(dimension, dtype=jnp.int32) != best)
        proved &= jnp.all(jnp.where(rival, values[best] - values > needed, True))
        return (
            jnp.where(slots == slot, best, indices),
            chosen | (jnp.arange(dimension, dtype=jnp.int32) == best),
            proved,
        )

    start = (*no_choice(sparsity, dimension), ~jnp.any(jnp.isnan(estimate)))
    return _loops.fori_loop(0, sparsity, step, start)[2]
