"""CONVERGED means what it says: certificates against gaps recomputed in float64 numpy, over hundreds of random problems at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxsac import Status, group_lasso
from jaxsac.prox import Groups

GROUPS = Groups.from_sizes(zoo.SIZES)
NUM_PROBLEMS = 100

# What each loss is tried with: together they cover intercepts, unpenalised groups and offsets.
SETTINGS = {
    "squared": {"intercept": True, "zero_weight": True},
    "logistic": {"intercept": True, "zero_weight": False},
    "huber": {"intercept": False, "zero_weight": True},
    "poisson": {"intercept": True, "zero_weight": False},
}
TOLERANCE = {"float32": 1e-4, "float64": 1e-6}


@pytest.fixture(scope="module", params=[(loss, dtype) for loss in SETTINGS for dtype in TOLERANCE], ids="-".join)
def solved(request):
    """A batch of problems, their solutions, and their recomputed (gap, scale)."""
    loss, dtype = request.param
    setting = SETTINGS[loss]
    instances = [zoo.instance(seed, loss, zero_weight=setting["zero_weight"]) for seed in range(NUM_PROBLEMS)]
    rounded = [zoo.Instance(*(np.asarray(a, dtype) for a in at)) for at in instances]
    intercept = setting["intercept"]

    @jax.jit
    @jax.vmap
    def run(X, y, weights, sample_weight, offset, ratio):
        keywords = dict(loss=loss, weights=weights, sample_weight=sample_weight, offset=offset, intercept=intercept)
        lam = ratio * group_lasso.lam_max(X, y, GROUPS, **keywords)
        return lam, group_lasso.solve(X, y, GROUPS, lam, **keywords)

    lam, solution = jax.tree.map(np.asarray, run(*(jnp.asarray(array) for array in zoo.stack(rounded))))
    recomputed = []
    for lane, at in enumerate(rounded):
        exact = zoo.Instance(*(np.asarray(a, np.float64) for a in at))
        coef, constant = solution.value.coef[lane].astype(np.float64), float(solution.value.intercept[lane])
        recomputed.append(zoo.gap(loss, exact, float(lam[lane]), coef, constant, has_intercept=intercept))
    return loss, dtype, rounded, lam, solution, np.asarray(recomputed)


def test_no_false_convergence(solved):
    _, dtype, _, _, solution, recomputed = solved
    gap, scale = recomputed.T
    converged = solution.status == Status.CONVERGED
    assert converged.mean() >= 0.97, np.unique(solution.status, return_counts=True)
    relative = gap[converged] / scale[converged]
    assert np.all(relative <= TOLERANCE[dtype]), (relative.max(), np.flatnonzero(converged)[np.argmax(relative)])
    assert set(np.unique(solution.status)) <= {Status.CONVERGED, Status.STALLED, Status.MAX_STEPS}


def test_reported_numbers_are_within_the_rounding_bound(solved):
    loss, _, rounded, lam, solution, recomputed = solved
    gap, scale = recomputed.T
    rounding = solution.stats["rounding"]
    np.testing.assert_allclose(solution.stats["scale"], scale, rtol=2e-4)
    # the two dual points differ by what the refit of the unpenalised part leaves: a share of the tolerance
    target = 0.02 * TOLERANCE[solved[1]] * scale
    assert np.all(gap <= solution.stats["gap"] + rounding + target), np.max((gap - solution.stats["gap"]) / (rounding + target))
    for lane in range(0, NUM_PROBLEMS, 10):
        exact = zoo.Instance(*(np.asarray(a, np.float64) for a in rounded[lane]))
        value = zoo.objective(loss, exact, float(lam[lane]), solution.value.coef[lane], solution.value.intercept[lane])
        assert abs(value - solution.stats["objective"][lane]) <= rounding[lane]


def test_steps_and_sparsity_are_reasonable(solved):
    *_, lam, solution, _ = solved
    assert np.median(solution.stats["num_steps"]) <= 500
    active = np.stack([zoo.norms(coef) > 0 for coef in solution.value.coef.astype(np.float64)])
    np.testing.assert_array_equal(active.sum(axis=1), solution.stats["num_active"])
    assert 0 < active[:, 2:].mean() < 1
    assert np.all(np.isfinite(lam))
