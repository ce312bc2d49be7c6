"""Support recovery, rates and the dense baseline on Gaussian designs: one compiled trial per shape,
vmapped over seeds.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsac
from benchmarks.harness import Options
from jaxsac import group_lasso
from jaxsac.problems import control_recovery as bed

NOISE = 0.25
LANES = 25  # seeds at a time
RESAMPLES = 200
HIGHEST = jax.lax.Precision.HIGHEST


def theory_lam(num_actions, samples, q: int):
    """2 sigma (sqrt(q) + sqrt(2 log M)) / sqrt(T): the paper's rate, c_0 = 1, for standard normal
    columns.
    """
    return 2 * NOISE * (jnp.sqrt(float(q)) + jnp.sqrt(2 * jnp.log(num_actions))) / jnp.sqrt(samples)


def exact_recovery(key, num_actions, samples, *, k: int, q: int, most: int):
    """Whether the group lasso at `theory_lam` finds exactly the k relevant tools among M, T
    standard normal samples (T > k q).

    By the witness: solve on the relevant tools alone (rotated, so T costs nothing); the support is
    exact iff no other tool's gradient exceeds lam and none of the k is zero. The other columns are
    independent of the residual, so X_j'rho / T ~ N(0, ||rho||^2 / T^2 I_q) exactly: M - k norms are
    drawn instead of M - k columns. M and T are traced.
    """
    truth, data_key, others = jax.random.split(key, 3)
    coef = bed.sphere(truth, k, q).reshape(-1)
    lam = theory_lam(num_actions, samples, q)
    problem = bed.rotated_regression(data_key, coef, samples, NOISE)
    groups = jaxsac.Groups.equal(num_groups=k, size=q)
    solution = group_lasso.solve(problem.X, problem.y, groups, lam, tol=1e-6)
    residual = problem.y - jnp.matmul(problem.X, solution.value.coef, precision=HIGHEST)
    square = jnp.mean(residual**2) + problem.outside  # ||y - X b||^2 / T
    norms = jnp.sqrt(square / samples) * jnp.linalg.norm(
        jax.random.normal(others, (most, q)), axis=1
    )
    largest = jnp.max(jnp.where(jnp.arange(most).astype(norms.dtype) < num_actions - k, norms, 0))
    kept = jnp.min(jnp.linalg.norm(solution.value.coef.reshape(k, q), axis=1))
    return (largest < lam) & (kept > 0)


@functools.partial(jax.jit, static_argnames=("k", "q", "most", "seeds"))
def recovery_rates(key, num_actions, samples, *, k: int, q: int, most: int, seeds: int):
    """P(exact support) at each pair (num_actions[i], samples[i]) over `seeds` seeds, [n]."""
    trial = functools.partial(exact_recovery, k=k, q=q, most=most)

    def point(pair):
        found = jax.vmap(trial, (0, None, None))(
            jax.random.split(jax.random.fold_in(key, k * q), seeds), *pair
        )
        return jnp.mean(found)

    return jax.lax.map(point, (num_actions, samples))


def midpoint(x: np.ndarray, rates: np.ndarray, seeds: int) -> tuple[float, float]:
    """Where a logistic curve in log x, fitted to success rates, crosses one half, with its standard
    error (delta method).
    """
    design = np.stack([np.ones_like(x), np.log(x)])
    share, n = (
        (seeds * rates + 0.5) / (seeds + 1),
        seeds + 1.0,
    )  # half a success and half a failure more keep the fit finite
    beta = np.zeros(2)

    def loss(beta):
        eta = beta @ design
        return n * (np.logaddexp(0, eta) - share * eta).sum()

    information = np.eye(2)
    for _ in range(200):
        p = 1 / (1 + np.exp(-np.clip(beta @ design, -500, 500)))
        information = (design * (n * np.maximum(p * (1 - p), 1e-9))) @ design.T
        step = np.linalg.solve(information, design @ (n * (share - p)))
        length = 1.0
        while loss(beta + length * step) > loss(beta) and length > 1e-9:
            length /= 2
        beta = beta + length * step
        if np.abs(length * step).max() < 1e-10:
            break
    covariance = np.linalg.inv(information)
    centre = -beta[0] / beta[1]
    gradient = np.array([-1 / beta[1], -centre / beta[1]])
    return float(np.exp(centre)), float(np.exp(centre) * np.sqrt(gradient @ covariance @ gradient))


def scales(num_actions, k: int, q: int) -> dict[str, Any]:
    """The samples that a transition is measured in: the paper's k log M, and k m / 2 with m the
    median of the largest of M - k chi^2_q: what 2 log M stands for, at q = 1 and large M.
    """
    from scipy.stats import chi2

    return {
        "k log M": k * np.log(num_actions),
        "q-aware": k * chi2.ppf(0.5 ** (1 / (num_actions - k)), q) / 2,
    }


def phase_transition(
    options: Options, sizes, ks, qs, seeds: int
) -> tuple[list[dict[str, Any]], dict]:
    """E1: rates over a grid of samples, and the midpoints in both scales."""
    rows, curves = [], {}
    kappas = np.geomspace(0.5, 12, 16)
    for q in qs:
        for k in options.progress(ks, f"E1, q = {q}"):
            pairs = [
                (m, max(kappa * scales(m, k, q)["q-aware"], k * q + 1.0))
                for m in sizes
                for kappa in kappas
            ]
            m, t = (np.array(column, float) for column in zip(*pairs, strict=True))
            dtype = jnp.result_type(float)
            rates = recovery_rates(
                jax.random.key(1),
                jnp.asarray(m, dtype),
                jnp.asarray(np.round(t), dtype),
                k=k,
                q=q,
                most=max(sizes),
                seeds=seeds,
            )
            rates = np.asarray(rates).reshape(len(sizes), -1)
            t = np.round(t).reshape(len(sizes), -1)
            for i, size in enumerate(sizes):
                middle, error = midpoint(t[i], rates[i], seeds)
                row = {"q": q, "k": k, "M": size, "T at 50 %": middle, "standard error": error}
                row |= {
                    f"kappa in {name}": middle / float(value)
                    for name, value in scales(size, k, q).items()
                }
                rows.append(row | {"highest rate": float(rates[i].max())})
                curves[q, k, size] = (t[i], rates[i])
    return rows, curves


def spread(rows: list[dict[str, Any]], column: str) -> float:
    """(largest - smallest) / mean of a column."""
    values = np.array([row[column] for row in rows])
    return float((values.max() - values.min()) / values.mean())


def collapse(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How well the midpoints agree, across M for each k and across all, in both scales."""
    found = []
    for q in sorted({row["q"] for row in rows}):
        own = [row for row in rows if row["q"] == q]
        for name in ("k log M", "q-aware"):
            column = f"kappa in {name}"
            across = [
                spread([row for row in own if row["k"] == k], column)
                for k in sorted({row["k"] for row in own})
            ]
            found.append(
                {
                    "q": q,
                    "scale": name,
                    "spread across M, worst k": max(across),
                    "across M and k": spread(own, column),
                }
            )
    return found


