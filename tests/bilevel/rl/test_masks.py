"""Actions that are not available: values, policies, differences and draws without them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bilevel.rl.beds import BED, MDP, leader, relative_error

from jaxsac import bilevel

TAU = 0.5
ALLOWED = np.random.default_rng(0).uniform(size=(8, 4)) < 0.5
ALLOWED[np.arange(8), np.arange(8) % 4] = True
ALLOWED[:, 3] &= ALLOWED[:, :3].sum(axis=1) == 0  # the last one hardly ever
MASKED = MDP._replace(available=jnp.asarray(ALLOWED))


def masked_model(x):
    return MASKED, BED.reward(x)


@pytest.fixture(scope="module")
def best():
    return bilevel.rl.soft_solve(*masked_model(BED.x), TAU, tol=1e-12).check()


def test_values_against_plain_iteration_over_what_is_available(best):
    reward, transition = np.asarray(BED.reward(BED.x)), np.asarray(BED.transition)
    v = np.zeros(8)
    for _ in range(400):
        q = reward + float(BED.discount) * transition @ v
        v = TAU * np.log(np.sum(np.where(ALLOWED, np.exp(q / TAU), 0.0), axis=1))
    np.testing.assert_allclose(best.value.v, v, rtol=1e-12)
    expected = np.where(ALLOWED, (q - v[:, None]) / TAU, -np.inf)
    np.testing.assert_allclose(best.value.log_probs, expected, rtol=1e-9, atol=1e-12)
    again = bilevel.rl.soft_solve(*masked_model(BED.x), TAU, tol=1e-12, state=best)
    assert again.stats["num_steps"] == 0


def test_one_natural_step_among_what_is_available():
    """To the best policy from even odds, and the gradient there, as through `soft_solve`."""
    problem = bilevel.rl.policy_problem(masked_model, leader)
    inner = bilevel.rl.natural_gradient(available=MASKED.available)
    method = bilevel.Method(inner=inner, outer=optax.sgd(1.0))
    start = bilevel.init(problem, BED.x, jnp.zeros((8, 4)), method)
    end = jax.jit(
        lambda state: bilevel.step(problem, state, method, sigma=1e-5, batch=jnp.asarray(TAU))[0]
    )(start)

    def objective(x):
        values = bilevel.rl.soft_solve(*masked_model(x), TAU, tol=1e-12).value
        return leader(x, values.log_probs)

    assert relative_error(BED.x - end.x, jax.jit(jax.grad(objective))(BED.x)) < 1e-7


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_draws_are_of_what_is_available(best, dtype):
    """At the end of the range too, where sums of chances miss one by rounding."""
    uniforms = np.random.default_rng(1).uniform(size=(200, 40))
    uniforms[::3] = np.nextafter(dtype(1), dtype(0))
    process = jax.tree.map(lambda leaf: leaf if leaf.dtype == bool else leaf.astype(dtype), MASKED)
    log_probs = best.value.log_probs.astype(dtype)
    path = bilevel.rl.rollout(jnp.asarray(uniforms, dtype), process, log_probs)
    assert ALLOWED[path.states, path.actions].all()


@pytest.mark.slow
def test_sampled_returns_of_masked_policies(best):
    """Mean and gradient of the sampled problem's lower level, within four standard errors."""
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(8, 4)))
    exact = bilevel.rl.policy_problem(masked_model, leader, penalty="value").lower
    sampled = bilevel.rl.sampled_policy_problem(masked_model, lambda x, lp, u: jnp.sum(x)).lower
    uniforms = jnp.asarray(np.random.default_rng(3).uniform(size=(2000, 300)))

    def one(uniforms):
        batch = uniforms[None], jnp.asarray(TAU)
        return jax.value_and_grad(lambda y: sampled(BED.x, y, batch))(logits)

    draws = jax.jit(jax.vmap(one))(uniforms)
    right = jax.value_and_grad(lambda y: exact(BED.x, y, jnp.asarray(TAU)))(logits)
    for each, expected in zip(draws, right, strict=True):
        error = np.std(each, axis=0) / np.sqrt(2000)
        np.testing.assert_array_less(np.abs(np.mean(each, axis=0) - expected), 4 * error + 1e-6)


def test_a_state_without_actions_is_refused():
    with pytest.raises(ValueError, match=r"mdp\.available must leave one action or more"):
        bilevel.rl.soft_solve(MDP._replace(available=np.zeros((8, 4), bool)), BED.base_reward, TAU)
