"""The square-root loss: its certificate, its relation to least squares, the level of the simulated
lam, and large X.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxsac import Groups, Status, group_lasso

GROUPS = Groups.from_sizes(zoo.SIZES)


def judged(at, lam, coef, intercept):
    """Objective, gap and null objective in float64 numpy; the dual point is ρ with the intercept
    refitted, scaled to be feasible.
    """
    T, c = len(at.y), at.sample_weight
    target = at.y - at.offset

    def spread(v):
        v = v - np.sum(c * v) / np.sum(c)
        return v, np.sqrt(np.sum(c * v**2) / T)

    least = 0.01 * spread(target)[1]

    def value(r):
        root = np.sqrt(np.sum(c * r**2) / T)
        return root if root >= least else 0.5 * root**2 / least + 0.5 * least

    objective = value(target - at.X @ coef - intercept) + lam * np.sum(at.weights * zoo.norms(coef))
    r, root = spread(target - at.X @ coef)
    nu = c * r / (T * max(root, least))
    free = np.isin(zoo.LABELS, np.flatnonzero(at.weights == 0))
    pull = zoo.norms(nu @ at.X)[at.weights > 0] / (lam * at.weights[at.weights > 0])
    length = np.sqrt(T * np.sum(np.where(c > 0, nu**2 / np.where(c > 0, c, 1), 0)))
    top = min(1 / pull.max(), 1 / length)
    slope, bend = nu @ target, least * length**2
    s = min(top, slope / bend)
    assert not free.any()
    return (
        objective,
        objective - (s * slope + 0.5 * least * (1 - s**2 * length**2)),
        spread(target)[1],
    )


@pytest.mark.parametrize("dtype, count", [
    ("float64", 32),
    pytest.param("float64", 500, marks=pytest.mark.slow),
    pytest.param("float32", 500, marks=pytest.mark.slow),
])  # fmt: skip
def test_no_false_convergence(dtype, count):
    lanes = [zoo.instance(seed, "squared") for seed in range(count)]
    lanes = [zoo.Instance(*(np.asarray(a, dtype) for a in at)) for at in lanes]
    arrays = [jnp.asarray(a) for a in zoo.stack(lanes)[:5]]
    ratios = jnp.asarray(np.stack([at.ratio for at in lanes]), dtype)

    @jax.jit
    @jax.vmap
    def run(X, y, weights, sample_weight, offset, ratio):
        keywords = dict(
            weights=weights, sample_weight=sample_weight, offset=offset, loss="sqrt", intercept=True
        )
        lam = ratio * group_lasso.lam_max(X, y, GROUPS, **keywords)
        return lam, group_lasso.solve(X, y, GROUPS, lam, **keywords)

    lams, solution = jax.tree.map(np.asarray, run(*arrays, ratios))
    tol = 1e-6 if dtype == "float64" else 1e-4
    converged = solution.status == Status.CONVERGED
    assert converged.mean() >= (1.0 if dtype == "float64" else 0.7), np.unique(
        solution.status, return_counts=True
    )
    for lane, at in enumerate(lanes):
        exact = zoo.Instance(*(np.asarray(a, np.float64) for a in at))
        value = solution.value.coef[lane].astype(np.float64), float(solution.value.intercept[lane])
        objective, gap, scale = judged(exact, float(lams[lane]), *value)
        assert not converged[lane] or -1e-12 * scale <= gap <= tol * scale, (lane, gap / scale)
        assert (
            abs(objective - solution.stats["objective"][lane]) <= solution.stats["rounding"][lane]
        )


@pytest.mark.slow
def test_the_solution_is_that_of_least_squares_at_lam_times_sigma():
    at = zoo.instance(3, "squared")
    X, y = jnp.asarray(at.X), jnp.asarray(at.y)
    keywords = dict(intercept=True, tol=1e-12)
    for lam in (1.0, 0.2):
        root = group_lasso.solve(X, y, GROUPS, lam, loss="sqrt", **keywords).check()
        sigma = jnp.sqrt(jnp.mean((y - X @ root.value.coef - root.value.intercept) ** 2))
        squares = group_lasso.solve(X, y, GROUPS, lam * sigma, **keywords).check()
        np.testing.assert_allclose(root.value.coef, squares.value.coef, atol=1e-6)
        scaled = group_lasso.solve(
            X, 1e3 * y, GROUPS, lam, loss="sqrt", **keywords
        ).check()  # the same lam for 1,000 times the noise
        np.testing.assert_allclose(scaled.value.coef, 1e3 * root.value.coef, rtol=1e-5, atol=1e-4)
    constant = group_lasso.solve(X, 0 * y + 3.3, GROUPS, 0.2, loss="sqrt", **keywords).check()
    assert not np.any(constant.value.coef) and abs(constant.value.intercept - 3.3) < 1e-12


@pytest.mark.slow
def test_noise_exceeds_the_simulated_lam_as_often_as_asked():
    at = zoo.instance(5, "squared")
    X, weight = jnp.asarray(at.X), jnp.asarray(at.sample_weight).at[-2:].set(1.0)
    keywords = dict(sample_weight=weight, intercept=True)

    def simulated(y, loss="squared"):
        whole = group_lasso.Problem(X, y, GROUPS, loss, **keywords)
        key, settings = jax.random.key(0), dict(level=0.1, factor=1.0, num_draws=2000)
        return group_lasso.simulated_lam(key, whole, **settings)

    noise = (
        5.0
        + 2.0
        * jax.random.normal(jax.random.key(1), (2000, zoo.NUM_SAMPLES))
        / jnp.sqrt(weight)[None]
    )
    lam = simulated(noise[0], "sqrt")
    np.testing.assert_allclose(
        simulated(100.0 * noise[1], "sqrt"), lam, rtol=1e-12
    )  # it does not depend on y
    problem = group_lasso.Problem(X, noise[0], GROUPS, "squared", None, weight, None, True).at(0.0)
    centred = noise - jnp.sum(weight[None] * noise, axis=1, keepdims=True) / jnp.sum(weight)
    scores = (
        weight[None]
        * centred
        / jnp.sqrt(zoo.NUM_SAMPLES * jnp.sum(weight[None] * centred**2, axis=1, keepdims=True))
    )
    worst = np.max([zoo.norms(pull) for pull in np.asarray(scores @ at.X)], axis=1)
    spread = np.sqrt(2 * 0.1 * 0.9 / 2000)  # of the difference of two such frequencies
    assert abs(np.mean(worst > float(lam)) - 0.1) <= 4 * spread
    # least squares by multipliers: the law given the residual is Gaussian with known moments
    residual = np.asarray(
        problem.residual(problem.constant(jnp.sum(weight * noise[0]) / jnp.sum(weight)))
    )
    draws = np.random.default_rng(0).normal(size=(4000, zoo.NUM_SAMPLES)) * residual
    draws = draws - np.asarray(weight / jnp.sum(weight)) * draws.sum(axis=1, keepdims=True)
    quantile = np.quantile(np.max([zoo.norms(pull) for pull in draws @ at.X], axis=1), 0.9)
    np.testing.assert_allclose(simulated(noise[0]), quantile, rtol=0.06)


@pytest.mark.slow
def test_large_problems_go_by_their_columns():
    rng = np.random.default_rng(0)
    X, groups = jnp.asarray(rng.normal(size=(64, 4400))), Groups.equal(1100, 4)
    y = X[:, :12] @ jnp.asarray(rng.normal(size=12)) + jnp.asarray(rng.normal(size=64)) + 3.0
    largest = group_lasso.lam_max(X, y, groups, loss="sqrt", intercept=True)
    keywords = dict(loss="sqrt", intercept=True, tol=1e-7)
    apart = group_lasso.solve(X, y, groups, 0.5 * largest, **keywords).check()
    assert group_lasso.METHODS[int(apart.stats["method"])] == "columns"
    path = group_lasso.path(X, y, groups, num_lams=3, min_ratio=0.25, **keywords).check()
    np.testing.assert_allclose(path.value.coef[1], apart.value.coef, atol=1e-3)
    np.testing.assert_allclose(path.stats["objective"][1], apart.stats["objective"], rtol=1e-6)
