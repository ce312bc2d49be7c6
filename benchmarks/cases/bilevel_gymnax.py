"""A follower in a gymnax environment with a network as its policy, under a leader who pays for
where it goes: certified hypergradients, and what the leader gets in episodes of gymnax itself.
"""

import importlib
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.harness import NOT_RUN, Options
from jaxsac import Reason, Status, bilevel

TEMPERATURE, HASTY, PATIENT = 0.05, 0.95, 0.99  # the follower's discount, and the leader's
PRICE, RIDGE = 0.01, 1e-4


class Rooms(NamedTuple):
    """gymnax's four rooms as a table. S cells, A moves."""

    transition: jax.Array  # [S, A, S]; an episode ends at the goal
    reached: jax.Array  # [S, A, S], with the goal
    reward: jax.Array  # [S, A]
    initial: jax.Array  # [S]
    seen: jax.Array  # [S, 2] what the policy looks at: the cell, in [-1, 1]


def look(position: jax.Array, dtype: Any) -> jax.Array:
    return position.astype(dtype) / 6 - 1


def tabulated(env: Any, params: Any, dtype: Any) -> Rooms:
    """Every move from every cell, taken by the environment. A move that fails is one at random."""
    _, start = env.reset_env(jax.random.key(0), params)
    sure = params.replace(fail_prob=0.0)

    def one(cell, action):
        at = start.replace(pos=cell)
        _, state, reward, end, _ = env.step_env(jax.random.key(0), at, action, sure)
        return jnp.all(env.coords == state.pos, axis=1), reward, end

    tables = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(env.coords, jnp.arange(4))
    reached, reward, end = (table.astype(dtype) for table in tables)
    at_random = jnp.asarray(params.fail_prob * 4 / 3, dtype)

    def failing(table):
        return (1 - at_random) * table + at_random * jnp.mean(table, axis=1, keepdims=True)

    return Rooms(
        failing(reached * (1 - end)[..., None]),
        failing(reached),
        failing(reward),
        jnp.all(env.coords == start.pos, axis=1).astype(dtype),
        look(env.coords, dtype),
    )


def log_policy(network: eqx.nn.MLP, seen: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(jax.vmap(network)(seen))


def leads(rooms: Rooms) -> bilevel.Problem:
    """minimise_x 0.01 ‖x‖² − the leader's return; the follower earns x [S] where it arrives, beside
    the environment's reward, and its network y has a small ridge.
    """
    hasty, patient = (
        bilevel.rl.MDP(rooms.transition, rooms.initial, discount) for discount in (HASTY, PATIENT)
    )

    def upper(x, log_probs):
        value = bilevel.rl.expected_return(patient, rooms.reward, log_probs)
        return PRICE * jnp.sum(x**2) - value

    problem = bilevel.rl.policy_problem(
        lambda x: (hasty, rooms.reward + rooms.reached @ x),
        upper,
        penalty="value",
        log_policy=lambda network: log_policy(network, rooms.seen),
    )

    def lower(x, network, temperature):
        weights = jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))
        ridge = RIDGE * sum(jnp.sum(weight**2) for weight in weights)
        return problem.lower(x, network, temperature) + ridge

    return bilevel.Problem(problem.upper, lower)


def episodes(env: Any, params: Any, network: eqx.nn.MLP, key: jax.Array, number: int, steps: int):
    """The leader's returns [number] in gymnax: its own steps, actions drawn from the network."""
    dtype = network.layers[0].weight.dtype

    def advance(carry, key):
        state, alive, weight = carry
        act, move = jax.random.split(key)
        action = jax.random.categorical(act, network(look(state.pos, dtype)))
        _, state, reward, end, _ = env.step_env(move, state, action, params)
        gain = jnp.where(alive, weight * reward, 0)
        return (state, alive & ~end, PATIENT * weight), gain

    def one(key):
        first, others = jax.random.split(key)
        start = env.reset_env(first, params)[1], jnp.asarray(True), jnp.ones((), dtype)
        return jnp.sum(lax.scan(advance, start, jax.random.split(others, steps))[1])

    return jax.vmap(one)(jax.random.split(key, number))


def table(options: Options, dtype: Any) -> list[dict[str, Any]]:
    """One row for each start of the network: Adam on certified hypergradients, each from the last
    network.
    """
    if dtype != jnp.float64:
        return [{"seed": f"{NOT_RUN}: finite differences need float64"}]
    try:
        gymnax = importlib.import_module("gymnax")
    except ImportError as error:
        return [{"seed": f"{NOT_RUN}: {error} (the extra gymnax)"}]
    env, params = gymnax.make("FourRooms-misc")
    rooms = tabulated(env, params, dtype)
    problem, temperature = leads(rooms), jnp.asarray(TEMPERATURE, dtype)
    unpaid, outer = jnp.zeros(rooms.initial.shape, dtype), optax.adam(0.1)
    number, length, steps, seeds = (8, 20, 1, 1) if options.smoke else (4000, 500, 80, 4)
    played = eqx.filter_jit(
        lambda network, key: episodes(env, params, network, key, number, length)
    )

    def answer(x, network, tol=1e-6):
        best = bilevel.argmin(problem.lower, network, temperature, tol=tol, max_steps=3000)
        return best.checked(x).value

    def measured(name, network, key):
        exact = -problem.upper(unpaid, network, temperature)  # nothing is paid there
        returns = played(network, key)
        error = jnp.std(returns, ddof=1) / np.sqrt(number)
        return {f"{name}, exact": exact, f"{name}, gymnax": jnp.mean(returns), f"{name} ±": error}

    rows = []
    for seed in options.progress(range(seeds), "gymnax"):
        first, *keys = jax.random.split(jax.random.key(seed), 3)
        network = eqx.nn.MLP(2, 4, 16, 1, jnp.tanh, key=first, dtype=dtype)
        x, network, state, certified = unpaid, answer(unpaid, network), outer.init(unpaid), 0
        row = {"seed": seed} | measured("unpaid", network, keys[0])
        single = bilevel.solve(
            problem,
            unpaid,
            network,
            sigma="relative",
            outer=outer,
            inner=bilevel.paired_adam(0.01),
            data=temperature,
            max_steps=10 if options.smoke else 1000,
        )
        follower = answer(single.value.x, network, 1e-2)
        row["single loop, exact"] = -problem.upper(single.value.x, follower, temperature)
        for step in range(steps):
            found = bilevel.hypergradient(
                problem, x, network, data=temperature, tol=1e-2, max_steps=1000
            )
            certified += int(found.status) == Status.CONVERGED
            if step == 0:
                size = jnp.linalg.norm(found.value)
                ends = [x + far * found.value / size for far in (1e-4, -1e-4)]
                values = [problem.upper(end, answer(end, network), temperature) for end in ends]
                row["slope"], row["difference of ends"] = size, (values[0] - values[1]) / 2e-4
            update, state = outer.update(found.value, state)
            x = jnp.asarray(optax.apply_updates(x, update))
            network = answer(x, network, 1e-2)
        row |= measured("paid", network, keys[1]) | {"0.01 ‖x‖²": PRICE * jnp.vdot(x, x)}
        rows.append(
            {name: float(value) for name, value in row.items()}
            | {"seed": seed, "certified": f"{certified} of {steps}"}
            | {"single loop ended": Reason(int(single.stats["reason"])).name}
        )
    return rows
