"""Rounds of the loop on the columns that matter: the answers of the loop on all columns, for what
the block methods do not cover.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import Groups, Status, designs, group_lasso
from jaxsac.group_lasso.methods import columns as restricted
from jaxsac.group_lasso.methods.loop import programs
from jaxsac.group_lasso.problem import support
from jaxsac.prox import Level, Penalty

T, G, Q, M = 60, 40, 3, 4
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(T, G * Q)))
COEF = np.r_[RNG.normal(size=3 * Q), np.zeros((G - 3) * Q)]
Y = jnp.asarray(X @ COEF + 0.5 * RNG.normal(size=T))
GROUPS = Groups.equal(G, Q)
UNEQUAL = Groups.from_sizes([20] + [1] * (G * Q - 20))  # sums over segments
SIGNALS = X @ jnp.asarray(RNG.normal(size=(G * Q, M)) * (np.arange(G * Q) < 4)[:, None])
CLASSES = jnp.asarray(np.argmax(SIGNALS + RNG.gumbel(size=(T, M)), axis=1), jnp.int32)
TARGETS = SIGNALS + jnp.asarray(RNG.normal(size=(T, M)))
FAMILIES = Level(Groups.equal(G // 4, 4 * Q), jnp.full(G // 4, 0.5))
BY_FEATURE, BY_OUTPUT = (designs.MultiOutput(X, M, by=by) for by in ("feature", "output"))
FEATURES, COLUMNS = Groups.equal(G * Q, M), Groups.from_labels(np.tile(np.arange(G * Q), M))
FREE = jnp.asarray(np.where(np.arange(G) == 7, 0.0, 1.0))

CASES = {
    "sparse-group": (X, Y, GROUPS, dict(penalty=Penalty(l1=0.5))),
    "elastic net, intercept": (X, Y, GROUPS, dict(penalty=Penalty(ridge=0.1), intercept=True)),
    "non-negative": (X, Y, GROUPS, dict(penalty=Penalty(nonnegative=True))),
    "families": (X, Y, GROUPS, dict(penalty=Penalty([FAMILIES], l1=0.1), loss="huber")),
    "unequal groups": (X, Y, UNEQUAL, dict(weights="sqrt_size")),
    "free group": (X, Y, GROUPS, dict(penalty=Penalty(ridge=0.1), weights=FREE, intercept=True)),
    "square root": (X, Y, GROUPS, dict(penalty=Penalty(l1=0.5), loss="sqrt")),
    "outputs by feature": (BY_FEATURE, TARGETS, FEATURES, dict()),
    "outputs by output": (BY_OUTPUT, TARGETS, COLUMNS, dict(intercept=True)),
    "classes": (BY_FEATURE, CLASSES, FEATURES, dict(loss="multinomial", intercept=True)),
}


@pytest.fixture
def small(monkeypatch):
    """Small problems go through it too, on sets of a few columns."""
    monkeypatch.setattr(restricted, "_WORTHWHILE", 1)
    monkeypatch.setattr(restricted, "_FEW", 1)
    monkeypatch.setattr(restricted, "_FEWEST", 4)
    monkeypatch.setattr(restricted, "_SMALLEST", 15)


def never(*_):
    raise AssertionError("the loop on all columns was not to run")


def compare(name, ratio, dtype=jnp.float64, tol=1e-8):
    design, y, groups, keywords = CASES[name]
    design, y = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        (design, y),
    )
    lam = ratio * group_lasso.lam_max(design, y, groups, **keywords)

    def solve(design, y, lam):
        return group_lasso.solve(design, y, groups, lam, tol=tol, **keywords)

    return solve(design, y, lam), jax.jit(solve)(
        design, y, lam
    ).check()  # traced, it is the loop on all columns


ALSO = {  # what the others have part of
    "elastic net, intercept",
    "families",
    "free group",
    "square root",
    "outputs by feature",
    "outputs by output",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ALSO else ()) for name in CASES]
)
def test_answers_are_those_of_the_loop_on_all_columns(name, small, monkeypatch):
    plain = programs.solve
    monkeypatch.setattr(
        programs,
        "solve",
        lambda problem, *rest: plain(problem, *rest) if traced(problem) else never(),
    )
    found, expected = compare(name, 0.5 if name == "square root" else 0.3)
    assert found.check().stats["num_steps"] <= 12 and found.stats["num_active"] > 0
    allowed = 2e-8 * float(expected.stats["scale"])
    np.testing.assert_allclose(found.stats["objective"], expected.stats["objective"], atol=allowed)
    np.testing.assert_allclose(found.stats["scale"], expected.stats["scale"], rtol=1e-12)
    np.testing.assert_allclose(found.value.coef, expected.value.coef, atol=2e-3)
    np.testing.assert_allclose(found.value.intercept, expected.value.intercept, atol=2e-3)
    assert found.stats["gap"] <= 1e-8 * found.stats["scale"] and jax.tree.structure(
        found
    ) == jax.tree.structure(expected)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )


def traced(problem):
    return isinstance(problem.y, jax.core.Tracer)


@pytest.mark.slow
def test_single_precision(small):
    found, expected = compare("sparse-group", 0.3, jnp.float32, 1e-4)
    assert found.status == Status.CONVERGED and found.value.coef.dtype == jnp.float32
    np.testing.assert_allclose(found.stats["objective"], expected.stats["objective"], rtol=2e-4)


@pytest.mark.slow
def test_where_most_columns_are_needed_the_loop_goes_on(small):
    found, expected = compare("sparse-group", 0.01)
    np.testing.assert_allclose(
        found.check().stats["objective"],
        expected.stats["objective"],
        atol=2e-8 * float(expected.stats["scale"]),
    )
    assert (
        found.stats["num_active"] > G // 2 and found.stats["num_steps"] > 12
    )  # the loop counts steps


def test_ways_to_end(small):
    design, y, groups, keywords = CASES["sparse-group"]
    largest = group_lasso.lam_max(design, y, groups, **keywords)

    def solve(y, ratio, **more):
        return group_lasso.solve(design, y, groups, ratio * largest, **keywords, **more)

    assert solve(Y, 1.001).check().stats["num_steps"] == 0 and not np.any(
        solve(Y, 1.001).value.coef
    )
    assert solve(Y, 0.3, max_steps=0).status == Status.MAX_STEPS
    assert solve(Y, 0.3, max_steps=1, tol=1e-12).status == Status.MAX_STEPS
    assert solve(Y.at[0].set(jnp.nan), 0.3).status == Status.NONFINITE
    assert solve(Y, 0.3, tol=1e-30).status == Status.STALLED
    whole = solve(Y, 0.3, tol=1e-10)
    assert solve(Y, 0.3, tol=1e-9, state=whole.state).stats["num_steps"] == 0


def test_a_start_that_is_not_allowed(small):
    """The solution without the constraint is no solution with it, however small its gap would
    be.
    """
    largest = group_lasso.lam_max(X, Y, GROUPS)
    plain = group_lasso.solve(X, Y, GROUPS, 0.3 * largest, tol=1e-9).check()
    assert np.min(plain.value.coef) < -0.1
    found = group_lasso.solve(
        X, Y, GROUPS, 0.3 * largest, penalty=Penalty(nonnegative=True), state=plain.state, tol=1e-9
    ).check()
    cold = group_lasso.solve(
        X, Y, GROUPS, 0.3 * largest, penalty=Penalty(nonnegative=True), tol=1e-9
    ).check()
    assert np.min(found.value.coef) >= 0
    np.testing.assert_allclose(
        found.stats["objective"], cold.stats["objective"], atol=2e-9 * float(cold.stats["scale"])
    )


def test_padding_keeps_families_nested():
    """Columns of zeros that pad a set belong to one coefficient's groups on all levels, so that the
    dual norm is that of the set.
    """
    penalty = Penalty([FAMILIES], l1=0.1)
    problem = group_lasso.Problem(X, Y, GROUPS, "squared", None, None, None, False, penalty).at(1.0)
    chosen = np.arange(5 * 4 * Q, 6 * 4 * Q, dtype=np.int32)  # a family
    padded = support.restrict(problem, np.append(chosen, np.full(9, G * Q, np.int32)))
    vector = jnp.asarray(RNG.normal(size=len(chosen)))
    dual_norm = jax.jit(lambda penalty, vector: penalty.dual_norm(vector))
    of_all = dual_norm(problem.whole_penalty, jnp.zeros(G * Q).at[chosen].set(vector))
    np.testing.assert_allclose(
        dual_norm(padded.whole_penalty, jnp.append(vector, jnp.zeros(9))), of_all, rtol=1e-9
    )


@pytest.mark.parametrize(
    "name", ["sparse-group", pytest.param("outputs by output", marks=pytest.mark.slow)]
)
def test_paths(name, small):
    design, y, groups, keywords = CASES[name]
    found = group_lasso.path(
        design, y, groups, num_lams=5, min_ratio=0.1, tol=1e-8, **keywords
    ).check()
    expected = jax.jit(
        lambda y: group_lasso.path(
            design, y, groups, num_lams=5, min_ratio=0.1, tol=1e-8, **keywords
        )
    )(y).check()
    np.testing.assert_allclose(found.stats["lam"], expected.stats["lam"], rtol=1e-12)
    np.testing.assert_allclose(
        found.stats["objective"],
        expected.stats["objective"],
        atol=2e-8 * float(expected.stats["scale"][0]),
    )
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
    assert np.max(found.stats["num_steps"]) <= 12 < np.max(expected.stats["num_steps"])


@pytest.mark.parametrize(
    "name", ["sparse-group", pytest.param("outputs by feature", marks=pytest.mark.slow)]
)
def test_derivatives_are_those_of_the_loop(name, small):
    design, y, groups, keywords = CASES[name]
    lam = 0.3 * group_lasso.lam_max(design, y, groups, **keywords)

    def value(y, lam):
        coef = group_lasso.solve(design, y, groups, lam, tol=1e-9, **keywords).value.coef
        return coef @ jnp.cos(jnp.arange(coef.size, dtype=coef.dtype))

    found, expected = jax.grad(value, (0, 1))(y, lam), jax.jit(jax.grad(value, (0, 1)))(y, lam)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
def test_cross_validation_is_that_of_the_batch(small, monkeypatch):
    design, y, groups, keywords = CASES["sparse-group"]
    whole, folds = group_lasso.Problem(design, y, groups, **keywords), np.arange(T) % 3
    keywords = dict(lams=jnp.asarray([0.8, 0.4]), tol=1e-8)
    calls, plain = [], restricted.run_rounds
    monkeypatch.setattr(restricted, "run_rounds", lambda *args: calls.append(args) or plain(*args))
    found = group_lasso.cross_validate(whole, folds, **keywords)
    assert len(calls) == 3 * 2  # each fold's path
    monkeypatch.setattr(restricted, "_WORTHWHILE", 1 << 30)
    expected = group_lasso.cross_validate(whole, folds, **keywords)
    np.testing.assert_allclose(found.fold_error, expected.fold_error, rtol=1e-4)
    assert not np.any(found.status) and not np.any(expected.status)
