"""Acting, rules of the user, and certificates for every kind of model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subsample_q.models import random_model

from jaxsac import subsample_q as sq
from jaxsac.subsample_q.data.sampling import sample_weights
from jaxsac.subsample_q.exact.local_actions import local_chances
from jaxsac.subsample_q.trust.gap import rollout_losses

KEY = jax.random.key(0)
TYPED_STATE = (0, np.array([[3, 1], [1, 2]], np.int32))
ACTING_STATE = (0, np.array([2, 3], np.int32))


@functools.cache
def plain():
    model = random_model(3)
    return model, sq.solve(model, 2, tol=1e-10).value


@functools.cache
def typed():
    """The controller wants to be where most agents are; one type moves faster than the other."""
    follow = np.tile(0.05 + 0.9 * np.eye(2), (2, 1, 1))
    moves = np.stack([[stay * np.eye(2) + (1 - stay) / 2] * 2 for stay in (0.8, 0.4)])
    paid = np.stack([np.eye(2), 1.5 * np.eye(2)])
    model = sq.TypedModel(follow, moves, np.zeros((2, 2)), paid, [4 / 7, 3 / 7], 0.7)
    return model, sq.solve(model, (2, 1), tol=1e-10).value


@functools.cache
def acting():
    generator = np.random.default_rng(4)
    Pg, Pl = generator.dirichlet(np.ones(2), (2, 2)), generator.dirichlet([1.0, 1.0], (2, 2, 2))
    rg, rl = generator.normal(size=(2, 2)), generator.normal(size=(2, 2, 2))
    model = sq.LocalActionModel(Pg, Pl, rg, rl, 0.7)
    return model, sq.solve(model, 2, tol=1e-10).value


def near(sample, mean):
    sample = np.asarray(sample, float)
    error = np.std(sample, axis=0) / np.sqrt(len(sample)) + 1e-12
    assert np.all(np.abs(np.mean(sample, axis=0) - mean) < 5 * error)


def test_acting_has_the_law_of_fresh_samples():
    _, table = plain()
    counts, keys = np.array([1, 4, 2], np.int32), jax.random.split(KEY, 4000)
    agents = np.repeat(np.arange(3), counts)[::-1].copy()
    chances = np.asarray(sample_weights(jnp.asarray(counts), (2,), jnp.float64))
    many = jax.jit(lambda act, state: jax.vmap(lambda key: act(key, state))(keys), static_argnums=0)
    ways = lambda key, s: table.act(key, s, counts=counts), lambda key, s: table.act(key, s, agents)
    for state in range(3):
        second = chances @ np.asarray(table.policy[state] == 1)
        for act in ways:
            near(many(act, state), second)
    _, typed_table = typed()
    weights = np.asarray(sample_weights(jnp.asarray(TYPED_STATE[1]), (2, 1), jnp.float64))
    drawn = many(lambda key, s: typed_table.act(key, s, counts=TYPED_STATE[1]), 0)
    near(drawn, weights @ np.asarray(typed_table.policy[0]))


@pytest.mark.slow
def test_agents_who_act_choose_by_their_chances():
    _, table = acting()
    counts, keys = ACTING_STATE[1], jax.random.split(KEY, 4000)
    chances = np.asarray(local_chances(table, 0, jnp.asarray(counts)))
    taken = jax.jit(jax.vmap(lambda key: table.act(key, 0, counts=counts)[1]))(keys)
    near(taken, counts[:, None] * chances)
    agents = np.array([1, 0, 1, 1, 0])
    each = jax.jit(jax.vmap(lambda key: table.act(key, 0, agents)[1]))(keys)
    near(np.eye(2)[np.asarray(each)], chances[agents])


def test_what_cannot_be_acted_on():
    _, table = plain()
    for wrong, message in (
        ({}, "give one of them"),
        ({"local_states": [0, 1], "counts": [1, 1, 0]}, "give one of them"),
        ({"local_states": [0, 3]}, "local_states must be < L = 3"),
        ({"local_states": [0]}, "samples k=2 agents, more than the 1"),
        ({"counts": [1, 1]}, r"counts must have shape \[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            table.act(KEY, 0, **wrong)
    with pytest.raises(ValueError, match="global_state must be < G = 3"):
        table.act(KEY, 3, [0, 1])
    with pytest.raises(ValueError, match=r"give counts \[E, L\]"):
        typed()[1].act(KEY, 0, [0, 1])
    assert jax.jit(lambda s: table.act(KEY, s, jnp.array([0, 1])))(7) == -1
    assert jax.jit(lambda s: table.act(KEY, 0, s))(jnp.array([0, 9])) == -1


@pytest.mark.parametrize("kind", ["plain", pytest.param("typed", marks=pytest.mark.slow)])
def test_a_rule_is_evaluated_as_the_table_that_it_copies(kind):
    (model, table), ks = (
        {"plain": plain, "typed": typed}[kind](),
        {"plain": 2, "typed": (2, 1)}[kind],
    )
    n = {"plain": 3, "typed": (2, 2)}[kind]
    policy, sizes = table.policy, table.meaning.ks

    def chances(state, counts):
        weights = sample_weights(counts, sizes, jnp.float64)
        return weights @ jax.nn.one_hot(policy[state], model.num_actions, dtype=jnp.float64)

    def everyone(state, counts):  # what they do where all are seen
        return jnp.argmax(chances(state, counts)).astype(jnp.int32)

    exact = sq.evaluate(model, table, n, tol=1e-10).value
    np.testing.assert_allclose(
        sq.evaluate(model, chances, n, tol=1e-10).value.value, exact.value, atol=1e-9
    )
    state = (0, exact.histograms[2])
    number = int(n) if kind == "plain" else np.array(n)
    for rule in (chances, everyone):
        value = sq.evaluate(model, rule, n, tol=1e-10).value.value[0, 2]
        keys = jax.random.split(KEY, 3000)
        run = jax.jit(jax.vmap(lambda key, r=rule: sq.simulate(key, model, r, number, 60, state)))(
            keys
        )
        near(run.discounted_return, value)
    bounds = sq.certify(KEY, model, chances, number, state, upper=sq.solve(model, ks), horizon=50)
    assert bounds.lower <= exact.value[0, 2] <= bounds.upper


@pytest.mark.parametrize("kind", [pytest.param("typed", marks=pytest.mark.slow), "acting"])
def test_gaps_are_those_of_the_identity_for_every_kind(kind):
    """U_k − the mean return is the mean loss, for whichever table the differences are of."""
    model, table = {"typed": typed, "acting": acting}[kind]()
    state = {"typed": TYPED_STATE, "acting": ACTING_STATE}[kind]
    number = state[1].sum(-1)
    number = number if kind == "typed" else int(number)
    larger = sq.solve(model, (3, 2) if kind == "typed" else 3, tol=1e-10).value
    keys = jax.random.split(jax.random.key(9), 2000)
    run = jax.jit(
        jax.vmap(lambda key: sq.simulate(key, model, table, number, 70, state).discounted_return)
    )
    paid = np.asarray(run(keys))
    for reference in (table, larger):
        losses = rollout_losses(KEY, model, table, reference, number, state, 2000, 70)
        sums, top = np.asarray(losses.sums), float(sq.upper_bound(reference, state))
        assert np.all(sums >= 0) and np.all(sums <= losses.most)
        error = np.hypot(sums.std(), paid.std()) / np.sqrt(2000)
        assert abs(top - sums.mean() - paid.mean()) < 4.5 * error
        assert sums.std() < paid.std()
    if kind == "typed":
        exact = sq.certify(KEY, model, table, tuple(number.tolist()), state, interval="exact")
        assert abs(float(exact.gap) - float(sq.upper_bound(table, state)) + paid.mean()) < 0.2


@pytest.mark.slow
def test_the_ladder_climbs_for_every_kind():
    model, _ = typed()
    ks, bounds = sq.choose_k(KEY, model, (4, 3), 1e-3, TYPED_STATE, interval="exact", tol=1e-9)
    assert ks == (4, 3) and bounds.gap < 1e-5  # everyone is seen
    ks, _ = sq.choose_k(KEY, model, (4, 3), 1e3, TYPED_STATE, num_rollouts=8)
    assert ks == (1, 1)
    model, _ = acting()
    k, bounds = sq.choose_k(KEY, model, 5, 1e3, ACTING_STATE, num_rollouts=8)
    assert k == 1 and bounds.lower <= bounds.upper
    with pytest.raises(ValueError, match="policy must be a QTable"):
        sq.certify(KEY, *acting(), 5, ACTING_STATE, interval="exact")
    with pytest.raises(ValueError, match="table must be of agents who act"):
        sq.simulate(KEY, model, sq.solve(model.base, 2), 5, 2, ACTING_STATE)
    with pytest.raises(ValueError, match="table must be of 2 types"):
        sq.simulate(KEY, typed()[0], acting()[1], np.array([4, 3]), 2, TYPED_STATE)
