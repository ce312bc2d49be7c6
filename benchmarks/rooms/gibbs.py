"""Budgeted Gibbs policies: the kernel against a log-space scan and a logsumexp, accuracy to a
million tools, sampling rates, bytes.
"""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import gibbs_layers
from benchmarks.harness import Options, Report, measured_rates, paragraphs, ratio
from jaxsac import gibbs


class Size(NamedTuple):
    rows: int
    tools: int
    budget: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.tools}, B = {self.budget}"


# Sizes with a bound in units of one logsumexp of the same array: value, value and marginals,
# Hessian-vector product (None: no bound).
BOUNDS = {
    Size(64, 4096, 8): (4, 5, 10),
    Size(16, 40_000, 8): (4, 5, 10),
    Size(16, 4096, 32): (12, 18, None),
    Size(1, 1_000_000, 8): (None, None, None),
    Size(1, 1_000_000, 128): (None, None, None),
}
SMOKE = {Size(2, 200, 3): (None, None, None)}


def run(options: Options) -> Report:
    kernel = kernel_times(options, SMOKE if options.smoke else BOUNDS)
    tables = {
        "Kernel, in units of a jitted vmapped logsumexp of the same array": kernel,
        "Memory traffic of the value": traffic(options, kernel),
        "Costs: the log-space programme": cost_times(options),
        "Largest errors over hard inputs": accuracy(options),
        "Largest errors at many tools": large_accuracy(options),
        "Exact sampling": sampling_rates(options),
        "A straight-through step: draws, and the gradient through them": gibbs_layers.layers(
            options
        ),
        "log-probability, entropy and marginals in one call": gibbs_layers.together(options),
        "Many rows of few tools": gibbs_layers.rows_form(options),
        "Batches, value and marginals, B = 8": gibbs_layers.sweep(options),
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    notes = paragraphs(
        f"""
        This process may use {cores} core(s); the bounds are meant for one (`taskset -c 0 python -m
        benchmarks gibbs`).

        Scores N(0, 4). both: value and marginals in one call; hvp: forward over reverse, along a
        random direction.

        simple: the programme over items in log space of SIMPLE, jitted, in a process of its own;
        softjax: SoftSort's relaxed top-k, another function.

        scan: log-space programme over tools as a jitted vmapped lax.scan; fewer repeats.

        Accuracy: against the log-space programme in numpy, in long double for the hard inputs.
        Errors of log Z are over max(1, |log Z|).
        """
    )
    return Report(tables, notes, partial(draw, kernel))


def log_space_scan(z: jax.Array, budget: int) -> jax.Array:
    """The plain programme, E_r <- log(exp E_r + exp(E_(r-1) + z_j)) tool by tool: what the kernel
    is compared with.
    """
    lowest = float(jnp.finfo(z.dtype).min) / 4

    def step(table, score):
        with_tool = jnp.concatenate([jnp.full((1,), lowest, z.dtype), table[:-1] + score])
        return jnp.logaddexp(table, with_tool), None

    start = jnp.full((budget + 1,), lowest, z.dtype).at[0].set(0)
    return jax.nn.logsumexp(jax.lax.scan(step, start, z)[0])


def kernel_times(options: Options, sizes: dict[Size, tuple]) -> list[dict[str, Any]]:
    rows = []
    for size, bounds in options.progress(sizes.items(), "kernel"):
        z, direction = 2 * jax.random.normal(
            jax.random.key(0), (2, size.rows, size.tools), options.dtype
        )
        value = partial(gibbs.log_partition, budget=size.budget)
        product = jax.vmap(lambda z, v, value=value: jax.jvp(jax.grad(value), (z,), (v,))[1])
        functions = {
            "lse": jax.jit(jax.vmap(jax.nn.logsumexp)),
            "value": jax.jit(jax.vmap(value)),
            "both": jax.jit(jax.vmap(jax.value_and_grad(value))),
        }
        thunks = {name: partial(function, z) for name, function in functions.items()}
        times = options.time(thunks | {"hvp": partial(jax.jit(product), z, direction)})
        scan = jax.jit(jax.vmap(partial(log_space_scan, budget=size.budget)))
        slow = options.time(
            {"lse": partial(functions["lse"], z), "scan": partial(scan, z)},
            min_repeats=3,
            min_seconds=1.0,
        )
        row: dict[str, Any] = {"rows x M, B": str(size), "lse_ms": 1e3 * times["lse"].median}
        for name, bound in zip(("value", "both", "hvp"), bounds, strict=True):
            row[name] = ratio(times[name], times["lse"])
            row[f"{name} bound"] = "" if bound is None else bound
        row["scan"] = ratio(slow["scan"], slow["lse"])
        row["scan over value"] = row["scan"] / row["value"]
        row |= {f"first_call_{name}_s": times[name].first_call for name in ("value", "both", "hvp")}
        row["verdict"] = "unstable" if any(time.unstable for time in times.values()) else "stable"
        row["scores"] = size.rows * size.tools
        rows.append(row)
    return rows


def traffic(options: Options, kernel: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Five reads or writes of every score: read for the largest, read and written as weights, read
    for their sum and for the products.
    """
    rate = measured_rates(options.dtype, smoke=options.smoke)["copy_gb_per_s"]
    rows = []
    for row in kernel:
        moved = 5 * row["scores"] * np.dtype(options.dtype).itemsize
        seconds = row["value"] * row["lse_ms"] / 1e3
        rows.append(
            {
                "rows x M, B": row["rows x M, B"],
                "MB": moved / 1e6,
                "GB_per_s": moved / seconds / 1e9,
                "copy GB_per_s": rate,
                "share of copy rate": moved / seconds / 1e9 / rate,
            }
        )
    return rows


def cost_times(options: Options) -> list[dict[str, Any]]:
    rows = []
    for tools, budget in ((50, 8),) if options.smoke else ((1000, 32), (10_000, 64)):
        z = jax.random.normal(jax.random.key(1), (tools,), options.dtype)
        costs = jax.random.randint(jax.random.key(2), (tools,), 0, budget // 2)
        value = jax.jit(lambda z, costs, budget=budget: gibbs.log_partition(z, budget, costs=costs))
        marginals = jax.jit(lambda z, costs, budget=budget: gibbs.marginals(z, budget, costs=costs))
        step = jax.jit(
            jax.grad(
                lambda z, costs, budget=budget: jnp.sum(
                    z * gibbs.straight_through(jax.random.key(3), z, budget, costs=costs)[0]
                )
            )
        )
        times = options.time(
            {
                "value": partial(value, z, costs),
                "marginals": partial(marginals, z, costs),
                "straight-through step": partial(step, z, costs),
            },
            min_seconds=1.0,
        )
        for name, time in times.items():
            rows.append({"M": tools, "budget": budget, "what": name} | time.row())
    return rows


def hard_inputs(tools: int, budget: int) -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=tools)
    yield "N(0, 25)", 5 * normal
    yield "ties", np.round(normal)
    yield "constant 0", np.zeros(tools)
    yield "constant -9", np.full(tools, -9.0)
    yield "one score of 1e4", np.where(np.arange(tools) == tools // 3, 1e4, normal)
    yield "offset 1e9", 5 * normal + 1e9
    yield "offset -1e9", 5 * normal - 1e9
    yield "half masked", np.where(np.arange(tools) % 2, 5 * normal, -np.inf)
    yield "B + 2 heavy, rest -60", np.where(np.arange(tools) < budget + 2, 0.1 * normal, -60.0)
    yield "two levels", np.where(np.arange(tools) % 2, 0.0, -10.0)


def accuracy(options: Options) -> list[dict[str, Any]]:
    sizes = (
        ((60, 3),) if options.smoke else ((10, 8), (4096, 8), (4096, 32), (300, 128), (3000, 128))
    )
    worst: dict[str, dict[str, Any]] = {}
    for tools, budget in options.progress(sizes, "accuracy"):
        for exactly in (False, True):
            solve = jax.jit(
                lambda z, budget=budget, exactly=exactly: (
                    gibbs.log_partition(z, budget, exactly=exactly),
                    gibbs.marginals(z, budget, exactly=exactly),
                )
            )
            for name, z in hard_inputs(tools, budget):
                z = z.astype(options.dtype)
                value, marginals = solve(z)
                expected, expected_marginals = programme(z, budget, exactly)
                error = abs(float(value) - float(expected)) / max(1, abs(float(expected)))
                marginal_error = float(
                    np.max(np.abs(np.asarray(marginals, float) - expected_marginals))
                )
                row = worst.setdefault(
                    name,
                    {"input": name, "log Z": 0.0, "at": "", "marginals": 0.0, "marginals at": ""},
                )
                where = f"M = {tools}, B = {budget}" + (", exactly" if exactly else "")
                if error >= row["log Z"]:
                    row |= {"log Z": error, "at": where}
                if marginal_error >= row["marginals"]:
                    row |= {"marginals": marginal_error, "marginals at": where}
    return list(worst.values())


def programme(z: np.ndarray, budget: int, exactly: bool) -> tuple[Any, np.ndarray]:
    """log Z and marginals by the log-space programme in long double, forwards and backwards, around
    a centre that keeps differences exact.
    """
    wide = np.asarray(z, np.longdouble)
    finite = np.sort(wide[np.isfinite(wide)])[::-1]
    centre = finite[min(budget, len(finite) - 1)]
    degree = np.arange(budget + 1)
    tools = np.flatnonzero(wide > -np.inf)
    tables = np.full((len(tools) + 1, budget + 1), -np.inf, np.longdouble)
    tables[0, 0] = 0
    for step, tool in enumerate(tools):
        tables[step + 1, 0] = 0
        tables[step + 1, 1:] = np.logaddexp(
            tables[step, 1:], tables[step, :-1] + (wide[tool] - centre)
        )
    last = np.where((degree == budget) | (not exactly), tables[-1], -np.inf)
    size = int(np.argmax(np.where(np.isneginf(last), -np.inf, last + degree * centre)))
    rest = np.logaddexp.reduce(last + (degree - size) * centre)
    suffix = np.where((degree == budget) | (not exactly), (degree - size) * centre - rest, -np.inf)
    marginals = np.zeros(len(z))
    for step in range(len(tools) - 1, -1, -1):
        score = wide[tools[step]] - centre
        marginals[tools[step]] = np.exp(np.logaddexp.reduce(suffix[1:] + score + tables[step, :-1]))
        suffix[:-1] = np.logaddexp(suffix[:-1], suffix[1:] + score)
    return size * centre + rest, marginals


def large_accuracy(options: Options) -> list[dict[str, Any]]:
    """log Z, the mean size and three marginals (with and without the tool) at sizes where a table
    over tools is out of reach.
    """
    rows = []
    sizes = ((3000, 4),) if options.smoke else ((100_000, 32), (1_000_000, 8), (1_000_000, 128))
    for tools, budget in options.progress(sizes, "many tools"):
        solve = jax.jit(
            lambda z, budget=budget: (gibbs.log_partition(z, budget), gibbs.marginals(z, budget))
        )
        normal = np.random.default_rng(1).normal(size=tools)
        for name, z in (
            ("N(0, 4)", 2 * normal),
            ("N(0, 1) - log M", normal - np.log(tools)),
            ("constant 0", np.zeros(tools)),
        ):
            z = z.astype(options.dtype)
            value, marginals = (np.asarray(x, float) for x in solve(z))
            logs = lanes_programme(z, budget)
            expected = np.logaddexp.reduce(logs)
            mean_size = np.exp(logs - expected) @ np.arange(budget + 1)
            errors = []
            for tool in (int(np.argmax(z)), 0, tools // 2):
                without = lanes_programme(np.delete(z, tool), budget)[:-1]
                errors.append(
                    abs(
                        marginals[tool]
                        - np.exp(float(z[tool]) + np.logaddexp.reduce(without) - expected)
                    )
                )
            rows.append(
                {
                    "M": tools,
                    "B": budget,
                    "scores": name,
                    "log Z": abs(float(value) - expected) / max(1, abs(expected)),
                    "sum of marginals, relative": abs(marginals.sum() / mean_size - 1),
                    "three marginals": max(errors),
                }
            )
    return rows


def lanes_programme(z: np.ndarray, budget: int) -> np.ndarray:
    """log e_0, …, log e_B by the log-space programme in float64: lanes side by side, then their
    product.
    """
    lanes = 1 << max(len(z).bit_length() - 10, 0)
    padded = np.concatenate([np.asarray(z, float), np.full(-len(z) % lanes, -np.inf)]).reshape(
        -1, lanes
    )
    table = np.full((budget + 1, lanes), -np.inf)
    table[0] = 0
    for scores in padded:
        table[1:] = np.logaddexp(table[1:], table[:-1] + scores)
    while table.shape[1] > 1:
        half = table.shape[1] // 2
        left, right = table[:, :half], table[:, half:]
        table = np.stack(
            [np.logaddexp.reduce(left[: r + 1] + right[r::-1]) for r in range(budget + 1)]
        )
    return table[:, 0]


def sampling_rates(options: Options) -> list[dict[str, Any]]:
    rows = []
    sizes = (
        ((400, 3),) if options.smoke else ((4096, 8), (100_000, 8), (100_000, 32), (1_000_000, 8))
    )
    count = 1000 if options.smoke else 100_000
    for tools, budget in options.progress(sizes, "sampling"):
        draw = jax.jit(lambda key, z, budget=budget: gibbs.sample(key, z, budget, count))
        normal = jax.random.normal(jax.random.key(3), (tools,), options.dtype)
        inputs = {
            "N(0, 4)": 2 * normal,
            "N(0, 1) - log M": normal - float(np.log(tools)),
            "constant 0": jnp.zeros_like(normal),
        }
        key = jax.random.key(4)
        times = options.time(
            {name: partial(draw, key, z) for name, z in inputs.items()},
            min_repeats=5,
            min_seconds=1.0,
        )
        for name, time in times.items():
            rows.append(
                {
                    "M": tools,
                    "B": budget,
                    "scores": name,
                    "samples": count,
                    "samples_per_s": count / time.median,
                }
                | time.row()
            )
    return rows


def draw(kernel: list[dict[str, Any]], figure: Any) -> None:
    axes = figure.subplots()
    place = np.arange(len(kernel))
    for offset, name in enumerate(("value", "both", "hvp", "scan")):
        axes.bar(place + 0.2 * (offset - 1.5), [row[name] for row in kernel], 0.2, label=name)
    axes.set(yscale="log", ylabel="times one logsumexp", xticks=place)
    axes.set_xticklabels([row["rows x M, B"] for row in kernel], fontsize=8)
    axes.legend()
