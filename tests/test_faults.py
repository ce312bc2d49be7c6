"""Every public function, called wrongly: one argument at a time, by the kind it is declared with.

Rooms register good calls in `tests/<room>/fault_calls.py`: CALLS maps the public name of a function
to a function that makes its arguments.
"""

import inspect
import re
import signal
from typing import Any

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import Cell, cells
from public_names import PUBLIC, namespace

from jaxsac import Solution, Status
from jaxsac._arguments import declared

SECONDS = 120  # a call that takes longer hangs
# Answers of an enumeration, or what only holds fields that were computed.
NO_ARGUMENTS = (int, tuple, Exception)

CALLS = {
    name: call
    for module in contract.registered("fault_calls")
    for name, call in module.CALLS.items()
}
SOLVERS = {case.name.split()[0] for case in contract.cases()}


def public_function(name: str) -> Any:
    room, _, short = name.rpartition(".")
    return getattr(namespace(room), short)


def functions() -> list[str]:
    """The public names that a user calls with arguments of his own."""
    names = []
    for room, members in PUBLIC.items():
        for member in sorted(members):
            name = f"{room}.{member}" if room else member
            value = public_function(name)
            made = isinstance(value, type) and (
                issubclass(value, NO_ARGUMENTS) or getattr(value, "_is_protocol", False)
            )
            if callable(value) and not made:
                names.append(name)
    return names


def outcome(function: Any, arguments: dict[str, Any]) -> Any:
    """The answer, or the ValueError; anything else that is raised is a fault of ours."""

    def late(*_):
        raise TimeoutError(f"no answer after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        return jax.block_until_ready(function(**arguments))
    except ValueError as refusal:
        return refusal
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def names_an_argument(refusal: ValueError, function: Any) -> bool:
    known = [*declared(function), *inspect.signature(function).parameters]
    return any(re.search(rf"\b{re.escape(name)}\b", str(refusal)) for name in known)


def numbers(answer: Any) -> list[np.ndarray]:
    leaves = [
        leaf for leaf in jax.tree.leaves(answer) if isinstance(leaf, jax.Array | np.ndarray | float)
    ]
    return [
        np.asarray(leaf)
        for leaf in leaves
        if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    ]


def leaves_a_trace(answer: Any) -> bool:
    status = getattr(answer, "status", None)
    if status is not None and np.any(np.asarray(status) != Status.CONVERGED):
        return True
    found = numbers(answer)
    nan = any(leaf.dtype.kind == "f" and np.isnan(leaf).any() for leaf in found)
    return nan or any(leaf.dtype.kind == "i" and leaf.size and (leaf == -1).all() for leaf in found)


def size(numbers: np.ndarray) -> float:
    return np.max(np.abs(numbers), initial=1, where=np.isfinite(numbers))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, ValueError) or isinstance(other, ValueError):
        return isinstance(one, ValueError) and isinstance(other, ValueError)
    if isinstance(one, Solution):
        one, other = (one.value, one.status), (other.value, other.status)
    pairs = list(zip(numbers(one), numbers(other), strict=True))
    return all(
        np.allclose(a, b, rtol=1e-9, atol=1e-12 * size(b), equal_nan=True)
        if a.dtype.kind == "f"
        else np.array_equal(a, b)
        for a, b in pairs
    )


def fault(function: Any, arguments: dict[str, Any], name: str, cell: Cell) -> str | None:
    """What is wrong with the outcome of a cell, or None."""
    got = outcome(function, {**arguments, name: cell.value})
    if isinstance(got, ValueError) and not names_an_argument(got, function):
        return f"the refusal names no argument: {got}"
    if cell.outcome == "refused" and not isinstance(got, ValueError):
        return "accepted"
    if cell.outcome == "trace" and not isinstance(got, ValueError) and not leaves_a_trace(got):
        return "a NaN left no trace"
    if cell.outcome == "alike":
        expected = outcome(function, {**arguments, name: cell.like})
        if not same(got, expected):
            return f"{got} where the same numbers as {type(cell.like)} give {expected}"
    return None


def all_cells(name: str) -> list[tuple[str, Cell]]:
    function, arguments = public_function(name), CALLS[name]()
    parameters = inspect.signature(function).parameters
    return [
        (argument, cell)
        for argument, kind in declared(function).items()
        if argument in arguments
        for cell in cells(
            kind,
            arguments[argument],
            argument not in parameters or parameters[argument].default is None,
        )
    ]


def faults(name: str, chosen: list[tuple[str, Cell]]) -> list[str]:
    function = public_function(name)
    found = []
    for argument, cell in chosen:
        try:
            wrong = fault(function, CALLS[name](), argument, cell)
        except Exception as error:
            wrong = f"{type(error).__name__}: {str(error)[:200]}"
        if wrong:
            found.append(f"{argument} = {cell.label}: {wrong}")
    return found


@pytest.mark.parametrize("name", functions())
def test_every_public_function_declares_its_arguments(name):
    function = public_function(name)
    parameters = inspect.signature(function).parameters.values()
    own = {each.name for each in parameters if each.kind is not each.VAR_KEYWORD} - {"self"}
    assert own <= set(declared(function)), own - set(declared(function))
    assert not own or name in CALLS, "register a good call in fault_calls.py"


@pytest.mark.parametrize("name", CALLS)
def test_what_is_wrong_is_refused_by_name(name):
    """All refusals, and one of the cells whose answers must be computed: where the contract is
    checked, that poisons the arguments.
    """
    every = all_cells(name)
    refused = [each for each in every if each[1].outcome == "refused"]
    rest = [each for each in every if each[1].outcome in ("alike", "trace")]
    middle = len(rest) // 2
    chosen = refused if name in SOLVERS else refused + rest[middle : middle + 1]
    assert not (found := faults(name, chosen)), "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_no_cell_is_silent(name):
    rest = [each for each in all_cells(name) if each[1].outcome != "refused"]
    assert not (found := faults(name, rest)), "\n".join(found)


def traced(name: str) -> list[str]:
    """NaN in each argument that may be traced, under jit: a trace of it, or a refusal by name."""
    function, found = public_function(name), []
    for argument, cell in all_cells(name):
        if cell.label != "NaN":
            continue
        arguments = CALLS[name]()

        def call(value, argument=argument, arguments=arguments):
            return function(**{**arguments, argument: value})

        try:
            got = outcome(jax.jit(call), {"value": cell.value})
        except Exception as error:
            if "not a valid JAX type" in str(error):
                continue  # the answer holds functions: what they give is NaN
            found.append(f"{argument} under jit: {type(error).__name__}: {str(error)[:200]}")
            continue
        if isinstance(got, ValueError):
            if not names_an_argument(got, function):
                found.append(f"{argument} under jit: the refusal names no argument: {got}")
        elif not leaves_a_trace(got):
            found.append(f"{argument} under jit: a NaN left no trace")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_no_traced_nan_is_silent(name):
    assert not (found := traced(name)), "\n".join(found)
