"""Recordings of n agents: what they hold, and how a simulator is recorded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, function, integer, real, size


class Trajectory(NamedTuple):
    """T ≥ 1 recorded steps of n agents; the stage reward is global_rewards + mean of
    local_rewards.
    """

    global_states: Any  # int32 [T+1]
    local_states: Any  # int32 [T+1, n]
    actions: Any  # int32 [T]
    global_rewards: Any  # [T]
    local_rewards: Any  # [T, n]


@arguments(
    global_rewards=real("T"),
    local_rewards=real("T", "n"),
    global_states=integer("T+1", low=0),
    local_states=integer("T+1", "n", low=0),
    actions=integer("T", low=0),
)
def _recorded(
    global_states: Any, local_states: Any, actions: Any, global_rewards: Any, local_rewards: Any
) -> Trajectory:
    """A trajectory whose arrays are converted and fit one another."""
    T = global_rewards.shape[0]
    _checks.require(
        T > 0 and global_states.shape[0] == T + 1,
        f"global_states must have shape [T+1] for T = {T} ≥ 1 steps, got"
        f" {list(global_states.shape)}.",
    )
    return Trajectory(global_states, local_states, actions, global_rewards, local_rewards)


def recorded(trajectory: Trajectory, sizes: tuple[int, int, int]) -> Trajectory:
    """`trajectory` with arrays that fit one another and, where known, sizes = (G, L, A)."""
    data = _recorded(*trajectory)
    for name, number in zip(("global_states", "local_states", "actions"), sizes, strict=True):
        _checks.require_known(
            lambda held, number: (held >= 0) & (held < number),
            f"trajectory: {name} must lie in 0..{number - 1}.",
            getattr(data, name),
            number,
        )
    return data


@arguments(
    reset=function("() -> (s_g, local states [n])"),
    step=function("action -> (s_g, local states [n], r_g, local rewards [n], done)"),
    policy=function("(s_g, local states [n]) -> action"),
    num_steps=size(1),
)
def record(
    reset: Callable[[], Any],
    step: Callable[[int], Any],
    policy: Callable[[Any, Any], Any],
    num_steps: int,
) -> list[Trajectory]:
    """Record a simulator that is written in Python, whatever it is made of: a `Trajectory` for each
    episode, for `estimate` and `learn_from_trajectory`; on the host.

    * `reset`: begins an episode and returns (global state, local states [n]); called again after
      `done`, with another n if it likes.
    * `step`: takes an action and returns (global state, local states [n], global reward, local
      rewards [n], done) of one step.
    * `policy`: chooses the action; what it never tries is never known. It keeps its own random
      numbers, and so does the simulator.
    * `num_steps`: of all episodes together; the last one may be cut off.

    Returns: the trajectories, T + 1 states for T steps each. What ends an episode is a state from
    which nothing is recorded: `dataclasses.replace(found.model, terminal=...)` marks it in a model.

    Raises: ValueError for states that are no integers, and a number of agents that changes within
    an episode.

    Example: `record(reset, step, lambda s_g, agents: generator.integers(3), 10_000)`.
    """
    runs: list[Trajectory] = []
    rows: list[tuple[Any, ...]] = []
    states: list[tuple[Any, Any]] = []

    def close() -> None:
        held = [np.array(each) for each in zip(*states, strict=True)]
        runs.append(_recorded(*held, *(np.array(each) for each in zip(*rows, strict=True))))
        rows.clear()
        states.clear()

    for _ in range(num_steps):
        if not states:
            states.append(_copied(*reset()))
        global_state, agents = states[-1]  # copies: a policy may sort what it is given
        action = np.asarray(policy(global_state[()], agents.copy()))
        _checks.require(
            action.shape == () and action.dtype.kind in "iu",
            f"policy must return a whole number, got {action.tolist()!r}.",
        )
        action = int(action)
        *after, global_reward, local_rewards, done = step(action)
        states.append(_copied(*after))
        rows.append((action, np.array(global_reward), np.array(local_rewards)))
        shapes = {np.shape(states[-2][1]), np.shape(states[-1][1]), np.shape(local_rewards)}
        _checks.require(
            len(shapes) == 1,
            f"step changed the number of agents, {sorted(shapes)}: end the episode where it does.",
        )
        if done:
            close()
    if states:
        close()
    return runs


def _copied(global_state: Any, local_states: Any) -> tuple[Any, Any]:
    """A state that the simulator cannot change any more."""
    return np.array(global_state), np.array(local_states)
