"""Regret of an algorithm on a linear bandit with a known parameter."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac.bandits.engine.cycles import simulate_cycles
from jaxsac.bandits.engine.steps import (
    Problem,
    Run,
    Setting,
    Trial,
    simulate_phased,
    simulate_steps,
)
from jaxsac.bandits.phased.schedule import FOREVER, Phased, cast_algorithm, make_plan
from jaxsac.bandits.sets.supports import benchmark_value

_NOISES = ("gaussian", "rademacher", "uniform")
_NUM_TIMES = 64


def simulate(
    key: jax.Array,
    algorithm: Any,
    theta: jax.Array,
    *,
    sigma: jax.Array | float,
    horizon: jax.Array | int,
    record: jax.Array | None = None,
    benchmark: str = "optimal",
    alpha: jax.Array | float = 1.0,
    noise: str | Callable[[jax.Array, tuple[int, ...]], jax.Array] = "gaussian",
    draws: str = "all",
    engine: str = "auto",
    offer: Any = None,
) -> Run:
    """Play `horizon` steps against rewards ⟨theta, x⟩ + sigma · noise.

        regret = Σ_t (benchmark − ⟨theta, x_t⟩)

    * `key`: consumed.
    * `theta`: [d].
    * `sigma`: ≥ 0, the true scale of the noise (the algorithm has its own belief).
    * `horizon`: ≥ 1 and below 2^30, may be traced.
    * `record`: int [K], the times of interest, by default 64 in geometric progression; times after
      the horizon count as the horizon.
    * `benchmark`: "optimal" is the reward of the best s-sparse action, "greedy" that of the greedy
      support of theta, "alpha" `alpha` times the optimal one.
    * `noise`: "gaussian", "rademacher", "uniform" (variance 1), or a function (key, shape) ->
      draws, defined once: a new function is a new compilation.
    * `engine`: "cycle" for phased algorithms on a fixed set (one iteration per cycle, exact at
      every time), "step" for all; "auto" takes "cycle" where it can. Both make the same decisions
      from the same key.
    * `draws`: "all"; "support" draws, after the lock, only the noise of the locked coordinates:
      equal in law, not draw by draw, faster, Gaussian noise only; under `vmap` it starts when all
      lanes are locked or done.
    * `offer`: what each step makes available, for the step engine: an array or a pytree handed to
      `algorithm.act` (the arms [K, d] of `lin_ucb` and `lin_ts`, the mask [d] of
      `adaptive_greedy`), or a function of a key, defined once, that draws it anew.

    Returns: a `Run`; a NaN in theta gives NaN regret and no lock. Batch with `jax.vmap` or
    `run_trials`, which the cycle engine turns into one hand-written loop over all lanes. Not
    differentiable: decisions are discrete.

    Raises: ValueError for numbers out of range, and for what an engine cannot do.

    Source: arXiv 2605.10151, Algorithms 1 and 2 and equation 5 (regret).
    """
    theta = _checks.real_array("theta", theta, ("d",))
    dtype = theta.dtype
    sigma = _checks.real_scalar("sigma", sigma, dtype, 0)
    alpha = _checks.real_scalar("alpha", alpha, dtype, 0)
    if _checks.is_concrete(horizon):
        _checks.require(
            1 <= int(horizon) < FOREVER,
            f"horizon must be at least 1 and below 2^30, got {horizon}.",
        )
    horizon = _checks.integer_array("horizon", horizon, ())
    if not callable(noise):
        _checks.choice("noise", noise, _NOISES)
    _checks.choice("draws", draws, ("all", "support"))
    _checks.choice("engine", engine, ("auto", "cycle", "step"))
    _checks.choice("benchmark", benchmark, ("optimal", "greedy", "alpha"))
    phased = isinstance(algorithm, Phased)
    _checks.require(
        not phased or offer is None,
        "phased algorithms play a fixed set: leave offer out, or use adaptive_greedy.",
    )
    if engine == "auto":
        engine = "cycle" if phased else "step"
    _checks.require(
        engine == "step" or phased, "the cycle engine runs phased algorithms: use engine='step'."
    )
    if draws == "support":
        _checks.require(
            engine == "cycle" and noise == "gaussian",
            "draws='support' needs the cycle engine and Gaussian noise: use draws='all'.",
        )
        _checks.require(
            algorithm.rule.verify is not None and not algorithm.estimate_sigma,
            "draws='support' needs an algorithm that locks: use draws='all'.",
        )
    if record is None:
        times = _geometric_times(horizon)
    else:
        times = jnp.minimum(_checks.integer_array("record", record, ("times",)), horizon)
        if _checks.is_concrete(record):
            _checks.require(bool(np.all(np.asarray(record) >= 0)), "record must hold times >= 0.")
    draw = None
    if callable(offer):
        draw, offer = offer, None
    trial = Trial(key, theta, sigma, horizon, times, alpha, offer)
    setting = Setting(benchmark, noise, draws, engine, draw)
    return _simulate(cast_algorithm(algorithm, dtype), trial, setting)


def _geometric_times(horizon: jax.Array) -> jax.Array:
    fractions = jnp.linspace(0.0, 1.0, _NUM_TIMES)
    times = jnp.round(jnp.exp(fractions * jnp.log(horizon.astype(fractions.dtype)))).astype(
        jnp.int32
    )
    return jnp.minimum(times, horizon).at[-1].set(horizon)


@partial(jax.jit, static_argnames="setting")
def _simulate(algorithm: Any, trial: Trial, setting: Setting) -> Run:
    if not isinstance(algorithm, Phased):
        return simulate_steps(algorithm, trial, setting)
    key, theta, sigma, horizon, times, alpha, _ = trial
    plan = make_plan(algorithm, theta.shape[0], theta.dtype)
    optimum = benchmark_value(plan.action_set, theta, algorithm.sparsity, setting.benchmark, alpha)
    problem = Problem(key, theta, sigma, horizon, times, plan, optimum)
    if setting.engine == "cycle":
        return simulate_cycles(setting.noise, setting.draws, problem)
    return simulate_phased(setting.noise, problem)
