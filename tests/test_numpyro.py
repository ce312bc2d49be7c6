"""The adaptor with the real numpyro: shapes, densities, handlers, and NUTS over scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs.oracle import Enumeration

from jaxsac import gibbs

numpyro = pytest.importorskip("numpyro")
dist = numpyro.distributions
subset = pytest.importorskip("jaxsac.numpyro")

M, B = 5, 2
COSTS = np.array([1, 2, 1, 1, 0])


@pytest.fixture(autouse=True, scope="module")
def _plain_promotion():
    """numpyro adds numbers of several types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"exactly": True}, marks=pytest.mark.slow),
        pytest.param({"costs": COSTS}, marks=pytest.mark.slow),
    ],
    ids=["at most", "exactly", "costs"],
)
def test_shapes_density_support_and_marginals(options):
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, M)))
    temperature = jnp.asarray([0.7, 1.0, 1.5])
    law = subset.Subset(z, B, temperature=temperature, **options)
    width = 3 if "costs" in options else B
    assert law.batch_shape == (2, 3) and law.event_shape == (width,) and law.support.event_dim == 1
    draws = law.sample(jax.random.key(0), (400,))
    assert draws.shape == (400, 2, 3, width) and bool(law.support(draws).all())
    assert law.support(law.support.feasible_like(draws)).all() and law.support(law.mode).all()
    asked = jax.jit(lambda law: (law.log_prob(draws), law.entropy(), law.marginals))
    densities, entropy, marginals = asked(law)
    assert densities.shape == (400, 2, 3) and law.is_discrete
    for i, j in np.ndindex(2, 3):
        exact = Enumeration(z[i, j] / temperature[j], B, **options)
        lookup = dict(zip(exact.sets, exact.log_probabilities, strict=True))
        rows = np.asarray(draws[:, i, j])
        expected = [lookup[tuple(sorted(int(j) for j in row if j >= 0))] for row in rows]
        np.testing.assert_allclose(densities[:, i, j], expected, atol=1e-12)
        np.testing.assert_allclose(entropy[i, j], exact.entropy, atol=1e-12)
        np.testing.assert_allclose(marginals[i, j], exact.marginals, atol=1e-12)
    outside = jnp.full((width,), 1, draws.dtype)  # all tools, or one of them again and again
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert np.all(np.isneginf(law.log_prob(outside))) and not law.support(outside).any()


@pytest.mark.slow
def test_a_pytree_vmap_and_the_shapes_of_values():
    z = jnp.asarray(np.random.default_rng(1).normal(size=(4, M)))
    sets = jnp.asarray([[0, -1], [1, 2], [4, 3]], jnp.int32)
    law = subset.Subset(z, B)
    leaves, tree = jax.tree.flatten(law)
    again = jax.tree.unflatten(tree, leaves)
    assert again.budget == B and again.batch_shape == (4,) and again.support == law.support
    each = jax.vmap(lambda z: subset.Subset(z, B).log_prob(sets))(z)
    np.testing.assert_allclose(again.log_prob(sets[:, None]), each.T, atol=1e-15)
    through = jax.vmap(lambda law: law.log_prob(sets[0]), in_axes=(numpyro_axes(law),))(law)
    np.testing.assert_allclose(through, each[:, 0], atol=1e-15)
    shared = subset.Subset(z[0], B).expand([3])
    np.testing.assert_allclose(shared.log_prob(sets), each[0], atol=1e-15)
    assert shared.sample(jax.random.key(0), (7,)).shape == (7, 3, B)
    assert subset.Subset(z[0], B).sample(jax.random.key(0)).shape == (B,)


def numpyro_axes(law):
    from numpyro.distributions.batch_util import vmap_over

    return vmap_over(law, z=0, temperature=0)


def model(sets):
    z = numpyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("records", len(sets)):
        return numpyro.sample("sets", subset.Subset(z, B), obs=sets)


@pytest.mark.slow
def test_handlers_see_the_density_and_draw():
    sets = jnp.asarray([[0, -1], [1, 2]], jnp.int32)
    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace(sets)
    site = trace["sets"]
    expected = gibbs.log_prob(sets, trace["z"]["value"], B)
    np.testing.assert_allclose(site["fn"].log_prob(site["value"]), expected, atol=1e-6)
    free = numpyro.handlers.seed(lambda: numpyro.sample("a", subset.Subset(jnp.zeros(4), B)), 1)
    drawn = numpyro.handlers.trace(free).get_trace()["a"]["value"]
    assert drawn.shape == (B,) and drawn.dtype == jnp.int32


@pytest.mark.slow
def test_nuts_over_the_scores_finds_the_posterior_of_a_grid():
    truth = jnp.asarray([1.0, 0.0, -1.0])
    sets = gibbs.sample(jax.random.key(0), truth, B, 30)
    axis = np.linspace(-4, 4, 61)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    member = Enumeration(np.zeros(3), B).member.astype(float)
    counts = (np.asarray(sets)[..., None] == np.arange(3)).sum(axis=(0, 1))
    logs = grid @ counts - 30 * np.log(np.exp(grid @ member.T).sum(axis=1)) - (grid**2).sum(1) / 2
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    mean = weights @ grid
    spread = np.sqrt(weights @ (grid - mean) ** 2)
    sampler = numpyro.infer.MCMC(
        numpyro.infer.NUTS(model), num_warmup=300, num_samples=1000, progress_bar=False
    )
    sampler.run(jax.random.key(1), sets)
    draws = np.asarray(sampler.get_samples()["z"])
    size = numpyro.diagnostics.effective_sample_size(draws[None])
    assert np.all(size > 200)
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 5 * spread / np.sqrt(size))
    np.testing.assert_allclose(draws.std(axis=0), spread, rtol=0.15)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"z must have shape \[..., M\]"):
        subset.Subset(1.0, B)
    with pytest.raises(ValueError, match="exactly=True needs budget <= M"):
        subset.Subset(jnp.zeros(2), 3, exactly=True)
    with pytest.raises(ValueError, match="costs decide the width"):
        jax.jit(lambda costs: subset.Subset(jnp.zeros(2), 3, costs=costs).marginals)(
            jnp.ones(2, int)
        )
