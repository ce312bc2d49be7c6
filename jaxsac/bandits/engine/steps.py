"""What a simulation is given and records, its noise, and its run a step or an action at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac.bandits.protocol import Total
from jaxsac.bandits.sets.action_set import ActionSet, Selection
from jaxsac.bandits.sets.supports import benchmark_of
from jaxsac.solution import Status, register

BLOCK = 8  # cycles of noise that are drawn together


@register
class Run(NamedTuple):
    """What a simulation recorded; K times and s coordinates. Where the status is NONFINITE, regret
    is NaN and nothing is locked.
    """

    regret: jax.Array  # [K], cumulative, without noise; may be negative against a lower benchmark
    times: jax.Array  # int32 [K], steps
    locked: jax.Array  # bool [], whether a support was locked
    lock_time: jax.Array  # int32 [], after how many steps; −1: never
    support: jax.Array  # int32 [s] ascending, the locked one, or the last one chosen; −1: none
    status: jax.Array  # int32 [], CONVERGED: the run is to be trusted; NONFINITE: a NaN or an ∞
    rewards: jax.Array  # [K], cumulative, without noise
    recovered: Any  # [K], the known share of the benchmark's support; None: arms have none


class Trial(NamedTuple):
    """What may differ between the trials of one compiled simulation."""

    key: jax.Array
    theta: jax.Array  # [d]
    sigma: Any  # []
    horizon: Any  # int32 []
    times: jax.Array  # int32 [K]
    alpha: Any  # [] or None
    offer: Any  # what every step makes available, if it is the same
    best: Any  # the benchmark, a Selection, if it is known
    plan: Any = None  # of a phased algorithm


class Setting(NamedTuple):
    """What is compiled in."""

    benchmark: str
    noise: str | Callable[[jax.Array, tuple[int, ...]], jax.Array]
    draws: str
    engine: str
    draw: Callable[[jax.Array], Any] | None  # makes the offers, where they are not given
    schedule: bool  # whether the offers are those of each step


def draw_noise(noise: Any, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Noise of scale 1: sub-Gaussian with constant 1 for the named ones."""
    if callable(noise):
        return jnp.asarray(noise(key, shape)).astype(dtype)
    if noise == "gaussian":
        return jax.random.normal(key, shape, dtype)
    if noise == "rademacher":
        return jax.random.rademacher(key, shape, dtype)
    return jax.random.uniform(key, shape, dtype, -(3.0**0.5), 3.0**0.5)


def noise_block(noise: Any, key: jax.Array, block: jax.Array, width: int, dtype: Any) -> jax.Array:
    """Noise [BLOCK, width] of the cycles BLOCK block + 1, ..., the same however lanes are batched
    and whichever engine asks.
    """
    return draw_noise(noise, jax.random.fold_in(key, block), (BLOCK, width), dtype)


STEP_STREAM = 2**31 - 2  # folded into the key of what a step-wise environment draws


