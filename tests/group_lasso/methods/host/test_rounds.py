"""The host-driven method against the compiled one: the same answer, the same certificate, whatever
is weighted, shifted or unpenalised.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from wide import EQUAL, UNEQUAL, G, T, compiled_solve, problem

from jaxsac import Groups, Status, designs, group_lasso
from jaxsac.group_lasso.methods.host import rounds as working_set

SETTINGS = [
    pytest.param("squared", EQUAL, False, jnp.float64, id="squared"),
    pytest.param(
        "logistic",
        UNEQUAL,
        True,
        jnp.float64,
        id="logistic, everything, unequal groups",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "squared",
        UNEQUAL,
        True,
        jnp.float64,
        id="squared, everything, unequal groups",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "squared", EQUAL, False, jnp.float32, id="squared, float32", marks=pytest.mark.slow
    ),
    pytest.param("huber", EQUAL, True, jnp.float64, id="huber, everything", marks=pytest.mark.slow),
    pytest.param(
        "poisson", EQUAL, True, jnp.float64, id="poisson, everything", marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize("loss, groups, everything, dtype", SETTINGS)
def test_the_answer_is_that_of_the_compiled_loop(loss, groups, everything, dtype):
    X, y, more = problem(0, loss if loss != "poisson" else "logistic", groups, dtype)
    if loss == "poisson":
        y = jnp.abs(y + 1)
    keywords = {"loss": loss, "intercept": True, **more} if everything else {"loss": loss}
    largest = group_lasso.lam_max(X, y, groups, **keywords)
    tol = 1e-4 if dtype == jnp.float32 else 1e-7
    for ratio in (0.5, 0.2):
        keywords["tol"] = tol
        host = group_lasso.solve(X, y, groups, ratio * largest, **keywords).check()
        compiled = compiled_solve(X, y, groups, ratio * largest, **keywords).check()
        assert jax.tree.structure(host) == jax.tree.structure(compiled)
        assert [leaf.dtype for leaf in jax.tree.leaves(host)] == [
            leaf.dtype for leaf in jax.tree.leaves(compiled)
        ]
        assert [leaf.shape for leaf in jax.tree.leaves(host)] == [
            leaf.shape for leaf in jax.tree.leaves(compiled)
        ]
        scale = compiled.stats["scale"]
        np.testing.assert_allclose(
            host.stats["scale"], scale, rtol=1e-6 if dtype == jnp.float32 else 1e-12
        )
        assert abs(host.stats["objective"] - compiled.stats["objective"]) <= tol * scale
        # passes, not steps: the compiled loop takes hundreds
        assert (
            host.stats["num_steps"] <= 15 and 0 < host.stats["num_active"] < groups.num_groups // 4
        )
        # the certificate of the compiled loop, asked about this answer
        again = compiled_solve(
            X, y, groups, ratio * largest, **keywords, max_steps=0, state=host.state
        )
        assert again.status == Status.CONVERGED
        np.testing.assert_allclose(
            again.stats["objective"],
            host.stats["objective"],
            rtol=1e-5 if dtype == jnp.float32 else 1e-12,
        )
        assert (
            group_lasso.solve(
                X, y, groups, ratio * largest, **keywords, state=compiled.state
            ).stats["num_steps"]
            <= 3
        )


@pytest.mark.slow
def test_every_way_to_end():
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    largest = group_lasso.lam_max(X, y, EQUAL)
    above = group_lasso.solve(X, y, EQUAL, 1.001 * largest).check()
    assert above.stats["num_steps"] == 0 and not np.any(above.value.coef)
    short = group_lasso.solve(X, y, EQUAL, 0.1 * largest, max_steps=1)
    assert short.status == Status.MAX_STEPS and short.stats["gap"] > 1e-6 * short.stats["scale"]
    for bad in (X.at[3, 2].set(jnp.nan), X.at[3, 2].set(jnp.inf)):
        assert group_lasso.solve(bad, y, EQUAL, 0.1 * largest).status == Status.NONFINITE
    stalled = group_lasso.solve(X, y, EQUAL, 0.1 * largest, tol=1e-18)
    assert stalled.status == Status.STALLED and stalled.stats["gap"] < 1e-9 * stalled.stats["scale"]


def test_units_do_not_matter():
    X, y, _ = problem(1, "squared", EQUAL, jnp.float64)
    lam = 0.1 * group_lasso.lam_max(X, y, EQUAL)
    base = group_lasso.solve(X, y, EQUAL, lam).check()
    for of_X, of_y in ((1e60, 1e-60), (1e-60, 1e40)):
        scaled = group_lasso.solve(of_X * X, of_y * y, EQUAL, of_X * of_y * lam).check()
        np.testing.assert_allclose(scaled.value.coef * (of_X / of_y), base.value.coef, atol=1e-4)
        # Units that are no powers of two round otherwise: a gap at the edge of the tolerance may
        # take one pass more.
        assert abs(int(scaled.stats["num_steps"]) - int(base.stats["num_steps"])) <= 1


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_a_start_that_has_to_become_nothing(loss):
    """Steps on an empty support: from coefficients above lam_max, on a rising path, and just below
    lam_max to a fine tolerance.
    """
    X, y, _ = problem(0, loss, EQUAL, jnp.float64)
    largest = group_lasso.lam_max(X, y, EQUAL, loss=loss)
    start = group_lasso.solve(X, y, EQUAL, 0.5 * largest, loss=loss)
    above = group_lasso.solve(X, y, EQUAL, 1.5 * largest, loss=loss, state=start.state).check()
    rising = group_lasso.path(
        X, y, EQUAL, lams=jnp.asarray([0.5, 1.5, 1.2, 0.5]) * largest, loss=loss
    ).check()
    assert not np.any(above.value.coef) and not np.any(rising.value.coef[1:3])
    np.testing.assert_allclose(rising.stats["objective"][3], start.stats["objective"], rtol=2e-6)
    group_lasso.solve(X, y, EQUAL, largest * (1 - 1e-5), loss=loss, tol=1e-10).check()


@pytest.mark.parametrize("ratio", [0.3, 0.03])
def test_no_false_convergence_in_any_units(ratio):
    """Coefficients whose squares underflow in float32, judged in float64 numpy."""
    X, y, _ = problem(0, "squared", EQUAL, jnp.float32)
    X, y = 1e10 * X, 1e-13 * y
    lam = ratio * group_lasso.lam_max(X, y, EQUAL)
    sol = group_lasso.solve(X, y, EQUAL, lam, tol=1e-5)
    A, b, target, lam = (np.asarray(a, np.float64) for a in (X, sol.value.coef, y, lam))
    rho = (target - A @ b) / T
    objective = 0.5 * T * rho @ rho + lam * np.linalg.norm(b.reshape(G, 4), axis=1).sum()
    shrink = min(1.0, lam / np.linalg.norm((rho @ A).reshape(G, 4), axis=1).max())
    gap = objective - shrink * (rho @ target) + 0.5 * T * shrink**2 * (rho @ rho)
    claimed, scale = float(sol.stats["gap"] + sol.stats["rounding"]), float(sol.stats["scale"])
    assert np.any(b) and sol.stats["kkt"] > 0
    assert gap <= claimed and (
        sol.status != Status.CONVERGED or claimed <= 1e-5 * (1 + 1e-6) * scale
    ), (gap / scale, claimed / scale)


@pytest.mark.slow
def test_an_intercept_that_is_not_asked_for_is_not_returned():
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    lam = 0.3 * group_lasso.lam_max(X, y, EQUAL)
    with_one = group_lasso.solve(X, y, EQUAL, lam, intercept=True)
    for solve in (group_lasso.solve, jax.jit(group_lasso.solve)):
        without = solve(X, y, EQUAL, lam, state=with_one.state)
        assert (
            without.status == Status.CONVERGED
            and without.value.intercept == 0
            and without.stats["num_steps"] <= 1000
        )


@pytest.mark.slow
def test_without_a_penalty_nothing_is_certified_at_zero():
    """A tall problem, of few enough columns to be refitted if they were unpenalised by weight."""
    rng = np.random.default_rng(7)
    X, noise = rng.normal(size=(1200, 240)), rng.normal(size=1200)
    y = X @ rng.normal(size=240) + noise
    sol = group_lasso.solve(
        jnp.asarray(X), jnp.asarray(y), Groups.equal(24, 10), 0.0, tol=1e-8
    ).check()
    least = np.linalg.lstsq(X, y)[1][0] / 2400
    assert least <= sol.stats["objective"] <= least + 1e-8 * sol.stats["scale"]
    again = group_lasso.path(
        jnp.asarray(X), jnp.asarray(y), Groups.equal(24, 10), lams=jnp.asarray([0.1, 0.0]), tol=1e-8
    ).check()
    assert again.stats["objective"][1] <= least + 1e-8 * sol.stats["scale"]


def test_what_is_covered():
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)

    def covered(X, groups, lam=0.1, **keywords):
        arguments = {
            "weights": None,
            "sample_weight": None,
            "offset": None,
            "intercept": False,
        } | keywords
        return working_set.applies(
            group_lasso.Problem(X, y, groups, "squared", *arguments.values()).at(lam)
        )

    assert covered(X, EQUAL) and covered(X, EQUAL, intercept=True)
    assert not covered(X[:, :40], Groups.equal(10, 4))  # small
    assert not covered(X, EQUAL, lam=0.0)  # everything unpenalised
    assert not covered(
        designs.Centred(designs.as_design(X), jnp.full(T, 1 / T)), EQUAL
    )  # by its owner, with no intercept
    assert not covered(X, Groups.from_sizes([2000] + [1] * 2400))  # no block form


@pytest.mark.parametrize(
    "loss",
    [
        "squared",
        *(pytest.param(loss, marks=pytest.mark.slow) for loss in ("logistic", "huber", "poisson")),
    ],
)
@pytest.mark.parametrize(
    "dtype",
    [jnp.float64, pytest.param(jnp.float32, marks=pytest.mark.slow)],
    ids=["float64", "float32"],
)
def test_no_false_convergence(loss, dtype):
    """Small random problems with intercepts, weights (some 0), offsets and records of weight 0,
    judged in float64 numpy.
    """
    groups, tol = Groups.from_sizes(zoo.SIZES), 1e-6 if dtype == jnp.float64 else 1e-4
    codes, worst = [], 0.0
    for seed in range(500):
        at = zoo.Instance(
            *(
                np.asarray(a, dtype)
                for a in zoo.instance(seed, loss, zero_weight=loss != "logistic")
            )
        )
        exact = zoo.Instance(*(np.asarray(a, np.float64) for a in at))
        lam = float(np.asarray(exact.ratio * zoo.lam_max(loss, exact, has_intercept=True), dtype))
        arrays = {"weights": at.weights, "sample_weight": at.sample_weight, "offset": at.offset}
        ended = working_set.solve_in(
            group_lasso.Problem(
                jnp.asarray(at.X),
                jnp.asarray(at.y),
                groups,
                loss,
                *map(jnp.asarray, arrays.values()),
                True,
            ).at(lam),
            tol,
            60,
            None,
        )
        codes.append(int(ended.status))
        if ended.status == Status.CONVERGED:
            gap, scale = zoo.gap(
                loss,
                exact,
                lam,
                np.asarray(ended.value.coef, np.float64),
                float(ended.value.intercept),
                has_intercept=True,
            )
            worst = max(worst, gap / scale)
    assert worst <= tol, worst
    assert np.mean(np.asarray(codes) == Status.CONVERGED) >= (
        0.99 if dtype == jnp.float64 else 0.9
    ), np.unique(codes, return_counts=True)
