"""The single loop: answers, waiting, cost in gradients, warm starts and failures."""

import dataclasses
import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bilevel.beds import QUADRATIC, SCALAR, quadratic, quadratic_lower, quadratic_upper, quadratic_x

from jaxsac import Reason, Status, bilevel

OUTER, INNER = optax.sgd(0.05), optax.sgd(0.3)
EXACT = {"forward": 2e-2, "central": 1e-3, "central_linear": 1e-5, "one_sided": 1e-3}
FAST = ("forward", "central_linear")


@pytest.mark.parametrize(
    "difference",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in EXACT],
)
def test_every_difference_finds_the_optimum(difference):
    q = quadratic(3, jnp.float64)
    solution = bilevel.solve(
        QUADRATIC,
        jnp.zeros(3),
        jnp.zeros(4),
        data=q,
        sigma=1e-2,
        difference=difference,
        outer=OUTER,
        inner=INNER,
        inner_steps=2,
        max_steps=5000,
    ).check()
    expected = quadratic_x(q)
    np.testing.assert_allclose(
        solution.value.x, expected, atol=EXACT[difference] * np.linalg.norm(expected)
    )
    np.testing.assert_allclose(
        q.A @ solution.value.y + q.a + q.C.T @ solution.value.x,
        0,
        atol=1e-1 if difference == "central" else 1e-5,
    )


def test_one_step_is_the_formula():
    """Two inner steps and an outer one, by hand with the two copies kept apart."""
    q = quadratic(0, jnp.float64)
    sigma, a, b = 0.1, 0.3, 0.05
    method = bilevel.Method("forward", optax.sgd(a), optax.sgd(b), inner_steps=2)
    x = jnp.asarray([1.0, -1.0, 0.5])
    state, report = jax.jit(lambda s: bilevel.step(QUADRATIC, s, method, sigma=sigma, batch=q))(
        bilevel.init(QUADRATIC, x, jnp.ones(4), method)
    )
    z = y = np.ones(4)
    for _ in range(2):
        z = z - a * (q.A @ z + q.a + q.C.T @ x)
        y = y - a * (q.A @ y + q.a + q.C.T @ x + sigma * (q.F @ y + q.k))
    h = q.H @ x + q.h + (q.C @ (y - z)) / sigma
    np.testing.assert_allclose(state.z, z, rtol=1e-12)
    np.testing.assert_allclose(state.z + sigma * state.d, y, rtol=1e-12)
    np.testing.assert_allclose(state.x, x - b * h, rtol=1e-12)
    np.testing.assert_allclose(report["hypergradient_norm"], np.linalg.norm(h), rtol=1e-12)


def test_x_waits_while_its_hypergradient_is_not_known():
    """Two wells, from the ridge between them: there d grows, and x must not follow it. Along d the
    difference of y³ − y is d (3 z² + σ² d² − 1), and f_yy = 1, by hand.
    """
    problem = bilevel.Problem(
        lambda x, y: 0.5 * (y - 0.5) ** 2 + 0.5 * x**2,
        lambda x, y: 0.25 * (y**2 - 1) ** 2 - 0.1 * x * y,
    )
    sigma, method = 1e-2, bilevel.Method(inner=optax.sgd(0.2), outer=optax.sgd(0.1))

    def one(state, _):
        new, report = bilevel.step(problem, state, method, sigma=sigma)
        return new, (state.x, (state.z, new.z), (state.d, new.d), report["waits"])

    start = bilevel.init(problem, jnp.asarray(0.1), jnp.asarray(1e-3), method)
    scan = jax.jit(lambda state: jax.lax.scan(one, state, length=300))
    end, (x, (before, z), (d, new_d), waits) = scan(start)
    curvature, c = d * (3 * z**2 + (sigma * d) ** 2 - 1), z - 0.5
    down, half = d * curvature < 0, np.abs(c) / 2
    unsolved = np.abs(c + curvature) > half
    moving = np.abs(new_d / c * (before**3 - before - 0.1 * x)) > half
    np.testing.assert_array_equal(waits, down | unsolved | moving)
    assert 10 < np.sum(waits) < 60 and (unsolved & ~down & ~moving).any()
    moved = np.diff(np.append(x, end.x)) != 0
    np.testing.assert_array_equal(moved, ~np.asarray(waits))
    # where h = x + 0.1 f_y / g_yy vanishes
    y = np.roots([1, 0, -1, -0.1 * float(end.x)]).real.max()
    np.testing.assert_allclose(end.x, -0.1 * (y - 0.5) / (3 * y**2 - 1), rtol=1e-4)


@pytest.mark.parametrize("difference", FAST)
def test_a_slow_lower_level_holds_x_back(difference):
    """y* = x, the optimum 1; z comes near by 0.03 of the way a step: an x that does not wait, with
    a rate of 0.3, swings out, ever further (to 1e11 in 2,050 steps). By 3e-8 a step nothing is
    solved and x stays.
    """
    problem = bilevel.Problem(lambda x, y: 0.5 * (y - 1) ** 2, lambda x, y: 0.05 * (y - x) ** 2)

    def run(rate, steps):
        return bilevel.solve(
            problem,
            jnp.asarray(0.0),
            jnp.asarray(0.0),
            difference=difference,
            outer=optax.sgd(0.3),
            inner=optax.sgd(rate),
            max_steps=steps,
        )

    np.testing.assert_allclose(run(0.3, 2000).value.x, 1, atol=1e-3)
    still = run(3e-7, 100)
    assert still.status == Status.MAX_STEPS and still.stats["reason"] == Reason.LOWER_LEVEL
    assert still.value.x == 0