def _record_steps(
    trial: Trial, state: Any, step: Callable, support: Callable
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """Run `step(t, state) -> (state, regret, reward)` for t = 0, ..., horizon − 1 and record the
    cumulative regret and rewards, and `support(state)`, at the times of the trial.
    """
    times, dtype = trial.times, trial.theta.dtype

    def advance(carry):
        t, state, total, recorded, chosen = carry
        state, regret, reward = step(t, state)
        total, here = total.plus(jnp.stack([regret, reward])), (times == t + 1)[:, None]
        recorded = jnp.where(here, total.value, recorded)
        chosen = _loops.cond(
            jnp.any(here),
            lambda s, c: jnp.where(here, support(s), c),
            lambda _, c: c,
            state,
            chosen,
        )
        return t + 1, state, total, recorded, chosen

    zeros, recorded = jnp.zeros(2, dtype), jnp.zeros((*times.shape, 2), dtype)
    chosen = jnp.full((*times.shape, *support(state).shape), -1, jnp.int32)
    carry = jnp.int32(0), state, Total(zeros, zeros), recorded, chosen
    _, state, _, recorded, chosen = _loops.while_loop(
        lambda carry: carry[0] < trial.horizon, advance, carry
    )
    return state, recorded[:, 0], recorded[:, 1], chosen


def recovery(chosen: jax.Array, best: Selection, like: jax.Array) -> jax.Array:
    """The share [K] of the coordinates of `best` in `chosen` [K, s]."""
    found = jnp.sum((chosen >= 0) & best.mask[chosen], axis=1)
    return found.astype(like.dtype) / jnp.sum(best.mask).astype(like.dtype)


def status_of(finite: jax.Array) -> jax.Array:
    return jnp.where(finite, Status.CONVERGED, Status.NONFINITE).astype(jnp.int32)


def simulate_steps(algorithm: Any, trial: Trial, setting: Setting) -> Run:
    """Of an algorithm that decides at every step."""
    theta, dtype = trial.theta, trial.theta.dtype
    init_key, key = jax.random.split(jax.random.fold_in(trial.key, STEP_STREAM))

    changes = setting.draw is not None or setting.schedule
    fixed = None if changes else best_reward(algorithm, trial, setting.benchmark, trial.offer)

    def step(t, state):
        noise_key, offer_key = jax.random.split(jax.random.fold_in(key, t))
        offered = trial.offer if setting.draw is None else setting.draw(offer_key)
        if setting.schedule:
            offered = jax.tree.map(lambda offers: offers[t], offered)
        best = fixed
        if best is None:
            best = best_reward(algorithm, trial, setting.benchmark, offered)
        action = algorithm.act(state, offered)
        mean = jnp.sum(theta * action)
        error = draw_noise(setting.noise, noise_key, (), dtype)
        if setting.schedule:  # of a traced horizon beyond what there is
            steps = min(leaf.shape[0] for leaf in jax.tree.leaves(trial.offer))
            error = jnp.where(t < steps, error, jnp.nan)
        # A stream drops a reward that is no number; in a simulation it is a failure.
        gap = jnp.where(jnp.isfinite(error), best - mean, jnp.nan)
        return algorithm.update(state, action, mean + trial.sigma * error, offered), gap, mean

    state = algorithm.init(init_key, dimension=theta.shape[0], dtype=dtype)
    state, regret, rewards, chosen = _record_steps(trial, state, step, algorithm.support)
    return run_of(algorithm, trial, setting.benchmark, state, regret, rewards, chosen)


def simulate_blocks(algorithm: Any, trial: Trial, benchmark: str) -> Run:
    """Of an algorithm that keeps an action for several steps, an action at a time: its rewards are
    seen through their mean alone, whose noise has the scale sigma / √steps. Equal in law to a run
    step by step, for Gaussian noise.
    """
    theta, times, dtype = trial.theta, trial.times, trial.theta.dtype
    init_key, key = jax.random.split(jax.random.fold_in(trial.key, STEP_STREAM))
    best = best_reward(algorithm, trial, benchmark, trial.offer)

    def block(carry):
        time, state, total, recorded, chosen = carry
        action = algorithm.act(state, trial.offer)
        length = jnp.minimum(algorithm.length(state, action), trial.horizon - time)
        count = length.astype(dtype)
        mean = jnp.sum(theta * action)
        error = jax.random.normal(jax.random.fold_in(key, time), (), dtype)
        now = ((times >= time) & (times < time + length))[:, None]
        chosen = jnp.where(now, algorithm.support(state), chosen)
        reward = mean + trial.sigma * error / jnp.sqrt(count)
        state = algorithm.update(state, action, reward, trial.offer, length)

        # The times within the present action, some steps after its first.
        here, steps = (times > time) & (times <= time + length), (times - time).astype(dtype)
        recorded = _loops.cond(
            jnp.any(here),
            lambda old: jnp.where(here, total.value + (best - mean) * steps, old),
            lambda old: old,
            recorded,
        )
        return time + length, state, total.plus((best - mean) * count), recorded, chosen

    zero = jnp.zeros((), dtype)
    state = algorithm.init(init_key, dimension=theta.shape[0], dtype=dtype)
    chosen = jnp.full((*times.shape, algorithm.sparsity), -1, jnp.int32)
    carry = jnp.int32(0), state, Total(zero, zero), jnp.zeros(times.shape, dtype), chosen
    end, state, _, regret, chosen = _loops.while_loop(lambda c: c[0] < trial.horizon, block, carry)
    chosen = jnp.where((times >= end)[:, None], algorithm.support(state), chosen)
    rewards = best * times.astype(dtype) - regret
    return run_of(algorithm, trial, benchmark, state, regret, rewards, chosen)


def best_reward(algorithm: Any, trial: Trial, benchmark: str, offer: Any) -> jax.Array:
    """The reward of a step that regret is measured against."""
    if trial.best is not None:
        return trial.best.value
    return algorithm.benchmark(trial.theta, offer, benchmark, trial.alpha)


def run_of(
    algorithm: Any, trial: Trial, benchmark: str, state: Any, regret: Any, rewards: Any, chosen: Any
) -> Run:
    """Of an algorithm that proves a support, or of one that does not."""
    action_set, best = getattr(algorithm, "action_set", None), trial.best
    if not isinstance(action_set, ActionSet):
        best = None
    elif best is None:
        best = benchmark_of(action_set, trial.theta, algorithm.sparsity, benchmark, 1.0)
    support = jnp.sort(algorithm.support(state))
    locked = getattr(state, "locked", jnp.asarray(False))
    lock_time = getattr(state, "lock_time", jnp.int32(-1))
    finite = ~jnp.any(jnp.isnan(regret))
    recovered = None if best is None else recovery(chosen, best, regret)
    return Run(
        regret, trial.times, locked, lock_time, support, status_of(finite), rewards, recovered
    )
