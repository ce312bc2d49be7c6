"""Promised accuracy on hard inputs, against the log-space programme in extended precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs.oracle import families, programme

from jaxsac import gibbs
from jaxsac.gibbs._polynomial import head_size

BOUNDS = {"float64": (1e-12, 1e-10), "float32": (1e-6, 1e-5)}


@functools.cache
def solver(budget, exactly):
    return jax.jit(
        lambda z: (
            gibbs.log_partition(z, budget, exactly=exactly),
            gibbs.marginals(z, budget, exactly=exactly),
        )
    )


def check(num_tools, budget, dtype, exactly):
    bound, marginal_bound = BOUNDS[dtype]
    for name, z in families(num_tools, budget):
        z = z.astype(dtype)
        value, marginals = solver(budget, exactly)(z)
        expected, expected_marginals = programme(z, budget, exactly)
        where = f"{name}, M={num_tools}, B={budget}, {dtype}, exactly={exactly}"
        if expected == -np.inf:
            assert value == -np.inf, where
        else:
            assert abs(float(value) - expected) <= bound * max(1, abs(expected)), where
        np.testing.assert_allclose(
            marginals, expected_marginals, rtol=0, atol=marginal_bound, err_msg=where
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_tools", "budget", "dtype", "exactly"),
    [
        (10, 8, "float64", True),  # M = K + 2
        (300, 8, "float64", False),
        (300, 8, "float32", False),
        (300, 8, "float32", True),
        (100, 32, "float64", True),
        (100, 32, "float32", True),
        (300, 128, "float32", False),  # rescaled head, and a tail
    ],
)
def test_families(num_tools, budget, dtype, exactly):
    check(num_tools, budget, dtype, exactly)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("exactly", [False, True])
@pytest.mark.parametrize(
    ("num_tools", "budget"),
    [(34, 32), (130, 128), (260, 128), (3000, 128), (4096, 32), (20_000, 8)],
)
def test_more_families(num_tools, budget, dtype, exactly):
    check(num_tools, budget, dtype, exactly)


@pytest.mark.parametrize(
    ("num_tools", "budget", "dtype"), [(100_000, 8, "float32"), (100_000, 8, "float64")]
)
def test_constant_scores_have_a_closed_form(num_tools, budget, dtype):
    degree = np.arange(1, budget + 1)
    for score in (0.0, -11.0, 3.0):
        ratios = np.log((num_tools - degree + 1) / degree) + score
        logs = np.concatenate([[0.0], np.cumsum(ratios)])
        expected = np.logaddexp.reduce(logs)
        mean_size = np.exp(logs - expected) @ np.arange(budget + 1)
        value, marginals = solver(budget, False)(jnp.full(num_tools, score, dtype))
        bound = BOUNDS[dtype][0]
        assert abs(float(value) - expected) <= bound * max(1, abs(expected))
        np.testing.assert_allclose(marginals, mean_size / num_tools, rtol=10 * bound * budget)


def test_a_few_forced_and_a_few_masked_tools_by_finite_scores():
    """Offsets of 1e9 on some tools only: the float64 head must not be chosen by float32 numbers
    that hide the rest.
    """
    rng = np.random.default_rng(0)
    ordinary = rng.normal(size=300)
    z = ordinary.copy()
    z[[3, 100, 290]] = 1e9
    z[50:150] = np.where(np.arange(50, 150) == 100, 1e9, -1e9)
    rest = np.delete(ordinary, np.r_[3, 50:150, 290])
    expected, expected_marginals = programme(rest, 5)
    value, marginals = solver(8, False)(jnp.asarray(z))
    np.testing.assert_allclose(
        np.delete(marginals, np.r_[3, 50:150, 290]), expected_marginals, atol=1e-12
    )
    np.testing.assert_allclose(marginals[jnp.asarray([3, 100, 290, 60])], [1, 1, 1, 0], atol=1e-12)
    assert abs(float(value) - 3e9 - expected) < 1e-5


def test_head_size_follows_the_error_bound():
    assert [head_size(b, "float64") for b in (1, 8, 16)] == [1, 8, 16]
    assert all(head_size(b, "float64") <= head_size(b, "float32") <= 2 * b for b in (1, 8, 32, 128))


@pytest.mark.parametrize("offset", [1e9, -1e9, 12345.678])
def test_probabilities_do_not_feel_a_common_offset(offset):
    """With exactly=True a common offset cancels. Scores are on the grid of float32 at 1e9, so sums
    run to thousands: a few eps of that.
    """
    z = np.round(4 * np.random.default_rng(1).normal(size=300)) * 64
    shifted = (z + np.float32(offset)).astype(np.float32)
    z = (shifted.astype(np.float64) - np.float64(np.float32(offset))).astype(np.float32)
    sets = jnp.asarray([[0, 1, 2, 3, 4, 5, 6, 7], np.argsort(-z)[:8]])
    for function in (
        lambda z: gibbs.marginals(z, 8, exactly=True),
        lambda z: gibbs.entropy(z, 8, exactly=True),
        lambda z: gibbs.log_prob(sets, z, 8, exactly=True),
    ):
        np.testing.assert_allclose(
            function(jnp.asarray(shifted)), function(jnp.asarray(z)), rtol=1e-6, atol=1e-3
        )


def test_knapsack_accuracy():
    """The programme over costs rounds once a tool: its error grows with M, and is stated as M ·
    eps.
    """
    rng = np.random.default_rng(2)
    z = rng.normal(size=300)
    costs = np.ones(300, np.int32)
    expected, expected_marginals = programme(z, 6)
    for dtype, bound in (("float64", 1e-13), ("float32", 2e-5)):
        assert (
            abs(float(gibbs.log_partition(z.astype(dtype), 6, costs=costs)) / expected - 1) < bound
        )
        np.testing.assert_allclose(
            gibbs.marginals(z.astype(dtype), 6, costs=costs),
            expected_marginals,
            rtol=0,
            atol=10 * bound,
        )


def everything(z, budget):
    policy = gibbs.Policy(z, budget=budget)
    return policy.log_partition(), policy.entropy(), policy.marginals(), policy.size_law()


SCORES = {
    "normal": lambda rng, size: rng.normal(size=size),
    "equal": lambda rng, size: np.zeros(size),
    "wide": lambda rng, size: 30 * rng.normal(size=size),
    "rare": lambda rng, size: rng.normal(size=size) - np.log(size),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_tools", "budget"),
    [(3000, 500)]
    + [
        pytest.param(size, budget, marks=pytest.mark.slow)
        for size, budgets in (
            (10_000, (1, 31, 33, 64, 128, 129, 248, 1024, 2048)),
            (1_000_000, (1024,)),
        )
        for budget in budgets
    ],
)
def test_every_budget(num_tools, budget):
    """Budgets of thousands: float32 against float64, and that against closed forms."""
    ask = jax.jit(everything, static_argnums=1)
    for name, make in SCORES.items():
        z = make(np.random.default_rng(0), num_tools).astype(np.float32)
        single = [np.asarray(x, float) for x in ask(jnp.asarray(z), budget)]
        value, entropy, marginals, law = map(np.asarray, ask(jnp.asarray(z.astype(float)), budget))
        assert abs(single[0] - value) <= 1e-6 * max(1, abs(value)), name
        assert abs(single[1] - entropy) <= 1e-5 * max(1, entropy), name
        np.testing.assert_allclose(single[2], marginals, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(single[3], law, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(marginals.sum(), law @ np.arange(budget + 1), rtol=1e-10)
        if name == "equal":
            ratios = np.log((num_tools - np.arange(budget)) / np.arange(1, budget + 1))
            logs = np.concatenate([[0.0], np.cumsum(ratios)])
            np.testing.assert_allclose(value, np.logaddexp.reduce(logs), rtol=1e-12)
            np.testing.assert_allclose(entropy, np.logaddexp.reduce(logs), rtol=1e-11)


@pytest.mark.slow
def test_offsets_and_forced_tools_cost_no_digits():
    """Entropy and divergence in float32, with scores that share a huge offset, with costs, and
    beside tools that a score forces in.
    """
    rng = np.random.default_rng(4)
    z = np.round(rng.normal(size=12) * 64) / 64  # on the grid of float32 at the offset
    costs = np.where(np.arange(12) < 4, 1, 0)
    price = np.ones(12, int)
    for options, budget in (
        ({"costs": costs}, 3),
        ({"costs": price, "exactly": True}, 4),
        ({"exactly": True}, 4),
    ):
        moved = (z + 16384).astype(np.float32)
        found = gibbs.Policy(jnp.asarray(moved), budget=budget, **options)
        right = gibbs.Policy(jnp.asarray(moved.astype(float)), budget=budget, **options)
        assert abs(float(found.entropy()) - float(right.entropy())) < 1e-5
        np.testing.assert_allclose(found.marginals(), right.marginals(), atol=1e-6)
    plain = gibbs.entropy(jnp.asarray(z[2:]), 3)
    for score in (1e4, 1e6, 1e8):
        forced = np.concatenate([[score, score], z[2:]]).astype(np.float32)
        assert abs(float(gibbs.entropy(jnp.asarray(forced), 5)) - float(plain)) < 1e-5


def test_what_is_static_stays_so_under_jit():
    costs = np.array([3, 2, 2, 1, 1])
    z = jnp.zeros(5)

    @jax.jit
    def widths(key):
        return gibbs.sample(key, z, 4, 2, costs=costs), gibbs.Policy(z, budget=7).sample(key, 2)

    assert [a.shape for a in widths(jax.random.key(0))] == [(2, 3), (2, 7)]
    with pytest.raises(ValueError, match="exactly=True needs budget <= M"):
        jax.eval_shape(lambda z: gibbs.log_partition(z, 7, exactly=True), z)
    assert jax.eval_shape(lambda z: gibbs.Policy(z, budget=7), z).expansion is None
