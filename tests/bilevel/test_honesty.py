"""Nothing wrong is certified: units, saddles, starts, saturated policies, closures, loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bilevel.rl.beds import BED, MDP, exact_objective, leader, model

from jaxsac import Reason, Status, bilevel
from jaxsac._implicit import implicit
from jaxsac._linear import conjugate_gradient
from jaxsac.problems import bilevel_rl


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_units_of_the_lower_level_change_nothing(dtype):
    """lower = s ‖y − x‖²: y* = x and h = x − 1 for every s."""
    x = jnp.asarray([3.0, 5.0], dtype)
    for s in (1e-20, 1e-9, 1e-5, 1.0, 1e12):
        lower = lambda x, y, s=s: s * jnp.sum((y - x) ** 2)  # noqa: E731
        problem = bilevel.Problem(lambda x, y: jnp.sum((y - 1) ** 2) / 2, lower)
        h = bilevel.hypergradient(problem, x, jnp.zeros(2, dtype)).check()
        np.testing.assert_allclose(h.value, [2, 4], rtol=1e-4)
        y = bilevel.argmin(lower, jnp.zeros(2, dtype))
        y.checked(x).check()
        np.testing.assert_allclose(y(x), [3, 5], rtol=1e-4)
        np.testing.assert_allclose(jax.grad(lambda x, y=y: jnp.sum(y(x)))(x), [1, 1], rtol=1e-3)


@pytest.mark.parametrize("sigma", [None, pytest.param(1e-9, marks=pytest.mark.slow)])
@pytest.mark.parametrize("weight", [0.0, 1e-9, pytest.param(1.0, marks=pytest.mark.slow)])
def test_an_upper_level_without_y_has_its_own_gradient_whatever_the_differences_round(
    weight, sigma
):
    rng = np.random.default_rng(0)
    rows, target = jnp.asarray(rng.normal(size=(12, 4))), jnp.asarray(rng.normal(size=12))

    def lower(x, y):
        return jnp.sum((rows @ y - target) ** 2) / 2 + jnp.sum(jnp.exp(x) * y**2) / 2

    problem = bilevel.Problem(lambda x, y: weight * jnp.sum(x**2) / 2, lower)
    x = jnp.asarray([0.3, -1.0, 2.0, 0.0])
    h = bilevel.hypergradient(problem, x, jnp.zeros(4), sigma=sigma).check()
    np.testing.assert_allclose(h.value, weight * x, rtol=1e-15)


def test_gradients_that_underflow_are_not_certified():
    """float32: lower = 1e-30 ‖y / 1e8 − x‖² has no gradient there."""
    x, y0 = jnp.asarray([3.0, 5.0], jnp.float32), jnp.zeros(2, jnp.float32)

    def lower(x, y):
        return 1e-30 * jnp.sum((y / 1e8 - x) ** 2)

    problem = bilevel.Problem(lambda x, y: jnp.sum((y / 1e8 - 1) ** 2) / 2, lower)
    assert bilevel.hypergradient(problem, x, y0).status != Status.CONVERGED
    assert np.isnan(bilevel.argmin(lower, y0)(x)).all()


@pytest.mark.slow
@pytest.mark.parametrize("penalty", ["bellman", "value"])
def test_nearly_deterministic_policies(penalty):
    """Temperature .05, where some actions have chances below 1e-9; exact: through the best
    policy. The value penalty has no digits left for them, and says so.
    """
    exact = jax.grad(
        lambda x: leader(x, bilevel.rl.soft_solve(*model(x), 0.05, tol=1e-12).value.log_probs)
    )(BED.x)
    problem = bilevel.rl.policy_problem(model, leader, penalty=penalty)
    found = bilevel.hypergradient(problem, BED.x, jnp.zeros((8, 4)), data=0.05)
    error = np.linalg.norm(found.value - exact) / np.linalg.norm(exact)
    assert error < 1e-6 if penalty == "bellman" else found.status != Status.CONVERGED
    assert found.status == Status.CONVERGED or penalty == "value"


def test_policies_by_values_are_certified_though_differences_leave_a_residual():
    """What rounding leaves of d's equation in their free direction is no pull at it."""
    taus = jnp.asarray([0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0])
    exact = jax.vmap(jax.grad(functools.partial(exact_objective, model, leader)), (None, 0))
    problem = bilevel.rl.policy_problem(model, leader, penalty="value")
    found = jax.vmap(
        lambda tau: bilevel.hypergradient(problem, BED.x, jnp.zeros((8, 4)), data=tau)
    )(taus)
    sure = np.asarray(found.status == Status.CONVERGED)
    assert sure.sum() >= 6
    np.testing.assert_allclose(found.value[sure], exact(BED.x, taus)[sure], rtol=1e-5, atol=1e-7)


