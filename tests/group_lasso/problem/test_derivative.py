"""Derivatives of solutions against central differences, from solutions found to a loose tolerance;
and what they are for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxsac import Groups, group_lasso
from jaxsac.prox import Level, Penalty

GROUPS = Groups.from_sizes(zoo.SIZES)
FAMILIES = Groups.from_labels(np.asarray([0, 0, 1, 1, 1, 2, 2])[zoo.LABELS])
SLOPE = jnp.asarray(np.random.default_rng(5).normal(size=zoo.NUM_COLUMNS))


@pytest.mark.parametrize("loss, everything", [
    ("squared", False),
    pytest.param("squared", True, marks=pytest.mark.slow),
    pytest.param("sqrt", False, marks=pytest.mark.slow),
    pytest.param("poisson", True, marks=pytest.mark.slow),
])  # fmt: skip
def test_derivatives_by_every_array(loss, everything):
    at = zoo.instance(3, "squared" if loss == "sqrt" else loss)
    arrays = {
        "X": at.X,
        "y": at.y,
        "weights": at.weights,
        "sample_weight": at.sample_weight + 0.1,
        "offset": at.offset,
    }
    if everything:
        arrays |= {
            "l1": np.full(zoo.NUM_COLUMNS, 0.2),
            "ridge": np.asarray(0.05),
            "families": np.asarray([0.2, 0.3, 0.1]),
        }
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}

    def split(arrays):
        rest = dict(arrays)
        if not everything:
            return rest
        return rest | {
            "penalty": Penalty(
                [Level(FAMILIES, rest.pop("families"))], rest.pop("l1"), rest.pop("ridge")
            )
        }

    def of(arrays, lam, tol):
        keywords = split(arrays)
        X, y = keywords.pop("X"), keywords.pop("y")
        keywords.pop("families", None), keywords.pop("l1", None), keywords.pop("ridge", None)
        value = group_lasso.solve(
            X, y, GROUPS, lam, loss=loss, intercept=everything, tol=tol, **keywords
        ).value
        return value.coef @ SLOPE + value.intercept

    keywords = {
        name: array
        for name, array in split(arrays).items()
        if name not in ("X", "y", "families", "l1", "ridge")
    }
    lam = 0.15 * group_lasso.lam_max(
        arrays["X"], arrays["y"], GROUPS, loss=loss, intercept=everything, **keywords
    )
    value = jax.jit(of)
    gradients, by_lam = jax.jit(jax.grad(of, argnums=(0, 1)))(
        arrays, lam, 1e-9
    )  # where the support is found, the values are not yet
    at_point = dict(arrays, lam=lam)
    for name, gradient in {**gradients, "lam": by_lam}.items():
        if name == "y" and loss != "squared" and loss != "sqrt":
            continue  # labels and counts are not moved
        direction = jnp.asarray(np.random.default_rng(1).normal(size=np.shape(at_point[name])))
        step = 1e-4 * float(jnp.max(jnp.abs(at_point[name])) / jnp.max(jnp.abs(direction)))

        def moved(k, name=name, direction=direction, step=step):
            there = {**at_point, name: at_point[name] + k * step * direction}
            return float(value({key: there[key] for key in arrays}, there["lam"], 1e-15))

        central = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * step)
        np.testing.assert_allclose(
            jnp.sum(gradient * direction), central, rtol=1e-6, atol=1e-9, err_msg=name
        )
    assert (
        jax.jit(jax.grad(of, argnums=1))(arrays, 7.0 * lam, 1e-6) == 0
    )  # all coefficients are zero around this lam


@pytest.mark.slow
def test_gradients_choose_the_weights_of_groups():
    """Per-group weights by gradient descent on a held-out loss: the groups without signal are
    weighed more, the loss falls.
    """
    rng = np.random.default_rng(0)
    groups = Groups.equal(8, 2)
    X = jnp.asarray(rng.normal(size=(60, 16)))
    y = X[:, :4] @ jnp.asarray([1.0, -1.0, 0.7, 0.5]) + jnp.asarray(rng.normal(size=60))
    train, held = (jnp.asarray(part) for part in (np.arange(60) < 40, np.arange(60) >= 40))

    def held_out(log_weights):
        fit = group_lasso.solve(
            X,
            y,
            groups,
            0.15,
            weights=jnp.exp(log_weights),
            sample_weight=jnp.where(train, 1.5, 0.0),
            tol=1e-7,
        )
        return jnp.sum(jnp.where(held, y - X @ fit.value.coef, 0.0) ** 2) / 40

    step = jax.jit(jax.value_and_grad(held_out))
    log_weights, values = jnp.zeros(8), []
    for _ in range(15):
        value, slope = step(log_weights)
        values.append(float(value))
        log_weights = log_weights - 2.0 * slope
    assert values[-1] < 0.97 * values[0] and np.all(np.diff(values) < 1e-3)
    assert float(jnp.max(log_weights[:2])) < 0 < float(jnp.max(log_weights[2:]))


@pytest.mark.slow
@pytest.mark.parametrize("loss, penalised", [("squared", True), ("logistic", False)])
def test_large_problems_are_differentiated_on_their_support(loss, penalised):
    """Outside jit the host solves for the values; the derivative is that of differences, whatever
    is differentiated.
    """
    rng = np.random.default_rng(0)
    groups = Groups.equal(1100, 4)
    X = jnp.asarray(rng.normal(size=(64, 4400)) + rng.uniform(size=4400))
    score = X[:, :12] @ jnp.asarray(rng.normal(size=12)) + jnp.asarray(rng.normal(size=64))
    y, weights = (
        (jnp.sign(score - jnp.mean(score)) if loss == "logistic" else score),
        jnp.asarray(rng.uniform(0.5, 1.5, 1100)),
    )
    weights = weights if penalised else weights.at[3].set(0.0)
    slope = jnp.asarray(rng.normal(size=4400))
    lam = 0.4 * group_lasso.lam_max(X, y, groups, weights=weights, loss=loss, intercept=True)
    at_point = {"lam": lam, "weights": weights, "X": X, "c": jnp.asarray(rng.uniform(0.5, 1.5, 64))}

    def of(arguments, tol=1e-7):
        keywords = dict(
            weights=arguments["weights"],
            sample_weight=arguments["c"],
            loss=loss,
            intercept=True,
            tol=tol,
        )
        solution = group_lasso.solve(arguments["X"], y, groups, arguments["lam"], **keywords)
        assert (
            tol < 1e-7 or solution.stats["num_steps"] < 15
        )  # passes of the host, not steps of the compiled loop
        return solution.value.coef @ slope + solution.value.intercept

    gradients = jax.grad(of)(at_point)
    for name, gradient in gradients.items():
        direction = jnp.where(
            at_point[name] == 0, 0.0, jnp.asarray(rng.normal(size=np.shape(at_point[name])))
        )
        step = 1e-4 * float(jnp.max(jnp.abs(at_point[name])) / jnp.max(jnp.abs(direction)))

        def moved(k, name=name, direction=direction, step=step):
            return float(of({**at_point, name: at_point[name] + k * step * direction}, 1e-11))

        central = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * step)
        np.testing.assert_allclose(
            jnp.sum(gradient * direction),
            central,
            rtol=1e-4 if loss == "logistic" else 1e-5,
            atol=1e-8,
            err_msg=name,
        )
