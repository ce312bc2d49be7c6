"""float32 beside float64, over every public function, on random and hostile numbers: near it, or a
sign (a status, NaN, a refusal) that it is not.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_faults import CALLS, numbers, outcome, public_function

from jaxsac import Solution, Status
from jaxsac._arguments import declared
from jaxsac._arguments.numbers import Real
from jaxsac._arguments.objects import Key

RANDOM = 100
NEAR = 1e-3  # of the largest number of an array; solvers stop at 1e-4 of their scale in float32
HOSTILE = {
    "zeros": lambda a, random: np.zeros_like(a),
    "all equal": lambda a, random: np.full_like(a, a.mean()),
    "integers": lambda a, random: np.round(a),
    "ties": lambda a, random: np.round(2 * a) / 2,
    "small": lambda a, random: 1e-6 * a,
    "large": lambda a, random: 1e6 * a,
    "an offset": lambda a, random: a + 1e3,
    "one outlier": lambda a, random: a * np.where(np.arange(a.size).reshape(a.shape) == 0, 1e4, 1),
    "another sign": lambda a, random: -a,
    "many scales": lambda a, random: a * 10.0 ** random.integers(-4, 5, a.shape),
}
DETERMINISTIC = [
    name
    for name in CALLS
    if not any(isinstance(kind, Key) for kind in declared(public_function(name)).values())
]


def variants(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Calls with other numbers in the real arrays: all random ones, then hostile ones in turn."""
    random = np.random.default_rng(0)
    arguments = CALLS[name]()
    kinds = declared(public_function(name))
    real = [
        argument
        for argument, value in arguments.items()
        if isinstance(kinds.get(argument), Real) and np.ndim(value)
    ]
    for at in range(RANDOM if real else 1):
        changed = {
            argument: np.asarray(arguments[argument])
            * (1 + 0.3 * random.normal(size=np.shape(arguments[argument])))
            for argument in real
        }
        yield f"random {at}", {**arguments, **changed}
    for argument in real:
        for label, change in HOSTILE.items():
            value = change(np.asarray(arguments[argument], float), random)
            yield f"{argument}: {label}", {**arguments, argument: value}


def cast(arguments: Any, dtype: Any) -> Any:
    """All floating arrays, those of records too, in `dtype`."""

    def one(leaf: Any) -> Any:
        floating = isinstance(leaf, jax.Array | np.ndarray) and leaf.dtype.kind == "f"
        return leaf.astype(dtype) if floating else leaf

    return jax.tree.map(one, arguments)


def gap(single: Any, double: Any) -> float:
    """The largest difference of an array, over its largest number; 0 where there is a sign."""
    if isinstance(single, ValueError) or isinstance(double, ValueError):
        return 0.0
    statuses = [np.asarray(getattr(each, "status", 0)) for each in (single, double)]
    if any(np.any(status != Status.CONVERGED) for status in statuses):
        return 0.0
    if isinstance(single, Solution):
        single, double = single.value, double.value
    worst = 0.0
    for s, d in zip(numbers(single), numbers(double), strict=True):
        if d.dtype.kind == "f" and d.size and np.isfinite(d).all() and np.isfinite(s).all():
            size = max(float(np.max(np.abs(d))), 1e-30)
            worst = max(worst, float(np.max(np.abs(s.astype(float) - d))) / size)
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_single_precision_is_near_double_or_says_so(name):
    function, found = public_function(name), []
    for label, arguments in variants(name):
        # both from the numbers that float32 holds
        single = cast(arguments, jnp.float32)
        answers = [outcome(function, single), outcome(function, cast(single, jnp.float64))]
        if (far := gap(*answers)) > NEAR:
            found.append(f"{label}: {far:.1e}")
    assert not found, "\n".join(found)
