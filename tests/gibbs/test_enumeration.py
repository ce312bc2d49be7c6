"""Every function of the room against the list of all sets, for every kind of budget."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import gibbs

M = 7
Z = np.random.default_rng(0).normal(size=M) * 2
COSTS = (2, 0, 1, 3, 1, 2, 5)

# budget, exactly, costs: unconstrained, empty, binding, all but one, larger than M, knapsacks with a free tool
BUDGETS = [(0, False, None), (1, False, None), (3, False, None), (6, False, None), (7, False, None), (9, False, None)]
BUDGETS += [(0, True, None), (3, True, None), (7, True, None), (0, False, COSTS), (4, False, COSTS), (4, True, COSTS)]
every_budget = pytest.mark.parametrize("budget, exactly, costs", BUDGETS)
every_dtype = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])


@functools.cache
def feasible(budget, exactly, costs, size=M):
    sets = [a for r in range(size + 1) for a in itertools.combinations(range(size), r)]
    spent = [len(a) if costs is None else sum(costs[j] for j in a) for a in sets]
    return [a for a, s in zip(sets, spent, strict=True) if (s == budget if exactly else s <= budget)]


def law(z, budget, exactly, costs):
    """The feasible sets, their probabilities, and log Z, in float64."""
    sets = feasible(budget, exactly, costs, len(z))
    scores = np.asarray([sum((z[j] for j in a), 0.0) for a in sets])
    log_partition = np.logaddexp.reduce(scores)
    return sets, np.exp(scores - log_partition), log_partition


def members(sets, size=M):
    return np.asarray([[j in a for j in range(size)] for a in sets], float)


def options(exactly, costs):
    return {"exactly": exactly, "costs": None if costs is None else jnp.asarray(costs)}


@every_dtype
@every_budget
def test_all_quantities(budget, exactly, costs, dtype):
    """Value, marginals, gradient, entropy, log-probabilities of all sets, mode; with a temperature and an unavailable tool."""
    tol = 1e-12 if dtype == jnp.float64 else 3e-6
    z = Z.copy()
    if not exactly or budget < M:
        z[2] = -np.inf
    temperature = 1.7
    more = options(exactly, costs)
    sets, probability, log_partition = law(np.where(np.isinf(z), -1e6, z / temperature), budget, exactly, costs)
    scores = jnp.asarray(z, dtype)
    arguments = {"budget": budget, "temperature": temperature, **more}

    value, gradient = jax.value_and_grad(lambda s: gibbs.log_partition(s, **arguments))(scores)
    assert value.dtype == dtype
    np.testing.assert_allclose(value, log_partition, rtol=tol, atol=tol)
    marginals = probability @ members(sets)
    np.testing.assert_allclose(gibbs.marginals(scores, **arguments), marginals, atol=tol)
    np.testing.assert_allclose(gradient, marginals / temperature, atol=tol)

    positive = probability > 0
    entropy = -np.sum(probability[positive] * np.log(probability[positive]))
    np.testing.assert_allclose(gibbs.entropy(scores, **arguments), entropy, atol=20 * tol)

    padded = np.full((len(sets), M), gibbs.NO_ACTION)
    for row, a in enumerate(sets):
        padded[row, : len(a)] = a[::-1]
    log_prob = gibbs.log_prob(jnp.asarray(padded, jnp.int32), scores, **arguments)
    np.testing.assert_allclose(np.exp(log_prob), probability, atol=10 * tol)

    best = gibbs.mode(scores, budget, **more)
    chosen = tuple(sorted(int(j) for j in best if j >= 0))
    assert chosen in sets and np.isclose(probability[sets.index(chosen)], probability.max(), rtol=1e-6)


@pytest.mark.parametrize("budget, exactly, costs", [(3, False, None), (3, True, None), (9, False, None), (4, False, COSTS)])
def test_hessian_vector_products_are_covariances(budget, exactly, costs):
    more = options(exactly, costs)
    sets, probability, _ = law(Z, budget, exactly, costs)
    inside = members(sets)
    mean = probability @ inside
    covariance = (inside * probability[:, None]).T @ inside - np.outer(mean, mean)
    hessian = jax.jit(jax.hessian(lambda z: gibbs.log_partition(z, budget, **more)))(jnp.asarray(Z))
    np.testing.assert_allclose(hessian, covariance, atol=1e-12)
    vector = np.random.default_rng(1).normal(size=M)
    product = jax.jvp(lambda z: gibbs.marginals(z, budget, **more), (jnp.asarray(Z),), (jnp.asarray(vector),))[1]
    np.testing.assert_allclose(product, covariance @ vector, atol=1e-12)


@pytest.mark.parametrize("budget, exactly, costs", [(3, False, None), (3, True, None), (4, False, COSTS)])
def test_divergence(budget, exactly, costs):
    more = options(exactly, costs)
    other = np.random.default_rng(2).normal(size=M)
    _, p, _ = law(Z, budget, exactly, costs)
    _, q, _ = law(other, budget, exactly, costs)
    expected = np.sum(p * np.log(p / q))
    np.testing.assert_allclose(gibbs.kl(jnp.asarray(Z), jnp.asarray(other), budget, **more), expected, rtol=1e-11)
    assert gibbs.kl(jnp.asarray(Z), jnp.asarray(Z), budget, **more) < 1e-12
    lacking = jnp.asarray(other).at[0].set(-jnp.inf)
    assert gibbs.kl(jnp.asarray(Z), lacking, budget, **more) == jnp.inf


@pytest.mark.parametrize("budget, exactly", [(0, False), (3, False), (3, True), (20, False)])
def test_background_is_the_same_as_listing_its_tools(budget, exactly):
    scores, counts = np.asarray([0.3, -1.0, 2.0]), np.asarray([4, 0, 2])
    z = Z[:3]
    everything = np.concatenate([z, np.repeat(scores, counts)])
    background = (jnp.asarray(scores), jnp.asarray(counts))
    more = {"exactly": exactly}
    sets, probability, log_partition = law(everything, min(budget, 9), exactly, None)
    arguments = (jnp.asarray(z), budget)
    np.testing.assert_allclose(gibbs.log_partition(*arguments, background=background, **more), log_partition, rtol=1e-12, atol=1e-14)
    own, group = gibbs.marginals(*arguments, background=background, **more)
    marginals = probability @ members(sets, 9)
    np.testing.assert_allclose(own, marginals[:3], atol=1e-12)
    np.testing.assert_allclose(group[np.asarray([0, 2])], marginals[[3, 7]], atol=1e-12)
    entropy = -np.sum(probability * np.log(probability))
    np.testing.assert_allclose(gibbs.entropy(*arguments, background=background, **more), entropy, atol=1e-11)
    longest = max(sets, key=len)
    row = jnp.asarray([*longest, *[-1] * (9 - len(longest))], jnp.int32)
    expected = np.log(probability[sets.index(longest)])
    np.testing.assert_allclose(gibbs.log_prob(row, *arguments, background=background, **more), expected, atol=1e-11)


def test_vmap_is_a_loop_and_lanes_are_apart():
    rows = jnp.asarray(np.random.default_rng(3).normal(size=(4, 60)) * 5)
    value, marginals = (jax.jit(jax.vmap(lambda z, f=f: f(z, 4))) for f in (gibbs.log_partition, gibbs.marginals))
    np.testing.assert_allclose(value(rows), [gibbs.log_partition(z, 4) for z in rows], rtol=1e-13)
    poisoned = rows.at[1, 5].set(jnp.nan)
    assert np.isnan(value(poisoned)[1]) and np.isnan(marginals(poisoned)[1]).all()
    for f in (value, marginals):
        np.testing.assert_array_equal(np.delete(f(poisoned), 1, 0), np.delete(f(rows), 1, 0))


def oracle(z, budget, exactly):
    """log Z by the log-space programme over tools, in float64 numpy, and the marginals by leaving each tool out of it."""
    table = np.full(budget + 1, -np.inf)
    table[0] = 0.0
    for score in np.asarray(z, np.float64):
        table[1:] = np.logaddexp(table[1:], table[:-1] + score)
    return table[budget] if exactly else np.logaddexp.reduce(table)


FAMILIES = {
    "normal": lambda rng, m: 5 * rng.normal(size=m),
    "ties": lambda rng, m: rng.integers(-2, 3, size=m).astype(float),
    "constant": lambda rng, m: np.full(m, 1.5),
    "one huge": lambda rng, m: np.where(np.arange(m) == m // 2, 1e4, rng.normal(size=m)),
    "offset +1e9": lambda rng, m: 1e9 + np.round(64 * rng.normal(size=m)),
    "offset -1e9": lambda rng, m: -1e9 + np.round(64 * rng.normal(size=m)),
    "half masked": lambda rng, m: np.where(np.arange(m) % 2 == 0, -np.inf, rng.normal(size=m)),
    "three left": lambda rng, m: np.where(np.arange(m) < 3, rng.normal(size=m), -np.inf),
    "none left": lambda rng, m: np.full(m, -np.inf),
}


@every_dtype
@pytest.mark.parametrize("budget, size", [(8, 10), (8, 600), (32, 600)])
def test_log_partition_on_hard_scores(budget, size, dtype):
    """All families as rows of one vmapped call, against the log-space programme on the same (rounded) numbers."""
    rng = np.random.default_rng(5)
    rows = np.stack([family(rng, size) for family in FAMILIES.values()]).astype(dtype)
    found = jax.jit(jax.vmap(lambda z: gibbs.log_partition(z, budget)))(jnp.asarray(rows))
    tol = 1e-12 if dtype == jnp.float64 else 1e-6
    for name, row, value in zip(FAMILIES, rows, found, strict=True):
        expected = oracle(row, budget, False)
        assert abs(float(value) - expected) <= tol * max(1.0, abs(expected)), (name, float(value), expected)


@every_dtype
def test_marginals_on_hard_scores(dtype):
    """Each marginal is e^{z_j} Z(without j, one less) / Z; in float32 too at offsets of 1e9, where log Z has no digits left for it."""
    rng = np.random.default_rng(6)
    size, budget = 30, 4
    rows = np.stack([family(rng, size) for family in FAMILIES.values()]).astype(dtype)
    found = np.asarray(jax.jit(jax.vmap(lambda z: gibbs.marginals(z, budget)))(jnp.asarray(rows)))
    tol = 1e-10 if dtype == jnp.float64 else 1e-5
    for name, row, value in zip(FAMILIES, rows.astype(np.float64), found, strict=True):
        centre = row.max() if np.isfinite(row.max()) else 0.0
        # sizes carry the offset: with a huge one only the largest (or the empty) set size is left
        offset = np.round(centre) if abs(centre) > 1e8 else 0.0
        shifted = row - offset
        exactly = abs(offset) > 0
        if offset < 0:
            expected = np.zeros(size)
        else:
            whole = oracle(shifted, budget, exactly)
            without = [oracle(np.delete(shifted, j), budget - 1, exactly) for j in range(size)]
            expected = np.where(np.isfinite(row), np.exp(shifted + np.asarray(without) - whole), 0.0)
        np.testing.assert_allclose(value, expected, atol=tol, err_msg=name)


@pytest.mark.parametrize("budget, size", [(2, 1000), (8, 3000)])
def test_float32_at_a_million_tools_is_of_the_stated_accuracy(budget, size):
    z = np.random.default_rng(7).normal(size=size) - np.log(size)
    single = gibbs.log_partition(jnp.asarray(z, jnp.float32), budget)
    double = gibbs.log_partition(jnp.asarray(z.astype(np.float32), jnp.float64), budget)
    np.testing.assert_allclose(single, double, rtol=1e-6, atol=1e-6)


def test_bad_input():
    z = jnp.zeros(4)
    for call, message in [
        (lambda: gibbs.log_partition(jnp.zeros((2, 4)), 2), r"z must have shape \[M\].*vmap"),
        (lambda: gibbs.log_partition(z, -1), r"budget must be at least 0"),
        (lambda: gibbs.log_partition(z, 5, exactly=True), r"exactly=True needs budget <= M"),
        (lambda: gibbs.log_partition(z, 2, temperature=0.0), r"temperature must be > 0"),
        (lambda: gibbs.log_partition(z, 2, costs=jnp.asarray([1, 1, 1])), r"costs must have shape"),
        (lambda: gibbs.log_partition(z, 2, costs=jnp.asarray([1, -1, 1, 1])), r"costs must be >= 0"),
        (lambda: gibbs.log_prob(jnp.asarray([0, 0]), z, 2), r"names the tool .* twice"),
        (lambda: gibbs.log_prob(jnp.asarray([4]), z, 2), r"tools are numbered 0 to 3"),
        (lambda: gibbs.log_prob(jnp.asarray([0, 1, 2]), z, 2), r"a set of 3 tools, more than budget=2"),
        (lambda: jax.jit(gibbs.log_partition)(z, 2), r"budget decides array shapes"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    for traced in ([0, 0], [9, -1], [-7, 0]):
        assert jax.jit(lambda a: gibbs.log_prob(a, z, 2))(jnp.asarray(traced, jnp.int32)) == -jnp.inf
    assert np.isnan(gibbs.log_partition(z.at[0].set(jnp.inf), 2)) and np.isnan(gibbs.entropy(z.at[1].set(jnp.nan), 2))
    assert gibbs.log_partition(jnp.full(4, -jnp.inf), 2, exactly=True) == -jnp.inf
    assert np.all(gibbs.sample(jax.random.key(0), z.at[0].set(jnp.nan), 2, 3) == gibbs.NO_ACTION)
