"""What a room registers so that `test_contract.py` checks its solvers: a `Case` each, in
`tests/<room>/contract_cases.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxsac import Solution

Problem = dict[str, Any]


class Case(NamedTuple):
    """One public solver and a family of small problems of one shape.

    * `problem(seed, dtype)`: keyword arguments for `solve`; every floating leaf has `dtype`; the
      shapes do not depend on the seed.
    * `solve(**problem, **hyper)`: the public function with its structure filled in. It must pass
      jit, vmap and jax.export.
    * `hyper`: hyper-parameters (Python floats) that are traced; each is swept over `sweep` without
      a new compilation.
    * `poison`: the keyword whose array gets a NaN in the poisoned lane.
    * `differentiate`: keywords (of the problem or of `hyper`) by which `scalar(solution)` is
      differentiated, in float64.
    * `bad`: (changed keywords, a regular expression that the ValueError must match).
    """

    name: str
    problem: Callable[[int, Any], Problem]
    solve: Callable[..., Solution]
    hyper: Mapping[str, float]
    sweep: Mapping[str, Sequence[float]]
    poison: str
    differentiate: Sequence[str]
    scalar: Callable[[Solution], jax.Array]
    bad: Sequence[tuple[Mapping[str, Any], str]]
    step: float = 1e-5  # of the central differences, relative to the size of the argument
    gradient_rtol: float = 1e-5
    tolerance: Mapping[str, float] = {
        "float32": 1e-3,
        "float64": 1e-6,
    }  # two certified answers may differ by this, relative
