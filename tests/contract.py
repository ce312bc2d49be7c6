"""What a room registers so that `test_contract.py` checks its functions: a `Case` each, in
`tests/<room>/contract_cases.py`.
"""

import importlib.util
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

Problem = dict[str, Any]


class Case(NamedTuple):
    """One public function and a family of small problems of one shape.

    * `name`: "room.function", and what tells it from other cases of that function.
    * `problem(seed, dtype)`: keyword arguments for `solve`; every floating leaf has `dtype`; the
      shapes do not depend on the seed.
    * `solve(**problem, **hyper)`: the public function with its structure filled in. It must pass
      jit, vmap, shard_map and jax.export; not so with `host`, for what drives its loop on the host.
    * `hyper`: hyper-parameters (Python floats) that are traced; each is swept over `sweep` without
      a new compilation.
    * `poison`: the keyword whose array gets a NaN in the poisoned lane.
    * `differentiate`: keywords (of the problem or of `hyper`) by which `scalar(answer)` is
      differentiated, in float64.
    * `bad`: (changed keywords, a regular expression that the ValueError must match).
    * `certified`: it returns a `Solution`; else arrays, which are NaN somewhere in a poisoned lane.
    """

    name: str
    problem: Callable[[int, Any], Problem]
    solve: Callable[..., Any]
    hyper: Mapping[str, float] = {}
    sweep: Mapping[str, Sequence[float]] = {}
    poison: str = ""
    differentiate: Sequence[str] = ()
    scalar: Callable[[Any], jax.Array] | None = None
    bad: Sequence[tuple[Mapping[str, Any], str]] = ()
    step: float = 1e-5  # of the central differences, relative to the size of the argument
    gradient_rtol: float = 1e-5
    # Two certified answers may differ by this, relative.
    tolerance: Mapping[str, float] = {"float32": 1e-3, "float64": 1e-6}
    host: bool = False
    certified: bool = True


def registered(name: str) -> Iterator[Any]:
    """The modules `tests/<folder>/<name>.py`."""
    for path in sorted(pathlib.Path(__file__).parent.glob(f"*/{name}.py")):
        spec = importlib.util.spec_from_file_location(f"{name}_{path.parent.name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def cases() -> list[Case]:
    return [case for module in registered("contract_cases") for case in module.CASES]
