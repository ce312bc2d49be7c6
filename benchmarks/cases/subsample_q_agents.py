"""SUBSAMPLE-Q: agents that choose for themselves, dispatch to the shortest of k queues, and
simulation.
"""

import functools
from typing import Any

import jax
import numpy as np

from benchmarks.cases.subsample_q_dense import model_of
from benchmarks.harness import Options
from jaxsac import subsample_q
from jaxsac.problems import subsample_q as problems


def local_actions(options: Options) -> list[dict[str, Any]]:
    squeeze, explore = problems.gaussian_squeeze(slip=0.2), problems.constrained_exploration()
    cases: list[tuple[str, problems.LocalActions, int]] = [
        ("squeeze", squeeze, 2),
        ("exploration", explore, 2),
    ]
    cases += [("dispatch", problems.dispatch(2), 2)]
    if not options.smoke:
        cases += [("squeeze", squeeze, k) for k in (1, 4, 6)] + [
            ("exploration", explore, k) for k in (1, 3)
        ]
        cases += [("dispatch", problems.dispatch(k), k) for k in (3, 5)]
    rows = []
    for name, problem, k in options.progress(
        sorted(cases, key=lambda case: (case[0], case[2])), "local actions"
    ):
        fields = problem._asdict()
        arrays = {key: np.asarray(fields.pop(key), options.dtype) for key in list(fields)[:4]}
        model = subsample_q.LocalActionModel(**arrays, **fields)
        timing = options.time(
            {"solve": lambda m=model, k=k: subsample_q.solve(m, k)}, min_seconds=0.2, min_repeats=3
        )["solve"]
        table = subsample_q.solve(model, k).check().value
        L, n = model.num_local_states, 100 if options.smoke else 1_000
        row = {
            "problem": name,
            "k": k,
            "assignments": table.assignments.shape[0],
            "solve s": timing.minimum,
            "value": float(table.value[0, 0]),
        }
        row |= {"return on 1,000 agents": "", "± error": ""}
        if model.joint is None:
            state = (
                0,
                n * np.eye(L, dtype=np.int32)[L - 1],
            )  # the first histogram: everybody in the last state
            keys = jax.random.split(jax.random.key(0), 4 if options.smoke else 64)
            one = jax.jit(
                lambda key, m=model, t=table, n=n, s=state: (
                    subsample_q.simulate(key, m, t, n, 90, s).discounted_return
                )
            )
            returns = np.asarray(jax.vmap(one)(keys))
            row |= {
                "return on 1,000 agents": float(returns.mean()),
                "± error": float(returns.std(ddof=1) / np.sqrt(len(keys))),
            }
        rows.append(row)
    return rows


def dispatch(options: Options, curves: dict[str, Any]) -> list[dict[str, Any]]:
    sizes = (
        ((50, (1, 2)),) if options.smoke else ((1_000, (1, 2, 3, 5, 10, 1_000)), (100_000, (1, 2)))
    )
    rows = []
    for n, ks in options.progress(sizes, "dispatch"):
        for k in ks:
            jobs, lost = zip(
                *(
                    problems.power_of_k(seed, k, n, steps=40 if options.smoke else 400)
                    for seed in range(3)
                ),
                strict=True,
            )
            error = float(np.std(jobs, ddof=1) / np.sqrt(len(jobs)))
            rows.append(
                {
                    "queues": n,
                    "k": k,
                    "mean jobs": float(np.mean(jobs)),
                    "± error": error,
                    "lost": float(np.mean(lost)),
                }
            )
    curves["dispatch"] = rows
    return rows


def simulation(options: Options) -> list[dict[str, Any]]:
    sizes = ((3, 4),) if options.smoke else ((3, 8), (5, 20))
    rollouts, horizon = (4, 5) if options.smoke else (256, 100)
    rows: list[dict[str, Any]] = []
    for L, k in options.progress(sizes, "simulation"):
        model = model_of(problems.random(2, num_local=L), options)
        table = subsample_q.solve(model, k).value
        keys = jax.random.split(jax.random.key(0), rollouts)
        thunks = {str(n): rollouts_of(model, table, n, horizon, keys) for n in (1_000, 1_000_000)}
        times = options.time(thunks)
        for n, timing in times.items():
            rows.append(
                {
                    "L": L,
                    "k": k,
                    "n": int(n),
                    "rollouts": rollouts,
                    "environment steps a second": rollouts * horizon / timing.minimum,
                }
            )
            rows[-1]["cost over n = 1,000"] = timing.minimum / times["1000"].minimum
    return rows


def rollouts_of(model, table, n: int, horizon: int, keys):
    state = subsample_q.population_state(0, np.ones(model.num_local_states), n)
    batch = jax.jit(
        jax.vmap(
            lambda key: subsample_q.simulate(key, model, table, n, horizon, state).discounted_return
        )
    )
    return functools.partial(batch, keys)
