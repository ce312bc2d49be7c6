"""What fills a card, the rows that tell most first: each makes its arrays on the device and returns
a call to time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.cases import gibbs_layers
from jaxsac import (
    Groups,
    Solution,
    Status,
    bandits,
    bilevel,
    control,
    gibbs,
    group_lasso,
    subsample_q as sampled,
)
from jaxsac.problems import (
    bandits as bandit_problems,
    bilevel as bilevel_problems,
    subsample_q as sampled_problems,
)
from jaxsac.problems.regression import group_classification, group_regression
from jaxsac.problems.tool_logs import sparse_tool_log


class Work(NamedTuple):
    """`call()` does `number` things called `unit`."""

    call: Callable[[], Any]
    size: str
    number: float
    unit: str
    moved: float = 0.0  # bytes that it must read and write at least; 0: not counted


def one_lambda(small: bool, dtype, *, loss: str = "squared") -> Work:
    T, G, q = (64, 20, 3) if small else (4096, 4096, 8)
    make = group_regression if loss == "squared" else group_classification
    problem = make(jax.random.key(0), T, G, q, max(2, G // 100), dtype=dtype)
    groups = Groups.equal(num_groups=G, size=q)
    lam = 0.1 * group_lasso.lam_max(problem.X, problem.y, groups, loss=loss)
    call = partial(group_lasso.solve, problem.X, problem.y, groups, lam, loss=loss)
    return Work(call, f"{T} x {G * q}, groups of {q}, lam = .1 lam_max", 1, "solves")


def lambdas(small: bool, dtype) -> Work:
    T, G, q, count = (64, 20, 3, 4) if small else (1000, 1000, 8, 64)
    problem = group_regression(jax.random.key(0), T, G, q, max(2, G // 100), dtype=dtype)
    groups = Groups.equal(num_groups=G, size=q)
    highest = group_lasso.lam_max(problem.X, problem.y, groups)
    lams = highest * jnp.geomspace(0.5, 0.05, count, dtype=dtype)
    solve = jax.jit(
        lambda X, y, lams: jax.vmap(lambda lam: group_lasso.solve(X, y, groups, lam))(lams)
    )
    call = partial(solve, problem.X, problem.y, lams)
    return Work(call, f"{T} x {G * q}, {count} lambdas at once", count, "solves")


def problems(small: bool, dtype) -> Work:
    T, G, q, count = (64, 20, 3, 4) if small else (500, 500, 4, 64)
    keys = jax.random.split(jax.random.key(0), count)
    drawn = jax.vmap(lambda key: group_regression(key, T, G, q, max(2, G // 50), dtype=dtype))(keys)
    groups = Groups.equal(num_groups=G, size=q)

    @jax.jit
    @jax.vmap
    def solve(X, y):
        return group_lasso.solve(X, y, groups, 0.1 * group_lasso.lam_max(X, y, groups))

    return Work(
        partial(solve, drawn.X, drawn.y), f"{count} problems of {T} x {G * q}", count, "solves"
    )


def path(small: bool, dtype) -> Work:
    T, G, q, count = (64, 20, 3, 4) if small else (1000, 1000, 8, 50)
    problem = group_regression(jax.random.key(0), T, G, q, max(2, G // 100), dtype=dtype)
    groups = Groups.equal(num_groups=G, size=q)
    call = partial(group_lasso.path, problem.X, problem.y, groups, num_lams=count, min_ratio=0.05)
    return Work(call, f"{T} x {G * q}, {count} lambdas", count, "lambdas")


def scores(rows: int, tools: int, dtype) -> jax.Array:
    return 2 * jax.random.normal(jax.random.key(0), (rows, tools), dtype)


def log_partition(small: bool, dtype, *, rows: int = 64, tools: int = 4096) -> Work:
    rows, tools = (2, 50) if small else (rows, tools)
    call = jax.jit(jax.vmap(partial(gibbs.log_partition, budget=8)))
    return Work(partial(call, scores(rows, tools, dtype)), f"{rows} x {tools}, B = 8", rows, "rows")


def marginals(small: bool, dtype, *, rows: int = 64, tools: int = 4096) -> Work:
    rows, tools = (2, 50) if small else (rows, tools)
    call = jax.jit(jax.vmap(partial(gibbs.marginals, budget=8)))
    return Work(partial(call, scores(rows, tools, dtype)), f"{rows} x {tools}, B = 8", rows, "rows")


def samples(small: bool, dtype, *, rows: int = 64, tools: int = 4096, each: int = 1000) -> Work:
    rows, tools, each = (2, 50, 3) if small else (rows, tools, each)
    keys = jax.random.split(jax.random.key(1), rows)
    call = jax.jit(jax.vmap(partial(gibbs.sample, budget=8, num_samples=each)))
    size = f"{rows} x {tools}, B = 8, {each} samples of each"
    return Work(partial(call, keys, scores(rows, tools, dtype)), size, rows * each, "samples")


def batch(small: bool, dtype, *, rows: int, tools: int) -> Work:
    rows, tools = (min(rows, 2), 50) if small else (rows, tools)
    call = jax.jit(jax.vmap(jax.value_and_grad(partial(gibbs.log_partition, budget=8))))
    z = scores(rows, tools, dtype)
    return Work(partial(call, z), f"{rows} x {tools}, B = 8", rows, "rows", 2 * z.nbytes)


def straight_through(small: bool, dtype, *, budget: int = 8) -> Work:
    rows, tools, budget = (2, 50, 3) if small else (64, 4096, budget)
    z, keys = scores(rows, tools, dtype), jax.random.split(jax.random.key(1), rows)
    call = partial(gibbs_layers.straight_through_step(budget, True), z, keys, z)
    return Work(call, f"{rows} x {tools}, B = {budget}", rows, "steps", 2 * z.nbytes)


def trials(small: bool, dtype) -> Work:
    count, horizon, d, s = (4, 100, 6, 2) if small else (8192, 2000, 20, 5)
    algorithm = bandits.apsee(
        bandits.Ball(), sparsity=s, sigma=0.1, delta=0.05, radius="l2", radius_scale=0.05
    )
    theta = bandit_problems.separated_parameter(d, s, dtype=dtype)

    @jax.jit
    @jax.vmap
    def simulate(key):
        return bandits.simulate(key, algorithm, theta, sigma=0.1, horizon=horizon)

    keys = jax.random.split(jax.random.key(0), count)
    size = f"APSEE on a ball, d = {d}, s = {s}, {count} trials of {horizon}"
    return Work(partial(simulate, keys), size, count * horizon, "steps")


def model(small: bool, dtype) -> tuple[sampled.Model, int]:
    fields = sampled_problems.random(0, num_local=3 if small else 5)._asdict()
    discount = fields.pop("discount")
    arrays = {name: jnp.asarray(array, dtype) for name, array in fields.items()}
    return sampled.Model(**arrays, discount=discount), 3 if small else 20


def subsample_q(small: bool, dtype) -> Work:
    problem, k = model(small, dtype)
    states = problem.num_global_states * len(
        sampled.HistogramSpace(k, problem.num_local_states).table
    )
    return Work(partial(sampled.solve, problem, k), f"k = {k}, {states} states", 1, "solves")


def rollouts(small: bool, dtype) -> Work:
    problem, k = model(True, dtype)
    count, horizon, agents = (4, 5, 100) if small else (4096, 100, 1_000_000)
    table = sampled.solve(problem, k).value
    state = sampled.population_state(0, np.ones(problem.num_local_states), agents)

    @jax.jit
    @jax.vmap
    def simulate(key):
        return sampled.simulate(key, problem, table, agents, horizon, state).discounted_return

    keys = jax.random.split(jax.random.key(0), count)
    size = f"{count} rollouts of {horizon}, {agents} agents"
    return Work(partial(simulate, keys), size, count * horizon, "steps")


def hypergradients(small: bool, dtype) -> Work:
    count = 2 if small else 32
    data = bilevel_problems.smooth(dtype)
    problem = bilevel.Problem(bilevel_problems.smooth_upper, bilevel_problems.smooth_lower)
    xs = data.x + 0.1 * jax.random.normal(jax.random.key(0), (count, data.x.size), dtype)

    @jax.jit
    def solve(xs, data):
        return jax.vmap(
            lambda x: bilevel.hypergradient(problem, x, jnp.zeros(50, dtype), data=data)
        )(xs)

    return Work(partial(solve, xs, data), f"50 lower, 20 upper, {count} seeds", count, "gradients")


def bilevel_steps(small: bool, dtype) -> Work:
    count, steps = (2, 3) if small else (32, 300)
    data = bilevel_problems.smooth(dtype)
    problem = bilevel.Problem(bilevel_problems.smooth_upper, bilevel_problems.smooth_lower)
    xs = data.x + 0.1 * jax.random.normal(jax.random.key(0), (count, data.x.size), dtype)
    outer, inner = optax.adam(1e-2), optax.sgd(0.1)

    @jax.jit
    def solve(xs, data):
        def one(x):
            return bilevel.solve(
                problem,
                x,
                jnp.zeros(50, dtype),
                data=data,
                outer=outer,
                inner=inner,
                max_steps=steps,
            ).value

        return jax.vmap(one)(xs)

    return Work(partial(solve, xs, data), f"{count} seeds, {steps} steps", count * steps, "steps")


def imitation(small: bool, dtype) -> Work:
    records, tools = (200, 50) if small else (10_000, 100_000)
    truth = sparse_tool_log(
        jax.random.key(0),
        num_records=records,
        num_actions=tools,
        num_features=4 if small else 16,
        budget=5,
        num_relevant=4 if small else 20,
        mean_size=2.0,
    )
    log = control.Log(np.asarray(truth.contexts, dtype), truth.actions)
    call = partial(control.fit, jax.random.key(1), log, num_actions=tools, budget=5)
    return Work(call, f"{records} records, {tools} tools, lam simulated", 1, "fits")


ROWS: dict[str, Callable[[bool, Any], Work]] = {
    "group_lasso.solve, one lambda": one_lambda,
    "gibbs.log_partition": log_partition,
    "group_lasso.solve, vmap over lambdas": lambdas,
    "bandits.simulate, vmap over trials": trials,
    "group_lasso.solve, vmap over problems": problems,
    "subsample_q.solve": subsample_q,
    "bilevel.hypergradient, vmap over seeds": hypergradients,
    "gibbs.marginals": marginals,
    "gibbs.sample": samples,
    "gibbs.log_partition, a million tools": partial(log_partition, rows=1, tools=1_000_000),
    "gibbs.marginals, a million tools": partial(marginals, rows=1, tools=1_000_000),
    "gibbs.sample, a million tools": partial(samples, rows=1, tools=1_000_000, each=100_000),
    "group_lasso.solve, logistic": partial(one_lambda, loss="logistic"),
    "subsample_q.simulate, vmap over rollouts": rollouts,
    "bilevel.solve, vmap over seeds": bilevel_steps,
    "group_lasso.path": path,
    "control.fit, imitation": imitation,
    "gibbs.straight_through": straight_through,
    "gibbs.straight_through, 32 items": partial(straight_through, budget=32),
}
ROWS |= {
    f"gibbs, value and marginals, {rows} x {tools}": partial(batch, rows=rows, tools=tools)
    for rows, tools in gibbs_layers.sweep_sizes()
}


def judged(result: Any) -> dict[str, Any]:
    """What the certificates of a result say, or whether its numbers are finite."""
    if isinstance(result, Solution):
        codes = np.ravel(result.status)
        worst = float(np.max(np.asarray(result.stats["error"] / result.stats["scale"])))
        return {
            "converged": f"{np.sum(codes == Status.CONVERGED)} of {codes.size}",
            "error / scale": worst,
            "steps": int(np.max(np.asarray(result.stats["num_steps"]))),
        }
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result)]
    numbers = [leaf for leaf in leaves if np.issubdtype(leaf.dtype, np.floating)]
    return {"finite": bool(all(np.isfinite(leaf).all() for leaf in numbers))}
