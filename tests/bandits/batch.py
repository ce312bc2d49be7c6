"""One compilation for many questions: 500 lanes of a simulation that differ in everything that is
traced.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import bandits
from jaxsac.bandits.engine.steps import BLOCK, noise_block

D, S, LANES, TIMES = 4, 2, 500, 32
THETA = np.array([0.9, -0.1, 0.7, 0.2])
MATRIX = np.array(
    [[1.0, 0.3, 0.1, 0.0], [0.3, 1.0, -0.2, 0.1], [0.1, -0.2, 1.0, 0.2], [0.0, 0.1, 0.2, 1.0]]
)
BALL, ELLIPSOID = bandits.Ball(1.5), bandits.Ellipsoid(jnp.asarray(MATRIX))
# Rotations in the blocks {0, 2} and {1, 3}, shrunk into the ellipsoid: 2-sparse actions.
ROWS = np.array(
    [[0.8, 0, 0.6, 0], [0, 0.9, 0, np.sqrt(0.19)], [-0.6, 0, 0.8, 0], [0, -np.sqrt(0.19), 0, 0.9]]
)
BASIS = ROWS / np.maximum(np.sqrt(np.sum((ROWS @ MATRIX) * ROWS, axis=1)), 1.0)[:, None]
ALGORITHMS = {
    "apsee": bandits.apsee(BALL, sparsity=S, sigma=0.1, radius="hkz", radius_scale=3.0),
    "apsee_greedy": bandits.apsee_greedy(
        ELLIPSOID, sparsity=S, sigma=0.1, radius="hkz", radius_scale=0.4, basis=BASIS
    ),
    "phased_greedy": bandits.phased_greedy(ELLIPSOID, sparsity=S, schedule_scale=1.5),
    "explore_then_commit": bandits.explore_then_commit(bandits.Box(), sparsity=S, num_cycles=20),
    "e2tc": bandits.e2tc(bandits.Ball(), sparsity=D, sigma=0.1, horizon=500, scale=12.0),
    "estc": bandits.estc(BALL, sparsity=S, num_cycles=20, lam=0.05, basis=BASIS),
}
KEY = jax.random.key(5)


@partial(jax.jit, static_argnames=("draws", "benchmark"))
def _run(algorithm, keys, thetas, sigma, horizons, times, alpha, draws, benchmark):
    def one(key, theta, horizon, record):
        options = {
            "draws": draws,
            "benchmark": benchmark,
            "alpha": alpha if benchmark == "alpha" else None,
            "record": record,
        }
        return bandits.simulate(key, algorithm, theta, sigma=sigma, horizon=horizon, **options)

    return jax.vmap(one)(keys, thetas, horizons, times)


def lanes(
    algorithm,
    *,
    horizon=500,
    times=None,
    keys=KEY,
    theta=THETA,
    sigma=0.1,
    alpha=1.0,
    draws="all",
    benchmark="optimal",
):
    """A run of 500 lanes. `keys`, `theta`, `horizon` and `times` (up to 32) may be one for all
    lanes, or one for each.
    """
    keys = jnp.broadcast_to(keys, (LANES,))
    thetas = jnp.broadcast_to(jnp.asarray(theta, jnp.float64), (LANES, D))
    horizons = jnp.broadcast_to(jnp.asarray(horizon, jnp.int32), (LANES,))
    times = horizons[:, None] if times is None else jnp.atleast_2d(jnp.asarray(times, jnp.int32))
    number = times.shape[1]
    times = jnp.broadcast_to(jnp.pad(times, ((0, 0), (0, TIMES - number))), (LANES, TIMES))
    algorithm = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float64 if isinstance(leaf, float) else None), algorithm
    )
    numbers = (jnp.asarray(sigma, jnp.float64), horizons, times, jnp.asarray(alpha, jnp.float64))
    run = jax.tree.map(np.asarray, _run(algorithm, keys, thetas, *numbers, draws, benchmark))
    return run._replace(regret=run.regret[:, :number], times=run.times[:, :number])


def many(algorithm, num, **options):
    """A run of `num` independent lanes, 500 at a time."""
    keys = jax.random.split(jax.random.key(11), (num // LANES, LANES))
    runs = [lanes(algorithm, keys=row, **options) for row in keys]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *runs)


def by_steps(algorithm, sigma=0.1, horizon=500):
    """A phased algorithm on a stream, a reward at a time, with the noise of the cycle engine for
    KEY: after each step its regret, lock time, support, rewards and the share of the best support.
    """
    best = bandits.best_support(algorithm.action_set, jnp.asarray(THETA), algorithm.sparsity)
    start = algorithm.init(dimension=D, dtype=jnp.float64)
    number = start.plan.basis.shape[0]

    def step(state, _):
        exploring, arm = state.left == 0, jnp.argmax(state.counts < state.cycle)
        block = noise_block("gaussian", KEY, (state.cycle - 1) // BLOCK, number, jnp.float64)
        error = jnp.where(exploring, block[(state.cycle - 1) % BLOCK, arm], 0.0)
        mean = jnp.asarray(THETA) @ algorithm.act(state)
        state = algorithm.update(state, None, mean + sigma * error)
        lock_time = jnp.where(state.locked, state.lock_cycle * number, -1)
        known = state.locked | (algorithm.rule.verify is None)
        support = jnp.sort(jnp.where(known, state.indices, -1))
        found = jnp.sum((state.indices >= 0) & best.mask[state.indices]) / jnp.sum(best.mask)
        return state, (mean, lock_time, support, found)

    run = jax.jit(lambda: jax.lax.scan(step, start, None, horizon)[1])()
    means, lock_time, support, found = map(np.asarray, run)
    return np.cumsum(best.value - means), lock_time, support, np.cumsum(means), found
