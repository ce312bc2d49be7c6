"""Local actions, agent types and lumped kernels, against joint problems that are written out agent
by agent.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subsample_q.models import random_arrays

from jaxsac import Status, subsample_q as sq


def local_action_arrays(seed, G=2, A=2, B=2, L=2):
    generator = np.random.default_rng(seed)
    return (
        generator.dirichlet(np.ones(G), (G, A)),
        generator.dirichlet(np.ones(L), (G, B, L)),
        generator.normal(size=(G, A)),
        generator.normal(size=(G, B, L)),
        0.8,
    )


def joint_value(Pg, Pl, rg, rl, discount, n, coupling=lambda g, shares: 0.0, sweeps=150):
    """Value iteration over (s_g, s_1..s_n) and all joint actions (a, b_1..b_n), agent by agent:
    {state: value}.
    """
    G, B, L, _ = Pl.shape
    A = Pg.shape[1]
    locals_ = list(itertools.product(range(L), repeat=n))
    value = np.zeros((G, len(locals_)))
    choices = []
    for g, s in itertools.product(range(G), range(len(locals_))):
        for bs in itertools.product(range(B), repeat=n):
            reward = np.mean([rl[g, b, i] for b, i in zip(bs, locals_[s], strict=True)])
            shares = np.zeros((L, B))
            for b, i in zip(bs, locals_[s], strict=True):
                shares[i, b] += 1 / n
            law = np.array(
                [
                    np.prod([Pl[g, b, i, j] for b, i, j in zip(bs, locals_[s], after, strict=True)])
                    for after in locals_
                ]
            )
            choices += [
                (g, s, rg[g, a] + reward + coupling(g, shares), Pg[g, a], law) for a in range(A)
            ]
    where = np.array([c[0] * len(locals_) + c[1] for c in choices])
    rewards = np.array([c[2] for c in choices])
    global_laws, laws = np.stack([c[3] for c in choices]), np.stack([c[4] for c in choices])
    for _ in range(sweeps):
        q = rewards + discount * np.einsum("cg,cs,gs->c", global_laws, laws, value)
        value = np.full(G * len(locals_), -np.inf)
        np.maximum.at(value, where, q)
        value = value.reshape(G, -1)
    return {(g, s): value[g, i] for g in range(G) for i, s in enumerate(locals_)}


@pytest.mark.parametrize("coupled", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_local_actions_solve_the_joint_problem(coupled):
    n, arrays = 3, local_action_arrays(0)
    coupling = (
        (lambda g, shares: shares[0, 1] ** 2 - jnp.where(g == 0, 1.0, 3.0) * shares[1, 0])
        if coupled
        else None
    )
    model = sq.LocalActionModel(*arrays, share_reward=coupling)
    solution = sq.solve(model, n, tol=1e-10).check()
    table, space = solution.value, sq.HistogramSpace(n, 2)
    truth = joint_value(*arrays, n, *([coupling] if coupled else []))
    for (g, states), value in truth.items():
        h = int(space.index(np.bincount(states, minlength=2).astype(np.int32)))
        np.testing.assert_allclose(table.value[g, h], value, atol=1e-7)
        assert np.all(np.asarray(table.assignment[g, h]).sum(-1) == space.table[h])
    np.testing.assert_array_equal(table.assignments.sum((1, 2)), n)


@pytest.mark.slow
def test_local_actions_in_float32_in_batches_and_without_a_choice():
    arrays = local_action_arrays(0)
    nothing = sq.LocalActionModel(*arrays, allowed=lambda g, z: False)
    assert sq.solve(nothing, 2).status == Status.NONFINITE
    single = sq.LocalActionModel(*(np.float32(array) for array in arrays))
    exact = sq.solve(sq.LocalActionModel(*arrays), 3).check().value
    rough = sq.solve(single, 3).check().value
    assert rough.q.dtype == np.float32
    np.testing.assert_allclose(rough.q, exact.q, atol=1e-3)
    batch = jax.vmap(
        lambda discount: sq.solve(sq.LocalActionModel(*arrays[:4], discount), 3).value.q
    )(jnp.array([0.5, 0.8]))
    np.testing.assert_allclose(batch[1], exact.q, atol=1e-5)
    types = [np.float32(array) for array in typed_arrays(3)]
    shares = np.float32([0.5, 0.5])
    one = jax.jit(
        jax.vmap(
            lambda discount: sq.solve(sq.TypedModel(*types, shares, discount), (2, 2)).value.value
        )
    )(jnp.float32([0.5, 0.8]))
    np.testing.assert_allclose(
        one[1], sq.solve(sq.TypedModel(*types, shares, 0.8), (2, 2)).check().value.value, atol=1e-3
    )


@pytest.mark.slow
def test_local_actions_bound_execute_and_differentiate():
    n = 4
    for seed in range(20):
        model = sq.LocalActionModel(*local_action_arrays(seed))
        best = sq.solve(model, n, tol=1e-9).check().value
        uppers = [
            sq.lift(sq.solve(model, k, tol=1e-9).check().value.bounds.upper, 2, n)
            for k in (1, 2, 3)
        ]
        for upper, lower in zip(uppers, [*uppers[1:], best.value], strict=True):
            assert np.all(upper >= lower - 1e-7)
    table, start = best, (0, np.array([1, 3], np.int32))
    keys = jax.random.split(jax.random.key(0), 4000)

    def returns(table):
        return jax.jit(
            jax.vmap(lambda key: sq.simulate(key, model, table, n, 40, start).discounted_return)
        )(keys)

    h = int(sq.HistogramSpace(n, 2).index(start[1]))
    paid = np.asarray(
        returns(sq.solve(model, 1).check().value)
    )  # with k = 1 every agent follows its own table
    assert paid.mean() <= best.value[0, h] + 4 * paid.std() / np.sqrt(len(paid)) + 0.8**40 * 20
    assert (
        np.asarray(sq.simulate(keys[0], model, table, n, 9, start).counts).sum(-1).tolist()
        == [n] * 9
    )
    slopes = jax.grad(lambda m: jnp.sum(sq.solve(m, 3, tol=1e-11).value.value))(model)
    generator = np.random.default_rng(0)
    for name in ("local_transition", "local_reward", "global_transition", "global_reward"):
        old = getattr(model.base, name)
        move = jnp.asarray(generator.normal(size=old.shape))
        move = move - move.mean(-1, keepdims=True)

        def value(step, name=name, old=old, move=move):
            shifted = eqx.tree_at(lambda m: getattr(m.base, name), model, old + step * move)
            return jnp.sum(sq.solve(shifted, 3, tol=1e-11).value.value)

        central = (value(1e-6) - value(-1e-6)) / 2e-6
        np.testing.assert_allclose(
            jnp.sum(getattr(slopes.base, name) * move), central, rtol=1e-5, atol=1e-7
        )


def test_allowed_restricts_the_choice_to_a_known_schedule():
    """One of k machines is served in each step; L = 1 leaves the reward of serving one, whatever
    else could be earned.
    """
    ones = np.ones((1, 2, 1, 1))
    model = sq.LocalActionModel(
        np.ones((1, 1, 1)),
        ones,
        np.zeros((1, 1)),
        np.array([[[0.0], [5.0]]]),
        0.5,
        allowed=lambda g, z: z[0, 1] == 1,
    )
    solution = sq.solve(model, 4).check()
    np.testing.assert_allclose(solution.value.value, 5 / 4 / 0.5, rtol=1e-5)
    with pytest.raises(ValueError, match="allowed restricts joint assignments"):
        sq.simulate(jax.random.key(0), model, solution.value, 4, 2, (0, np.array([4])))
    with pytest.raises(ValueError, match=r"local_reward must have shape \[2, 2, 2\], got \[2, 2\]"):
        sq.LocalActionModel(*local_action_arrays(0)[:3], np.zeros((2, 2)), 0.8)
    with pytest.raises(ValueError, match=r"k=12 agents .* k=\d+ fits"):
        sq.solve(sq.LocalActionModel(*local_action_arrays(0, 2, 2, 3, 4)), 12)


def typed_arrays(seed, E=2, G=2, A=2, L=2):
    generator = np.random.default_rng(seed)
    Pg, _, rg, _ = random_arrays(seed, G, A, L)
    return Pg, generator.dirichlet(np.ones(L), (E, G, L)), rg, generator.normal(size=(E, G, L))


def test_types_solve_the_problem_of_one_histogram_over_type_and_state():
    """Types written as parts of the local state that never change: the block-diagonal model, solved
    by the plain solver.
    """
    (Pg, Pl, rg, rl), ks = typed_arrays(3), (2, 1)
    model = sq.TypedModel(Pg, Pl, rg, rl, np.array(ks) / 3, 0.8)
    solution = sq.solve(model, ks, tol=1e-9).check()
    assert 0 < solution.stats["operator_error"] < 1e-14
    table = solution.value
    blocks = np.zeros((2, 4, 4))
    blocks[:, :2, :2], blocks[:, 2:, 2:] = Pl
    plain = (
        sq.solve(sq.Model(Pg, blocks, rg, np.concatenate(list(rl), axis=-1), 0.8), 3, tol=1e-9)
        .check()
        .value
    )
    rows = [int(sq.HistogramSpace(3, 4).index(h.reshape(-1))) for h in np.asarray(table.histograms)]
    np.testing.assert_allclose(table.q, plain.q[:, np.array(rows)], atol=1e-7)
    np.testing.assert_allclose(
        sq.upper_bound(table, (1, table.histograms[4])), table.value[1, 4], atol=1e-6
    )
    with pytest.raises(ValueError, match="shares must sum to one"):
        sq.TypedModel(Pg, Pl, rg, rl, np.array([0.5, 0.6]), 0.8)
    with pytest.raises(ValueError, match="one number for each of the 2 types"):
        sq.solve(model, (1,))
    with pytest.raises(ValueError, match=r"samples k=\(2, 1\) agents, more than"):
        sq.simulate(jax.random.key(0), model, table, (1, 1), 2, (0, np.array([[1, 0], [1, 0]])))


@pytest.mark.slow
def test_types_bound_execute_and_differentiate():
    n, start = (4, 2), (0, np.array([[3, 1], [0, 2]], np.int32))
    for seed in range(10):
        Pg, Pl, rg, rl = typed_arrays(seed)
        model = sq.TypedModel(Pg, Pl, rg, rl, np.array(n) / 6, 0.8)
        best = sq.upper_bound(sq.solve(model, n, tol=1e-9).check().value, start)
        uppers = [
            float(sq.upper_bound(sq.solve(model, ks, tol=1e-9).check().value, start))
            for ks in ((1, 1), (2, 1), (3, 2))
        ]
        assert (
            uppers[0] >= uppers[1] - 1e-7
            and uppers[1] >= uppers[2] - 1e-7
            and uppers[2] >= best - 1e-7
        )
    full = sq.solve(model, n, tol=1e-9).check().value
    keys = jax.random.split(jax.random.key(0), 4000)
    paid = np.asarray(
        jax.jit(
            jax.vmap(lambda key: sq.simulate(key, model, full, n, 60, start).discounted_return)
        )(keys)
    )  # nothing is lost where everybody is sampled
    assert abs(paid.mean() - float(best)) < 5 * paid.std() / np.sqrt(len(paid))
    plans = [
        sq.plan(model.of_type(e), 3, backend=backend)
        for e, backend in enumerate(("thinning", "dense"))
    ]
    assert sq.solve(model, (3, 3), plan=plans).check().stats["operator_error"] < 1e-14
    slope = jax.grad(
        lambda P: jnp.sum(
            sq.solve(
                sq.TypedModel(Pg, P, rg, rl, model.shares, 0.8), (3, 3), plan=plans, tol=1e-11
            ).value.value
        )
    )(model.local_transition)
    move = np.random.default_rng(0).normal(size=slope.shape)
    move -= move.mean(-1, keepdims=True)
    ends = [
        jnp.sum(
            sq.solve(
                sq.TypedModel(Pg, Pl + h * move, rg, rl, model.shares, 0.8),
                (3, 3),
                plan=plans,
                tol=1e-11,
            ).value.value
        )
        for h in (1e-6, -1e-6)
    ]
    np.testing.assert_allclose(jnp.sum(slope * move), (ends[0] - ends[1]) / 2e-6, rtol=1e-5)


def adversary_model(seed, replies=2):
    """G = A = L = 2; a type of agents that nobody drives, and one that an adversary moves."""
    generator, G, A, L = np.random.default_rng(seed), 2, 2, 2
    own, moved = (generator.dirichlet(np.ones(L), (G, n, L)) for n in (1, A * replies))
    local = np.stack([np.repeat(own, A * replies, axis=1), moved])  # [E, G, A R, L, L]
    earned = np.stack([np.repeat(generator.normal(size=(G, 1, L)), A * replies, axis=1)] * 2)
    return sq.TypedModel(
        np.repeat(generator.dirichlet(np.ones(G), (G, A)), replies, axis=1),
        local,
        np.repeat(generator.normal(size=(G, A)), replies, axis=1),
        earned * np.array([1.0, 2.0])[:, None, None, None],
        np.array([0.5, 0.5]),
        0.8,
    )


def test_an_adversary_who_replies_is_the_joint_game_agent_by_agent():
    """max_a min_b by value iteration over (s_g, s_1, s_2, s_3, s_4), two agents of each type; and
    what the two policies are worth against each other is that value.
    """
    model, R, n, sweeps = adversary_model(0), 2, 2, 200
    Pg, Pl, rg, rl = (np.asarray(a) for a in jax.tree.leaves(model)[:4])
    joint = list(itertools.product(range(2), repeat=4))
    laws = np.ones((2, 4, 16, 16))
    for (row, now), (column, after) in itertools.product(enumerate(joint), repeat=2):
        for agent, (i, j) in enumerate(zip(now, after, strict=True)):
            laws[:, :, row, column] *= Pl[agent // 2, :, :, i, j]
    earned = sum(rl[agent // 2][:, :, [s[agent] for s in joint]] / 4 for agent in range(4))
    value = np.zeros((2, 16))
    for _ in range(sweeps):
        ahead = np.einsum("gac,gasj,cj->gas", Pg, laws, value)
        q = rg[..., None] + earned + 0.8 * ahead
        value = q.reshape(2, 2, R, 16).min(2).max(1)
    table = sq.solve(model, (n, n), tol=1e-10, replies=R).check().value
    np.testing.assert_allclose(table.value, brute := by_counts(value, joint, table), atol=1e-8)
    played = sq.evaluate(model, table, (n, n), tol=1e-10).check().value
    np.testing.assert_allclose(played.value, brute, atol=1e-8)
    assert np.all(table.value < sq.solve(model, (n, n)).value.value - 1e-3)  # who helps, not harms
    with pytest.raises(ValueError, match="holds no bounds on the best value"):
        sq.upper_bound(table, (0, np.full((2, 2), 1)))
    with pytest.raises(ValueError, match="replies=3 needs a model of pairs"):
        sq.solve(model, (n, n), replies=3)
    state = (0, np.array([[3, 1], [2, 2]]))
    run = sq.simulate(jax.random.key(0), model, table, (4, 4), 5, state)
    shares = np.asarray(run.counts) / 4
    paid = [
        rg[g, a] + 0.5 * np.sum(rl[:, g, a] * share)
        for g, a, share in zip(run.global_states, run.actions, shares, strict=True)
    ]
    np.testing.assert_allclose(run.rewards, paid)


def by_counts(value, joint, table):
    """The value of a joint state as that of its histograms, [G, N]."""
    where = {tuple(np.ravel(h)): row for row, h in enumerate(np.asarray(table.histograms))}
    found = np.zeros((2, len(where)))
    for states, column in zip(joint, value.T, strict=True):
        counts = [np.bincount(part, minlength=2) for part in (states[:2], states[2:])]
        found[:, where[tuple(np.ravel(counts))]] = column
    return found
