"""Learning while the log grows: the same answer as a fit of the whole log, few fits, tools that
enter; dual averaging's closed form.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import control, gibbs
from jaxsac.control.data.log import take
from jaxsac.control.imitation import likelihood, step
from jaxsac.problems.tool_logs import sparse_tool_log

KEY = jax.random.key(0)
T, M, Q, B = 480, 15, 2, 3
TRUTH = sparse_tool_log(
    KEY,
    num_records=T,
    num_actions=M,
    num_features=Q,
    budget=B,
    num_relevant=3,
    mean_size=1.5,
    relevant_share=0.7,
)
LOG = control.Log(TRUTH.contexts, TRUTH.actions)
OPTIONS = {"num_actions": M, "budget": B}


def test_epochs_end_at_the_fit_of_the_whole_log():
    task = control.Task(take(LOG, np.arange(60)), **OPTIONS)
    learner = control.online.start_learner(KEY, task)
    for start in range(60, T, 20):
        learner = control.online.update_learner(learner, take(LOG, np.arange(start, start + 20)))
    assert (
        learner.seen == T and learner.num_fits == 4 and learner.records == T
    )  # at 60, 120, 240, 480
    whole = control.fit(KEY, LOG, lam=learner.lam, tol=1e-6, **OPTIONS).check()
    np.testing.assert_array_equal(learner.policy.support, whole.value.support)
    np.testing.assert_allclose(learner.policy.coef, whole.value.coef, atol=1e-2)
    # one per cent more: a step or two
    more = control.fit(KEY, LOG, lam=learner.lam, state=learner.solution, **OPTIONS)
    assert int(more.stats["num_steps"]) <= 1 < int(whole.stats["num_steps"])
    # and from the solution without them, nothing is compiled and less than half of the work is done
    fewer = control.fit(KEY, take(LOG, np.arange(T - T // 100)), lam=learner.lam, **OPTIONS).check()
    compiled = (
        likelihood.evaluate._cache_size(),
        step.direction._cache_size(),
        step.curvature._cache_size(),
    )
    warm = control.fit(KEY, LOG, lam=learner.lam, state=fewer, **OPTIONS).check()
    assert compiled == (
        likelihood.evaluate._cache_size(),
        step.direction._cache_size(),
        step.curvature._cache_size(),
    )
    assert 2 * int(warm.stats["num_evaluations"]) <= int(whole.stats["num_evaluations"])
    recent = control.online.update_learner(
        learner, take(LOG, np.arange(10)), window=200, force=True, lam=0.05
    )
    assert recent.task.num_records == 200 and recent.lam == pytest.approx(0.05)
    with pytest.raises(ValueError, match="growth"):
        control.online.update_learner(learner, LOG, growth=1.0)


@pytest.mark.slow
def test_a_learner_keeps_its_task():
    """What the first fit was told holds for all later ones."""
    log = LOG._replace(utilities=np.asarray(TRUTH.utilities))
    task = control.Task(take(log, np.arange(200)), M, B, "utility")
    learner = control.online.start_learner(KEY, task, lam=0.05, tol=1e-8)
    later = control.online.update_learner(learner, take(log, np.arange(200, 300)), force=True)
    whole = control.Task(take(log, np.arange(300)), M, B, "utility")
    expected = control.fit(KEY, whole, lam=0.05 * np.sqrt(200 / 300), tol=1e-8).check()
    assert later.task.objective == "utility" and later.policy.meaning == whole.meaning
    np.testing.assert_array_equal(later.policy.support, expected.value.support)
    np.testing.assert_allclose(later.policy.coef, expected.value.coef, atol=1e-4)
    assert not np.any(later.policy.intercept)
    through = jax.jit(lambda learner: learner)(later)
    np.testing.assert_array_equal(
        control.online.update_learner(through, take(log, np.arange(5))).task.num_records, 305
    )


def test_dual_averaging_two_steps_by_hand():
    """The mean gradient, its level lam (log M / t)^½ and the pace step √t, in NumPy; impossible
    records leave NaN.
    """
    at, gradients = control.online.dual_average(M, Q, B), []
    for t, (context, members) in enumerate([([1.0, -2.0], [3, -1]), ([0.5, 1.0], [0, 3])], 1):
        scores = np.asarray(at.coef) @ context + np.asarray(at.intercept)
        pull = np.array(gibbs.marginals(scores, budget=B))
        pull[[j for j in members if j >= 0]] -= 1
        gradients.append(pull[:, None] * np.array([*context, 1.0]))
        at, _ = control.online.dual_average_step(at, context, members, lam=0.1, step=0.7)
        mean = np.mean(gradients, axis=0)
        norms = np.linalg.norm(mean[:, :Q], axis=1)
        shrink = np.maximum(1 - 0.1 * np.sqrt(np.log(M) / t) / norms, 0)
        pace = 0.7 * np.sqrt(t)
        np.testing.assert_allclose(at.coef, -pace * shrink[:, None] * mean[:, :Q], atol=1e-12)
        np.testing.assert_allclose(at.intercept, -pace * mean[:, Q], atol=1e-12)
    for unknown in (M, -7):
        with pytest.raises(ValueError, match="actions"):
            control.online.dual_average_step(at, context, [unknown], lam=0.1, step=0.7)
    step = jax.jit(lambda a, lam: control.online.dual_average_step(at, context, a, lam=lam, step=1))
    for actions, lam in (([M, 0, 1, 2], 0.1), ([0, 1, 2, 3], 0.1), ([0, 1, 2, -1], jnp.nan)):
        after, loss = step(jnp.asarray(actions), lam)
        assert np.isnan(loss) and np.isnan(after.coef).all()


@pytest.mark.slow
def test_exploring_a_full_set_replaces_its_last_tool():
    """At rate 1 every set has one fresh tool, at the first free place or the last of B."""
    intercept = jnp.where(jnp.arange(M) < B, 40.0, -40.0)
    none = jnp.zeros(0, jnp.int32)
    policy = control.SparsePolicy(none, jnp.zeros((0, Q)), intercept, none, None, B)
    explore = jax.vmap(lambda key, rate: control.online.explore(key, policy, jnp.zeros(Q), rate))
    keys, rates = jax.random.split(KEY, 30), jnp.ones(30)
    sets, explored = explore(keys, rates)
    kept = np.asarray([policy.sample(jax.random.split(key, 3)[0], jnp.zeros(Q)) for key in keys])
    assert explored.all() and (np.asarray(sets)[:, B - 1] >= B).all()
    np.testing.assert_array_equal(np.asarray(sets)[:, : B - 1], kept[:, : B - 1])
    assert (np.asarray(explore(keys, jnp.nan * rates)[0]) == -1).all()
    with pytest.raises(ValueError, match="rate must be ≤ 1"):
        control.online.explore(KEY, policy, jnp.zeros(Q), 2.0)


@pytest.mark.slow
def test_exploration_tries_every_tool_outside_the_set():
    policy = control.SparsePolicy(
        jnp.asarray([0], jnp.int32),
        jnp.ones((1, Q)),
        jnp.where(jnp.arange(M) < 2, 3.0, -30.0),
        jnp.asarray([], jnp.int32),
        None,
        B,
    )
    draw = jax.jit(jax.vmap(lambda key: control.online.explore(key, policy, jnp.zeros(Q), 0.5)))
    sets, explored = (np.asarray(x) for x in draw(jax.random.split(KEY, 2000)))
    assert abs(explored.mean() - 0.5) < 4.5 * 0.5 / np.sqrt(2000)
    fresh = sets >= 2
    assert (
        fresh.any(1) == explored
    ).mean() > 0.95  # the others by chance hit a tool that the policy left out
    counts = np.bincount(sets[fresh], minlength=M)[2:]
    assert counts.min() > 0.5 * counts.mean()
    for row in sets[:50]:
        members = row[row >= 0]
        assert members.size == np.unique(members).size


@pytest.mark.slow
def test_dual_averaging_against_its_formula_and_its_regret():
    def losses(weights, intercept):
        scores = jnp.matmul(LOG.contexts, weights.T) + intercept[None, :]
        chosen = jnp.sum(
            jnp.where(
                jnp.asarray(LOG.actions) >= 0,
                jnp.take_along_axis(scores, jnp.maximum(LOG.actions, 0), axis=1),
                0,
            ),
            axis=1,
        )
        return jax.vmap(lambda z: gibbs.log_partition(z, B))(scores) - chosen

    def body(at, record):
        before = at
        at, loss = control.online.dual_average_step(at, *record, lam=0.3, step=1.0)
        return at, (before.coef, before.intercept, loss)

    start = control.online.dual_average(M, Q, B)
    last, (weights, intercepts, loss) = jax.jit(
        lambda s: jax.lax.scan(body, s, (jnp.asarray(LOG.contexts), jnp.asarray(LOG.actions)))
    )(start)
    gradients = jax.jit(jax.vmap(jax.grad(lambda w, b, t: losses(w, b)[t], argnums=(0, 1))))(
        weights, intercepts, jnp.arange(T)
    )
    mean = np.asarray(gradients[0]).mean(0)
    norms, level = np.linalg.norm(mean, axis=1), 0.3 * np.sqrt(np.log(M) / T)
    expected = -np.sqrt(T) * np.maximum(0, 1 - level / norms)[:, None] * mean
    np.testing.assert_allclose(last.coef, expected, atol=1e-9)
    np.testing.assert_allclose(
        last.intercept, -np.sqrt(T) * np.asarray(gradients[1]).mean(0), atol=1e-9
    )
    best = control.fit(KEY, LOG, lam=1e-3, **OPTIONS).value
    dense = np.zeros((M, Q))
    dense[np.asarray(best.support)] = best.coef
    hindsight = np.asarray(losses(jnp.asarray(dense), best.intercept))
    regret = np.cumsum(np.asarray(loss) - hindsight)
    assert regret[-1] / T < 0.5 * regret[T // 8] / (T // 8)  # sublinear
