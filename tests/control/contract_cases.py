"""What the contract checks of sparse agentic control: fits that drive their loops on the host, and
functions of arrays.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from contract import Case

from jaxsac import Groups, control, group_lasso

T, M, Q, B = 60, 6, 2, 2
CHANNELS = np.random.default_rng(7).normal(size=(2, T, M))
GROUPS = Groups.equal(num_groups=3, size=2)


def logged(seed, dtype):
    """Tools 0 and 1 follow the context, the others do not; utilities pay for the first."""
    random = np.random.default_rng(seed)
    contexts = random.normal(size=(T, Q))
    chance = 1 / (1 + np.exp(-(contexts @ random.normal(size=(Q, 2)) * 2)))
    own = np.where(random.uniform(size=(T, 2)) < chance, [0, 1], -1)[:, :1]
    actions = np.concatenate([own, random.integers(2, M, size=(T, 1))], axis=1).astype(np.int32)
    utilities = 1 + contexts[:, 0] * (own[:, 0] == 0) + 0.1 * random.normal(size=T)
    return {
        "contexts": jnp.asarray(contexts, dtype),
        "actions": actions,
        "utilities": jnp.asarray(utilities, dtype),
    }


def on_task(function, objective, keyed=True):
    """`function(key, task, ...)` of a log's arrays."""

    def call(contexts, actions, utilities, budget=B, **more):
        task = control.Task(control.Log(contexts, actions, utilities), M, budget, objective)
        return function(jax.random.key(0), task, **more) if keyed else function(task, **more)

    return call


BAD = [
    ({"contexts": np.zeros((T, 0))}, "log is empty"),
    ({"actions": np.full((T, 1), M)}, "log.actions must lie in 0..5"),
    ({"budget": 0}, "budget must be ≥ 1"),
    ({"lam": 0.0}, "lam must be > 0"),
]


def regression(seed, dtype):
    random = np.random.default_rng(seed)
    X = random.normal(size=(30, 6))
    y = X[:, 0] - X[:, 1] + 0.3 * random.normal(size=30)
    return {"X": jnp.asarray(X, dtype), "y": jnp.asarray(y, dtype)}


def robust(X, y, lam, **more):
    tol = 1e-5 if X.dtype == jnp.float32 else 1e-9
    problem = group_lasso.Problem(X, y, GROUPS, intercept=True)
    return control.robust.robust_regression(
        problem, lam, num_rounds=1, num_reweights=1, tol=tol, **more
    )


def draws(seed, dtype):
    random = np.random.default_rng(seed)
    return {
        "log_ratio": jnp.asarray(0.3 * random.normal(size=20), dtype),
        "utilities": jnp.asarray(random.normal(size=20), dtype),
    }


HOST = functools.partial(Case, problem=logged, host=True)
CASES = [
    HOST(
        name="control.fit imitation",
        solve=on_task(control.fit, "imitation"),
        hyper={"lam": 0.05},
        bad=[*BAD, ({"tol": -1.0}, "tol must be ≥ 0")],
    ),
    HOST(
        name="control.fit utility",
        solve=on_task(control.fit, "utility"),
        hyper={"lam": 0.05},
        bad=BAD,
    ),
    HOST(
        name="control.fit_interactions",
        solve=on_task(control.fit_interactions, "utility", keyed=False),
        hyper={"lam": 0.05},
        bad=[*BAD, ({"pair_weight": 1.0}, "pair_weight must be")],
    ),
    HOST(
        name="control.fit_joint",
        solve=on_task(
            lambda task, values=CHANNELS, **more: control.fit_joint(
                task, control.Channels(np.asarray(values, task.dtype)), **more
            ),
            "imitation",
            keyed=False,
        ),
        hyper={"lam": 0.05},
        bad=[*BAD, ({"values": CHANNELS[:, 1:]}, "channels are of")],
    ),
    HOST(
        name="control.robust.fit_robust",
        solve=on_task(control.robust.fit_robust, "utility"),
        hyper={"lam": 0.05},
        bad=BAD,
    ),
    Case(
        name="control.robust.robust_regression",
        problem=regression,
        solve=robust,
        hyper={"lam": 0.1},
        poison="X",
        bad=[({"threshold": 0.0}, "threshold must be > 0"), ({"y": jnp.zeros(29)}, "y must have")],
        tolerance={"float32": 2e-2, "float64": 1e-5},
    ),
    Case(
        name="control.importance_value",
        problem=draws,
        solve=control.importance_value,
        hyper={"max_weight": 1.5},
        sweep={"max_weight": [1.5, 3.0]},
        poison="utilities",
        differentiate=["log_ratio", "utilities"],
        scalar=lambda found: found.value + jnp.sin(found.standard_error),
        bad=[
            ({"utilities": jnp.zeros(19)}, "utilities must have shape"),
            ({"max_weight": -1.0}, "max_weight must be ≥ 0"),
        ],
        certified=False,
    ),
]
