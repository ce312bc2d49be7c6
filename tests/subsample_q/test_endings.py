"""Actions that are not allowed, and states where it ends, against joint problems that are written
out agent by agent.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subsample_q.models import random_arrays

from jaxsac import Status, subsample_q as sq
from jaxsac.subsample_q.exact.iteration.criterion import expected_time

KEY = jax.random.key(0)
ALLOWED = np.array([[True, False], [True, True], [False, True], [True, True]])
TERMINAL = np.array([False, False, False, True])


def ending_arrays(seed, drives=False):
    """Four global states, of which the last ends it: 0, 1 and 2 reach it with a chance ≥ .1."""
    generator = np.random.default_rng(seed)
    Pg, Pl, rg, rl = random_arrays(seed, G=4, A=2, L=2)
    Pg = 0.9 * Pg + 0.1 * TERMINAL
    if drives:
        Pl, rl = generator.dirichlet(np.ones(2), (4, 2, 2)), generator.normal(size=(4, 2, 2))
    return Pg, Pl, rg, rl


def joint_value(arrays, discount, n, allowed=ALLOWED, terminal=TERMINAL, sweeps=600):
    """Value iteration over (s_g, s_1..s_n): {state: value}; the choice is over what is allowed."""
    Pg, Pl, rg, rl = arrays
    G, A, L = *rg.shape, rl.shape[-1]
    Pl = Pl if Pl.ndim == 4 else np.repeat(Pl[:, None], A, axis=1)
    rl = rl if rl.ndim == 3 else np.repeat(rl[:, None], A, axis=1)
    states = np.array(list(itertools.product(range(L), repeat=n)))
    laws = np.ones((G, A, len(states), len(states)))
    for i in range(n):
        laws *= Pl[:, :, states[:, i]][..., states[:, i]]
    reward = rg[:, :, None] + rl[:, :, states].mean(-1)
    value = np.zeros((G, len(states)))
    for _ in range(sweeps):
        ahead = np.einsum("gac,gaxy,cy->gax", Pg, laws, value)
        q = np.where(allowed[:, :, None], reward + discount * ahead, -np.inf)
        value = np.where(terminal[:, None], 0, q.max(axis=1))
    return {(g, tuple(s)): value[g, i] for g in range(G) for i, s in enumerate(states)}


def spoilt(arrays, terminal=TERMINAL):
    """The same with numbers that would win, or be no numbers, where nothing may be chosen."""
    Pg, Pl, rg, rl = arrays
    idle = ~ALLOWED | terminal[:, None]
    rg = np.where(idle, np.array([1e9, np.nan]), rg)
    return Pg, Pl, rg, np.where(idle[..., None], 1e9, rl) if rl.ndim == 3 else rl


@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize("drives", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_not_allowed_and_where_it_ends(discount, drives):
    arrays = ending_arrays(0, drives)
    model = sq.Model(*spoilt(arrays), discount, allowed=ALLOWED, terminal=TERMINAL)
    for n in (1, 4):
        solution = sq.solve(model, n, tol=1e-11).check()
        table, space = solution.value, sq.HistogramSpace(n, 2)
        error = float(solution.stats["error"] + solution.stats["rounding"])
        assert error <= 1e-11 * float(solution.stats["scale"]) < 1e-8
        for (g, states), value in joint_value(arrays, discount, n).items():
            h = int(space.index(np.bincount(states, minlength=2).astype(np.int32)))
            np.testing.assert_allclose(table.value[g, h], value, atol=1e-9)
            assert table.bounds.lower[g, h] - 1e-12 <= value <= table.bounds.upper[g, h] + 1e-12
            assert ALLOWED[g, table.policy[g, h]]
        assert np.all(np.isneginf(np.asarray(table.q)[0, :, 1]))


def test_the_bounds_of_an_unfinished_solve_hold_where_it_ends():
    arrays = ending_arrays(1)
    model = sq.Model(*arrays, 1.0, allowed=ALLOWED, terminal=TERMINAL)
    truth = joint_value(arrays, 1.0, 2)
    for steps in range(4):
        bounds = sq.solve(model, 2, max_steps=steps).value.bounds
        for (g, states), value in truth.items():
            h = int(sq.HistogramSpace(2, 2).index(np.bincount(states, minlength=2)))
            assert bounds.lower[g, h] <= value <= bounds.upper[g, h]
    time = np.asarray(expected_time(model))
    exact = np.zeros(4)
    for _ in range(1000):
        ahead = np.where(ALLOWED, arrays[0] @ exact, 0).max(axis=1)
        exact = np.where(TERMINAL, 0, 1 + ahead)
    assert np.all(time >= exact) and np.all(time <= 1.02 * exact + 1e-12)


@pytest.mark.slow
def test_every_kind_ends():
    """Types, and agents who act with actions of their own that are not allowed."""
    arrays = ending_arrays(2)
    Pg, Pl, rg, rl = arrays
    marks = {"allowed": ALLOWED, "terminal": TERMINAL}
    plain = sq.solve(sq.Model(*arrays, 1.0, **marks), 3, tol=1e-10).check().value
    alike = sq.TypedModel(
        Pg, np.stack([Pl, Pl]), rg, np.stack([rl, rl]), [1 / 3, 2 / 3], 1.0, **marks
    )
    typed = sq.solve(alike, (1, 2), tol=1e-10).check().value
    for row, counts in enumerate(np.asarray(typed.histograms)):
        h = int(sq.HistogramSpace(3, 2).index(counts.sum(0)))
        np.testing.assert_allclose(typed.value[:, row], plain.value[:, h], atol=1e-8)
    # local actions: the second one is never there, so that the first one alone is left
    Pb, rb = np.stack([Pl, 0 * Pl + 0.5], axis=1), np.stack([rl, 0 * rl + 100], axis=1)
    only = np.tile(np.array([True, False]), (4, 2, 1))
    acting = sq.LocalActionModel(Pg, Pb, rg, rb, 1.0, None, only, terminal=TERMINAL)
    found = sq.solve(acting, 3, tol=1e-10).check().value
    free = sq.Model(*arrays, 1.0, terminal=TERMINAL)
    np.testing.assert_allclose(
        found.value, sq.solve(free, 3, tol=1e-10).check().value.value, atol=1e-8
    )
    assert np.all(np.asarray(found.assignment)[..., 1] == 0)
    run = sq.simulate(KEY, acting, found, 7, 50, (0, [3, 4]))
    assert np.all(np.asarray(run.local_actions)[..., 1] == 0)


def test_a_run_ends_and_pays_no_more():
    model = sq.Model(*ending_arrays(3), 1.0, allowed=ALLOWED, terminal=TERMINAL)
    table, n, state = sq.solve(model, 2, tol=1e-10).value, 4, (0, np.array([1, 3], np.int32))
    runs = jax.jit(jax.vmap(lambda key: sq.simulate(key, model, table, n, 300, state)))(
        jax.random.split(KEY, 2000)
    )
    ended = np.asarray(runs.global_states) == 3
    assert np.all(ended[:, -1]) and np.all(np.asarray(runs.rewards)[ended] == 0)
    exact = sq.evaluate(model, table, n, tol=1e-10).check().value
    value = exact.value[0, int(sq.HistogramSpace(n, 2).index(state[1]))]
    paid = np.asarray(runs.discounted_return)
    assert abs(paid.mean() - value) < 4 * paid.std() / np.sqrt(len(paid))
    for interval in ("normal", "bounded"):
        bounds = sq.certify(KEY, model, table, n, state, interval=interval)
        assert bounds.lower - 1e-8 <= value <= bounds.upper + 1e-8
    assert sq.certify(KEY, model, table, n, state, interval="exact").gap <= bounds.gap + 1e-5


def test_gradients_where_it_ends():
    arrays = ending_arrays(4)
    model = sq.Model(*arrays, 1.0, allowed=ALLOWED, terminal=TERMINAL)

    def value(step, move):
        reward = model.global_reward + step * move
        changed = dataclasses.replace(model, global_reward=reward)
        return jnp.sum(sq.solve(changed, 2, tol=1e-12).value.value)

    move = np.random.default_rng(0).normal(size=(4, 2))
    slope = jax.jit(jax.grad(value))(0.0, move)
    central = (value(1e-6, move) - value(-1e-6, move)) / 2e-6
    np.testing.assert_allclose(slope, central, rtol=1e-6)


def test_penalties_no_longer_need_to_be_made_up():
    """What is not allowed is in no scale: the tolerance is that of the model without it."""
    Pg, Pl, rg, rl = ending_arrays(5)
    arrays = spoilt((Pg, Pl, rg, rl), np.ones(4) < 0)
    masked = sq.solve(sq.Model(*arrays, 0.9, allowed=ALLOWED), 2)
    rewards = np.where(ALLOWED, rg, rg[:, ::-1])  # the other action again
    Pg = np.where(ALLOWED[..., None], Pg, Pg[:, ::-1])
    doubled = sq.solve(sq.Model(Pg, Pl, rewards, rl, 0.9), 2)
    np.testing.assert_allclose(masked.stats["scale"], doubled.stats["scale"], rtol=1e-12)
    np.testing.assert_allclose(masked.value.value, doubled.value.value, atol=1e-5)


def test_what_never_ends_or_allows_nothing_is_refused():
    arrays = ending_arrays(0)
    stuck = arrays[0].copy()
    stuck[[0, 1], 0] = [0.5, 0.5, 0, 0]
    with pytest.raises(ValueError, match=r"never leaves the global states \[0, 1\]"):
        sq.Model(stuck, *arrays[1:], 1.0, terminal=TERMINAL)
    only = ALLOWED.copy()
    only[0] = [False, True]  # then whatever is done leaves {0, 1}
    assert sq.Model(stuck, *arrays[1:], 1.0, allowed=only, terminal=TERMINAL).terminal is not None
    assert sq.Model(stuck, *arrays[1:], 0.9, terminal=TERMINAL).terminal is not None
    with pytest.raises(ValueError, match=r"allowed has no action in global states \[1\]"):
        sq.Model(*arrays, 0.9, allowed=ALLOWED & (np.arange(4) != 1)[:, None])
    for name, wrong in (("allowed", np.ones((4, 2))), ("terminal", [True]), ("allowed", "yes")):
        with pytest.raises(ValueError, match=name):
            sq.Model(*arrays, 0.9, **{name: wrong})
    with pytest.raises(ValueError, match="terminal= for the total reward"):
        sq.solve(sq.Model(*arrays, 1.0), 2)
    model = sq.Model(*arrays, 1.0, terminal=TERMINAL)
    with pytest.raises(ValueError, match="drop terminal"):
        sq.solve(model, 2, criterion="average")
    with pytest.raises(ValueError, match="discount must lie in"):
        sq.learn(KEY, model, 2, 4)
    endless = jax.jit(
        lambda P: sq.solve(sq.Model(P, *arrays[1:], 1.0, terminal=TERMINAL), 1, max_steps=9)
    )(stuck)
    assert endless.status != Status.CONVERGED


def test_an_action_that_is_not_allowed_is_seen():
    model = sq.Model(*ending_arrays(0), 0.9, allowed=ALLOWED)

    def rule(state, counts):
        return jnp.int32(1)

    assert sq.evaluate(model, rule, 2).status == Status.NONFINITE
    assert np.isnan(sq.simulate(KEY, model, rule, 4, 3, (0, [2, 2])).rewards[0])
    assert np.isfinite(sq.simulate(KEY, model, rule, 4, 1, (1, [2, 2])).rewards[0])
