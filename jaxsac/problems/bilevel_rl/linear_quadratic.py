"""A linear-quadratic follower whose state costs a leader sets: continuous states and actions, with
closed forms.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac._arguments import anything, arguments, real, size

_SWEEPS = 400  # of Riccati's equation; its error falls by the discount, and more, in each


class LinearQuadratic(NamedTuple):
    """s' = A s + B a + noise · w; the follower pays s'diag(exp(x)) s + a'R a, and the leader wants
    other costs. S states, M actions.

    With an entropy bonus the best policy is normal, a ~ N(gain s, covariance).
    """

    moves: jax.Array  # A [S, S]
    controls: jax.Array  # B [S, M]
    noise: jax.Array  # [] standard deviation of w's effect
    discount: jax.Array  # [] in [0, 1)
    action_cost: jax.Array  # R [M, M], the follower's
    leader_state_cost: jax.Array  # [S, S]
    leader_action_cost: jax.Array  # [M, M]

    def initial(self, noise: jax.Array) -> jax.Array:
        """The first state, N(0, I), of standard normal numbers [S]."""
        return noise

    def move(self, state: jax.Array, action: jax.Array, noise: jax.Array) -> jax.Array:
        """The next state."""
        return self.moves @ state + self.controls @ action + self.noise * noise

    def reward(self, x: jax.Array, state: jax.Array, action: jax.Array) -> jax.Array:
        """The follower's."""
        return -jnp.sum(jnp.exp(x) * state**2) - action @ self.action_cost @ action

    def leader_reward(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """The leader's."""
        return -state @ self.leader_state_cost @ state - action @ self.leader_action_cost @ action

    def best(self, x: jax.Array, temperature: Any) -> tuple[jax.Array, jax.Array]:
        """(gain [M, S], covariance [M, M]) of the follower's best policy.

        P = diag(exp(x)) + γ A'P A + γ A'P B gain,   gain = −γ (R + γ B'P B)⁻¹ B'P A,
        covariance = ½ temperature (R + γ B'P B)⁻¹
        """
        A, B, gamma = self.moves, self.controls, self.discount

        def gain_and_curvature(P):
            curvature = self.action_cost + gamma * B.T @ P @ B
            return -gamma * jnp.linalg.solve(curvature, B.T @ P @ A), curvature

        def sweep(P, _):
            gain, _ = gain_and_curvature(P)
            return jnp.diag(jnp.exp(x)) + gamma * A.T @ P @ (A + B @ gain), None

        P, _ = lax.scan(sweep, jnp.diag(jnp.exp(x)), length=_SWEEPS)
        gain, curvature = gain_and_curvature(P)
        identity = jnp.eye(curvature.shape[0], dtype=curvature.dtype)
        return gain, 0.5 * temperature * jnp.linalg.solve(curvature, identity)

    def expected_return(
        self, state_cost: Any, action_cost: Any, gain: jax.Array, covariance: jax.Array
    ) -> jax.Array:
        """The discounted return of a normal policy under quadratic costs, without a bonus.

        −tr(P) − [tr(cost covariance) + γ tr(P (B covariance B' + noise² I))] / (1 − γ), with P the
        cost to go of a state.
        """
        closed, gamma = self.moves + self.controls @ gain, self.discount
        running = state_cost + gain.T @ action_cost @ gain
        S = running.shape[0]
        system = jnp.eye(S * S, dtype=running.dtype) - gamma * jnp.kron(closed.T, closed.T)
        P = jnp.linalg.solve(system, running.reshape(-1)).reshape(S, S)
        spread = self.controls @ covariance @ self.controls.T + self.noise**2 * jnp.eye(
            S, dtype=running.dtype
        )
        steady = jnp.sum(action_cost * covariance) + gamma * jnp.sum(P * spread)
        return -jnp.trace(P) - steady / (1 - gamma)

    def leader_return(self, gain: jax.Array, covariance: jax.Array) -> jax.Array:
        """The leader's, of the follower's policy."""
        return self.expected_return(
            self.leader_state_cost, self.leader_action_cost, gain, covariance
        )


@arguments(
    num_states=size(1),
    num_actions=size(1),
    discount=real(low=0, below=1),
    noise=real(low=0),
    seed=size(),
    dtype=anything("a floating dtype"),
)
def linear_quadratic(
    num_states: int = 2,
    num_actions: int = 1,
    discount: float = 0.7,
    noise: float = 0.3,
    seed: int = 0,
    dtype: Any = jnp.float32,
) -> LinearQuadratic:
    """A random instance: A is 0.8 times a random rotation, B = N / √S, R = I / 2; the leader's
    costs are diag(1, …, S) and I / 5.
    """
    S, M = num_states, num_actions
    first, second = jax.random.split(jax.random.key(seed))
    actions = jnp.eye(M, dtype=dtype)
    gamma, spread = jnp.asarray(discount, dtype), jnp.asarray(noise, dtype)
    moves = 0.8 * jax.random.orthogonal(first, S, dtype=dtype)
    controls = jax.random.normal(second, (S, M), dtype) / S**0.5
    return LinearQuadratic(
        moves,
        controls,
        spread,
        gamma,
        0.5 * actions,
        jnp.diag(jnp.arange(1, S + 1).astype(dtype)),
        0.2 * actions,
    )
