"""Curvature conditions against exact values by enumeration, and the witness against solutions on
all groups.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsac
from jaxsac import control, group_lasso


def exact_curvature(matrix: np.ndarray, support: np.ndarray, cone: float) -> float:
    """min v'Hv over the unit sphere in the cone, q = 1, by enumerating the faces of each orthant's
    part of the cone.

    A minimiser lies in the relative interior of a face and is an eigenvector of H on the face's
    span.
    """
    n, best = len(support), np.inf
    for size in range(1, n + 1):
        for active in itertools.combinations(range(n), size):
            block = matrix[np.ix_(active, active)]
            inside = support[list(active)]
            candidates = [np.linalg.eigh(block)[1]]
            for signs in itertools.product((1, -1), repeat=size - 1):
                normal = np.array((1, *signs)) * np.where(
                    inside, -cone, 1.0
                )  # sum outside = c sum inside
                basis = np.linalg.svd(normal[None])[2][1:].T
                if basis.shape[1]:
                    candidates.append(basis @ np.linalg.eigh(basis.T @ block @ basis)[1])
            for v in np.concatenate(candidates, axis=1).T:
                if np.abs(v[~inside]).sum() <= cone * np.abs(v[inside]).sum() + 1e-9:
                    best = min(best, v @ block @ v / (v @ v))
    return best


def random_hessians(count: int, n: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    found = np.empty((count, n, n))
    for i in range(count):
        rows = random.normal(size=(random.integers(2, 40), n))
        rows[:, 0] += random.choice([0, 1, 5]) * rows[:, -1]  # often close to collinear
        found[i] = rows.T @ rows / len(rows)
    return found


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_restricted_curvature_brackets_the_exact_value(count):
    n, cone = 4, 3.0
    hessians = random_hessians(count, n, 0)
    supports = np.random.default_rng(1).permuted(np.tile(np.arange(n) < 1, (count, 1)), axis=1)
    supports[::3] |= np.roll(supports[::3], 1, axis=1)
    found = jax.vmap(lambda h, s: control.conditions.restricted_curvature(h, s, cone=cone))(
        hessians.reshape(count, n, 1, n, 1), supports
    )
    exact = np.array([exact_curvature(h, s, cone) for h, s in zip(hessians, supports, strict=True)])
    rounding = 1e-9 * np.abs(hessians).max(axis=(1, 2))
    assert (np.asarray(found.lower) <= exact + rounding).all()
    assert (np.asarray(found.upper) >= exact - rounding).all()
    assert (np.asarray(found.upper_support) >= np.asarray(found.upper) - rounding).all()
    # the descent finds it, mostly
    assert np.quantile(np.asarray(found.upper) / np.maximum(exact, 1e-12), 0.9) < 1.02
    assert (np.asarray(found.lower) > 0).mean() > 0.3


def test_block_conditions_against_plain_numpy():
    n, q = 5, 2
    random = np.random.default_rng(0)
    rows = random.normal(size=(30, n * q))
    matrix = rows.T @ rows / 30
    hessian = matrix.reshape(n, q, n, q)
    support = np.array([True, False, True, False, False])
    theta, weights = random.normal(size=(n, q)), random.uniform(0.5, 2, n)
    mask = np.repeat(support, q)
    inverse = np.linalg.inv(matrix[np.ix_(mask, mask)])
    z = np.concatenate([weights[g] * theta[g] / np.linalg.norm(theta[g]) for g in (0, 2)])
    cross = matrix[np.ix_(~mask, mask)] @ inverse
    signed = max(
        np.linalg.norm(cross[2 * i : 2 * i + 2] @ z) / weights[j] for i, j in enumerate((1, 3, 4))
    )
    norm = max(
        sum(
            weights[g] * np.linalg.norm(cross[2 * i : 2 * i + 2, 2 * p : 2 * p + 2], 2)
            for p, g in enumerate((0, 2))
        )
        / weights[j]
        for i, j in enumerate((1, 3, 4))
    )
    found = control.conditions.irrepresentability(hessian, support, theta, weights)
    np.testing.assert_allclose(found, (signed, norm), rtol=1e-10)
    threshold = 0.3 * max(
        sum(
            weights[g] * np.linalg.norm(inverse[2 * p : 2 * p + 2, 2 * r : 2 * r + 2], 2)
            for r, g in enumerate((0, 2))
        )
        for p in range(2)
    )
    np.testing.assert_allclose(
        control.conditions.signal_threshold(hessian, support, 0.3, weights), threshold, rtol=1e-10
    )
    single = control.conditions.irrepresentability(
        hessian.astype(np.float32), support, theta.astype(np.float32)
    )
    assert single.norm.dtype == jnp.float32 and single.signed <= single.norm
    with pytest.raises(ValueError, match="support"):
        control.conditions.irrepresentability(hessian, np.array([0, 2]), theta)


def witness_problem(key, noise_only=False):
    """AR(1) columns, 3 of 20 groups of size 2; lam and noise drawn at random."""
    design, truth, noise, level = jax.random.split(key, 4)
    X = jax.random.normal(design, (40, 20, 2))
    X = (X + 0.5 * X[:, :1]).reshape(40, 40)
    support = jnp.arange(20) < 3
    coef = jnp.where(support[:, None], jax.random.normal(truth, (20, 2)), 0).reshape(-1)
    y = (0.0 if noise_only else 1.0) * jnp.matmul(X, coef) + 0.5 * jax.random.normal(noise, (40,))
    share = jax.random.uniform(level, minval=0.05, maxval=0.9)
    return X, y, support, share


@pytest.mark.slow
@pytest.mark.parametrize("count", [1000])
def test_a_positive_oracle_margin_implies_that_no_irrelevant_tool_is_kept(count):
    groups = jaxsac.Groups.equal(num_groups=20, size=2)

    def trial(key):
        X, y, support, share = witness_problem(key)
        lam = share * group_lasso.lam_max(X, y, groups)
        witness = control.conditions.oracle_witness(
            group_lasso.Problem(X, y, groups), support, lam, tol=1e-9
        )
        full = group_lasso.solve(X, y, groups, lam, tol=1e-9)
        kept = jnp.any(full.value.coef.reshape(20, 2) != 0, axis=1)
        return (
            witness.margin,
            jnp.any(kept & ~support),
            full.status,
            jnp.max(jnp.abs(witness.coef - full.value.coef)),
        )

    margin, extra, status, difference = (
        np.asarray(x) for x in jaxsac.run_trials(trial, jax.random.key(0), count)
    )
    safe = (margin > 1e-4) & (status == 0)
    assert safe.mean() > 0.1 and (~safe).mean() > 0.1
    assert not extra[safe].any()
    assert difference[safe].max() < 1e-2  # and the witness is the solution
    assert extra[margin < -1e-4].all()


@pytest.mark.slow
def test_the_fitted_margin_is_positive_on_pure_noise():
    """The margin at the fitted support certifies uniqueness, never truth."""
    groups = jaxsac.Groups.equal(num_groups=20, size=2)

    def trial(key):
        X, y, _, _ = witness_problem(key, noise_only=True)
        lam = 0.7 * group_lasso.lam_max(X, y, groups)
        full = group_lasso.solve(X, y, groups, lam, tol=1e-9)
        kept = jnp.any(full.value.coef.reshape(20, 2) != 0, axis=1)
        return control.conditions.oracle_witness(
            group_lasso.Problem(X, y, groups), kept, lam, tol=1e-9
        ).margin, jnp.sum(kept)

    margin, kept = (np.asarray(x) for x in jaxsac.run_trials(trial, jax.random.key(1), 200))
    assert (margin > 0).all() and (kept > 0).all()
