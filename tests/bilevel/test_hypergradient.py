"""Hypergradients against closed forms, implicit differentiation and each other."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bilevel.beds import QUADRATIC, SMOOTH, penalty_gradients, quadratic

from jaxsac import Status, bilevel, prox
from jaxsac.problems import bilevel as problems

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "difference",
    [
        pytest.param("forward", marks=SLOW),
        "central_linear",
        pytest.param("central", marks=SLOW),
        pytest.param("one_sided", marks=SLOW),
    ],
)
def test_quadratics_have_a_closed_form_at_every_sigma(difference):
    for seed, sigma in ((0, 0.1), (1, 0.01), (2, 0.3)):
        q = quadratic(seed, jnp.float64)
        x = jnp.asarray(np.random.default_rng(seed).normal(size=3))
        solution = bilevel.hypergradient(
            QUADRATIC, x, jnp.zeros(4), data=q, sigma=sigma, difference=difference, tol=1e-12
        )
        expected = penalty_gradients(jax.tree.map(np.asarray, q), np.asarray(x), sigma)[difference]
        np.testing.assert_allclose(solution.value, expected, rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def implicit():
    return problems.smooth_hypergradient(problems.smooth(jnp.float64))


def test_the_check_finds_the_implicit_gradient():
    q, x = quadratic(0, jnp.float64), jnp.ones(3)
    check = bilevel.check_hypergradient(QUADRATIC, x, jnp.zeros(4), data=q, tol=1e-12)
    np.testing.assert_allclose(
        check.implicit,
        penalty_gradients(jax.tree.map(np.asarray, q), np.ones(3), 1.0)["central_linear"],
        rtol=1e-10,
    )
    np.testing.assert_allclose(check.condition, np.linalg.cond(q.A), rtol=1e-8)
    assert check.error < 1e-10


def relative_error(solution, exact):
    return float(
        np.linalg.norm(np.asarray(solution.value, np.float64) - exact) / np.linalg.norm(exact)
    )


@pytest.mark.parametrize(
    ("difference", "order"),
    [
        pytest.param("forward", 1, marks=SLOW),
        ("central_linear", 2),
        pytest.param("central", 2, marks=SLOW),
        pytest.param("one_sided", 2, marks=SLOW),
    ],
)
def test_the_error_falls_with_the_order_of_the_difference(implicit, difference, order):
    data = problems.smooth(jnp.float64)
    errors = []
    for sigma in (1e-2, 1e-3):
        solution = bilevel.hypergradient(
            SMOOTH, data.x, jnp.zeros(50), data=data, sigma=sigma, difference=difference, tol=1e-10
        )
        assert solution.status == Status.CONVERGED
        errors.append(relative_error(solution, implicit))
    slope = np.log10(errors[0] / errors[1])
    assert abs(slope - order) < 0.1, errors


@pytest.mark.slow
def test_float32_at_default_settings():
    data = problems.smooth(jnp.float32)
    implicit = problems.smooth_hypergradient(data)
    solution = bilevel.hypergradient(SMOOTH, data.x, jnp.zeros(50, jnp.float32), data=data)
    assert solution.status == Status.CONVERGED and solution.value.dtype == jnp.float32
    assert relative_error(solution, implicit) < 1e-4
    # far below what the dtype resolves: says so
    tiny = bilevel.hypergradient(SMOOTH, data.x, jnp.zeros(50, jnp.float32), data=data, sigma=1e-7)
    assert tiny.status == Status.STALLED and tiny.stats["cancellation"] > 0.1


def test_paired_truncation_has_the_same_error_at_every_sigma(implicit):
    """Ten steps from a common start: an unpaired difference would have an error that grows as 1 /
    sigma.
    """
    data = problems.smooth(jnp.float64)
    inner = optax.sgd(0.2)
    errors = []
    for sigma in (1e-2, 1e-4, 1e-6):
        solution = bilevel.hypergradient(
            SMOOTH, data.x, jnp.zeros(50), data=data, sigma=sigma, inner=inner, max_steps=10
        )
        assert solution.status == Status.MAX_STEPS
        errors.append(relative_error(solution, implicit))
    assert max(errors) / min(errors) < 1.01 and errors[0] < 0.5


@SLOW
def test_linear_and_adaptive_inner_optimisers_find_the_same():
    q, x = quadratic(0, jnp.float64), jnp.ones(3)
    expected = penalty_gradients(jax.tree.map(np.asarray, q), np.ones(3), 1.0)["central_linear"]
    for inner in (optax.sgd(0.15, momentum=0.5, nesterov=True), bilevel.paired_adam(0.02)):
        solution = bilevel.hypergradient(
            QUADRATIC, x, jnp.zeros(4), data=q, inner=inner, max_steps=4000
        )
        assert solution.status == Status.CONVERGED and relative_error(solution, expected) < 1e-5


def test_an_optimiser_that_breaks_pairing_is_an_error():
    q = quadratic(0, jnp.float64)
    for inner in (
        optax.adam(0.1),
        optax.chain(optax.clip(0.1), optax.sgd(0.1)),
        optax.sign_sgd(0.1),
    ):
        with pytest.raises(ValueError, match=r"inner is not linear.*paired_adam"):
            bilevel.hypergradient(QUADRATIC, jnp.zeros(3), jnp.zeros(4), data=q, inner=inner)
    for inner in (
        optax.sgd(optax.exponential_decay(0.1, 10, 0.9)),
        optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, 0.9)),
    ):
        bilevel.init(QUADRATIC, jnp.zeros(3), jnp.zeros(4), bilevel.Method(inner=inner))


@SLOW
def test_cancellation_free_differences_are_opt_in():
    """In float32 with a tiny sigma only a difference without cancellation is any good."""
    data = problems.smooth(jnp.float32)
    implicit = problems.smooth_hypergradient(data)
    plain = bilevel.hypergradient(SMOOTH, data.x, jnp.zeros(50, jnp.float32), data=data, sigma=1e-5)

    def lower_difference(x, y, step, data):
        def gradients(
            y,
        ):  # of the smooth bed, with tanh(b) - tanh(a) = sinh(b - a) / (cosh a cosh b)
            return data.curvature @ y

        moved = gradients(step)
        return -data.linear_map.T @ moved, moved + jnp.sinh(step) / (
            jnp.cosh(y) * jnp.cosh(y + step)
        )

    product = dataclasses.replace(SMOOTH, allow_jvp=True)
    jvp = bilevel.hypergradient(product, data.x, jnp.zeros(50, jnp.float32), data=data, sigma=1e-5)
    own = bilevel.hypergradient(
        dataclasses.replace(SMOOTH, lower_difference=lower_difference),
        data.x,
        jnp.zeros(50, jnp.float32),
        data=data,
        sigma=1e-5,
    )
    assert relative_error(plain, implicit) > 1e-3
    assert relative_error(jvp, implicit) < 2e-5 and relative_error(own, implicit) < 2e-5


def deficient_lower(x, y, data):
    return 0.5 * jnp.sum((data[0] @ y - x) ** 2)


def deficient_upper(x, y, data):
    return 0.5 * jnp.sum((y - data[1]) ** 2)


def test_several_minimisers_give_the_optimistic_selection():
    rng = np.random.default_rng(0)
    B = rng.normal(size=(3, 2)) @ rng.normal(size=(2, 5))  # rank 2: a three-dimensional null space
    c, x = rng.normal(size=5), B @ rng.normal(size=5)
    pseudo = np.linalg.pinv(B)
    chosen, exact = pseudo @ x + c - pseudo @ B @ c, pseudo.T @ pseudo @ (x - B @ c)
    problem = bilevel.Problem(deficient_upper, deficient_lower)
    errors = []
    for sigma in (1e-2, 1e-3):
        solution = bilevel.hypergradient(
            problem,
            jnp.asarray(x),
            jnp.ones(5),
            data=(jnp.asarray(B), jnp.asarray(c)),
            sigma=sigma,
            difference="forward",
            tol=1e-9,
        )
        z, d = solution.state
        errors.append(
            [
                np.linalg.norm(z + sigma * d - chosen),
                np.linalg.norm(B @ pseudo @ (solution.value - exact)),
            ]
        )
        assert np.linalg.norm(z - chosen) > 0.1  # z itself is another minimiser
    np.testing.assert_allclose(np.divide(errors[0], errors[1]), 10.0, rtol=0.1)


def test_a_lower_level_that_is_not_convex():
    """lower = ½ (u(y) - x)² with u(y) = y + ½ sin y: y* = u⁻¹(x), derivative f_y / u'(y*) + f_x."""
    problem = bilevel.Problem(
        lambda x, y: jnp.cos(y) + 0.1 * x**2, lambda x, y: 0.5 * (y + 0.5 * jnp.sin(y) - x) ** 2
    )
    x = jnp.asarray(2.0)
    solution = bilevel.hypergradient(problem, x, jnp.asarray(0.0), tol=1e-10)
    y = float(solution.state[0])
    assert abs(y + 0.5 * np.sin(y) - 2.0) < 1e-9 and solution.status == Status.CONVERGED
    np.testing.assert_allclose(solution.value, -np.sin(y) / (1 + 0.5 * np.cos(y)) + 0.4, rtol=1e-6)


