"""Action sets against sampling, linear programs and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from jaxsac import bandits

D, S = 6, 3


def slow(*names):
    """Cases whose time is compilation."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def ellipsoid_matrix(seed, d=D, ridge=0.3):
    m = np.random.default_rng(seed).normal(size=(d, d))
    a = m @ m.T / d + ridge * np.eye(d)
    scale = 1 / np.sqrt(np.diag(a))
    return a * scale[:, None] * scale[None, :]


VERTICES = np.concatenate([np.eye(D), -np.eye(D), np.random.default_rng(3).normal(size=(4, D)) * 0.6])
NORMALS = np.random.default_rng(4).normal(size=(10, D))
NORMALS = np.concatenate([NORMALS, np.eye(D), -np.eye(D)])
BOUNDS = np.concatenate([np.linspace(0.5, 1.5, 10), np.ones(2 * D)])


def smooth_support(theta, mask):  # an l_4/3 ball by its support function, the l_4 norm
    return jnp.sum(jnp.where(mask, theta, 0.0) ** 4 + 1e-30) ** 0.25


def project_ball(x, mask):
    x = jnp.where(mask, x, 0.0)
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x**2)), 1.0)


def sets(dtype):
    cast = lambda a: jnp.asarray(a, dtype)  # noqa: E731
    return {
        "ball": bandits.Ball(1.5),
        "ellipsoid": bandits.Ellipsoid(cast(ellipsoid_matrix(0))),
        "lp": bandits.LpBall(1.5, 2.0),
        "lp3": bandits.LpBall(3.0),
        "box": bandits.Box(cast(np.linspace(-1, 0, D)), 1.0),
        "cross": bandits.CrossPolytope(2.0),
        "simplex": bandits.Simplex(),
        "vertices": bandits.Polytope(cast(VERTICES)),
        "inequalities": bandits.Polytope(inequalities=(cast(NORMALS), cast(BOUNDS))),
        "product": bandits.Product([bandits.Ball(), bandits.Box(-1.0, 0.5)], [2, D - 2]),
        "masked": bandits.Masked(bandits.Ball(), np.arange(D) != 1),
        "support": bandits.FromSupport(smooth_support, 1.0),
        "projection": bandits.FromProjection(project_ball, 1.0),
    }


NAMES = list(sets(jnp.float32))
THETA = np.random.default_rng(7).normal(size=D)
MASK = np.array([True, True, False, True, False, False])


@jax.jit
def answers(action_set, theta, mask):
    action = action_set.argmax(theta, mask)
    return action_set.support(theta, mask), action, action_set.support(theta), action_set.argmax(theta)


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.float64])
@pytest.mark.parametrize("name", NAMES)
def test_maximiser_is_feasible_sparse_and_attains_the_support(name, dtype):
    action_set = sets(dtype)[name]
    theta = jnp.asarray(THETA, dtype)
    value, action, whole, dense = answers(action_set, theta, jnp.asarray(MASK))
    tol = 2e-3 if name == "projection" else (2e-5 if dtype == jnp.float32 else 1e-10)
    assert value.dtype == action.dtype == dtype
    assert np.all(np.asarray(action)[~MASK] == 0)
    np.testing.assert_allclose(np.dot(action, THETA), value, rtol=tol)
    assert value <= whole + tol and np.isclose(np.dot(dense, THETA), whole, rtol=tol)
    if name not in ("support", "projection"):
        assert action_set.gauge(action) <= 1 + 1e-4 and action_set.gauge(dense) <= 1 + 1e-4
        assert action_set.gauge(3 * dense) >= 2.9
        assert np.linalg.norm(action) <= float(action_set.norm_bound(3, D)) * (1 + 1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("support", "projection")])
def test_nothing_feasible_beats_the_support(name):
    action_set = sets(jnp.float64)[name]
    rng = np.random.default_rng(1)
    points = rng.normal(size=(300, D)) * MASK
    gauges = np.asarray(jax.jit(jax.vmap(action_set.gauge))(jnp.asarray(points)))
    inside = points[np.isfinite(gauges)] / gauges[np.isfinite(gauges)][:, None]
    value = action_set.support(jnp.asarray(THETA), jnp.asarray(MASK))
    assert len(inside) == 0 or np.max(inside @ THETA) <= value + 1e-9