def test_a_search_that_failed_is_nan():
    curvature, x = jnp.logspace(0, 6, 20, dtype=jnp.float32), jnp.linspace(0.1, 1, 20)
    x = x.astype(jnp.float32)
    y = bilevel.argmin(
        lambda x, y: jnp.sum(curvature * (y - jnp.tanh(x)) ** 2), jnp.zeros(20, jnp.float32)
    )
    assert y.checked(x).status != Status.CONVERGED
    assert np.all(np.isnan(y(x)))
    assert np.all(np.isnan(jax.grad(lambda x: jnp.sum(y(x)))(x)))


def test_a_saddle_is_no_minimum():
    """From its axis of symmetry the saddle, h = 1; both minimisers have h = 0.8."""

    def lower(x, y):
        return (y[0] ** 2 - 1) ** 2 / 4 + 0.1 * x[0] * y[0] ** 2 + (y[1] - x[0]) ** 2 / 2

    problem = bilevel.Problem(lambda x, y: y[0] ** 2 + (y[1] - 2) ** 2 / 2, lower)
    x = jnp.asarray([3.0])
    assert bilevel.hypergradient(problem, x, jnp.zeros(2)).status != Status.CONVERGED
    assert bilevel.argmin(lower, jnp.zeros(2)).checked(x).status != Status.CONVERGED
    good = bilevel.hypergradient(problem, x, jnp.asarray([1e-3, 0.0])).check()
    np.testing.assert_allclose(good.value, 0.8, rtol=1e-5)


@pytest.mark.parametrize(
    "lower", [lambda x, y: x * jnp.sum(y), lambda x, y: jnp.sum(jnp.abs(y - x))]
)
def test_without_curvature_there_is_no_minimum(lower):
    """A gradient of 1 at y0 = 0, where nothing has a size: no error relative to it may be 0."""
    for dtype in (jnp.float32, jnp.float64):
        found = bilevel.argmin(lower, jnp.zeros(2, dtype))
        assert found.checked(jnp.ones((), dtype)).status != Status.CONVERGED
        assert jnp.isnan(found(jnp.ones((), dtype))).all()


def test_where_a_run_starts_does_not_loosen_its_certificate():
    problem = bilevel.Problem(
        lambda x, y: 0.5 * jnp.sum((y - 1) ** 2) + 0.5 * jnp.sum(x**2),
        lambda x, y: 0.5 * jnp.sum((y - x) ** 2),
    )
    for y0 in (0.0, 1e4, 1e8):
        run = bilevel.solve(
            problem,
            jnp.zeros(1),
            jnp.full(1, y0),
            outer=optax.sgd(0.1),
            inner=optax.sgd(0.5),
            max_steps=3000,
            check_every=1,
        ).check()
        np.testing.assert_allclose(run.value.x, 0.5, rtol=1e-5)


@pytest.mark.slow
def test_a_saturated_policy_is_not_certified():
    """A natural rate 50 times too large: all residuals vanish at the wrong vertices."""
    problem = bilevel.rl.policy_problem(model, leader, penalty="value")
    solution = bilevel.hypergradient(
        problem,
        BED.x,
        jnp.zeros((8, 4)),
        data=0.5,
        inner=bilevel.rl.natural_gradient(2.0),
        sigma=1e-4,
        max_steps=1000,
    )
    assert solution.stats["residual_z"] < 1e-9 and solution.status != Status.CONVERGED


