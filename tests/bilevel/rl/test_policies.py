"""Bilevel RL: every bed against its exact answer."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bilevel.rl.beds import (
    BED,
    BEDS,
    FINE,
    MDP,
    SHAPING,
    exact_objective,
    leader,
    model,
    nearest_optimum,
    relative_error,
)
from scipy.optimize import minimize

from jaxsac import Status, bilevel
from jaxsac.problems import bilevel_rl


def test_soft_values_against_plain_iteration_and_the_derivative_by_hand():
    """dV = (I - discount P_pi)⁻¹ sum_a pi dR, dQ = dR + discount P dV, d log pi = (dQ - dV) /
    temperature.
    """
    tau, gamma = float(BED.temperature), float(BED.discount)
    reward, P = np.asarray(BED.reward(BED.x)), np.asarray(BED.transition)
    v = np.zeros(8)
    for _ in range(600):
        q = reward + gamma * P @ v
        v = tau * np.log(np.exp(q / tau).sum(1))
    solution = bilevel.rl.soft_solve(MDP, jnp.asarray(reward), tau, tol=FINE).check()
    np.testing.assert_allclose(solution.value.v, v, rtol=1e-12)
    np.testing.assert_allclose(solution.value.log_probs, (q - v[:, None]) / tau, rtol=1e-10)

    direction = np.random.default_rng(0).normal(size=(8, 4))
    pi = np.exp((q - v[:, None]) / tau)
    dv = np.linalg.solve(
        np.eye(8) - gamma * np.einsum("sa,sat->st", pi, P), (pi * direction).sum(1)
    )
    dq = direction + gamma * P @ dv
    solve = lambda reward: bilevel.rl.soft_solve(MDP, reward, tau, tol=FINE).value  # noqa: E731
    _, tangent = jax.jit(lambda r, d: jax.jvp(solve, (r,), (d,)))(
        jnp.asarray(reward), jnp.asarray(direction)
    )
    np.testing.assert_allclose(tangent.v, dv, rtol=1e-10)
    np.testing.assert_allclose(tangent.log_probs, (dq - dv[:, None]) / tau, rtol=1e-9, atol=1e-10)


def test_batches_solve_one_matrix_at_a_time():
    """On CPUs no factorisation is batched (two at once can lock XLA's threads for good), and a
    batch gives what single calls give.
    """
    rewards = jnp.stack([BED.reward(BED.x), BED.leader_reward])

    def gradient(reward):
        return jax.grad(
            lambda reward: leader(
                BED.x, bilevel.rl.soft_solve(MDP, reward, 0.5, tol=1e-9).value.log_probs
            )
        )(reward)

    program = jax.jit(jax.vmap(gradient)).lower(rewards).compile()
    factorised = re.findall(r"= \((f64\[[\d,]*\])[^\n]*getrf", program.as_text())
    assert factorised and set(factorised) == {"f64[8,8]"}, factorised
    single = jax.jit(gradient)
    np.testing.assert_allclose(
        program(rewards), jnp.stack([single(reward) for reward in rewards]), rtol=1e-9, atol=1e-12
    )


def test_soft_solve_names_bad_arguments():
    with pytest.raises(ValueError, match=r"mdp.discount must be < 1"):
        bilevel.rl.soft_solve(MDP._replace(discount=1.0), BED.base_reward, 0.5)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        bilevel.rl.soft_solve(MDP, BED.base_reward, 0.0)
    with pytest.raises(ValueError, match=r"mdp.transition must have shape"):
        bilevel.rl.soft_solve(MDP._replace(transition=BED.transition[0]), BED.base_reward, 0.5)
    with pytest.raises(ValueError, match="rows that sum to one"):
        bilevel.rl.soft_solve(MDP._replace(transition=2 * BED.transition), BED.base_reward, 0.5)
    broken = jnp.asarray(BED.base_reward).at[0, 0].set(jnp.nan)
    assert bilevel.rl.soft_solve(MDP, broken, 0.5).status == Status.NONFINITE


@pytest.mark.parametrize("penalty", ["value", pytest.param("bellman", marks=pytest.mark.slow)])
def test_the_tabular_hypergradient(penalty):
    exact = jax.jit(jax.grad(lambda x: exact_objective(model, leader, x, BED.temperature)))(BED.x)
    problem = bilevel.rl.policy_problem(model, leader, penalty=penalty)
    errors = {}
    for sigma in (1e-4, 1e-5):
        solution = bilevel.hypergradient(
            problem, BED.x, jnp.zeros((8, 4)), data=BED.temperature, sigma=sigma, tol=1e-9
        )
        errors[sigma] = relative_error(solution.value, exact)
    assert min(errors.values()) < 1e-6, errors


def test_one_natural_step_solves_a_nearly_sure_follower():
    """From even odds to the best policy at temperature 0.05, and the gradient there: each natural
    step takes the metric of where it stands.
    """
    temperature = jnp.asarray(0.05)
    problem = bilevel.rl.policy_problem(model, leader, penalty="bellman")
    method = bilevel.Method("central_linear", bilevel.rl.natural_gradient(), optax.sgd(1.0))
    start = bilevel.init(problem, BED.x, jnp.zeros((8, 4)), method)
    end = jax.jit(
        lambda state: bilevel.step(problem, state, method, sigma=1e-6, batch=temperature)[0]
    )(start)
    exact = jax.jit(jax.grad(lambda x: exact_objective(model, leader, x, temperature)))(BED.x)
    assert relative_error(BED.x - end.x, exact) < 1e-6


@pytest.mark.slow
def test_the_bandit_in_closed_form():
    """pi = softmax(r(x) / temperature): gradient and optimum without any solver."""
    bed = bilevel_rl.bandit_bed(2, dtype=jnp.float64)
    mdp = bilevel.rl.MDP(bed.transition, bed.initial, bed.discount)

    def upper(x, log_probs):
        return -jnp.sum(jnp.exp(log_probs) * bed.leader_reward) + 0.5 * jnp.sum(x**2)

    def objective(x):
        return upper(x, jax.nn.log_softmax(bed.reward(x) / bed.temperature, axis=1))

    problem = bilevel.rl.policy_problem(lambda x: (mdp, bed.reward(x)), upper)
    solution = bilevel.hypergradient(
        problem, bed.x, jnp.zeros((1, 2)), data=bed.temperature, sigma=1e-4, tol=1e-10
    )
    np.testing.assert_allclose(solution.value, jax.grad(objective)(bed.x), rtol=1e-6)
    best = minimize(
        lambda x: float(objective(jnp.asarray(x))),
        np.zeros(2),
        jac=lambda x: np.asarray(jax.grad(objective)(jnp.asarray(x))),
        tol=1e-12,
    )
    run = bilevel.solve(
        problem,
        bed.x,
        jnp.zeros((1, 2)),
        data=bed.temperature,
        sigma=1e-4,
        outer=optax.sgd(0.2),
        inner=optax.sgd(1.0),
        inner_steps=2,
        max_steps=3000,
        tol=1e-5,
    ).check()
    np.testing.assert_allclose(run.value.x, best.x, atol=1e-3)


@pytest.mark.slow
def test_potential_based_shaping_changes_nothing():
    """The best policy does not move, so the cross term is zero at every sigma that leaves a
    perturbed minimiser (divergences grow linearly in the logits); the naive difference would see
    value changes.
    """
    problem = bilevel.rl.policy_problem(
        lambda x: (MDP, BED.base_reward + SHAPING @ x), lambda x, lp: leader(jnp.zeros(1), lp)
    )
    for sigma in (None, 1e-2, 1e-3):
        h = bilevel.hypergradient(
            problem, jnp.ones(3), jnp.zeros((8, 4)), data=BED.temperature, sigma=sigma, tol=1e-9
        )
        assert np.abs(h.value).max() < 1e-7


@pytest.mark.slow
def test_preferences_and_controlled_dynamics():
    """Bradley-Terry preferences over enumerated segments, and a leader who moves the dynamics:
    exact sums on both sides.
    """
    small = bilevel_rl.random_reward_bed(2, 2, 3, dtype=jnp.float64)
    mdp = bilevel.rl.MDP(small.transition, small.initial, small.discount)
    segments = bilevel_rl.enumerate_segments(small.transition, small.initial, 2)
    chances = jnp.exp(segments.log_dynamics + jnp.log(0.5) * 2)
    np.testing.assert_allclose(jnp.sum(chances), 1.0, rtol=1e-12)

    def loss(x, log_probs):
        return bilevel_rl.preference_loss(
            segments, small.reward(x), small.leader_reward, log_probs, small.discount
        )

    game = bilevel_rl.stackelberg(2, 2, 2, dtype=jnp.float64)

    def controlled(x):
        return bilevel.rl.MDP(game.transition(x), game.initial, game.discount), game.follower_reward

    def payoff(x, log_probs):
        return -bilevel.rl.expected_return(controlled(x)[0], game.leader_reward, log_probs)

    for where, upper, x in (
        (lambda x: (mdp, small.reward(x)), loss, small.x),
        (controlled, payoff, jnp.asarray([0.3, -0.2])),
    ):
        exact = jax.jit(
            jax.grad(functools.partial(exact_objective, where, upper, temperature=0.5))
        )(x)
        h = bilevel.hypergradient(
            bilevel.rl.policy_problem(where, upper),
            x,
            jnp.zeros((2, 2)),
            data=jnp.asarray(0.5),
            sigma=1e-4,
            tol=1e-9,
        )
        assert relative_error(h.value, exact) < 1e-6


ROOMS = bilevel_rl.four_rooms(dtype=jnp.float64)
PROCESSES = bilevel.rl.MDP(ROOMS.transition, ROOMS.initial, ROOMS.discount)
TAU = 0.003


def room_model(x):
    return PROCESSES, ROOMS.follower_reward(x)


def room_leader(x, log_probs):
    return -jnp.mean(
        jax.vmap(bilevel.rl.expected_return)(PROCESSES, ROOMS.leader_reward(x, 1.0), log_probs)
    )


def room_objective(x):
    best = jax.vmap(
        lambda mdp, reward: bilevel.rl.soft_solve(mdp, reward, TAU, tol=1e-11).value.log_probs
    )
    return room_leader(x, best(*room_model(x)))


def test_four_rooms_are_a_process():
    assert ROOMS.transition.shape == (2, 104, 4, 104)
    np.testing.assert_allclose(
        jnp.sum(ROOMS.transition, axis=3),
        jnp.broadcast_to(1 - ROOMS.goals[:, :, None], (2, 104, 4)),
        rtol=1e-12,
    )
    np.testing.assert_allclose(jnp.sum(ROOMS.charges(jnp.zeros(105))), 0.2 * 104 / 105, rtol=1e-12)


@pytest.mark.slow
def test_four_rooms_with_contexts():
    """Charges for visiting cells, two goals as contexts, temperature 0.003: exact through soft
    policy iteration, at nearly sure policies.
    """
    x = jnp.asarray(np.random.default_rng(0).normal(size=105))
    value = jax.jit(jax.value_and_grad(room_objective))
    exact = value(x)[1]
    step = jnp.zeros(105).at[ROOMS.target].set(1e-5)
    np.testing.assert_allclose(
        exact[ROOMS.target], (value(x + step)[0] - value(x - step)[0]) / 2e-5, rtol=1e-5
    )

    problem = bilevel.rl.policy_problem(room_model, room_leader, penalty="bellman")
    inner = bilevel.rl.natural_gradient()
    settings = {"data": jnp.asarray(TAU), "inner": inner}
    found = bilevel.hypergradient(
        problem, x, jnp.zeros((2, 104, 4)), sigma=1e-8, tol=1e-8, max_steps=20, **settings
    ).check()
    assert relative_error(found.value, exact) < 1e-7

    # the single loop goes where exact gradients go: to 0.48, from 0.15
    run = bilevel.solve(
        problem,
        jnp.zeros(105),
        jnp.zeros((2, 104, 4)),
        sigma=1e-7,
        outer=optax.adam(0.2),
        max_steps=300,
        check_every=100,
        **settings,
    )
    best = minimize(
        lambda x: [np.asarray(part) for part in value(jnp.asarray(x))],
        np.asarray(run.value.x),
        jac=True,
    )
    values = [float(-value(point)[0]) for point in (jnp.zeros(105), run.value.x)]
    assert values[0] < 0.2 and -best.fun - 1e-3 < values[1], (values, best.fun)


@pytest.mark.slow
def test_four_rooms_at_a_low_temperature():
    """Temperature 0.001, where an outer step of Adam turns sure policies round: 100 single-loop
    steps, and 100 with exact gradients.
    """
    tau, outer, x = 0.001, optax.adam(0.2), jnp.zeros(105)

    def objective(x):
        best = jax.vmap(
            lambda mdp, reward: bilevel.rl.soft_solve(mdp, reward, tau, tol=1e-11).value.log_probs
        )
        return room_leader(x, best(*room_model(x)))

    problem = bilevel.rl.policy_problem(room_model, room_leader, penalty="bellman")
    method = bilevel.Method("central_linear", bilevel.rl.natural_gradient(), outer)

    def single(_, state):
        return bilevel.step(problem, state, method, sigma=1e-9, batch=jnp.asarray(tau))[0]

    def exact(_, carry):
        gradient = jax.grad(objective)(carry[0])
        with jax.numpy_dtype_promotion("standard"):  # optax does not pass the strict setting
            update, state = outer.update(gradient, carry[1])
        return carry[0] + update, state

    start = bilevel.init(problem, x, jnp.zeros((2, 104, 4)), method)
    ours = jax.jit(lambda: jax.lax.fori_loop(0, 100, single, start).x)()
    theirs = jax.jit(lambda: jax.lax.fori_loop(0, 100, exact, (x, outer.init(x)))[0])()
    values = [float(-jax.jit(objective)(point)) for point in (x, ours, theirs)]
    assert values[0] < 0.25 and values[2] > 0.5 and abs(values[1] - values[2]) < 1e-3, values


@pytest.mark.slow
@pytest.mark.parametrize("bed", list(BEDS))
def test_runs_end_at_an_optimum(bed):
    """Rewards shaped, shaped without effect, a mixed action that moves the dynamics (Stackelberg),
    and a reward fitted to preferences.
    """
    where, upper, start, S = BEDS[bed]
    problem = bilevel.rl.policy_problem(where, upper, penalty="bellman")
    run = bilevel.solve(
        problem,
        start,
        jnp.zeros_like(where(start)[1]),
        data=jnp.asarray(0.5),
        sigma=1e-5,
        outer=optax.sgd(0.2 if S == 2 else 0.05, 0.9),
        inner=bilevel.rl.natural_gradient(),
        max_steps=1000,
        tol=1e-5,
    ).check()
    best = nearest_optimum(lambda x: exact_objective(where, upper, x, 0.5), run.value.x)
    np.testing.assert_allclose(run.value.x, best.x, atol=1e-3)
    assert (
        bed != "shaping" or np.abs(best.x - 1).max() < 1e-6
    )  # shaping moves no policy, so only the leader's own term counts


@pytest.mark.slow
def test_policies_as_networks_and_falling_temperatures():
    """An equinox network over one-hot states, and regularisation that attenuates: the leader's
    value moves towards the sharp one's.
    """
    bed = bilevel_rl.random_reward_bed(3, 2, 2, dtype=jnp.float64)
    mdp = bilevel.rl.MDP(bed.transition, bed.initial, bed.discount)
    network = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0), dtype=jnp.float64)
    problem = bilevel.rl.policy_problem(
        lambda x: (mdp, bed.reward(x)),
        lambda x, lp: -bilevel.rl.expected_return(mdp, bed.leader_reward, lp) + 0.5 * jnp.sum(x**2),
        log_policy=lambda net: jax.nn.log_softmax(jax.vmap(net)(jnp.eye(3)), axis=1),
    )
    run = functools.partial(
        bilevel.solve,
        problem,
        bed.x,
        network,
        outer=optax.sgd(0.02),
        inner=optax.sgd(0.2),
        inner_steps=6,
        max_steps=300,
    )
    state, follower = None, []
    for temperature in (1.0, 0.5, 0.25):
        solution = run(data=jnp.asarray(temperature), state=state)
        state = solution.state
        best = bilevel.rl.soft_solve(mdp, bed.reward(solution.value.x), temperature, tol=1e-9).value
        net = solution.value.y
        mine = bilevel.rl.expected_return(
            mdp,
            bed.reward(solution.value.x),
            jax.nn.log_softmax(jax.vmap(net)(jnp.eye(3)), axis=1),
            temperature,
        )
        follower.append(float(jnp.vdot(mdp.initial, best.v) - mine))
    assert isinstance(net, eqx.nn.MLP) and max(follower) < 0.05, follower