@pytest.mark.parametrize("name", ["vertices", "inequalities"])
def test_polytope_against_an_independent_solver(name):
    action_set = sets(jnp.float64)[name]
    thetas = np.random.default_rng(2).normal(size=(20, D))
    masks = np.random.default_rng(5).random((20, D)) < 0.5
    ours = np.asarray(jax.jit(jax.vmap(action_set.support))(jnp.asarray(thetas), jnp.asarray(masks)))
    for theta, mask, value in zip(thetas, masks, ours, strict=True):
        limits = [(None, None) if m else (0, 0) for m in mask]
        if name == "inequalities":
            expected = -linprog(-theta, A_ub=NORMALS, b_ub=BOUNDS, bounds=limits).fun
        else:
            n = len(VERTICES)
            rows = np.vstack([np.hstack([-np.eye(D), VERTICES.T]), np.hstack([np.zeros(D), np.ones(n)])])
            expected = -linprog(np.r_[-theta, np.zeros(n)], A_eq=rows, b_eq=np.r_[np.zeros(D), 1], bounds=limits + [(0, None)] * n).fun
        np.testing.assert_allclose(value, expected, atol=1e-9)


@jax.jit
def support(action_set, theta, mask):
    return action_set.support(theta, mask)


def naive_greedy(action_set, theta, s, available=None):
    chosen, gap = [], np.inf
    for _ in range(s):
        values = {}
        for i in range(len(theta)):
            if i not in chosen and (available is None or available[i]):
                mask = np.zeros(len(theta), bool)
                mask[[*chosen, i]] = True
                values[i] = float(support(action_set, theta, mask))
        if not values:
            break
        best = max(values, key=lambda i: (values[i], -i))
        others = [v for i, v in values.items() if i != best]
        gap = min(gap, values[best] - max(others)) if others else gap
        chosen.append(best)
    return chosen, gap


@pytest.mark.parametrize("name", ["ball", "ellipsoid", "box", "masked", *slow("lp", "cross", "vertices", "product")])
def test_greedy_is_naive_greedy(name):
    action_set = sets(jnp.float64)[name]
    for seed in range(3):
        theta = jnp.asarray(np.random.default_rng(seed).normal(size=D))
        selection = bandits.greedy_support(action_set, theta, S)
        chosen, gap = naive_greedy(action_set, theta, S, np.arange(D) != 1 if name == "masked" else None)
        assert list(selection.indices) == chosen
        assert set(np.flatnonzero(selection.mask)) == set(chosen)
        np.testing.assert_allclose(selection.gap, gap, atol=1e-12)
        np.testing.assert_allclose(selection.value, action_set.support(theta, selection.mask), rtol=1e-12)


def test_incremental_greedy_on_thirty_ellipsoids():
    d = 10
    matrices = jnp.asarray(np.stack([ellipsoid_matrix(seed, d) for seed in range(30)]))
    thetas = jnp.asarray(np.random.default_rng(0).normal(size=(30, d)))
    fast = jax.jit(jax.vmap(lambda a, t: bandits.Ellipsoid(a).greedy(t, 4)))(matrices, thetas)
    slow = jax.jit(jax.vmap(lambda a, t: bandits.ActionSet.greedy(bandits.Ellipsoid(a), t, 4)))(matrices, thetas)
    np.testing.assert_array_equal(fast.indices, slow.indices)
    np.testing.assert_allclose(fast.gap, slow.gap, atol=1e-9)
    np.testing.assert_allclose(fast.value, slow.value, rtol=1e-9)


@pytest.mark.parametrize("name", ["ball", "ellipsoid", *slow("lp", "box", "cross", "vertices")])
def test_best_support_against_enumeration(name):
    action_set = sets(jnp.float64)[name]
    theta = jnp.asarray(THETA)
    values = [float(support(action_set, theta, np.isin(np.arange(D), rows))) for rows in itertools.combinations(range(D), S)]
    np.testing.assert_allclose(bandits.best_support(action_set, theta, S).value, max(values), rtol=1e-12)
    selection, nodes = bandits.branch_and_bound(action_set, theta, S)
    np.testing.assert_allclose(selection.value, max(values), rtol=1e-12)
    assert nodes < 2**D and selection.mask.sum() <= S


@pytest.mark.parametrize("name", ["ball", "lp", "box", "ellipsoid", "product"])
def test_restriction_is_the_set_on_the_chosen_coordinates(name):
    action_set = sets(jnp.float64)[name]
    theta, indices = jnp.asarray(THETA), jnp.asarray([4, 0, 3])
    mask = np.isin(np.arange(D), indices)
    part = action_set.restrict(indices, D)
    np.testing.assert_allclose(part.support(theta[indices]), action_set.support(theta, mask), rtol=1e-10)
    np.testing.assert_allclose(part.argmax(theta[indices]), action_set.argmax(theta, mask)[indices], atol=1e-10)


@pytest.mark.parametrize("name", ["ball", "ellipsoid", "lp", "box", "vertices", "support"])
def test_derivative_of_the_value_is_the_action(name):
    action_set = sets(jnp.float64)[name]
    theta, mask = jnp.asarray(THETA), jnp.asarray(MASK)
    gradient = jax.grad(action_set.support)(theta, mask)
    np.testing.assert_allclose(gradient, action_set.argmax(theta, mask), atol=1e-8)
    zero = jax.grad(action_set.support)(jnp.zeros(D), mask)
    assert np.all(np.isfinite(zero))


