"""Simulation of algorithms that keep an action for several steps, an action at a time: its rewards
are seen through their mean alone, whose noise has the scale sigma / √steps.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac.bandits.engine.steps import STEP_STREAM, Run, Trial, best_reward, run_of
from jaxsac.bandits.protocol import Total


def simulate_blocks(algorithm: Any, trial: Trial, benchmark: str) -> Run:
    """Equal in law to a run step by step, for Gaussian noise."""
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
