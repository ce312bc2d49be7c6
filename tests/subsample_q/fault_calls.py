"""Good arguments of every public function of the room, for the fault test."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from subsample_q.models import random_arrays

from jaxsac import subsample_q as sq
from jaxsac.subsample_q import network

KEY = jax.random.key(0)
STATE = (1, np.array([2, 1, 1], np.int32))
TYPED_STATE = (1, np.array([[2, 1], [1, 1]], np.int32))
TYPES = (np.array([[[0.5, 0.5]], [[0.25, 0.75]]]), np.full((2, 2, 2, 2), 0.5))
KINDS = (np.array([[1.0], [2.0]]), np.arange(8.0).reshape(2, 2, 2))
TRAINING = network.Training(batch_size=4, width=4, depth=0)


@functools.cache
def model():
    return sq.Model(*random_arrays(0), 0.5)


@functools.cache
def typed_model():
    return sq.TypedModel(*TYPES, *KINDS, np.array([0.6, 0.4]), 0.5)


@functools.cache
def local_action_model():
    return sq.LocalActionModel(*TYPES, *KINDS, 0.5)


@functools.cache
def table():
    return sq.solve(model(), 2).value


@functools.cache
def environment():
    return network.from_model(model())


@functools.cache
def fitted():
    return network.learn_network(KEY, environment(), (2,), 2, TRAINING).value


def trajectory():
    generator = np.random.default_rng(0)
    states = (generator.integers(0, 2, shape) for shape in ((6,), (6, 4), (5,)))
    return sq.Trajectory(*states, generator.normal(size=5), generator.normal(size=(5, 4)))


ARRAYS = ("global_transition", "local_transition", "global_reward", "local_reward")
MARKS = {
    "allowed": np.array([[True, False], [True, True], [False, True]]),
    "terminal": np.array([False, False, True]),
}
STOP = {"tol": 1e-3, "max_steps": 50}
RUN = {"horizon": 3, "initial": STATE}

CALLS = {
    "subsample_q.HistogramSpace": lambda: {"k": 3, "num_states": 3},
    "subsample_q.Model": lambda: (
        dict(zip(ARRAYS, random_arrays(0), strict=True)) | {"discount": 0.5} | MARKS
    ),
    "subsample_q.TypedModel": lambda: (
        dict(zip(ARRAYS, (*TYPES, *KINDS), strict=True))
        | {"shares": np.array([0.6, 0.4]), "discount": 0.5, "allowed": None, "terminal": None}
    ),
    "subsample_q.LocalActionModel": lambda: (
        dict(zip(ARRAYS, (*TYPES, *KINDS), strict=True))
        | {"discount": 0.5, "share_reward": lambda g, shares: jnp.sum(shares), "allowed": None}
        | {"terminal": np.array([False, True])}
    ),
    "subsample_q.Plan": lambda: {
        "backend": "lumped",
        "k": 3,
        "reason": "two classes",
        "classes": np.array([[0, 0, 1]] * 3, np.int32),
        "num_classes": 2,
        "by_rows": True,
    },
    "subsample_q.plan": lambda: {"model": model(), "k": 2, "backend": "auto"},
    "subsample_q.lift": lambda: {
        "values": np.arange(18.0).reshape(3, 6),
        "num_states": 3,
        "num_agents": 3,
    },
    "subsample_q.population_state": lambda: {
        "global_state": 1,
        "shares": [0.2, 0.8],
        "num_agents": 10,
    },
    "subsample_q.solve": lambda: {
        "model": model(),
        "k": 2,
        "plan": sq.plan(model(), 2),
        "backend": "auto",
        "criterion": "discounted",
        "method": "anderson",
        "stopping": "span",
        **STOP,
        "initial": np.ones((3, 6)),
        "replies": 2,
    },
    "subsample_q.evaluate": lambda: {
        "model": model(),
        "policy": table(),
        "num_agents": 3,
        "plan_n": sq.plan(model(), 3),
        **STOP,
    },
    "subsample_q.learn": lambda: {
        "key": KEY,
        "model": model(),
        "k": 2,
        "num_samples": 3,
        "resample": "once",
        "share_local": False,
        **STOP,
    },
    "subsample_q.q_learning": lambda: {
        "key": KEY,
        "model": model(),
        "k": 2,
        "num_updates": 5,
        "initial": np.ones((3, 6, 2)),
    },
    "subsample_q.estimate": lambda: {
        "trajectories": trajectory(),
        "num_global_states": 2,
        "num_local_states": 2,
        "num_actions": 2,
        "discount": 0.5,
        "unseen": "pessimistic",
        "action_drives_agents": False,
    },
    "subsample_q.learn_from_trajectory": lambda: {
        "key": KEY,
        "trajectory": trajectory(),
        "k": 2,
        "num_global_states": 2,
        "num_local_states": 2,
        "num_actions": 2,
        "discount": 0.5,
        "num_passes": 1,
    },
    "subsample_q.record": lambda: {
        "reset": lambda: (0, np.zeros(2, int)),
        "step": lambda action: (action, np.zeros(2, int), 0.5, np.ones(2), False),
        "policy": lambda *_: 1,
        "num_steps": 3,
    },
    "subsample_q.simulate": lambda: {
        "key": KEY,
        "model": model(),
        "policy": table(),
        "num_agents": 4,
        **RUN,
    },
    "subsample_q.upper_bound": lambda: {"table": table(), "initial": STATE},
    "subsample_q.certify": lambda: {
        "key": KEY,
        "model": model(),
        "policy": table(),
        "num_agents": 4,
        "initial": STATE,
        "num_rollouts": 4,
        "upper": table(),
        "confidence": 0.9,
        "interval": "bounded",
        "horizon": 3,
    },
    "subsample_q.choose_k": lambda: {
        "key": KEY,
        "model": model(),
        "num_agents": 4,
        "gap": 1e3,
        "initial": STATE,
        "max_k": 2,
        "num_rollouts": 4,
        "confidence": 0.9,
        "interval": "normal",
        "tol": 1e-3,
    },
    "subsample_q.network.Training": lambda: {
        "batch_size": 4,
        "num_samples": 1,
        "width": 4,
        "depth": 0,
        "optimizer": None,
        "target_rate": 0.1,
    },
    "subsample_q.network.from_model": lambda: {"model": model()},
    "subsample_q.network.learn_network": lambda: {
        "key": KEY,
        "environment": environment(),
        "ks": (2,),
        "num_steps": 2,
        "training": TRAINING,
        "state": None,
    },
    "subsample_q.network.network_table": lambda: {"network": fitted(), "model": model(), "k": 2},
    "subsample_q.network.act": lambda: {
        "key": KEY,
        "network": fitted(),
        "environment": environment(),
        "global_state": np.int32(1),
        "local_states": np.array([0, 1, 2, 2], np.int32),
        "k": 2,
    },
    "subsample_q.network.simulate": lambda: {
        "key": KEY,
        "environment": environment(),
        "policy": fitted(),
        "horizon": 3,
        "initial": (np.int32(1), np.array([0, 1, 2, 2], np.int32)),
        "k": 2,
    },
    "subsample_q.sample_sizes": lambda: {
        "model": model(),
        "num_agents": 100,
        "epsilon": 1.0,
        "delta": 0.1,
    },
    "problems.subsample_q.random": lambda: {
        "seed": 0,
        "num_global": 2,
        "num_actions": 2,
        "num_local": 2,
        "discount": 0.5,
        "stay": 0.5,
    },
    "problems.subsample_q.mode_tracking": lambda: {
        "num_modes": 3,
        "discount": 0.5,
        "switching_cost": 0.1,
    },
    "problems.subsample_q.demand_response": lambda: {"scarce": False, "discount": 0.5},
    "problems.subsample_q.admission": lambda: {
        "capacity": 2,
        "discount": 0.5,
        "service": 0.5,
        "gate": (0.1, 0.5),
    },
    "problems.subsample_q.gaussian_squeeze": lambda: {
        "num_levels": 2,
        "targets": (0.5, 1.0),
        "width": 0.5,
        "slip": 0.1,
        "switch": 0.2,
        "discount": 0.5,
    },
    "problems.subsample_q.constrained_exploration": lambda: {
        "size": 2,
        "crowd": 0.5,
        "slip": 0.1,
        "discount": 0.5,
    },
    "problems.subsample_q.dispatch": lambda: {
        "num_queues": 2,
        "capacity": 2,
        "load": 0.7,
        "service": 0.5,
        "overflow": 1.0,
        "discount": 0.5,
    },
    "problems.subsample_q.power_of_k": lambda: {
        "seed": 0,
        "k": 2,
        "num_queues": 10,
        "load": 0.7,
        "service": 0.5,
        "steps": 4,
        "capacity": 3,
    },
}
