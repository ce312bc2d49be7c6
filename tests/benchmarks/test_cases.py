"""What the benchmarks' cases compute by themselves, and what they may import."""

import ast
import itertools
import os
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.cases import bilevel_gymnax, bilevel_second_order, group_lasso_cases
from benchmarks.cases.group_lasso_peers import worst_gap
from benchmarks.cases.subsample_q_dense import dense_kernel
from benchmarks.harness import process
from jaxsac import bilevel, subsample_q

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
PUBLIC = ("jaxsac", "jaxsac.problems", "jaxsac.route")
HOOK = "jaxsac.group_lasso.methods.host.trace"  # made for the profile


def test_no_benchmark_reaches_into_the_package():
    for path in FOLDER.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.partition(".")[0] == "jaxsac" and name != HOOK:
                    assert name in PUBLIC or name.startswith("jaxsac.problems."), (path, name)
            called = node.func if isinstance(node, ast.Call) else None
            assert getattr(called, "id", "") != "setattr", path


def test_a_case_can_be_measured_in_a_process_of_its_own():
    assert process.in_new_process("float32", os.getpid) != os.getpid()
    case = group_lasso_cases.cases(True, "float64")[0]
    nothing = np.zeros((1, 1, case.num_coefficients))
    function, there = pickle.loads(pickle.dumps((worst_gap, case)))  # what goes to the process
    assert function(there, nothing) == worst_gap(case, nothing)


def test_the_dense_kernel_is_the_law_of_k_moves():
    kernel = np.random.default_rng(0).dirichlet(np.ones(3), size=3)
    histograms = [h for h in itertools.product(range(3), repeat=3) if sum(h) == 2]
    expected = {}
    for start in histograms:
        agents = np.repeat(np.arange(3), start)
        for ends in itertools.product(range(3), repeat=2):
            end = tuple(np.bincount(ends, minlength=3).tolist())
            chance = kernel[agents[0], ends[0]] * kernel[agents[1], ends[1]]
            expected[start, end] = expected.get((start, end), 0.0) + chance
    table = dense_kernel(kernel, 2)
    order = [tuple(row) for row in subsample_q.HistogramSpace(2, 3).table.tolist()]
    for (i, start), (j, end) in itertools.product(enumerate(order), repeat=2):
        np.testing.assert_allclose(table[i, j], expected[start, end], atol=1e-15)


@pytest.mark.parametrize("linear_steps", [None, 2])
def test_second_order_loops_end_at_the_minimiser(linear_steps):
    """y* = A x of a lower level with curvature 1 and 2, by the normal equations of the upper."""
    A, target = jnp.asarray([[1.0, 0.5], [-0.3, 2.0]]), jnp.asarray([1.0, -2.0])
    curvature = jnp.asarray([1.0, 2.0])
    problem = bilevel.Problem(
        lambda x, y, data: 0.5 * jnp.sum((y - data) ** 2) + 0.05 * jnp.sum(x**2),
        lambda x, y, data: 0.5 * jnp.sum(curvature * (y - A @ x) ** 2),
    )
    sgd = optax.sgd(0.3), optax.sgd(0.1)
    init, step = bilevel_second_order.loop(problem, *sgd, 1, linear_steps)
    run = jax.jit(lambda s: jax.lax.fori_loop(0, 2000, lambda _, s: step(s, target), s))
    best = np.linalg.solve(A.T @ A + 0.1 * np.eye(2), A.T @ target)
    np.testing.assert_allclose(run(init(jnp.zeros(2), jnp.zeros(2)))[0], best, rtol=1e-6)


@pytest.mark.filterwarnings("ignore")  # gymnax's own
@jax.numpy_rank_promotion("allow")
@jax.numpy_dtype_promotion("standard")  # gymnax adds flags to counts
def test_the_table_of_a_gymnax_environment_is_the_law_of_its_steps():
    gymnax = pytest.importorskip("gymnax")
    env, params = gymnax.make("FourRooms-misc")
    rooms = bilevel_gymnax.tabulated(env, params, jnp.float64)
    _, start = env.reset_env(jax.random.key(0), params)
    beside = env.goal_fixed - env.directions[1]  # from here an episode can end
    for cell in (start.pos, beside):
        keys = jax.random.split(jax.random.key(1), 20000)
        at = start.replace(pos=cell)
        _, state, reward, end, _ = jax.vmap(lambda key, at=at: env.step_env(key, at, 1, params))(
            keys
        )
        arrived = np.all(env.coords[None] == state.pos[:, None], axis=2)
        row = int(np.flatnonzero(np.all(np.asarray(env.coords == cell), axis=1))[0])
        for law, seen in (
            (rooms.reached, arrived),
            (rooms.transition, arrived & ~np.asarray(end)[:, None]),
        ):
            np.testing.assert_allclose(law[row, 1], seen.mean(axis=0), atol=0.02)
        np.testing.assert_allclose(rooms.reward[row, 1], np.mean(reward), atol=0.02)