def test_what_is_wrong_is_never_certified():
    q = quadratic(0, jnp.float64)
    x, y0 = jnp.ones(3), jnp.zeros(4)
    concave = q._replace(
        F=20.0 * q.F
    )  # lower - sigma · upper is concave: the central difference has no copy at -sigma
    assert (
        bilevel.hypergradient(
            QUADRATIC, x, y0, data=concave, sigma=0.3, difference="central"
        ).status
        != Status.CONVERGED
    )
    unbounded = q._replace(A=-q.A)
    assert bilevel.hypergradient(QUADRATIC, x, y0, data=unbounded).status != Status.CONVERGED
    missing = q._replace(a=q.a.at[0].set(jnp.nan))
    assert bilevel.hypergradient(QUADRATIC, x, y0, data=missing).status == Status.NONFINITE
    assert (
        jax.jit(lambda s: bilevel.hypergradient(QUADRATIC, x, y0, data=q, sigma=s).status)(0.0)
        == Status.NONFINITE
    )
    fast = bilevel.hypergradient(QUADRATIC, x, y0, data=q, inner=optax.sgd(10.0))
    assert fast.status in (Status.NONFINITE, Status.MAX_STEPS, Status.STALLED)

    # two basins: the penalised copy leaves the one of z for the other, and no small sigma is
    # consistent with that
    wells = bilevel.Problem(lambda x, y: -10.0 * y, lambda x, y: (y**2 - 1) ** 2 + 0.1 * x * y)
    solution = bilevel.hypergradient(
        wells, jnp.asarray(1.0), jnp.asarray(-1.0), sigma=0.5, difference="forward"
    )
    assert solution.status != Status.CONVERGED and (
        solution.stats["consistency"] > 0.5 or solution.stats["lower_gap"] < 0
    )


