"""E2 the dense baseline, E4 near duplicates, E5 rates, on Gaussian designs: one compiled trial per
shape, vmapped over seeds.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsac
from benchmarks.cases.control_recovery import HIGHEST, NOISE, RESAMPLES, many, spread, theory_lam
from benchmarks.harness import Options
from jaxsac import group_lasso
from jaxsac.problems import control_recovery as bed


def _part(problem: bed.Regression, samples, num_actions) -> bed.Regression:
    """The problem of the first `samples` rows and `num_actions` columns (traced): the others are
    zero, and the mean squares those of the rows that count.
    """
    rows, columns = (jnp.arange(size).astype(problem.y.dtype) for size in problem.X.shape)
    keep = jnp.where(rows < samples, jnp.sqrt(rows.size / samples), 0)
    return problem._replace(
        X=jnp.where(columns < num_actions, keep[:, None] * problem.X, 0), y=keep * problem.y
    )


@functools.partial(jax.jit, static_argnames=("most", "width", "k", "seeds"))
def _sparse_cosines(key, samples, num_actions, *, most: int, width: int, k: int, seeds: int):
    """Cosine with the truth of the sparse estimate at the theory's lam, [n, seeds], for each number
    of samples [n].
    """
    groups = jaxsac.Groups.equal(num_groups=width, size=1)

    def at(samples):
        lam = theory_lam(num_actions, samples, 1)

        def trial(key):
            problem = _part(
                bed.gaussian_regression(key, most, width, 1, k, NOISE), samples, num_actions
            )
            return cosine(
                group_lasso.solve(
                    problem.X, problem.y, groups, lam, tol=1e-3, max_steps=1000
                ).value.coef,
                problem.coef,
            )

        return many(trial, key, seeds)

    return jax.lax.map(at, samples)


@functools.partial(jax.jit, static_argnames=("most", "width", "k", "seeds"))
def _dense_cosines(key, samples, num_actions, *, most: int, width: int, k: int, seeds: int):
    """The same of the best of four ridges, each data set's own, [n, seeds]."""
    ridges = jnp.asarray([1e-3, 1e-2, 1e-1, 1.0], jnp.result_type(float))

    def at(samples):
        def trial(key):
            problem = _part(
                bed.gaussian_regression(key, most, width, 1, k, NOISE), samples, num_actions
            )
            gram = jnp.matmul(problem.X, problem.X.T, precision=HIGHEST) / most

            def ridge(r):
                factor = jax.scipy.linalg.cho_factor(gram + r * jnp.eye(most, dtype=gram.dtype))
                dual = jax.scipy.linalg.cho_solve(factor, problem.y)
                return cosine(jnp.matmul(dual, problem.X, precision=HIGHEST), problem.coef)

            return jnp.max(jax.lax.map(ridge, ridges))

        return jaxsac.run_trials(trial, key, seeds, batch_size=1)

    return jax.lax.map(at, samples)


def cosine(coef, truth):
    return jnp.vdot(coef, truth) / jnp.maximum(
        jnp.linalg.norm(coef) * jnp.linalg.norm(truth), 1e-12
    )


def needed(samples: np.ndarray, cosines: np.ndarray, target: float) -> float:
    """The samples at which the mean cosine crosses `target`, by interpolation in log T; NaN where
    it does not.
    """
    mean = cosines.mean(1)
    above = np.flatnonzero(mean >= target)
    if not above.size or above[0] == 0:
        return float("nan")
    i = above[0]
    share = (target - mean[i - 1]) / (mean[i] - mean[i - 1])
    return float(np.exp(np.log(samples[i - 1]) + share * np.log(samples[i] / samples[i - 1])))


def sample_grid(name: str, k: int, num_actions: int) -> np.ndarray:
    if name == "sparse":
        return np.round(k * np.log(num_actions) * np.geomspace(0.6, 4, 6))
    return np.round(num_actions * np.array([0.6, 0.75, 0.9, 1.1]))


