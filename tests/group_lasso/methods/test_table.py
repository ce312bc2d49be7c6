"""Which method is taken, and that each says so."""

import jax
import jax.numpy as jnp
import numpy as np
from wide import EQUAL, problem

from jaxsac import Groups, designs, group_lasso
from jaxsac.group_lasso.methods import METHODS, TABLE, choose
from jaxsac.group_lasso.methods.host.trace import tracing
from jaxsac.prox import Penalty

X, Y, _ = problem(0, "squared", EQUAL, jnp.float64)


def chosen(at, *others):
    return choose(at, *others).name


def test_the_table():
    assert tuple(method.name for method in TABLE) == METHODS == group_lasso.METHODS
    for words, expected in (
        ({}, "working_sets"),
        ({"loss": "sqrt"}, "columns"),
        ({"penalty": Penalty(ridge=0.1)}, "columns"),
        ({"X": designs.Centred(designs.as_design(X), jnp.full(64, 1 / 64))}, "loop"),
    ):
        at = group_lasso.Problem(**({"X": X, "y": Y, "groups": EQUAL} | words)).at(0.1)
        assert chosen(at) == expected
        names = []
        jax.eval_shape(lambda at, names=names: names.append(chosen(at)), at)
        assert names == ["loop"]  # of traced arrays nothing is known
    assert chosen(group_lasso.Problem(X, Y, EQUAL).at(0.0)) == "loop"
    assert chosen(group_lasso.Problem(X[:, :40], Y, Groups.equal(10, 4)).at(0.1)) == "loop"


def test_what_was_chosen_is_said():
    lam = 0.5 * group_lasso.lam_max(X, Y, EQUAL)
    solution = group_lasso.solve(X, Y, EQUAL, lam)
    assert METHODS[int(solution.stats["method"])] == "working_sets"
    # What it cannot reach the loop ends.
    stalled = group_lasso.solve(X, Y, EQUAL, lam, tol=1e-18)
    assert METHODS[int(stalled.stats["method"])] == "loop"


def test_the_parts_are_heard():
    lam, heard = 0.5 * group_lasso.lam_max(X, Y, EQUAL), []
    with tracing(lambda part, seconds: heard.append((part, seconds))):
        solution = group_lasso.solve(X, Y, EQUAL, lam)
    parts, seconds = zip(*heard, strict=True)
    steps = int(solution.stats["num_steps"])
    assert parts.count("gradients") == steps and parts.count("certify") == 1 + steps
    assert parts.count("first_pass") == 1 and min(seconds) > 0
    before = len(heard)
    again = group_lasso.solve(X, Y, EQUAL, lam)
    assert len(heard) == before
    np.testing.assert_array_equal(again.value.coef, solution.value.coef)
