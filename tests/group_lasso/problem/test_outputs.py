"""Several outputs: multinomial and multi-task certificates, judged in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import entr, log_softmax, softmax

from jaxsac import Groups, Status, designs, group_lasso

T, Q, M = 30, 5, 3
GROUPS = Groups.equal(Q, M)  # a feature's coefficients for all outputs


def instance(seed, loss):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(T, Q)) + rng.uniform(0, 1) * rng.normal(size=(T, 1))
    coef = np.where(np.arange(Q)[:, None] < 2, rng.normal(size=(Q, M)), 0)
    z = features @ coef + rng.normal(size=M)
    y = (
        z + rng.normal(size=(T, M))
        if loss == "squared"
        else np.argmax(z + rng.gumbel(size=z.shape), axis=1).astype(np.int32)
    )
    counts = rng.uniform(0.5, 1.5, T)
    counts[-1] = 0
    return features, y, rng.uniform(0.5, 2, Q), counts, 10 ** rng.uniform(-2, 0)


def judged(loss, features, y, weights, counts, lam, coef, intercept):
    """Objective, gap and the null objective; the intercepts are refitted by Newton's method, ρ
    scaled by the largest group.
    """
    norms = np.sqrt((coef**2).sum(axis=1))

    def value(z):
        each = (
            0.5 * ((y - z) ** 2).sum(axis=1)
            if loss == "squared"
            else -log_softmax(z, axis=1)[np.arange(T), y]
        )
        return np.sum(counts * each) / T

    def descent(z):
        return y - z if loss == "squared" else np.eye(M)[y] - softmax(z, axis=1)

    def refitted(z):
        for _ in range(100):
            gradient = (counts[:, None] * descent(z)).sum(axis=0)
            if loss == "squared":
                hessian = counts.sum() * np.eye(M)
            else:
                p = softmax(z, axis=1)
                hessian = np.diag((counts[:, None] * p).sum(axis=0)) - (
                    counts[:, None, None] * p[:, :, None] * p[:, None, :]
                ).sum(axis=0)
            z = z + np.linalg.lstsq(hessian, gradient, rcond=1e-10)[0]
        return z

    objective = value(features @ coef + intercept) + lam * np.sum(weights * norms)
    z = refitted(features @ coef + intercept)
    g = descent(z)
    rho = counts[:, None] * g / T
    limit = lam / np.max(np.sqrt(((features.T @ rho) ** 2).sum(axis=1)) / weights)

    def dual(s):
        if loss == "squared":
            return np.sum(counts[:, None] * (s * g * y - 0.5 * s**2 * g**2)) / T
        return np.sum(counts[:, None] * entr(np.clip(np.eye(M)[y] - s * g, 0, 1))) / T

    tries = np.clip(
        np.append(np.linspace(0.9, 1.1, 401), 1.0),
        0,
        limit if loss == "squared" else min(limit, 1.0),
    )
    null = refitted(np.zeros((T, M)))
    return objective, objective - max(map(dual, tries)), value(null)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["multinomial", "squared"])
def test_no_false_convergence(loss):
    lanes = [instance(seed, loss) for seed in range(500)]
    features, y, weights, counts, ratios = (
        jnp.asarray(np.stack(part)) for part in zip(*lanes, strict=True)
    )

    @jax.jit
    @jax.vmap
    def run(features, y, weights, counts, ratio):
        design = designs.MultiOutput(features, M, by="feature")
        keywords = dict(loss=loss, weights=weights, sample_weight=counts, intercept=True)
        lam = ratio * group_lasso.lam_max(design, y, GROUPS, **keywords)
        return lam, group_lasso.solve(design, y, GROUPS, lam, **keywords)

    lams, solution = jax.tree.map(np.asarray, run(features, y, weights, counts, ratios))
    assert np.all(solution.status == Status.CONVERGED), np.unique(
        solution.status, return_counts=True
    )
    for lane, (X, y, w, c, _) in enumerate(lanes):
        found = solution.value.coef[lane].reshape(Q, M), solution.value.intercept[lane]
        objective, gap, scale = judged(loss, X, y, w, c, float(lams[lane]), *found)
        np.testing.assert_allclose(solution.stats["scale"][lane], scale, rtol=1e-6)
        assert -1e-9 * scale <= gap <= 1.5e-6 * scale, (lane, gap / scale)
        assert (
            abs(objective - solution.stats["objective"][lane])
            <= solution.stats["rounding"][lane] + 1e-12 * scale
        )
