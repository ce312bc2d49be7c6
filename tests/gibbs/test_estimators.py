"""Gradients through draws: their value, bias and variance against enumeration of all sets."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs.oracle import Enumeration

from jaxsac import gibbs

M, B = 6, 3
COSTS = np.array([1, 2, 0, 1, 3, 1])
OPTIONS = {"at most": {}, "exactly": {"exactly": True}, "costs": {"costs": COSTS}}
SCORES = np.stack(
    [np.random.default_rng(0).normal(size=M), np.zeros(M), np.array([1.0, 1, -1, 2, 2, 0])]
)
WORTH = np.array([3.0, -1, 2, 0.5, -2, 1])
# Every derivative of a draw is tested in float64 without standard errors: here single is enough.
by_dtype = pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)]
)
by_option = pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=() if name == "at most" else pytest.mark.slow)
        for name, options in OPTIONS.items()
    ],
)


def covariance(law):
    centred = law.member - law.marginals
    return centred.T @ (law.probabilities[:, None] * centred)


def reward(a, scale=1.0):
    """Neither linear nor continuous."""
    return jnp.where(a @ WORTH.astype(a.dtype) > 1.5, 2.0, jnp.sin(scale * (a[0] - a[3]) * a[2]))


def in_standard_errors(draws, expected):
    """How far the mean of draws [n, ...] is from what is expected, at the worst entry."""
    draws = np.asarray(draws, np.float64)
    error = np.std(draws, axis=0) / np.sqrt(len(draws))
    return np.max(np.abs(np.mean(draws, axis=0) - expected) / (error + 1e-9))


@by_option
def test_draws_are_those_of_sample_and_have_the_derivative_of_the_marginals(options):
    temperature = 0.7
    draw = lambda z, t: gibbs.straight_through(  # noqa: E731
        jax.random.key(1), z, B, 4, temperature=t, **options
    )

    soft = lambda z, t: gibbs.marginals(z, B, temperature=t, **options)  # noqa: E731

    def curvature(f):
        """A second derivative, of a loss that is linear in what f gives."""
        slope = jax.grad(lambda z: jnp.sum(jnp.mean(f(z, temperature), axis=0) * WORTH))
        return jax.grad(lambda z: jnp.sum(slope(z) * WORTH))

    @jax.jit
    @jax.vmap
    def everything(z):
        sets = gibbs.sample(jax.random.key(1), z, B, 4, temperature=temperature, **options)
        jacobian, by_temperature = jax.jacrev(draw, argnums=(0, 1))(z, temperature)
        second = curvature(draw)(z), curvature(lambda z, t: soft(z, t)[None])(z)
        return draw(z, temperature), sets, jacobian, by_temperature, *second

    for z, row in zip(SCORES, zip(*everything(jnp.asarray(SCORES)), strict=True), strict=True):
        draws, sets, jacobian, by_temperature, second, exact = map(np.asarray, row)
        rows = [[float(j in taken) for j in range(M)] for taken in sets.tolist()]
        np.testing.assert_array_equal(draws, rows)
        expected = covariance(Enumeration(z / temperature, B, **options)) / temperature
        np.testing.assert_allclose(jacobian, np.broadcast_to(expected, (4, M, M)), atol=1e-13)
        np.testing.assert_allclose(by_temperature[2], -expected @ z / temperature, atol=1e-13)
        np.testing.assert_allclose(second, exact, atol=1e-12)


@pytest.mark.slow
def test_every_option_of_a_policy_goes_through():
    """Held tools and a traced budget; a background, whose tools are drawn and left out."""
    z, key = jnp.asarray(SCORES[0]), jax.random.key(5)
    held = {"max_budget": B, "given": jnp.asarray([4, -1], jnp.int32), "at_least": 2}
    behind = {"background": (jnp.asarray([0.5]), jnp.asarray([3], jnp.int32))}
    for options, budget in ((held, jnp.int32(B)), (behind, B)):

        def everything(z, options=options, budget=budget):
            behind = options.get("background", (jnp.zeros(1), None))

            def given(scores):
                if behind[1] is None:
                    return options
                return {"background": (scores, behind[1])}

            own = lambda z, s: jax.tree.leaves(gibbs.marginals(z, budget, **given(s)))[0]  # noqa: E731
            draw = lambda z, s: gibbs.straight_through(key, z, budget, 200, **given(s))  # noqa: E731
            both = lambda f: jax.jacrev(f, argnums=(0, 1))(z, behind[0])  # noqa: E731
            linear = gibbs.expected(key, lambda a: a @ WORTH, z, budget, 200, **options)
            sets = gibbs.sample(key, z, budget, 200, **options)
            found = both(lambda z, s: draw(z, s)[0]), both(own)
            return draw(z, behind[0]), sets, *found, linear

        draws, sets, found, expected, linear = jax.jit(everything)(z)
        draws, sets = np.asarray(draws), np.asarray(sets)
        rows = [[float(j in taken) for j in range(M)] for taken in sets.tolist()]
        np.testing.assert_array_equal(draws, rows)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-14)
        np.testing.assert_allclose(linear, np.mean(draws @ WORTH), rtol=1e-12)
        assert options is behind or np.all(draws[:, 4] == 1)


@pytest.mark.slow
@by_dtype
def test_straight_through_has_the_bias_and_variance_of_its_formula(dtype):
    """Cov(a) ∇f(a) over the law of a: exact where f is linear, biased elsewhere."""
    slope = jax.vmap(jax.grad(lambda a: jnp.sin(2 * a @ WORTH)))
    keys = jax.random.split(jax.random.key(2), 20_000)

    worth = jnp.asarray(WORTH, dtype)

    def gradient(key, z, f):
        return jax.grad(lambda z: f(gibbs.straight_through(key, z, B)[0]))(z)

    @jax.jit
    @jax.vmap
    def gradients(z):
        curved = jax.vmap(lambda key: gradient(key, z, lambda a: jnp.sin(2 * a @ worth)))(keys)
        return curved, gradient(keys[0], z, lambda a: a @ worth)

    for z, curved, linear in zip(SCORES, *gradients(jnp.asarray(SCORES, dtype)), strict=True):
        assert curved.dtype == dtype
        law = Enumeration(z, B)
        every = np.asarray(slope(jnp.asarray(law.member, float))) @ covariance(law)
        mean = law.probabilities @ every
        assert in_standard_errors(curved, mean) < 5
        squares = law.probabilities @ (every - mean) ** 2
        assert in_standard_errors((np.asarray(curved, float) - mean) ** 2, squares) < 5
        tolerance = 1e-12 if dtype == "float64" else 2e-5
        np.testing.assert_allclose(linear, covariance(law) @ WORTH, atol=tolerance)
        values = np.array([np.sin(2 * s @ WORTH) for s in law.member])
        truth = (law.probabilities * values) @ (law.member - law.marginals)
        assert np.max(np.abs(mean - truth)) > 0.03, "no bias to be seen"


@by_option
def test_expected_is_unbiased_in_every_derivative(options):
    """By the scores, by a parameter of f, by the scores that f closes over; second ones too."""
    keys = jax.random.split(jax.random.key(3), 4000)

    def estimate(both, key):
        z, scale = both[:M], both[M]
        f = lambda a: reward(a, scale) + scale * a @ jnp.sin(z)  # noqa: E731
        return gibbs.expected(key, f, z, B, 4, **options)

    members = jnp.asarray(Enumeration(SCORES[0], B, **options).member, float)

    def exact(both):
        z, scale = both[:M], both[M]
        law = jax.nn.softmax(members @ z)
        return law @ (jax.vmap(lambda a: reward(a, scale))(members) + scale * members @ jnp.sin(z))

    def measures(f):
        return lambda both: (f(both), jax.grad(f)(both), jax.hessian(f)(both))

    found = jax.jit(
        lambda both: (
            jax.vmap(lambda key: measures(partial(estimate, key=key))(both))(keys),
            measures(exact)(both),
        )
    )
    for z in SCORES[:2]:
        for one, other in zip(*found(jnp.append(z, 0.8)), strict=True):
            assert in_standard_errors(one, np.asarray(other)) < 5


@pytest.mark.slow
@by_dtype
def test_expected_has_the_variance_of_two_draws(dtype):
    """(f − f') (∇log π − ∇log π') / 2 over all pairs of sets."""
    keys = jax.random.split(jax.random.key(4), 20_000)
    gradient = jax.grad(lambda z, key: gibbs.expected(key, reward, z, B, 2))
    found = jax.jit(lambda z: jax.vmap(gradient, (None, 0))(z, keys))
    for z in SCORES:
        law = Enumeration(z, B)
        values = np.asarray(jax.vmap(reward)(jnp.asarray(law.member, float)))
        pairs = (values[:, None] - values)[..., None] / 2
        pairs = pairs * (law.member[:, None].astype(float) - law.member)
        weights = law.probabilities[:, None] * law.probabilities
        mean = np.einsum("ij,ijk", weights, pairs)
        gradients = found(jnp.asarray(z, dtype))
        assert gradients.dtype == dtype and in_standard_errors(gradients, mean) < 5
        spread = np.einsum("ij,ijk", weights, (pairs - mean) ** 2)
        assert in_standard_errors((np.asarray(gradients, float) - mean) ** 2, spread) < 5


@pytest.mark.slow
def test_a_mapped_estimate_is_differentiated_row_by_row():
    estimate = jax.jit(lambda z: gibbs.expected(jax.random.key(0), reward, z, B, 4))
    z = jnp.asarray(SCORES)
    together = jax.grad(lambda z: jnp.sum(jax.vmap(estimate)(z)))(z)
    np.testing.assert_allclose(together, jax.vmap(jax.grad(estimate))(z), atol=1e-15)


@pytest.mark.slow
def test_a_function_may_return_a_tree_and_integers_are_numbers():
    f = lambda a: {"size": jnp.sum(a, dtype=int), "pair": jnp.outer(a, a)}  # noqa: E731
    draw = lambda z: gibbs.expected(jax.random.key(0), f, z, B, 50)  # noqa: E731
    z = jnp.asarray(SCORES[0])
    found, slopes = jax.jit(lambda z: (draw(z), jax.jacobian(draw)(z)))(z)
    sets = gibbs.straight_through(jax.random.key(0), z, B, 50)
    np.testing.assert_allclose(found["size"], sets.sum(axis=1).mean(), rtol=1e-15)
    np.testing.assert_allclose(found["pair"], sets.T @ sets / 50, rtol=1e-15)
    assert slopes["pair"].shape == (M, M, M)


def test_what_is_no_number_is_nan_and_no_set_is_the_empty_one():
    scores = jnp.stack([jnp.zeros(M), jnp.full(M, -jnp.inf), jnp.zeros(M).at[2].set(jnp.nan)])

    @jax.jit
    @jax.vmap
    def everything(z):
        key = jax.random.key(0)
        draw = lambda z: gibbs.straight_through(key, z, B, exactly=True)[0]  # noqa: E731
        mean = lambda z: gibbs.expected(key, lambda a: jnp.where(a[0] > 0.5, 3.0, 1.0), z, B, 2)  # noqa: E731
        return draw(z), jax.grad(lambda z: draw(z)[0])(z), mean(z), jax.grad(mean)(z)

    draws, slopes, means, gradients = everything(scores)
    np.testing.assert_array_equal(jnp.sum(draws[:2], axis=1), [B, 0])
    assert np.isnan(draws[2]).all() and np.isnan(slopes[2]).any()
    assert means[1] == 1 and np.isnan(means[2]) and np.isnan(gradients[2]).any()
    for finite in (slopes[:2], gradients[:2]):
        assert np.isfinite(finite).all()


def test_bad_input_is_refused_with_what_to_do():
    key, z = jax.random.key(0), jnp.zeros(M)
    with pytest.raises(ValueError, match="num_samples must be ≥ 2"):
        gibbs.expected(key, reward, z, B, 1)
    with pytest.raises(ValueError, match="f must be a function of one set"):
        gibbs.expected(key, z, z, B, 2)
    with pytest.raises(ValueError, match="what f returns must be real"):
        gibbs.expected(key, lambda a: a.astype(complex), z, B, 2)
    with pytest.raises(ValueError, match="num_samples must be ≥ 0"):
        gibbs.straight_through(key, z, B, -1)
    with pytest.raises(ValueError, match=r"z must have shape \[M\]"):
        gibbs.straight_through(key, jnp.zeros((2, M)), B)