def dense_against_sparse(
    options: Options, sizes, k: int, seeds: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """E2: samples until the relative value gap is 0.1. The value of an estimate, used to pick the
    best of random candidates x ~ N(0, I), is proportional to its cosine with the truth: the gap is
    1 - cosine. Standard errors by resampling the seeds.
    """
    rows = []
    random = np.random.default_rng(0)
    for size in options.progress(sizes, "E2"):
        width = max(size, 128)  # small sizes share a compilation
        found: dict[str, tuple[float, float]] = {}
        for name, run in (("sparse", _sparse_cosines), ("dense", _dense_cosines)):
            grid, longest = (sample_grid(name, k, m) for m in (size, width))
            numbers = (
                jnp.asarray(grid, jnp.result_type(float)),
                jnp.asarray(size, jnp.result_type(float)),
            )
            values = np.asarray(
                run(
                    jax.random.key(3),
                    *numbers,
                    most=int(longest[-1]),
                    width=width,
                    k=k,
                    seeds=seeds,
                )
            )
            again = [
                needed(grid, values[:, random.integers(0, seeds, seeds)], 0.9)
                for _ in range(RESAMPLES)
            ]
            found[name] = needed(grid, values, 0.9), float(np.nanstd(again))
        unit = k * np.log(size)
        row = {
            "M": size,
            "k": k,
            "T sparse": found["sparse"][0],
            "its standard error": found["sparse"][1],
        }
        row |= {
            "T sparse / (k log M)": found["sparse"][0] / unit,
            "T dense": found["dense"][0],
            "standard error, dense": found["dense"][1],
        }
        rows.append(row | {"T dense / M": found["dense"][0] / size, "seeds": seeds})
    log_sizes = np.log([row["M"] for row in rows])
    slopes = {
        name: float(np.polyfit(log_sizes, np.log([row[f"T {name}"] for row in rows]), 1)[0])
        for name in ("sparse", "dense")
    }
    loglog = float(np.polyfit(log_sizes, np.log(log_sizes), 1)[0])
    summary = [
        {
            "slope of T dense in log-log": slopes["dense"],
            "slope of T sparse": slopes["sparse"],
            "slope of log M itself": loglog,
            "spread of T sparse / (k log M)": spread(rows, "T sparse / (k log M)"),
        }
    ]
    return rows, summary


@functools.partial(jax.jit, static_argnames=("samples", "num_actions", "k", "seeds"))
def duplicates(key, correlation, *, samples: int, num_actions: int, k: int, seeds: int):
    def trial(key):
        problem = bed.gaussian_regression(key, samples, num_actions, 1, k, NOISE, correlation)
        groups = jaxsac.Groups.equal(num_groups=num_actions, size=1)
        lam = theory_lam(float(num_actions), float(samples), 1)
        coef = group_lasso.solve(
            problem.X, problem.y, groups, lam, tol=1e-5, max_steps=5000
        ).value.coef
        exact = jnp.all((coef != 0) == (problem.coef != 0))
        # Candidates are drawn as the records are: copies correlate with what they copy, so either
        # serves.
        copied = coef[:k] + correlation * coef[k : 2 * k]
        own = jnp.vdot(copied, problem.coef[:k])
        spread = jnp.sqrt(
            jnp.sum(copied**2)
            + (1 - correlation**2) * jnp.sum(coef[k : 2 * k] ** 2)
            + jnp.sum(coef[2 * k :] ** 2)
        )
        return exact, own / jnp.maximum(spread * jnp.linalg.norm(problem.coef), 1e-12)

    return many(trial, key, seeds)


def near_duplicates(options: Options, num_actions: int, k: int, seeds: int) -> list[dict[str, Any]]:
    """E4: each relevant tool has a copy of cosine rho. The support goes, the value stays."""
    rows = []
    samples = round(6 * k * np.log(num_actions))
    for rho in options.progress((0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.99), "E4"):
        exact, value = duplicates(
            jax.random.key(4),
            jnp.asarray(rho, jnp.result_type(float)),
            samples=samples,
            num_actions=num_actions,
            k=k,
            seeds=seeds,
        )
        row = {
            "cosine": rho,
            "P(exact support)": float(np.mean(exact)),
            "relative value": float(np.mean(value)),
        }
        rows.append(
            row
            | {
                "standard error": float(np.std(value, ddof=1) / np.sqrt(seeds)),
                "T": samples,
                "M": num_actions,
                "k": k,
            }
        )
    return rows


@functools.partial(jax.jit, static_argnames=("num_actions", "seeds"))
def _errors(key, k, samples, *, num_actions: int, seeds: int):
    """||estimate - truth|| [seeds] for k tools of norm 1 and T samples, both traced."""

    def trial(key):
        coef = jnp.where(
            jnp.arange(num_actions).astype(jnp.result_type(float)) < k, 1.0, 0.0
        ).astype(jnp.result_type(float))
        problem = bed.rotated_regression(key, coef, samples, NOISE)
        groups = jaxsac.Groups.equal(num_groups=num_actions, size=1)
        found = group_lasso.solve(
            problem.X, problem.y, groups, theory_lam(float(num_actions), samples, 1), tol=1e-6
        )
        return jnp.linalg.norm(found.value.coef - coef)

    return many(trial, key, seeds)


def rates(
    options: Options, num_actions: int, seeds: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """E5: the error's slope in T at fixed k, and in k at fixed T."""
    rows = []
    in_samples = [(8, factor * num_actions) for factor in (2, 4, 8, 16, 32)]
    in_k = [(k, 16 * num_actions) for k in (2, 4, 8, 16, 32)]
    for k, samples in options.progress(sorted(set(in_samples + in_k)), "E5"):
        numbers = (jnp.asarray(number, jnp.result_type(float)) for number in (k, samples))
        error = np.asarray(
            _errors(jax.random.key(5), *numbers, num_actions=num_actions, seeds=seeds)
        )
        rows.append(
            {
                "k": k,
                "T": samples,
                "error": float(error.mean()),
                "standard error": float(error.std(ddof=1) / np.sqrt(seeds)),
            }
        )
    table = {(row["k"], row["T"]): row["error"] for row in rows}

    def slope(points, column):
        x = np.log([point[column] for point in points])
        return float(np.polyfit(x, np.log([table[point] for point in points]), 1)[0])

    return rows, [
        {
            "slope in T (theory -1/2)": slope(in_samples, 1),
            "slope in k (theory 1/2)": slope(in_k, 0),
            "M": num_actions,
        }
    ]
