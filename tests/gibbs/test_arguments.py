"""What callers may pass, what they get for mistakes, and the transformations of JAX."""

import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import gibbs

Z = jnp.asarray(np.random.default_rng(0).normal(size=9))

MISTAKES = [
    (lambda: gibbs.log_partition(Z[None], 3), "z must have shape .*jax.vmap"),
    (lambda: gibbs.log_partition(Z.astype(complex), 3), "z must be real"),
    (lambda: gibbs.log_partition(Z, -1), "budget must be ≥ 0"),
    (lambda: gibbs.log_partition(Z, 2.5), "budget must be an integer"),
    (lambda: jax.jit(gibbs.log_partition)(Z, 3), "budget decides array shapes"),
    (lambda: gibbs.log_partition(Z, 10, exactly=True), "exactly=True needs budget <= M"),
    (lambda: gibbs.log_partition(Z, 3, exactly=jnp.asarray(True)), "exactly must be True or False"),
    (lambda: gibbs.log_partition(Z, 3, temperature=0.0), "temperature must be > 0"),
    (lambda: gibbs.log_partition(Z, 3, temperature=jnp.ones(3)), "temperature must be one number"),
    (lambda: gibbs.log_partition(Z, 3, costs=jnp.ones(9)), "costs must hold integers"),
    (lambda: gibbs.log_partition(Z, 3, costs=np.ones(8, int)), "costs must have shape"),
    (lambda: gibbs.log_partition(Z, 3, costs=-np.ones(9, int)), "costs must be >= 0"),
    (
        lambda: gibbs.log_partition(Z, 3, costs=np.ones(9, int), background=(Z, np.ones(9, int))),
        "cannot be combined",
    ),
    (lambda: gibbs.log_partition(Z, 3, background=Z), "background must be a pair"),
    (
        lambda: gibbs.log_partition(Z, 3, background=(Z, np.ones(9))),
        "background counts must hold integers",
    ),
    (
        lambda: gibbs.log_partition(Z, 3, background=(Z, -np.ones(9, int))),
        "background counts must be >= 0",
    ),
    (
        lambda: gibbs.log_partition(Z, 3, background=(Z.astype(jnp.float32), np.ones(9, int))),
        "background scores has dtype",
    ),
    (lambda: gibbs.kl(Z, Z[:4], 3), "policies on the same items"),
    (lambda: gibbs.log_prob(3, Z, 3), "sets must have shape"),
    (lambda: gibbs.log_prob([0.5], Z, 3), "a must hold integers"),
    (lambda: gibbs.log_prob([0, 9], Z, 3), "index .* 0 to 8"),
    (lambda: gibbs.log_prob([0, -2], Z, 3), "index"),
    (lambda: gibbs.log_prob([[0, 1, -1], [4, -1, 4]], Z, 3), r"the tool \[4\] twice"),
    (lambda: gibbs.log_prob([0, 1, 2, 3], Z, 3), "4 tools, more than budget=3"),
    (
        lambda: gibbs.log_prob([0, 1], Z, 3, costs=2 * np.ones(9, int)),
        "total cost 4, more than budget=3",
    ),
    (lambda: gibbs.log_prob(np.array([2**32, 1]), Z, 3), "a must be within"),
    (lambda: gibbs.log_partition(Z, 3, background=(Z[:1], np.array([2**32 + 2]))), "within"),
    (lambda: gibbs.sample(jax.random.key(0), Z, 3, -1), "num_samples must be ≥ 0"),
    (lambda: gibbs.Policy(Z, budget=3, max_budget=2), r"budget must be in \[0, max_budget\]"),
    (lambda: gibbs.Policy(Z, budget=3, at_least=4), r"at_least must be in \[0, budget\]"),
    (lambda: gibbs.Policy(Z, budget=12, at_least=10), "at_least needs at_least <= M"),
    (lambda: gibbs.Policy(Z, budget=3, given=[2, 2]), "given must name different tools"),
    (lambda: gibbs.Policy(Z, budget=3, given=[9]), "given must name different tools"),
    (lambda: gibbs.Policy(Z, budget=1, given=[2, 3]), "given takes 2 of a budget of 1"),
    (lambda: gibbs.Policy(Z, budget=3).modes(0), "count must be ≥ 1"),
    (lambda: gibbs.Policy(Z, budget=3).pair_marginals([9]), "items must be < M = 9"),
    (lambda: gibbs.Policy(Z, budget=3).covariance(Z[:2]), "u must have shape"),
    (
        lambda: gibbs.Policy(Z, budget=3).kl(gibbs.Policy(Z[:4], budget=3)),
        "policies on the same items",
    ),
    (
        lambda: gibbs.Policy(Z, budget=3).kl(gibbs.Policy(Z, budget=3, costs=np.ones(9, int))),
        "policies on the same items",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"), MISTAKES, ids=[message[:30] for _, message in MISTAKES]
)
def test_mistakes_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_traced_sets_that_cannot_be_drawn_have_probability_zero():
    costs = np.ones(9, int)
    bad = jnp.asarray([[0, 0, -1, -1], [0, 9, -1, -1], [0, -2, -1, -1], [0, 1, 2, 3]])
    good = jnp.asarray([[2, 0, 1, -1], [-1, 0, 1, 2], [-1, -1, -1, -1], [0, -1, -1, 8]])
    log_prob = jax.jit(
        lambda a: (
            gibbs.log_prob(a, Z, 3),
            gibbs.log_prob(a, Z, 3, exactly=True),
            gibbs.log_prob(a, Z, 3, costs=costs),
        )
    )
    for values in log_prob(bad):
        assert np.all(np.asarray(values) == -np.inf)
    at_most, exact, priced = (np.asarray(values) for values in log_prob(good))
    assert np.all(np.isfinite(at_most)) and at_most[0] == at_most[1]
    np.testing.assert_allclose(at_most, priced, rtol=1e-13)
    np.testing.assert_array_equal(np.isfinite(exact), [True, True, False, False])


@pytest.mark.parametrize(
    "costs",
    [
        pytest.param(None, id="sizes", marks=pytest.mark.slow),
        pytest.param(np.array([1, 2, 1, 0, 1, 3, 1, 1, 1]), id="costs"),
    ],
)
def test_bad_scores_give_nan_in_their_own_lane(costs):
    def everything(key, z):
        options = {"costs": costs}
        return (
            gibbs.log_partition(z, 3, **options),
            gibbs.marginals(z, 3, **options),
            gibbs.entropy(z, 3, **options),
            gibbs.kl(z, Z, 3, **options),
            gibbs.log_prob(jnp.asarray([1, -1]), z, 3, **options),
            gibbs.mode(z, 3, **options),
            gibbs.sample(key, z, 3, 4, **options),
        )

    compute = jax.jit(jax.vmap(everything))
    keys = jax.random.split(jax.random.key(0), 3)
    clean = compute(keys, jnp.stack([Z, Z, Z]))
    for bad in (jnp.nan, jnp.inf):
        found = compute(keys, jnp.stack([Z, Z.at[6].set(bad), Z]))
        for one, other in zip(found, clean, strict=True):
            np.testing.assert_array_equal(one[jnp.asarray([0, 2])], other[jnp.asarray([0, 2])])
            assert np.all(
                np.isnan(one[1]) if one.dtype == Z.dtype else np.asarray(one[1]) == gibbs.NO_ACTION
            )


def test_traced_numbers_out_of_range_give_nan():
    at = jax.jit(lambda t: gibbs.log_partition(Z, 3, temperature=t))
    assert np.isnan(at(-1.0)) and np.isnan(at(0.0)) and np.isfinite(at(2.0))
    assert np.isnan(
        jax.jit(lambda c: gibbs.log_partition(Z, 3, costs=c))(
            jnp.asarray([1, 1, 1, 1, -1, 1, 1, 1, 1])
        )
    )
    assert np.isnan(
        jax.jit(lambda n: gibbs.log_partition(Z, 3, background=(Z[:1], n)))(jnp.asarray([-1]))
    )


def test_empty_inputs():
    none = jnp.zeros((0,))
    assert gibbs.log_partition(none, 3) == 0 and gibbs.log_partition(none, 0, exactly=True) == 0
    assert gibbs.marginals(none, 3).shape == (0,)
    np.testing.assert_array_equal(gibbs.mode(none, 2), [-1, -1])
    np.testing.assert_array_equal(gibbs.sample(jax.random.key(0), none, 2, 3), np.full((3, 2), -1))
    assert gibbs.log_prob(jnp.asarray([-1]), none, 2) == 0
    np.testing.assert_allclose(
        gibbs.log_partition(none, 2, background=(jnp.zeros(1), np.array([4]))),
        np.log(1 + 4 + 6),
        rtol=1e-14,
    )
    assert gibbs.log_partition(Z, 0, background=(jnp.zeros(1), np.array([4]))) == 0


def test_one_trace_whatever_kind_of_number(monkeypatch):
    counts = []
    from jaxsac.gibbs import _law

    original = _law.expand
    monkeypatch.setattr(_law, "expand", lambda problem: counts.append(1) or original(problem))
    z = jnp.asarray(np.random.default_rng(1).normal(size=7))  # a shape of its own
    for temperature in (
        1,
        2.0,
        np.float32(3),
        np.float64(0.5),
        jnp.asarray(1.5),
        *np.linspace(0.1, 2, 50),
    ):
        gibbs.log_partition(z, 3, temperature=temperature)
    assert len(counts) == 1


def test_vmap_is_a_loop():
    rows = jnp.asarray(np.random.default_rng(2).normal(size=(3, 300)))
    compute = jax.jit(lambda z: (gibbs.log_partition(z, 8), gibbs.marginals(z, 8)))
    loop = [compute(z) for z in rows]
    for together, apart in zip(
        jax.jit(jax.vmap(compute))(rows), zip(*loop, strict=True), strict=True
    ):
        np.testing.assert_allclose(together, np.stack(apart), rtol=1e-13, atol=1e-15)


@pytest.mark.slow
def test_export_round_trips():
    @jax.jit
    def compute(key_data, z):
        a = gibbs.sample(jax.random.wrap_key_data(key_data), z, 3, 6)
        return (
            gibbs.log_partition(z, 3),
            gibbs.marginals(z, 3),
            gibbs.mode(z, 3),
            a,
            gibbs.log_prob(a, z, 3),
        )

    data = jax.random.key_data(jax.random.key(3)), Z
    restored = jax.export.deserialize(bytearray(jax.export.export(compute)(*data).serialize()))
    for found, expected in zip(restored.call(*data), compute(*data), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_without_x64():
    program = (
        "import jax, jax.numpy as jnp; from jaxsac import gibbs\n"
        "z = jnp.linspace(-1, 1, 9); a = gibbs.sample(jax.random.key(0), z, 3, 5)\n"
        "value, gradient = jax.value_and_grad(gibbs.log_partition)(z, 3)\n"
        "assert value.dtype == gradient.dtype == jnp.float32 and a.dtype == jnp.int32\n"
        "assert gibbs.entropy(z, 3, costs=[1] * 9).dtype == jnp.float32\n"
        "assert gibbs.log_prob(a, z, 3).dtype == jnp.float32\n"
        "print(abs(float(gradient.sum() - gibbs.marginals(z, 3).sum())) < 1e-5)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "True"
