"""Good calls of the bandits, for the test that makes them wrong."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import bandits
from jaxsac.bandits.phased.rule import Rule, scheduled

KEY = jax.random.key(0)
THETA = np.array([0.9, -0.1, 0.7, 0.2])
BALL = bandits.Ball()
SET = {"action_set": BALL, "sparsity": 2}
NOISE = {"sigma": 0.1, "delta": 0.05}
RADIUS = {"radius": "hkz", "radius_scale": 1.0, "basis": np.eye(4), "schedule_scale": 1.0}


def smooth(theta, mask):
    return jnp.sum(jnp.where(mask, theta, 0.0) ** 2) ** 0.5


def size(x):
    return jnp.sum(x**2) ** 0.5


def supports(**more):
    return lambda: {"action_set": BALL, "theta": THETA, "sparsity": 2, **more}


CALLS = {
    "bandits.Ball": lambda: {"radius": 1.5},
    "bandits.CrossPolytope": lambda: {"radius": 1.5},
    "bandits.Simplex": lambda: {"radius": 1.5},
    "bandits.LpBall": lambda: {"p": 1.5, "radius": 1.0},
    "bandits.Box": lambda: {"low": np.array([-1.0, 0.0]), "high": 1.0},
    "bandits.Ellipsoid": lambda: {"matrix": np.array([[1.0, 0.3], [0.3, 1.0]])},
    "bandits.Polytope": lambda: {
        "inequalities": (np.concatenate([np.eye(2), -np.eye(2)]), np.ones(4))
    },
    "bandits.Product": lambda: {"parts": [BALL, bandits.Box()], "sizes": [2, 2]},
    "bandits.Masked": lambda: {"whole": BALL, "available": np.array([1.0, 0.0, 1.0])},
    "bandits.FromSupport": lambda: {"function": smooth, "bound": 1.0, "gauge_function": size},
    "bandits.greedy_support": supports(),
    "bandits.best_support": supports(),
    "bandits.branch_and_bound": supports(max_nodes=100),
    "bandits.submodularity_ratio": supports(),
    "bandits.error_radius": lambda: {"cycle": 3.0, "basis": np.eye(3), "kind": "hkz", **NOISE},
    "bandits.exploration_basis": lambda: {
        "key": KEY,
        "action_set": BALL,
        "dimension": 4,
        "sparsity": 2,
        "kind": "block_orthogonal",
        "allow_dense": False,
    },
    "bandits.Phased": lambda: {
        "rule": Rule(None, scheduled),
        "schedule_power": 0.5,
        "commit_at": 5,
        "gap_factor": 2.0,
        "lam": 0.1,
        "enough": 0.5,
        "lasso": False,
        **SET,
        **NOISE,
        **RADIUS,
    },
    "bandits.apsee": lambda: {"commit_at": 5, **SET, **NOISE, **RADIUS},
    "bandits.apsee_greedy": lambda: {"gap_factor": 2.0, "commit_at": 5, **SET, **NOISE, **RADIUS},
    "bandits.phased_greedy": lambda: {
        "basis": np.eye(4),
        "schedule_scale": 1.0,
        "schedule_power": 0.5,
        **SET,
    },
    "bandits.explore_then_commit": lambda: {"num_cycles": 3, "basis": np.eye(4), **SET},
    "bandits.estc": lambda: {"num_cycles": 3, "lam": 0.1, "basis": np.eye(4), **SET},
    "bandits.e2tc": lambda: {
        "sigma": 0.1,
        "horizon": 100.0,
        "scale": 1.0,
        "basis": np.eye(4),
        **SET,
    },
    "bandits.regret_bound": lambda: {
        "algorithm": bandits.phased_greedy(**SET),
        "theta": THETA,
        "horizon": 100,
        **NOISE,
    },
    "bandits.stopping_time": lambda: {"algorithm": bandits.apsee(**SET, **NOISE), "theta": THETA},
    "bandits.lin_ucb": lambda: {"ridge": 1.0, "bound": 1.0, **NOISE},
    "bandits.lin_ts": lambda: {"sigma": 0.1, "ridge": 1.0},
    "bandits.thompson": lambda: {"sigma": 0.1, "prior_scale": 2.0, "hold": 0.02, **SET},
    "bandits.prove_support": lambda: {"tolerance": 0.1, "schedule_scale": 0.5, **SET, **NOISE},
    "bandits.optimistic_greedy": lambda: {
        "ridge": 1.0,
        "bound": 1.0,
        "num_rounds": 2,
        **SET,
        **NOISE,
    },
    "bandits.adaptive_greedy": lambda: {"schedule_scale": 1.0, "schedule_power": 0.5, **SET},
    "bandits.replay": lambda: {
        "key": KEY,
        "policy": bandits.lin_ucb(**NOISE),
        "offers": np.eye(3)[None].repeat(4, 0),
        "actions": np.eye(3)[[0, 1, 2, 0]],
        "rewards": np.array([0.9, -0.1, 0.7, 0.8]),
        "propensities": np.array([0.5, 0.3, 0.3, 0.5]),
    },
    "bandits.compare": lambda: {
        "key": KEY,
        "algorithms": {"e2tc": bandits.e2tc(BALL, sparsity=2, sigma=0.1, horizon=20)},
        "theta": THETA,
        "sigma": 0.1,
        "horizon": 20,
        "num_trials": 2,
        "benchmark": "optimal",
    },
    "bandits.simulate": lambda: {
        "key": KEY,
        "algorithm": bandits.apsee(**SET, **NOISE),
        "theta": THETA,
        "sigma": 0.1,
        "horizon": 40,
        "record": np.array([10, 40]),
        "benchmark": "alpha",
        "alpha": 0.9,
        "noise": "gaussian",
        "draws": "all",
        "engine": "auto",
        "offer": None,
    },
}
