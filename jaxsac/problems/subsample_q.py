"""Global agents above many local ones: arrays for `jaxsac.subsample_q.Model(*problem)`."""

from typing import NamedTuple

import numpy as np


class GlobalLocal(NamedTuple):
    """The fields of a model in order: [G, A, G], [G, L, L], [G, A], [G, L], discount."""

    global_transition: np.ndarray
    local_transition: np.ndarray
    global_reward: np.ndarray
    local_reward: np.ndarray
    discount: float


def random(
    seed: int, num_global: int = 5, num_actions: int = 5, num_local: int = 5, discount: float = 0.9, stay: float = 0.5
) -> GlobalLocal:
    """Dirichlet transitions, local agents that stay with probability `stay` or more, and normal rewards."""
    generator = np.random.default_rng(seed)
    local = generator.dirichlet(np.ones(num_local), (num_global, num_local))
    return GlobalLocal(
        generator.dirichlet(np.ones(num_global), (num_global, num_actions)),
        stay * np.eye(num_local) + (1 - stay) * local,
        generator.normal(size=(num_global, num_actions)),
        generator.normal(size=(num_global, num_local)),
        discount,
    )


def mode_tracking(num_modes: int = 3, discount: float = 0.9, switching_cost: float = 0.05) -> GlobalLocal:
    """The global agent wants to be in the mode where most agents are, and is rewarded by their share.

    Action a leads to mode a with the chance 1 - 0.05 (L-1); agents stay with probability 0.9 or jump anywhere. A policy that samples
    k guesses the majority from k agents, so k < n can lose.
    """
    L = num_modes
    arrive = np.full((L, L), 0.05) + (1 - 0.05 * L) * np.eye(L)
    return GlobalLocal(
        np.tile(arrive, (L, 1, 1)), np.tile(0.9 * np.eye(L) + 0.1 / L, (L, 1, 1)), -switching_cost * (1 - np.eye(L)), np.eye(L), discount
    )


def demand_response(*, scarce: bool = False, discount: float = 0.9) -> GlobalLocal:
    """A grid operator (supply 1..5, actions -1, 0, 1) and consumers (consumption, desired consumption) in {1..5}²: G = 5, A = 3, L = 25.

        supply' = clip(supply + a);   consumption' = desired if desired ≤ supply else clip(consumption + (supply - consumption) B), B fair
        desired' uniform on 1..5;     r_l = consumption - 0.5 · 1{consumption > supply};     r_g = 15 / supply - 1{a = -1}

    These are the constants that were released with arXiv 2403.00222; with them the best action does not depend on the consumers, so every
    k is optimal (a known answer, and no demonstration of sampling). scarce=True is a variant of our own in which it does: supply costs
    r_g = -0.8 supply, desires persist (a new one with probability 0.3), and each pays r_l = -(desired - min(consumption, supply))².
    """
    levels = np.arange(1, 6)
    G = L = 5
    global_transition = np.zeros((G, 3, G))
    for supply in levels:
        for index, action in enumerate((-1, 0, 1)):
            global_transition[supply - 1, index, np.clip(supply + action, 1, 5) - 1] = 1
    local_transition = np.zeros((G, L * L, L * L))
    local_reward = np.zeros((G, L * L))
    for supply in levels:
        for consumption in levels:
            for desired in levels:
                row = (consumption - 1) * L + desired - 1
                after = [(desired, 1.0)] if desired <= supply else [(consumption, 0.5), (supply, 0.5)]
                new_desire = np.full(L, 0.2 * (0.3 if scarce else 1.0)) + (0.7 * np.eye(L)[desired - 1] if scarce else 0)
                for level, chance in after:
                    local_transition[supply - 1, row, (level - 1) * L : level * L] += chance * new_desire
                unmet = desired - min(consumption, supply)
                local_reward[supply - 1, row] = -float(unmet**2) if scarce else consumption - 0.5 * (consumption > supply)
    cost = -0.8 * levels if scarce else 15 / levels
    global_reward = cost[:, None] - np.array([1.0, 0.0, 0.0]) * (not scarce)
    return GlobalLocal(global_transition, local_transition, global_reward, local_reward, discount)


def admission(capacity: int = 4, discount: float = 0.95, service: float = 0.5, gate: tuple[float, ...] = (0.1, 0.4, 0.8)) -> GlobalLocal:
    """Many equal queues of 0..capacity jobs behind one gate: the action sets the next arrival probability of every queue.

    A queue gains a job with the gate's probability (if it has room), loses one with probability `service` (if it has one), and pays its
    length; an open gate earns 3 · arrival probability, and moving it costs 0.1. How far to open it depends on how full the queues are.
    """
    G, L = len(gate), capacity + 1
    local = np.zeros((G, L, L))
    for g, arrival in enumerate(gate):
        for jobs in range(L):
            for comes, p in ((1, arrival), (0, 1 - arrival)):
                for served, q in ((1, service), (0, 1 - service)):
                    local[g, jobs, int(np.clip(min(jobs + comes, capacity) - (served and jobs > 0), 0, capacity))] += p * q
    earned = 3 * np.asarray(gate)[:, None] - 0.1 * (1 - np.eye(G))
    return GlobalLocal(np.tile(np.eye(G), (G, 1, 1)), local, earned, np.tile(-np.arange(L, dtype=float), (G, 1)), discount)
