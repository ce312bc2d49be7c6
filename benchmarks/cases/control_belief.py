"""E3: what an error in the belief costs, and that the number of tools does not matter."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Options
from jaxsac import control
from jaxsac.problems import control_pomdp as bed

STATES, HORIZON, SHARPNESS = 3, 60, 6.0
ERRORS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
EPISODES = 500  # by which a learned policy is valued


def expert(key, seen):
    """Draws from exp(SHARPNESS (reward of the tool at the belief)) among the tools that matter and
    idling.
    """
    problem = bed.repair_problem(STATES)
    return jax.random.categorical(
        key, SHARPNESS * jnp.matmul(problem.reward, seen, precision="highest")
    )


@functools.partial(jax.jit, static_argnames=("seeds", "episodes"))
def expert_values(key, errors, *, seeds: int, episodes: int):
    """Discounted value of the expert at each belief error, [n, seeds], with common random
    numbers.
    """
    problem = bed.repair_problem(STATES)
    discounts = problem.discount ** jnp.arange(HORIZON, dtype=problem.reward.dtype)

    def one(key, error):
        return jnp.vdot(bed.rollout(key, problem, expert, error, HORIZON).rewards, discounts)

    def seed(key, error):
        return jnp.mean(jax.vmap(one, (0, None))(jax.random.split(key, episodes), error))

    return jax.lax.map(
        lambda error: jax.vmap(seed, (0, None))(jax.random.split(key, seeds), error), errors
    )


@functools.partial(jax.jit, static_argnames=("episodes",))
def policy_values(key, weights, intercept, others, error, *, episodes: int):
    """Values [episodes] of the fitted policy over M tools: softmax over the relevant tools' scores
    and the mass of all others.
    """
    problem = bed.repair_problem(STATES)
    discounts = problem.discount ** jnp.arange(HORIZON, dtype=problem.reward.dtype)

    def act(key, seen):
        scores = jnp.append(jnp.matmul(weights, seen, precision="highest") + intercept, others)
        return jax.random.categorical(key, scores)

    keys = jax.random.split(key, episodes)
    return jax.vmap(
        lambda key: jnp.vdot(bed.rollout(key, problem, act, error, HORIZON).rewards, discounts)
    )(keys)


@functools.partial(jax.jit, static_argnames=("episodes",))
def logged(key, error, *, episodes: int):
    problem = bed.repair_problem(STATES)
    return jax.vmap(lambda key: bed.rollout(key, problem, expert, error, HORIZON))(
        jax.random.split(key, episodes)
    )


def learned(
    seed: int, error: float, num_actions: int, records: int, lam: Any
) -> tuple[bool, float, float]:
    """Fit the expert's log seen through the compressor among M tools: is the support exact, what is
    the policy worth at that error, and which lam was it?
    """
    key = jax.random.fold_in(jax.random.key(11), seed)
    episode = logged(
        key, jnp.asarray(error, jnp.result_type(float)), episodes=-(-records // HORIZON)
    )
    seen = np.asarray(episode.seen).reshape(-1, STATES)[:records]
    tools = np.asarray(episode.tools).reshape(-1)[:records]
    random = np.random.default_rng(seed)
    # Beside the one used, some of the many others are, without regard to the belief.
    actions = np.stack(
        [np.where(tools < STATES, tools, -1), random.integers(STATES, num_actions, records)], axis=1
    )
    contexts = seen - seen.mean(0)
    contexts = (
        contexts @ np.linalg.svd(np.ones((1, STATES)))[2][1:].T
    )  # beliefs have S - 1 free coordinates
    scale = contexts.std()
    solution = control.fit(
        key,
        control.Log(contexts / scale, actions.astype(np.int32)),
        num_actions=num_actions,
        budget=2,
        lam=lam,
    )
    support = np.asarray(solution.value.support)
    basis = np.linalg.svd(np.ones((1, STATES)))[2][1:]
    weights = np.zeros((STATES, STATES))
    inside = support < STATES
    weights[support[inside]] = np.asarray(solution.value.coef)[inside] @ basis / scale
    intercept = np.asarray(solution.value.intercept)[:STATES] - weights @ seen.mean(0)
    idle = np.log(max((tools == STATES).mean(), 1e-6))
    arrays = (jnp.asarray(a, jnp.result_type(float)) for a in (weights, intercept, idle, error))
    values = policy_values(jax.random.fold_in(key, 1), *arrays, episodes=EPISODES)
    return (
        bool(support.size == STATES and inside.all()),
        float(np.mean(values)),
        float(solution.stats["lam"]),
    )


def belief_error(
    options: Options, sizes, seeds: int, fits: int, records: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """E3: the expert's loss against the error (linear, below the bound), and learned policies among
    M tools.
    """
    errors = jnp.asarray(ERRORS, jnp.result_type(float))
    values = np.asarray(expert_values(jax.random.key(10), errors, seeds=seeds, episodes=100))
    loss = values[:1] - values
    problem = bed.repair_problem(STATES)
    rows = []
    for i, error in enumerate(ERRORS):
        row = {"belief error (L1)": error, "loss of value": float(loss[i].mean())}
        row |= {
            "standard error": float(loss[i].std(ddof=1) / np.sqrt(seeds)),
            "bound": float(bed.error_bound(problem, errors[i])),
        }
        rows.append(
            row | {"loss / error": float(loss[i].mean() / error) if error else float("nan")}
        )
    table = []
    for num_actions in options.progress(sizes, "E3"):
        for error in ERRORS[::2]:
            found, lam = [], "simulated"  # the first log's: it varies little
            for seed in range(fits):
                found.append(learned(seed, error, num_actions, records, lam))
                lam = found[-1][2]
            exact, value, _ = (np.array(column, float) for column in zip(*found, strict=True))
            row = {
                "M": num_actions,
                "belief error": error,
                "T": records,
                "P(exact support)": float(exact.mean()),
            }
            table.append(
                row
                | {
                    "value": float(value.mean()),
                    "standard error": float(value.std(ddof=1) / np.sqrt(fits)),
                    "fits": fits,
                }
            )
    return rows, table
