"""Action sets against sampling, linear programs and brute force."""

import functools
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


VERTICES = np.concatenate(
    [np.eye(D), -np.eye(D), np.random.default_rng(3).normal(size=(4, D)) * 0.6]
)
NORMALS = np.random.default_rng(4).normal(size=(10, D))
NORMALS = np.concatenate([NORMALS, np.eye(D), -np.eye(D)])
BOUNDS = np.concatenate([np.linspace(0.5, 1.5, 10), np.ones(2 * D)])


def smooth_support(theta, mask):  # an l_4/3 ball by its support function, the l_4 norm
    return jnp.sum(jnp.where(mask, theta, 0.0) ** 4 + 1e-30) ** 0.25


# Made when asked for: a polytope solves linear programs to know how far it reaches.
SETS = {
    "ball": lambda cast: bandits.Ball(1.5),
    "ellipsoid": lambda cast: bandits.Ellipsoid(cast(ellipsoid_matrix(0))),
    "lp": lambda cast: bandits.LpBall(1.5, 2.0),
    "lp3": lambda cast: bandits.LpBall(3.0),
    "box": lambda cast: bandits.Box(cast(np.linspace(-1, 0, D)), 1.0),
    "cross": lambda cast: bandits.CrossPolytope(2.0),
    "simplex": lambda cast: bandits.Simplex(),
    "vertices": lambda cast: bandits.Polytope(cast(VERTICES)),
    "inequalities": lambda cast: bandits.Polytope(inequalities=(cast(NORMALS), cast(BOUNDS))),
    "product": lambda cast: bandits.Product([bandits.Ball(), bandits.Box(-1.0, 0.5)], [2, D - 2]),
    "masked": lambda cast: bandits.Masked(bandits.Ball(), np.arange(D) != 1),
    "support": lambda cast: bandits.FromSupport(smooth_support, 1.0),
}

POLYTOPES = ("vertices", "inequalities")


@functools.cache
def made(name, dtype=jnp.float64):
    return SETS[name](lambda numbers: jnp.asarray(numbers, dtype))


THETA = np.random.default_rng(7).normal(size=D)
MASK = np.array([True, True, False, True, False, False])


EVERYWHERE = np.ones(D, bool)


@jax.jit
def answers(action_set, theta, mask):
    return action_set.support(theta, mask), action_set.argmax(theta, mask)


def value_of(action_set, theta, *rows):
    return float(answers(action_set, theta, np.isin(np.arange(D), rows))[0])


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.float64])
@pytest.mark.parametrize(  # tests/bandits/test_polytope.py has what is true of polytopes
    "name", [*(name for name in SETS if name not in POLYTOPES), *slow(*POLYTOPES)]
)
def test_maximiser_is_feasible_sparse_and_attains_the_support(name, dtype):
    action_set = made(name, dtype)
    theta = jnp.asarray(THETA, dtype)
    value, action = answers(action_set, theta, MASK)
    whole, dense = answers(action_set, theta, EVERYWHERE)
    tol = 2e-5 if dtype == jnp.float32 else 1e-10
    assert value.dtype == action.dtype == dtype
    assert np.all(np.asarray(action)[~MASK] == 0)
    np.testing.assert_allclose(np.dot(action, THETA), value, rtol=tol)
    assert value <= whole + tol and np.isclose(np.dot(dense, THETA), whole, rtol=tol)
    if name == "support":
        return
    assert np.linalg.norm(action) <= float(action_set.norm_bound(3, D)) * (1 + 1e-5)
    # The gauge says that the actions are feasible, three times as much is not, and nothing feasible
    # that is drawn at random beats them.
    points = np.random.default_rng(1).normal(size=(300, D)) * MASK
    points[:3] = action, dense, 3 * dense
    gauges = np.asarray(jax.jit(jax.vmap(action_set.gauge))(jnp.asarray(points, dtype)))
    assert np.all(gauges[:2] <= 1 + 1e-4) and gauges[2] >= 2.9
    drawn, gauges = points[3:], gauges[3:]
    inside = drawn[np.isfinite(gauges)] / gauges[np.isfinite(gauges)][:, None]
    assert len(inside) == 0 or np.max(inside @ THETA) <= float(value) + tol


