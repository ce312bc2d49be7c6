"""Regret of an algorithm on a linear bandit with a known parameter."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks
from jaxsac.bandits.cycle_engine import BLOCK, Problem, draw_noise, noise_block, simulate_batched
from jaxsac.bandits.sets.supports import best_support, cast
from jaxsac.bandits.phased import FOREVER, Phased, plan

_NOISES = ("gaussian", "rademacher", "uniform")
_NUM_TIMES = 64
_STEP_STREAM = 2**31 - 2  # folded into the key of what a step-wise environment draws


class Run(NamedTuple):
    """What a simulation recorded; K times and s coordinates.

    `regret` [K] is the cumulative pseudo-regret (no noise in it; it may be negative against a
    benchmark below the best) at `times` int32 [K]. `locked` says whether a support was locked,
    `lock_time` int32 after how many steps (-1: never), and `support` int32 [s] is that support in
    ascending order (-1: none), or the last one chosen by an algorithm that never locks.
    """

    regret: jax.Array
    times: jax.Array
    locked: jax.Array
    lock_time: jax.Array
    support: jax.Array


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
    """Play `horizon` steps against rewards <theta, x> + sigma * noise and return the cumulative
    regret sum_t (benchmark - <theta, x_t>).

    `theta` [d]; `sigma` >= 0 is the true scale of the noise (the algorithm has its own belief);
    `horizon` >= 1 and below 2^30, may be traced; `record` int [K] are the times of interest, by
    default 64 in geometric progression, and times after the horizon count as the horizon.
    `benchmark`: "optimal" is the reward of the best s-sparse action, "greedy" that of the greedy
    support of theta, "alpha" `alpha` times the optimal one. `noise`: "gaussian", "rademacher",
    "uniform" (variance 1), or a function (key, shape) -> draws, defined once: a new function is a
    new compilation.

    `engine`: "cycle" for phased algorithms on a fixed set (one iteration per cycle, exact at every
    time), "step" for all; "auto" takes "cycle" where it can. Both make the same decisions from the
    same key. `draws="support"` draws, after the lock, only the noise of the locked coordinates:
    equal in law, not draw by draw, faster, Gaussian noise only; under `vmap` it starts when all
    lanes are locked or done.

    `offer` is what each step makes available, for the step engine: an array or a pytree handed to
    `algorithm.act` (the arms [K, d] of `lin_ucb` and `lin_ts`, the mask [d] of `adaptive_greedy`),
    or a function of a key, defined once, that draws it anew.

    Batch with `jax.vmap` or `run_trials`, which the cycle engine turns into one hand-written loop
    over all lanes. Not differentiable: decisions are discrete. A NaN in theta gives NaN regret and
    no lock. The key is consumed. Source: arXiv 2605.10151, Algorithms 1 and 2 and equation 5
    (regret).
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
            algorithm.rule != "always" and not algorithm.estimate_sigma,
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
    algorithm = _cast(algorithm, dtype)
    return _simulate(
        key,
        algorithm,
        Trial(theta, sigma, horizon, times, alpha, offer),
        Setting(benchmark, noise, draws, engine, draw),
    )


def _cast(algorithm, dtype):
    """Numbers as arrays of `dtype`, so that Python, numpy and jax numbers share one trace; only
    `commit_at` counts.
    """
    changed = cast(algorithm, dtype)
    if isinstance(algorithm, Phased):
        changed = eqx.tree_at(
            lambda tree: tree.commit_at, changed, jnp.asarray(algorithm.commit_at).astype(jnp.int32)
        )
    return changed


def _geometric_times(horizon: jax.Array) -> jax.Array:
    fractions = jnp.linspace(0.0, 1.0, _NUM_TIMES)
    times = jnp.round(jnp.exp(fractions * jnp.log(horizon.astype(fractions.dtype)))).astype(
        jnp.int32
    )
    return jnp.minimum(times, horizon).at[-1].set(horizon)


class Trial(NamedTuple):
    """What may differ between the trials of one compiled simulation."""

    theta: jax.Array
    sigma: jax.Array
    horizon: jax.Array
    times: jax.Array
    alpha: jax.Array
    offer: Any


class Setting(NamedTuple):
    """What is compiled in; `draw` makes the offers, where they are not given."""

    benchmark: str
    noise: str | Callable
    draws: str
    engine: str
    draw: Callable | None


