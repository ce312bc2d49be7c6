"""The room's solvers, for the contract's tests."""

import jax
import jax.numpy as jnp
from contract import Case
from subsample_q.models import random_arrays

from jaxsac import subsample_q

NAMES = ("global_transition", "local_transition", "global_reward", "local_reward")


def problem(seed, dtype):
    return dict(
        zip(NAMES, (jnp.asarray(array, dtype) for array in random_arrays(seed)), strict=True)
    )


def solve(discount, tol=None, max_steps=1000, **arrays):
    precise = 1e-11 if arrays["global_reward"].dtype == jnp.float64 else None
    return subsample_q.solve(
        subsample_q.Model(discount=discount, **arrays),
        3,
        tol=precise if tol is None else tol,
        max_steps=max_steps,
    )


def learn(discount, tol=None, **arrays):
    return subsample_q.learn(
        jax.random.key(0), subsample_q.Model(discount=discount, **arrays), 3, 8, tol=tol
    )


CASES = [
    Case(
        name="subsample_q.solve",
        problem=problem,
        solve=solve,
        hyper={"discount": 0.8},
        sweep={"discount": (0.8, 0.85), "tol": (1e-5, 1e-4)},
        poison="local_reward",
        differentiate=(*NAMES, "discount"),
        scalar=lambda solution: jnp.sum(solution.value.value**2),
        bad=[
            ({"discount": 1.0}, "discount must lie in"),
            ({"tol": -1.0}, "tol must be >= 0"),
            ({"local_reward": jnp.ones((3, 2))}, "local_reward must"),
        ],
    ),
    Case(
        name="subsample_q.learn",
        problem=problem,
        solve=learn,
        hyper={"discount": 0.8},
        sweep={"discount": (0.8, 0.85), "tol": (1e-5, 1e-4)},
        poison="global_reward",
        differentiate=(),  # not differentiable, as its docstring says
        scalar=lambda solution: jnp.sum(solution.value.value**2),
        bad=[({"discount": 1.0}, "discount must lie in")],
        tolerance={"float32": 2e-3, "float64": 1e-5},
    ),
]
