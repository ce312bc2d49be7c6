"""Every question to a policy, with its first and second derivatives, against enumeration: for every
option, on scores that are drawn, all equal, zero, integer and tied.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gibbs.oracle import Law

from jaxsac import gibbs

COSTS = np.array([1, 2, 3, 0, 2, 5, 7, 1])
GROUPS = np.array([2, 1, 3])  # counts of three groups, whose scores are the last three of eleven
OPTIONS = {
    "at most": {"budget": 3},
    "exactly": {"budget": 3, "exactly": True},
    "one less than all": {"budget": 7, "at_least": 2},
    "not binding": {"budget": 9},
    "all": {"budget": 8, "exactly": True},
    "costs": {"budget": 6, "costs": COSTS},
    "exact cost": {"budget": 6, "costs": COSTS, "exactly": True},
    "background": {"budget": 3, "background": GROUPS},
    "background, exactly": {"budget": 4, "background": GROUPS, "exactly": True},
    "given": {"budget": 4, "given": np.array([5, -1, 2]), "at_least": 3},
    "given, costs": {"budget": 9, "given": np.array([1]), "costs": COSTS, "at_least": 3},
    "given, background": {"budget": 4, "given": np.array([0]), "background": GROUPS},
    "given, not binding": {"budget": 8, "given": np.array([0])},
}
TEMPERATURE = 0.7


def scores():
    rng = np.random.default_rng(3)
    drawn, other = rng.normal(size=(2, 11))
    ties = np.array([1.0, 1, -1, 1, 2, -1, 2, 0, 1, 1, -1])
    masked = np.where(np.arange(11) % 4 == 3, -np.inf, drawn)
    return np.stack(
        [2 * drawn, np.zeros(11), np.ones(11), ties, np.arange(11.0) - 4, masked]
    ), other


def split(z, options):
    """The policy over z [11]: the last three are the background's, where there is one."""
    options = dict(options)
    if "background" in options:
        options["background"] = z[8:], jnp.asarray(options["background"], jnp.int32)
    return gibbs.Policy(z[:8], temperature=TEMPERATURE, **options)


def law(z, options):
    options = dict(options)
    counts = options.pop("background", None)
    tools = z[:8] if counts is None else np.concatenate([z[:8], np.repeat(z[8:], counts)])
    return Law(tools / TEMPERATURE, **options)


def spread(options):
    """[tools written out, scores]: which score each tool has."""
    counts = options.get("background")
    groups = np.zeros((0, 11)) if counts is None else np.repeat(np.eye(11)[8:], counts, axis=0)
    return np.concatenate([np.eye(11)[:8], groups])


