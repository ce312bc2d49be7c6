"""What a training step asks of budgeted Gibbs policies: gradients through draws, several answers at
once, rows of few tools, batches of every size.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import NOT_RUN, Options, measured_rates, ratio, run_peer
from jaxsac import gibbs

# rows, tools, budget
LAYERS = ((64, 4096, 8), (64, 4096, 32))
# The sweep: at most so many scores at once, which bounds the memory of float64 to a few GB.
BATCHES, TOOLS, SCORES = (1, 64, 4096, 65_536), (64, 4096, 65_536, 1_000_000), 1 << 26


def sweep_sizes(largest: int = SCORES) -> list[tuple[int, int]]:
    """(rows, tools) of the sweep, as far as they hold at most `largest` scores."""
    return [(rows, tools) for tools in TOOLS for rows in BATCHES if rows * tools <= largest]


def straight_through_step(budget: int, exactly: bool) -> Any:
    """A jitted step on rows: exact draws, and the gradient of a loss that is linear in them."""

    def loss(z, key, cotangent):
        draws = gibbs.straight_through(key, z, budget, exactly=exactly)
        return jnp.sum(draws[0] * cotangent)

    return jax.jit(jax.vmap(jax.value_and_grad(loss)))


def layers(options: Options) -> list[dict[str, Any]]:
    """The straight-through step beside its peers: times, and the gradient against SIMPLE's."""
    rows = []
    for count, tools, budget in options.progress(
        ((2, 60, 3),) if options.smoke else LAYERS, "straight-through"
    ):
        z, cotangent = jax.random.normal(jax.random.key(0), (2, count, tools), options.dtype)
        keys = jax.random.split(jax.random.key(1), count)
        steps = {
            name: straight_through_step(budget, name == "exactly")
            for name in ("exactly", "at most")
        }
        lse = jax.jit(jax.vmap(jax.nn.logsumexp))
        times = options.time(
            {"lse": partial(lse, z)}
            | {name: partial(step, z, keys, cotangent) for name, step in steps.items()}
        )
        gradient = np.asarray(steps["exactly"](z, keys, cotangent)[1], float)
        size = {"rows x M, B": f"{count} x {tools}, B = {budget}"}
        for name in steps:
            rows.append(
                size
                | {"what": f"jaxsac, {name}"}
                | _figures(times[name].median, times)
                | {"first_call_s": times[name].first_call}
            )
        settings = {
            "budget": budget,
            "dtype": options.dtype,
            "min_repeats": 3 if options.smoke else 20,
            "min_seconds": 0.05 if options.smoke else 2.0,
        }
        arrays = {"z": z, "cotangent": cotangent}
        # This interpreter's jax, as ours: the peers' environment holds it back.
        for peer in ("simple", "softjax"):
            found = run_peer(f"gibbs/{peer}", arrays, settings)
            row: dict[str, Any] = size | {"what": peer}
            if not found.ok:
                rows.append(row | {"ms": found.status})
                continue
            row |= _figures(float(np.median(found.numbers["seconds"])), times)
            row["first_call_s"] = found.numbers["first_call"]
            if peer == "simple":
                gaps = np.abs(gradient - found.arrays["gradient"])
                row["gradient, difference"] = float(gaps.max() / np.abs(gradient).max())
                assert np.all(found.arrays["size"] == budget)
            rows.append(row)
    return rows


def _figures(seconds: float, times: dict[str, Any]) -> dict[str, Any]:
    return {
        "ms": 1e3 * seconds,
        "over lse": seconds / times["lse"].median,
        "over ours": seconds / times["exactly"].median,
    }


def together(options: Options) -> list[dict[str, Any]]:
    """log-probability, entropy and marginals of the same scores in one call, over marginals
    alone.
    """
    rows = []
    for count, tools, budget in ((2, 60, 3),) if options.smoke else LAYERS:
        z = 2 * jax.random.normal(jax.random.key(0), (count, tools), options.dtype)
        sets = jax.vmap(lambda z, budget=budget: gibbs.mode(z, budget))(z)

        def combined(z, sets, budget=budget):
            policy = gibbs.Policy(z, budget=budget)
            return policy.log_prob(sets), policy.entropy(), policy.marginals()

        alone = jax.jit(jax.vmap(partial(gibbs.marginals, budget=budget)))
        times = options.time(
            {
                "marginals": partial(alone, z),
                "together": partial(jax.jit(jax.vmap(combined)), z, sets),
            }
        )
        rows.append(
            {
                "rows x M, B": f"{count} x {tools}, B = {budget}",
                "marginals_ms": 1e3 * times["marginals"].median,
                "together_ms": 1e3 * times["together"].median,
                "together over marginals": ratio(times["together"], times["marginals"]),
                "bound": 1.5,
                "first_call_together_s": times["together"].first_call,
            }
        )
    return rows


def rows_form(options: Options) -> list[dict[str, Any]]:
    """Many rows of few tools: `gibbs.rows`, with the rows as the vector axis, and the mapped
    function.
    """
    rows = []
    sizes = ((20, 10, 3),) if options.smoke else ((10_000, 20, 5), (10_000, 100, 5))
    for count, tools, budget in options.progress(sizes, "rows"):
        z = jax.random.normal(jax.random.key(0), (count, tools), options.dtype)
        rest = jnp.zeros((budget + 1, count), z.dtype)
        total = lambda z, rest, budget=budget: jnp.sum(gibbs.rows.log_partition(z, rest, budget))  # noqa: E731
        mapped = jax.vmap(partial(gibbs.log_partition, budget=budget))
        times = options.time(
            {
                "rows": partial(jax.jit(jax.value_and_grad(total)), z.T, rest),
                "vmap": partial(
                    jax.jit(jax.value_and_grad(lambda z, mapped=mapped: jnp.sum(mapped(z)))), z
                ),
            }
        )
        rows.append(
            {
                "rows x M, B": f"{count} x {tools}, B = {budget}",
                "rows_ms": 1e3 * times["rows"].median,
                "vmap_ms": 1e3 * times["vmap"].median,
                "rows over vmap": ratio(times["rows"], times["vmap"]),
            }
        )
    return rows


def sweep(options: Options) -> list[dict[str, Any]]:
    """log Z and marginals of batches, B = 8, and the share of the copy rate that reading the scores
    and writing the marginals once would have.
    """
    rate = measured_rates(options.dtype, smoke=options.smoke)["copy_gb_per_s"]
    on_cpu = jax.devices()[0].platform == "cpu"
    sizes = [(1, 64), (2, 64)] if options.smoke else sweep_sizes(1 << 22 if on_cpu else SCORES)
    rows = []
    for count, tools in options.progress(sizes, "batches"):
        z = jax.random.normal(jax.random.key(0), (count, tools), options.dtype)
        both = jax.jit(jax.vmap(jax.value_and_grad(partial(gibbs.log_partition, budget=8))))
        time = options.time({"both": partial(both, z)}, min_seconds=0.5)["both"]
        moved = 2 * z.nbytes / time.median / 1e9
        rows.append(
            {
                "rows": count,
                "M": tools,
                "scores_per_s": z.size / time.median,
                "GB_per_s": moved,
                "share of copy rate": moved / rate,
            }
            | time.row()
        )
    absent = [size for size in sweep_sizes(1 << 62) if size not in sizes]
    return rows + [{"rows": count, "M": tools, "verdict": NOT_RUN} for count, tools in absent]