def many(trial, key, seeds: int):
    """`trial` of `seeds` keys, in vmapped chunks."""
    return jaxsac.run_trials(trial, key, seeds, batch_size=min(seeds, LANES))


@functools.partial(jax.jit, static_argnames=("most", "num_actions", "budget", "k", "seeds"))
def recovered_share(
    key, lams, records, *, most: int, num_actions: int, budget: int, k: int, seeds: int
):
    """Share of seeds in which some lam of `lams` (units of theory) finds exactly the support from
    `records` <= `most` uniformly random budgeted actions. Least squares on the k relevant tools
    sees their Gram matrix alone: the solves have k rows.
    """
    groups = jaxsac.Groups.equal(num_groups=k, size=1)
    live = jnp.arange(most).astype(jnp.result_type(float)) < records

    def trial(key):
        action_key, noise_key = jax.random.split(key)
        actions = jnp.where(
            live[:, None], bed.random_actions(action_key, most, num_actions, budget), num_actions
        )
        design = jnp.any(
            actions[:, :, None] == jnp.arange(k, dtype=jnp.int32)[None, None, :], axis=1
        ).astype(jnp.result_type(float))
        y = jnp.where(
            live,
            jnp.sum(design, axis=1) + NOISE * jax.random.normal(noise_key, (most,), design.dtype),
            0,
        )
        centred = jnp.where(live[:, None], design - jnp.sum(design, axis=0)[None, :] / records, 0)
        y = jnp.where(live, y - jnp.sum(y) / records, 0)
        values, vectors = jnp.linalg.eigh(
            jnp.matmul(centred.T, centred, precision=HIGHEST) / records
        )
        roots = jnp.sqrt(jnp.maximum(values, 0))
        target = (
            jnp.matmul(jnp.matmul(y, centred, precision=HIGHEST), vectors, precision=HIGHEST)
            / records
        )
        rows = jnp.sqrt(float(k)) * roots[:, None] * vectors.T
        y_rows = jnp.sqrt(float(k)) * jnp.where(
            values > 1e-9, target / jnp.where(values > 1e-9, roots, 1), 0
        )
        base = (
            2 * NOISE * jnp.sqrt(2 * jnp.log(float(num_actions)) / records * (budget / num_actions))
        )

        def at(lam):
            coef = group_lasso.solve(rows, y_rows, groups, lam * base, tol=1e-6).value.coef
            residual = y - jnp.matmul(centred, coef, precision=HIGHEST)
            pull = (
                jnp.zeros(num_actions, residual.dtype)
                .at[actions]
                .add(residual[:, None], mode="drop")
                / records
            )
            return (jnp.max(jnp.abs(pull[k:])) < lam * base) & jnp.all(coef != 0)

        return jnp.any(jax.vmap(at)(lams))

    return jnp.mean(many(trial, key, seeds))


def budgeted_actions(
    options: Options, sizes, budget: int, k: int, seeds: int
) -> list[dict[str, Any]]:
    """E1 (iii), where the claim fails: a record informs its B tools only, so the samples grow as M
    / B, whatever lam.
    """
    rows = []
    lams = jnp.asarray(np.geomspace(0.1, 10, 9), jnp.result_type(float))
    for size in options.progress(sizes, "E1, budgeted actions"):
        units = {
            "k log M": (k * np.log(size), (8, 32)),
            "M/B log M": (size / budget * np.log(size), (1, 2, 4)),
        }
        grid = [
            (name, factor, int(np.ceil(factor * unit)))
            for name, (unit, factors) in units.items()
            for factor in factors
        ]
        most = max(records for _, _, records in grid)
        for name, factor, records in grid:
            at = jnp.asarray(records, lams.dtype)
            rate = float(
                recovered_share(
                    jax.random.key(2),
                    lams,
                    at,
                    most=most,
                    num_actions=size,
                    budget=budget,
                    k=k,
                    seeds=seeds,
                )
            )
            row = {
                "M": size,
                "T": records,
                "in units of": name,
                "units": factor,
                "P(exact) at the best lam": rate,
            }
            rows.append(
                row | {"standard error": float(np.sqrt(rate * (1 - rate) / seeds)), "seeds": seeds}
            )
    return rows


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
def _duplicates(key, correlation, *, samples: int, num_actions: int, k: int, seeds: int):
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
        exact, value = _duplicates(
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