@pytest.mark.parametrize("name", ["vertices", "inequalities"])
def test_polytope_against_an_independent_solver(name):
    action_set = made(name)
    thetas = np.random.default_rng(2).normal(size=(20, D))
    masks = np.random.default_rng(5).random((20, D)) < 0.5
    ours = np.asarray(
        jax.jit(jax.vmap(action_set.support))(jnp.asarray(thetas), jnp.asarray(masks))
    )
    for theta, mask, value in zip(thetas, masks, ours, strict=True):
        limits = [(None, None) if m else (0, 0) for m in mask]
        if name == "inequalities":
            expected = -linprog(-theta, A_ub=NORMALS, b_ub=BOUNDS, bounds=limits).fun
        else:
            n = len(VERTICES)
            rows = np.vstack(
                [np.hstack([-np.eye(D), VERTICES.T]), np.hstack([np.zeros(D), np.ones(n)])]
            )
            expected = -linprog(
                np.r_[-theta, np.zeros(n)],
                A_eq=rows,
                b_eq=np.r_[np.zeros(D), 1],
                bounds=limits + [(0, None)] * n,
            ).fun
        np.testing.assert_allclose(value, expected, atol=1e-9)


def naive_greedy(action_set, theta, s, available=None):
    chosen, gap = [], np.inf
    for _ in range(s):
        values = {}
        for i in range(len(theta)):
            if i not in chosen and (available is None or available[i]):
                values[i] = value_of(action_set, theta, *chosen, i)
        if not values:
            break
        best = max(values, key=lambda i: (values[i], -i))
        others = [v for i, v in values.items() if i != best]
        gap = min(gap, values[best] - max(others)) if others else gap
        chosen.append(best)
    return chosen, gap


@pytest.mark.parametrize(
    "name", ["ball", "ellipsoid", "box", "masked", "product", *slow("lp", "cross", "vertices")]
)
def test_greedy_is_naive_greedy(name):
    action_set = made(name)
    for seed in range(3):
        theta = jnp.asarray(np.random.default_rng(seed).normal(size=D))
        selection = bandits.greedy_support(action_set, theta, S)
        chosen, gap = naive_greedy(
            action_set, theta, S, np.arange(D) != 1 if name == "masked" else None
        )
        assert list(selection.indices) == chosen
        assert set(np.flatnonzero(selection.mask)) == set(chosen)
        np.testing.assert_allclose(selection.gap, gap, atol=1e-12)
        np.testing.assert_allclose(
            selection.value, value_of(action_set, theta, *chosen), rtol=1e-12
        )


@pytest.mark.slow
def test_a_coordinate_out_of_reach_is_never_learned_nor_used():
    algorithm = bandits.apsee_greedy(
        bandits.Masked(bandits.Ball(), EVERYWHERE & (np.arange(D) != 1)),
        sparsity=S,
        sigma=0.01,
        radius="hkz",
    )
    run = bandits.simulate(
        jax.random.key(0),
        algorithm,
        jnp.asarray([0.9, 5.0, -0.7, 0.5, 0.1, 0.0]),
        sigma=0.01,
        horizon=2000,
    )
    assert run.locked and run.support.tolist() == [0, 2, 3] and np.all(np.isfinite(run.regret))


def test_incremental_greedy_on_thirty_ellipsoids():
    d = 10
    matrices = jnp.asarray(np.stack([ellipsoid_matrix(seed, d) for seed in range(30)]))
    thetas = jnp.asarray(np.random.default_rng(0).normal(size=(30, d)))
    fast = jax.jit(jax.vmap(lambda a, t: bandits.Ellipsoid(a).greedy(t, 4)))(matrices, thetas)
    slow = jax.jit(jax.vmap(lambda a, t: bandits.ActionSet.greedy(bandits.Ellipsoid(a), t, 4)))(
        matrices, thetas
    )
    np.testing.assert_array_equal(fast.indices, slow.indices)
    np.testing.assert_allclose(fast.gap, slow.gap, atol=1e-9)
    np.testing.assert_allclose(fast.value, slow.value, rtol=1e-9)


