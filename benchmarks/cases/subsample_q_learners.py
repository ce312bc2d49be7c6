"""SUBSAMPLE-Q beside other ways to learn for many agents, and against an adversary."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases.subsample_q_dense import model_of
from benchmarks.harness import Options
from jaxsac import subsample_q
from jaxsac.problems import subsample_q as problems


def learners(options: Options) -> list[dict[str, Any]]:
    """The exact gap on n agents of what each learns, at a uniform start."""
    n, k, updates = (4, 2, 500) if options.smoke else (32, 8, 100_000)
    rows = []
    cases = {
        "mode tracking": problems.mode_tracking(3),
        "random, slow agents": problems.random(1, 3, 3, 3, stay=0.9),
    }
    for name, problem in options.progress(list(cases.items()), "learners"):
        model, L = model_of(problem, options), problem.local_reward.shape[1]
        state = subsample_q.population_state(0, np.ones(L), n)
        best = subsample_q.solve(model, n).check()
        nearest = rounded(n, k, L)
        independent = from_n_agents(problem, n, np.zeros_like(nearest), updates)
        aggregated = from_n_agents(problem, n, nearest, updates)
        policies: dict[str, Any] = {
            f"SUBSAMPLE-Q, k = {k}, exact operator": subsample_q.solve(model, k).check(),
            f"SUBSAMPLE-Q, k = {k}, Q-learning": subsample_q.q_learning(
                jax.random.key(0), model, k, updates
            ),
            "independent Q-learning": looked_up(independent, np.zeros_like(nearest), n, L),
            f"mean-field Q-learning, shares in {k}ths": looked_up(aggregated, nearest, n, L),
        } | {
            f"deterministic mean field, shares in {m}ths": looked_up(
                mean_field(problem, m), rounded(n, m, L), n, L
            )
            for m in (k, n)
        }
        for learner, policy in policies.items():
            bounds = subsample_q.certify(
                jax.random.key(0), model, policy, n, state, upper=best, interval="exact"
            )
            rows.append({"problem": name, "n": n, "learner": learner, "gap": float(bounds.gap)})
    return rows


def rounded(n: int, k: int, L: int) -> np.ndarray:
    """The row of the k-agent histogram whose shares are nearest to those of each n-agent one."""
    many = np.asarray(subsample_q.HistogramSpace(n, L).table) / n
    few = np.asarray(subsample_q.HistogramSpace(k, L).table) / k
    return np.argmin(np.abs(many[:, None] - few[None]).sum(axis=2), axis=1)


def looked_up(q: np.ndarray, rows: np.ndarray, n: int, L: int) -> Callable[..., Any]:
    """The rule that is greedy for q [G, R, A], where n agents of each histogram share a row."""
    space, actions = subsample_q.HistogramSpace(n, L), jnp.asarray(q.argmax(axis=-1), jnp.int32)
    return lambda state, counts: actions[state, jnp.asarray(rows)[space.index(counts)]]


def from_n_agents(
    problem: problems.GlobalLocal, n: int, rows: np.ndarray, updates: int
) -> np.ndarray:
    """Q-learning on one trajectory of n agents under uniform actions, from the worst value of all,
    over (s_g, row of the agents' histogram, a): of one row the agents are part of the noise
    (independent learning), of rounded shares this is mean-field Q-learning. A restart every 50
    steps, from random shares.
    """
    generator, (Pg, Pl, rg, rl, discount) = np.random.default_rng(0), problem
    (G, A), L, horizon = rg.shape, rl.shape[1], 1 / (1 - discount)
    space = subsample_q.HistogramSpace(n, L)
    where = {tuple(h): row for h, row in zip(np.asarray(space.table).tolist(), rows, strict=True)}
    q = np.full((G, rows.max() + 1, A), (rg.min() + rl.min()) * horizon)
    visits = np.zeros(q.shape)
    g, counts = 0, np.zeros(L, int)
    cumulative = Pg.cumsum(axis=-1)
    for t in range(updates):
        if t % 50 == 0:
            g, counts = (
                generator.integers(G),
                generator.multinomial(n, generator.dirichlet(np.ones(L))),
            )
        a = generator.integers(A)
        row, reward = where[tuple(counts.tolist())], rg[g, a] + rl[g] @ counts / n
        after = int((generator.random() > cumulative[g, a]).sum())
        counts = generator.multinomial(counts, Pl[g]).sum(axis=0)
        target = reward + discount * q[after, where[tuple(counts.tolist())]].max()
        step = horizon / (horizon + visits[g, row, a])
        visits[g, row, a] += 1
        q[g, row, a] += step * (target - q[g, row, a])
        g = after
    return q


def mean_field(problem: problems.GlobalLocal, k: int, sweeps: int = 400) -> np.ndarray:
    """q [G, N, A] of infinitely many agents, whose shares move to shares · P_l for sure and are
    rounded to k-ths.
    """
    Pg, Pl, rg, rl, discount = problem
    shares = np.asarray(subsample_q.HistogramSpace(k, rl.shape[1]).table) / k
    moved = np.einsum("nl,glm->gnm", shares, Pl)
    nearest = np.argmin(np.abs(moved[:, :, None] - shares).sum(axis=-1), axis=-1)
    reward = rg[:, None, :] + (rl @ shares.T)[:, :, None]
    q = np.zeros(reward.shape)
    for _ in range(sweeps):
        ahead = q.max(axis=-1)[:, nearest]  # [G', G, N]
        q = reward + discount * np.einsum("gac,cgn->gna", Pg, ahead)
    return q


def adversary(options: Options) -> list[dict[str, Any]]:
    """Mode tracking where an adversary sees the action and then moves agents of a second type."""
    sizes, n = ((1,), 2) if options.smoke else ((1, 2, 4, 8), 8)
    base, pull, replies, rows = problems.mode_tracking(3), 0.3, 3, []
    stay = np.repeat(np.asarray(base.local_transition)[:, None], 3 * replies, axis=1)
    drawn = (1 - pull) * np.eye(3) + pull * np.eye(3)[:, None, :]  # [b, L, L], towards mode b
    moved = np.tile(drawn, (3, 3, 1, 1))  # [G, A b, L, L]
    model = subsample_q.TypedModel(
        np.repeat(base.global_transition, replies, axis=1).astype(options.dtype),
        np.stack([stay, moved]).astype(options.dtype),
        np.repeat(base.global_reward, replies, axis=1).astype(options.dtype),
        np.tile(base.local_reward[None, :, None], (2, 1, 3 * replies, 1)).astype(options.dtype),
        np.full(2, 0.5, options.dtype),
        base.discount,
    )
    state = (0, np.stack([subsample_q.population_state(0, np.ones(3), n)[1]] * 2))
    for k in options.progress(sizes, "adversary"):
        row: dict[str, Any] = {"k of each": k, "n of each": n}
        for name, number in (("worst", replies), ("helpful", 1)):
            table = subsample_q.solve(model, (k, k), replies=number).check()
            played = subsample_q.evaluate(model, table, (n, n)).check().value
            at = np.flatnonzero(np.all(np.asarray(played.histograms) == state[1], axis=(1, 2)))[0]
            row[f"value, {name} replies"] = float(played.value[0, at])
        rows.append(row)
    return rows
