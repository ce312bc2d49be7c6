"""What the contract checks of the group lasso."""

import jax.numpy as jnp
import numpy as np
from contract import Case

from jaxsac import Groups, group_lasso

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


def solve(loss):
    def call(X, y, sample_weight, lam, **more):
        tol = 1e-5 if X.dtype == jnp.float32 else 1e-13
        arguments = {"groups": GROUPS, "intercept": True, "tol": tol, **more}
        groups = arguments.pop("groups")
        return group_lasso.solve(
            X, y, groups, lam, loss=loss, sample_weight=sample_weight, **arguments
        )

    return call


BAD = [
    ({"y": jnp.zeros(23)}, r"y must have shape \[24\]"),
    ({"X": jnp.zeros(24)}, r"X must have shape"),
    ({"lam": -1.0}, r"lam must be >= 0"),
    ({"sample_weight": -jnp.ones(24)}, r"sample_weight must be >= 0"),
    ({"groups": Groups.equal(4, 3)}, r"groups partition 12 coefficients but X has 11"),
    ({"weights": "size"}, r"weights must be None, 'sqrt_size'"),
    ({"max_steps": -1}, r"max_steps must be at least 0"),
]


def total(solution):
    return jnp.sum(jnp.sin(solution.value.coef)) + solution.value.intercept**2


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
        gradient_rtol=1e-4,  # of a solution found to a gap of 1e-13, which leaves errors of 1e-7 in the coefficients
        tolerance={"float32": 2e-2, "float64": 1e-5},
    )
    for loss, problem, lam in (("squared", regression, 0.2), ("logistic", classes, 0.05))
]
