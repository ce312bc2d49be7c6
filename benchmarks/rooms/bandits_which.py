"""Sparse bandits: which algorithm to play. Regret on random parameters, proofs, what a trial costs,
streams.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Options, Report, paragraphs
from jaxsac import bandits
from jaxsac.problems import bandits as problems

D, S, DELTA = 10, 3, 0.05


def run(options: Options) -> Report:
    dtype = jnp.dtype(options.dtype)
    tables = {
        "Regret": regrets(options, dtype),
        "Seconds for 1,000 trials": seconds(options, dtype),
        "Streams": streams(options, dtype),
    }
    notes = paragraphs(
        """
        Regret: theta uniform in [-1, 1]^10, s = 3, against the best action; mean and standard error
        over the seeds. The numpy loop is Thompson sampling with a Gaussian prior of standard
        deviation 100, one Cholesky factorisation a step, on parameters of the same law.

        proved: share of the runs that locked a support; wrong: share that locked another than a
        best one, at delta = 0.05 (e2tc locks without proof).

        Seconds: ball, d = 20, s = 5, sigma = 0.1, T = 10^5, compiled before.
        """
    )
    return Report(tables, notes)


def algorithms(action_set: bandits.ActionSet, sigma: float, horizon: int) -> dict[str, Any]:
    shared: dict[str, Any] = {"sparsity": S, "sigma": sigma}
    listed: dict[str, Any] = {
        "thompson": bandits.thompson(action_set, **shared),
        "thompson, hold = 0.02": bandits.thompson(action_set, hold=0.02, **shared),
        "thompson, hold = 0.3": bandits.thompson(action_set, hold=0.3, **shared),
        "e2tc": bandits.e2tc(action_set, horizon=horizon, **shared),
        "phased_greedy, power 1": bandits.phased_greedy(action_set, sparsity=S, schedule_power=1.0),
        "phased_greedy, power 1/2": bandits.phased_greedy(action_set, sparsity=S),
    }
    if action_set.ranked:
        listed["prove_support"] = bandits.prove_support(action_set, delta=DELTA, **shared)
        for radius in ("coord", "l2"):
            listed[f"apsee, {radius}"] = bandits.apsee(
                action_set, delta=DELTA, radius=radius, **shared
            )
    else:
        listed["apsee_greedy, local"] = bandits.apsee_greedy(
            action_set, delta=DELTA, radius="local", **shared
        )
    return listed


def regrets(options: Options, dtype) -> list[dict[str, Any]]:
    matrix = problems.unit_diagonal_matrix(jax.random.key(1), D, dtype=dtype)
    sets = {"ball": bandits.Ball(), "ellipsoid": bandits.Ellipsoid(matrix), "box": bandits.Box()}
    horizons = (200,) if options.smoke else (2_000, 50_000)
    num = 4 if options.smoke else 200
    thetas = np.random.default_rng(0).uniform(-1, 1, (num, D))
    parameters = jnp.asarray(thetas, dtype)
    keys = jax.random.split(jax.random.key(3), num)
    rows = []
    for horizon in horizons:
        for name, action_set in sets.items():
            for sigma in (0.1,) if options.smoke else (0.1, 1.0):
                best = jax.vmap(
                    lambda theta, a=action_set: bandits.best_support(a, theta, S).value
                )(jnp.asarray(thetas, dtype))
                for algorithm, policy in algorithms(action_set, sigma, horizon).items():
                    result = simulator(policy, sigma, horizon)(keys, parameters)
                    row = summary(np.asarray(result.regret)[:, 0])
                    masks = np.zeros((num, D), bool)
                    chosen = np.asarray(result.support)
                    masks[np.arange(num)[:, None], np.maximum(chosen, 0)] = chosen >= 0
                    value = jax.vmap(action_set.support)(parameters, masks)
                    locked = np.asarray(result.locked)
                    wrong = locked & (np.asarray(value) < np.asarray(best) * (1 - 1e-5))
                    case = {"set": name, "sigma": sigma, "T": horizon, "algorithm": algorithm}
                    rows.append(
                        case
                        | row
                        | {"proved": f"{locked.mean():.0%}", "wrong": f"{wrong.mean():.1%}"}
                    )
                if horizon <= 2_000 and name != "ellipsoid":
                    case = {"set": name, "sigma": sigma, "T": horizon, "algorithm": "numpy loop"}
                    rows.append(case | summary(numpy_thompson(thetas, name, sigma, horizon)))
    return rows


def simulator(policy: Any, sigma: float, horizon: int):
    def one(key, theta):
        return bandits.simulate(
            key, policy, theta, sigma=sigma, horizon=horizon, record=jnp.asarray([horizon])
        )

    return jax.jit(jax.vmap(one))


def summary(regret: np.ndarray) -> dict[str, Any]:
    return {"regret": regret.mean(), "±": regret.std() / len(regret) ** 0.5}


def numpy_thompson(thetas: np.ndarray, name: str, sigma: float, horizon: int) -> np.ndarray:
    """Regret [n] on the unit ball or the box [0, 1]^d, all parameters at once."""
    rng, num, rows = np.random.default_rng(1), len(thetas), np.arange(len(thetas))[:, None]

    def best(theta):
        score = np.abs(theta) if name == "ball" else np.maximum(theta, 0.0)
        top = np.argsort(-score, axis=1)[:, :S]
        action = np.zeros_like(theta)
        action[rows, top] = theta[rows, top] if name == "ball" else theta[rows, top] > 0
        size = np.linalg.norm(action, axis=1, keepdims=True) if name == "ball" else 1.0
        return action / size

    optimum, regret = np.sum(best(thetas) * thetas, axis=1), np.zeros(num)
    gram, moment = np.tile(1e-4 * sigma**2 * np.eye(D), (num, 1, 1)), np.zeros((num, D))
    for _ in range(horizon):
        root = np.linalg.cholesky(gram)
        mean = np.linalg.solve(gram, moment[..., None])[..., 0]
        normal = rng.normal(size=(num, D, 1))
        action = best(mean + sigma * np.linalg.solve(np.swapaxes(root, 1, 2), normal)[..., 0])
        reward = np.sum(thetas * action, axis=1)
        regret += optimum - reward
        gram += action[:, :, None] * action[:, None, :]
        moment += action * (reward + sigma * rng.normal(size=num))[:, None]
    return regret


def seconds(options: Options, dtype) -> list[dict[str, Any]]:
    dimension, sparsity, trials = 20, 5, 10 if options.smoke else 1_000
    horizon = 10**3 if options.smoke else 10**5
    keys = jax.random.split(jax.random.key(0), trials)
    thetas = jax.random.uniform(jax.random.key(2), (trials, dimension), dtype, -1.0)
    shared: dict[str, Any] = {"sparsity": sparsity, "sigma": 0.1}
    cases: dict[str, Any] = {"e2tc": bandits.e2tc(bandits.Ball(), horizon=horizon, **shared)}
    for hold in (0.1, 0.3, 0.5):
        cases[f"thompson, hold = {hold}"] = bandits.thompson(bandits.Ball(), hold=hold, **shared)
    thunks, means = {}, {}
    for name, policy in cases.items():
        compiled = simulator(policy, 0.1, horizon).lower(keys, thetas).compile()
        thunks[name] = partial(compiled, keys, thetas)
        means[name] = float(np.asarray(thunks[name]().regret).mean())
    times = options.time(thunks, min_seconds=4.0)
    return [
        {
            "algorithm": name,
            "seconds (best)": timing.minimum,
            "of e2tc": timing.minimum / times["e2tc"].minimum,
            "regret": means[name],
        }
        for name, timing in times.items()
    ]


def streams(options: Options, dtype) -> list[dict[str, Any]]:
    """A jitted `step` from Python and inside `lax.scan`, beside a jitted copy of the state, d = 20;
    and an estimate after many.
    """
    dimension, calls = 20, 20 if options.smoke else 100
    rows, reward = [], jnp.asarray(0.1, dtype)
    for name, policy in {
        "thompson, ball": bandits.thompson(bandits.Ball(), sparsity=5, sigma=0.1),
        "thompson, box": bandits.thompson(bandits.Box(), sparsity=5, sigma=0.1),
        "apsee, ball": bandits.apsee(bandits.Ball(), sparsity=5, sigma=0.1, radius="coord"),
    }.items():
        state = policy.init(jax.random.key(0), dimension=dimension, dtype=dtype)
        copy = jax.jit(lambda state, reward: (jax.tree.map(lambda x: x + 0, state), reward))
        many = jax.jit(lambda state, rewards, p=policy: jax.lax.scan(p.step, state, rewards)[0])

        def apart(step, state=state):
            result = reward
            for _ in range(calls):
                state, result = step(state, reward)
            return result

        times = options.time(
            {
                "us a step": partial(apart, jax.jit(policy.step)),
                "us to copy the state": partial(apart, copy),
                "us a step in scan": partial(many, state, jnp.full(calls, 0.1, dtype)),
            }
        )
        best = {kind: timing.minimum / calls * 1e6 for kind, timing in times.items()}
        rows.append({"case": name, "arrays": len(jax.tree.leaves(state))} | best)
    number = 10**3 if options.smoke else 10**6
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(number, dimension)).astype(options.dtype)
    rewards = (actions @ rng.uniform(-1, 1, dimension) + rng.normal(size=number)).astype(
        options.dtype
    )
    policy = bandits.thompson(bandits.Ball(), sparsity=5, sigma=0.1)
    state = jax.jit(policy.fit)(actions, rewards, jax.random.key(0))
    wide = actions.astype(float)
    exact = np.linalg.solve(
        1e-4 * np.eye(dimension) + wide.T @ wide, wide.T @ rewards.astype(float)
    )
    error = np.max(np.abs(np.asarray(policy.estimate(state)[0]) - exact))
    return [*rows, {"case": f"thompson.fit of {number:,} rewards", "largest error": float(error)}]
