"""Where one solve of the group lasso spends its time."""

import collections
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases.group_lasso_cases import Case
from benchmarks.harness import Options
from jaxsac.group_lasso.methods.host.trace import tracing


def where_the_time_goes(
    case: Case, solve: Callable[[], Any], options: Options
) -> list[dict[str, Any]]:
    """The parts of one solve against two products with all of X: the least that a certified answer
    takes.
    """
    X, r = jnp.asarray(case.X[0], options.dtype), jnp.asarray(case.y[0], options.dtype)
    product = jax.jit(lambda X, r: r @ X)
    floor = 2.0 * options.time({"product": lambda: product(X, r)})["product"].median
    solve()
    runs = 3 if options.smoke else 9
    spent: dict[str, list[float]] = collections.defaultdict(list)
    with tracing(lambda part, seconds: spent[part].append(seconds)):
        start = time.perf_counter()
        for _ in range(runs):
            jax.block_until_ready(solve())
        total = (time.perf_counter() - start) / runs
    parts = {name: sum(times) / runs for name, times in spent.items()} | {
        "host": total - sum(map(sum, spent.values())) / runs,
        "all": total,
    }
    calls = {name: len(times) / runs for name, times in spent.items()}
    return [
        {
            "case": case.name,
            "part": name,
            "calls": calls.get(name, 1.0),
            "ms": 1e3 * part,
            "share": part / total,
            "over_two_passes": part / floor,
        }
        for name, part in parts.items()
    ]
