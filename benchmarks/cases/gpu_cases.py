"""The contract's cases on whatever device JAX has, and two answers to one of them compared."""

import functools
import importlib.util
import itertools
import pathlib
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import Solution, Status

TESTS = pathlib.Path(__file__).parents[2] / "tests"
CERTIFIED = {"float32": 1e-4, "float64": 1e-6}  # the loosest tolerance of any solver, over scale


class Answer(NamedTuple):
    """What a case gave on one device, as numpy; `status` and `error` (over the scale, the worst)
    are None where no Solution is returned.
    """

    values: list[np.ndarray]
    status: list[int] | None
    error: float | None
    gradients: list[np.ndarray]
    first_call: float  # s, compilation included
    second_call: float  # s


@functools.cache
def registered() -> dict[str, Any]:
    """Every case of `tests/*/contract_cases.py` by name, the rooms in turns: a run that is cut has
    seen all of them.
    """
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    rooms = []
    for path in sorted(TESTS.glob("*/contract_cases.py")):
        spec = importlib.util.spec_from_file_location(f"contract_cases_{path.parent.name}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        rooms.append(module.CASES)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*rooms))
    return {case.name: case for case in turns if case is not None}


def answer(name: str, dtype: str) -> Answer:
    """The case's first problem solved, and differentiated by all that the contract differentiates
    it by.
    """
    case = registered()[name]
    given = case.problem(0, jnp.dtype(dtype)) | dict(case.hyper)
    moved = {
        key: jnp.asarray(given.pop(key), dtype) if key in case.hyper else given.pop(key)
        for key in (() if case.host else case.differentiate)
    }

    def solve(moved, fixed):
        return case.solve(**moved, **fixed)

    def both(moved, fixed):
        found = solve(moved, fixed)
        return case.scalar(found), found

    def differentiated(moved, fixed):
        (_, found), slopes = jax.value_and_grad(both, has_aux=True)(moved, fixed)
        return found, slopes

    run = differentiated if moved else lambda moved, fixed: (solve(moved, fixed), {})
    run = run if case.host else jax.jit(run)

    def timed():
        start = time.perf_counter()
        result = jax.block_until_ready(run(moved, given))
        return *result, time.perf_counter() - start

    found, slopes, first = timed()
    second = timed()[2]
    status = error = None
    if isinstance(found, Solution):
        status = np.ravel(found.status).tolist()
        error = float(np.max(np.asarray(found.stats["error"] / found.stats["scale"])))
        found = found.value
    return Answer(_numbers(found), status, error, _numbers(slopes), first, second)


def compare(name: str, dtype: str, device: Answer, cpu: Answer) -> dict[str, Any]:
    """A row: how far the answers of the device and of the CPU are apart, over the largest number of
    each array, and whether that is within what the contract allows two certified answers.
    """
    allowed = registered()[name].tolerance[dtype]
    value, gradient = (
        _distance(one, other)
        for one, other in ((device.values, cpu.values), (device.gradients, cpu.gradients))
    )
    certified = device.status == cpu.status and (
        device.error is None
        or device.status != [Status.CONVERGED] * len(device.status or ())
        or device.error <= CERTIFIED[dtype]
    )
    return {
        "case": name,
        "dtype": dtype,
        "value": value,
        "gradient": gradient if device.gradients else "",
        "allowed": allowed,
        "status": "" if device.status is None else _names(device.status),
        "status on the CPU": "" if cpu.status is None else _names(cpu.status),
        "error / scale": "" if device.error is None else device.error,
        "agrees": bool(certified and value <= allowed and gradient <= allowed),
        "first call s": device.first_call,
        "call ms": 1e3 * device.second_call,
        "CPU call ms": 1e3 * cpu.second_call,
    }


def _distance(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    if [leaf.shape for leaf in one] != [leaf.shape for leaf in other]:
        return float("inf")
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        alike = (a == b) | (np.isnan(a) & np.isnan(b))
        size = np.max(np.abs(b), initial=1e-30, where=np.isfinite(b))
        gaps = np.abs(np.subtract(a, b, where=~alike, out=np.zeros_like(a)))
        worst = max(worst, float(np.max(np.nan_to_num(gaps, nan=np.inf), initial=0.0) / size))
    return worst


def _names(codes: list[int]) -> str:
    return ", ".join(sorted({Status(code).name for code in codes}))


def _numbers(tree: Any) -> list[np.ndarray]:
    leaves = map(jnp.asarray, jax.tree.leaves(tree))
    return [
        np.asarray(
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf,
            np.float64,
        )
        for leaf in leaves
    ]
