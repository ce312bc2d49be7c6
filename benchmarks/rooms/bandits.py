"""Sparse bandits: simulated steps per second, the greedy oracle, LinUCB beside other libraries, the
paper's experiments, real ratings.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases.bandits_experiments import (
    DELTA,
    SIGMA,
    experiments,
    exponents,
    random_parameters,
    ratings,
    smallest,
)
from benchmarks.cases.bandits_streams import DIMENSION, streams
from benchmarks.harness import Options, Report, paragraphs
from jaxsac import bandits
from jaxsac.problems import bandits as problems

SPARSITY = 5
AT_ONCE, NEVER = (
    0.0,
    1e6,
)  # radius scales for which the support is locked after the first cycle, and never


def run(options: Options) -> Report:
    dtype = jnp.dtype(options.dtype)
    curves: dict[str, Any] = {}
    tables = {
        "Simulated steps": throughput(options, dtype),
        "Greedy oracle": greedy_oracle(options, dtype),
        "LinUCB and LinTS, 10 arms": streams(options, dtype),
        "The paper's experiments": experiments(options, dtype, curves),
        "Share of random parameters locked within 2,000 steps": random_parameters(options, dtype),
        "Growth of the regret": exponents(options, dtype),
        "Real ratings": ratings(options, dtype),
    }
    notes = paragraphs(
        """
        Simulated steps: d = 20, s = 5, theta = (1, .95, .9, .85, .8 | .3, .28, ..., .02), sigma =
        0.1, delta = 0.05; radius 'l2' times 0 (locked after the first cycle) or times 10^6 (never
        locked): throughput of the two extremes, not statements about regret.

        normals: the engine's exploration noise as a share of the Gaussian draws that 1,000 keys,
        160 draws each, give alone.

        The numpy loops run the same algorithms, one trial at a time: what users write without a
        library.

        The other libraries keep one parameter for each arm, ours and the numpy loop share one:
        other algorithms, no like-for-like.

        The paper's own radius ('l2', scale 1) hardly locks within 2,000 steps for d >= 10; each
        experiment names its radius and scale.

        Below scale 1 a lock is not proved: the share of wrong locks is in the table.
        """
    )
    return Report(tables, notes, lambda figure: draw(figure, curves))


def throughput(options: Options, dtype) -> list[dict[str, Any]]:
    trials = 20 if options.smoke else 1000
    theta = jnp.asarray(
        np.r_[np.linspace(1, 0.8, SPARSITY), np.linspace(0.3, 0.02, DIMENSION - SPARSITY)], dtype
    )
    keys = jax.random.split(jax.random.key(0), trials)
    ball, ellipsoid = (
        bandits.Ball(),
        bandits.Ellipsoid(problems.unit_diagonal_matrix(jax.random.key(1), DIMENSION, dtype=dtype)),
    )
    common: dict[str, Any] = {"sparsity": SPARSITY, "sigma": SIGMA, "delta": DELTA}
    long = 10**4 if options.smoke else 10**6
    cases = {
        "APSEE ball, locked, s normals": (
            bandits.apsee(ball, radius_scale=AT_ONCE, **common),
            2000,
            "support",
        ),
        "APSEE ball, locked": (bandits.apsee(ball, radius_scale=AT_ONCE, **common), 2000, "all"),
        "APSEE ball, never locked": (
            bandits.apsee(ball, radius_scale=NEVER, **common),
            2000,
            "all",
        ),
        "APSEE ball, locked, long": (
            bandits.apsee(ball, radius_scale=AT_ONCE, **common),
            long,
            "all",
        ),
        "APSEE ball, locked, long, s normals": (
            bandits.apsee(ball, radius_scale=AT_ONCE, **common),
            long,
            "support",
        ),
        "APSEE-G ellipsoid, locked": (
            bandits.apsee_greedy(ellipsoid, radius_scale=AT_ONCE, **common),
            2000,
            "all",
        ),
        "APSEE-G ellipsoid, never locked": (
            bandits.apsee_greedy(ellipsoid, radius_scale=NEVER, **common),
            2000,
            "all",
        ),
    }

    cases = smallest(options, cases, 2)

    def simulator(algorithm, horizon, draws):
        def one(key):
            return bandits.simulate(
                key, algorithm, theta, sigma=SIGMA, horizon=horizon, draws=draws, benchmark="greedy"
            )

        start = time.perf_counter()
        compiled = jax.jit(jax.vmap(one)).lower(keys).compile()
        return compiled, time.perf_counter() - start

    programs: dict[str, Any] = {name: simulator(*case) for name, case in cases.items()}
    thunks: dict[str, Any] = {
        name: partial(program, keys) for name, (program, _) in programs.items()
    }
    normals = jax.jit(
        lambda keys, c: jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, c), (8, DIMENSION), dtype)
        )(keys)
    )
    thunks["normals"] = lambda: normals(keys, 1)
    times = options.time(thunks, min_seconds=4.0)
    normal_rate = trials * 8 * DIMENSION / times["normals"].minimum
    rows = []
    for name, (_, horizon, draws) in cases.items():
        result = thunks[name]()
        locked = bool(np.all(np.asarray(result.locked)))
        # Cycles of one lane: T / d without exploitation, else the c with d c + c (c + 1) / 2 = T.
        cycles = (
            np.sqrt((DIMENSION + 0.5) ** 2 + 2 * horizon) - DIMENSION - 0.5
            if locked
            else horizon / DIMENSION
        )
        best = times[name].minimum
        rows.append(
            {
                "case": name,
                "T": horizon,
                "trials": trials,
                "locked": f"{np.mean(np.asarray(result.locked)):.0%}",
                "Msteps/s (best)": trials * horizon / best / 1e6,
                "Msteps/s (median)": trials * horizon / times[name].median / 1e6,
                "Mtrial-cycles/s": trials * cycles / best / 1e6,
                "normals": f"{trials * cycles * DIMENSION / best / normal_rate:.0%}"
                if draws == "all"
                else "",
                "draws": draws,
                "compile s": programs[name][1],
                "bytes/trial": programs[name][0].memory_analysis().temp_size_in_bytes / trials,
                "verdict": "unstable" if times[name].unstable else "stable",
            }
        )
    rows.append({"case": "normals alone", "trials": trials, "M/s": normal_rate / 1e6})
    for name, scale in {
        "numpy loop of APSEE, ball, locked": AT_ONCE,
        "numpy loop of APSEE, ball, never locked": NEVER,
    }.items():
        horizon = 200 if options.smoke else 2000
        runs = [
            numpy_apsee(
                np.asarray(theta, np.float64), SPARSITY, horizon, scale, np.random.default_rng(seed)
            )
            for seed in range(20)
        ]
        rates = sorted(horizon / seconds / 1e6 for seconds in runs)
        rows.append(
            {
                "case": name,
                "T": horizon,
                "trials": 1,
                "Msteps/s (best)": rates[-1],
                "Msteps/s (median)": rates[len(rates) // 2],
            }
        )
    return rows


def numpy_apsee(theta, sparsity: int, horizon: int, scale: float, generator) -> float:
    """Seconds of APSEE on the unit ball, a step at a time."""
    start, d = time.perf_counter(), theta.shape[0]
    sums, support, optimum, regret, t, c = (
        np.zeros(d),
        None,
        np.linalg.norm(np.sort(np.abs(theta))[-sparsity:]),
        0.0,
        0,
        1,
    )
    while t < horizon:
        for i in range(d):
            if t == horizon:
                break
            sums[i] += theta[i] + SIGMA * generator.normal()
            regret += optimum - theta[i]
            t += 1
        estimate = sums / c
        if support is None:
            size = np.abs(estimate)
            order = np.argsort(-size)
            radius = scale * SIGMA * np.sqrt(2 * d * np.log(np.pi**2 * d * c**2 / (3 * DELTA)) / c)
            if size[order[sparsity - 1]] - size[order[sparsity]] > 2 * radius:
                support = order[:sparsity]
        if support is not None:
            action = np.zeros(d)
            action[support] = estimate[support] / np.linalg.norm(estimate[support])
            for _ in range(min(c, horizon - t)):
                regret += optimum - theta @ action
                t += 1
        c += 1
    return time.perf_counter() - start


def greedy_oracle(options: Options, dtype) -> list[dict[str, Any]]:
    """The incremental greedy, and the naive one that evaluates every extension afresh; they must
    choose alike.
    """
    trials = 20 if options.smoke else 1000
    ellipsoid = bandits.Ellipsoid(
        problems.unit_diagonal_matrix(jax.random.key(1), DIMENSION, dtype=dtype)
    )
    thetas = jax.random.normal(jax.random.key(2), (trials, DIMENSION), dtype)
    incremental = jax.jit(
        jax.vmap(lambda theta: ellipsoid.greedy(theta, SPARSITY), in_axes=-1, out_axes=-1)
    )
    naive = jax.jit(jax.vmap(lambda theta: bandits.ActionSet.greedy(ellipsoid, theta, SPARSITY)))
    columns = thetas.T
    times = options.time(
        {"incremental": lambda: incremental(columns), "naive": lambda: naive(thetas)}
    )
    alike = np.mean(
        np.all(
            np.asarray(naive(thetas).indices) == np.asarray(incremental(columns).indices).T, axis=1
        )
    )
    return [
        {
            "oracle": name,
            "set": "ellipsoid, d = 20, s = 5",
            "batch": trials,
            "us/call (best)": timing.minimum / trials * 1e6,
            "us/call (median)": timing.median / trials * 1e6,
            "choose alike": f"{alike:.1%}",
        }
        for name, timing in times.items()
    ]


def draw(figure, curves: dict[str, Any]) -> None:
    """Cumulative, normalised and average regret; the choice of the basis; support recovery; long
    runs.
    """
    axes = figure.subplots(2, 3).ravel()

    def lines(axis, names, scale):
        for name in names:
            times, mean, _ = curves[name]
            axis.plot(times, mean / scale(times), label=name, lw=1)
        axis.set(xscale="log", xlabel="step")

    shortest = min(times[-1] for times, _, _ in curves.values())
    short = [name for name, (times, _, _) in curves.items() if times[-1] == shortest]
    first = [
        name for name in short if name.startswith(("E1", "E4", "E5", "E6", "E2TC", "optimistic"))
    ]
    bases = [
        name for name in short if name.startswith(("E1 ellipsoid", "E2 ")) and "proved" not in name
    ]
    scales = {
        "cumulative regret": np.ones_like,
        "regret / sqrt(t)": np.sqrt,
        "average regret": lambda t: t,
    }
    for axis, (title, scale) in zip(axes, scales.items(), strict=False):
        lines(axis, first, scale)
        axis.set_title(title)
    lines(axes[3], bases, np.sqrt)
    axes[3].set_title("bases, regret / sqrt(t)")
    for name in (name for name in curves if name.startswith(("E3", "box"))):
        axes[4].plot(
            np.sort(curves[name][2]), np.linspace(0, 1, len(curves[name][2])), label=name, lw=1
        )
    axes[4].set(title="share of runs locked", xlabel="step")
    lines(axes[5], [name for name in curves if name not in short], lambda t: t ** (2 / 3))
    axes[5].set_title("long runs, regret / t^(2/3)")
    for axis in (axes[0], *axes[3:]):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=5)
