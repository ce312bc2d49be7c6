"""Gradients, Hessian-vector products and higher derivatives, against closed forms and finite
differences.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs.oracle import Enumeration, programme

from jaxsac import gibbs

COSTS = np.array([1, 2, 3, 0, 2, 5, 7, 1, 1])


def covariance(enumeration):
    centred = enumeration.member - enumeration.marginals
    return centred.T @ (enumeration.probabilities[:, None] * centred)


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        pytest.param(3, {}, id="at most"),
        pytest.param(2, {"exactly": True}, id="exactly", marks=pytest.mark.slow),
        pytest.param(6, {"costs": COSTS}, id="costs", marks=pytest.mark.slow),
        pytest.param(9, {}, id="not binding"),
    ],
)
def test_hessian_is_the_covariance(budget, options):
    z = jnp.asarray(np.random.default_rng(0).normal(size=9) * 2).at[4].set(-jnp.inf)
    expected = covariance(Enumeration(z, budget, **options))
    value = lambda z: gibbs.log_partition(z, budget, **options)  # noqa: E731

    @jax.jit
    def derivatives(z):
        forward_over_reverse = jax.jacfwd(jax.grad(value))(z)
        reverse = jax.jacrev(lambda z: gibbs.marginals(z, budget, **options))(z)
        return (
            jax.grad(value)(z),
            gibbs.marginals(z, budget, **options),
            forward_over_reverse,
            reverse,
        )

    gradient, marginals, forward, reverse = derivatives(z)
    np.testing.assert_allclose(gradient, marginals, atol=1e-15)
    np.testing.assert_allclose(forward, expected, atol=1e-14)
    np.testing.assert_allclose(reverse, expected, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_tools", "budget", "dtype"),
    [(300, 8, "float64"), (300, 8, "float32"), (100, 32, "float64")],
)
def test_hessian_vector_product_with_a_tail(num_tools, budget, dtype):
    rng = np.random.default_rng(1)
    z, direction = 2 * rng.normal(size=num_tools), rng.normal(size=num_tools)
    z[::7] = -np.inf
    z[::5] = 0.5
    step = 1e-4
    # In extended precision, so that the difference quotient is good to about 1e-9.
    finite = np.where(np.isfinite(z), z, 0)
    shifted = [
        programme(np.where(np.isfinite(z), finite + s * direction, -np.inf), budget)[1]
        for s in (step, -step)
    ]
    expected = (shifted[0] - shifted[1]) / (2 * step)
    product = jax.jit(
        lambda z, v: jax.jvp(jax.grad(lambda z: gibbs.log_partition(z, budget)), (z,), (v,))[1]
    )
    found = product(jnp.asarray(z, dtype), jnp.asarray(direction, dtype))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-8 if dtype == "float64" else 2e-5)


def test_log_prob_gradient_is_the_set_minus_the_marginals():
    rng = np.random.default_rng(2)
    z = jnp.asarray(2 * rng.normal(size=300))
    a = jnp.asarray([5, -1, 17, 200, -1, -1, 3, -1])
    gradient, marginals = jax.jit(
        lambda z: (
            jax.grad(lambda z: gibbs.log_prob(a, z, 8, temperature=0.5))(z),
            gibbs.marginals(z, 8, temperature=0.5),
        )
    )(z)
    expected = np.zeros(300)
    expected[[5, 17, 200, 3]] = 1
    np.testing.assert_allclose(gradient, (expected - marginals) / 0.5, rtol=0, atol=1e-15)


@pytest.mark.slow
def test_entropy_kl_and_temperature_gradients_by_central_differences():
    rng = np.random.default_rng(3)
    z, other, direction = (jnp.asarray(rng.normal(size=30)) for _ in range(3))

    def values(t):
        z_t = z + t * direction
        temperature = jnp.exp(0.3 * t)
        entropy = gibbs.entropy(z_t, 4, temperature=temperature)
        return jnp.stack(
            [entropy, gibbs.kl(z_t, other, 4, temperature=temperature), gibbs.kl(other, z_t, 4)]
        )

    derivative = jax.jit(jax.jacrev(values))(jnp.zeros(()))
    step = 1e-4
    both = jax.jit(jax.vmap(values))(jnp.asarray([step, -step]))
    quotient = (both[0] - both[1]) / (2 * step)
    np.testing.assert_allclose(derivative, quotient, rtol=1e-6, atol=1e-7)


def test_gradients_stay_finite_at_degenerate_inputs():
    """No NaN from branches not taken: nothing available, fewer than the budget, ties, too few for
    `exactly`.
    """
    cases = np.stack(
        [
            np.full(30, -np.inf),
            np.where(np.arange(30) < 2, 0.3, -np.inf),
            np.zeros(30),
            np.full(30, -1e4),
            np.full(30, 1e4),
        ]
    )

    def exact(z):
        return jnp.where(
            jnp.isfinite(gibbs.log_partition(z, 4, exactly=True)),
            gibbs.log_partition(z, 4, exactly=True),
            0,
        )

    def all_gradients(z):
        gradient, product = jax.jvp(
            jax.grad(lambda z: gibbs.log_partition(z, 4)), (z,), (jnp.ones_like(z),)
        )
        return gradient, product, jax.grad(lambda z: gibbs.entropy(z, 4))(z), jax.grad(exact)(z)

    for gradient in jax.jit(jax.vmap(all_gradients))(jnp.asarray(cases)):
        assert np.all(np.isfinite(gradient))


def test_with_a_background_every_derivative_is_right():
    """By the scores of both kinds of tools; 900 tools share one."""
    scores = jnp.asarray(np.random.default_rng(2).normal(size=8))

    @jax.jit
    def measures(scores):
        options = {"background": (scores[:2], jnp.asarray([5, 900], jnp.int32))}
        own, groups = gibbs.marginals(scores[2:], 3, **options)
        entropy = gibbs.entropy(scores[2:], 3, **options)
        return jnp.stack([gibbs.log_partition(scores[2:], 3, **options), entropy, *own, *groups])

    central = [measures(scores + step) - measures(scores - step) for step in 1e-5 * np.eye(8)]
    slopes = jax.jit(jax.jacobian(measures))(scores)
    np.testing.assert_allclose(slopes, np.stack(central, axis=1) / 2e-5, atol=1e-8)
