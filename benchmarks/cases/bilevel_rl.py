"""The reinforcement-learning tables of the bilevel room: spread of sampled differences against
pairing, and charges in four rooms.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.harness import NOT_RUN, Options
from jaxsac import bilevel
from jaxsac.problems import bilevel_rl


def trajectories(options: Options, dtype) -> list[dict[str, Any]]:
    bed = bilevel_rl.random_reward_bed(dtype=dtype)
    mdp = bilevel.rl.MDP(bed.transition, bed.initial, bed.discount)

    def model(x):
        return mdp, bed.reward(x)

    def leader(x, log_probs):
        return -bilevel.rl.expected_return(mdp, bed.leader_reward, log_probs)

    exact = bilevel.rl.policy_problem(model, leader, penalty="value")
    best = bilevel.rl.soft_solve(mdp, bed.reward(bed.x), bed.temperature).value.log_probs
    solution = bilevel.hypergradient(exact, bed.x, best, data=bed.temperature)
    z, d = solution.state
    number = 8 if options.smoke else 4000

    @jax.jit
    def terms(
        bed, z, d, first, second, sigma
    ):  # the bed as an argument: XLA would fold long cumulative sums of constants
        mdp = bilevel.rl.MDP(bed.transition, bed.initial, bed.discount)
        sampled = bilevel.rl.sampled_policy_problem(
            lambda x: (mdp, bed.reward(x)), lambda x, log_probs, uniforms: leader(x, log_probs)
        )

        change = sampled.lower_difference
        assert change is not None

        def one(uniforms, others):
            y, gradient = z + sigma * d, jax.grad(sampled.lower)
            batch, other = ((u[None], bed.temperature) for u in (uniforms, others))
            at_y, at_z = gradient(bed.x, y, batch), gradient(bed.x, z, batch)
            reweighted = change(bed.x, z, sigma * d, batch)[0][0]
            return jnp.stack([at_y - gradient(bed.x, z, other), at_y - at_z, reweighted]) / sigma

        return jax.vmap(one)(first, second)

    uniforms = [jax.random.uniform(jax.random.key(seed), (number, 200), dtype) for seed in (1, 2)]
    rows = []
    for sigma in (0.1, 0.01):
        samples = np.asarray(terms(bed, z, d, *uniforms, jnp.asarray(sigma, dtype)), np.float64)
        spread = np.sqrt(samples.var(axis=0).sum(axis=1))
        bias = np.linalg.norm(samples[:, 2].mean(axis=0) - np.asarray(solution.value, np.float64))
        rows.append(
            {
                "sigma": sigma,
                "independent": spread[0],
                "common numbers": spread[1],
                "reweighted": spread[2],
                "ratio": spread[0] / spread[2],
                "bias of reweighted, in standard errors": bias / (spread[2] / np.sqrt(number)),
            }
        )
    return [{name: float(value) for name, value in row.items()} for row in rows]


HPGD = {
    0.001: {1: 0.91, 3: 0.51, 5: 0.46},
    0.003: {1: 0.95, 3: 0.73, 5: 0.29},
    0.005: {1: 1.17, 3: 1.01, 5: 0.87},
}


def four_rooms(options: Options, dtype) -> list[dict[str, Any]]:
    """Contextual charges in a grid world: the single loop beside exact gradients, and the published
    values of HPGD.
    """
    if dtype != jnp.float64:
        return [{"temperature": f"{NOT_RUN}: nearly sure policies need float64"}]
    rooms = bilevel_rl.four_rooms(dtype=dtype)
    steps = 2 if options.smoke else 300
    outer, x = optax.adam(0.2), jnp.zeros(105, dtype)

    @jax.jit
    def values(transition, temperature, cost):
        mdp = bilevel.rl.MDP(transition, rooms.initial, rooms.discount)

        def leader(x, log_probs):
            return -jnp.mean(
                jax.vmap(bilevel.rl.expected_return)(mdp, rooms.leader_reward(x, cost), log_probs)
            )

        def objective(x):
            best = jax.vmap(
                lambda mdp, reward: (
                    bilevel.rl.soft_solve(mdp, reward, temperature, tol=1e-10).value.log_probs
                )
            )
            return leader(x, best(mdp, rooms.follower_reward(x)))

        problem = bilevel.rl.policy_problem(
            lambda x: (mdp, rooms.follower_reward(x)), leader, penalty="bellman"
        )
        method = bilevel.Method("central_linear", bilevel.rl.natural_gradient(), outer)
        start = bilevel.init(problem, x, jnp.zeros((2, 104, 4), dtype), method)
        end = lax.fori_loop(
            0,
            steps,
            lambda _, s: bilevel.step(problem, s, method, sigma=1e-9, batch=temperature)[0],
            start,
        )

        def exact(_, carry):
            update, state = outer.update(jax.grad(objective)(carry[0]), carry[1])
            return optax.apply_updates(carry[0], update), state

        return -jnp.stack(
            [
                objective(point)
                for point in (x, end.x, lax.fori_loop(0, steps, exact, (x, outer.init(x)))[0])
            ]
        )

    rows = []
    pairs = [(temperature, cost) for temperature in HPGD for cost in HPGD[temperature]][
        : 1 if options.smoke else None
    ]
    for temperature, cost in options.progress(pairs, "four rooms"):
        first, penalty, exact = (
            float(value)
            for value in values(
                rooms.transition, jnp.asarray(temperature, dtype), jnp.asarray(cost, dtype)
            )
        )
        rows.append(
            {
                "temperature": temperature,
                "cost": cost,
                "start": first,
                "penalty": penalty,
                "exact gradients": exact,
                "HPGD, published": HPGD[temperature][cost],
            }
        )
    return rows
