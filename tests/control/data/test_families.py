"""Families of tools: the fit against proximal gradient steps on the dense problem, the dual norm
against that of `prox`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsac
from jaxsac import control, gibbs, prox
from jaxsac.control.data import families
from jaxsac.prox.norms import dual_tree_norm

T, M, Q, B = 200, 9, 2, 3
LABELS = np.array([0, 0, 0, 1, 1, 1, -1, -1, 1])  # the last tool is used by nobody
SHARE, LAM = 0.6, 0.1


def logged(seed=0):
    random = np.random.default_rng(seed)
    contexts = random.normal(size=(T, Q))
    weights = np.zeros((M, Q))
    weights[:2] = 1.2, -0.6
    actions = np.full((T, B), -1, np.int32)
    for t in range(T):
        chance = 1 / (1 + np.exp(1.5 - contexts[t] @ weights[:-1].T))
        members = np.flatnonzero(random.uniform(size=M - 1) < chance)[:B]
        actions[t, : members.size] = members
    return control.Log(
        contexts,
        actions,
        (weights[np.maximum(actions, 0)] @ contexts[:, :, None])[..., 0].sum(1)
        + random.normal(size=T) / 2,
    )


def dense_objective(log, smoothing=1.0):
    """The smooth part of `fit` with one intercept per tool, by the kernel on all M tools."""
    chosen = np.zeros((T, M))
    rows, slots = np.nonzero(log.actions >= 0)
    chosen[rows, log.actions[rows, slots]] = 1
    prior = chosen.sum(1).mean() / M

    def smooth(theta):
        weights, intercept = theta
        scores = jnp.matmul(jnp.asarray(log.contexts), weights.T) + intercept[None, :]
        value = jnp.mean(
            jax.vmap(lambda z: gibbs.log_partition(z, B))(scores) - jnp.sum(chosen * scores, axis=1)
        )
        return value + smoothing / T * jnp.sum(jax.nn.softplus(intercept) - prior * intercept)

    return smooth


@pytest.mark.slow
def test_the_fit_is_the_minimum_of_the_dense_problem():
    log = logged()
    options = {"num_actions": M, "budget": B, "families": LABELS, "family_share": SHARE}
    found = control.fit(jax.random.key(0), log, lam=LAM, tol=1e-9, **options).check()
    together = families.checked_families(LABELS, SHARE, M)
    assert together is not None
    levels = [
        prox.Level(jaxsac.Groups.equal(num_groups=M, size=Q), 1 - SHARE),
        prox.Level(jaxsac.Groups.from_labels(np.repeat(together.label, Q)), SHARE),
    ]
    smooth, step = dense_objective(log), 1.0

    def penalty(weights):
        return LAM * prox.Penalty(levels=levels).value(weights.reshape(-1))

    @jax.jit
    def minimise(start):
        def body(_, carry):
            theta, before, momentum = carry
            ahead = jax.tree.map(
                lambda a, b: a + (momentum - 1) / (momentum + 2) * (a - b), theta, before
            )
            gradient = jax.grad(smooth)(ahead)
            weights = prox.prox_tree(
                (ahead[0] - step * gradient[0]).reshape(-1), levels, step * LAM
            ).reshape(M, Q)
            return (weights, ahead[1] - step * gradient[1]), theta, momentum + 1

        return jax.lax.fori_loop(0, 3000, body, (start, start, 1.0))[0]

    best = minimise((jnp.zeros((M, Q)), jnp.full(M, -1.0)))
    weights = np.zeros((M, Q))
    weights[np.asarray(found.value.support)] = found.value.coef
    np.testing.assert_allclose(weights, best[0], atol=2e-4)
    objective = float(
        smooth((jnp.asarray(weights), found.value.intercept)) + penalty(jnp.asarray(weights))
    )
    assert float(found.stats["objective"]) == pytest.approx(objective, abs=1e-9)
    least = float(smooth(best) + penalty(best[0]))
    assert objective <= least + 1e-9 and least >= objective - float(found.stats["gap"]) - 1e-12
    assert set(np.asarray(found.value.support).tolist()) <= {
        0,
        1,
        2,
    }  # the other family goes as one
    # At lam_max nothing is kept, a little below something is.
    most = float(control.lam_max(log, **options))
    for factor, kept in ((1.001, False), (0.97, True)):
        support = (
            control.fit(jax.random.key(0), log, lam=factor * most, **options).check().value.support
        )
        assert (support.size > 0) == kept


@pytest.mark.slow
def test_the_dual_norm_against_that_of_the_penalty():
    random = np.random.default_rng(1)
    gradient = random.normal(size=(M, Q))
    gradient[-1] = gradient[-2] * 0.3
    together = families.checked_families(LABELS, SHARE, M)
    assert together is not None
    levels = [
        prox.Level(jaxsac.Groups.equal(num_groups=M, size=Q), 1 - SHARE),
        prox.Level(jaxsac.Groups.from_labels(np.repeat(together.label, Q)), SHARE),
    ]
    norms = np.linalg.norm(gradient, axis=1)
    split = together.of(np.arange(M - 1))  # the last one is unused
    found = split.dual_norm(
        np.stack([norms[:-1], 2 * norms[:-1]]), np.array([norms[-1], 2 * norms[-1]])
    )
    expected = float(dual_tree_norm(jnp.asarray(gradient.reshape(-1)), levels))
    np.testing.assert_allclose(found, [expected, 2 * expected], rtol=1e-12)


def test_the_dual_norm_by_its_definition_and_what_may_enter():
    norms, unused = np.array([0.9, 0.2, 0.1, 0.5, 0.4, 0.3, 0.7, 0.2]), 0.6
    together = families.checked_families(LABELS, SHARE, M)
    assert together is not None
    split = together.of(np.arange(M - 1))
    np.testing.assert_array_equal(
        together.of(np.array([0, 4])).unused, [2, 3, 1]
    )  # the rest are families of one
    (t,) = split.dual_norm(norms, unused)
    full = np.append(norms, unused)

    def left(family, at):
        return (
            np.linalg.norm(np.maximum(full[together.label == family] - at * (1 - SHARE), 0))
            - at * SHARE
        )

    assert max(left(family, t) for family in range(4)) == pytest.approx(0, abs=1e-12)
    assert split.dual_norm(norms[[6]], 0.0, np.array([6]))[0] == pytest.approx(
        0.7
    )  # alone in its family: its own norm
    # Just below t one family opens; an open family lets in each tool above lam (1 - share).
    none = np.zeros(0, int)
    assert not (split.excess(norms, none, 1.01 * t) > 0).any() and not split.unused_enter(
        norms, unused, none, 1.01 * t
    )
    lam = 0.99 * max(t, 0.9)
    entered = split.excess(norms, np.array([1]), lam) > 0
    np.testing.assert_array_equal(entered[:3], norms[:3] > lam * (1 - SHARE))
    sizes, parts = np.array([5.0, 0.0, 13.0]), ([0, 1, 6], [0, 1, 2])
    apart, together = (families.omega(sizes, split.label[part], SHARE) for part in parts)
    assert apart == pytest.approx(5 + 13)
    assert together == pytest.approx((1 - SHARE) * 18 + SHARE * np.sqrt(194))
    assert (
        families.checked_families(np.arange(M), 0.5, M) is None
        and families.checked_families(None, 0.5, M) is None
    )
    for labels, share in ((LABELS[:-1], 0.5), (LABELS.astype(float), 0.5)):
        with pytest.raises(ValueError, match="famil"):
            families.checked_families(labels, share, M)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["imitation", "utility"])
def test_a_family_lends_strength_and_one_tool_each_is_no_family(objective):
    log = logged()
    options = {"num_actions": M, "budget": B, "objective": objective}
    alone = control.fit(jax.random.key(0), log, lam="simulated", **options).check()
    same = control.fit(
        jax.random.key(0), log, lam="simulated", families=np.arange(M), **options
    ).check()
    np.testing.assert_array_equal(alone.value.coef, same.value.coef)
    together = control.fit(
        jax.random.key(0), log, lam="simulated", families=LABELS, **options
    ).check()
    assert {0, 1} <= set(np.asarray(together.value.support).tolist()) <= {0, 1, 2}
    assert float(together.stats["lam"]) >= float(alone.stats["lam"])  # a family's noise adds up
    warm = control.fit(
        jax.random.key(0),
        log,
        lam=float(together.stats["lam"]),
        families=LABELS,
        state=together.state,
        **options,
    ).check()
    assert int(warm.stats["num_steps"]) <= 10  # the first certificate of the utility's loop
