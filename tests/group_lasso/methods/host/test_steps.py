"""Steps between two checks of the host-driven method: the loss in NumPy, which steps are taken, and
how far a round goes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wide import EQUAL, G, T, compiled_solve, problem

from jaxsac import group_lasso, losses
from jaxsac.group_lasso.methods.host import check as host_check, kernels, slots, steps as host_steps
from jaxsac.group_lasso.methods.loop import rounds as compiled_rounds
from jaxsac.group_lasso.model.quadratic import Point, best_step


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32], ids=["float64", "float32"])
def test_the_squared_loss_without_a_program(dtype):
    """ρ, h^½ and the objective along a step in NumPy are those of the compiled pieces, with weights
    of 0, an offset and an intercept.
    """
    X, y, more = problem(0, "squared", EQUAL, dtype)
    at = group_lasso.Problem(
        X, y, EQUAL, "squared", None, more["sample_weight"], more["offset"], True
    ).at(1.0)
    rng = np.random.default_rng(1)
    predictions, moved = rng.normal(size=(2, T)).astype(dtype)
    slope, root = kernels.residual(at, predictions), kernels.roots(at, predictions, 1e-3)
    values = kernels.values_along(at, root, slope, predictions, moved)
    assert [type(found) for found in (slope, root, values)] == [np.ndarray] * 3
    assert slope.dtype == root.dtype == values.dtype == dtype
    rtol = 10 * jnp.finfo(dtype).eps
    np.testing.assert_allclose(slope, kernels._residual(at, predictions), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(
        root, kernels._roots(at, predictions, np.asarray(1e-3, dtype)), rtol=rtol
    )
    np.testing.assert_allclose(
        values, kernels._values_along(at, predictions, moved), rtol=10 * rtol
    )


@pytest.mark.slow
def test_a_loss_made_of_another_is_not_taken_for_it():
    class Quartic(losses.Squared):
        def per_sample(self, z, y):
            return 0.25 * (y - z) ** 4 + 0.5 * (y - z) ** 2

        def descent(self, z, y):
            return (y - z) ** 3 + (y - z)

        curvature = None
        dual_per_sample, dual_scale = losses.Loss.dual_per_sample, losses.Loss.dual_scale

    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    loss = Quartic()
    assert losses.Squared().quadratic and not loss.quadratic
    lam = 0.3 * group_lasso.lam_max(X, y, EQUAL, loss=loss)
    host = group_lasso.solve(X, y, EQUAL, lam, loss=loss).check()
    compiled = compiled_solve(X, y, EQUAL, lam, loss=loss, tol=1e-6).check()
    np.testing.assert_allclose(
        host.stats["objective"], compiled.stats["objective"], atol=2e-6 * float(host.stats["scale"])
    )


def test_where_all_that_violate_are_taken_one_round_does():
    """A set that needs no other groups is solved to the tolerance at once: one pass over X after
    that of the null model.
    """
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    sol = group_lasso.solve(X, y, EQUAL, 0.9 * group_lasso.lam_max(X, y, EQUAL), tol=1e-8).check()
    assert sol.stats["num_active"] >= 1 and sol.stats["num_steps"] == 1


def test_sets_that_are_likely_to_do():
    """All that are beyond their thresholds, or four times as many as are not zero; an unpenalised
    group, always beyond its own of 0, is inside.
    """
    X, y, more = problem(0, "squared", EQUAL, jnp.float64)
    setup, _ = host_check.set_up(
        group_lasso.Problem(X, y, EQUAL, "squared", more["weights"], None, None, False).at(1.0),
        1e-6,
    )
    chosen = slots.working_set(setup, np.asarray([3, 17, 5, 6, 7, 8], np.int32))
    beyond, coef = np.zeros(G, bool), np.zeros((4, 4))
    beyond[[3, 17, 6]] = True
    coef[:2] = 1
    assert host_steps._complete(chosen, beyond, coef)
    beyond[20] = True
    assert not host_steps._complete(chosen, beyond, coef)
    coef[1] = 0
    assert host_steps._complete(chosen, beyond, coef)


def test_a_step_that_is_not_finite_is_not_taken():
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    at = group_lasso.Problem(X, y, EQUAL, "squared", None, None, None, True).at(1.0)
    point = Point(np.ones((5, 4)), np.asarray(0.3), np.arange(float(T)))
    direction, moved = np.ones((5, 4)), np.ones(T)
    direction[2, 1] = np.nan
    step = np.ones(T), np.ones(5), point
    taken = compiled_rounds.advance(at, *jax.tree.map(jnp.asarray, (*step, direction, moved)))
    jax.tree.map(np.testing.assert_array_equal, taken, point)
    setup, _ = host_check.set_up(at, 1e-6)
    slope = np.asarray(at.residual(jnp.asarray(point.predictions)))
    jax.tree.map(
        np.testing.assert_array_equal,
        host_steps._advance(setup, *step, slope, direction, moved),
        point,
    )


def test_a_step_within_the_noise_of_its_objective_is_taken_whole():
    values = np.asarray([1 + 1e-8, 1, 1, 1, 1, 1 + 1e-9])
    assert best_step(values, 1e-7) == (1.0, False) and best_step(values) == (0.5, False)
    assert best_step(np.asarray([2.0, 1 + 1e-6, 1 + 1e-6, 2.0, 2.0, 1.0]), 1e-7) == (0.0, True)
    single = np.asarray([1 + 2e-7, 1, 1, 1, 1, 1], np.float32)  # a rounding apart
    assert best_step(single) == best_step(single, 1e-9) == (1.0, False)


@pytest.mark.parametrize("factor", [0.5, 3.0, 100.0])
def test_float32_steps_may_cost_a_share_of_the_tolerance_and_no_more(factor):
    """From zero, above lam_max, where every step costs: one within a tenth of the tolerance is
    taken whole, a longer one cut to that.
    """
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    lam = 2 * float(group_lasso.lam_max(X, y, EQUAL))
    setup, place = host_check.set_up(
        group_lasso.Problem(X, y, EQUAL, "squared", None, None, None, False).at(lam), 1e-6
    )
    chosen = slots.exchanged(setup, place.set, np.asarray([5], np.int32))
    chosen = slots.modelled(chosen, kernels.roots(setup.problem, place.point.predictions, 1e-3))
    slots.make(setup, chosen, chosen.used)
    point = place.point._replace(coef=np.zeros((1, 4)))
    columns, start = np.asarray(X)[:, 20:24], np.asarray(y)

    def cost(coef):
        return (
            0.5 * np.sum((start - columns @ coef[0]) ** 2) - 0.5 * start @ start
        ) / T + lam * np.linalg.norm(coef)

    spare = 1e-7 * float(setup.scale)
    aim = np.asarray([[1e-9, 0.0, 0.0, 0.0]])
    aim *= factor * spare / cost(aim)
    walk = host_steps._begun(setup, chosen, np.asarray([lam]), point, aim)
    ended, _ = host_steps._arrived(setup, chosen, np.asarray([lam]), point, walk)
    assert cost(ended.coef) <= spare * (1 + 1e-5)
    length = ended.coef[0, 0] / aim[0, 0]
    assert {0.5: 1.0, 3.0: 0.25, 100.0: 0.0}[factor] == pytest.approx(length, abs=1e-5)
