"""Sparse agentic control: the imitation fit up to a million tools, its certificate recomputed
densely, tuning, memory.
"""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import NOT_RUN, Options, Report, paragraphs
from jaxsac import control, gibbs
from jaxsac.problems.tool_logs import ToolLog, sparse_tool_log

FEATURES, BUDGET, RELEVANT = 16, 5, 20
SHARES = (0.1, 0.05)  # of lam_max
SMOOTHING = 1.0


def run(options: Options) -> Report:
    records = 500 if options.smoke else 10_000
    sizes = (200, 2_000) if options.smoke else (10_000, 100_000, 1_000_000)
    fits = fit_times(options, records, sizes)
    tables = {
        "Imitation fit, intercepts per tool": fits,
        "Other intercepts, simulated lam": other_intercepts(options, records, sizes[-1]),
        "lam": tuning_times(options, records, sizes),
        "Certificate recomputed with every tool in the kernel, float64": [
            dense_check(options, records, sizes[0])
        ],
        "Peak memory of a process that makes the log, tunes and fits": [
            memory(options, records, sizes[-1])
        ],
    }
    notes = paragraphs(
        f"""
        T = {records}, q = {FEATURES}, B = {BUDGET}, {RELEVANT} relevant tools, contexts N(0, I),
        one seed; the time is that of control.fit on numpy arrays: checks, summary of the log, fit,
        certificate over all tools, policy.

        gap: relative to the objective of the null model. first_call_ms includes every compilation;
        other sizes then reuse most of them.

        ratio: median over the median at the smallest M in the same interleaved run.
        """
    )
    return Report(tables, notes, partial(draw, fits))


def simulated_log(records: int, num_actions: int, dtype: str) -> tuple[ToolLog, control.Log]:
    truth = sparse_tool_log(
        jax.random.key(0),
        num_records=records,
        num_actions=num_actions,
        num_features=FEATURES,
        budget=BUDGET,
        num_relevant=RELEVANT,
        mean_size=3.6,
    )
    return truth, control.Log(truth.contexts.astype(dtype), truth.actions, truth.utilities)