def test_derivatives_in_the_parameters_of_the_set():
    theta, mask, matrix = jnp.asarray(THETA), jnp.asarray(MASK), jnp.asarray(ellipsoid_matrix(0))
    move = ellipsoid_matrix(1) - np.eye(D)
    for value in (
        lambda e: bandits.Ellipsoid(matrix + e * move).support(theta, mask),
        lambda e: bandits.LpBall(1.5 + e).support(theta, mask),
    ):
        central = (value(1e-5) - value(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.grad(value)(0.0), central, rtol=1e-6)


def test_extreme_scales_and_zero():
    for scale in (1e-30, 1e-12, 1e12, 1e30):
        theta = jnp.asarray(THETA * scale, jnp.float32)
        for action_set in (bandits.Ball(), bandits.LpBall(1.5)):
            selection = bandits.greedy_support(action_set, theta, S)
            np.testing.assert_allclose(selection.value / scale, bandits.greedy_support(action_set, jnp.asarray(THETA), S).value, rtol=1e-5)
    for name, action_set in sets(jnp.float32).items():
        assert np.all(np.asarray(answers(action_set, jnp.zeros(D, jnp.float32), jnp.asarray(MASK))[1]) == 0), name
    assert np.isnan(bandits.greedy_support(bandits.Ball(), jnp.asarray([1.0, np.nan, 0.5]), 2).value)


def test_submodularity_ratio():
    assert bandits.submodularity_ratio(bandits.Box(-1.0, 1.0), jnp.asarray(THETA), S) == pytest.approx(1.0)
    for seed in range(5):
        matrix = ellipsoid_matrix(seed)
        theta = jnp.asarray(np.random.default_rng(seed).normal(size=D))
        ratio = bandits.submodularity_ratio(bandits.Ellipsoid(jnp.asarray(matrix)), theta, S)
        assert ratio >= np.linalg.eigvalsh(matrix)[0]  # Das and Kempe's bound for a unit diagonal
        quality = (
            bandits.greedy_support(bandits.Ellipsoid(jnp.asarray(matrix)), theta, S).value
            / bandits.best_support(bandits.Ellipsoid(jnp.asarray(matrix)), theta, S).value
        )
        assert quality >= 1 - np.exp(-ratio)


def test_a_polytope_of_submodularity_ratio_zero():
    """Convex, compact, the origin inside, and yet greedy has no guarantee: no single coordinate helps once the first is chosen."""
    vertices = np.concatenate([np.eye(3), -np.eye(3), [[0.9, 0.5, 0.5]]])
    polytope, theta = bandits.Polytope(jnp.asarray(vertices)), jnp.asarray([1.0, 0.2, 0.2])
    value = lambda *rows: float(polytope.support(theta, np.isin(np.arange(3), rows)))  # noqa: E731
    assert value(0) == value(0, 1) == value(0, 2) == pytest.approx(1.0)
    assert value(0, 1, 2) == pytest.approx(1.1)
    assert bandits.submodularity_ratio(polytope, theta, 2) == pytest.approx(0.0, abs=1e-12)


def test_greedy_far_below_the_best_on_an_ill_conditioned_ellipsoid():
    # Two nearly parallel coordinates whose difference the parameter follows: each alone is worth 0.5, together they are worth 3.5.
    matrix = jnp.asarray([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])
    theta = jnp.asarray([0.5, -0.5, 0.6])
    ellipsoid = bandits.Ellipsoid(matrix)
    ratio = bandits.greedy_support(ellipsoid, theta, 2).value / bandits.best_support(ellipsoid, theta, 2).value
    assert ratio < 0.25


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: bandits.Ball(0.0), "radius"),
        (lambda: bandits.LpBall(1.0), "CrossPolytope"),
        (lambda: bandits.Box(0.5, 1.0), "low <= 0 <= high"),
        (lambda: bandits.Ellipsoid(jnp.zeros((2, 2))), "positive definite"),
        (lambda: bandits.Ellipsoid(jnp.asarray([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: bandits.Polytope(jnp.asarray([[1.0, 0.0], [0.0, 1.0]])), "origin"),
        (lambda: bandits.Polytope(inequalities=(jnp.eye(2), -jnp.ones(2))), "origin"),
        (lambda: bandits.greedy_support(bandits.Ball(), jnp.ones(3), 4), "at most the dimension 3"),
        (lambda: bandits.greedy_support(bandits.Ball(), jnp.ones(3), 0), "at least 1"),
        (lambda: bandits.FromSupport(smooth_support, 1.0).gauge(jnp.ones(D)), "basis"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
