"""CONVERGED means what it says: certificates against gaps recomputed in float64 numpy, over
hundreds of random problems at once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxsac import Status, group_lasso
from jaxsac.prox import Groups

GROUPS = Groups.from_sizes(zoo.SIZES)
NUM_PROBLEMS = 128

# What each loss is tried with: together they cover intercepts, unpenalised groups and offsets.
SETTINGS = {
    "squared": {"intercept": True, "zero_weight": True},
    "logistic": {"intercept": True, "zero_weight": False},
    "huber": {"intercept": False, "zero_weight": True},
    "poisson": {"intercept": True, "zero_weight": False},
}
TOLERANCE = {"float32": 1e-4, "float64": 1e-6}
PARAMS = [
    pytest.param(
        (loss, dtype),
        id=f"{loss}-{dtype}",
        marks=[pytest.mark.slow] if dtype == "float32" or loss in ("huber", "poisson") else [],
    )
    for loss in SETTINGS
    for dtype in TOLERANCE
]


@functools.cache
def solver(loss):
    """A batch of problems at once: one compilation for each loss and dtype."""

    @jax.jit
    @jax.vmap
    def run(X, y, weights, sample_weight, offset, lam):
        keywords = dict(weights=weights, sample_weight=sample_weight, offset=offset)
        return group_lasso.solve(
            X, y, GROUPS, lam, loss=loss, intercept=SETTINGS[loss]["intercept"], **keywords
        )

    return run


@pytest.fixture(scope="module", params=PARAMS)
def solved(request):
    """A batch of problems, their solutions, and their recomputed (gap, scale)."""
    loss, dtype = request.param
    setting = SETTINGS[loss]
    instances = [
        zoo.instance(seed, loss, zero_weight=setting["zero_weight"]) for seed in range(NUM_PROBLEMS)
    ]
    rounded = [zoo.Instance(*(np.asarray(a, dtype) for a in at)) for at in instances]
    intercept = setting["intercept"]

    exact = [zoo.Instance(*(np.asarray(a, np.float64) for a in at)) for at in rounded]
    lam = np.asarray(
        [at.ratio * zoo.lam_max(loss, at, has_intercept=intercept) for at in exact], dtype
    )

    solution = jax.tree.map(
        np.asarray, solver(loss)(*(jnp.asarray(array) for array in (*zoo.stack(rounded)[:5], lam)))
    )
    recomputed = []
    for lane, at in enumerate(exact):
        coef, constant = (
            solution.value.coef[lane].astype(np.float64),
            float(solution.value.intercept[lane]),
        )
        recomputed.append(
            zoo.gap(loss, at, float(lam[lane]), coef, constant, has_intercept=intercept)
        )
    return loss, dtype, exact, lam, solution, np.asarray(recomputed)


def test_no_false_convergence(solved):
    _, dtype, _, _, solution, recomputed = solved
    gap, scale = recomputed.T
    converged = solution.status == Status.CONVERGED
    assert converged.mean() >= (0.95 if dtype == "float32" else 1.0), np.unique(
        solution.status, return_counts=True
    )
    relative = gap[converged] / scale[converged]
    assert np.all(relative <= TOLERANCE[dtype]), (
        relative.max(),
        np.flatnonzero(converged)[np.argmax(relative)],
    )
    assert set(np.unique(solution.status)) <= {Status.CONVERGED, Status.STALLED, Status.MAX_STEPS}


def test_reported_numbers_are_within_the_rounding_bound(solved):
    loss, dtype, instances, lam, solution, recomputed = solved
    gap, scale = recomputed.T
    rounding = solution.stats["rounding"]
    np.testing.assert_allclose(solution.stats["scale"], scale, rtol=2e-4)
    # the two dual points differ by what the refit of the unpenalised part leaves: a share of the
    # tolerance
    target = 0.005 * TOLERANCE[dtype] * scale
    assert np.all(gap <= solution.stats["gap"] + rounding + target), np.max(
        (gap - solution.stats["gap"]) / (rounding + target)
    )
    for lane in range(0, NUM_PROBLEMS, 10):
        coef, constant = (
            solution.value.coef[lane].astype(np.float64),
            float(solution.value.intercept[lane]),
        )
        value = zoo.objective(loss, instances[lane], float(lam[lane]), coef, constant)
        assert abs(value - solution.stats["objective"][lane]) <= rounding[lane]


def test_steps_and_sparsity_are_reasonable(solved):
    *_, lam, solution, _ = solved
    assert np.median(solution.stats["num_steps"]) <= 500
    active = np.stack([zoo.norms(coef) > 0 for coef in solution.value.coef.astype(np.float64)])
    np.testing.assert_array_equal(active.sum(axis=1), solution.stats["num_active"])
    assert 0 < active[:, 2:].mean() < 1
    assert np.all(np.isfinite(lam))


def faults(at, lam):
    """What may go wrong with a problem: (changed arrays, the only status allowed or None for any
    but a false CONVERGED).
    """
    X, y, c = at.X, at.y, at.sample_weight
    constant = np.ones_like(y)
    first = np.zeros_like(c)
    first[0] = 1.0
    duplicated = X.copy()
    duplicated[:, 3] = X[:, 4]
    zeroed = X.copy()
    zeroed[:, 3:8] = 0.0

    def broken(array, index, value):
        array = np.array(array)
        array[index] = value
        return array

    return {
        "nan in X": ({"X": broken(X, (2, 3), np.nan)}, Status.NONFINITE),
        "inf in X": ({"X": broken(X, (2, 3), np.inf)}, Status.NONFINITE),
        "nan in y": ({"y": broken(y, 1, np.nan)}, Status.NONFINITE),
        "nan weight": ({"weights": broken(at.weights, 2, np.nan)}, Status.NONFINITE),
        "negative weight": ({"weights": broken(at.weights, 2, -1.0)}, Status.NONFINITE),
        "negative sample weight": ({"sample_weight": broken(c, 2, -1.0)}, Status.NONFINITE),
        "nan offset": ({"offset": broken(at.offset, 0, np.nan)}, Status.NONFINITE),
        "negative lam": ({"lam": -lam}, Status.NONFINITE),
        "nan lam": ({"lam": np.nan}, Status.NONFINITE),
        "zero columns": ({"X": zeroed}, Status.CONVERGED),
        "duplicate columns": ({"X": duplicated}, None),
        "X all zero": ({"X": 0 * X}, Status.CONVERGED),
        "rank one": ({"X": np.outer(np.ones_like(y), X[0])}, None),
        "constant y": ({"y": constant}, None),
        "one record": ({"sample_weight": first}, None),
        "no record": ({"sample_weight": 0 * c}, Status.CONVERGED),
        "lam = 0": ({"lam": 0.0 * lam}, None),
        "lam tiny": ({"lam": 1e-12 * lam}, None),
        "lam huge": ({"lam": 1e12 * lam}, Status.CONVERGED),
        "X huge": ({"X": 1e12 * X}, None),
        "X tiny": ({"X": 1e-12 * X, "lam": 1e-12 * lam}, None),
        "y huge": ({"y": 1e12 * y}, None),
        "y tiny": ({"y": 1e-12 * y}, None),
        "y vanishing": ({"y": 1e-30 * y, "offset": 0 * at.offset}, None),
    }


@pytest.mark.parametrize("loss, dtype", [
    ("squared", "float32"),
    pytest.param("logistic", "float64", marks=pytest.mark.slow),
    pytest.param("squared", "float64", marks=pytest.mark.slow),
    pytest.param("logistic", "float32", marks=pytest.mark.slow),
])  # fmt: skip
def test_faults_have_a_code_and_leave_other_lanes_alone(loss, dtype):
    lanes = [
        zoo.instance(seed, loss, zero_weight=SETTINGS[loss]["zero_weight"])
        for seed in range(NUM_PROBLEMS)
    ]
    lams = np.asarray([at.ratio * zoo.lam_max(loss, at, has_intercept=True) for at in lanes], dtype)
    lanes = [zoo.Instance(*(np.asarray(a, dtype) for a in at)) for at in lanes]
    spoiled, spoiled_lams, expected = list(lanes), lams.copy(), {}
    for number, (name, (changed, status)) in enumerate(faults(lanes[0], lams[0]).items()):
        if loss == "logistic" and name.startswith("y "):
            continue  # labels have no scale
        changed = dict(changed)
        spoiled_lams[2 * number] = changed.pop("lam", lams[0])
        spoiled[2 * number] = lanes[0]._replace(
            **{key: np.asarray(value, dtype) for key, value in changed.items()}
        )
        expected[2 * number] = (name, status)

    def run(instances, lams):
        return jax.tree.map(
            np.asarray, solver(loss)(*(jnp.asarray(a) for a in (*zoo.stack(instances)[:5], lams)))
        )

    healthy, faulty = run(lanes, lams), run(spoiled, spoiled_lams)
    others = np.asarray([lane for lane in range(NUM_PROBLEMS) if lane not in expected])
    for one, other in zip(jax.tree.leaves(healthy), jax.tree.leaves(faulty), strict=True):
        np.testing.assert_array_equal(one[others], other[others])
    for lane, (name, status) in expected.items():
        assert status is None or faulty.status[lane] == status, (
            name,
            Status(int(faulty.status[lane])).name,
        )
        if faulty.status[lane] == Status.CONVERGED:
            coef = faulty.value.coef[lane].astype(np.float64)
            assert np.all(np.isfinite(coef)), name
            exact = zoo.Instance(*(np.asarray(a, np.float64) for a in spoiled[lane]))
            gap, scale = zoo.gap(
                loss,
                exact,
                float(spoiled_lams[lane]),
                coef,
                float(faulty.value.intercept[lane]),
                has_intercept=True,
            )
            floor = np.finfo(dtype).eps * zoo.loss_value(
                loss, exact.offset, exact.y, exact.sample_weight
            )
            assert gap <= TOLERANCE[dtype] * (scale + floor), name
