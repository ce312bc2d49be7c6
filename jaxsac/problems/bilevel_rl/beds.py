"""Beds for bilevel reinforcement learning: arrays of small Markov decision processes, and upper
levels as sums that can be enumerated.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, integer, real, record, size

_DTYPE = anything("a floating dtype")
_DISCOUNT, _TEMPERATURE = real(low=0, below=1), real(above=0)
_TRANSITION = real("S", "A", "S", low=0)
_TABLE = real("S", "A")
_MOST = 10_000_000  # sequences that are listed


class RewardBed(NamedTuple):
    """A tabular process whose follower's reward is `base_reward` + `features` · x, seen by a leader
    with rewards of its own.
    """

    transition: jax.Array  # [S, A, S]
    initial: jax.Array  # [S]
    discount: jax.Array  # []
    base_reward: jax.Array  # [S, A]
    features: jax.Array  # [S, A, p]
    leader_reward: jax.Array  # [S, A]
    x: jax.Array  # [p]
    temperature: jax.Array  # []

    def reward(self, x: jax.Array) -> jax.Array:
        return self.base_reward + self.features @ x


@arguments(
    num_states=size(1),
    num_actions=size(1),
    num_features=size(1),
    discount=_DISCOUNT,
    temperature=_TEMPERATURE,
    seed=size(),
    dtype=_DTYPE,
)
def random_reward_bed(
    num_states: int = 8,
    num_actions: int = 4,
    num_features: int = 5,
    discount: float = 0.9,
    temperature: float = 0.5,
    seed: int = 0,
    dtype: Any = jnp.float32,
) -> RewardBed:
    """A random process: transition rows softmax(2 N), normal rewards and features, uniform start, x
    = 0.3 N.
    """
    keys = jax.random.split(jax.random.key(seed), 8)
    S, A = num_states, num_actions
    transition = jax.nn.softmax(2 * jax.random.normal(keys[0], (S, A, S), dtype), axis=-1)
    base_reward = jax.random.normal(keys[1], (S, A), dtype)
    features = jax.random.normal(keys[2], (S, A, num_features), dtype)
    leader_reward = jax.random.normal(keys[3], (S, A), dtype)
    x = 0.3 * jax.random.normal(keys[4], (num_features,), dtype)
    initial = jnp.full((S,), 1 / S, dtype)
    gamma, tau = jnp.asarray(discount, dtype), jnp.asarray(temperature, dtype)
    return RewardBed(transition, initial, gamma, base_reward, features, leader_reward, x, tau)


@arguments(num_actions=size(1), temperature=_TEMPERATURE, seed=size(), dtype=_DTYPE)
def bandit_bed(
    num_actions: int = 2, temperature: float = 0.5, seed: int = 0, dtype: Any = jnp.float32
) -> RewardBed:
    """One state, no future: the best policy is softmax(reward / temperature), and x is the bonus of
    each action.
    """
    bed = random_reward_bed(1, num_actions, num_actions, 0.0, temperature, seed, dtype)
    return bed._replace(features=jnp.eye(num_actions, dtype=dtype)[None])


@arguments(transition=_TRANSITION, discount=real(low=0, high=1), potentials=real("S", "p"))
def shaping_features(
    transition: jax.Array, discount: jax.Array, potentials: jax.Array
) -> jax.Array:
    """Potential-based shaping, discount · E[potential(s')] − potential(s): [S, A, p] of potentials
    [S, p]; it changes no best policy.
    """
    return (
        discount * jnp.einsum("sat,tp->sap", transition, potentials, precision="highest")
        - potentials[:, None, :]
    )


class Segments(NamedTuple):
    """All N state-action sequences of H steps in a process."""

    states: jax.Array  # int32 [N, H]
    actions: jax.Array  # int32 [N, H]
    log_dynamics: jax.Array  # [N] log-chance of each one's start and moves


@arguments(transition=_TRANSITION, initial=real("S", low=0), horizon=size(1, 100))
def enumerate_segments(transition: jax.Array, initial: jax.Array, horizon: int) -> Segments:
    """Every sequence of `horizon` states and actions; N = (S A)^horizon, so keep them small."""
    S, A, _ = transition.shape
    _checks.require(
        (S * A) ** horizon <= _MOST,
        f"horizon = {horizon} makes {(S * A) ** horizon} sequences of {S} states and {A} actions:"
        f" {_MOST} at most are listed.",
    )
    grid = np.indices((S, A) * horizon).reshape(2 * horizon, -1).T.astype(np.int32)
    states, actions = jnp.asarray(grid[:, 0::2]), jnp.asarray(grid[:, 1::2])
    moves = jnp.log(transition[states[:, :-1], actions[:, :-1], states[:, 1:]])
    return Segments(states, actions, jnp.log(initial[states[:, 0]]) + jnp.sum(moves, axis=1))


def _segment_returns(
    table: jax.Array, states: jax.Array, actions: jax.Array, discount: jax.Array
) -> jax.Array:
    weights = discount ** jnp.arange(states.shape[-1]).astype(table.dtype)
    return jnp.matmul(table[states, actions], weights, precision="highest")


def _bradley_terry(margin: jax.Array, label: jax.Array) -> jax.Array:
    """Cross-entropy of sigmoid(margin) under the chance `label` that the first one is preferred."""
    return label * jax.nn.softplus(-margin) + (1 - label) * jax.nn.softplus(margin)


@arguments(
    segments=record(Segments),
    reward=_TABLE,
    true_reward=_TABLE,
    log_probs=_TABLE,
    discount=real(low=0, high=1),
)
def preference_loss(
    segments: Segments,
    reward: jax.Array,
    true_reward: jax.Array,
    log_probs: jax.Array,
    discount: jax.Array,
) -> jax.Array:
    """Expected Bradley-Terry loss of `reward` on pairs of segments drawn by the policy and labelled
    by `true_reward`; an exact sum.

        Σ_{i, j} P(i) P(j) · cross-entropy of sigmoid(R_i − R_j) under sigmoid(R*_i − R*_j)

    with R a segment's discounted rewards.
    """
    states, actions, log_dynamics = segments
    chances = jnp.exp(log_dynamics + jnp.sum(log_probs[states, actions], axis=1))
    guess, truth = (
        _segment_returns(table, states, actions, discount) for table in (reward, true_reward)
    )
    loss = _bradley_terry(
        guess[:, None] - guess[None, :], jax.nn.sigmoid(truth[:, None] - truth[None, :])
    )
    return jnp.einsum("i,ij,j->", chances, loss, chances, precision="highest")


@arguments(
    states=integer("n", 2, "H"),
    actions=integer("n", 2, "H"),
    uniforms=real("n", low=0, high=1),
    reward=_TABLE,
    true_reward=_TABLE,
    log_probs=_TABLE,
    discount=real(low=0, high=1),
)
def sampled_preference_loss(
    states: jax.Array,
    actions: jax.Array,
    uniforms: jax.Array,
    reward: jax.Array,
    true_reward: jax.Array,
    log_probs: jax.Array,
    discount: jax.Array,
) -> jax.Array:
    """`preference_loss` from n pairs of segments that the policy drew, each labelled once: an
    estimate without bias, gradients too.

        mean over pairs of cross-entropy(label, sigmoid(R₁ − R₂)) · (1, with the score of both
        segments as its gradient)

    `states`, `actions`: int32 [n, 2, H]; `uniforms` [n]: the first one is preferred where they are
    below sigmoid(R*₁ − R*₂). The score multiplies the loss less log 2, that of a reward that
    knows nothing, which changes no mean and lowers the spread.
    """
    guess, truth = (
        _segment_returns(table, states, actions, discount) for table in (reward, true_reward)
    )
    chance = jax.nn.sigmoid(truth[:, 0] - truth[:, 1])
    label = jnp.where(uniforms < chance, 1.0, jnp.where(uniforms >= chance, 0.0, jnp.nan))
    loss = _bradley_terry(guess[:, 0] - guess[:, 1], label)
    taken = jnp.sum(log_probs[states, actions], axis=(1, 2))
    # zero, with the score as its gradient
    score = jnp.exp(taken - jax.lax.stop_gradient(taken)) - 1
    return jnp.mean(loss + (loss - np.log(2.0)) * score)


class FourRooms(NamedTuple):
    """A grid world with contexts, each a goal at which the episode ends. S cells, 4 moves, C
    contexts.

    The follower is paid 1 at its goal; the leader wants it to pass through `target`, and charges it
    for visiting cells.
    """

    transition: jax.Array  # [C, S, A, S]
    initial: jax.Array  # [C, S]
    discount: jax.Array  # [C]
    goals: jax.Array  # [C, S], 1 at the goal
    target: int  # the index of a cell
    cells: np.ndarray  # [S, 2] rows and columns

    def charges(self, x: jax.Array) -> jax.Array:
        """0.2 softmax(x) without its last entry, which charges nobody: [S] of x [S + 1]."""
        return 0.2 * jax.nn.softmax(x)[:-1]

    def follower_reward(self, x: jax.Array) -> jax.Array:
        """[C, S, A]: 1 at the goal, and less the charge elsewhere."""
        reward = self.goals - (1 - self.goals) * self.charges(x)[None, :]
        return jnp.broadcast_to(reward[:, :, None], self.transition.shape[:3])

    def leader_reward(self, x: jax.Array, cost: Any) -> jax.Array:
        """[C, S, A]: 1 in the target cell, and at the end −`cost` times the sum of all charges."""
        here = jnp.zeros_like(self.goals[0]).at[self.target].set(1.0)
        reward = here[None, :] - jnp.asarray(cost, here.dtype) * self.goals * jnp.sum(
            self.charges(x)
        )
        return jnp.broadcast_to(reward[:, :, None], self.transition.shape[:3])


_LAYOUT = """
xxxxxxxxxxxxx
x     x     x
x     x     x
x           x
x     x     x
x     x     x
xx xxxx     x
x     xxx xxx
x     x     x
x     x     x
x           x
x     x     x
xxxxxxxxxxxxx
"""


@arguments(on_host=True, discount=_DISCOUNT, fail=real(low=0, high=1), dtype=_DTYPE)
def four_rooms(discount: float = 0.99, fail: float = 0.33, dtype: Any = jnp.float32) -> FourRooms:
    """The four-rooms grid of 104 cells and 4 moves; a move fails, and goes in one of the other
    directions, with chance `fail`.

    Contexts are the goals (1, 9) and (11, 11), equally likely; start (4, 1), target (8, 4). The
    setting of Thoma et al. 2024 (HPGD).
    """
    rows = _LAYOUT.strip().split("\n")
    cells = np.array(
        [(i, j) for i, row in enumerate(rows) for j, wall in enumerate(row) if wall != "x"]
    )
    index = {tuple(cell): k for k, cell in enumerate(cells.tolist())}
    S = len(cells)
    moves = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])
    arrive = np.array(
        [
            [index.get((i + di, j + dj), index[i, j]) for di, dj in moves.tolist()]
            for i, j in cells.tolist()
        ]
    )
    transition = np.zeros((2, S, 4, S))
    for action in range(4):
        for actual in range(4):
            transition[:, np.arange(S), action, arrive[:, actual]] += (
                1 - fail if actual == action else fail / 3
            )
    ends = [index[1, 9], index[11, 11]]
    goals, initial = np.zeros((2, S)), np.zeros((2, S))
    goals[[0, 1], ends] = 1.0
    transition[[0, 1], ends] = 0.0  # nothing comes after the goal
    initial[:, index[4, 1]] = 1.0
    arrays = [jnp.asarray(a, dtype) for a in (transition, initial, np.full(2, discount), goals)]
    return FourRooms(arrays[0], arrays[1], arrays[2], arrays[3], index[8, 4], cells)


class Stackelberg(NamedTuple):
    """A leader whose mixed action, softmax(x) over its own moves, changes the follower's dynamics.

    The leader has L moves.
    """

    transitions: jax.Array  # [L, S, A, S] for each leader move
    initial: jax.Array  # [S]
    discount: jax.Array  # []
    follower_reward: jax.Array  # [S, A]
    leader_reward: jax.Array  # [S, A]

    def transition(self, x: jax.Array) -> jax.Array:
        return jnp.einsum("l,lsat->sat", jax.nn.softmax(x), self.transitions, precision="highest")


@arguments(num_moves=size(1), num_states=size(1), num_actions=size(1), seed=size(), dtype=_DTYPE)
def stackelberg(
    num_moves: int = 3,
    num_states: int = 8,
    num_actions: int = 4,
    seed: int = 0,
    dtype: Any = jnp.float32,
) -> Stackelberg:
    """A random instance: transition rows softmax(2 N), normal rewards, uniform start, discount
    0.9.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    transitions = jax.nn.softmax(
        2 * jax.random.normal(keys[0], (num_moves, num_states, num_actions, num_states), dtype),
        axis=-1,
    )
    initial = jnp.full((num_states,), 1 / num_states, dtype)
    rewards = [jax.random.normal(key, (num_states, num_actions), dtype) for key in keys[1:]]
    return Stackelberg(transitions, initial, jnp.asarray(0.9, dtype), rewards[0], rewards[1])
