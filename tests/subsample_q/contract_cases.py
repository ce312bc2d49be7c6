"""The room's solvers, for the contract's tests."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contract import Case
from subsample_q.models import random_arrays

from jaxsac import subsample_q
from jaxsac.subsample_q import network

NAMES = ("global_transition", "local_transition", "global_reward", "local_reward")
KEY = jax.random.key(0)
DISCOUNT = {"hyper": {"discount": 0.8}, "sweep": {"discount": (0.8, 0.85), "tol": (1e-5, 1e-4)}}
WRONG_DISCOUNT = ({"discount": 1.0}, "discount must lie in")


def problem(seed, dtype):
    arrays = (jnp.asarray(array, dtype) for array in random_arrays(seed))
    return dict(zip(NAMES, arrays, strict=True))


def precise(tol, array):
    """As precise as derivatives by differences need, in float64."""
    return 1e-11 if tol is None and array.dtype == jnp.float64 else tol


def squared_value(solution):
    return jnp.sum(solution.value.value**2)


def solve(discount, tol=None, max_steps=1000, **arrays):
    model = subsample_q.Model(discount=discount, **arrays)
    return subsample_q.solve(
        model, 3, tol=precise(tol, arrays["global_reward"]), max_steps=max_steps
    )


def learn(discount, tol=None, **arrays):
    return subsample_q.learn(KEY, subsample_q.Model(discount=discount, **arrays), 3, 8, tol=tol)


def evaluate(discount, tol=None, **arrays):
    model = subsample_q.Model(discount=discount, **arrays)
    return subsample_q.evaluate(
        model, some_table(model.dtype), 2, tol=precise(tol, arrays["global_reward"])
    )


def some_table(dtype):
    """Of one agent: the first action where the state is 0."""
    q = jnp.zeros((3, 3, 2), dtype).at[1:, :, 1].set(1)
    none, counts = jnp.zeros((3, 3), dtype), jnp.eye(3, dtype=jnp.int32)[::-1]
    bounds = subsample_q.Bounds(none, none)
    policy = jnp.argmax(q, axis=-1).astype(jnp.int32)
    meaning = subsample_q.solve(subsample_q.Model(*random_arrays(0), 0.8), 1).value.meaning
    return subsample_q.QTable(q, none, policy, bounds, counts, meaning)


def kinds_problem(seed, dtype):
    """Two of everything; the second axis of agents' arrays is a type, or a local action."""
    generator = np.random.default_rng(seed)
    transition, local = generator.dirichlet(np.ones(2), (2, 2)), np.ones(2)
    arrays = {
        "global_transition": transition,
        "local_transition": generator.dirichlet(local, (2, 2, 2)),
        "global_reward": generator.normal(size=(2, 2)),
        "local_reward": generator.normal(size=(2, 2, 2)),
    }
    return {name: jnp.asarray(array, dtype) for name, array in arrays.items()}


def solve_types(discount, tol=None, **arrays):
    reward = arrays["global_reward"]
    shares = jnp.asarray([2 / 3, 1 / 3], reward.dtype)
    model = subsample_q.TypedModel(shares=shares, discount=discount, **arrays)
    return subsample_q.solve(model, (2, 1), tol=precise(tol, reward))


def solve_local_actions(discount, tol=None, **arrays):
    model = subsample_q.LocalActionModel(discount=discount, **arrays)
    return subsample_q.solve(model, 2, tol=precise(tol, arrays["global_reward"]))


def q_learning(discount, **arrays):
    model = subsample_q.Model(discount=discount, **arrays)
    return subsample_q.q_learning(KEY, model, 2, 20)


def trajectory_problem(seed, dtype):
    generator = np.random.default_rng(seed)
    rewards = {"global_rewards": (5,), "local_rewards": (5, 4)}
    return {
        name: jnp.asarray(generator.normal(size=shape), dtype) for name, shape in rewards.items()
    }