ALWAYS = {("given, not binding", "float64")}  # tests/gibbs/test_values.py has the other laws


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=() if (name, dtype) in ALWAYS else pytest.mark.slow)
        for name in OPTIONS
        for dtype in ("float64", "float32")
    ],
)
def test_every_question(name, dtype):
    options = OPTIONS[name]
    tolerance = 1e-11 if dtype == "float64" else 2e-5
    many, other = scores()
    direction = np.random.default_rng(5).normal(size=11)
    u = np.random.default_rng(6).normal(size=8)

    @jax.jit
    @jax.vmap
    def ask(z, q):
        z, q = z.astype(dtype), q.astype(dtype)

        def questions(z):
            policy = split(z, options)
            own = policy.marginals()
            if "background" in options:
                own = jnp.concatenate(own)
            values = policy.log_partition(), policy.entropy(), split(q, options).kl(policy)
            return jnp.concatenate([jnp.stack([*values, policy.kl(split(q, options))]), own])

        def derivatives(z):
            """One backward pass serves all: a program of this size takes a while to compile."""
            answers, pull = jax.vjp(questions, z)
            return jax.vmap(lambda c: pull(c)[0])(jnp.eye(answers.size, dtype=dtype)), answers

        v = jnp.asarray(direction, dtype)
        first, second, answers = jax.jvp(derivatives, (z,), (v,), has_aux=True)
        policy = split(z, options)
        modes = policy.modes(5)
        return {
            "values": answers[:4],
            "marginals": answers[4:],
            "first": first[:4],
            "second": second[:4],
            "jacobian": first[4:],
            "covariance": policy.covariance(jnp.asarray(u, dtype)),
            "pairs": policy.pair_marginals(jnp.asarray([1, 4])),
            "law": policy.size_law(),
            "size": policy.mean_size(),
            "modes": modes,
            "mode": policy.mode(),
            "log_prob": policy.log_prob(modes[0]),
        }

    pairs = [(z, q) for z in many for q in (other, z)]  # the divergences of equals, too
    found = jax.tree.map(np.asarray, ask(*map(jnp.asarray, zip(*pairs, strict=True))))
    to = spread(options)
    for row, (z, q) in enumerate(pairs):
        at = jax.tree.map(lambda leaf, row=row: leaf[row], found)
        if name == "all" and not np.all(np.isfinite(z[:8])):  # no feasible set
            assert at["values"][0] == -np.inf and at["values"][1] == 0
            assert not np.any(at["marginals"]) and np.all(at["mode"] == gibbs.NO_ACTION)
            continue
        expected, reference = law(z, options), law(q, options)
        finite = np.isfinite(z)
        close = {"rtol": tolerance, "atol": tolerance, "err_msg": f"{name}, {z}"}

        def moment(array, to=to, finite=finite):
            """By the eleven scores, those of −inf aside."""
            return (to.T @ array / TEMPERATURE)[finite]

        kl_of, kl_by = reference.kl(expected), expected.kl(reference)
        np.testing.assert_allclose(at["values"][0], expected.log_partition, **close)
        np.testing.assert_allclose(at["values"][1], expected.entropy, **close)
        np.testing.assert_allclose(at["values"][2], kl_of, **close)
        np.testing.assert_allclose(at["values"][3], kl_by, **close)
        one = np.concatenate([np.arange(8), 8 + np.cumsum(GROUPS) - GROUPS])
        one = one[: at["marginals"].size]
        np.testing.assert_allclose(at["marginals"], expected.marginals[one], **close)
        assert at["marginals"].min() >= 0 and at["marginals"].max() <= 1
        cold, cold_other = (to @ np.where(np.isfinite(x), x, 0) / TEMPERATURE for x in (z, q))
        covariance, skew = expected.covariance, expected.third(cold)
        moved = to @ direction / TEMPERATURE
        np.testing.assert_allclose(at["first"][0][finite], moment(expected.marginals), **close)
        np.testing.assert_allclose(at["second"][0][finite], moment(covariance @ moved), **close)
        np.testing.assert_allclose(at["first"][1][finite], -moment(covariance @ cold), **close)
        np.testing.assert_allclose(
            at["second"][1][finite], -moment((covariance + skew) @ moved), **close
        )
        if finite.all() or q is z:
            np.testing.assert_allclose(
                at["first"][2][finite], moment(expected.marginals - reference.marginals), **close
            )
            np.testing.assert_allclose(at["second"][2][finite], moment(covariance @ moved), **close)
            difference = cold - cold_other
            np.testing.assert_allclose(
                at["first"][3][finite], moment(covariance @ difference), **close
            )
            np.testing.assert_allclose(
                at["second"][3][finite],
                moment((covariance + expected.third(difference)) @ moved),
                **close,
            )
        jacobian = (expected.covariance @ to / TEMPERATURE)[one]
        np.testing.assert_allclose(at["jacobian"][:, finite], jacobian[:, finite], **close)
        np.testing.assert_allclose(at["covariance"], expected.covariance[:8, :8] @ u, **close)
        np.testing.assert_allclose(at["pairs"], expected.pairs[[1, 4], :8], **close)
        sizes = expected.size_law(at["law"].size)
        np.testing.assert_allclose(at["law"], sizes, **close)
        np.testing.assert_allclose(at["size"], expected.marginals.sum(), **close)
        sets, log_probs = at["modes"]
        best = np.sort(expected.log_probabilities)[::-1]
        best = np.append(best[best > -np.inf], np.full(5, -np.inf))[:5]
        np.testing.assert_allclose(log_probs, best, **close)
        np.testing.assert_allclose(at["log_prob"][best > -np.inf], best[best > -np.inf], **close)
        drawn = [frozenset(int(j) for j in one if j >= 0) for one in sets]
        if "background" not in options:
            named = [s for s, p in zip(drawn, best, strict=True) if p > -np.inf]
            assert len(set(named)) == len(named)
            np.testing.assert_allclose([expected.of(s) for s in named], best[: len(named)], **close)
            mode = frozenset(int(j) for j in at["mode"] if j >= 0)
            np.testing.assert_allclose(expected.of(mode), best[0], **close)


