"""Paths driven from the host: certified at every lam, lams that share a pass, in any order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wide import EQUAL, compiled_solve, problem

from jaxsac import Status, group_lasso
from jaxsac.group_lasso.methods.host import path as homotopy


@pytest.mark.parametrize(
    "loss, everything",
    [("squared", False), pytest.param("logistic", True, marks=pytest.mark.slow)],
    ids=["squared", "logistic, everything"],
)
def test_a_path_is_certified_at_every_lam(loss, everything):
    X, y, more = problem(2, loss, EQUAL, jnp.float64)
    keywords = {"loss": loss, "intercept": True, **more} if everything else {"loss": loss}
    path = group_lasso.path(X, y, EQUAL, num_lams=10, min_ratio=0.05, tol=1e-7, **keywords).check()
    largest = group_lasso.lam_max(X, y, EQUAL, **keywords)
    np.testing.assert_allclose(
        path.stats["lam"], largest * 0.05 ** np.linspace(0, 1, 10), rtol=1e-7
    )
    assert path.value.coef.shape == (10, EQUAL.num_coefficients) and path.value.intercept.shape == (
        10,
    )
    free = int(np.sum(np.asarray(more["weights"]) == 0)) if everything else 0
    assert (
        path.stats["num_active"][0] == free
        and np.all(np.diff(path.stats["num_active"]) >= -3)
        and path.stats["num_steps"].sum() <= 40
    )
    for k in range(10):
        at = jax.tree.map(lambda leaf, k=k: leaf[k], path)
        again = compiled_solve(
            X, y, EQUAL, at.stats["lam"], tol=1e-7, max_steps=0, state=at.state, **keywords
        )
        assert again.status == Status.CONVERGED
        np.testing.assert_allclose(again.stats["objective"], at.stats["objective"], rtol=1e-12)
    # The compiled loop may stall before that tolerance where groups are unpenalised: its gap says
    # how near it came.
    apart = compiled_solve(X, y, EQUAL, path.stats["lam"][6], tol=1e-7, **keywords)
    assert (
        abs(apart.stats["objective"] - path.stats["objective"][6])
        <= apart.stats["gap"] + 1e-7 * apart.stats["scale"]
    )


SHARED = [
    pytest.param("squared", False, jnp.float64, None, id="squared"),
    pytest.param("squared", False, jnp.float64, 3.0, id="squared, too few groups"),
    pytest.param(
        "squared", False, jnp.float32, None, id="squared, float32", marks=pytest.mark.slow
    ),
    pytest.param(
        "logistic", True, jnp.float64, None, id="logistic, everything", marks=pytest.mark.slow
    ),
    pytest.param(
        "logistic",
        True,
        jnp.float64,
        3.0,
        id="logistic, everything, too few groups",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("loss, everything, dtype, least", SHARED)
def test_lams_that_share_a_pass(loss, everything, dtype, least, monkeypatch):
    """On a fine grid several lams are certified in one pass; where the set lacked groups, the lam
    is mended and the rest begins again.
    """
    X, y, more = problem(2, loss, EQUAL, dtype)
    tol = 1e-7 if dtype == jnp.float64 else 1e-4
    keywords = {"loss": loss, "intercept": True, "tol": tol, **(more if everything else {})}
    passes, checks = [], homotopy.checks
    monkeypatch.setattr(
        homotopy,
        "checks",
        lambda *arguments: passes.append(len(arguments[1])) or checks(*arguments),
    )
    if least is not None:
        monkeypatch.setattr(homotopy, "_LEAST", least)
    path = group_lasso.path(X, y, EQUAL, num_lams=24, min_ratio=0.25, **keywords).check()
    assert max(passes) == 4
    if least is None:
        assert len(passes) <= 10 and np.all(np.asarray(path.stats["num_steps"]) <= 3)
    else:
        assert np.max(path.stats["num_steps"]) > 1  # mended by a pass of its own
    for k in range(24):
        at = jax.tree.map(lambda leaf, k=k: leaf[k], path)
        again = compiled_solve(
            X, y, EQUAL, at.stats["lam"], max_steps=0, state=at.state, **keywords
        )
        assert again.status == Status.CONVERGED
        np.testing.assert_allclose(
            again.stats["objective"],
            at.stats["objective"],
            rtol=1e-12 if dtype == jnp.float64 else 1e-5,
        )


def test_lams_in_any_order():
    X, y, _ = problem(2, "squared", EQUAL, jnp.float64)
    largest = group_lasso.lam_max(X, y, EQUAL)
    ratios = jnp.asarray([0.5, 0.47, 0.8, 0.44, 0.44, 0.42, 0.41, 0.6])
    path = group_lasso.path(X, y, EQUAL, lams=ratios * largest, tol=1e-7).check()
    alone = group_lasso.solve(X, y, EQUAL, 0.41 * largest, tol=1e-7)
    close = group_lasso.path(
        X, y, EQUAL, lams=jnp.asarray([0.5, 0.5 * (1 - 1e-15), 0.4]) * largest, tol=1e-7
    ).check()
    assert (
        close.stats["num_steps"][2] == 1
    )  # a secant over next to nothing is not believed: it costs a pass
    np.testing.assert_allclose(
        path.stats["objective"][6], alone.stats["objective"], atol=2e-7 * alone.stats["scale"]
    )
    np.testing.assert_allclose(
        path.stats["objective"][3], path.stats["objective"][4], atol=1e-7 * alone.stats["scale"]
    )
    short = group_lasso.path(X, y, EQUAL, lams=ratios * largest, tol=1e-9, max_steps=1)
    assert Status.MAX_STEPS in short.status and np.all(np.asarray(short.stats["num_steps"]) <= 1)
    assert np.all(np.isin(short.status, [Status.MAX_STEPS, Status.CONVERGED]))


def test_a_path_hands_over_what_it_cannot_finish():
    X, y, _ = problem(2, "squared", EQUAL, jnp.float64)
    path = group_lasso.path(X, y, EQUAL, num_lams=2, min_ratio=0.5, tol=1e-18)
    assert (
        path.status[1] == Status.STALLED and path.stats["gap"][1] <= 1e-9 * path.stats["scale"][1]
    )
    for bad in (jnp.nan, jnp.inf):
        poisoned = group_lasso.path(X.at[3, 2].set(bad), y, EQUAL, num_lams=2, min_ratio=0.5)
        assert np.all(np.asarray(poisoned.status) == Status.NONFINITE)
