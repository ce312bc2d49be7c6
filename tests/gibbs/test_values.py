"""Every function and every kind of budget against enumeration of all sets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs.oracle import Enumeration

from jaxsac import gibbs

COSTS = np.array([1, 2, 3, 0, 2, 5, 7, 1, 1])
GROUPS, COUNTS = np.array([0.4, -1.0, -np.inf]), np.array([3, 2, 2])
POOL = 9

VARIANTS = {
    "at most": (3, {}),
    "exactly": (3, {"exactly": True}),
    "tail": (2, {}),
    "costs": (6, {"costs": COSTS}),
    "exact cost": (6, {"costs": COSTS, "exactly": True}),
    "background": (3, {"background": (GROUPS, COUNTS)}),
    "background exactly": (3, {"background": (GROUPS, COUNTS), "exactly": True}),
    "not binding": (11, {}),
    "all": (9, {"exactly": True}),
    "nothing": (0, {}),
}
COMBINED = ("exact cost", "background exactly")
TOLERANCE = {"float64": 1e-13, "float32": 2e-6}


def scores(seed, dtype, size=POOL):
    return (2 * np.random.default_rng(seed).normal(size=size)).astype(dtype)


@functools.cache
def everything(name):
    """All functions of one variant in one compilation."""
    budget, options = VARIANTS[name]
    plain = {key: value for key, value in options.items() if key != "background"}

    @jax.jit
    def compute(z, other, a, temperature):
        keywords = dict(options, temperature=temperature)
        if "background" in options:
            keywords["background"] = (jnp.asarray(GROUPS, z.dtype), COUNTS)
        return {
            "log_partition": gibbs.log_partition(z, budget, **keywords),
            "marginals": gibbs.marginals(z, budget, **keywords),
            "entropy": gibbs.entropy(z, budget, **keywords),
            "log_prob": gibbs.log_prob(a, z, budget, **keywords),
            "mode": gibbs.mode(
                z, budget, **{key: value for key, value in keywords.items() if key != "temperature"}
            ),
        } | (
            {}
            if "background" in options
            else {"kl": gibbs.kl(z, other, budget, **plain, temperature=temperature)}
        )

    return compute


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, "float64", marks=pytest.mark.slow if name in COMBINED else ())
        for name in VARIANTS
    ]
    + [
        pytest.param(name, "float32", marks=pytest.mark.slow)
        for name in ("at most", "costs", "background")
    ],
)
def test_every_function_against_enumeration(name, dtype):
    budget, options = VARIANTS[name]
    tolerance = TOLERANCE[dtype]
    plain = {key: value for key, value in options.items() if key != "background"}
    for seed, hidden in ((0, []), (1, [2, 5]), (2, list(range(2, POOL)))):
        z, other = scores(seed, dtype), scores(seed + 10, dtype)
        z[hidden] = -np.inf
        temperature = [1.0, 0.7, 2.0][seed]
        pool = z if "background" not in options else np.concatenate([z, np.repeat(GROUPS, COUNTS)])
        with np.errstate(invalid="ignore"):
            expected = Enumeration(
                pool / np.asarray(temperature, dtype).astype(np.float64), budget, **plain
            )
            against = Enumeration(other / temperature, budget, **plain)
        rows = expected.rows(min(budget, len(pool)) if "costs" not in options else 5)
        found = everything(name)(
            jnp.asarray(z), jnp.asarray(other), rows, jnp.asarray(temperature, dtype)
        )
        close = functools.partial(
            np.testing.assert_allclose, rtol=tolerance * 10, atol=tolerance * 20
        )
        close(found["log_partition"], expected.log_partition)
        feasible = expected.log_partition > -np.inf
        if "background" in options:
            own, groups = found["marginals"]
            close(own, expected.marginals[:POOL])
            close(np.repeat(groups, COUNTS), expected.marginals[POOL:])
        else:
            close(found["marginals"], expected.marginals if feasible else np.zeros(POOL))
            if feasible:
                own = Enumeration(z / temperature, budget, **plain)
                close(found["kl"], own.kl(against))
        close(found["entropy"], expected.entropy if feasible else 0)
        close(found["log_prob"], expected.log_probabilities)
        check_mode(found["mode"], expected, pool / temperature, plain.get("exactly", False))


def check_mode(mode, expected, pool, exactly):
    mode = np.asarray(mode)
    taken = mode[mode >= 0]
    assert np.all(mode[len(taken) :] == -1), "padding comes last"
    if expected.log_partition == -np.inf:
        assert len(taken) == 0
        return
    assert len(set(taken)) == len(taken)
    np.testing.assert_allclose(pool[taken].sum(), expected.totals.max(), rtol=1e-6, atol=1e-6)
    assert np.all(np.diff(pool[taken]) <= 0), "highest first"
    assert exactly or np.all(pool[taken] > 0)


def test_temperature_of_the_background_and_its_gradient():
    z = jnp.asarray(scores(3, "float64"))
    groups, counts = jnp.asarray([0.4, -1.0]), jnp.asarray([3, 2])

    def value(z, groups, temperature):
        return gibbs.log_partition(z, 3, background=(groups, counts), temperature=temperature)

    pool = np.concatenate([z, np.repeat(np.asarray(groups), np.asarray(counts))])
    got, gradient = jax.value_and_grad(value, argnums=(0, 1, 2))(z, groups, 1.5)
    expected = Enumeration(pool / 1.5, 3)
    np.testing.assert_allclose(got, expected.log_partition, rtol=1e-13)
    np.testing.assert_allclose(gradient[0], expected.marginals[:POOL] / 1.5, atol=1e-13)
    np.testing.assert_allclose(
        gradient[1],
        [expected.marginals[POOL : POOL + 3].sum() / 1.5, expected.marginals[-2:].sum() / 1.5],
        atol=1e-13,
    )
    np.testing.assert_allclose(gradient[2], -expected.marginals @ pool / 1.5**2, rtol=1e-12)


def test_background_is_free_of_its_counts():
    """A million tools that share a score, against the same tools in the score vector."""
    own = scores(4, "float64")
    value = jax.jit(lambda z, o, n: gibbs.log_partition(z, 3, background=(o, n)))
    found = value(own, jnp.asarray([-2.0, 0.1]), jnp.asarray([20_000, 7]))
    everything = np.concatenate([own, np.full(20_000, -2.0), np.full(7, 0.1)])
    np.testing.assert_allclose(found, gibbs.log_partition(everything, 3), rtol=1e-13)
    assert np.isfinite(value(own, jnp.asarray([-2.0, 0.1]), jnp.asarray([2**31 - 1, 7])))
    np.testing.assert_allclose(
        value(own, jnp.asarray([-2.0, 0.1]), jnp.asarray([0, 0])),
        gibbs.log_partition(own, 3),
        rtol=1e-14,
    )


def test_mode_breaks_ties_by_the_lowest_index():
    z = jnp.asarray([0.0, 2.0, 1.0, 2.0, 1.0, -1.0, 1.0, 0.0, -2.0])
    np.testing.assert_array_equal(gibbs.mode(z, 3), [1, 3, 2])
    np.testing.assert_array_equal(gibbs.mode(z, 11), [1, 3, 2, 4, 6, -1, -1, -1, -1, -1, -1])
    np.testing.assert_array_equal(gibbs.mode(-jnp.abs(z), 3), [-1, -1, -1])
    np.testing.assert_array_equal(gibbs.mode(-jnp.abs(z), 3, exactly=True), [0, 7, 2])
    np.testing.assert_array_equal(gibbs.mode(jnp.ones(9), 6, costs=COSTS), [0, 1, 3, 4, 7])
    np.testing.assert_array_equal(
        gibbs.mode(jnp.ones(3), 4, background=(jnp.asarray([1.0, 2.0]), jnp.asarray([2, 1]))),
        [5, 0, 1, 2],
    )


def test_kl_where_supports_differ():
    def kl(name, z, other):
        rows = Enumeration(np.zeros(POOL), *VARIANTS[name][:1], **VARIANTS[name][1]).rows(
            3
        )  # of a shape already compiled
        return everything(name)(z, other, rows, jnp.asarray(1.0))["kl"]

    z = jnp.asarray(scores(5, "float64"))
    hidden, none = z.at[4].set(-jnp.inf), jnp.full(POOL, -jnp.inf)
    assert kl("at most", z, hidden) == jnp.inf
    np.testing.assert_allclose(
        kl("at most", hidden, z), Enumeration(hidden, 3).kl(Enumeration(z, 3)), rtol=1e-12
    )
    assert kl("at most", z, z) == 0 and kl("exactly", none, none) == 0
    assert kl("exactly", none, z) == jnp.inf and kl("exactly", z, none) == jnp.inf