def test_budgets_may_be_traced():
    """Rows of different budgets under vmap are the static ones."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(5, 40)), jnp.float32)

    def ask(policy):
        return policy.log_partition(), policy.entropy(), policy.marginals(), policy.mean_size()

    traced = jax.jit(
        jax.vmap(lambda z, k: ask(gibbs.Policy(z, budget=k, max_budget=6, at_least=k // 2)))
    )(z, jnp.asarray([0, 1, 3, 6, 7]))
    for row, budget in enumerate([0, 1, 3, 6]):
        static = ask(gibbs.Policy(z[row], budget=budget, at_least=budget // 2))
        for one, other in zip(traced, static, strict=True):
            np.testing.assert_allclose(one[row], other, rtol=1e-5, atol=1e-5)
    assert np.isnan(traced[0][4]) and np.all(np.isnan(traced[2][4]))


@pytest.mark.parametrize(
    "name",
    [
        "at most",
        "not binding",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("costs", "background")),
    ],
)
def test_a_shift_makes_the_mean_size(name):
    z = jnp.asarray(scores()[0][0])
    options = OPTIONS[name]

    @jax.jit
    def moved(z, target):
        policy = split(z, options)
        return policy.with_mean_size(target)

    for target in (0.3, 2.2):
        found = moved(z, target)
        np.testing.assert_allclose(found.mean_size(), target, rtol=1e-10)
        shift = found.problem.z - split(z, options).problem.z
        np.testing.assert_allclose(shift, shift[0], rtol=1e-9)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=11))

    def entropy(t):
        return moved(z + t * direction, 2.2 + t).entropy()

    slope = (entropy(1e-5) - entropy(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.grad(entropy))(0.0), slope, rtol=1e-6)


@pytest.mark.slow
def test_a_mean_size_that_cannot_be_is_nan():
    z = jnp.asarray(scores()[0][0][:6])
    for options, target in (({"exactly": True}, 2.0), ({}, 3.5), ({"at_least": 2}, 1.0)):
        found = gibbs.Policy(z, budget=3, **options).with_mean_size(target)
        assert np.isnan(found.mean_size()) and np.all(np.isnan(found.marginals()))


@pytest.mark.slow
@pytest.mark.parametrize("costs", [None, np.ones(6, int)], ids=["sizes", "costs"])
def test_more_held_than_the_budget_is_infeasible(costs):
    """Where the budget is traced, so that nobody can say so before."""
    z = jnp.asarray(scores()[0][0][:6])

    @jax.jit
    def ask(budget):
        given = np.array([1, 2])
        policy = gibbs.Policy(z, budget=budget, max_budget=3, given=given, costs=costs)
        sets = policy.sample(jax.random.key(0), 2), policy.mode()[None], policy.modes(2)[0]
        return policy.log_partition(), policy.marginals(), policy.entropy(), sets

    value, marginals, entropy, sets = ask(1)
    assert value == -np.inf and entropy == 0 and not np.any(marginals)
    assert all(np.all(np.asarray(one) == gibbs.NO_ACTION) for one in sets)
    assert np.isfinite(ask(2)[0])


@pytest.mark.slow
def test_a_billion_tools_in_the_background():
    policy = gibbs.Policy(
        jnp.zeros(3), budget=2, background=(jnp.asarray([-20.0]), np.array([10**9]))
    )
    rows = jnp.asarray([[0, 10**9], [1, 2]])
    np.testing.assert_allclose(policy.log_prob(rows[1]) - policy.log_prob(rows[0]), 20)
    assert np.all(np.asarray(policy.sample(jax.random.key(0), 5)) < 10**9 + 3)
