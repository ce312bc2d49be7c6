"""Certificates, criteria and bounds as numbers: each is its formula in NumPy, on random input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import comb, entr, expit

from jaxsac import Groups, group_lasso

T, GROUPS = 24, Groups.from_labels([0, 0, 1, 1, 3, 3, 4, 4], 5)  # group 2 is empty
WEIGHTS = np.array([1.0, 0.6, 1.0, 1.4, 0.8])
FULL = np.array([0, 1, 3, 4])
EPS, TINY = np.finfo(float).eps, np.finfo(float).tiny


def data(loss, seed=3):
    rng = np.random.default_rng(seed)
    X, c = rng.normal(size=(T, 8)), rng.uniform(0.3, 2.0, T)
    z = X @ np.array([1.0, -0.5, 0, 0, 0.6, 0.4, 0, 0]) + 0.5 * rng.normal(size=T)
    return X, (z if loss == "squared" else np.where(z > 0, 1.0, -1.0)), c, 0.3 * rng.normal(size=T)


def norms(b):
    return np.linalg.norm(np.reshape(b, (4, 2)), axis=1)


def pieces(loss, y, z):
    """ℓ, −ℓ' and ℓ'' of every record."""
    if loss == "squared":
        return 0.5 * (y - z) ** 2, y - z, np.ones(T)
    chance = expit(-y * z)
    return np.logaddexp(0, -y * z), y * chance, chance * (1 - chance)


def made(loss, intercept=False):
    X, y, c, offset = data(loss)
    problem = group_lasso.Problem(
        X, y, GROUPS, loss, WEIGHTS, sample_weight=c, offset=offset, intercept=intercept
    )
    return problem, (X, y, c, offset)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_gap_and_its_rounding_bound(loss):
    problem, (X, y, c, offset) = made(loss)
    lam, w = 0.08, WEIGHTS[FULL]
    solution = group_lasso.solve(problem, lam, max_steps=2, tol=0.0)
    b = np.asarray(solution.value.coef)
    z = offset + X @ b
    each, slope, bend = pieces(loss, y, z)
    objective = c @ each / T + lam * w @ norms(b)
    pull = norms(X.T @ (c * slope) / T)
    limit = np.min(lam * w / pull)
    if loss == "squared":
        s = np.clip((c * slope) @ (slope + X @ b) / ((c * slope) @ slope), -limit, limit)
        dual = (c * slope) @ (s * (slope + X @ b) - 0.5 * s**2 * slope) / T
    else:
        s = min(1.0, limit)
        share = s * np.abs(slope)
        dual = c @ (entr(share) + entr(1 - share) - s * slope * offset) / T
    gap = objective - dual
    assert gap > 1e-4 * objective
    np.testing.assert_allclose(solution.stats["error"], gap, rtol=1e-9)
    columns = np.sqrt(c @ X**2)
    size = np.sqrt(c @ slope**2)
    moved = np.linalg.norm(columns * b) + np.sqrt(c @ z**2)
    of_residual = (size + c @ bend / c.sum() * moved) / T
    of_pull = np.max(norms(columns) / w) * of_residual / lam
    values = abs(objective) + abs(dual) + size * moved / T + c @ each / T
    bound = EPS * (4 * values + 2 * of_pull * lam * w @ norms(b)) + 8 * TINY
    np.testing.assert_allclose(solution.stats["rounding"], bound, rtol=1e-9)


@pytest.mark.parametrize("loss", [pytest.param("squared", marks=pytest.mark.slow), "logistic"])
def test_criteria_of_a_solution(loss):
    """Degrees of freedom, the margin, and the information criterion with an empty group."""
    problem, (X, y, c, offset) = made(loss, intercept=True)
    lams = np.array([0.3, 0.15])
    found = group_lasso.ebic(problem, gamma=0.7, lams=lams, tol=1e-13)
    for k, lam in enumerate(lams):
        solution = jax.tree.map(lambda leaf, k=k: leaf[k], found.solution)
        b, w = np.asarray(solution.value.coef), WEIGHTS[FULL]
        z = offset + X @ b + float(solution.value.intercept)
        each, slope, bend = pieces(loss, y, z)
        held = np.repeat(norms(b) > 0, 2)
        assert 0 < held.sum() < 8
        K = np.zeros((8, 8))
        for g, norm in enumerate(norms(b)):
            at = slice(2 * g, 2 * g + 2)
            if norm > 0:
                K[at, at] = lam * w[g] / norm * (np.eye(2) - np.outer(b[at], b[at]) / norm**2)
        S = X[:, held]
        C = np.diag(c * bend) / T
        C = C - np.outer(C.sum(1), C.sum(1)) / C.sum()  # beside an intercept
        freedom = 1 + np.trace(np.linalg.solve(S.T @ C @ S + K[held][:, held], S.T @ C @ S))
        np.testing.assert_allclose(
            group_lasso.degrees_of_freedom(problem, solution), freedom, rtol=1e-6
        )
        curvature = np.max((c * bend / T) @ X**2)
        start = norms(curvature * b + X.T @ (c * slope) / T)
        margin = np.min(np.abs(start / (lam * w) - 1))
        np.testing.assert_allclose(
            group_lasso.support_margin(problem, solution), margin, rtol=1e-6, atol=1e-8
        )
        fit = 2 * c @ each
        fit = c.sum() * np.log(fit / c.sum()) if loss == "squared" else fit
        ways = 2 * 0.7 * np.log(comb(4, held.sum() / 2))
        score = fit + freedom * np.log(c.sum()) + ways
        np.testing.assert_allclose(found.score[k], score, rtol=1e-6)
    assert found.best == lams[np.argmin(found.score)]


def test_bounds_of_stability_selection():
    problem, _ = made("squared", intercept=True)
    pairs = 4

    @jax.jit
    def select(lam, threshold):
        return group_lasso.stability_selection(
            jax.random.key(1), problem, lam, num_pairs=pairs, threshold=threshold
        )

    for threshold in (0.55, 0.6, 0.75, 0.9):
        found = select(0.2, threshold)
        q = float(jnp.sum(found.frequency))
        share, tail = q**2 / 4, 1 / (2 * pairs)
        assert 0 < q < 4 and np.all(np.asarray(found.frequency) * 2 * pairs % 1 == 0)
        gap = 2 * threshold - 1
        below = 1 / (2 * (gap - tail)) if gap > tail else np.inf
        factor = below if threshold <= 0.75 else 4 * (1 - threshold + tail) / (1 + 2 * tail)
        np.testing.assert_allclose(
            [found.average, found.bound, found.unimodal_bound],
            [q, share / gap, share * factor],
            rtol=1e-9,
        )
    # Traced numbers out of range must not look like an answer.
    for wrong in (select(-0.2, 0.75), select(jnp.nan, 0.75)):
        assert np.isnan(wrong.bound) and np.all(np.asarray(wrong.status) != 0)
    assert np.isnan(select(0.2, 0.4).bound)