def test_integers_are_rewards_and_impossible_processes_are_refused():
    rng = np.random.default_rng(0)
    P, reward = rng.dirichlet(np.ones(3), (3, 2)), np.array([[1, 0], [0, 1], [1, 1]])
    mdp, log_probs = bilevel.rl.MDP(P, np.full(3, 1 / 3), 0.9), np.log(np.full((3, 2), 0.5))
    right = np.linalg.solve(np.eye(3) - 0.9 * P.mean(1), reward.mean(1))
    for kind in (float, int, bool):
        found = bilevel.rl.policy_value(mdp, reward.astype(kind), log_probs)
        np.testing.assert_allclose(found, right, rtol=1e-12)
    value = bilevel.rl.expected_return(mdp, reward, log_probs)
    np.testing.assert_allclose(value, right.mean(), rtol=1e-12)
    for wrong in (mdp._replace(transition=3 * P), mdp._replace(discount=1.0)):
        with pytest.raises(ValueError, match=r"mdp\.(transition|discount) must"):
            bilevel.rl.expected_return(wrong, reward, log_probs)
    with pytest.raises(ValueError, match="log_probs"):
        bilevel.rl.expected_return(mdp, reward, np.zeros((3, 2)))
    lost = jax.jit(
        lambda g: bilevel.rl.expected_return(mdp._replace(discount=g), reward, log_probs)
    )
    assert np.isnan(lost(1.0))


@pytest.mark.slow
def test_sampled_episodes_end():
    rooms = bilevel_rl.four_rooms(dtype=jnp.float64)
    mdp = bilevel.rl.MDP(rooms.transition[1], rooms.initial[1], rooms.discount[1])
    reward = rooms.follower_reward(jnp.zeros(105))[1]
    policy = bilevel.rl.soft_solve(mdp, reward, 0.003).value.log_probs
    uniforms = jax.random.uniform(jax.random.key(0), (500, 600))
    sampled = bilevel.rl.sampled_return(uniforms, mdp, reward, policy)
    exact = bilevel.rl.expected_return(mdp, reward, policy)
    np.testing.assert_allclose(sampled, exact, atol=0.02)
    states = np.asarray(bilevel.rl.rollout(uniforms, mdp, policy).states)
    goal = int(np.argmax(rooms.goals[1]))
    after = np.cumsum(states == goal, axis=1) - (states == goal) > 0
    assert after.any() and np.all(states[after] == -1) and np.all(states[~after] >= 0)


def test_the_certificate_of_soft_values_is_that_of_its_formula():
    """max |V − TV| / (1 − discount), at a V that one step has not solved."""
    reward, tau = BED.reward(BED.x), 0.5
    solution = bilevel.rl.soft_solve(MDP, reward, tau, max_steps=1)
    v = np.asarray(solution.state)
    q = np.asarray(reward) + 0.9 * np.asarray(BED.transition) @ v
    residual = np.max(np.abs(v - tau * np.log(np.exp(q / tau).sum(1))))
    np.testing.assert_allclose(solution.stats["error"], residual / (1 - 0.9), rtol=1e-9)
    np.testing.assert_allclose(solution.stats["scale"], np.max(np.abs(v)), rtol=1e-12)


def test_what_is_closed_over_is_differentiated():
    x, A = jnp.ones(3), jnp.asarray([[2.0, 0.3], [0.3, 1.0]])

    def total(t):
        return jnp.sum(
            bilevel.argmin(lambda x, y: jnp.sum((y - t * jnp.tanh(x)) ** 2), jnp.zeros(3))(x)
        )

    np.testing.assert_allclose(jax.grad(total)(2.0), 3 * np.tanh(1), rtol=1e-6)

    def attached(t):
        solve = lambda matvec, right: conjugate_gradient(matvec, right).x  # noqa: E731
        start = jnp.linalg.solve(A, t * jnp.ones(2))
        return jnp.sum(implicit(lambda x, p: A @ x - t * p, solve, start, jnp.ones(2)))

    right = np.sum(np.linalg.solve(A, np.ones(2)))
    np.testing.assert_allclose(jax.grad(attached)(2.0), right, rtol=1e-9)


def test_loops_refuse_derivatives():
    problem = bilevel.Problem(
        lambda x, y: jnp.sum(y**2), lambda x, y: jnp.sum((y - jnp.tanh(x)) ** 2)
    )
    x = jnp.ones(2)
    y = bilevel.argmin(problem.lower, jnp.zeros(2))
    for function in (
        lambda x: bilevel.hypergradient(problem, x, jnp.zeros(2)).value,
        lambda x: bilevel.solve(problem, x, jnp.zeros(2)).value.x,
        lambda x: y.checked(x).value,
    ):
        with pytest.raises(ValueError, match="differentiate through argmin"):
            jax.jvp(function, (x,), (x,))

    def closed_over(t):
        lower = lambda x, y: jnp.sum((y - t * jnp.tanh(x)) ** 2)  # noqa: E731
        return bilevel.hypergradient(bilevel.Problem(problem.upper, lower), x, jnp.zeros(2)).value

    with pytest.raises(ValueError, match="differentiate through argmin"):
        jax.jvp(closed_over, (2.0,), (1.0,))


