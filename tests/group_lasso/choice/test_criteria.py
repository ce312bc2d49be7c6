"""Degrees of freedom against differences and Stein's formula, margins, and information criteria
against plain loops.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from scipy.special import comb

from jaxsac import Groups, group_lasso
from jaxsac.prox import Penalty

GROUPS = Groups.from_sizes(zoo.SIZES)
AT = zoo.instance(3, "squared")
X, Y, C = jnp.asarray(AT.X), jnp.asarray(AT.y), jnp.asarray(AT.sample_weight)
PLAIN = group_lasso.Problem(X, Y, GROUPS, intercept=True)
T, LANES = zoo.NUM_SAMPLES, 400


def batch_of(**keywords):
    """Fitted values and degrees of freedom for many targets."""

    @jax.jit
    @jax.vmap
    def run(y, lam, tol):
        problem = group_lasso.Problem(X, y, GROUPS, **keywords)
        solution = group_lasso.solve(problem, lam, tol=tol)
        return solution.value.predict(X), group_lasso.degrees_of_freedom(problem, solution)

    return run


SETTINGS = [
    pytest.param(
        dict(weights="sqrt_size", sample_weight=C, intercept=True), 0.3, id="weighted, intercept"
    ),
    pytest.param(
        dict(penalty=Penalty(l1=0.5, ridge=0.2)),
        0.2,
        id="sparse group, ridge",
        marks=pytest.mark.slow,
    ),
    pytest.param(dict(), 0.3, id="plain", marks=pytest.mark.slow),
    pytest.param(dict(loss="sqrt", intercept=True), 0.3, id="sqrt", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("keywords, lam", SETTINGS)
def test_degrees_of_freedom_are_the_trace_of_the_derivative(keywords, lam):
    run, step = batch_of(**keywords), 1e-5
    moved = np.vstack(
        [AT.y + step * np.eye(T), AT.y - step * np.eye(T), np.tile(AT.y, (LANES - 2 * T, 1))]
    )
    fitted, freedom = run(jnp.asarray(moved), jnp.full(LANES, lam), jnp.full(LANES, 1e-14))
    central = np.trace((fitted[:T] - fitted[T : 2 * T]) / (2 * step))
    assert 2 < central < 20
    np.testing.assert_allclose(freedom[-1], central, rtol=2e-6)
    problem = group_lasso.Problem(X, Y, GROUPS, **keywords)
    loose = group_lasso.solve(problem, lam).check()
    # concrete: on the columns of the support alone
    np.testing.assert_allclose(group_lasso.degrees_of_freedom(problem, loose), central, rtol=2e-6)
    if "sample_weight" in keywords or "loss" in keywords:
        return
    # Stein: E df = Σ cov(z_t, y_t)/σ²
    sigma = 1.5
    noise = sigma * np.random.default_rng(0).normal(size=(LANES, T))
    fitted, freedom = run(jnp.asarray(AT.y + noise), jnp.full(LANES, lam), jnp.full(LANES, 1e-6))
    difference = np.sum(np.asarray(fitted) * noise, axis=1) / sigma**2 - np.asarray(freedom)
    assert abs(difference.mean()) <= 4 * difference.std() / np.sqrt(LANES)


@pytest.mark.slow
def test_degrees_of_freedom_have_the_derivative_of_differences():
    """In the targets and in lam, with that of the solution."""
    keywords, lam = SETTINGS[0].values
    run, step = batch_of(**keywords), 1e-4
    way = jnp.asarray(np.random.default_rng(1).normal(size=T))

    def freedom(y, lam):
        problem = group_lasso.Problem(X, y, GROUPS, **keywords)
        return group_lasso.degrees_of_freedom(problem, group_lasso.solve(problem, lam, tol=1e-14))

    by_y, by_lam = jax.jit(jax.grad(freedom, (0, 1)))(Y, lam)
    moved = jnp.tile(Y, (LANES, 1)).at[0].add(step * way).at[1].add(-step * way)
    lams = jnp.full(LANES, lam).at[2].add(step).at[3].add(-step)
    around = run(moved, lams, jnp.full(LANES, 1e-14))[1]
    expected = (around[0] - around[1]) / (2 * step), (around[2] - around[3]) / (2 * step)
    np.testing.assert_allclose((by_y @ way, by_lam), expected, rtol=1e-5)


@pytest.mark.slow
def test_degrees_of_freedom_at_the_ends():
    narrow = group_lasso.Problem(X[:, :8], Y, Groups.equal(4, 2), intercept=True)
    for lam, expected in ((1e3, 1), (0.0, 9)):
        freedom = group_lasso.degrees_of_freedom(narrow, group_lasso.solve(narrow, lam))
        assert abs(freedom - expected) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_information_criterion_is_its_formula(loss):
    at = zoo.instance(4, loss)
    X, y, c = jnp.asarray(at.X), jnp.asarray(at.y), jnp.asarray(at.sample_weight)
    problem = group_lasso.Problem(X, y, GROUPS, loss, sample_weight=c, intercept=True)
    lams = group_lasso.lam_max(problem) * jnp.asarray([1.01, 0.5, 0.2, 0.1])
    found = group_lasso.ebic(problem, gamma=0.5, lams=lams)
    total = at.sample_weight.sum()
    for k in range(len(lams)):
        value = jax.tree.map(lambda leaf, k=k: np.asarray(leaf[k]), found.solution.value)
        z = at.X @ value.coef + value.intercept
        fit = 2 * T * zoo.loss_value(loss, z, at.y, at.sample_weight)
        fit = total * np.log(fit / total) if loss == "squared" else fit
        solution = jax.tree.map(lambda leaf, k=k: leaf[k], found.solution)
        freedom = group_lasso.degrees_of_freedom(problem, solution)
        np.testing.assert_allclose(found.degrees[k], freedom, rtol=1e-9)
        active = np.count_nonzero(zoo.norms(value.coef))
        np.testing.assert_allclose(
            found.score[k], fit + freedom * np.log(total) + np.log(comb(7, active)), rtol=1e-9
        )
    assert found.best == lams[np.argmin(found.score)] and found.degrees[0] == pytest.approx(1)


@pytest.mark.slow
def test_the_margin_is_the_distance_to_another_support():
    """It is small on both sides of a lam at which a group enters, and else what the optimality
    conditions say.
    """
    lams = group_lasso.lam_max(PLAIN) * np.geomspace(0.99, 0.05, 60)
    path = group_lasso.path(PLAIN, lams=lams, tol=1e-13)
    margins = []
    for k, lam in enumerate(lams):
        solution = jax.tree.map(lambda leaf, k=k: leaf[k], path)
        margins.append(float(group_lasso.support_margin(PLAIN, solution)))
        at = solution.value
        residual = (AT.y - AT.X @ np.asarray(at.coef) - float(at.intercept)) / T
        pulls, norms = zoo.norms(residual @ AT.X), zoo.norms(np.asarray(at.coef))
        least = np.min(1 - pulls[norms == 0] / lam)
        largest = np.max(np.sum(AT.X**2, axis=0)) / T  # of columns as they are stored
        moving = np.min(norms[norms > 0]) * largest / lam
        np.testing.assert_allclose(margins[-1], min(least, moving), rtol=1e-6, atol=1e-6)
    entered = np.flatnonzero(np.diff(np.asarray(path.stats["num_active"], int)) != 0)
    assert len(entered) >= 1 and all(min(margins[k], margins[k + 1]) < 0.1 for k in entered)