def forward_products(difference, inner_steps):
    """How many vectors the compiled step multiplies by the lower level's matrix (50 rows) and the
    upper level's (70): one a gradient.
    """
    rng = np.random.default_rng(0)
    data = (
        jnp.asarray(rng.normal(size=(50, 30)), jnp.float32),
        jnp.asarray(rng.normal(size=(70, 30)), jnp.float32),
    )
    problem = bilevel.Problem(
        lambda x, y, d: jnp.sum((d[1] @ (x * y)) ** 4),
        lambda x, y, d: jnp.sum((d[0] @ (x * y)) ** 4),
    )
    method = bilevel.Method(
        difference=difference, inner=optax.sgd(0.1), outer=optax.sgd(0.1), inner_steps=inner_steps
    )
    state = bilevel.init(problem, jnp.ones(30, jnp.float32), jnp.ones(30, jnp.float32), method)
    text = (
        jax.jit(lambda s, d: bilevel.step(problem, s, method, batch=d))
        .lower(state, data)
        .compile()
        .as_text()
    )
    products = {
        rows: re.findall(rf"= f32\[{rows}(?:,(\d+))?\]\S* dot\(", text) for rows in (50, 70)
    }  # one vector is [rows, 1] for some compilers, [rows] for others
    return tuple(sum(int(vectors or 1) for vectors in found) for found in products.values())


@pytest.mark.parametrize(
    ("difference", "K", "lower", "upper"),
    [
        ("forward", 1, 4, 2),
        ("forward", 3, 8, 4),
        ("central", 1, 4, 4),
        ("central_linear", 3, 11, 1),
    ],
)
def test_cost_in_gradients(difference, K, lower, upper):
    """Forward: 2K + 3, central: 2K + 4, where an inner gradient of lower + sigma · upper is one;
    central_linear: 3K + 3.
    """
    assert forward_products(difference, K) == (lower, upper)
    total = {"forward": 2 * K + 3, "central": 2 * K + 4, "central_linear": 3 * K + 3}[difference]
    shared = {"forward": K, "central": 2 * K, "central_linear": 0}[difference]
    assert lower + upper - shared == total


def test_copies_that_cannot_be_batched_go_one_after_another():
    """A lower level with a callback, which has no batching rule: an error by default, the same
    answer with batch_copies=False.
    """
    q = quadratic(0, jnp.float64)

    @jax.custom_vjp
    def lower(x, y, q):
        return quadratic_lower(x, y, q)

    def on_host(x, y, q):
        shapes = jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(y.shape, y.dtype)
        return jax.pure_callback(
            lambda x, y, q: (q.C @ y, q.A @ y + q.a + q.C.T @ x), shapes, x, y, q
        )

    lower.defvjp(
        lambda x, y, q: (lower(x, y, q), (x, y, q)),
        lambda saved, c: (
            *(c * part for part in on_host(*saved)),
            jax.tree.map(jnp.zeros_like, saved[2]),
        ),
    )
    method = bilevel.Method(inner=INNER, outer=OUTER)

    def after_two(problem):
        state = bilevel.init(problem, jnp.ones(3), jnp.ones(4), method)
        for _ in range(2):
            state, _ = jax.jit(lambda state: bilevel.step(problem, state, method, batch=q))(state)
        return state.x

    plain = bilevel.Problem(quadratic_upper, lower)
    np.testing.assert_allclose(
        after_two(dataclasses.replace(plain, batch_copies=False)), after_two(QUADRATIC), rtol=1e-12
    )
    with pytest.raises(Exception, match="vmap"):
        after_two(plain)


def test_warm_starts_continue_and_a_certified_one_stops_soon():
    q = quadratic(3, jnp.float64)
    run = functools.partial(
        bilevel.solve,
        QUADRATIC,
        jnp.zeros(3),
        jnp.zeros(4),
        data=q,
        outer=OUTER,
        inner=INNER,
        inner_steps=2,
    )
    whole = run(max_steps=200)
    half = run(max_steps=100)
    rest = run(max_steps=100, state=half.state)
    np.testing.assert_array_equal(whole.value.x, rest.value.x)
    done = run(max_steps=5000).check()
    # the run circles in, so that a later point may be a little worse than the certified one
    assert run(max_steps=5000, state=done.state).stats["num_steps"] <= 10


