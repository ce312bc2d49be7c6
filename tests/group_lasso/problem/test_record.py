"""The problem as a record: said once, checked once, data for jit, vmap and grad; and the refusal of
an answer to another.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import Groups, group_lasso, losses

RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(40, 12))), jnp.asarray(RNG.normal(size=40) + 3)
C, GROUPS = jnp.asarray(RNG.uniform(0.2, 3, 40)), Groups.from_sizes([2, 3, 1, 6])
WORDS = dict(weights="sqrt_size", sample_weight=C, intercept=True)
PROBLEM = group_lasso.Problem(X, Y, GROUPS, **WORDS)


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_words_make_the_record():
    equal(group_lasso.lam_max(PROBLEM), group_lasso.lam_max(X, Y, GROUPS, **WORDS))
    equal(group_lasso.solve(PROBLEM, 0.08), group_lasso.solve(X, Y, GROUPS, 0.08, **WORDS))
    equal(group_lasso.solve(PROBLEM, lam=0.08), group_lasso.solve(X, Y, GROUPS, 0.08, **WORDS))


@pytest.mark.slow
def test_a_record_is_data():
    expected = group_lasso.solve(PROBLEM, 0.08)
    found = jax.jit(lambda problem, lam: group_lasso.solve(problem, lam))(PROBLEM, 0.08)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    np.testing.assert_allclose(found.value.coef, expected.value.coef, rtol=1e-9)
    several = jax.vmap(lambda y: group_lasso.Problem(X, y, GROUPS, **WORDS))(jnp.stack([Y, 2 * Y]))
    batch = jax.vmap(lambda problem: group_lasso.solve(problem, 0.08, tol=1e-10))(several)
    alone = group_lasso.solve(dataclasses.replace(PROBLEM, y=2 * Y), 0.08, tol=1e-10)
    np.testing.assert_allclose(batch.value.coef[1], alone.value.coef, atol=1e-4)

    def total(problem):
        return group_lasso.solve(problem, 0.08, tol=1e-13).value.coef.sum()

    slope = jax.grad(total, allow_int=True)(PROBLEM).y
    step = 1e-3 * X[:, 3]
    sides = [total(dataclasses.replace(PROBLEM, y=Y + side * step)) for side in (1, -1)]
    np.testing.assert_allclose(slope @ step, (sides[0] - sides[1]) / 2, rtol=1e-4)


def test_a_model_predicts():
    solution = group_lasso.solve(PROBLEM, 0.08)
    plain = X @ solution.value.coef + solution.value.intercept
    np.testing.assert_allclose(jax.jit(solution.value.predict)(X), plain, rtol=1e-12)
    path = group_lasso.path(PROBLEM, num_lams=3)
    rows = path.value.predict(X[:5])
    np.testing.assert_allclose(rows, path.value.coef @ X[:5].T + path.value.intercept[:, None])
    with pytest.raises(ValueError, match="X must have 12 columns, got 11"):
        solution.value.predict(X[:, 1:])


@pytest.mark.slow
def test_a_solution_holds_no_array_of_the_problem():
    sizes = {leaf.size for leaf in jax.tree.leaves(group_lasso.solve(PROBLEM, 0.08))}
    assert sizes == {1, 12}
    batch = jax.vmap(lambda lam: group_lasso.solve(PROBLEM, lam))(jnp.asarray([0.08, 0.1]))
    np.testing.assert_array_equal(batch.stats["lam"], [0.08, 0.1])


def test_the_answer_to_another_problem_is_refused():
    solution = group_lasso.solve(PROBLEM, 0.08)
    signs = jnp.sign(Y - 3)
    for other, message in (
        (dict(loss="huber"), "fitted with loss 'squared', the problem has 'huber'"),
        (dict(loss=losses.Huber()), "fitted with loss 'squared', the problem has 'huber'"),
        (dict(y=signs, loss="logistic"), "the problem has 'logistic'"),
        (dict(intercept=False), "fitted with intercept True, the problem has False"),
        (dict(X=X[:, 2:], groups=Groups.equal(5, 2), weights=None), r"must have shape \[10\]"),
    ):
        problem = dataclasses.replace(PROBLEM, **other)
        for question in (
            group_lasso.degrees_of_freedom,
            group_lasso.support_margin,
            group_lasso.refit,
            lambda problem, solution: group_lasso.simulated_lam(
                jax.random.key(0), problem, solution
            ),
        ):
            with pytest.raises(ValueError, match=message):
                question(problem, solution)
    with pytest.raises(ValueError, match="solution must be a Solution"):
        group_lasso.degrees_of_freedom(PROBLEM, solution.value)
    with pytest.raises(ValueError, match=r"coef must have shape \[12\]"):
        group_lasso.degrees_of_freedom(PROBLEM, group_lasso.path(PROBLEM, num_lams=2))


def test_a_problem_is_not_said_twice():
    for call, message in (
        (lambda: group_lasso.solve(PROBLEM, 0.1, loss="squared"), "already says loss"),
        (lambda: group_lasso.path(PROBLEM, intercept=False), "already says intercept"),
        (lambda: group_lasso.lam_max(PROBLEM, Y, GROUPS), "already says y, groups"),
        (lambda: group_lasso.solve(PROBLEM), "lam is missing"),
        (lambda: group_lasso.solve(X, Y), "groups must be a Groups"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_solution_is_a_start():
    found = group_lasso.solve(PROBLEM, 0.08)
    for state in (found, found.state):
        assert group_lasso.solve(PROBLEM, 0.08, state=state).stats["num_steps"] == 0


def test_how_many_may_be_free():
    for weights, expected in ((None, 0), (jnp.ones(4), 0), (jnp.asarray([0.0, 1, 1, 1]), 256)):
        assert dataclasses.replace(PROBLEM, weights=weights).most_free == expected
    many, zeros = Groups.equal(30, 10), jnp.zeros(30)
    wide = group_lasso.Problem(jnp.ones((3, 300)), jnp.ones(3), many, weights=zeros)
    traced = jax.eval_shape(lambda w: group_lasso.Problem(X, Y, GROUPS, weights=w), jnp.ones(4))
    assert wide.most_free == 300 and traced.most_free > 256
