"""Where one solve of the group lasso spends its time."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases.group_lasso_cases import Case
from benchmarks.harness import Options
from jaxsac.group_lasso.methods.host import check as host_check
from jaxsac.group_lasso.methods.host import kernels as rounds
from jaxsac.group_lasso.methods.host import loss as host_loss
from jaxsac.group_lasso.methods.host import rounds as working_set
from jaxsac.group_lasso.methods.host import steps as host_steps


@contextlib.contextmanager
def watched(pieces: dict[Any, tuple[str, ...]]) -> Iterator[dict[str, list[float]]]:
    """Seconds of every call of these pieces of the host-driven method, by module, each waited
    for.
    """
    spent: dict[str, list[float]] = collections.defaultdict(list)
    plain = {
        (module, name): getattr(module, name) for module, names in pieces.items() for name in names
    }

    def watch(name, function):
        def call(*arguments, **keywords):
            start = time.perf_counter()
            result = jax.block_until_ready(function(*arguments, **keywords))
            spent[name].append(time.perf_counter() - start)
            return result

        return call

    try:
        for (module, name), function in plain.items():
            setattr(module, name, watch(name, function))
        yield spent
    finally:
        for (module, name), function in plain.items():
            setattr(module, name, function)


def where_the_time_goes(
    case: Case, solve: Callable[[], Any], options: Options
) -> list[dict[str, Any]]:
    """The pieces of one solve against two products with all of X: the least that a certified answer
    takes.
    """
    X, r = jnp.asarray(case.X[0], options.dtype), jnp.asarray(case.y[0], options.dtype)
    product = jax.jit(lambda X, r: r @ X)
    floor = 2.0 * options.time({"product": lambda: product(X, r)})["product"].median
    solve()
    runs = 3 if options.smoke else 9
    pieces: dict[Any, tuple[str, ...]] = {
        rounds: ("first_pass", "scales", "descend", "refit", "gradients", "certify"),
        host_loss: ("roots", "residual", "values_along"),
        working_set: ("exchanged",),
        host_check: ("combined",),
        host_steps: ("make", "newton_steps", "newton_direction", "combined", "products"),
    }
    with watched(pieces) as spent:
        start = time.perf_counter()
        for _ in range(runs):
            solve()
        total = (time.perf_counter() - start) / runs
    parts = {name: sum(times) / runs for name, times in spent.items()} | {
        "host": total - sum(map(sum, spent.values())) / runs,
        "all": total,
    }
    calls = {name: len(times) / runs for name, times in spent.items()}
    return [
        {
            "case": case.name,
            "piece": name,
            "calls": calls.get(name, 1.0),
            "ms": 1e3 * part,
            "share": part / total,
            "over_two_passes": part / floor,
        }
        for name, part in parts.items()
    ]
