"""E6 contamination, E8 interactions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsac
from benchmarks.harness import Options
from jaxsac import control, group_lasso

SIGMA, RELEVANT = 0.5, 4
KINDS = ("random sign", "against the truth", "towards a false tool")


@functools.partial(jax.jit, static_argnames=("samples", "num_actions", "seeds"))
def _errors(key, share, kind, *, samples: int, num_actions: int, seeds: int):
    """Errors [seeds] of the robust and of the least squares estimate; a share of the records is off
    by 10 sigma.
    """
    groups = jaxsac.Groups.equal(num_groups=num_actions, size=1)
    lam = SIGMA * jnp.sqrt(2 * jnp.log(float(num_actions)) / samples)

    def trial(key):
        design, noise, bad, sign = jax.random.split(key, 4)
        X = jax.random.normal(design, (samples, num_actions))
        coef = jnp.where(jnp.arange(num_actions) < RELEVANT, 1.0, 0.0).astype(X.dtype)
        clean = jnp.matmul(X, coef, precision="highest")
        signs = jnp.stack(
            [
                jnp.where(jax.random.bernoulli(sign, 0.5, (samples,)), 1.0, -1.0).astype(X.dtype),
                -jnp.sign(clean),
                jnp.sign(X[:, -1]),
            ]
        )
        wild = jnp.where(jax.random.uniform(bad, (samples,)) < share, 10 * SIGMA * signs[kind], 0)
        y = clean + SIGMA * jax.random.normal(noise, (samples,), X.dtype) + wild
        found = (
            control.robust.robust_regression(group_lasso.Problem(X, y, groups), lam, tol=1e-4),
            group_lasso.solve(X, y, groups, lam, tol=1e-4),
        )
        return tuple(jnp.linalg.norm(solution.value.coef - coef) for solution in found)

    return jaxsac.run_trials(trial, key, seeds, batch_size=min(seeds, 20))


def contamination(
    options: Options, num_actions: int, samples: int, seeds: int
) -> list[dict[str, Any]]:
    rows, clean = [], {}
    for kind, name in options.progress(list(enumerate(KINDS)), "E6"):
        for share in (0.0, 0.05, 0.1, 0.2):
            if share == 0.0 and clean:
                continue
            at = jnp.asarray(share, jnp.result_type(float))
            errors = _errors(
                jax.random.key(6), at, kind, samples=samples, num_actions=num_actions, seeds=seeds
            )
            means = {
                which: np.asarray(error)
                for which, error in zip(("robust", "least squares"), errors, strict=True)
            }
            clean = clean or {which: error.mean() for which, error in means.items()}
            row: dict[str, Any] = {
                "outliers of 10 sigma": name if share else "none",
                "share": share,
            }
            for which, error in means.items():
                row |= {
                    f"{which}: error": float(error.mean()),
                    f"{which}: standard error": float(error.std(ddof=1) / np.sqrt(seeds)),
                }
                row |= {f"{which}: times its clean": float(error.mean() / clean[which])}
            rows.append(row | {"M": num_actions, "T": samples})
    return rows


def interactions(
    options: Options, num_actions: int, sizes: tuple[int, ...], seeds: int
) -> list[dict[str, Any]]:
    """E8: two true pairs among all observed ones, uniformly random sets of 3 tools; kept pairs, and
    whether their tools are kept too.
    """
    rows = []
    budget, noise = 3, 0.3
    truth = {(0, 1), (2, 3)}
    for records in options.progress(sizes, "E8"):
        lam = 1.5 * noise * np.sqrt(2 * np.log(num_actions**2 / 2) / records * budget / num_actions)
        found, false, heredity = [], [], []
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            actions = np.array(
                [random.choice(num_actions, budget, replace=False) for _ in range(records)]
            )
            inside = np.zeros((records, num_actions))
            inside[np.arange(records)[:, None], actions] = 1
            gain = (
                inside[:, 0]
                + inside[:, 2]
                + 1.5 * inside[:, 0] * inside[:, 1]
                - 1.5 * inside[:, 2] * inside[:, 3]
            )
            log = control.Log(
                np.ones((records, 1)), actions, gain + noise * random.normal(size=records)
            )
            task = control.Task(log, num_actions, budget, "utility")
            model = control.fit_interactions(task, lam=lam, tol=1e-4).value
            pairs = {(int(i), int(j)) for i, j in np.asarray(model.pairs)}
            tools = set(np.asarray(model.tools).tolist())
            found.append(truth <= pairs)
            false.append(len(pairs - truth))
            heredity.append(all(i in tools and j in tools for i, j in pairs))
        row: dict[str, Any] = {"M": num_actions, "T": records}
        for name, values in {
            "P(both pairs found)": found,
            "false pairs": false,
            "P(heredity kept)": heredity,
        }.items():
            row |= {
                name: float(np.mean(values)),
                f"{name}: standard error": float(np.std(values, ddof=1) / np.sqrt(seeds)),
            }
        rows.append(row | {"pairs in all": num_actions * (num_actions - 1) // 2, "seeds": seeds})
    return rows
