"""Good calls of bilevel optimisation, for the test that makes them wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsac import bilevel
from jaxsac.bilevel import rl
from jaxsac.problems import bilevel as problems, bilevel_rl

X, Y = np.array([1.0, -0.5, 0.25]), np.array([0.3, 0.4, -0.2])
OUTER, INNER = optax.sgd(0.1), optax.sgd(0.2)


def upper(x, y, data=None):
    return 0.5 * jnp.sum((y - 1) ** 2) + 0.5 * jnp.sum(x**2)


def lower(x, y, data=None):
    return jnp.sum(jnp.cosh(y - x)) + 0.5 * jnp.sum(y**2)


def same(x):
    return x


def prox(x, y, rate):
    return jnp.maximum(y, -5.0)


def no_term(x, y, data=None):
    return 0.0 * jnp.sum(y)


def changes(x, y, step, data=None):
    return jax.tree.map(
        jnp.subtract, jax.grad(lower, (0, 1))(x, y + step), jax.grad(lower, (0, 1))(x, y)
    )


PROBLEM = bilevel.Problem(upper, lower)
METHOD = bilevel.Method(outer=OUTER, inner=INNER)
REDUCED = bilevel.Method("forward", INNER, OUTER, variance_reduction=True)
STATE = bilevel.init(PROBLEM, X, Y, METHOD)
WHOLE_METHOD = {
    "difference": "forward",
    "inner": INNER,
    "outer": OUTER,
    "inner_steps": 1,
    "variance_reduction": False,
}

P = np.array([[[0.5, 0.5], [0.9, 0.1]], [[0.2, 0.7], [0.4, 0.6]]])
PROCESS = rl.MDP(P, np.array([0.5, 0.5]), 0.9)
REWARD, LOG_PROBS = np.array([[1.0, 0.0], [0.5, 2.0]]), np.log(np.array([[0.5, 0.5], [0.2, 0.8]]))
UNIFORMS = np.random.default_rng(0).uniform(size=(5, 8))
OF_POLICY = {"mdp": PROCESS, "reward": REWARD, "log_probs": LOG_PROBS, "temperature": 0.5}
SEGMENTS = bilevel_rl.enumerate_segments(jnp.asarray(P), jnp.asarray([0.5, 0.5]), 2)
PLACES = np.random.default_rng(1).integers(0, 2, (4, 2, 3)).astype(np.int32)

SPLIT = problems.Split(
    np.eye(4)[:, :3], np.array([1.0, -1.0, 1.0, -1.0]), np.eye(4)[:, :3], np.ones(4)
)
CLASSES = np.array([0, 1, 1, 0], np.int32)
CLEANING = problems.Cleaning(
    np.eye(4)[:, :3], CLASSES, np.eye(4)[:, :3], CLASSES, np.eye(4)[:, :3], CLASSES, CLASSES > 2
)
SMOOTH = problems.smooth(jnp.float64)
COEF = np.array([[0.1, 0.2], [0.3, -0.1], [0.0, 0.5]])
SIZES = {"discount": 0.9, "temperature": 0.5, "seed": 0}


def model(x):
    return PROCESS, jnp.asarray(REWARD) + x


def of_policy(x, log_probs):
    return jnp.sum(log_probs) * x


def of_draws(x, log_probs, uniforms):
    return jnp.sum(log_probs) * x


NOISE = np.random.default_rng(2).normal(size=(5, 4, 2)), np.ones((5, 4, 1))
PENDULUM = rl.Process(
    lambda noise: noise,
    lambda state, action, noise: 0.5 * state + action + noise,
    lambda state, action: -jnp.sum(state**2) - jnp.sum(action**2),
    0.9,
)


def still(state):
    return jnp.zeros(1), jnp.zeros(1)


CALLS = {
    "bilevel.Problem": lambda: {
        "upper": upper,
        "lower": lower,
        "project_x": same,
        "prox_y": prox,
        "nonsmooth": no_term,
        "lower_difference": changes,
        "allow_jvp": False,
        "batch_copies": True,
    },
    "bilevel.Method": lambda: dict(WHOLE_METHOD),
    "bilevel.Argmin": lambda: {
        "problem": PROBLEM,
        "y0": Y,
        "sigma": 1e-3,
        "tol": 1e-6,
        "max_steps": 100,
        "data": None,
        "inner": INNER,
        "aux": None,
    },
    "bilevel.argmin": lambda: {
        "lower": lower,
        "y0": Y,
        "data": None,
        "has_aux": False,
        "sigma": 1e-3,
        "inner": INNER,
        "tol": 1e-6,
        "max_steps": 100,
        "prox_y": prox,
        "nonsmooth": no_term,
    },
    "bilevel.hypergradient": lambda: {
        "problem": PROBLEM,
        "x": X,
        "y0": Y,
        "sigma": 1e-3,
        "difference": "central_linear",
        "inner": INNER,
        "tol": 1e-6,
        "max_steps": 100,
        "data": None,
    },
    "bilevel.check_hypergradient": lambda: {"problem": PROBLEM, "x": X, "y0": Y, "data": None},
    "bilevel.solve": lambda: {
        "problem": PROBLEM,
        "x0": X,
        "y0": Y,
        "sigma": 1e-2,
        **WHOLE_METHOD,
        "momentum": 0.5,
        "data": Y,
        "sample": lambda key, data: data,
        "key": jax.random.key(0),
        "tol": 1e-3,
        "max_steps": 20,
        "check_every": 10,
        "patience": 3,
        "state": STATE,
    },
    "bilevel.init": lambda: {
        "problem": PROBLEM,
        "x0": X,
        "y0": Y,
        "method": METHOD,
        "key": jax.random.key(0),
    },
    "bilevel.step": lambda: {
        "problem": PROBLEM,
        "state": bilevel.init(PROBLEM, X, Y, REDUCED),
        "method": REDUCED,
        "sigma": 1e-2,
        "batch": Y,
        "inner_batches": Y[None],
        "momentum": 0.5,
    },
    "bilevel.diagnose": lambda: {
        "problem": PROBLEM,
        "state": STATE,
        "method": METHOD,
        "sigma": "relative",
        "batch": Y,
    },
    "bilevel.paired_adam": lambda: {"learning_rate": 0.1, "b1": 0.9, "b2": 0.99, "eps": 1e-8},
    "bilevel.rl.softmax_policy": lambda: {"logits": REWARD},
    "bilevel.rl.policy_problem": lambda: {
        "model": model,
        "upper": of_policy,
        "penalty": "bellman",
        "log_policy": rl.softmax_policy,
    },
    "bilevel.rl.sampled_policy_problem": lambda: {
        "model": model,
        "upper": of_draws,
        "log_policy": rl.softmax_policy,
        "pairing": "common",
    },
    "bilevel.rl.natural_gradient": lambda: {"rate": 0.5, "available": None},
    "bilevel.rl.rollout": lambda: {"uniforms": UNIFORMS, "mdp": PROCESS, "log_probs": LOG_PROBS},
    "bilevel.rl.sampled_return": lambda: {"uniforms": UNIFORMS, **OF_POLICY},
    "bilevel.rl.simulated_return": lambda: {
        "noise": NOISE,
        "process": PENDULUM,
        "policy": still,
        "temperature": 0.5,
        "gradient": "pathwise",
    },
    "bilevel.rl.simulated_policy_problem": lambda: {
        "model": lambda x: PENDULUM,
        "upper": of_draws,
        "policy": lambda y, state: still(state),
        "gradient": "score",
    },
    "bilevel.rl.soft_solve": lambda: {
        "mdp": PROCESS,
        "reward": REWARD,
        "temperature": 0.5,
        "tol": 1e-6,
        "max_steps": 50,
        "state": np.zeros(2),
    },
    "bilevel.rl.policy_value": lambda: dict(OF_POLICY),
    "bilevel.rl.expected_return": lambda: dict(OF_POLICY),
    "problems.bilevel.smooth": lambda: {"dtype": jnp.float32},
    "problems.bilevel.smooth_lower": lambda: {"x": SMOOTH.x, "y": np.ones(50), "data": SMOOTH},
    "problems.bilevel.smooth_upper": lambda: {"x": SMOOTH.x, "y": np.ones(50), "data": SMOOTH},
    "problems.bilevel.smooth_hypergradient": lambda: {"data": SMOOTH},
    "problems.bilevel.logistic": lambda: {"num_rows": 5, "dimension": 2, "dtype": jnp.float32},
    "problems.bilevel.ridge_logistic_lower": lambda: {"x": 0.1, "y": Y, "data": SPLIT},
    "problems.bilevel.breast_cancer": lambda: {"dtype": jnp.float32, "seed": 0},
    "problems.bilevel.feature_weights_lower": lambda: {"x": X, "y": Y, "data": SPLIT},
    "problems.bilevel.feature_weights_upper": lambda: {"x": X, "y": Y, "data": SPLIT},
    "problems.bilevel.digits_cleaning": lambda: {
        "dtype": jnp.float32,
        "seed": 0,
        "corruption": 0.5,
    },
    "problems.bilevel.cross_entropy": lambda: {
        "features": SPLIT.train,
        "classes": CLASSES,
        "coef": COEF,
    },
    "problems.bilevel.cleaning_lower": lambda: {
        "x": np.ones(4),
        "y": COEF,
        "data": CLEANING,
        "ridge": 1e-3,
    },
    "problems.bilevel.cleaning_upper": lambda: {"x": np.ones(4), "y": COEF, "data": CLEANING},
    "problems.bilevel.diabetes": lambda: {"dtype": jnp.float32, "seed": 0, "degree": 2},
    "problems.bilevel.group_weights_lower": lambda: {"x": X, "y": Y, "data": SPLIT},
    "problems.bilevel.group_weights_penalty": lambda: {"x": X, "y": Y, "data": SPLIT},
    "problems.bilevel.group_weights_prox": lambda: {"x": X, "y": Y, "rate": 0.5},
    "problems.bilevel.group_weights_upper": lambda: {"x": X, "y": Y, "data": SPLIT},
    "problems.bilevel_rl.random_reward_bed": lambda: {
        "num_states": 3,
        "num_actions": 2,
        "num_features": 2,
        **SIZES,
        "dtype": jnp.float32,
    },
    "problems.bilevel_rl.bandit_bed": lambda: {
        "num_actions": 2,
        "temperature": 0.5,
        "seed": 0,
        "dtype": jnp.float32,
    },
    "problems.bilevel_rl.shaping_features": lambda: {
        "transition": P,
        "discount": 0.9,
        "potentials": REWARD,
    },
    "problems.bilevel_rl.enumerate_segments": lambda: {
        "transition": P,
        "initial": np.array([0.5, 0.5]),
        "horizon": 2,
    },
    "problems.bilevel_rl.preference_loss": lambda: {
        "segments": SEGMENTS,
        "reward": REWARD,
        "true_reward": REWARD + 1.0,
        "log_probs": LOG_PROBS,
        "discount": 0.9,
    },
    "problems.bilevel_rl.sampled_preference_loss": lambda: {
        "states": PLACES,
        "actions": PLACES[::-1],
        "uniforms": UNIFORMS[0, :4],
        "reward": REWARD,
        "true_reward": REWARD + 1.0,
        "log_probs": LOG_PROBS,
        "discount": 0.9,
    },
    "problems.bilevel_rl.four_rooms": lambda: {"discount": 0.9, "fail": 0.3, "dtype": jnp.float32},
    "problems.bilevel_rl.linear_quadratic": lambda: {
        "num_states": 2,
        "num_actions": 1,
        "discount": 0.9,
        "noise": 0.3,
        "seed": 0,
        "dtype": jnp.float32,
    },
    "problems.bilevel_rl.stackelberg": lambda: {
        "num_moves": 2,
        "num_states": 3,
        "num_actions": 2,
        "seed": 0,
        "dtype": jnp.float32,
    },
}
