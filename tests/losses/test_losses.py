"""Losses against formulas, automatic differentiation and convex conjugates found by search."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from scipy.optimize import minimize_scalar

from jaxsac import losses

RNG = np.random.default_rng(0)
T, M = 8, 4
C = jnp.asarray(np.concatenate([RNG.uniform(0.5, 2, T - 1), [0.0]]))

Z1 = jnp.asarray(RNG.normal(size=T) * 2)
ZM = jnp.asarray(RNG.normal(size=(T, M)))
SETS = jnp.asarray([[0, -1], [2, 3], [-1, -1], [1, 0], [3, -1], [-1, 2], [0, 1], [2, 0]], jnp.int32)
CASES = {
    "squared": (losses.Squared(), Z1, jnp.asarray(RNG.normal(size=T) * 2)),
    "huber": (losses.Huber(1.345), Z1, jnp.asarray(RNG.normal(size=T) * 3)),
    "logistic": (losses.Logistic(), Z1, jnp.asarray(RNG.choice([-1.0, 1.0], T))),
    "poisson": (losses.Poisson(), Z1, jnp.asarray(RNG.poisson(1.5, T).astype(float))),
    "squared, outputs": (losses.Squared(), ZM, jnp.asarray(RNG.normal(size=(T, M)))),
    "multinomial": (losses.Multinomial(), ZM, jnp.asarray(RNG.integers(0, M, T), jnp.int32)),
    "gibbs": (losses.BudgetedGibbs(2), ZM, SETS),
    "gibbs, exactly": (
        losses.BudgetedGibbs(1, exactly=True),
        ZM,
        jnp.asarray(RNG.integers(0, M, (T, 1)), jnp.int32),
    ),
    "gibbs, costs": (
        losses.BudgetedGibbs(4, costs=[1, 2, 1, 3]),
        ZM,
        SETS.at[1].set(jnp.asarray([2, 3], jnp.int32)),
    ),
}
_, Z, Y = CASES["squared"]
SQRT = {"sqrt": (losses.SquareRoot().for_data(Y, jnp.zeros(T), C), Z, Y)}
every_loss = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith("gibbs, ") else ())
        for name in CASES
    ],
)


@pytest.mark.parametrize("name", ["squared", "huber", "logistic", "poisson"])
def test_values_and_descent_match_the_formulas(name):
    loss, z, y = CASES[name]
    np.testing.assert_allclose(
        loss.value(z, y, C),
        zoo.loss_value(name, np.asarray(z), np.asarray(y), np.asarray(C)),
        rtol=1e-13,
    )
    np.testing.assert_allclose(
        loss.descent(z, y), zoo.descent(name, np.asarray(z), np.asarray(y)), rtol=1e-13
    )


def test_budgeted_gibbs_is_the_likelihood_over_all_sets():
    loss, z, y = CASES["gibbs"]
    sets = [s for size in range(3) for s in itertools.combinations(range(M), size)]
    for t in range(T):
        scores = [sum(float(z[t, j]) for j in s) for s in sets]
        chosen = sum(float(z[t, j]) for j in np.asarray(y[t]) if j >= 0)
        np.testing.assert_allclose(
            loss.per_sample(z, y)[t], np.log(np.sum(np.exp(scores))) - chosen, rtol=1e-12
        )


@every_loss
def test_negative_gradient_is_minus_the_gradient(name):
    loss, z, y = CASES[name]
    slope = jax.jit(jax.grad(lambda u: loss.value(u, y, C)))(z)
    np.testing.assert_allclose(loss.negative_gradient(z, y, C), -slope, rtol=1e-10, atol=1e-13)
    general = jax.jit(lambda u: losses.Loss.descent(loss, u, y))(z)
    np.testing.assert_allclose(loss.descent(z, y), general, rtol=1e-10, atol=1e-12)


@every_loss
def test_curvature_bounds_the_hessian(name):
    loss, z, y = CASES[name]
    points = [z * scale for scale in (0.0, 0.1, 1.0)]
    hessian_of = jax.jit(jax.hessian(lambda u, y: loss.per_sample(u[None], y[None])[0]))
    hessians = [hessian_of(point[t], y[t]) for point in points for t in range(2)]
    largest = max(np.linalg.eigvalsh(np.atleast_2d(hessian)).max() for hessian in hessians)
    smallest = min(np.linalg.eigvalsh(np.atleast_2d(hessian)).min() for hessian in hessians)
    assert smallest >= -1e-12
    if loss.curvature is None:
        assert name == "poisson"
    else:
        assert largest <= loss.curvature * (1 + 1e-12)
        assert largest >= 0.2 * loss.curvature


@pytest.mark.parametrize("name", [each for each in CASES | SQRT if "gibbs" not in each])
def test_derivatives_hold_at_zeros_ties_and_targets(name):
    """First and second, by records and by weights, against differences."""
    loss, z, y = (CASES | SQRT)[name]
    like = np.asarray(z)
    points = [np.zeros_like(like), np.full_like(like, 0.7), np.round(like)]
    points += [np.asarray(y, float)] if y.dtype == z.dtype and name != "huber" else []

    @jax.jit
    def along(t, at, direction):
        return loss.value(at + t * direction, y, C)

    slope, bend = jax.grad(along), jax.grad(jax.grad(along))
    direction, h = np.random.default_rng(5).normal(size=like.shape), 1e-3
    for at in points:
        down, middle, up = (float(along(t, at, direction)) for t in (-h, 0.0, h))
        np.testing.assert_allclose(slope(0.0, at, direction), (up - down) / (2 * h), atol=1e-5)
        second = (up - 2 * middle + down) / h**2
        np.testing.assert_allclose(bend(0.0, at, direction), second, atol=1e-5)


def test_curvature_with_costs_uses_the_largest_affordable_set():
    assert losses.BudgetedGibbs(4, costs=[1, 2, 1, 3]).curvature == 1.5
    assert losses.BudgetedGibbs(7, costs=[0, 0, 9]).curvature == 1.0
    assert losses.BudgetedGibbs(5).curvature == 0.5


@functools.cache
def dual_and_values(name):
    """D(s ρ) and F(u) + s <ρ, u − z + w> at the rows u of a cloud, jitted for every s."""
    loss, z, y = CASES[name]

    def both(penalised, rho, cloud, scale):
        values = jax.vmap(
            lambda u: loss.value(u, y, C) + scale * jnp.sum(rho * (u - z + penalised))
        )(cloud)
        return jnp.sum(C * loss.dual_per_sample(z, y, penalised, scale)) / T, values

    return jax.jit(both)


@every_loss
@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0])
def test_dual_values_are_lower_bounds_and_tight_at_one(name, scale):
    """D(s ρ) + s <ρ, u − w'> ≤ F(u) for every u: the defining property of −F*(−s ρ), tried at many
    u and near the touching point.
    """
    loss, z, y = CASES[name]
    penalised = 0.3 * z
    rho = loss.negative_gradient(z, y, C)
    shape = (200, *z.shape)
    cloud = jnp.concatenate(
        [z[None] + size * jnp.asarray(RNG.normal(size=shape)) for size in (1e-3, 0.3, 3.0)]
    )
    dual, values = dual_and_values(name)(penalised, rho, cloud, jnp.asarray(scale))
    assert float(dual) <= float(jnp.min(values)) + 1e-10
    if scale == 1.0:
        np.testing.assert_allclose(dual, loss.value(z, y, C) + jnp.sum(rho * penalised), rtol=1e-12)


@pytest.mark.parametrize("name", ["squared", "huber", "logistic", "poisson"])
def test_dual_values_are_the_conjugates(name):
    loss, z, y = CASES[name]
    for scale in (0.3, 0.9):
        ours = loss.dual_per_sample(z, y, z, jnp.asarray(scale))  # nothing unpenalised: −ℓ*(−s g)
        for t in range(T):
            point = scale * zoo.descent(name, np.asarray(z), np.asarray(y))[t]

            def negative(u, t=t, point=point):
                return (
                    zoo.loss_value(name, np.asarray([u]), np.asarray([y[t]]), np.ones(1))
                    + point * u
                )

            least = minimize_scalar(
                negative, bounds=(-40, 40), method="bounded", options={"xatol": 1e-12}
            ).fun
            np.testing.assert_allclose(ours[t], least, atol=1e-7)


@pytest.mark.parametrize("name", ["squared", "huber"])
def test_the_dual_scale_is_the_best_within_its_limit(name):
    loss, z, y = CASES[name]
    for limit in (0.2, 5.0):
        scale, best = loss.dual_value(z, y, C, z, jnp.asarray(limit))
        grid = np.linspace(0, min(limit, 1.0 if name == "huber" else limit), 400)
        values = jax.vmap(lambda s: jnp.sum(C * loss.dual_per_sample(z, y, z, s)) / T)(
            jnp.asarray(grid)
        )
        assert float(scale) <= limit and float(best) >= float(values.max()) - 1e-12


@every_loss
def test_float32_and_extreme_predictions_stay_finite(name):
    loss, z, y = CASES[name]
    y = y.astype(jnp.float32) if jnp.issubdtype(y.dtype, jnp.floating) else y
    c = C.astype(jnp.float32)

    @jax.jit
    def everything(u):
        _, dual = loss.dual_value(u, y, c, u, jnp.float32(0.5))
        return loss.value(u, y, c), loss.negative_gradient(u, y, c), loss.magnitude(u, y), dual

    for scale in (1.0, 30.0):
        for leaf in everything((scale * z).astype(jnp.float32)):
            assert leaf.dtype == jnp.float32 and np.all(np.isfinite(leaf))


@pytest.mark.parametrize("size", [1.0, 1e-3], ids=["above the floor", "below it"])
def test_the_square_root_loss_is_the_best_scale_of_squares(size):
    y, z = 3.0 + Z1, 3.0 + Z1 + size * jnp.asarray(RNG.normal(size=T))
    loss = losses.SquareRoot(0.1).for_data(y, jnp.zeros(T), C)
    mean = np.sum(C * y) / np.sum(C)
    least = float(0.1 * np.sqrt(np.sum(C * (y - mean) ** 2) / T))
    square = float(np.sum(C * (y - z) ** 2))
    np.testing.assert_allclose(loss.least, least, rtol=1e-12)
    found = minimize_scalar(
        lambda s: square / (2 * T * s) + s / 2,
        bounds=(least, 100),
        method="bounded",
        options={"xatol": 1e-12},
    )
    np.testing.assert_allclose(loss.value(z, y, C), found.fun, rtol=1e-6)
    np.testing.assert_allclose(loss.scale(z, y, C)[1], found.x, rtol=1e-4)
    rho = loss.negative_gradient(z, y, C)
    np.testing.assert_allclose(
        rho, -jax.grad(lambda u: loss.value(u, y, C))(z), rtol=1e-10, atol=1e-13
    )
    # the conjugate by its defining inequality, at many multiples of ρ and many u; and the quadratic
    # above F
    cloud = z[None] + jnp.asarray(RNG.normal(size=(500, T))) * 10.0 ** jnp.asarray(
        RNG.uniform(-4, 1, size=(500, 1))
    )
    values = jax.vmap(lambda u: loss.value(u, y, C))(cloud)
    moves = cloud - z[None]
    above = (
        loss.value(z, y, C)
        - moves @ rho
        + 0.5 * loss.majorant(z, y, C) * jnp.sum(C[None] * moves**2, axis=1) / T
    )
    assert np.all(values <= above * (1 + 1e-12))
    penalised = 0.3 * z
    for limit in (0.2, 1.0, 1e9):
        scale, dual = loss.dual_value(z, y, C, penalised, jnp.asarray(limit))
        assert (
            abs(scale) <= limit
            and float(dual)
            <= float(jnp.min(values + scale * ((moves + penalised[None]) @ rho))) + 1e-12
        )
    touching = float(loss.value(z, y, C) + rho @ (penalised - 0.0 * z))
    assert (
        float(loss.dual_value(z, y, C, penalised, jnp.asarray(1.0))[1]) >= touching - 1e-12
    )  # s = 1 is one of the multiples


def test_the_scale_of_the_square_root_loss_is_never_zero():
    zeros = jnp.zeros(T)
    for y in (zeros, zeros + 2.5, zeros + 0.1):
        loss = losses.SquareRoot().for_data(y, zeros, C)
        assert (
            loss.least > 0
            and np.isfinite(loss.value(y, y, C))
            and not np.any(loss.negative_gradient(y, y, C))
        )
        assert loss.dual_value(y, y, C, zeros, jnp.asarray(jnp.inf))[1] == loss.value(y, y, C)
    for scale in (1e-30, 1e30):
        y = jnp.asarray(scale * Z1, jnp.float32)
        loss = losses.SquareRoot().for_data(y, 0 * y, C.astype(jnp.float32))
        np.testing.assert_allclose(
            loss.value(0 * y, y, C.astype(jnp.float32)),
            np.sqrt(np.mean(C * Z1**2)) * scale,
            rtol=1e-5,
        )


def test_an_unavailable_output_takes_no_part():
    offset = jnp.asarray([[0.0, -jnp.inf, 0.0, 0.0]])
    for name in ("multinomial", "gibbs"):
        loss, z, _ = CASES[name]
        y = (
            jnp.asarray([0], jnp.int32)
            if name == "multinomial"
            else jnp.asarray([[0, 2]], jnp.int32)
        )
        scores = z[:1] + offset
        assert np.isfinite(loss.value(scores, y, C[:1])) and loss.descent(scores, y)[0, 1] == 0
        assert np.isfinite(loss.dual_value(scores, y, C[:1], z[:1], jnp.asarray(0.7))[1])


def test_impossible_targets_have_no_loss():
    assert np.isnan(losses.Logistic().per_sample(jnp.zeros(1), jnp.zeros(1)))[0]
    assert np.isnan(losses.Poisson().per_sample(jnp.zeros(1), -jnp.ones(1)))[0]


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: losses.resolve("hinge"),
            "loss must be one of 'squared', 'logistic', 'huber', 'sqrt', 'poisson',"
            " 'multinomial'.*got 'hinge'",
        ),
        (lambda: losses.Huber(0.0), "delta must be > 0"),
        (lambda: losses.SquareRoot(0.0), "floor must be > 0"),
        (lambda: losses.BudgetedGibbs(-1), "budget must be ≥ 0"),
        (lambda: losses.BudgetedGibbs(2, costs=[0.5]), "costs must hold integers"),
        (lambda: losses.BudgetedGibbs(1).target(SETS, (T, M), float), "rows outside the budget 1"),
        (
            lambda: losses.BudgetedGibbs(2).target(SETS + 3, (T, M), float),
            "y must hold actions below 4",
        ),
        (
            lambda: losses.BudgetedGibbs(2).target(jnp.asarray([[1, 1]], jnp.int32), (1, M), float),
            "lists an action twice",
        ),
        (
            lambda: losses.Multinomial().target(jnp.asarray([4], jnp.int32), (1, M), float),
            r"classes in \[0, 4\)",
        ),
        (
            lambda: losses.Multinomial().target(jnp.asarray([1.0]), (1, M), float),
            "y must hold integers",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
