"""SUBSAMPLE-Q: whole solves against a general MDP solver, sweeps against their floors, gap against
k, learning against m, simulation.
"""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases.subsample_q_agents import dispatch, local_actions, simulation
from benchmarks.cases.subsample_q_dense import against_quantecon, model_of
from benchmarks.harness import Options, Report, measured_rates, paragraphs
from jaxsac import subsample_q
from jaxsac.problems import subsample_q as problems


def run(options: Options) -> Report:
    curves: dict[str, Any] = {}
    tables = {
        "Whole solve against quantecon": against_quantecon(options),
        "Sweeps and solves": sweeps(options),
        "Gap against k": gap_against_k(options, curves),
        "Certificate for many agents": many_agents(options),
        "Sampled operator against m": against_samples(options, curves),
        "Local actions": local_actions(options),
        "Power-of-k dispatch": dispatch(options, curves),
        "Simulation": simulation(options),
    }
    notes = paragraphs(
        """
        Whole solve: the same random model; quantecon gets the dense kernel over histograms, and
        building it is not in its time. Ours includes the host's choice of pivots. Values agree to
        the tolerance of both (column difference). jaxdp: its value iteration, stopped by the sup
        norm, in one compiled loop. Least time of several runs.

        Sweeps: least time of a whole solve over its sweeps (the test of the operator and the
        acceleration included). The flop floor is 2 L (L-1) C(k+L, L) G² at this machine's
        matrix-product rate, the byte floor two passes over N G² numbers for each of the L (L-1)
        shears at its copy rate: neither counts the mixing, the maximum and the history of the
        acceleration.

        Gap against k: U_k and the exact value of the executed policy at one state, n small enough
        for the exact value.

        Demand response with the released constants is degenerate: its best action does not depend
        on the consumers, so every k is optimal and every gap is 0 up to the tolerance; the scarce
        variant is not.

        Certificate for many agents: U_k and a 95 % lower bound from 256 rollouts in counts, mode
        tracking from shares .2, .3, .5.

        Sampled operator: slope of log error against log m, with its standard error over seeds
        (theory: -1/2), in the last column.

        Local actions: value of the k-agent problem and, where agents can choose for themselves, the
        mean return of k's policy on 1,000 agents with its standard error. Dispatch is solved for
        all its queues: its optimum is known (join the shortest queue).

        Power-of-k dispatch: mean jobs of a queue at load .9, each job to the shortest of k queues;
        k = 1 is random dispatch.
        """
    )
    return Report(tables, notes, lambda figure: draw(figure, curves))


def sweeps(options: Options) -> list[dict[str, Any]]:
    sizes = (
        ((4, 6, 0.9),)
        if options.smoke
        else ((5, 10, 0.9), (5, 20, 0.9), (5, 20, 0.999), (5, 30, 0.9), (4, 40, 0.9))
    )
    rates = measured_rates(options.dtype, smoke=options.smoke)
    rows = []
    for L, k, discount in options.progress(sizes, "sweeps"):
        model = model_of(problems.random(0, num_local=L, discount=discount), options)
        plan = subsample_q.plan(model, k, backend="thinning")
        timing = options.time(
            {"solve": lambda m=model, k=k, p=plan: subsample_q.solve(m, k, plan=p)},
            min_seconds=1.0,
            min_repeats=5,
        )["solve"]
        solution = subsample_q.solve(model, k, plan=plan)
        steps, N = int(solution.stats["num_steps"]), solution.value.q.shape[1]
        columns = model.num_global_states**2
        item = np.dtype(options.dtype).itemsize
        rows.append(
            {
                "L": L,
                "k": k,
                "discount": discount,
                "states": model.num_global_states * N,
                "sweeps": steps,
                "solve s": timing.minimum,
                "ms a sweep": 1e3 * timing.minimum / steps,
                "flop floor ms": 2
                * L
                * (L - 1)
                * math.comb(k + L, L)
                * columns
                / rates["gemm_gflop_per_s"]
                / 1e6,
                "byte floor ms": 4
                * L
                * (L - 1)
                * N
                * columns
                * item
                / rates["copy_gb_per_s"]
                / 1e6,
                "first call s": timing.first_call,
                "operator error": float(solution.stats["operator_error"]),
                "certified": int(solution.status) == 0,
            }
        )
    return rows


def gap_against_k(options: Options, curves: dict[str, Any]) -> list[dict[str, Any]]:
    cases: dict[str, tuple[problems.GlobalLocal, int, tuple[int, Any]]] = {
        "mode tracking": (problems.mode_tracking(3), 6 if options.smoke else 32, (0, [1, 1, 1])),
        "admission": (problems.admission(), 3 if options.smoke else 12, (1, [1, 1, 1, 1, 1])),
    }
    if not options.smoke:
        cases["demand response (released)"] = (problems.demand_response(), 3, (2, np.ones(25)))
        cases["demand response (scarce)"] = (
            problems.demand_response(scarce=True),
            3,
            (2, np.ones(25)),
        )
    rows = []
    for name, (problem, n, (start, shares)) in options.progress(list(cases.items()), "gap"):
        model = model_of(problem, options)
        state = subsample_q.population_state(start, shares, n)
        ladder = sorted({k for k in (1, 2, 4, 8, 16) if k <= n} | {n})
        for k in ladder:
            plan = subsample_q.plan(model, k)
            table = subsample_q.solve(model, k, plan=plan).value
            began = time.perf_counter()
            jax.block_until_ready(subsample_q.solve(model, k, plan=plan).value)
            seconds = time.perf_counter() - began
            bounds = subsample_q.certify(
                jax.random.key(0), model, table, n, state, interval="exact"
            )
            numbers = {
                "value": float(bounds.lower),
                "upper": float(bounds.upper),
                "certified gap": float(bounds.gap),
            }
            numbers |= {"solve s": seconds, "form": plan.backend}
            rows.append({"problem": name, "n": n, "k": k} | numbers)
        best = rows[-1]["upper"]
        for row in rows[-len(ladder) :]:
            row["true gap"] = best - row["value"]
    curves["gap"] = rows
    return rows


