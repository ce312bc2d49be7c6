"""What the contract checks of the group lasso."""

import jax
import jax.numpy as jnp
import numpy as np
from contract import Case

from jaxsac import Groups, group_lasso
from jaxsac.prox import Penalty

GROUPS = Groups.from_sizes([2, 3, 1, 3, 2])


def regression(seed, dtype):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(24, 11))
    y = X @ (rng.normal(size=11) * (np.arange(11) < 5)) + 0.1 * rng.normal(size=24)
    return {
        "X": jnp.asarray(X, dtype),
        "y": jnp.asarray(y, dtype),
        "sample_weight": jnp.asarray(rng.uniform(0.5, 1.5, 24), dtype),
    }


def classes(seed, dtype):
    problem = regression(seed, dtype)
    return {**problem, "y": jnp.sign(problem["y"])}


def wide(seed, dtype):
    """Large enough for working sets driven from the host."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(64, 4400))
    y = X[:, :12] @ rng.normal(size=12) + 0.1 * rng.normal(size=64)
    return {"X": jnp.asarray(X, dtype), "y": jnp.asarray(y, dtype)}


def tolerance(X):
    return 1e-5 if X.dtype == jnp.float32 else 1e-13


def solve(loss):
    def call(X, y, sample_weight, lam, **more):
        arguments = {"groups": GROUPS, "intercept": True, "tol": tolerance(X), **more}
        groups = arguments.pop("groups")
        return group_lasso.solve(
            X, y, groups, lam, loss=loss, sample_weight=sample_weight, **arguments
        )

    return call


def path(X, y, sample_weight, min_ratio, num_lams=3):
    problem = group_lasso.Problem(X, y, GROUPS, sample_weight=sample_weight, intercept=True)
    found = group_lasso.path(problem, num_lams=num_lams, min_ratio=min_ratio, tol=tolerance(X))
    return jax.tree.map(lambda leaf: leaf[2], found)


def refit(X, y, sample_weight, lam, penalty=None):
    problem = group_lasso.Problem(X, y, GROUPS, sample_weight=sample_weight, penalty=penalty)
    # Relative to what is left of y: in float32 the default, for more is beyond its rounding.
    tol = None if X.dtype == jnp.float32 else tolerance(X)
    return group_lasso.refit(problem, group_lasso.solve(problem, lam), tol=tol)


def from_the_host(X, y, lam, max_steps=100):
    problem = group_lasso.Problem(X, y, Groups.equal(1100, 4))
    return group_lasso.solve(problem, lam, max_steps=max_steps)


BAD = [
    ({"y": jnp.zeros(23)}, r"y must have shape \[24\]"),
    ({"X": jnp.zeros(24)}, r"X must have shape"),
    ({"lam": -1.0}, r"lam must be ≥ 0"),
    ({"sample_weight": -jnp.ones(24)}, r"sample_weight must be ≥ 0"),
    ({"groups": Groups.equal(4, 3)}, r"groups must have p = 11, got 12"),
    ({"weights": "size"}, r"weights must be one of 'sqrt_size'"),
    ({"max_steps": -1}, r"max_steps must be ≥ 0"),
]


def total(solution):
    return jnp.sum(jnp.sin(solution.value.coef)) + solution.value.intercept**2


# Solutions found to a gap of 1e-13 have errors of 1e-7 in the coefficients.
CLOSE = {"gradient_rtol": 1e-4, "tolerance": {"float32": 2e-2, "float64": 1e-5}}

CASES = [
    Case(
        name=f"group_lasso.solve {loss}",
        problem=problem,
        solve=solve(loss),
        hyper={"lam": lam},
        sweep={"lam": [lam, 0.5 * lam]},
        poison="X",
        differentiate=["lam", "X", "sample_weight"] + (["y"] if loss == "squared" else []),
        scalar=total,
        bad=BAD,
        **CLOSE,
    )
    for loss, problem, lam in (("squared", regression, 0.2), ("logistic", classes, 0.05))
] + [
    Case(
        name="group_lasso.path",
        problem=regression,
        solve=path,
        hyper={"min_ratio": 0.2},
        sweep={"min_ratio": [0.2, 0.1]},
        poison="X",
        differentiate=["y"],
        scalar=total,
        bad=[
            ({"min_ratio": 0.0}, "min_ratio must be > 0"),
            ({"num_lams": 0}, "num_lams must be ≥ 1"),
        ],
        **CLOSE,
    ),
    Case(
        name="group_lasso.refit",
        problem=regression,
        solve=refit,
        hyper={"lam": 0.2},
        poison="X",
        differentiate=["X", "y"],
        scalar=total,
        bad=[({"penalty": Penalty(l1=1.0)}, "may only be a ridge")],
        **CLOSE,
    ),
    Case(
        name="group_lasso.solve from the host",
        problem=wide,
        solve=from_the_host,
        hyper={"lam": 0.5},
        bad=[({"lam": -1.0}, "lam must be ≥ 0"), ({"max_steps": -1}, "max_steps must be ≥ 0")],
        host=True,
    ),
]
