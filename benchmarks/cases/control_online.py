"""E7: learning while the log grows: static and dynamic regret, warm fits, tools that exploration
lets in. `control.fit` drives its loop on the host, so these are loops over seeds; every shape is
compiled once.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Options
from jaxsac import control, gibbs
from jaxsac.problems.tool_logs import sparse_tool_log

GROWTH = 1.5
HINDSIGHT = 0.003  # lam of the best policy in hindsight: nearly none


def take(log: control.Log, rows: np.ndarray) -> control.Log:
    """The records at the given positions."""
    return jax.tree.map(lambda field: np.asarray(field)[rows], log)


def join(first: control.Log, second: control.Log) -> control.Log:
    """The records of both, in order; their sets are equally wide."""
    return jax.tree.map(lambda *fields: np.concatenate(fields), first, second)


@jax.jit
def _dual_average_losses(contexts, actions, lam, step, start):
    def body(at, record):
        return control.online.dual_average_step(at, *record, lam=lam, step=step)

    return jax.lax.scan(body, start, (contexts, actions))[1]


@functools.partial(jax.jit, static_argnames="budget")
def _losses(contexts, actions, weights, intercept, *, budget: int):
    scores = jnp.matmul(contexts, weights.T, precision="highest") + intercept[None, :]
    chosen = jnp.where(
        actions >= 0, jnp.take_along_axis(scores, jnp.maximum(actions, 0), axis=1), 0
    )
    return jax.vmap(lambda z: gibbs.log_partition(z, budget))(scores) - jnp.sum(chosen, axis=1)


def losses(policy: control.SparsePolicy, log: control.Log, num_features: int) -> np.ndarray:
    """-log pi(a_t | psi_t) of a full policy, [T]."""
    weights = np.zeros((policy.num_actions, num_features), policy.coef.dtype)
    weights[np.asarray(policy.positions)] = policy.coef
    return np.asarray(
        _losses(
            np.asarray(log.contexts),
            np.asarray(log.actions),
            weights,
            policy.intercept,
            budget=policy.budget,
        )
    )


def regret(
    options: Options, num_actions: int, records: int, shape: dict[str, Any], seeds: int
) -> list[dict[str, Any]]:
    """Static regret of epoch re-solves and of dual averaging against the best fixed policy in
    hindsight; after a change of the truth half way, that of a sliding window against the best
    policy of each half (dynamic).
    """
    common: dict[str, Any] = {"num_actions": num_actions, "budget": shape["budget"]}
    q = shape["num_features"]
    at = np.array([records // 8, records // 4, records // 2, records])
    first, half = records // 32, records // 2
    found: dict[str, list[np.ndarray]] = {}
    for seed in options.progress(range(seeds), "E7, regret"):
        key = jax.random.fold_in(jax.random.key(7), seed)
        truths = [
            sparse_tool_log(
                jax.random.fold_in(key, i), num_records=records, num_actions=num_actions, **shape
            )
            for i in range(2)
        ]
        logs = [control.Log(truth.contexts, truth.actions) for truth in truths]

        def best(log, key=key):
            return losses(control.fit(key, log, lam=HINDSIGHT, tol=1e-4, **common).value, log, q)

        def epochs(log, window, key=key):
            task = control.Task(take(log, np.arange(first)), **common)
            learner = control.online.start_learner(key, task)
            paid = []
            for start in range(first, records, first):
                part = take(log, np.arange(start, min(start + first, records)))
                paid.append(losses(learner.policy, part, q))
                learner = control.online.update_learner(learner, part, window=window, growth=GROWTH)
            return np.concatenate(paid)

        still = logs[0]
        hindsight = best(still)
        found.setdefault("epochs", []).append(
            np.cumsum(epochs(still, None) - hindsight[first:])[at - first - 1]
        )
        start = control.online.dual_average(num_actions, q, shape["budget"])
        paid = np.asarray(
            _dual_average_losses(
                jnp.asarray(still.contexts), jnp.asarray(still.actions), 0.2, 1.0, start
            )
        )
        found.setdefault("dual averaging", []).append(np.cumsum(paid - hindsight)[at - 1])
        # The truth changes after half of the records.
        halves = [take(log, np.arange(half)) for log in logs]
        moving = np.concatenate([best(part) for part in halves])
        drift = join(*halves)
        for name, window in (("drift: all records", None), ("drift: window", records // 4)):
            found.setdefault(name, []).append(
                np.cumsum(epochs(drift, window) - moving[first:])[at - first - 1]
            )
    found["drift: what the window saves"] = [
        a - b for a, b in zip(found["drift: all records"], found["drift: window"], strict=True)
    ]
    rows = []
    for name, values in found.items():
        table = np.stack(values)
        for i, count in enumerate(at):
            row = {
                "learner": name,
                "regret against": "best of each half"
                if name.startswith("drift")
                else "best in hindsight",
                "T": int(count),
            }
            row |= {
                "regret, nats": float(table[:, i].mean()),
                "standard error": float(table[:, i].std(ddof=1) / np.sqrt(seeds)),
            }
            rows.append(
                row
                | {
                    "regret / sqrt(T)": float(table[:, i].mean() / np.sqrt(count)),
                    "M": num_actions,
                    "seeds": seeds,
                }
            )
    return rows


def warm_fits(
    options: Options, cases: tuple[dict[str, Any], ...], repeats: int
) -> list[dict[str, Any]]:
    """A fit after 1 % more records, from the solution without them and at its lam scaled, against
    one from nothing: seconds (medians of interleaved calls, everything compiled before) and
    evaluations of the likelihood; and what the first warm call had to compile.
    """
    rows, key = [], jax.random.key(1)
    for case in options.progress(cases, "E7, warm fits"):
        truth = sparse_tool_log(jax.random.key(7), **case)
        log = control.Log(truth.contexts, truth.actions)
        records = case["num_records"]
        fewer = take(log, np.arange(records - records // 100))
        common: dict[str, Any] = {"num_actions": case["num_actions"], "budget": case["budget"]}
        old = control.fit(key, fewer, **common)
        lam = float(old.stats["lam"]) * np.sqrt(1 - 1 / 100)
        compiled: list[float] = []
        listen = functools.partial(_count_compilations, compiled)
        jax.monitoring.register_event_duration_secs_listener(listen)
        calls = {
            "warm": lambda log=log, lam=lam, state=old.state, common=common: control.fit(
                key, log, lam=lam, state=state, **common
            ),
            "cold": lambda log=log, common=common: control.fit(key, log, **common),
            "cold, lam given": lambda log=log, lam=lam, common=common: control.fit(
                key, log, lam=lam, **common
            ),
        }
        first = calls["warm"]()
        fresh = len(compiled)
        jax.monitoring.unregister_event_duration_listener(listen)
        solutions = {"warm": first} | {
            name: call() for name, call in calls.items() if name != "warm"
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                begin = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begin)
        median = {name: float(np.median(values)) for name, values in times.items()}
        count = {
            name: int(solution.stats["num_evaluations"]) for name, solution in solutions.items()
        }
        row: dict[str, Any] = {
            "M": case["num_actions"],
            "T": records,
            "warm, ms": 1e3 * median["warm"],
            "cold, ms": 1e3 * median["cold"],
        }
        row |= {
            "warm / cold": median["warm"] / median["cold"],
            "warm / cold at the same lam": median["warm"] / median["cold, lam given"],
        }
        row |= {f"evaluations, {name}": count[name] for name in ("warm", "cold")}
        row |= {
            "evaluations, warm / cold": count["warm"] / count["cold"],
            "compilations of the first warm fit": fresh,
        }
        rows.append(row | {"relative gap, warm": float(first.stats["gap"] / first.stats["scale"])})
    return rows


def _count_compilations(found: list[float], event: str, duration_secs: float, **_: Any) -> None:
    if event.endswith("backend_compile_duration"):
        found.append(duration_secs)


def exploration(
    options: Options, num_actions: int, chunk: int, rounds: int, seeds: int
) -> list[dict[str, Any]]:
    """New tools, two of which help: half of the M tools are new, and no record uses them. The
    learner acts by the tools that it kept, and with a probability tries another one; utilities are
    sum_{j in a} <theta_j, psi> + noise, the fit is least squares of them.
    """
    budget, q, noise = 3, 2, 0.5
    old = num_actions // 2
    relevant = np.array([0, 1, old, old + 1])
    draw = jax.jit(jax.vmap(control.online.explore, (0, None, 0, None)))
    rows = []
    for rate in options.progress((0.0, 0.1, 0.3), "E7, exploration"):
        entered, gain = [], []
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            theta = np.zeros((num_actions, q))
            theta[relevant] = 2 * _directions(random, relevant.size, q)

            def world(contexts, actions, theta=theta, random=random):
                value = np.where(
                    actions >= 0,
                    np.einsum("tq,twq->tw", contexts, theta[np.maximum(actions, 0)]),
                    0,
                ).sum(1)
                return value, control.Log(
                    contexts,
                    actions.astype(np.int32),
                    value + noise * random.normal(size=len(value)),
                )

            actions = np.stack([random.permutation(old)[:budget] for _ in range(chunk)])
            _, log = world(random.normal(size=(chunk, q)), actions)
            value = np.zeros(chunk)
            for step in range(rounds):
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(8), seed), step)
                policy = control.fit(
                    key,
                    log,
                    num_actions=num_actions,
                    budget=budget,
                    objective="utility",
                    lam="scaled",
                ).value
                contexts = random.normal(size=(chunk, q))
                chosen = draw(
                    jax.random.split(key, chunk),
                    acting(policy, num_actions, q),
                    jnp.asarray(contexts),
                    rate,
                )[0]
                value, new = world(contexts, np.asarray(chosen))
                log = join(log, new)
            policy = control.fit(
                jax.random.key(9),
                log,
                num_actions=num_actions,
                budget=budget,
                objective="utility",
                lam="scaled",
            ).value
            entered.append(np.isin(relevant[2:], policy.support).mean())
            gain.append(value.mean())
        row: dict[str, Any] = {
            "exploration rate": rate,
            "M": num_actions,
            "T": chunk * (rounds + 1),
        }
        for name, values in {
            "share of the new relevant tools kept": entered,
            "utility of the last round": gain,
        }.items():
            row |= {
                name: float(np.mean(values)),
                f"{name}: standard error": float(np.std(values, ddof=1) / np.sqrt(seeds)),
            }
        rows.append(row | {"seeds": seeds})
    return rows


def acting(
    policy: control.SparsePolicy, num_actions: int, num_features: int
) -> control.SparsePolicy:
    """Sets of the kept tools alone, as one shape: every tool is listed, and those that were not
    kept are out of reach.
    """
    weights = (
        jnp.zeros((num_actions, num_features), policy.coef.dtype)
        .at[policy.positions]
        .set(2 * policy.coef)
    )
    intercept = jnp.full(num_actions, -30.0, weights.dtype).at[policy.positions].set(0.0)
    return dataclasses.replace(
        policy,
        positions=jnp.arange(num_actions, dtype=jnp.int32),
        coef=weights,
        intercept=intercept,
    )


def _directions(random: np.random.Generator, count: int, size: int) -> np.ndarray:
    draws = random.normal(size=(count, size))
    return draws / np.linalg.norm(draws, axis=1, keepdims=True)