def fit_times(options: Options, records: int, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    cases, found = {}, {}
    for num_actions in sizes:
        truth, log = simulated_log(records, num_actions, options.dtype)
        highest = float(control.lam_max(log, num_actions=num_actions, budget=BUDGET))
        chosen = control.fit(
            jax.random.key(1), log, num_actions=num_actions, budget=BUDGET, max_steps=0
        ).stats["lam"]
        for name, lam in [("simulated", float(chosen))] + [
            (f"{share} lam_max", share * highest) for share in SHARES
        ]:
            fit = partial(
                control.fit, jax.random.key(1), log, num_actions=num_actions, budget=BUDGET, lam=lam
            )
            cases[num_actions, name], found[num_actions, name] = fit, (truth, lam, highest, fit())
    times = options.time(
        {str(case): lambda fit=fit: fit().value for case, fit in cases.items()}, min_repeats=7
    )
    rows = []
    for case in cases:
        truth, lam, highest, solution = found[case]
        support = np.asarray(solution.value.support)
        rows.append(
            {
                "M": case[0],
                "lam": case[1],
                "lam / lam_max": lam / highest,
                "mean set": float((truth.actions >= 0).sum(1).mean()),
                "status": int(solution.status),
                "relative gap": float(solution.stats["gap"] / solution.stats["scale"]),
                "steps": int(solution.stats["num_steps"]),
                "evaluations": int(solution.stats["num_evaluations"]),
                "support": support.size,
                "false +": int((~np.isin(support, truth.support)).sum()),
                "false -": int((~np.isin(truth.support, support)).sum()),
                "ratio": times[str(case)].median / times[str((sizes[0], case[1]))].median,
                **times[str(case)].row(),
            }
        )
    return rows


def other_intercepts(options: Options, records: int, num_actions: int) -> list[dict[str, Any]]:
    truth, log = simulated_log(records, num_actions, options.dtype)
    rows = []
    for intercept in ("shared", "none"):
        start = time.perf_counter()
        fit = partial(
            control.fit,
            jax.random.key(1),
            log,
            num_actions=num_actions,
            budget=BUDGET,
            intercept=intercept,
        )
        solution = fit()
        first = time.perf_counter() - start
        lam = float(solution.stats["lam"])
        times = options.time(
            {intercept: lambda fit=fit, lam=lam: fit(lam=lam).value}, min_repeats=5
        )
        support = np.asarray(solution.value.support)
        rows.append(
            {
                "intercept": intercept,
                "M": num_actions,
                "relative gap": float(solution.stats["gap"] / solution.stats["scale"]),
                "steps": int(solution.stats["num_steps"]),
                "support": support.size,
                "false +": int((~np.isin(support, truth.support)).sum()),
                "first fit with simulated lam, s": first,
                **times[intercept].row(),
            }
        )
    return rows


def tuning_times(options: Options, records: int, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    thunks = {}
    for num_actions in sizes:
        _, log = simulated_log(records, num_actions, options.dtype)
        common = {"num_actions": num_actions, "budget": BUDGET}
        thunks[f"lam_max, M = {num_actions}"] = partial(control.lam_max, log, **common)
        thunks[f"simulated (500 draws), M = {num_actions}"] = partial(
            lambda log, **words: control.simulated_lam(
                jax.random.key(1), control.Task(log, **words)
            ),
            log,
            **common,
        )
    return [
        {"what": name, **timing.row()}
        for name, timing in options.time(thunks, min_repeats=5).items()
    ]


def dense_check(options: Options, records: int, num_actions: int) -> dict[str, Any]:
    """The gap of the returned policy from `gibbs.marginals` on all M scores of every record: no
    working set, no groups.
    """
    if options.dtype != "float64":
        return {"M": num_actions, "relative gap": NOT_RUN, "why": "needs float64"}
    _, log = simulated_log(records, num_actions, "float64")
    solution = control.fit(jax.random.key(1), log, num_actions=num_actions, budget=BUDGET)
    policy, lam = solution.value, float(solution.stats["lam"])
    weights = np.zeros((num_actions, FEATURES))
    weights[np.asarray(policy.support)] = policy.coef
    intercept = np.asarray(policy.intercept)
    actions, contexts = np.asarray(log.actions), np.asarray(log.contexts)
    value = entropy = load = 0.0
    use, features, sums = np.zeros(num_actions), np.zeros_like(weights), np.zeros_like(weights)
    kernel = jax.jit(
        jax.vmap(lambda z: (gibbs.log_partition(z, BUDGET), gibbs.marginals(z, BUDGET)))
    )
    highest = intercept.copy()
    for rows in np.split(np.arange(records), np.arange(250, records, 250)):
        scores = contexts[rows] @ weights.T + intercept
        partition, marginals = (np.asarray(part) for part in kernel(jnp.asarray(scores)))
        chosen = np.zeros_like(scores)
        row, slot = np.nonzero(actions[rows] >= 0)
        chosen[row, actions[rows][row, slot]] = 1
        value += (partition - (chosen * scores).sum(1)).sum() / records
        entropy += (partition - (marginals * scores).sum(1)).sum() / records
        use += (marginals - chosen).sum(0) / records
        features += marginals.T @ contexts[rows] / records
        sums += chosen.T @ contexts[rows] / records
        size = marginals.sum(1)
        load = max(load, float((size / (BUDGET - size)).max()))
        highest = np.maximum(highest, scores.max(0))
    mean_size = (actions >= 0).sum(1).mean()
    prior, weight = min(max(mean_size, 0.5), BUDGET - 0.5) / num_actions, SMOOTHING / records
    expected = 1 / (1 + np.exp(-intercept))
    soft = np.logaddexp(0, intercept)
    objective = (
        value
        + weight * (soft - prior * intercept).sum()
        + lam * np.linalg.norm(weights, axis=1).sum()
    )
    entropy += weight * (soft - expected * intercept).sum()
    counts = np.bincount(actions[actions >= 0], minlength=num_actions) / records + weight * prior
    alpha = counts / (
        use
        + np.bincount(actions[actions >= 0], minlength=num_actions) / records
        + weight * expected
    )
    rise = np.maximum(alpha - 1, 0)
    tau = max((1 - alpha).max(), (rise * np.exp(highest)).max(), rise.max() * load)
    largest = np.linalg.norm(alpha[:, None] * features - sums, axis=1).max()
    dual = min(1, lam / largest) * (1 - tau) * entropy
    scale = float(solution.stats["scale"])
    return {
        "M": num_actions,
        "relative gap": (objective - dual) / scale,
        "as reported": float(solution.stats["gap"]) / scale,
        "objective - reported": objective - float(solution.stats["objective"]),
    }


def memory(options: Options, records: int, num_actions: int) -> dict[str, Any]:
    """In a process of its own, so that nothing else counts; VmHWM includes the interpreter, numpy,
    jax and the compiler.
    """
    arguments = [
        sys.executable,
        "-m",
        "benchmarks.rooms.control",
        str(records),
        str(num_actions),
        options.dtype,
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        return {
            "M": num_actions,
            "peak RSS, MB": NOT_RUN,
            "why": done.stderr.strip().splitlines()[-1],
        }
    return json.loads(done.stdout)


def _peak_memory() -> float:
    """VmHWM in MB; getrusage would hand on the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


def _memory_alone(records: int, num_actions: int, dtype: str) -> dict[str, Any]:
    start = time.perf_counter()
    jax.config.update("jax_enable_x64", dtype == "float64")
    base = _peak_memory()
    _, log = simulated_log(records, num_actions, dtype)
    solution = control.fit(jax.random.key(1), log, num_actions=num_actions, budget=BUDGET)
    peak = _peak_memory()
    return {
        "M": num_actions,
        "peak RSS, MB": peak,
        "after the imports, MB": base,
        "relative gap": float(solution.stats["gap"] / solution.stats["scale"]),
        "cold start to policy, s": time.perf_counter() - start,
    }


def draw(rows: list[dict[str, Any]], figure: Any) -> None:
    axes = figure.subplots()
    for lam in dict.fromkeys(row["lam"] for row in rows):
        chosen = [row for row in rows if row["lam"] == lam]
        axes.plot(
            [row["M"] for row in chosen],
            [row["median_ms"] / 1e3 for row in chosen],
            "o-",
            label=f"lam = {lam}",
        )
    axes.set(
        xscale="log",
        xlabel="number of tools M",
        ylabel="seconds",
        title="Certified imitation fit",
        ylim=(0, None),
    )
    axes.legend()


if __name__ == "__main__":
    print(json.dumps(_memory_alone(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