def learn_from_trajectory(discount, global_rewards, local_rewards):
    generator = np.random.default_rng(0)
    states = (generator.integers(0, 2, shape) for shape in ((6,), (6, 4), (5,)))
    record = subsample_q.Trajectory(*states, global_rewards, local_rewards)
    solution = subsample_q.learn_from_trajectory(KEY, record, 2, 2, 2, 2, discount)
    return jnp.where(solution.stats["visits"] > 0, solution.value.q, 0)


TRAINING = network.Training(batch_size=4, width=4, depth=0, optimizer=optax.sgd(0.01))


def learn_network(discount, centre):
    def move(key, state, *_):
        return 0.5 * state + jax.random.normal(key, (), centre.dtype)

    environment = network.Environment(
        draw=lambda key, k: (
            jax.random.normal(key, (), centre.dtype),
            jax.random.normal(key, (k,), centre.dtype),
        ),
        move_global=move,
        move_local=lambda key, x, s, a: move(key, s),
        reward_global=lambda x, a: a.astype(x.dtype) * x,
        reward_local=lambda x, s, a: -((s - centre) ** 2),
        describe_global=lambda x: x[None],
        describe_local=lambda s: s[None],
        num_actions=2,
        discount=discount,
    )
    return network.learn_network(KEY, environment, (2,), 3, TRAINING)


UNCERTIFIED = {"certified": False, "hyper": {"discount": 0.8}, "bad": [WRONG_DISCOUNT]}

CASES = [
    Case(
        name="subsample_q.solve",
        problem=problem,
        solve=solve,
        **DISCOUNT,
        poison="local_reward",
        differentiate=(*NAMES, "discount"),
        scalar=squared_value,
        bad=[
            WRONG_DISCOUNT,
            ({"tol": -1.0}, "tol must be ≥ 0"),
            ({"local_reward": jnp.ones((3, 2))}, "local_reward must"),
        ],
    ),
    Case(
        name="subsample_q.learn",
        problem=problem,
        solve=learn,
        **DISCOUNT,
        poison="global_reward",
        differentiate=(),  # not differentiable, as its docstring says
        scalar=squared_value,
        bad=[WRONG_DISCOUNT],
        tolerance={"float32": 2e-3, "float64": 1e-5},
    ),
    Case(
        name="subsample_q.evaluate",
        problem=problem,
        solve=evaluate,
        **DISCOUNT,
        poison="local_reward",
        differentiate=("global_reward", "local_transition"),
        scalar=squared_value,
        bad=[({"tol": -1.0}, "tol must be ≥ 0")],
    ),
    Case(
        name="subsample_q.solve of types",
        problem=kinds_problem,
        solve=solve_types,
        **DISCOUNT,
        poison="local_reward",
        differentiate=("global_reward", "local_reward"),
        scalar=squared_value,
        bad=[WRONG_DISCOUNT, ({"local_reward": jnp.ones((2, 2))}, "local_reward must")],
    ),
    Case(
        name="subsample_q.solve of agents who act",
        problem=kinds_problem,
        solve=solve_local_actions,
        **DISCOUNT,
        poison="local_reward",
        differentiate=("global_reward", "local_reward"),
        scalar=squared_value,
        bad=[WRONG_DISCOUNT, ({"local_reward": jnp.ones((2, 2))}, "local_reward must")],
    ),
    # What never certifies itself ends MAX_STEPS.
    Case(
        name="subsample_q.q_learning",
        problem=problem,
        solve=q_learning,
        poison="local_reward",
        **UNCERTIFIED,
    ),
    Case(
        name="subsample_q.learn_from_trajectory",
        problem=trajectory_problem,
        solve=learn_from_trajectory,
        poison="global_rewards",
        certified=False,
        hyper={"discount": 0.8},
        bad=[({"discount": -0.1}, "discount must be")],
    ),
    Case(
        name="subsample_q.network.learn_network",
        problem=lambda seed, dtype: {"centre": jnp.asarray(0.1 * seed, dtype)},
        solve=learn_network,
        poison="centre",
        **UNCERTIFIED,
    ),
]