@pytest.mark.slow
def test_schedules_of_sigma_and_the_relative_one():
    q = quadratic(3, jnp.float64)
    run = functools.partial(
        bilevel.solve,
        QUADRATIC,
        jnp.zeros(3),
        jnp.zeros(4),
        data=q,
        outer=OUTER,
        inner=INNER,
        inner_steps=2,
        max_steps=4000,
    )
    falling = run(sigma=optax.exponential_decay(0.1, 100, 0.7, end_value=1e-5)).check()
    relative = run(sigma="relative").check()
    expected = quadratic_x(q)
    np.testing.assert_allclose(falling.value.x, expected, atol=1e-4)
    np.testing.assert_allclose(relative.value.x, expected, atol=1e-5)
    y, d = relative.value.y, relative.state.d
    balanced = np.finfo(float).eps ** (1 / 3) * np.linalg.norm(y) / np.linalg.norm(d)
    np.testing.assert_allclose(relative.stats["sigma"], balanced, rtol=1e-12)
    history = relative.stats["history"]
    assert history.shape == (10,) and history[-1] <= 1e-6 < history[-2]
    with pytest.raises(ValueError, match="sigma must be one of"):
        run(sigma="small")


def test_projections_keep_x_inside():
    problem = dataclasses.replace(SCALAR, project_x=lambda x: jnp.clip(x, -1.0, 0.2))
    solution = bilevel.solve(
        problem, 0.0, 0.0, sigma=1e-3, outer=optax.sgd(0.2), inner=optax.sgd(0.5), max_steps=500
    ).check()
    assert float(solution.value.x) == 0.2 and solution.stats["hypergradient_norm"] < 1e-6


@pytest.mark.slow
def test_pytrees_and_equinox_modules():
    """The lower level fits a small network; its activation is no array and stays in place."""
    network = eqx.nn.MLP(1, 1, 3, 1, key=jax.random.key(0), dtype=jnp.float32)
    inputs = jnp.linspace(-1, 1, 8, dtype=jnp.float32)[:, None]

    def lower(x, net):
        return jnp.mean((jax.vmap(net)(inputs)[:, 0] - x["target"]) ** 2) + 0.01 * sum(
            jnp.sum(w**2) for w in jax.tree.leaves(eqx.filter(net, eqx.is_array))
        )

    problem = bilevel.Problem(
        lambda x, net: jnp.mean((jax.vmap(net)(inputs)[:, 0] - 1.0) ** 2), lower
    )
    solution = bilevel.solve(
        problem,
        {"target": np.zeros(8, np.float32)},
        network,
        outer=optax.adam(0.05),
        inner=optax.sgd(0.1),
        inner_steps=2,
        max_steps=300,
    )
    assert isinstance(solution.value.y, eqx.nn.MLP) and solution.value.x["target"].shape == (8,)
    fitted = jax.vmap(solution.value.y)(inputs)
    assert fitted.shape == (8, 1) and solution.stats["upper"] < 0.1


def test_failures_have_a_status_and_bad_arguments_a_name():
    q = quadratic(0, jnp.float64)
    run = functools.partial(
        bilevel.solve,
        QUADRATIC,
        jnp.zeros(3),
        jnp.zeros(4),
        outer=OUTER,
        inner=INNER,
        inner_steps=2,
    )
    assert (
        run(data=q._replace(A=-q.A), max_steps=5000).status == Status.NONFINITE
    )  # no lower minimiser: it diverges
    assert run(data=q, max_steps=20).status == Status.MAX_STEPS
    with pytest.raises(ValueError, match="sigma must be > 0"):
        run(data=q, sigma=-1.0)
    with pytest.raises(ValueError, match="inner_steps must be ≥ 1"):
        run(data=q, inner_steps=0)
    with pytest.raises(ValueError, match="sample needs data"):
        run(sample=lambda key, data: data)
    with pytest.raises(ValueError, match="must return arrays like its argument"):
        bilevel.init(
            dataclasses.replace(QUADRATIC, project_x=lambda x: x[:1]), jnp.zeros(3), jnp.zeros(4)
        )
    with pytest.raises(ValueError, match="variance_reduction does not go with"):
        run(data=q, variance_reduction=True, difference="central_linear")
    with pytest.raises(ValueError, match="sample needs a key"):
        run(data=q, sample=lambda key, data: data)
    with pytest.raises(ValueError, match="inner is not linear"):
        run(data=q, inner=optax.adam(0.1))
    other = bilevel.init(
        QUADRATIC, jnp.zeros(3), jnp.zeros(5), bilevel.Method(inner=INNER, outer=OUTER)
    )
    with pytest.raises(ValueError, match="state does not fit"):
        run(data=q, state=other)
    three_copies = bilevel.init(
        QUADRATIC, jnp.zeros(3), jnp.zeros(4), bilevel.Method("one_sided", INNER, OUTER)
    )
    with pytest.raises(ValueError, match=r"state.d does not fit"):
        run(data=q, state=three_copies)
    with pytest.raises(ValueError, match="state does not fit"):
        bilevel.hypergradient(
            QUADRATIC, jnp.zeros(3), jnp.zeros(4), data=q, state=(jnp.zeros(4), jnp.zeros(3))
        )
    with pytest.raises(ValueError, match="leading axis of inner_steps = 1"):
        bilevel.step(
            QUADRATIC, bilevel.init(QUADRATIC, jnp.zeros(3), jnp.zeros(4)), batch=q, inner_batches=q
        )
