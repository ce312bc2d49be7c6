"""E1 on imitation logs: the sets are drawn from the sparse Gibbs model itself, and fitted by its
likelihood.
"""

from typing import Any

import jax
import numpy as np

from benchmarks.cases.control_recovery import midpoint
from benchmarks.harness import Options
from jaxsac import control
from jaxsac.problems.tool_logs import sparse_tool_log

SHAPE: dict[str, Any] = {"num_features": 4, "budget": 4, "num_relevant": 4, "mean_size": 2.0}
SMOKE_SHAPE = SHAPE | {
    "num_features": 2,
    "budget": 2,
    "mean_size": 1.0,
}  # as in E3, so that they share their compilations


def phase_transition(options: Options, sizes, samples, seeds: int) -> list[dict[str, Any]]:
    """P(exact support) against T, and its midpoint, for each M; lam is the multiplier simulation of
    the first log of each (M, T).
    """
    rows = []
    shape = SMOKE_SHAPE if options.smoke else SHAPE
    k = shape["num_relevant"]
    for size in options.progress(sizes, "E1, imitation"):
        found = []
        for records in samples:
            exact, lam = [], None
            for seed in range(seeds):
                key = jax.random.fold_in(jax.random.key(12), seed)
                truth = sparse_tool_log(key, num_records=records, num_actions=size, **shape)
                log = control.Log(truth.contexts, truth.actions)
                options_of_fit: dict[str, Any] = {
                    "num_actions": size,
                    "budget": shape["budget"],
                    "tol": 1e-4,
                }
                solution = control.fit(
                    key, log, lam="simulated" if lam is None else lam, **options_of_fit
                )
                lam = solution.stats["lam"]
                exact.append(np.array_equal(solution.value.support, truth.support))
            found.append(float(np.mean(exact)))
        middle, error = midpoint(np.array(samples, float), np.array(found), seeds)
        row = {
            "M": size,
            "k": k,
            "T at 50 %": middle,
            "standard error": error,
            "T / (k log M)": middle / (k * np.log(size)),
        }
        rows.append(
            row
            | {f"P at T = {records}": rate for records, rate in zip(samples, found, strict=True)}
            | {"seeds": seeds}
        )
    return rows
