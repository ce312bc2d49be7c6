"""Solutions against independent libraries, optimality conditions, invariances, limits of lam, and
every way to end.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from sklearn.linear_model import (
    HuberRegressor,
    Lasso,
    LogisticRegression,
    MultiTaskLasso,
    PoissonRegressor,
)

from jaxsac import Status, designs, group_lasso, losses
from jaxsac.prox import Groups, group_norms

GROUPS = Groups.from_sizes(zoo.SIZES)
SINGLES = Groups.equal(zoo.NUM_COLUMNS, 1)
AT = zoo.instance(3, "squared")
X, Y = jnp.asarray(AT.X), jnp.asarray(AT.y)
LAM_MAX = float(group_lasso.lam_max(X, Y, GROUPS, intercept=True))

solve = functools.partial(group_lasso.solve, intercept=True, tol=1e-12)


def test_squared_loss_of_single_columns_is_the_lasso():
    lam = 0.1
    ours = solve(X, Y, SINGLES, lam).check()
    theirs = Lasso(alpha=lam, tol=1e-14, max_iter=1_000_000).fit(AT.X, AT.y)
    np.testing.assert_allclose(ours.value.coef, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.value.intercept, theirs.intercept_, atol=1e-6)


def test_logistic_loss_of_single_columns_is_l1_logistic_regression():
    at = zoo.instance(4, "logistic")
    lam = 0.02
    ours = solve(
        jnp.asarray(at.X), jnp.asarray(at.y), SINGLES, lam, loss="logistic", intercept=False
    ).check()
    theirs = LogisticRegression(
        C=1 / (lam * len(at.y)),
        l1_ratio=1.0,
        solver="liblinear",
        fit_intercept=False,
        tol=1e-12,
        max_iter=100_000,
    ).fit(at.X, at.y)
    np.testing.assert_allclose(ours.value.coef, theirs.coef_[0], atol=1e-5)


@pytest.mark.slow
def test_outputs_that_share_features_are_the_multi_task_lasso():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(25, 6))
    targets = features[:, :2] @ rng.normal(size=(2, 3)) + 0.5 * rng.normal(size=(25, 3)) + 1.0
    design = designs.MultiOutput(features, 3, by="feature")
    ours = solve(design, jnp.asarray(targets), Groups.equal(6, 3), 0.2).check()
    theirs = MultiTaskLasso(alpha=0.2, tol=1e-14, max_iter=100_000).fit(features, targets)
    np.testing.assert_allclose(ours.value.coef.reshape(6, 3).T, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.value.intercept, theirs.intercept_, atol=1e-6)


@pytest.mark.slow
def test_without_a_penalty_the_libraries_of_the_losses_agree():
    at = zoo.instance(5, "poisson")
    narrow, small = at.X[:, :4], Groups.equal(2, 2)
    ours = solve(jnp.asarray(narrow), jnp.asarray(at.y), small, 0.0, loss="poisson").check()
    theirs = PoissonRegressor(alpha=0.0, tol=1e-12, max_iter=10_000, solver="newton-cholesky").fit(
        narrow, at.y
    )
    np.testing.assert_allclose(ours.value.coef, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.value.intercept, theirs.intercept_, atol=1e-5)
    at = zoo.instance(5, "huber")
    narrow = at.X[:, :4]
    reference = HuberRegressor(alpha=0.0, epsilon=1.35, tol=1e-12, max_iter=10_000).fit(
        narrow, at.y
    )
    huber = losses.Huber(
        1.35 * reference.scale_
    )  # theirs fits the scale too; at that scale the coefficients agree
    ours = solve(jnp.asarray(narrow), jnp.asarray(at.y), small, 0.0, loss=huber).check()
    np.testing.assert_allclose(ours.value.coef, reference.coef_, atol=1e-3)


def test_optimality_conditions():
    lam = 0.1 * LAM_MAX
    solution = solve(X, Y, GROUPS, lam, weights="sqrt_size").check()
    residual = (
        AT.y - AT.X @ np.asarray(solution.value.coef) - float(solution.value.intercept)
    ) / len(AT.y)
    pull, norms = residual @ AT.X, zoo.norms(np.asarray(solution.value.coef))
    threshold = lam * np.sqrt(zoo.SIZES)
    active = norms > 0
    assert 0 < active.sum() == int(solution.stats["num_active"]) < len(zoo.SIZES)
    assert np.all(zoo.norms(pull)[~active] <= threshold[~active] * (1 + 1e-9))
    direction = (
        np.asarray(solution.value.coef) * (threshold / np.where(active, norms, 1))[zoo.LABELS]
    )
    np.testing.assert_allclose(
        np.where(active[zoo.LABELS], pull - direction, 0), np.zeros(zoo.NUM_COLUMNS), atol=1e-5
    )
    assert abs(residual.sum()) < 1e-10 and solution.stats["kkt"] < 1e-5


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_lam_max_is_the_largest_pull_at_the_null_model(loss):
    at = zoo.instance(6, loss)
    keywords = dict(
        weights=jnp.asarray(at.weights),
        sample_weight=jnp.asarray(at.sample_weight),
        offset=jnp.asarray(at.offset),
    )
    largest = group_lasso.lam_max(
        jnp.asarray(at.X), jnp.asarray(at.y), GROUPS, loss=loss, intercept=True, **keywords
    )
    np.testing.assert_allclose(largest, zoo.lam_max(loss, at, has_intercept=True), rtol=1e-10)


def test_the_first_group_enters_at_lam_max():
    above, below = (solve(X, Y, GROUPS, factor * LAM_MAX).check() for factor in (1.0001, 0.99))
    assert above.stats["num_active"] == 0 and above.stats["num_steps"] == 0
    np.testing.assert_allclose(above.value.intercept, AT.y.mean(), rtol=1e-12)
    assert below.stats["num_active"] == 1


def test_permuting_scaling_and_doubling():
    lam = 0.1 * LAM_MAX
    base = solve(X, Y, GROUPS, lam).check().value
    order = np.random.default_rng(0).permutation(zoo.NUM_COLUMNS)
    shuffled = solve(X[:, order], Y, Groups.from_labels(zoo.LABELS[order]), lam).check().value
    np.testing.assert_allclose(shuffled.coef, base.coef[order], atol=1e-6)
    scaled = solve(4.0 * X, 3.0 * Y, GROUPS, 12.0 * lam).check().value
    np.testing.assert_allclose(scaled.coef, 0.75 * base.coef, atol=1e-6)
    np.testing.assert_allclose(scaled.intercept, 3.0 * base.intercept, atol=1e-6)
    rows = np.sort(
        np.random.default_rng(1).integers(0, zoo.NUM_SAMPLES, zoo.NUM_SAMPLES)
    )  # some records twice, some never
    repeated = solve(X[rows], Y[rows], GROUPS, lam).check().value
    weight = jnp.asarray(np.bincount(rows, minlength=zoo.NUM_SAMPLES).astype(float))
    weighted = solve(X, Y, GROUPS, lam, sample_weight=weight).check().value
    np.testing.assert_allclose(weighted.coef, repeated.coef, atol=1e-6)
    np.testing.assert_allclose(
        solve(X, Y - 2.0, GROUPS, lam, offset=jnp.full(zoo.NUM_SAMPLES, -2.0)).value.coef,
        base.coef,
        atol=1e-6,
    )


def test_empty_and_segmented_groups_change_nothing():
    segmented = Groups.from_sizes([*zoo.SIZES, *[0] * 200])
    assert GROUPS.members is not None and segmented.members is None
    base, sparse = (solve(X, Y, groups, 0.1 * LAM_MAX).check() for groups in (GROUPS, segmented))
    np.testing.assert_allclose(sparse.value.coef, base.value.coef, atol=1e-7)
    assert sparse.stats["num_active"] == base.stats["num_active"]


def test_designs_that_are_never_built_agree_with_the_matrix():
    rng = np.random.default_rng(1)
    T, M, q = 40, 5, 3
    actions = np.where(
        rng.uniform(size=(T, 2)) < 0.2, -1, np.argsort(rng.uniform(size=(T, M)), axis=1)[:, :2]
    ).astype(np.int32)
    features = rng.normal(size=(T, q))
    matrix = np.zeros((T, M, q))
    for t in range(T):
        for j in actions[t][actions[t] >= 0]:
            matrix[t, j] += features[t]
    y = matrix.reshape(T, -1) @ rng.normal(size=M * q) + rng.normal(size=T)
    groups = Groups.equal(M, q)
    gathered = (
        solve(designs.BudgetedChoice(actions, features, M), jnp.asarray(y), groups, 0.1)
        .check()
        .value
    )
    built = solve(jnp.asarray(matrix.reshape(T, -1)), jnp.asarray(y), groups, 0.1).check().value
    np.testing.assert_allclose(gathered.coef, built.coef, atol=1e-6)
    np.testing.assert_allclose(gathered.intercept, built.intercept, atol=1e-6)


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.float64])
def test_lam_zero_is_least_squares(dtype):
    narrow = np.asarray(
        AT.X * (np.arange(zoo.NUM_COLUMNS) < 8), dtype
    )  # the other columns are zero
    solution = group_lasso.solve(
        jnp.asarray(narrow), jnp.asarray(AT.y, dtype), GROUPS, 0.0, intercept=True
    ).check()
    columns = np.column_stack([narrow, np.ones(zoo.NUM_SAMPLES)]).astype(np.float64)
    exact = np.linalg.lstsq(columns, AT.y, rcond=None)[0]
    best = 0.5 * np.mean((AT.y - columns @ exact) ** 2)
    tol = 1e-4 if dtype == jnp.float32 else 1e-6
    assert float(solution.stats["objective"]) - best <= tol * float(solution.stats["scale"])
    assert solution.stats["gap"] <= tol * solution.stats["scale"]


def test_every_way_to_end():
    lam = 0.01 * LAM_MAX
    assert (
        group_lasso.solve(X, Y, GROUPS, lam, intercept=True, max_steps=10).status
        == Status.MAX_STEPS
    )
    stalled = group_lasso.solve(X, Y, GROUPS, lam, intercept=True, tol=1e-18)
    assert (
        stalled.status == Status.STALLED and stalled.stats["gap"] < 1e-10 * stalled.stats["scale"]
    )
    assert (
        group_lasso.solve(X.at[3, 2].set(jnp.nan), Y, GROUPS, lam, intercept=True).status
        == Status.NONFINITE
    )
    assert (
        group_lasso.solve(X, Y.at[0].set(jnp.inf), GROUPS, lam, intercept=True).status
        == Status.NONFINITE
    )
    assert (
        jax.jit(lambda lam: group_lasso.solve(X, Y, GROUPS, lam, intercept=True).status)(-1.0)
        == Status.NONFINITE
    )


def test_a_run_continues_where_it_was_and_a_solution_restarts_at_once():
    lam = 0.01 * LAM_MAX
    run = functools.partial(group_lasso.solve, X, Y, GROUPS, lam, intercept=False, tol=1e-9)
    whole = run()
    assert whole.status == Status.CONVERGED and whole.stats["num_steps"] > 60
    part = run(max_steps=50)
    rest = run(state=part.state)
    assert part.stats["num_steps"] + rest.stats["num_steps"] == whole.stats["num_steps"]
    # the same steps; the predictions at the seam are recomputed, in another program, so the last
    # bits may differ
    np.testing.assert_allclose(rest.value.coef, whole.value.coef, rtol=1e-11)
    again = run(state=whole.state)
    assert again.status == Status.CONVERGED and again.stats["num_steps"] == 0


def test_a_batch_of_lams_is_a_loop_and_shares_the_matrix():
    lams = LAM_MAX * jnp.asarray([0.5, 0.1, 0.02])
    batch_of = jax.jit(jax.vmap(lambda lam: solve(X, Y, GROUPS, lam)))
    batch = batch_of(lams)
    for lane, lam in enumerate(lams):
        alone = solve(X, Y, GROUPS, lam)
        np.testing.assert_allclose(batch.value.coef[lane], alone.value.coef, atol=1e-6)
    # one product with X for all lanes: no operand of a dot, and nothing else, has lanes x T x p
    # entries
    text = batch_of.lower(lams).compile().as_text()
    assert (
        f"[3,{zoo.NUM_SAMPLES},{zoo.NUM_COLUMNS}]" not in text
        and f"[{zoo.NUM_SAMPLES},{zoo.NUM_COLUMNS},3]" not in text
    )


def test_a_path_is_certified_at_every_lam():
    solution = group_lasso.path(X, Y, GROUPS, num_lams=12, min_ratio=0.01, intercept=True).check()
    lams = np.asarray(solution.stats["lam"])
    np.testing.assert_allclose(lams, LAM_MAX * 0.01 ** np.linspace(0, 1, 12), rtol=1e-12)
    assert (
        solution.value.coef.shape == (12, zoo.NUM_COLUMNS) and solution.stats["num_active"][0] == 0
    )
    plain = AT._replace(
        weights=np.ones(len(zoo.SIZES)),
        sample_weight=np.ones(zoo.NUM_SAMPLES),
        offset=np.zeros(zoo.NUM_SAMPLES),
    )
    found = solution.value
    for lam, coef, intercept in zip(lams, found.coef, found.intercept, strict=True):
        gap, scale = zoo.gap(
            "squared", plain, lam, np.asarray(coef), float(intercept), has_intercept=True
        )
        assert gap <= 1e-6 * scale
    assert np.all(np.diff(solution.stats["objective"]) <= 1e-9)


@pytest.mark.slow
def test_multinomial_and_budgeted_gibbs_with_budget_one_agree():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(40, 3))
    labels = rng.integers(0, 4, 40)
    labels[features[:, 0] > 0.5] = 2
    design, groups = designs.MultiOutput(features, 4), Groups.equal(4, 3)
    classes = jnp.asarray(labels, jnp.int32)
    multinomial = group_lasso.solve(
        design, classes, groups, 0.03, loss="multinomial", tol=1e-10
    ).check()
    gibbs = losses.BudgetedGibbs(1, exactly=True)
    policy = group_lasso.solve(
        design, classes[:, None], groups, 0.03, loss=gibbs, tol=1e-10
    ).check()
    np.testing.assert_allclose(policy.value.coef, multinomial.value.coef, atol=1e-5)
    assert 0 < np.count_nonzero(group_norms(policy.value.coef, groups)) < 4


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(y=Y[1:]), r"y must have shape \[30\]"),
        (dict(X=X[0]), "X must have shape"),
        (dict(groups=Groups.equal(3, 3)), "groups must have p = 20, got 9"),
        (dict(groups=3), "groups must be a Groups"),
        (dict(lam=-0.1), "lam must be ≥ 0"),
        (dict(lam=jnp.ones(2)), "lam must be one number.*vmap"),
        (dict(loss="hinge"), "loss must be one of 'squared', 'logistic'"),
        (dict(loss="logistic"), r"y must be \+1 or -1"),
        (dict(loss="poisson", y=-jnp.ones(30)), "y must be >= 0"),
        (dict(loss="multinomial"), r"needs predictions \[T, M\]"),
        (dict(weights=jnp.ones(3)), r"weights must have shape \[7\]"),
        (dict(weights=-jnp.ones(7)), "weights must be ≥ 0"),
        (dict(weights="size"), "sqrt_size"),
        (dict(offset=jnp.zeros(3)), "offset must have shape"),
        (dict(sample_weight=jnp.ones(30, jnp.float32)), "sample_weight has dtype float32"),
        (dict(tol=-1.0), "tol must be ≥ 0"),
        (dict(max_steps=1.5), "max_steps must be a whole number"),
    ],
)
def test_mistakes_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        group_lasso.solve(**(dict(X=X, y=Y, groups=GROUPS, lam=0.1) | changed))