@pytest.mark.parametrize("name", ["ball", "ellipsoid", *slow("lp", "box", "cross", "vertices")])
def test_best_support_against_enumeration(name):
    action_set = made(name)
    theta = jnp.asarray(THETA)
    values = [value_of(action_set, theta, *rows) for rows in itertools.combinations(range(D), S)]
    np.testing.assert_allclose(
        bandits.best_support(action_set, theta, S).value, max(values), rtol=1e-12
    )
    selection, nodes = bandits.branch_and_bound(action_set, theta, S)
    np.testing.assert_allclose(selection.value, max(values), rtol=1e-12)
    assert nodes < 2**D and selection.mask.sum() <= S


MIXED = bandits.Product(
    [
        bandits.Ball(),
        bandits.Masked(bandits.Box(-1.0, 0.5), np.array([True, False])),
        bandits.CrossPolytope(0.7),
    ],
    [2] * 3,
)


@pytest.mark.parametrize(
    "action_set",
    [MIXED, *(bandits.Masked(s, np.arange(D) != 2) for s in (bandits.Ball(), bandits.Simplex()))],
)
def test_greedy_is_exact_where_a_set_says_so(action_set):
    assert action_set.greedy_is_exact
    masks = np.array([np.isin(np.arange(D), rows) for rows in itertools.combinations(range(D), S)])
    thetas = jnp.asarray(np.random.default_rng(3).normal(size=(50, D)))

    @jax.jit
    @jax.vmap
    def both(theta):
        return bandits.best_support(action_set, theta, S).value, jnp.max(
            jax.vmap(lambda mask: action_set.support(theta, mask))(masks)
        )

    np.testing.assert_allclose(*both(thetas), rtol=1e-12)
    assert not bandits.Product(
        [bandits.Ball(), bandits.Ellipsoid(jnp.eye(2))], [4, 2]
    ).greedy_is_exact


@jax.jit
def restricted(action_set, theta, indices):
    part = action_set.restrict(indices, D)
    return part.support(theta[indices]), part.argmax(theta[indices])


@pytest.mark.parametrize("name", ["ball", "box", "ellipsoid", *slow("lp", "product")])
def test_restriction_is_the_set_on_the_chosen_coordinates(name):
    action_set, theta, indices = made(name), jnp.asarray(THETA), jnp.asarray([4, 0, 3])
    value, action = answers(action_set, theta, np.isin(np.arange(D), indices))
    part_value, part_action = restricted(action_set, theta, indices)
    np.testing.assert_allclose(part_value, value, rtol=1e-10)
    np.testing.assert_allclose(part_action, action[indices], atol=1e-10)


@jax.jit
def slope(action_set, theta, mask):
    return jax.grad(action_set.support)(theta, mask)


@pytest.mark.parametrize("name", ["ball", "ellipsoid", "lp", *slow("box", "vertices", "support")])
def test_derivative_of_the_value_is_the_action(name):
    action_set = made(name)
    gradient, action = (
        slope(action_set, jnp.asarray(THETA), MASK),
        answers(action_set, jnp.asarray(THETA), MASK)[1],
    )
    np.testing.assert_allclose(gradient, action, atol=1e-8)
    assert np.all(np.isfinite(slope(action_set, jnp.zeros(D), MASK)))


