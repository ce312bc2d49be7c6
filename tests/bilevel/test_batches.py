"""The single loop on mini-batches: x waits for none, copies are paired, variance reduction."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsac import bilevel
from jaxsac.problems import bilevel as problems


def test_x_waits_for_no_batch():
    """A batch may curve down where the problem does not: x would move on the other ones alone."""
    problem = bilevel.Problem(
        lambda x, y, b: 0.5 * (x - b) ** 2 + 0.1 * y, lambda x, y, b: 0.5 * b * y**2 - x * y
    )
    method = bilevel.Method(inner=optax.sgd(0.05), outer=optax.sgd(0.02))
    batches = jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, (4000,)), 3.0, -1.0)

    def one(state, batch):
        new, report = bilevel.step(problem, state, method, batch=batch)
        return new, (new.x, report["waits"])

    start = bilevel.init(problem, jnp.asarray(1.0), jnp.asarray(0.0), method)
    _, (x, waits) = jax.jit(lambda state: jax.lax.scan(one, state, batches))(start)
    # E b = 1 and y* = x: x* = 1 - 0.1; batches of standard deviation 2 for x over 3,000 steps
    assert not waits.any() and abs(x[1000:].mean() - 0.9) < 4 * 2 / 3000**0.5


def test_paired_mini_batches_have_a_spread_that_does_not_depend_on_sigma():
    """The pairing bed: batches of 50, 300 steps. Independent batches would give the two copies
    noise of their own, over sigma.
    """
    data = problems.logistic(dtype=jnp.float64)
    problem = bilevel.Problem(problems.feature_weights_upper, problems.ridge_logistic_lower)
    method = bilevel.Method(inner=optax.sgd(0.1), outer=optax.sgd(0.0), inner_steps=10)

    def rows(key):
        index = jax.random.randint(key, (50,), 0, 1000)
        return data._replace(train=data.train[index], train_targets=data.train_targets[index])

    def paired(key, sigma):
        def one(state, key):
            state, _ = bilevel.step(
                problem,
                state,
                method,
                sigma=sigma,
                batch=data,
                inner_batches=jax.vmap(rows)(jax.random.split(key, 10)),
            )
            return state, None

        state = bilevel.init(problem, jnp.asarray(0.0), jnp.zeros(20), method)
        state = jax.lax.scan(one, state, jax.random.split(key, 30))[0]
        y = state.z + sigma * state.d
        return (
            0.5 * (jnp.sum(y**2) - jnp.sum(state.z**2)) / sigma
        )  # the difference of the lower gradients in x

    def independent(key, sigma):
        def copy(key, perturbed):
            def one(y, key):
                batch = rows(key)
                g, f = (
                    jax.grad(part, 1)(jnp.asarray(0.0), y, batch)
                    for part in (problem.lower, problem.upper)
                )
                return y - 0.1 * (g + perturbed * sigma * f), None

            return jax.lax.scan(one, jnp.zeros(20), jax.random.split(key, 300))[0]

        first, second = jax.random.split(key)
        return 0.5 * (jnp.sum(copy(first, 1.0) ** 2) - jnp.sum(copy(second, 0.0) ** 2)) / sigma

    keys = jax.random.split(jax.random.key(1), 50)
    spread = jax.jit(lambda sigma: jnp.std(jax.vmap(paired, (0, None))(keys, sigma)))
    large, small = float(spread(jnp.asarray(0.01))), float(spread(jnp.asarray(0.001)))
    unpaired = float(
        jax.jit(lambda sigma: jnp.std(jax.vmap(independent, (0, None))(keys, sigma)))(
            jnp.asarray(0.01)
        )
    )
    assert 0.8 < small / large < 1.25
    assert unpaired > 100 * large


@pytest.mark.slow
def test_mini_batches_reach_the_full_problem_and_variance_reduction_gets_closer():
    rng = np.random.default_rng(0)
    samples = jnp.asarray(rng.normal(size=(64, 2)) + 1.0)
    problem = bilevel.Problem(
        lambda x, y, s: 0.5 * jnp.mean((y - s[:, 1]) ** 2) + 0.5 * x**2,
        lambda x, y, s: 0.5 * jnp.mean((y - x * s[:, 0]) ** 2),
    )
    m0, m1 = float(samples[:, 0].mean()), float(samples[:, 1].mean())
    best = m0 * m1 / (1 + m0**2)

    def sample(key, data):
        return data[jax.random.randint(key, (4,), 0, 64)]

    def error(reduce):
        def one(key):
            solution = bilevel.solve(
                problem,
                jnp.asarray(0.0),
                jnp.asarray(0.0),
                data=samples,
                sample=sample,
                key=key,
                sigma=1e-3,
                difference="forward",
                outer=optax.sgd(0.05),
                inner=optax.sgd(0.2),
                max_steps=400,
                variance_reduction=reduce,
            )
            return solution.value.x

        x = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 64))
        return float(jnp.sqrt(jnp.mean((x - best) ** 2)))

    plain, reduced = error(False), error(True)
    assert plain < 0.15 and reduced < 0.85 * plain, (plain, reduced)
