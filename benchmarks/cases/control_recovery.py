"""E1 support recovery on Gaussian designs and on budgeted actions: one compiled trial per shape,
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
