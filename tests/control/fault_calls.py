"""Good calls of the public functions, for the test that makes them wrong."""

import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import Groups, control, group_lasso
from jaxsac.control import online

T, M, Q, B = 40, 5, 2, 2
KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
CONTEXTS = RANDOM.normal(size=(T, Q))
CHOSEN = np.where(CONTEXTS[:, 0] + RANDOM.normal(size=T) > 0, 0, 1)
ACTIONS = np.stack([CHOSEN, RANDOM.integers(2, M, T)], axis=1).astype(np.int32)
UTILITIES = CONTEXTS[:, 0] * (CHOSEN == 0) + 0.3 * RANDOM.normal(size=T)
LOG = control.Log(CONTEXTS, ACTIONS, UTILITIES, RANDOM.uniform(0.1, 0.9, T))
IMITATION = control.Task(LOG, M, B)
UTILITY = control.Task(LOG, M, B, "utility")
POLICY = control.SparsePolicy(
    positions=jnp.asarray([0, 3], jnp.int32),
    coef=jnp.asarray([[1.0, -0.5], [0.3, 0.2]]),
    intercept=jnp.linspace(-1, 0.5, M),
    background=jnp.zeros(0, jnp.int32),
    tools=None,
    budget=B,
)
MODEL = control.Interactions(
    tools=jnp.asarray([0, 3], jnp.int32),
    coef=jnp.asarray([[1.0, -0.5], [0.3, 0.2]]),
    pairs=jnp.asarray([[0, 3]], jnp.int32),
    pair_coef=jnp.asarray([[0.5, 0.1]]),
    constant=jnp.asarray(0.2),
)
HESSIAN = np.moveaxis(np.tile(np.eye(Q), (3, 3, 1, 1)), 2, 1) * 0.2
HESSIAN[np.arange(3), :, np.arange(3), :] = np.eye(Q)
SUPPORT = np.array([True, True, False])
X = RANDOM.normal(size=(20, 4))
PROBLEM = group_lasso.Problem(X, X[:, 0] + 0.1 * RANDOM.normal(size=20), Groups.equal(2, 2))
CHANNELS = RANDOM.normal(size=(2, T, M))
JOINT = control.JointPolicy(
    positions=jnp.asarray([0], jnp.int32),
    coef=jnp.ones((1, Q)),
    weights=jnp.zeros(2),
    intercept=jnp.zeros(M),
    cold=jnp.zeros(M, jnp.int32),
    learnt=jnp.asarray([0, 1], jnp.int32),
    budget=B,
)
FAST = {"tol": 1e-3, "max_steps": 50}


@functools.cache
def learner():
    return online.start_learner(KEY, IMITATION, lam=0.1)


@functools.cache
def solution():
    return control.fit(KEY, IMITATION, lam=0.1)


@functools.cache
def saved():
    path = pathlib.Path(tempfile.mkdtemp()) / "policy.npz"
    POLICY.save(path)
    return path


def tasked(task=IMITATION, **more):
    return lambda: {"key": KEY, "task": task, "lam": 0.1, **FAST, **more}


