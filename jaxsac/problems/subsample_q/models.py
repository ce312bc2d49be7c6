"""Global agents above many local ones: arrays for `jaxsac.subsample_q.Model(*problem)`, and for
`LocalActionModel` where agents act too.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, flag, real, size

_DISCOUNT = real(low=0, below=1)
_CHANCE = real(low=0, high=1)


class GlobalLocal(NamedTuple):
    """The fields of a `subsample_q.Model` in order, as numpy arrays."""

    global_transition: np.ndarray  # [G, A, G]
    local_transition: np.ndarray  # [G, L, L]
    global_reward: np.ndarray  # [G, A]
    local_reward: np.ndarray  # [G, L]
    discount: float  # in [0, 1)


@arguments(
    seed=size(),
    num_global=size(1),
    num_actions=size(1),
    num_local=size(1),
    discount=_DISCOUNT,
    stay=_CHANCE,
)
def random(
    seed: int,
    num_global: int = 5,
    num_actions: int = 5,
    num_local: int = 5,
    discount: float = 0.9,
    stay: float = 0.5,
) -> GlobalLocal:
    """Dirichlet transitions, local agents that stay with probability `stay` or more, and normal
    rewards.
    """
    generator = np.random.default_rng(seed)
    local = generator.dirichlet(np.ones(num_local), (num_global, num_local))
    return GlobalLocal(
        generator.dirichlet(np.ones(num_global), (num_global, num_actions)),
        stay * np.eye(num_local) + (1 - stay) * local,
        generator.normal(size=(num_global, num_actions)),
        generator.normal(size=(num_global, num_local)),
        discount,
    )


@arguments(num_modes=size(1, 20), discount=_DISCOUNT, switching_cost=real())
def mode_tracking(
    num_modes: int = 3, discount: float = 0.9, switching_cost: float = 0.05
) -> GlobalLocal:
    """The global agent wants to be in the mode where most agents are, and is rewarded by their
    share.

    Action a leads to mode a with the chance 1 − 0.05 (L − 1); agents stay with probability 0.9 or
    jump anywhere. A policy that samples k guesses the majority from k agents, so k < n can lose.
    """
    L = num_modes
    arrive = np.full((L, L), 0.05) + (1 - 0.05 * L) * np.eye(L)
    return GlobalLocal(
        np.tile(arrive, (L, 1, 1)),
        np.tile(0.9 * np.eye(L) + 0.1 / L, (L, 1, 1)),
        -switching_cost * (1 - np.eye(L)),
        np.eye(L),
        discount,
    )


@arguments(scarce=flag(), discount=_DISCOUNT)
def demand_response(*, scarce: bool = False, discount: float = 0.9) -> GlobalLocal:
    """A grid operator (supply 1..5, actions −1, 0, 1) and consumers (consumption, desired
    consumption) in {1..5}²: G = 5, A = 3, L = 25.

        supply' = clip(supply + a),   B fair,   desired' uniform on 1..5,
        consumption' = desired if desired ≤ supply else clip(desired + (supply − consumption) B)
        r_l = consumption − 0.5 · 1{consumption > supply},   r_g = 15 / supply − 1{a = −1}

    This is the model that was released with arXiv 2403.00222; its best action does not depend on
    the consumers, so every k is optimal (no demonstration of sampling), and at discount 0.9 the
    mean best value is 172.398 at supply 1 and 135.209 at supply 5 (a known answer). scarce=True is
    a variant of our own in which the action does depend on them: supply costs r_g = −0.8 supply,
    desires persist (a new one with probability 0.3), who wants more than there is has consumption'
    = supply with probability 0.5 and else stays, and each pays r_l = −(desired − min(consumption,
    supply))².
    """
    levels = np.arange(1, 6)
    G = L = 5
    moves = [np.clip(levels + action, 1, 5) - 1 for action in (-1, 0, 1)]
    global_transition = np.stack([np.eye(G)[after] for after in moves], axis=1)
    local_transition = np.zeros((G, L * L, L * L))
    local_reward = np.zeros((G, L * L))
    for supply, consumption, desired in itertools.product(levels, levels, levels):
        row = (consumption - 1) * L + desired - 1
        start, end = (consumption, supply) if scarce else (desired, desired + supply - consumption)
        half = [(start, 0.5), (int(np.clip(end, 1, 5)), 0.5)]
        new_desire = np.full(L, 0.2 * (0.3 if scarce else 1.0)) + (
            0.7 * np.eye(L)[desired - 1] if scarce else 0
        )
        for level, chance in [(desired, 1.0)] if desired <= supply else half:
            own = slice((level - 1) * L, level * L)
            local_transition[supply - 1, row, own] += chance * new_desire
        unmet = desired - min(consumption, supply)
        local_reward[supply - 1, row] = (
            -float(unmet**2) if scarce else consumption - 0.5 * (consumption > supply)
        )
    cost = -0.8 * levels if scarce else 15 / levels
    global_reward = cost[:, None] - np.array([1.0, 0.0, 0.0]) * (not scarce)
    return GlobalLocal(global_transition, local_transition, global_reward, local_reward, discount)


@arguments(capacity=size(1), discount=_DISCOUNT, service=_CHANCE, gate=real("G", low=0, high=1))
def admission(
    capacity: int = 4,
    discount: float = 0.95,
    service: float = 0.5,
    gate: tuple[float, ...] = (0.1, 0.4, 0.8),
) -> GlobalLocal:
    """Many equal queues of 0..capacity jobs behind one gate: the action sets the next arrival
    probability of every queue.

    A queue gains a job with the gate's probability (if it has room), loses one with probability
    `service` (if it has one), and pays its length; an open gate earns 3 · arrival probability, and
    moving it costs 0.1. How far to open it depends on how full the queues are.
    """
    arrivals = np.asarray(gate)
    G, L = len(arrivals), capacity + 1
    local = np.zeros((G, L, L))
    for g, jobs in np.ndindex(G, L):
        for comes, p in ((1, arrivals[g]), (0, 1 - arrivals[g])):
            for served, q in ((1, service), (0, 1 - service)):
                left = min(jobs + comes, capacity) - (served and jobs > 0)
                local[g, jobs, left] += p * q
    earned = 3 * arrivals[:, None] - 0.1 * (1 - np.eye(G))
    return GlobalLocal(
        np.tile(np.eye(G), (G, 1, 1)),
        local,
        earned,
        np.tile(-np.arange(L, dtype=float), (G, 1)),
        discount,
    )


class LocalActions(NamedTuple):
    """The fields of a `LocalActionModel` in order; the last two are keywords there."""

    global_transition: np.ndarray  # [G, A, G]
    local_transition: np.ndarray  # [G, B, L, L]
    global_reward: np.ndarray  # [G, A]
    local_reward: np.ndarray  # [G, B, L]
    discount: float  # in [0, 1)
    share_reward: Callable[..., Any] | None = None  # (global state, shares [L, B]) -> []
    allowed: Callable[..., Any] | None = None  # (global state, counts [L, B]) -> bool []


@arguments(
    num_levels=size(1),
    targets=real("G"),
    width=real(above=0),
    slip=_CHANCE,
    switch=_CHANCE,
    discount=_DISCOUNT,
)
def gaussian_squeeze(
    num_levels: int = 3,
    targets: tuple[float, ...] = (0.5, 1.5),
    width: float = 0.5,
    slip: float = 0.0,
    switch: float = 0.2,
    discount: float = 0.9,
) -> LocalActions:
    """Agents choose their effort 0..num_levels-1 so that the mean effort x meets a moving target: r
    = x exp(-(x - target)² / width²).

    The global state says which of `targets` counts; it changes to a uniform one with probability
    `switch`, and nobody controls it. An agent's effort counts at the next step: it is the local
    state, and its action sets it, with probability `slip` it stays. Without slip the best mean
    effort follows the forecast of the target, a known answer. The reward is of the mean, so it is
    no sum over agents.
    """
    G, L = len(targets), num_levels
    arrive = (1 - switch) * np.eye(G) + switch / G
    move = np.stack(
        [(1 - slip) * np.tile(np.eye(L)[b], (L, 1)) + slip * np.eye(L) for b in range(L)]
    )  # [B, L, L]
    goals, efforts = np.asarray(targets), np.arange(L, dtype=float)

    def share_reward(global_state, shares):
        mean = jnp.sum(shares * jnp.asarray(efforts, shares.dtype)[:, None])
        goal = jnp.asarray(goals, shares.dtype)[global_state]
        return mean * jnp.exp(-(((mean - goal) / width) ** 2))

    return LocalActions(
        arrive[:, None],
        np.tile(move, (G, 1, 1, 1)),
        np.zeros((G, 1)),
        np.zeros((G, L, L)),
        discount,
        share_reward,
    )


@arguments(size=size(1), crowd=real(), slip=_CHANCE, discount=_DISCOUNT)
def constrained_exploration(
    size: int = 2, crowd: float = 0.5, slip: float = 0.1, discount: float = 0.9
) -> LocalActions:
    """Agents explore a size × size torus; the global agent moves a lamp, and what an agent sees
    counts only in the lamp's row.

    Global state: the lit row; global action: stay, or one row down (cost 0.1). Local state: the
    cell; local actions: stay, down, right (cost 0.05 each move), which slip (stay) with probability
    `slip`. Each agent in the lit row earns 1, and the constraint is soft: all pay `crowd` for the
    sum of squares of the shares of the cells, least where the agents spread evenly.
    """
    L = size * size
    row, column = np.divmod(np.arange(L), size)
    targets = np.stack(
        [np.arange(L), (row + 1) % size * size + column, row * size + (column + 1) % size], axis=1
    )
    move = np.stack([(1 - slip) * np.eye(L)[targets[:, b]] + slip * np.eye(L) for b in range(3)])
    lamp = np.stack([np.eye(size), np.roll(np.eye(size), 1, axis=1)], axis=1)  # [G, A, G]
    lit = row[None, :] == np.arange(size)[:, None]
    reward = lit[:, None, :] - np.array([0.0, 0.05, 0.05])[None, :, None]

    def share_reward(global_state, shares):
        return -crowd * jnp.sum(jnp.sum(shares, axis=1) ** 2)

    return LocalActions(
        lamp,
        np.tile(move, (size, 1, 1, 1)),
        np.tile([0.0, -0.1], (size, 1)),
        np.asarray(reward, float),
        discount,
        share_reward,
    )


@arguments(
    num_queues=size(1),
    capacity=size(1),
    load=real(low=0),
    service=_CHANCE,
    overflow=real(),
    discount=_DISCOUNT,
)
def dispatch(
    num_queues: int,
    capacity: int = 4,
    load: float = 0.7,
    service: float = 0.5,
    overflow: float = 10.0,
    discount: float = 0.9,
) -> LocalActions:
    """Exchangeable queues of 0..capacity jobs, each tagged or not to receive one of this step's
    jobs.

    The global state is the number of jobs that arrive, 0..num_queues, binomial with mean load ·
    service · num_queues; that many queues are tagged (`allowed`), never two jobs to one queue. A
    tagged queue gains a job if it has room (else it is lost, at the cost `overflow`), then every
    queue that is not empty loses one with probability `service`. Reward: minus the mean number of
    jobs of a queue. Joining the shortest queues is optimal (Winston 1977, Weber 1978, for equal
    servers).
    """
    L, chance = capacity + 1, load * service
    _checks.require(
        chance <= 1, f"load * service must be ≤ 1, got {chance:g} jobs a queue and step."
    )
    law = np.array(
        [
            math.comb(num_queues, j) * chance**j * (1 - chance) ** (num_queues - j)
            for j in range(num_queues + 1)
        ]
    )
    G = num_queues + 1
    local = np.zeros((2, L, L))
    reward = np.zeros((2, L))
    for tagged, jobs in np.ndindex(2, L):
        length = min(jobs + tagged, capacity)
        local[tagged, jobs, length] += 1 - service if length else 1
        if length:
            local[tagged, jobs, length - 1] += service
        reward[tagged, jobs] = -jobs - overflow * (jobs + tagged > capacity)
    return LocalActions(
        np.tile(law, (G, 1, 1)),
        np.tile(local, (G, 1, 1, 1)),
        np.zeros((G, 1)),
        np.tile(reward, (G, 1, 1)),
        discount,
        None,
        lambda jobs, tagged: jnp.sum(tagged[:, 1], dtype=jobs.dtype) == jobs,
    )


@arguments(
    seed=size(),
    k=size(1),
    num_queues=size(1),
    load=real(low=0),
    service=_CHANCE,
    steps=size(2),
    capacity=size(1),
)
def power_of_k(
    seed: int,
    k: int,
    num_queues: int = 1000,
    load: float = 0.9,
    service: float = 0.5,
    steps: int = 500,
    capacity: int = 30,
) -> tuple[float, float]:
    """Mean number of jobs in a queue, and fraction of jobs lost, when each job joins the shortest
    of k queues drawn with replacement.

    Binomial(num_queues, load · service) jobs arrive in a step, at queues as they stood when it
    began; then every queue that is not empty loses a job with probability `service`. Averages over
    the second half of `steps`, after arrivals. k = 1 is random dispatch: with a = load · service
    and no limit its mean is (2a − a²) / (2 (service − a)) in many queues; k ≥ num_queues joins the
    shortest queue. numpy, queue by queue. Source: Mitzenmacher 2001 (the power of two choices).
    """
    chance = load * service
    _checks.require(
        chance <= 1, f"load * service must be ≤ 1, got {chance:g} jobs a queue and step."
    )
    generator = np.random.default_rng(seed)
    queues = np.zeros(num_queues, np.int64)
    total, lost, arrived = 0.0, 0, 0
    for step in range(steps):
        jobs = generator.binomial(num_queues, chance)
        if k >= num_queues:
            # one job after the other, each to a queue that is shortest then: fill the lowest levels
            chosen = np.zeros(jobs, np.int64)
            levels = queues + generator.random(num_queues)  # ties at random
            for j in range(jobs):
                chosen[j] = np.argmin(levels)
                levels[chosen[j]] += 1
        else:
            sampled = generator.integers(0, num_queues, (jobs, k))
            chosen = sampled[
                np.arange(jobs),
                np.argmin(queues[sampled] + generator.random(sampled.shape), axis=1),
            ]
        queues = queues + np.bincount(chosen, minlength=num_queues)
        over = np.maximum(queues - capacity, 0)
        queues = queues - over
        if step >= steps // 2:
            total, lost, arrived = total + queues.mean(), lost + int(over.sum()), arrived + jobs
        queues = queues - ((queues > 0) & (generator.random(num_queues) < service))
    return total / (steps - steps // 2), lost / max(arrived, 1)