@partial(jax.jit, static_argnames="setting")
def _simulate(key: jax.Array, algorithm: Any, trial: Trial, setting: Setting) -> Run:
    if not isinstance(algorithm, Phased):
        return _simulate_steps(key, algorithm, trial, setting)
    theta, times = trial.theta, trial.times
    prepared = plan(algorithm, theta.shape[0], theta.dtype)
    optimum = benchmark_value(
        prepared.action_set, theta, algorithm.sparsity, setting.benchmark, trial.alpha
    )
    cost = optimum - jnp.matmul(prepared.basis, theta, precision="highest")
    problem = Problem(key, theta, trial.sigma, prepared, optimum, cost, trial.horizon, times)
    if setting.engine == "cycle":
        regret, locked, lock_cycle, indices = simulate_batched(
            algorithm, setting.noise, setting.draws, problem
        )
    else:
        regret, locked, lock_cycle, indices = _simulate_phased_steps(
            algorithm, setting.noise, problem
        )
    return Run(
        regret,
        times,
        locked,
        jnp.where(locked, lock_cycle * prepared.basis.shape[0], -1),
        jnp.sort(indices),
    )


def benchmark_value(action_set, theta, sparsity: int, benchmark: str, alpha) -> jax.Array:
    """The reward per step that regret is measured against."""
    if benchmark == "greedy":
        return action_set.greedy(theta, sparsity).value
    best = best_support(action_set, theta, sparsity).value
    return alpha * best if benchmark == "alpha" else best


def _record_steps(times, horizon, dtype, state, step):
    """Run `step(t, state) -> (state, regret)` for t = 0, ..., horizon - 1 and record the cumulative
    regret at `times`.
    """

    def advance(carry):
        t, state, total, lost, recorded = carry
        state, regret = step(t, state)
        gain = regret - lost
        new_total = total + gain
        recorded = jnp.where(times == t + 1, new_total, recorded)
        return t + 1, state, new_total, (new_total - total) - gain, recorded

    zero = jnp.zeros((), dtype)
    carry = jnp.int32(0), state, zero, zero, jnp.zeros(times.shape, dtype)
    _, state, _, _, recorded = lax.while_loop(lambda carry: carry[0] < horizon, advance, carry)
    return state, recorded


def _simulate_phased_steps(algorithm: Phased, noise, problem: Problem):
    """The same law and, for the decisions, the same draws as the cycle engine, a step at a time."""
    dtype, number = problem.theta.dtype, problem.plan.basis.shape[0]
    state = algorithm.init(dimension=problem.theta.shape[0], dtype=dtype)

    def step(t, carry):
        state, block_noise = carry
        in_block = (state.cycle - 1) % BLOCK
        exploring = state.left == 0
        stale = exploring & (in_block == 0) & (state.position == 0)
        block_noise = lax.cond(
            stale,
            lambda: noise_block(noise, problem.key, (state.cycle - 1) // BLOCK, number, dtype),
            lambda: block_noise,
        )
        action = algorithm.act(state)
        mean = jnp.sum(problem.theta * action)
        # The rewards of the exploitation are never looked at, so their noise is not drawn.
        error = jnp.where(exploring, block_noise[in_block, state.position], 0.0)
        state = algorithm.update(state, action, mean + problem.sigma * error)
        return (state, block_noise), problem.optimum - mean

    start = state, jnp.zeros((BLOCK, number), dtype)
    (state, _), regret = _record_steps(problem.times, problem.horizon, dtype, start, step)
    return regret, state.locked, state.lock_cycle, state.indices


def _simulate_steps(key: jax.Array, algorithm: Any, trial: Trial, setting: Setting) -> Run:
    theta, draw, dtype = trial.theta, setting.draw, trial.theta.dtype
    init_key, key = jax.random.split(jax.random.fold_in(key, _STEP_STREAM))
    state = algorithm.init(init_key, dimension=theta.shape[0], dtype=dtype)
    fixed = (
        None
        if draw is not None
        else algorithm.benchmark(theta, trial.offer, setting.benchmark, trial.alpha)
    )

    def step(t, state):
        noise_key, offer_key = jax.random.split(jax.random.fold_in(key, t))
        offered = trial.offer if draw is None else draw(offer_key)
        best = (
            algorithm.benchmark(theta, offered, setting.benchmark, trial.alpha)
            if fixed is None
            else fixed
        )
        action = algorithm.act(state, offered)
        mean = jnp.sum(theta * action)
        error = draw_noise(setting.noise, noise_key, (), dtype)
        return algorithm.update(state, action, mean + trial.sigma * error, offered), best - mean

    state, regret = _record_steps(trial.times, trial.horizon, dtype, state, step)
    return Run(
        regret, trial.times, jnp.asarray(False), jnp.int32(-1), jnp.sort(algorithm.support(state))
    )