DUAL = online.dual_average(M, Q, B, np.dtype(float))
CALLS = {
    "control.Task": lambda: {
        "log": LOG,
        "num_actions": M,
        "budget": B,
        "objective": "weighted",
        "intercept": "shared",
        "smoothing": 0.5,
        "weighting": "advantage",
        "advantage_scale": 0.7,
        "clip": 3.0,
        "families": np.array([0, 0, 1, -1, 1]),
        "family_share": 0.4,
    },
    "control.SparsePolicy": lambda: {
        "positions": np.array([0, 3]),
        "coef": np.ones((2, Q)),
        "intercept": np.zeros(M),
        "background": np.array([1]),
        "tools": np.arange(M),
        "budget": B,
        "meaning": ("imitation", "per_tool"),
    },
    "control.Channels": lambda: {
        "values": CHANNELS,
        "learnt": np.array([0, 1]),
        "fold": np.arange(T) % 3,
        "cold_weight": 0.2,
    },
    "control.JointPolicy": lambda: {
        "positions": np.array([0, 3]),
        "coef": np.ones((2, Q)),
        "weights": np.ones(2),
        "intercept": np.zeros(M),
        "cold": np.array([0, 0, 0, 0, 1]),
        "learnt": np.array([0, 1]),
        "budget": B,
    },
    "control.PairwisePolicy": lambda: {
        "sets": np.array([[-1], [0]]),
        "features": np.array([[0.0], [1.0]]),
        "coef": np.ones((1, Q)),
        "temperature": 0.5,
    },
    "control.fit": lambda: tasked(refit=True, state=solution().state)(),
    "control.lam_max": lambda: {"task": IMITATION},
    "control.simulated_lam": lambda: {"key": KEY, "task": IMITATION},
    "control.fit_interactions": lambda: {
        "task": UTILITY,
        "lam": 0.1,
        "pair_weight": 1.8,
        "tol": 1e-3,
        "max_steps": 5,
    },
    "control.fit_joint": lambda: {
        "task": IMITATION,
        "channels": control.Channels(CHANNELS, learnt=np.array([0, 1]), fold=np.arange(T) % 3),
        "lam": 0.05,
        "ridge": 0.01,
        "weight_ridge": 0.01,
        "intercept_ridge": 0.01,
        "exactly": True,
        "tol": 1e-3,
        "max_steps": 20,
        "state": JOINT,
    },
    "control.pairwise_policy": lambda: {"model": MODEL, "budget": B, "temperature": 0.5},
    "control.load_policy": lambda: {"path": saved()},
    "control.importance_value": lambda: {
        "log_ratio": 0.1 * CONTEXTS[:, 0],
        "utilities": UTILITIES,
        "predicted": 0.5 * UTILITIES,
        "expected": CONTEXTS[:, 1],
        "groups": np.arange(T) % 5,
        "self_normalised": True,
        "max_weight": 2.0,
        "confidence": 0.9,
    },
    "control.off_policy_value": lambda: {
        "policy": POLICY,
        "log": LOG,
        "method": "self_normalised",
        "lam": 0.1,
        "folds": 2,
        "max_weight": 2.0,
        "confidence": 0.9,
        "key": KEY,
    },
    "control.diagnose": lambda: {
        "task": IMITATION,
        "answer": solution(),
        "key": KEY,
        "lam": 0.1,
        "truth": np.array([0, 1]),
        "num_resamples": 0,
    },
    "control.online.Learner": lambda: {
        name: getattr(learner(), name)
        for name in ("task", "solution", "records", "seen", "next_fit", "num_fits", "options")
    },
    "control.online.start_learner": tasked(refit=False),
    "control.online.update_learner": lambda: {
        "learner": learner(),
        "log": LOG,
        "growth": 3.0,
        "window": 50,
        "force": True,
        "lam": 0.1,
    },
    "control.online.explore": lambda: {
        "key": KEY,
        "policy": POLICY,
        "context": np.array([0.5, -0.5]),
        "rate": 0.5,
        "available": np.array([True, True, False, True, True]),
    },
    "control.online.DualAverage": lambda: {
        "gradient": np.ones((M, Q)),
        "intercept_gradient": np.ones(M),
        "coef": np.ones((M, Q)),
        "intercept": np.ones(M),
        "count": 1,
        "budget": B,
    },
    "control.online.dual_average": lambda: {
        "num_actions": M,
        "num_features": Q,
        "budget": B,
        "dtype": np.float64,
    },
    "control.online.dual_average_step": lambda: {
        "at": DUAL,
        "context": np.array([0.5, -0.5]),
        "actions": np.array([3, -1], np.int32),
        "lam": 0.1,
        "step": 1.0,
    },
    "control.robust.robust_regression": lambda: {
        "problem": PROBLEM,
        "lam": 0.05,
        "threshold": 1.3,
        "reject": 3.0,
        "num_rounds": 1,
        "num_reweights": 1,
        "tol": 1e-3,
        "max_steps": 200,
    },
    "control.robust.fit_robust": tasked(
        UTILITY, threshold=1.3, reject=3.0, num_reweights=1, leverage=0.9, max_steps=2000
    ),
    "control.robust.leverage_weights": lambda: {"contexts": CONTEXTS, "quantile": 0.9},
    "control.robust.median_of_means": lambda: {"rows": CONTEXTS, "num_blocks": 4, "num_steps": 10},
    "control.conditions.irrepresentability": lambda: {
        "hessian": HESSIAN,
        "support": SUPPORT,
        "coef": np.ones((3, Q)),
        "weights": np.ones(3),
    },
    "control.conditions.restricted_curvature": lambda: {
        "hessian": HESSIAN,
        "support": SUPPORT,
        "cone": 2.0,
        "whole": True,
        "num_restarts": 2,
        "num_steps": 5,
    },
    "control.conditions.signal_threshold": lambda: {
        "hessian": HESSIAN,
        "support": SUPPORT,
        "lam": 0.1,
        "weights": np.ones(3),
    },
    "control.conditions.oracle_witness": lambda: {
        "problem": PROBLEM,
        "support": np.array([True, False]),
        "lam": 0.1,
        "tol": 1e-3,
    },
}
