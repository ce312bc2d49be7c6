"""The room's solvers, for the contract's tests."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contract import Case

from jaxsac import bilevel


def lower(x, y, data):
    A, a = data
    return 0.5 * y @ A @ y + (a + x) @ y + 0.05 * jnp.sum(y**4)


def upper(x, y, data):
    return 0.5 * jnp.sum((y - 1) ** 2) + 0.5 * jnp.sum(x**2)


PROBLEM = bilevel.Problem(upper, lower)
OUTER, INNER = optax.sgd(0.1), optax.sgd(0.2)


def problem(seed, dtype):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(3, 3))
    A, a = root @ root.T / 3 + np.eye(3), rng.normal(size=3)
    return {
        "A": jnp.asarray(A, dtype),
        "a": jnp.asarray(a, dtype),
        "x": jnp.asarray(rng.normal(size=3), dtype),
    }


def solve(A, a, x, **hyper):
    # The starts are the same in all lanes: so are they on all devices, under shard_map.
    return bilevel.solve(
        PROBLEM,
        jnp.ones(3, x.dtype),
        jnp.zeros(3, x.dtype),
        data=(A, a + x),
        outer=OUTER,
        inner=INNER,
        max_steps=3000,
        **hyper,
    )


def hypergradient(A, a, x, **hyper):
    start = jnp.zeros(3, x.dtype)
    return bilevel.hypergradient(PROBLEM, x, start, data=(A, a), **hyper)


MINIMISERS = {
    jnp.dtype(dtype): bilevel.argmin(
        lambda x, y: lower(x["x"], y, (x["A"], x["a"])), jnp.zeros(3, dtype)
    )
    for dtype in (jnp.float32, jnp.float64)
}


def minimiser(A, a, x):
    return MINIMISERS[x.dtype]({"A": A, "a": a, "x": x})


def soft_solve(reward, transition, **hyper):
    mdp = bilevel.rl.MDP(transition, jnp.full_like(transition[0, 0], 1 / 3), 0.8)
    return bilevel.rl.soft_solve(mdp, reward, **hyper)


def process(seed, dtype):
    rng = np.random.default_rng(seed)
    transition = jax.nn.softmax(jnp.asarray(rng.normal(size=(3, 2, 3)), dtype), axis=-1)
    return {"reward": jnp.asarray(rng.normal(size=(3, 2)), dtype), "transition": transition}


CASES = [
    Case(
        name="bilevel.solve",
        problem=problem,
        solve=solve,
        hyper={"sigma": 1e-2},
        sweep={"sigma": (1e-2, 2e-2), "tol": (1e-3, 1e-4)},
        poison="a",
        differentiate=(),  # not differentiable, as its docstring says
        scalar=lambda solution: jnp.sum(solution.value.x),
        bad=[({"sigma": 0.0}, "sigma must be > 0"), ({"sigma": "small"}, "sigma must be one of")],
        tolerance={"float32": 1e-2, "float64": 1e-4},
    ),
    Case(
        name="bilevel.hypergradient",
        problem=problem,
        solve=hypergradient,
        hyper={"sigma": 2e-2},
        sweep={"sigma": (2e-2, 1e-2), "tol": (1e-3, 1e-4)},
        poison="a",
        differentiate=(),
        scalar=lambda solution: jnp.sum(solution.value),
        bad=[({"sigma": -1.0}, "sigma must be > 0")],
        tolerance={"float32": 3e-3, "float64": 1e-5},
    ),
    Case(
        name="bilevel.argmin",
        problem=problem,
        solve=minimiser,
        hyper={},
        sweep={},
        poison="a",
        differentiate=("A", "x"),
        scalar=lambda y: jnp.sum(y**2),
        bad=[({"a": np.zeros(3, np.float32)}, "where the other variables")],
        gradient_rtol=1e-4,
        certified=False,
    ),
    Case(
        name="bilevel.rl.soft_solve",
        problem=process,
        solve=soft_solve,
        hyper={"temperature": 0.5},
        sweep={"temperature": (0.5, 1.0)},
        poison="reward",
        differentiate=("reward", "temperature"),
        scalar=lambda solution: jnp.sum(solution.value.v**2),
        bad=[({"temperature": 0.0}, "temperature must be > 0")],
    ),
]
