"""A reward fitted to preferences, a leader who moves the dynamics, and a continuous follower: what
`bilevel` ends at, beside exact gradients through the follower's best answer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from scipy.optimize import minimize

from benchmarks.harness import Options
from jaxsac import Status, bilevel
from jaxsac.problems import bilevel_rl


def preferences(dtype: Any) -> tuple[Any, Any, jax.Array]:
    """RLHF: segments of three steps, drawn by the policy that the fitted reward teaches."""
    bed = bilevel_rl.random_reward_bed(3, 2, 3, seed=1, dtype=dtype)
    mdp = bilevel.rl.MDP(bed.transition, bed.initial, bed.discount)
    segments = bilevel_rl.enumerate_segments(bed.transition, bed.initial, 3)

    def upper(x, log_probs):
        loss = bilevel_rl.preference_loss(
            segments, bed.reward(x), bed.leader_reward, log_probs, bed.discount
        )
        return loss + 0.01 * jnp.sum(x**2)

    return lambda x: (mdp, bed.reward(x)), upper, bed.x


def dynamics(dtype: Any) -> tuple[Any, Any, jax.Array]:
    """Stackelberg: the leader's mixed move changes the follower's transitions."""
    game = bilevel_rl.stackelberg(dtype=dtype)

    def model(x):
        return bilevel.rl.MDP(game.transition(x), game.initial, game.discount), game.follower_reward

    def upper(x, log_probs):
        value = bilevel.rl.expected_return(model(x)[0], game.leader_reward, log_probs)
        return 0.05 * jnp.sum(x**2) - value

    return model, upper, jnp.zeros(3, dtype)


def row(name: str, objective: Callable[..., Any], start: Any, end: Any, **others: Any) -> dict:
    """`objective` at both ends and at the best, which exact gradients from the start lead to."""
    exact = jax.jit(jax.value_and_grad(objective))
    top = minimize(
        lambda x: [np.asarray(part, np.float64) for part in exact(jnp.asarray(x, start.dtype))],
        np.asarray(start, np.float64),
        jac=True,
        tol=1e-9,
    )
    values = {
        "start": float(objective(start)),
        "found": float(objective(end)),
        "best": float(top.fun),
    }
    gap = (values["found"] - values["best"]) / (values["start"] - values["best"])
    return {"problem": name} | values | {"gap / (start - best)": float(gap)} | others


def table(options: Options, dtype: Any) -> list[dict[str, Any]]:
    rows = []
    cases = {"RLHF": preferences, "Stackelberg": dynamics}
    for name, make in list(cases.items())[: 1 if options.smoke else 2]:
        model, upper, start = make(dtype)
        temperature = jnp.asarray(0.5, dtype)

        def objective(x, model=model, upper=upper, temperature=temperature):
            mdp, reward = model(x)
            return upper(x, bilevel.rl.soft_solve(mdp, reward, temperature).value.log_probs)

        run = bilevel.solve(
            bilevel.rl.policy_problem(model, upper),
            start,
            jnp.zeros_like(model(start)[1]),
            data=temperature,
            sigma="relative",
            outer=optax.sgd(0.05, 0.9),
            inner=bilevel.rl.natural_gradient(),
            max_steps=20 if options.smoke else 2000,
        )
        status, steps = Status(int(run.status)).name, int(run.stats["num_steps"])
        rows.append(row(name, objective, start, run.value.x, status=status, steps=steps))
    return rows if options.smoke else [*rows, continuous(dtype)]


def continuous(dtype: Any) -> dict[str, Any]:
    """LQR: both levels from 64 simulated paths a step, gradients through the simulation."""
    bed = bilevel_rl.linear_quadratic(dtype=dtype)
    temperature, start, steps = jnp.asarray(0.4, dtype), jnp.asarray([0.3, -0.4], dtype), 400

    def process(x):
        return bilevel.rl.Process(
            bed.initial, bed.move, lambda state, action: bed.reward(x, state, action), bed.discount
        )

    leader = process(start)._replace(reward=bed.leader_reward)

    def upper(x, policy, noise):
        return 0.05 * jnp.sum(x**2) - bilevel.rl.simulated_return(noise, leader, policy)

    def objective(x):
        return 0.05 * jnp.sum(x**2) - bed.leader_return(*bed.best(x, temperature))

    problem = bilevel.rl.simulated_policy_problem(
        process, upper, lambda y, state: (y[0] @ state, y[1])
    )
    falling = optax.exponential_decay(0.05, 130, 0.3)
    method = bilevel.Method(inner=optax.sgd(0.01), outer=optax.adam(falling), inner_steps=2)

    def advance(state, key):
        keys = jax.random.split(key)
        sizes = (64, 30, 2), (64, 30, 1)
        noise = bilevel.rl.Noise(
            *(jax.random.normal(key, size, dtype) for key, size in zip(keys, sizes, strict=True))
        )
        return bilevel.step(problem, state, method, batch=(noise, temperature))[0], None

    policy = jnp.zeros((1, 2), dtype), jnp.full(1, -1.0, dtype)
    state = bilevel.init(problem, start, policy, method)
    keys = jax.random.split(jax.random.key(3), steps)
    end = jax.jit(lambda state: lax.scan(advance, state, keys)[0])(state)
    return row("LQR, sampled", objective, start, end.x, status="-", steps=steps)
