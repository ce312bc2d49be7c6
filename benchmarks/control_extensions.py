"""E6 contamination, E7 online learning, E8 interactions."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsac
from benchmarks.harness import Options
from jaxsac import control, gibbs, group_lasso
from jaxsac.control.resampling import take
from jaxsac.problems.tool_logs import sparse_tool_log

SIGMA, RELEVANT = 0.5, 4
KINDS = ("random sign", "against the truth", "towards a false tool")


@functools.partial(jax.jit, static_argnames=("samples", "num_actions", "seeds"))
def _errors(key, share, kind, *, samples: int, num_actions: int, seeds: int):
    """Errors [seeds] of the robust and of the least squares estimate; a share of the records is off by 10 sigma."""
    groups = jaxsac.Groups.equal(num_groups=num_actions, size=1)
    lam = SIGMA * jnp.sqrt(2 * jnp.log(float(num_actions)) / samples)

    def trial(key):
        design, noise, bad, sign = jax.random.split(key, 4)
        X = jax.random.normal(design, (samples, num_actions))
        coef = jnp.where(jnp.arange(num_actions) < RELEVANT, 1.0, 0.0).astype(X.dtype)
        clean = jnp.matmul(X, coef, precision="highest")
        signs = jnp.stack([jnp.where(jax.random.bernoulli(sign, 0.5, (samples,)), 1.0, -1.0).astype(X.dtype), -jnp.sign(clean), jnp.sign(X[:, -1])])
        wild = jnp.where(jax.random.uniform(bad, (samples,)) < share, 10 * SIGMA * signs[kind], 0)
        y = clean + SIGMA * jax.random.normal(noise, (samples,), X.dtype) + wild
        found = control.robust_regression(X, y, groups, lam, tol=1e-4), group_lasso.solve(X, y, groups, lam, tol=1e-4)
        return tuple(jnp.linalg.norm(solution.value.coef - coef) for solution in found)

    return jax.lax.map(trial, jax.random.split(key, seeds), batch_size=20)


def contamination(options: Options, num_actions: int, samples: int, seeds: int) -> list[dict[str, Any]]:
    rows, clean = [], {}
    for kind, name in options.progress(list(enumerate(KINDS)), "E6"):
        for share in (0.0, 0.05, 0.1, 0.2):
            if share == 0.0 and clean:
                continue
            errors = _errors(jax.random.key(6), share, kind, samples=samples, num_actions=num_actions, seeds=seeds)
            means = {which: np.asarray(error) for which, error in zip(("robust", "least squares"), errors, strict=True)}
            clean = clean or {which: error.mean() for which, error in means.items()}
            row: dict[str, Any] = {"outliers of 10 sigma": name if share else "none", "share": share}
            for which, error in means.items():
                row |= {f"{which}: error": float(error.mean()), f"{which}: standard error": float(error.std(ddof=1) / np.sqrt(seeds))}
                row |= {f"{which}: times its clean": float(error.mean() / clean[which])}
            rows.append(row | {"M": num_actions, "T": samples})
    return rows


@functools.partial(jax.jit, static_argnames=("budget",))
def _dual_average_losses(contexts, actions, lam, step, start, *, budget: int):
    def body(at, record):
        return control.dual_average_step(at, *record, lam=lam, step=step)

    del budget
    return jax.lax.scan(body, start, (contexts, actions))[1]


@functools.partial(jax.jit, static_argnames="budget")
def _losses(contexts, actions, weights, intercept, *, budget: int):
    scores = jnp.matmul(contexts, weights.T, precision="highest") + intercept[None, :]
    chosen = jnp.where(actions >= 0, jnp.take_along_axis(scores, jnp.maximum(actions, 0), axis=1), 0)
    return jax.vmap(lambda z: gibbs.log_partition(z, budget))(scores) - jnp.sum(chosen, axis=1)


def dense_weights(policy: control.SparsePolicy) -> tuple[jax.Array, jax.Array]:
    weights = jnp.zeros((policy.num_actions, policy.weights.shape[1]), policy.weights.dtype).at[policy.positions].set(policy.weights)
    return weights, policy.intercept


def online(options: Options, num_actions: int, records: int, seeds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """E7: static regret of epoch re-solves and of dual averaging against the best fixed policy in hindsight; after a change of the truth half
    way, that of a sliding window against the best policy of each half (dynamic)."""
    shape: dict[str, Any] = {"num_records": records, "num_actions": num_actions, "num_features": 4, "budget": 4, "num_relevant": 5, "mean_size": 2.0}
    options_of_fit: dict[str, Any] = {"num_actions": num_actions, "budget": 4}
    at = [records // 8, records // 4, records // 2, records]
    found: dict[str, list[np.ndarray]] = {}
    warm = []
    for seed in options.progress(range(seeds), "E7"):
        key = jax.random.fold_in(jax.random.key(7), seed)
        truths = [sparse_tool_log(jax.random.fold_in(key, half), **shape) for half in range(2)]
        logs = [control.Log(truth.contexts, truth.actions) for truth in truths]

        def losses(policy, log):
            return np.asarray(_losses(jnp.asarray(log.contexts), jnp.asarray(log.actions), *dense_weights(policy), budget=4))

        log = logs[0]
        best = control.fit(key, log, lam=0.003, tol=1e-4, **options_of_fit).value
        hindsight = losses(best, log)
        first = records // 32

        def epochs(log, window, key=key, first=first):
            learner = control.start_learner(key, take(log, np.arange(first)), **options_of_fit)
            paid, chunk = [], first
            for start in range(first, np.shape(log.contexts)[0], chunk):
                part = take(log, np.arange(start, min(start + chunk, np.shape(log.contexts)[0])))
                paid.append(losses(learner.policy, part))
                learner = control.update_learner(key, learner, part, window=window, growth=1.5, **options_of_fit)
            return np.concatenate(paid), learner

        paid, learner = epochs(log, None)
        found.setdefault("epochs", []).append(np.cumsum(paid - hindsight[first:])[np.array(at) - first - 1])
        start = control.dual_average(num_actions, 4, 4, best.weights.dtype)
        paid = np.asarray(_dual_average_losses(jnp.asarray(log.contexts), jnp.asarray(log.actions), 0.2, 1.0, start, budget=4))
        found.setdefault("dual averaging", []).append(np.cumsum(paid - hindsight)[np.array(at) - 1])
        # The truth changes after half of the records.
        half = records // 2
        drift = control.Log(*(None if a is None else np.concatenate([a[:half], b[:half]]) for a, b in zip(*logs, strict=True)))
        bests = [control.fit(key, take(part, np.arange(half)), lam=0.003, tol=1e-4, **options_of_fit).value for part in logs]
        moving = np.concatenate([losses(policy, take(part, np.arange(half))) for policy, part in zip(bests, logs, strict=True)])
        for name, window in (("drift: all records", None), ("drift: window", records // 4)):
            paid, _ = epochs(drift, window)
            found.setdefault(name, []).append(np.cumsum(paid - moving[first:])[np.array(at) - first - 1])
        # One per cent more records: warm against cold.
        more, lam = take(log, np.arange(records)), learner.lam
        fewer = take(log, np.arange(records - records // 100))
        state = control.fit(key, fewer, lam=lam, **options_of_fit).state
        times = []
        for given in (None, state):
            control.fit(key, more, lam=lam, state=given, **options_of_fit)
            begin = time.perf_counter()
            solution = control.fit(key, more, lam=lam, state=given, **options_of_fit)
            times.append((time.perf_counter() - begin, int(solution.stats["num_evaluations"])))
        warm.append([times[1][0] / times[0][0], times[1][1] / times[0][1]])
    rows = []
    for name, values in found.items():
        regret = np.stack(values)
        for i, count in enumerate(at):
            row = {"learner": name, "regret against": "best of each half" if name.startswith("drift") else "best in hindsight", "T": count}
            row |= {"regret, nats": float(regret[:, i].mean()), "standard error": float(regret[:, i].std(ddof=1) / np.sqrt(seeds))}
            rows.append(row | {"regret / sqrt(T)": float(regret[:, i].mean() / np.sqrt(count)), "M": num_actions})
    ratios = np.array(warm)
    names = ("time of a warm fit after 1 % more records / a cold one", "its evaluations / a cold one's")
    return rows, [{name: float(np.median(ratios[:, i])) for i, name in enumerate(names)}]


def interactions(options: Options, num_actions: int, sizes: tuple[int, ...], seeds: int) -> list[dict[str, Any]]:
    """E8: two true pairs among all observed ones, uniformly random sets of 3 tools; kept pairs, and whether their tools are kept too."""
    rows = []
    budget, noise = 3, 0.3
    truth = {(0, 1), (2, 3)}
    for records in options.progress(sizes, "E8"):
        lam = 1.5 * noise * np.sqrt(2 * np.log(num_actions**2 / 2) / records * budget / num_actions)
        found, false, heredity = [], [], []
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            actions = np.array([random.choice(num_actions, budget, replace=False) for _ in range(records)])
            inside = np.zeros((records, num_actions))
            inside[np.arange(records)[:, None], actions] = 1
            gain = inside[:, 0] + inside[:, 2] + 1.5 * inside[:, 0] * inside[:, 1] - 1.5 * inside[:, 2] * inside[:, 3]
            log = control.Log(np.ones((records, 1)), actions, gain + noise * random.normal(size=records))
            model = control.fit_interactions(log, num_actions=num_actions, budget=budget, lam=lam, tol=1e-4).value
            pairs = {(int(i), int(j)) for i, j in np.asarray(model.pairs)}
            tools = set(np.asarray(model.tools).tolist())
            found.append(truth <= pairs)
            false.append(len(pairs - truth))
            heredity.append(all(i in tools and j in tools for i, j in pairs))
        row = {"M": num_actions, "T": records, "P(both pairs found)": float(np.mean(found)), "false pairs": float(np.mean(false))}
        rows.append(row | {"P(heredity kept)": float(np.mean(heredity)), "pairs in all": num_actions * (num_actions - 1) // 2, "seeds": seeds})
    return rows
