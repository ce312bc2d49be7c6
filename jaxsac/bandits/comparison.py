"""Several algorithms on the same problems."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import (
    anything,
    arguments,
    choice,
    either,
    function,
    integer,
    key,
    real,
    size,
)
from jaxsac.bandits.engine.steps import Run
from jaxsac.bandits.phased.rule import FOREVER
from jaxsac.bandits.simulation import simulate
from jaxsac.trials import run_trials


class Comparison(NamedTuple):
    """What each algorithm did in the same n trials."""

    runs: dict[str, Run]  # by name; every array has a leading axis [n]

    def plot(self, axes: Any) -> Any:
        """Mean regret against the step on matplotlib's `axes`, which it returns; with bands of two
        standard errors where there are several trials.
        """
        for name, run in self.runs.items():
            times, regret = np.asarray(run.times[0]), np.asarray(run.regret)
            mean = regret.mean(0)
            (line,) = axes.plot(times, mean, label=name)
            if len(regret) > 1:
                error = 2.0 * regret.std(0, ddof=1) / len(regret) ** 0.5
                band = mean - error, mean + error
                axes.fill_between(times, *band, color=line.get_color(), alpha=0.2)
        axes.set(xscale="log", yscale="log", xlabel="step", ylabel="regret")
        axes.legend(frameon=False, fontsize="small")
        return axes


@arguments(
    key=key(),
    algorithms=anything("{name: algorithm}"),
    theta=either(real("d"), function("(key) -> theta [d]")),
    sigma=real(low=0, below=float("inf")),
    horizon=integer(low=1, below=FOREVER),
    num_trials=size(1),
    benchmark=choice("optimal", "greedy"),
)
def compare(
    key: jax.Array,
    algorithms: Mapping[str, Any],
    theta: jax.Array | Callable[[jax.Array], jax.Array],
    *,
    sigma: Any,
    horizon: int,
    num_trials: int,
    benchmark: str = "optimal",
) -> Comparison:
    """Simulate several algorithms on the same problems: trial i has the same parameter and the same
    key for all of them.

    * `algorithms`: {name: algorithm}, at least one.
    * `theta`: [d], or a prior: a function of a key that draws it anew for each trial.
    * `sigma`, `horizon`, `benchmark`: as in `simulate`; `num_trials`: ≥ 1.

    Returns: a `Comparison`: `runs[name]` is the `Run` of all trials, at 64 times in geometric
    progression, and `plot(axes)` draws them.

    Raises: ValueError as `simulate` does.
    """
    _checks.require(
        isinstance(algorithms, Mapping) and len(algorithms) > 0,
        "algorithms must be a dict {name: algorithm} with at least one.",
    )

    def trials(algorithm: Any) -> Run:
        def one(key: jax.Array) -> Run:
            prior, key = jax.random.split(key)
            drawn = theta(prior) if callable(theta) else theta
            return simulate(
                key, algorithm, drawn, sigma=sigma, horizon=horizon, benchmark=benchmark
            )

        return run_trials(one, key, num_trials)

    return Comparison({name: trials(algorithm) for name, algorithm in algorithms.items()})