def test_derivatives_in_the_parameters_of_the_set():
    theta, mask, matrix = jnp.asarray(THETA), jnp.asarray(MASK), jnp.asarray(ellipsoid_matrix(0))
    move = ellipsoid_matrix(1) - np.eye(D)
    for value in (
        lambda e: bandits.Ellipsoid(matrix + e * move).support(theta, mask),
        lambda e: bandits.LpBall(1.5 + e).support(theta, mask),
    ):
        value = jax.jit(value)
        central = (value(1e-5) - value(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.grad(value)(0.0), central, rtol=1e-6)


def test_extreme_scales_and_zero():
    for scale in (1e-30, 1e-12, 1e12, 1e30):
        theta = jnp.asarray(THETA * scale, jnp.float32)
        for action_set in (bandits.Ball(), bandits.LpBall(1.5)):
            value = bandits.greedy_support(action_set, theta, S).value / scale
            np.testing.assert_allclose(
                value,
                bandits.greedy_support(action_set, jnp.asarray(THETA, jnp.float32), S).value,
                rtol=1e-5,
            )
    for name in SETS:
        assert np.all(np.asarray(answers(made(name), jnp.zeros(D), MASK)[1]) == 0), name
    assert np.isnan(
        bandits.greedy_support(bandits.Ball(), jnp.asarray(THETA).at[1].set(np.nan), S).value
    )


def test_submodularity_ratio():
    assert bandits.submodularity_ratio(
        bandits.Box(-1.0, 1.0), jnp.asarray(THETA), S
    ) == pytest.approx(1.0)
    for seed in range(5):
        ellipsoid = bandits.Ellipsoid(jnp.asarray(ellipsoid_matrix(seed)))
        theta = jnp.asarray(np.random.default_rng(seed).normal(size=D))
        ratio = bandits.submodularity_ratio(ellipsoid, theta, S)
        assert ratio >= ellipsoid.ratio_bound(S, D)
        scale = jnp.asarray(np.random.default_rng(seed).uniform(0.1, 3.0, D))  # other units
        other = bandits.Ellipsoid(ellipsoid.matrix * scale[:, None] * scale[None, :])
        blocks = [ellipsoid.matrix[np.ix_(s, s)] for s in itertools.combinations(range(D), 4)]
        for one in (ellipsoid, other, bandits.Product([other, bandits.Box()], [D, 2])):
            np.testing.assert_allclose(
                one.ratio_bound(2, one.dimension), min(np.linalg.eigvalsh(b)[0] for b in blocks)
            )
        quality = (
            bandits.greedy_support(ellipsoid, theta, S).value
            / bandits.best_support(ellipsoid, theta, S).value
        )
        assert quality >= 1 - np.exp(-ratio)


def test_a_polytope_of_submodularity_ratio_zero():
    """Convex, compact, the origin inside, and yet greedy has no guarantee: no single coordinate
    helps once the first is chosen.
    """
    vertices = np.concatenate([np.eye(D), -np.eye(D), [[0.9, 0.5, 0.5, 0, 0, 0]] * 4])
    polytope, theta = bandits.Polytope(jnp.asarray(vertices)), jnp.asarray([1.0, 0.2, 0.2, 0, 0, 0])
    assert (
        value_of(polytope, theta, 0)
        == value_of(polytope, theta, 0, 1)
        == value_of(polytope, theta, 0, 2)
        == pytest.approx(1.0)
    )
    assert value_of(polytope, theta, 0, 1, 2) == pytest.approx(1.1)
    assert bandits.submodularity_ratio(polytope, theta, 2) == pytest.approx(0.0, abs=1e-12)
    assert polytope.ratio_bound(2, D) == 0.0 and bandits.Ball().ratio_bound(2, D) == 1.0


@pytest.mark.slow
def test_what_is_true_of_a_set_is_true_of_its_mask():
    available, kept = np.arange(D) != 1, np.delete(np.arange(D), 1)
    matrix = ellipsoid_matrix(5)
    masked = bandits.Masked(bandits.Ellipsoid(jnp.asarray(matrix)), available)
    small = bandits.Ellipsoid(jnp.asarray(matrix[np.ix_(kept, kept)]))
    theta = jnp.asarray(THETA)
    for choose in (bandits.best_support, bandits.greedy_support):
        ours, right = choose(masked, theta, S), choose(small, theta[kept], S)
        np.testing.assert_allclose(ours.value, right.value, rtol=1e-12)
        np.testing.assert_array_equal(ours.indices, kept[np.asarray(right.indices)])
    # An unavailable coordinate among those of a restriction counts for nothing.
    part, few = masked.restrict(jnp.asarray([0, 1, 3]), D), jnp.asarray([0, 3])
    known = theta[jnp.asarray([0, 1, 3])]
    value = np.sqrt(theta[few] @ np.linalg.solve(matrix[np.ix_(few, few)], theta[few]))
    np.testing.assert_allclose([part.support(known), known @ part.argmax(known)], value)
    assert part.argmax(known)[1] == 0
    assert masked.strongly_convex and masked.quadratic and not masked.ranked
    assert masked.action_slope(D) == bandits.Ellipsoid(jnp.asarray(matrix)).action_slope(D)
    ball, shared = bandits.Masked(bandits.Ball(), available), {"sparsity": S, "sigma": 1e-3}
    for algorithm in (
        bandits.apsee(ball, **shared),
        bandits.prove_support(ball, **shared),
        bandits.apsee_greedy(masked, radius="local", **shared),
    ):
        run = bandits.simulate(jax.random.key(0), algorithm, theta, sigma=1e-3, horizon=500)
        best = bandits.greedy_support(algorithm.action_set, theta, S)
        np.testing.assert_array_equal(run.support, np.sort(best.indices))
        assert run.locked and 1 not in run.support


def test_greedy_far_below_the_best_on_an_ill_conditioned_ellipsoid():
    # Two nearly parallel coordinates whose difference the parameter follows: each alone is worth
    # 0.5, together they are worth 3.5.
    theta = jnp.asarray([0.5, -0.5, 0.6, 0, 0, 0])
    ellipsoid = bandits.Ellipsoid(jnp.eye(D).at[0, 1].set(0.99).at[1, 0].set(0.99))
    greedy = bandits.greedy_support(ellipsoid, theta, S).indices[:2]
    assert value_of(ellipsoid, theta, *np.asarray(greedy)) < 0.25 * value_of(ellipsoid, theta, 0, 1)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: bandits.Ball(0.0), "radius"),
        (lambda: bandits.LpBall(1.0), "p must be > 1"),
        (lambda: bandits.Box(0.5, 1.0), "low must be ≤ 0"),
        (lambda: bandits.Ellipsoid(jnp.zeros((2, 2))), "positive definite"),
        (lambda: bandits.Ellipsoid(jnp.asarray([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: bandits.Polytope(jnp.asarray(VERTICES + 2.0)), "origin"),
        (lambda: bandits.Polytope(inequalities=(jnp.eye(2), -jnp.ones(2))), "b must be ≥ 0"),
        (
            lambda: bandits.greedy_support(bandits.Ball(), jnp.ones(3), 4),
            "sparsity must be ≤ d = 3",
        ),
        (lambda: bandits.greedy_support(bandits.Ball(), jnp.ones(3), 0), "sparsity must be ≥ 1"),
        (lambda: bandits.FromSupport(smooth_support, 1.0).gauge(jnp.ones(D)), "basis"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_what_is_made_inside_jit_from_constants_is_not_looked_at():
    """Constants are known, what is computed of them is not."""
    theta, key = jnp.asarray([0.9, 0.1, -0.5]), jax.random.key(0)
    rows, limits = jnp.concatenate([jnp.eye(3), -jnp.eye(3)]), jnp.ones(6)

    @jax.jit
    def play(theta):
        algorithm = bandits.apsee(bandits.Ball(), sparsity=1, sigma=0.1, basis=jnp.eye(3))
        box = bandits.Polytope(inequalities=(rows, limits))
        return bandits.simulate(key, algorithm, theta, sigma=0.1, horizon=20).regret, box.support(
            theta
        )

    np.testing.assert_allclose(play(theta)[1], 1.5)
    for call in (
        lambda theta: bandits.submodularity_ratio(bandits.Ball(), theta, 2),
        lambda theta: bandits.branch_and_bound(bandits.Ball(), theta, 2),
    ):
        with pytest.raises(ValueError, match="theta must be concrete"):
            jax.jit(call)(theta)


def test_a_gauge_of_nan_is_nan():
    for one in (bandits.Ball(), bandits.Box(0.0, 1.0), bandits.Box(-1.0, 1.0), bandits.Simplex()):
        assert np.isnan(one.gauge(jnp.asarray([jnp.nan, 0.2])))


@pytest.mark.parametrize("kind", [bandits.Ball, bandits.CrossPolytope, bandits.Simplex])
def test_a_misspelt_radius_names_the_set(kind):
    with pytest.raises(TypeError, match=rf"{kind.__name__}.__init__\(\) got an unexpected"):
        kind(size=2.0)
    with pytest.raises(ValueError, match="radius must be > 0"):
        kind(-1.0)