def test_python_numbers_beside_arrays_are_no_variables():
    problem = bilevel.Problem(
        lambda x, y: jnp.sum(y["w"] ** 2), lambda x, y: jnp.sum((y["w"] * y["n"] - x) ** 2)
    )
    solution = bilevel.hypergradient(problem, jnp.ones(2), {"w": jnp.zeros(2), "n": 2})
    np.testing.assert_allclose(solution.value, 0.5, rtol=1e-6)
    with pytest.raises(ValueError, match="close over integers"):
        bilevel.hypergradient(problem, jnp.ones(2), {"w": jnp.zeros(2), "n": jnp.int32(2)})


@pytest.mark.parametrize("x", [3.0, -3.0])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_one_variable_that_is_not_there_yet_is_not_certified(x, steps):
    """Whatever the sign of its residual."""
    function = bilevel.argmin(
        lambda x, y: jnp.sum(jnp.cosh(y - 2 * x)), jnp.ones(1), max_steps=steps
    )
    solution = function.checked(jnp.asarray([x]))
    assert solution.status == Status.MAX_STEPS and solution.stats["reason"] == Reason.NONE
    assert np.isnan(function(jnp.asarray([x]))).all()
    done = bilevel.argmin(lambda x, y: jnp.sum(jnp.cosh(y - 2 * x)), jnp.ones(1))
    np.testing.assert_allclose(done(jnp.asarray([x])), 2 * x, rtol=1e-6)


def test_beside_a_constraint_the_default_tolerance_of_float32_is_met():
    function = bilevel.argmin(
        lambda x, y: 0.5 * jnp.sum((y - x) ** 2),
        jnp.zeros(3, jnp.float32),
        prox_y=lambda x, y, rate: jnp.minimum(y, 10.0),
        inner=optax.sgd(0.5),
    )
    x = jnp.asarray([1.0, 2.0, 3.0], jnp.float32)
    np.testing.assert_allclose(jax.grad(lambda x: function(x).sum())(x), 1.0, atol=1e-3)


def test_terms_beside_a_lower_level_that_closes_over_a_tracer_get_x_alone():
    def total(w, x):
        function = bilevel.argmin(
            lambda x, y: 0.5 * jnp.sum((y - w * x) ** 2),
            jnp.zeros(3),
            prox_y=lambda x, y, rate: jnp.minimum(y, x + 10.0),
            inner=optax.sgd(0.5),
        )
        return function(x).sum()

    x = jnp.asarray([1.0, 2.0, 3.0])
    np.testing.assert_allclose(jax.jit(total)(1.0, x), 6.0, rtol=1e-4)
    np.testing.assert_allclose(jax.grad(total)(1.0, x), 6.0, rtol=1e-3)


def soft(x, y, data):
    """Minus the soft value of a policy as logits, which a constant in a row leaves as it is."""
    log_probs = jax.nn.log_softmax(y, axis=1)
    return -jnp.mean(jnp.sum(jnp.exp(log_probs) * (x - data["tau"] * log_probs), axis=1))


def cost_of(x, y, data):
    pull = data.get("pull", 0.0) * jnp.sum(y)
    return jnp.sum(jax.nn.softmax(y, axis=1) * data["cost"]) + 0.1 * jnp.sum(x**2) + pull


SOFT = bilevel.Problem(cost_of, soft)


