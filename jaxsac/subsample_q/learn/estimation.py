"""A model from what was recorded."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, choice, flag, real, size
from jaxsac.solution import register
from jaxsac.subsample_q.data.histograms import MEMORY_LIMIT
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.learn.recording import Trajectory, recorded


@register
class Estimate(NamedTuple):
    """A model, and how often each of its cells was recorded: 0 where it says what `unseen` does."""

    model: Model  # with the arrays [G, A, G], [G, L, L], [G, A], [G, L], the discount [] of a Model
    global_visits: jax.Array  # int64 or int32 [G, A], steps in s_g with the action
    local_visits: jax.Array  # [G, L], or [G, A, L]: moves of agents in s_i under s_g


@arguments(
    trajectories=anything("a `Trajectory`, or a list of them"),
    num_global_states=size(1),
    num_local_states=size(1),
    num_actions=size(1),
    discount=real(low=0, high=1),
    unseen=choice("pessimistic", "prior", "refuse"),
    action_drives_agents=flag(),
)
def estimate(
    trajectories: Any,
    num_global_states: int,
    num_local_states: int,
    num_actions: int,
    discount: Any,
    *,
    unseen: str = "pessimistic",
    action_drives_agents: bool = False,
) -> Estimate:
    """The model of recorded agents: relative frequencies of the moves, means of the rewards; on the
    host.

        P(s' | s_g, a) = n(s_g, a, s') / n(s_g, a),   r_g(s_g, a) = mean of the recorded ones

    and the same for local agents, over all of them. `solve` on it makes more of a recording than
    `learn_from_trajectory` does, for every move of every agent counts, whatever the others do.

    * `trajectories`: a `Trajectory` for each run or episode, of any lengths and numbers of agents:
      nothing leads from the end of one to the beginning of the next.
    * `num_global_states`, `num_local_states`, `num_actions`: G, L, A.
    * `discount`: in [0, 1], that of the model; < 1 where something is "pessimistic".
    * `unseen`: what a cell without any record does. "pessimistic": an action that was never tried
      is worth no more than the worst mean of any other cell for ever, so that none is worse; a
      global state without any stays and pays the worst recorded mean; an agent stays, and what it
      earns from there is worth at most the worst mean local reward for ever. V is then at most that
      of the known cells with any others. "prior": one more record in every cell, spread evenly over
      the next states, that pays the mean of all (Dirichlet with 1 / G and 1 / L). "refuse": an
      error that counts them.
    * `action_drives_agents`: a local transition for every action too, [G, A, L, L].

    Returns: an `Estimate`; `visits == 0` is what was never recorded. The dtype is that of the
    recorded rewards.

    Raises: ValueError for no step at all, states or actions out of range, traced arrays, and more
    than 16 GiB of counts.

    Example: `solve(estimate(recording, 3, 4, 2, 0.9).model, k=8)`.

    Source: certainty equivalence (Kumar and Varaiya 1986); pessimism: Kidambi et al. 2020.
    """
    data = [trajectories] if isinstance(trajectories, Trajectory) else trajectories
    fits = isinstance(data, Sequence) and all(isinstance(each, Trajectory) for each in data)
    _checks.require(
        fits and len(data) > 0, "trajectories must be a Trajectory, or a list of at least one."
    )
    G, L, A = num_global_states, num_local_states, num_actions
    _checks.require(
        8 * G * A * (G + L * L) <= MEMORY_LIMIT,
        f"counts of {G} global states, {A} actions and {L} local states take more than 16 GiB.",
    )
    runs = [recorded(each, (G, L, A)) for each in data]
    _checks.require(_checks.is_concrete(runs), "trajectories must be known, not traced.")
    dtype = np.dtype(runs[0].global_rewards.dtype)
    _checks.require(
        all(run.global_rewards.dtype == dtype for run in runs),
        "trajectories have rewards of several dtypes: cast them to one.",
    )
    moves, rewards = np.zeros((G, A, G), np.int64), np.zeros((G, A))
    agent_moves, agent_rewards = np.zeros((G, A, L, L), np.int64), np.zeros((G, A, L))
    for run in runs:
        states, agents, actions, global_rewards, local_rewards = map(np.asarray, run)
        cells = states[:-1].astype(np.int64) * A + actions
        moves += _counted(cells * G + states[1:], moves.shape)
        rewards += _counted(cells, rewards.shape, global_rewards)
        agent_cells = cells[:, None] * L + agents[:-1]
        agent_moves += _counted(agent_cells * L + agents[1:], agent_moves.shape)
        agent_rewards += _counted(agent_cells, agent_rewards.shape, local_rewards)
    if not action_drives_agents:
        agent_moves, agent_rewards = agent_moves.sum(axis=1), agent_rewards.sum(axis=1)
    above, below = _Counts(moves, rewards), _Counts(agent_moves, agent_rewards)
    missing = int(np.sum(above.visits == 0)), int(np.sum(below.visits == 0))
    _checks.require(
        unseen != "refuse" or not any(missing),
        f"trajectories never show {missing[0]} of {G * A} pairs of global state and action, and"
        f" {missing[1]} of {below.visits.size} cells of local states: record them, or choose"
        " what unseen= is to mean.",
    )
    if unseen == "prior":
        arrays = above.with_prior(), below.with_prior()
    else:
        _checks.require(
            not any(missing) or float(discount) < 1,
            'unseen="pessimistic" needs a discount < 1 where there are cells without a record.',
        )
        arrays = _pessimistic(above, below, float(discount))
    (transition, reward), (local_transition, local_reward) = arrays
    model = Model(
        transition.astype(dtype),
        local_transition.astype(dtype),
        reward.astype(dtype),
        local_reward.astype(dtype),
        discount,
    )
    return Estimate(model, jax.numpy.asarray(above.visits), jax.numpy.asarray(below.visits))


class _Counts(NamedTuple):
    """What was recorded of each cell: a state, with an action where that matters."""

    moves: np.ndarray  # int64 [..., S], to each next state
    rewards: np.ndarray  # [...], their sum

    @property
    def visits(self) -> np.ndarray:
        return self.moves.sum(axis=-1)

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Transitions and rewards; 0 where nothing was recorded."""
        visits = np.maximum(self.visits, 1)
        return self.moves / visits[..., None], self.rewards / visits

    def with_prior(self) -> tuple[np.ndarray, np.ndarray]:
        """The same with one more record everywhere, of the mean of all."""
        visits = self.visits + 1
        mean = self.rewards.sum() / self.visits.sum()
        prior = 1 / self.moves.shape[-1]
        return (self.moves + prior) / visits[..., None], (self.rewards + mean) / visits


