"""The Q-network against exact tables, closed forms and its symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import Status, subsample_q as sq
from jaxsac.problems import subsample_q as problems
from jaxsac.subsample_q import network as networks

MODEL = sq.Model(*problems.mode_tracking(3))
SMALL = networks.Training(batch_size=32, width=16, depth=1)


def continuous():
    """Agents on the line that drift towards a global level in {-1, 0, 1}, which the action
    chooses.
    """
    levels = jnp.array([-1.0, 0.0, 1.0])

    def draw(key, k):
        level, mean, noise = jax.random.split(key, 3)
        return jax.random.choice(level, levels), jax.random.normal(mean) + 0.3 * jax.random.normal(
            noise, (k,)
        )

    return networks.Environment(
        draw=draw,
        move_global=lambda key, x, a: levels[a],
        move_local=lambda key, x, s, a: 0.9 * s + 0.1 * x + 0.1 * jax.random.normal(key),
        reward_global=lambda x, a: jnp.where(levels[a] == x, 0.0, -0.1),
        reward_local=lambda x, s, a: -((s - x) ** 2),
        describe_global=lambda x: x[None],
        describe_local=lambda s: jnp.stack([s, s**2]),
        num_actions=3,
        discount=0.0,
    )


ENVIRONMENT = continuous()


@pytest.fixture(scope="module")
def network():
    return networks.learn_network(
        jax.random.key(0), networks.from_model(MODEL), (2, 4), 5, SMALL
    ).value


@pytest.mark.slow
def test_order_and_absent_agents_do_not_matter_and_counts_are_agents(network):
    one_hot = jnp.eye(3)
    states = jnp.array([0, 2, 2, 1])
    values = network(one_hot[1], one_hot[states], jnp.full(4, 0.25), 4)
    np.testing.assert_allclose(
        network(one_hot[1], one_hot[states[::-1]], jnp.full(4, 0.25), 4), values, atol=1e-13
    )
    absent = jnp.concatenate([one_hot[states], jnp.full((2, 3), 7.0)])
    np.testing.assert_allclose(
        network(one_hot[1], absent, jnp.array([0.25] * 4 + [0.0] * 2), 4), values, atol=1e-13
    )
    table = networks.network_table(network, MODEL, 4)
    row = int(np.flatnonzero((np.asarray(table.histograms) == [1, 1, 2]).all(axis=1))[0])
    np.testing.assert_allclose(table.q[1, row], values, atol=1e-13)


def test_without_a_future_it_regresses_the_mean_reward_of_any_number_of_agents():
    """Also of a number that it never saw; and another run goes on where one ended."""
    solution = networks.learn_network(jax.random.key(1), ENVIRONMENT, (2, 8), 1500, SMALL)
    assert solution.stats["loss"].shape == (1500,) and solution.status == Status.MAX_STEPS

    def error(key):
        x, s = ENVIRONMENT.draw(key, 4)
        exact = jnp.stack([ENVIRONMENT.reward_global(x, a) for a in range(3)]) - jnp.mean(
            (s - x) ** 2
        )
        return solution.value(
            x[None], jax.vmap(ENVIRONMENT.describe_local)(s), jnp.full(4, 0.25), 4
        ) - exact, exact

    errors, exact = jax.vmap(error)(jax.random.split(jax.random.key(2), 1000))
    assert np.std(errors) < 0.1 * np.std(exact)
    more = networks.learn_network(jax.random.key(3), ENVIRONMENT, (2, 8), 20, SMALL, state=solution)
    assert np.mean(more.stats["loss"]) < 2 * np.mean(solution.stats["loss"][-100:])
    broken = jax.tree.map(
        lambda leaf: leaf * jnp.nan if leaf.dtype == jnp.float64 else leaf, solution.state
    )
    assert (
        networks.learn_network(
            jax.random.key(3), ENVIRONMENT, (2, 8), 20, SMALL, state=broken
        ).status
        == Status.NONFINITE
    )


@pytest.mark.slow
def test_a_batch_of_keys_is_a_loop_and_bad_input_is_named():
    run = jax.jit(
        lambda key: networks.learn_network(key, ENVIRONMENT, (2, 8), 20, SMALL).stats["loss"]
    )
    keys = jax.random.split(jax.random.key(3), 2)
    np.testing.assert_allclose(
        jax.vmap(run)(keys), jnp.stack([run(key) for key in keys]), rtol=1e-6
    )
    with pytest.raises(ValueError, match="ks is empty"):
        networks.learn_network(jax.random.key(0), ENVIRONMENT, (), 2)
    with pytest.raises(ValueError, match="discount must lie in"):
        networks.learn_network(jax.random.key(0), ENVIRONMENT._replace(discount=1.0), (2,), 2)


@pytest.mark.slow
def test_one_network_for_several_k_is_near_the_exact_tables():
    """Within 15 % of the range of values, at a k it never saw too; and its policy, executed on 8
    agents, loses on average less than 2 % of it. (Not at most: there are many ties, and it breaks
    them its own way.)
    """
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), MODEL)
    solution = networks.learn_network(
        jax.random.key(0),
        networks.from_model(model),
        (2, 4, 8),
        4000,
        networks.Training(batch_size=64, num_samples=4, width=32),
    )
    for k in (2, 4, 6):
        exact = sq.solve(model, k).check().value
        table = networks.network_table(solution.value, model, k)
        assert np.max(np.abs(table.q - exact.q)) < 0.15 * np.ptp(exact.value)
        best, found = (
            sq.evaluate(model, policy, 8).check().value.value for policy in (exact, table)
        )
        assert np.mean(best - found) < 0.02 * np.ptp(exact.value)


@pytest.mark.slow
def test_the_table_of_a_network_is_executed_like_any_other(network):
    value = sq.evaluate(MODEL, networks.network_table(network, MODEL, 2), 3).check().value.value
    assert np.all(value <= sq.solve(MODEL, 3).check().value.bounds.upper + 1e-9)


@pytest.mark.slow
def test_a_network_acts_and_runs_on_agents_of_a_line():
    """The continuous environment: near its best rule, which is to follow the mean; and the same
    network on a model agrees with its table.
    """
    fitted = networks.learn_network(
        jax.random.key(1), ENVIRONMENT._replace(discount=0.5), (4,), 400, SMALL
    )
    agents = 0.9 + 0.1 * jax.random.normal(jax.random.key(2), (30,))
    start = (jnp.asarray(0.0), agents)
    assert networks.act(jax.random.key(3), fitted, ENVIRONMENT, *start, 4) == 2

    def rule(key, state, locals_):
        return jnp.argmin(jnp.abs(jnp.mean(locals_) - jnp.array([-1.0, 0.0, 1.0]))).astype(
            jnp.int32
        )

    def paid(policy, k):
        run = jax.jit(lambda key: networks.simulate(key, ENVIRONMENT, policy, 20, start, k=k))
        return run(jax.random.key(4))

    learnt, ruled = paid(fitted, 4), paid(rule, None)
    assert float(jnp.sum(learnt.rewards)) > float(jnp.sum(ruled.rewards)) - 0.5
    np.testing.assert_allclose(learnt.rewards[0], -jnp.mean(agents**2) - 0.1, atol=1e-12)
    with pytest.raises(ValueError, match="say how many agents"):
        networks.simulate(jax.random.key(0), ENVIRONMENT, fitted, 2, start)
    with pytest.raises(ValueError, match="k=31 exceeds the 30"):
        networks.act(jax.random.key(3), fitted, ENVIRONMENT, *start, 31)
