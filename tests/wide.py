"""Wide random problems, large enough for the host-driven working sets; and the compiled loop to
compare with.
"""

import jax.numpy as jnp
import numpy as np

from jaxsac import Groups, group_lasso
from jaxsac.group_lasso import solver
from jaxsac.group_lasso.methods.limits import Limits
from jaxsac.group_lasso.methods.loop import programs

T, G = 64, 1100
EQUAL = Groups.equal(G, 4)
UNEQUAL = Groups.from_sizes([1 + (g % 5) for g in range(G + 280)])


def problem(seed, loss, groups, dtype):
    rng = np.random.default_rng(seed)
    p = groups.num_coefficients
    X = rng.normal(size=(T, p)) + 0.7 * rng.normal(size=(T, 1)) + rng.uniform(0, 1, size=p)
    score = X[:, :25] @ rng.normal(size=25)
    score = (score - score.mean()) / score.std()
    y = 3 * score + rng.normal(size=T) + 1
    if loss == "logistic":
        y = np.where(rng.uniform(size=T) < 1 / (1 + np.exp(-2 * score)), 1.0, -1.0)
    sample_weight = rng.uniform(0.5, 1.5, T)
    sample_weight[:2] = 0
    weights = rng.uniform(0.5, 2, groups.num_groups)
    weights[[3, 17]] = 0
    everything = {
        "weights": weights,
        "sample_weight": sample_weight,
        "offset": 0.3 * rng.normal(size=T),
    }
    return (
        jnp.asarray(X, dtype),
        jnp.asarray(y, dtype),
        {k: jnp.asarray(v, dtype) for k, v in everything.items()},
    )


def compiled_solve(
    X, y, groups, lam, *, loss, tol, state=None, max_steps=20_000, intercept=False, **arrays
):
    whole = group_lasso.Problem(X, y, groups, loss, intercept=intercept, **arrays)
    at = whole.at(lam)
    solution = programs.solve(at, Limits.of(tol, max_steps, X.dtype), state)
    return solver._answer(whole, solution, at.lam, None)