def _pessimistic(above: _Counts, below: _Counts, discount: float) -> Any:
    """Means of the global agent (above) and of the local ones, and where nothing was recorded no
    more than the worst of all for ever.
    """
    (transition, reward), (local_transition, local_reward) = above.means(), below.means()
    seen, local_seen = above.visits > 0, below.visits > 0
    if seen.all() and local_seen.all():
        return (transition, reward), (local_transition, local_reward)
    worst, best = reward[seen].min(), reward[seen].max()
    local_worst, local_best = local_reward[local_seen].min(), local_reward[local_seen].max()
    future = discount / (1 - discount)
    entered = np.any(seen, axis=1, keepdims=True)  # global states of which something is known
    in_entered = entered.reshape(-1, *[1] * (local_reward.ndim - 1))
    left = np.where(in_entered, local_worst + future * (local_worst - local_best), local_worst)
    local_reward = np.where(local_seen, local_reward, left)
    # below the worst stage for ever, whatever the next state and the agents pay
    bound = worst + future * (worst - best) - (1 + future) * (local_best - local_reward.min())
    reward = np.where(seen, reward, np.where(entered, bound, worst))
    stay, local_stay = np.eye(transition.shape[0])[:, None], np.eye(local_transition.shape[-1])
    transition = np.where(seen[..., None], transition, stay)
    local_transition = np.where(local_seen[..., None], local_transition, local_stay)
    return (transition, reward), (local_transition, local_reward)


def _counted(places: np.ndarray, shape: tuple[int, ...], weights: Any = None) -> np.ndarray:
    """How often, or with what sum of `weights`, each flat index of an array of `shape` occurs."""
    weights = None if weights is None else weights.reshape(-1).astype(np.float64)
    found = np.bincount(places.reshape(-1), weights, minlength=int(np.prod(shape)))
    return found.reshape(shape)