@pytest.mark.parametrize(
    "dtype, tau, tol, least",
    [
        (jnp.float64, 0.2, 1e-6, 198),
        pytest.param(jnp.float32, 0.5, 1e-4, 190, marks=pytest.mark.slow),
    ],
)
def test_policies_as_logits_are_certified_though_their_hessian_is_singular(dtype, tau, tol, least):
    rng = np.random.default_rng(0)
    x, cost = rng.normal(size=(2, 200, 5, 4)).astype(dtype)
    x *= 2**0.5
    taus = np.resize([tau, 0.5, 1.0, 2.0], 200).astype(dtype)
    found = jax.vmap(
        lambda x, cost, tau: bilevel.hypergradient(
            SOFT, x, jnp.zeros((5, 4), dtype), data={"cost": cost, "tau": tau}
        )
    )(x, cost, taus)
    sure = np.asarray(found.status == Status.CONVERGED)
    assert sure.sum() >= least
    scores = np.float64(x) / taus[:, None, None]
    probs = np.exp(scores - scores.max(axis=2, keepdims=True))
    probs /= probs.sum(axis=2, keepdims=True)
    pull = probs * (cost - np.sum(probs * cost, axis=2, keepdims=True)) / taus[:, None, None]
    exact = pull + 0.2 * np.float64(x)
    size = np.linalg.norm(exact, axis=(1, 2))
    error = np.linalg.norm(np.asarray(found.value) - exact, axis=(1, 2)) / size
    estimate = np.asarray(found.stats["error"] + found.stats["rounding"]) / size
    assert np.max(error[sure]) < tol and np.max((error / estimate)[sure]) < 4


@pytest.mark.parametrize(
    "dtype, least", [(jnp.float64, 1e-5), pytest.param(jnp.float32, 1e-3, marks=pytest.mark.slow)]
)
def test_what_depends_on_a_free_direction_is_undefined(dtype, least):
    x, y0 = jnp.asarray([[0.3, -1.0, 0.5]], dtype), jnp.zeros((1, 3), dtype)
    data = {"cost": jnp.asarray([[1.0, 2.0, 3.0]], dtype), "tau": jnp.asarray(0.7, dtype)}
    for pull in (0.0, least, 1.0):
        more = data | {"pull": jnp.asarray(pull, dtype)}
        found = bilevel.hypergradient(SOFT, x, y0, data=more)
        assert found.stats["reason"] == (Reason.NO_MINIMISER if pull else Reason.NONE)
        assert (found.status == Status.CONVERGED) == (pull == 0)
    best = bilevel.argmin(soft, y0, data)
    probs = np.asarray(jax.nn.softmax(x / 0.7)[0])
    slopes = jax.grad(lambda x: jax.nn.softmax(best(x))[0, 0])(x)[0]
    np.testing.assert_allclose(slopes, probs[0] * (np.eye(3)[0] - probs) / 0.7, rtol=3e-4)
    assert np.isnan(jax.grad(lambda x: best(x)[0, 0])(x)).all()


@pytest.mark.parametrize("dtype", [jnp.float64, pytest.param(jnp.float32, marks=pytest.mark.slow)])
def test_a_direction_that_is_nearly_flat_is_not_free(dtype):
    """h = (1, c / l): what looks flat beside the largest curvature may be all of the answer."""

    def lower(x, y, data):
        return 0.5 * (y[0] - x[0]) ** 2 + 0.5 * data["l"] * y[1] ** 2 - x[1] * y[1]

    problem = bilevel.Problem(lambda x, y, data: y[0] + data["c"] * y[1], lower)
    least, pull = np.meshgrid(10.0 ** np.arange(-12, 0), [1e-3, 5e-5, 5e-7, 1e-8])
    data = {"l": jnp.asarray(least.ravel(), dtype), "c": jnp.asarray(pull.ravel(), dtype)}
    found = jax.vmap(
        lambda data: bilevel.hypergradient(
            problem, jnp.asarray([1.0, 0.0], dtype), jnp.zeros(2, dtype), data=data
        )
    )(data)
    exact = np.stack([np.ones(least.size), pull.ravel() / least.ravel()], axis=1)
    error = np.linalg.norm(np.asarray(found.value) - exact, axis=1)
    error /= np.linalg.norm(exact, axis=1)
    sure = np.asarray(found.status == Status.CONVERGED)
    assert sure.sum() > 8
    assert np.max(error[sure]) < (1e-6 if dtype == jnp.float64 else 1e-4)


def test_an_optimiser_does_not_certify_what_is_undefined():
    x, y0 = jnp.asarray([[0.3, -1.0, 0.5]]), jnp.zeros((1, 3))
    for pull in (0.0, 1e-3, 1.0):
        data = {"cost": jnp.asarray([[1.0, 2.0, 3.0]]), "tau": jnp.asarray(0.7), "pull": pull}
        found = bilevel.hypergradient(
            SOFT, x, y0, data=data, inner=optax.sgd(1.0), tol=1e-4, max_steps=4000
        )
        assert (found.status == Status.CONVERGED) == (pull == 0)