def many_agents(options: Options) -> list[dict[str, Any]]:
    model = model_of(problems.mode_tracking(3), options)
    rows = []
    sizes = (1, 4) if options.smoke else (1, 4, 16, 64)
    tables = [subsample_q.solve(model, k).value for k in sizes]
    for n in (100,) if options.smoke else (1_000, 1_000_000):
        state = subsample_q.population_state(0, [0.2, 0.3, 0.5], n)
        for k, table in zip(sizes, tables, strict=True):
            own, *larger = [
                subsample_q.certify(
                    jax.random.key(1),
                    model,
                    table,
                    n,
                    state,
                    upper=upper,
                    num_rollouts=8 if options.smoke else 256,
                    interval=interval,
                )
                for upper, interval in (
                    (table, "normal"),
                    (tables[-1], "normal"),
                    (tables[-1], "bounded"),
                )
            ]
            rows.append(
                {
                    "n": n,
                    "k": k,
                    "lower": float(own.lower),
                    "upper": float(own.upper),
                    "certified gap": float(own.gap),
                    f"bound of k = {sizes[-1]}": float(larger[0].gap),
                    "the same for every law": float(larger[1].gap),
                }
            )
    return rows


def against_samples(options: Options, curves: dict[str, Any]) -> list[dict[str, Any]]:
    model, k = model_of(problems.random(1, 3, 3, 3), options), 4
    exact = subsample_q.solve(model, k).value.q
    keys = jax.random.split(jax.random.key(0), 2 if options.smoke else 16)
    sizes = (2, 8) if options.smoke else (4, 16, 64, 256, 1024)
    errors = []
    for m in sizes:
        q = jax.vmap(lambda key, m=m: subsample_q.learn(key, model, k, m).value.q)(keys)
        errors.append(np.asarray(jnp.max(jnp.abs(q - exact[None]), axis=(1, 2, 3))))
    slopes = np.polyfit(np.log(sizes), np.log(np.stack(errors)), 1)[0]  # of each seed
    slope = f"{slopes.mean():.3f} ± {slopes.std(ddof=1) / np.sqrt(len(slopes)):.3f}"
    rows = [
        {
            "m": m,
            "sup error": float(e.mean()),
            "sup error sqrt(m)": float(e.mean() * np.sqrt(m)),
            "seeds": len(keys),
            "slope": slope,
        }
        for m, e in zip(sizes, errors, strict=True)
    ]
    curves["samples"] = rows
    return rows


def draw(figure, curves: dict[str, Any]) -> None:
    (left, middle), (right, last) = figure.subplots(2, 2)
    for name in dict.fromkeys(row["problem"] for row in curves["gap"]):
        rows = [row for row in curves["gap"] if row["problem"] == name]
        ks = [row["k"] for row in rows]
        line = left.plot(ks, [max(row["true gap"], 1e-9) for row in rows], "o-", label=name)[0]
        left.plot(
            ks, [max(row["certified gap"], 1e-9) for row in rows], "--", color=line.get_color()
        )
        middle.loglog(
            ks, [row["solve s"] for row in rows], "o-", color=line.get_color(), label=name
        )
    left.set(
        xscale="log",
        yscale="log",
        ylim=(1e-4, None),
        xlabel="k sampled agents",
        ylabel="gap (dashed: certified)",
    )
    left.legend()
    middle.set(xlabel="k sampled agents", ylabel="time of a solve [s]")
    rows = curves["samples"]
    right.loglog(
        [row["m"] for row in rows],
        [row["sup error"] for row in rows],
        "o-",
        label="sampled operator",
    )
    first = rows[0]
    right.loglog(
        [row["m"] for row in rows],
        [first["sup error"] * (first["m"] / row["m"]) ** 0.5 for row in rows],
        ":",
        label="m^(-1/2)",
    )
    right.set(xlabel="m samples", ylabel="sup error of Q")
    right.legend()
    for n in dict.fromkeys(row["queues"] for row in curves["dispatch"]):
        rows = [row for row in curves["dispatch"] if row["queues"] == n]
        last.semilogx(
            [row["k"] for row in rows],
            [row["mean jobs"] for row in rows],
            "o-",
            label=f"{n:,} queues",
        )
    last.set(xlabel="queues that a job looks at", ylabel="mean jobs of a queue")
    last.legend()