def test_bad_arguments_are_named():
    q = quadratic(0, jnp.float64)
    x, y0 = jnp.zeros(3), jnp.zeros(4)
    with pytest.raises(ValueError, match="sigma must be > 0"):
        bilevel.hypergradient(QUADRATIC, x, y0, data=q, sigma=0.0)
    with pytest.raises(ValueError, match="difference must be one of"):
        bilevel.hypergradient(QUADRATIC, x, y0, data=q, difference="backward")
    with pytest.raises(ValueError, match="y0 holds float64 where the other variables are float32"):
        bilevel.hypergradient(QUADRATIC, x.astype(jnp.float32), y0, data=q)
    with pytest.raises(ValueError, match="upper must return a scalar"):
        bilevel.hypergradient(
            dataclasses.replace(QUADRATIC, upper=lambda x, y, q: y), x, y0, data=q
        )
    with pytest.raises(ValueError, match="y0 has no arrays"):
        bilevel.hypergradient(QUADRATIC, x, (), data=q)
    with pytest.raises(ValueError, match="prox_y needs an inner"):
        bilevel.hypergradient(
            dataclasses.replace(QUADRATIC, prox_y=lambda x, y, rate: y), x, y0, data=q
        )
    with pytest.raises(ValueError, match="must return arrays like its argument"):
        wrong = dataclasses.replace(QUADRATIC, lower_difference=lambda x, y, step, q: (y, y))
        bilevel.hypergradient(wrong, x, y0, data=q)


def test_constraints_on_y():
    """Where a bound is active y does not move; elsewhere the derivative is that of the free
    variables.
    """
    q = quadratic(0, jnp.float64)
    rate = float(0.5 / np.linalg.eigvalsh(q.A).max())
    problem = dataclasses.replace(QUADRATIC, prox_y=lambda x, y, rate: jnp.clip(y, -1.0, 1.0))
    x = jnp.asarray([0.5, -1.0, 0.2])
    solution = bilevel.hypergradient(
        problem, x, jnp.zeros(4), data=q, inner=optax.sgd(rate), tol=1e-10, max_steps=5000
    )
    z, d = solution.state
    free = np.abs(z) < 1.0 - 1e-9
    assert solution.status == Status.CONVERGED and 0 < free.sum() < 4
    expected = np.zeros(4)
    expected[free] = np.linalg.solve(np.asarray(q.A)[np.ix_(free, free)], -(q.F @ z + q.k)[free])
    np.testing.assert_allclose(d, expected, atol=1e-8)
    np.testing.assert_allclose(solution.value, q.H @ x + q.h + q.C @ expected, atol=1e-8)


def lasso(data, x):
    """The lasso by coordinate descent in numpy, and the exact pull-back of an upper gradient on the
    active coordinates.
    """
    X, t, target = (np.asarray(part, np.float64) for part in data)
    weights, y = np.exp(x), np.zeros(X.shape[1])
    for _ in range(500):
        for j in range(len(y)):
            size = X[:, j] @ X[:, j]
            free = X[:, j] @ (t - X @ y) + size * y[j]
            y[j] = np.sign(free) * max(abs(free) - weights[j], 0) / size
    active = y != 0
    pull = (y - target)[active]
    gradient = np.zeros(len(y))
    gradient[active] = (
        -weights[active] * np.sign(y[active]) * np.linalg.solve(X[:, active].T @ X[:, active], pull)
    )
    return y, gradient


