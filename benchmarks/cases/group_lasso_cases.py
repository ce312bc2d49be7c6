"""The problems of the group lasso benchmark."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.problems.regression import group_classification, group_regression

# Each peer's own stopping rule, from loose to tight: the fastest setting that meets the common gap
# is its row.
TOLS = {
    "adelie": {"squared": (1e-11, 1e-13, 1e-15), "logistic": (1e-11, 1e-13, 1e-15)},
    "skglm": {"squared": (1e-4, 1e-5), "logistic": (1e-5, 1e-6, 1e-7)},
    "celer": {"squared": (1e-6, 1e-7, 1e-8)},
}
LONG_PATH_TOLS = {"adelie": {"squared": (1e-13, 1e-15, 1e-17)}}  # the others take minutes
MULTI_TASK_TOLS = {"sklearn": {"squared": (1e-5, 1e-7, 1e-9)}}
ONLY_ADELIE = {"adelie": TOLS["adelie"]}  # elsewhere the fastest by far


class Case(NamedTuple):
    """Problems of one shape: X [N, T, p], y [N, T], lams [N, L]; of cross-validation the training
    sets, and `whole`: X, y and folds [T].

    With y [N, T, M] there are M outputs, and a feature's coefficients for all of them are a group.
    """

    name: str
    loss: str
    X: np.ndarray
    y: np.ndarray
    lams: np.ndarray
    group_size: int
    tols: dict[str, dict[str, tuple[float, ...]]]
    whole: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @property
    def num_coefficients(self) -> int:
        return self.X.shape[2] * math.prod(self.y.shape[2:])


def build(
    name: str,
    make: Any,
    sizes: tuple,
    ratios: Any,
    dtype: str,
    *,
    count: int = 1,
    tols: Any = TOLS,
    seed: int = 0,
    **more: Any,
) -> Case:
    """`count` problems of sizes (T, G, group size, true groups), with lam = ratios · lam_max."""
    keys = jax.random.split(jax.random.key(seed), count)
    problems = [make(key, *sizes, dtype=jnp.dtype(dtype), **more) for key in keys]
    X, y = (
        np.stack([np.asarray(getattr(problem, field)) for problem in problems])
        for field in ("X", "y")
    )
    X, y = X.astype(np.float64), y.astype(np.float64)
    slope = y if make is group_regression else 0.5 * y
    pulls = np.einsum("nt,ntp->np", slope, X).reshape(count, sizes[1], sizes[2]) / sizes[0]
    largest = np.linalg.norm(pulls, axis=2).max(axis=1)
    loss = "squared" if make is group_regression else "logistic"
    return Case(name, loss, X, y, largest[:, None] * ratios, sizes[2], tols)


def cases(smoke: bool, dtype: str) -> list[Case]:
    T, G, q, active, many = (60, 12, 3, 3, 4) if smoke else (1000, 1000, 10, 10, 64)
    small = (40, 10, 3, 3) if smoke else (200, 200, 5, 5)
    num_lams = 4 if smoke else 20
    short, tall = (
        ((30, 40, 3, 3), (300, 4, 3, 2)) if smoke else ((100, 5000, 10, 5), (20_000, 50, 10, 10))
    )
    one, big = np.asarray([0.1]), (T, G, q, active)
    few, long = np.linspace(0, 1, num_lams), np.linspace(0, 1, 5 * num_lams)

    def case(name, make, sizes, ratios, **more):
        return build(
            f"{name}, {sizes[0]} x {sizes[1] * sizes[2]}", make, sizes, ratios, dtype, **more
        )

    path = case(
        f"{5 * num_lams} lambdas to 0.01", group_regression, big, 0.01**long, tols=LONG_PATH_TOLS
    )
    return [
        case("one lambda", group_regression, big, one),
        case(f"one lambda, {4 * active} true groups", group_regression, (T, G, q, 4 * active), one),
        case("one lambda, correlation 0.95", group_regression, big, one, correlation=0.95),
        case("one lambda, few records", group_regression, short, one, tols=ONLY_ADELIE),
        case("one lambda, many records", group_regression, tall, one, tols=ONLY_ADELIE),
        case("one lambda, logistic", group_classification, big, one),
        case(f"{num_lams} lambdas to 0.1", group_regression, big, 0.1**few),
        case(
            f"{num_lams} lambdas to 0.1, logistic",
            group_classification,
            big,
            0.1**few,
            tols=ONLY_ADELIE,
        ),
        path,
        cross_validation(path, 5),
        case(f"{many} problems", group_regression, small, one, count=many),
        multi_task("one lambda", T, G, q, active, dtype),
    ]


def multi_task(
    name: str, num_records: int, num_features: int, num_outputs: int, active: int, dtype: str
) -> Case:
    """Several outputs that share their features, one lambda."""
    rng = np.random.default_rng(0)
    coef = np.zeros((num_features, num_outputs))
    coef[:active] = rng.normal(size=(active, num_outputs))
    X = rng.normal(size=(num_records, num_features)).astype(dtype).astype(np.float64)
    y = (X @ coef + rng.normal(size=(num_records, num_outputs))).astype(dtype).astype(np.float64)
    largest = np.linalg.norm(X.T @ y / num_records, axis=1).max()
    name = f"{name}, {num_outputs} outputs, {num_records} x {num_features}"
    return Case(
        name,
        "squared",
        X[None],
        y[None],
        np.asarray([[0.1 * largest]]),
        num_outputs,
        MULTI_TASK_TOLS,
    )


def cross_validation(case: Case, num_folds: int) -> Case:
    """The training sets of a problem cut at random, at its own lambdas."""
    X, y = case.X[0], case.y[0]
    folds = np.random.default_rng(0).permutation(len(y)) % num_folds
    parts = [folds != fold for fold in range(num_folds)]
    return Case(
        f"{num_folds}-fold cross-validation, {case.name}",
        case.loss,
        np.stack([X[part] for part in parts]),
        np.stack([y[part] for part in parts]),
        np.repeat(case.lams, num_folds, axis=0),
        case.group_size,
        case.tols,
        (X, y, folds.astype(np.int32)),
    )


def random_cases(smoke: bool, dtype: str) -> Iterator[Case]:
    """Ten problems of other seeds, sizes, correlations and lambdas."""
    rng = np.random.default_rng(1)
    for seed in range(2 if smoke else 10):
        T, q, active = (
            int(rng.integers(300, 2001)),
            int(rng.integers(2, 16)),
            int(rng.integers(4, 41)),
        )
        G = int(rng.integers(300, min(3000, 20_000_000 // (T * q))))
        correlation, ratio = (
            float(rng.uniform(0.0, 0.95)),
            np.asarray([float(np.exp(rng.uniform(np.log(0.05), np.log(0.3))))]),
        )
        if smoke:
            T, G, active = T // 20, G // 20, 3
        name = (
            f"{T} x {G * q}, groups of {q}, {active} true, correlation {correlation:.2f}, "
            f"lam {ratio[0]:.2f} lam_max"
        )
        yield build(
            name,
            group_regression,
            (T, G, q, active),
            ratio,
            dtype,
            tols=ONLY_ADELIE,
            seed=seed,
            correlation=correlation,
        )