@pytest.mark.parametrize(
    "difference", ["forward", "central_linear", pytest.param("central", marks=SLOW)]
)
def test_a_nonsmooth_lower_level(difference):
    """A weight for each coordinate of a lasso: lower smooth, the 1-norm by its proximal
    operator.
    """
    rng = np.random.default_rng(1)
    data = tuple(
        jnp.asarray(part)
        for part in (rng.normal(size=(20, 6)), 3 * rng.normal(size=20), rng.normal(size=6))
    )
    problem = bilevel.Problem(
        upper=lambda x, y, data: 0.5 * jnp.sum((y - data[2]) ** 2),
        lower=lambda x, y, data: 0.5 * jnp.sum((data[0] @ y - data[1]) ** 2),
        nonsmooth=lambda x, y, data: jnp.sum(jnp.exp(x) * jnp.abs(y)),
        prox_y=lambda x, y, rate: prox.prox_l1(y, rate * jnp.exp(x)),
    )
    x = jnp.asarray([2.0, 2.5, 1.0, 2.0, 3.0, 0.0])
    y, gradient = lasso(data, np.asarray(x))
    assert 1 <= np.sum(y == 0) <= 4
    rate = 1 / float(np.linalg.norm(data[0], 2) ** 2)
    error = {}
    for momentum in (None, 0.5):
        inner = optax.sgd(rate, momentum)
        sol = bilevel.hypergradient(
            problem,
            x,
            jnp.zeros(6),
            data=data,
            sigma=1e-5,
            difference=difference,
            inner=inner,
            tol=1e-9,
            max_steps=5000,
        )
        assert sol.status == Status.CONVERGED
        z, d = sol.state
        np.testing.assert_allclose(z, y, atol=1e-4 if difference == "central" else 1e-9)
        np.testing.assert_allclose(d[y == 0], 0, atol=1e-8)
        error[momentum] = relative_error(sol, gradient)
    assert max(error.values()) < (1e-4 if difference == "forward" else 1e-7), error
    with pytest.raises(ValueError, match="implicit differentiation needs a smooth lower level"):
        bilevel.check_hypergradient(problem, x, jnp.zeros(6), data=data)


def test_no_false_certificates_over_many_problems():
    """800 random problems of mixed conditioning in float32, certified ones recomputed in float64:
    no error of h above the tolerance.
    """

    def problem(key):
        keys = jax.random.split(key, 8)
        q = quadratic(0, jnp.float32)
        noise = jax.tree.unflatten(jax.tree.structure(q), list(keys[:7]))
        q = jax.tree.map(lambda part, k: jax.random.normal(k, part.shape, part.dtype), q, noise)
        small = 10.0 ** jax.random.uniform(keys[7], (), jnp.float32, -3, 1)
        return q._replace(A=q.A @ q.A.T + small * jnp.eye(4, dtype=jnp.float32), F=q.F @ q.F.T)

    qs = jax.vmap(problem)(jax.random.split(jax.random.key(0), 800))
    run = jax.jit(
        jax.vmap(
            lambda q: bilevel.hypergradient(
                QUADRATIC, jnp.ones(3, jnp.float32), jnp.zeros(4, jnp.float32), data=q
            )
        )
    )
    solution = run(qs)
    certified = np.asarray(solution.status) == Status.CONVERGED
    assert 100 < certified.sum() < 800  # the rest are honest about it
    q = jax.tree.map(lambda part: np.asarray(part, np.float64)[certified], qs)
    ones = np.ones(3)
    z = np.linalg.solve(q.A, -(q.a + q.C.sum(1))[:, :, None])[:, :, 0]
    d = np.linalg.solve(q.A, -(np.einsum("nij,nj->ni", q.F, z) + q.k)[:, :, None])[:, :, 0]
    direct, cross = (
        0.5 * (q.H + np.swapaxes(q.H, 1, 2)) @ ones + q.h,
        np.einsum("nij,nj->ni", q.C, d),
    )
    size = np.linalg.norm(direct, axis=1) + np.linalg.norm(cross, axis=1)
    error = np.linalg.norm(np.asarray(solution.value, float)[certified] - direct - cross, axis=1)
    assert np.max(error / size) <= 1e-4
    chex.assert_tree_all_finite(
        jax.tree.map(lambda part: part[certified], (solution.value, solution.stats))
    )
