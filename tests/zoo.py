"""Problems for the tests, and independent float64 numpy oracles: nothing here calls jaxsac."""

from typing import NamedTuple

import numpy as np
from scipy.special import entr, expit, log_expit, xlogy

SIZES = (
    3,
    1,
    4,
    2,
    5,
    3,
    2,
)  # unequal groups: one layout for most tests, so that they share compilations
NUM_SAMPLES = 30
LABELS = np.repeat(np.arange(len(SIZES)), SIZES)
NUM_COLUMNS = LABELS.size


class Instance(NamedTuple):
    """One group-lasso problem as numpy arrays."""

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    sample_weight: np.ndarray
    offset: np.ndarray
    ratio: np.ndarray  # lam / lam_max


def instance(seed: int, loss: str, *, zero_weight: bool = False) -> Instance:
    """A random problem: correlated columns of unequal sizes and means, few true groups, unequal
    weights, some records of weight 0.
    """
    rng = np.random.default_rng(seed)
    T, p = NUM_SAMPLES, NUM_COLUMNS
    X = (
        rng.normal(size=(T, p))
        + rng.uniform(0, 0.9) * rng.normal(size=(T, 1))
        + rng.uniform(0, 2) * rng.normal(size=p)
    )
    X *= np.exp(rng.uniform(-1, 1, size=p))
    coef = np.where(
        np.isin(LABELS, rng.choice(len(SIZES), 2, replace=False)), rng.normal(size=p), 0.0
    )
    score = X @ coef
    score = (score - score.mean()) / max(score.std(), 1e-9)
    if loss == "logistic":
        y = np.where(rng.uniform(size=T) < expit(2 * score), 1.0, -1.0)
        y[:2] = [1.0, -1.0]
    elif loss == "poisson":
        y = rng.poisson(np.exp(0.7 * score)).astype(float)
        y[0] = 1.0
    else:
        noise = rng.standard_t(2, size=T) if loss == "huber" else rng.normal(size=T)
        y = 3 * score + noise + rng.normal()
    weights = rng.uniform(0.5, 2.0, size=len(SIZES))
    if zero_weight:
        weights[1] = 0.0
    sample_weight = rng.uniform(0.5, 1.5, size=T)
    sample_weight[-2:] = 0.0
    return Instance(
        X, y, weights, sample_weight, 0.3 * rng.normal(size=T), np.float64(10 ** rng.uniform(-2, 0))
    )


def stack(instances: list[Instance]) -> Instance:
    return Instance(*(np.stack(arrays) for arrays in zip(*instances, strict=True)))


HUBER_DELTA = 1.345


def loss_value(loss: str, z, y, c):
    """(1/T) Σ c ℓ in float64; the Poisson loss as half the deviance."""
    if loss == "squared":
        each = 0.5 * (y - z) ** 2
    elif loss == "logistic":
        each = -log_expit(y * z)
    elif loss == "huber":
        r = np.abs(y - z)
        each = np.where(r <= HUBER_DELTA, 0.5 * r**2, HUBER_DELTA * (r - 0.5 * HUBER_DELTA))
    else:
        each = np.exp(z) - y * z - y + xlogy(y, y)
    return np.sum(c * each) / len(y)


def descent(loss: str, z, y):
    """−ℓ'(z)."""
    if loss == "squared":
        return y - z
    if loss == "logistic":
        return y * expit(-y * z)
    if loss == "huber":
        return np.clip(y - z, -HUBER_DELTA, HUBER_DELTA)
    return y - np.exp(z)


def second(loss: str, z, y):
    """ℓ''(z)."""
    if loss == "squared":
        return np.ones_like(z)
    if loss == "logistic":
        return expit(z) * expit(-z)
    if loss == "huber":
        return (np.abs(y - z) <= HUBER_DELTA).astype(float)
    return np.exp(z)


def conjugate_value(loss: str, p, y):
    """−ℓ*(−p) for each record, p being any dual point in the domain: from the definition of the
    conjugates.
    """
    if loss == "squared":
        return p * y - 0.5 * p**2
    if loss == "huber":
        return np.where(np.abs(p) <= HUBER_DELTA * (1 + 1e-12), p * y - 0.5 * p**2, -np.inf)
    if loss == "logistic":
        share = p * y
        return np.where((share >= 0) & (share <= 1), entr(share) + entr(1 - share), -np.inf)
    rate = y - p
    return np.where(rate >= 0, rate - xlogy(rate, rate) - y + xlogy(y, y), -np.inf)


def norms(v):
    return np.sqrt(np.bincount(LABELS, weights=v**2, minlength=len(SIZES)))


def objective(loss: str, at: Instance, lam, coef, intercept):
    return loss_value(
        loss, at.X @ coef + intercept + at.offset, at.y, at.sample_weight
    ) + lam * np.sum(at.weights * norms(coef))


def gap(loss: str, at: Instance, lam, coef, intercept, *, has_intercept: bool):
    """P(b) minus a dual value at a feasible point, by the textbook construction; unpenalised parts
    refitted by Newton's method.

    Returns the gap and the scale (the objective of the null model).
    """
    T = len(at.y)
    free = np.isin(LABELS, np.flatnonzero(at.weights * lam == 0))
    U = np.column_stack([at.X[:, free]] + ([np.ones(T)] if has_intercept else []))
    z = newton(loss, at, at.offset + at.X @ coef + intercept, U)
    p = descent(loss, z, at.y)
    rho = at.sample_weight * p / T
    ratios = norms(rho @ at.X)[at.weights * lam > 0] / (lam * at.weights[at.weights * lam > 0])
    limit = 1 / max(ratios.max(initial=0.0), 1e-300)
    candidates = np.clip(
        [1.0, best_multiple(at, p)] if loss in ("squared", "huber") else [1.0], -limit, limit
    )
    if loss != "squared":
        candidates = np.clip(candidates, -1.0, 1.0)
    dual = max(
        np.sum(at.sample_weight * conjugate_value(loss, s * p, at.y)) / T - s * rho @ at.offset
        for s in candidates
    )
    null_weights = np.isin(LABELS, np.flatnonzero(at.weights == 0))
    null = np.column_stack([at.X[:, null_weights]] + ([np.ones(T)] if has_intercept else []))
    scale = loss_value(loss, newton(loss, at, at.offset, null), at.y, at.sample_weight)
    return objective(loss, at, lam, coef, intercept) - dual, scale


def lam_max(loss: str, at: Instance, *, has_intercept: bool):
    """max_g ‖X_g' ρ‖ / w_g at the null model."""
    T = len(at.y)
    free = np.isin(LABELS, np.flatnonzero(at.weights == 0))
    U = np.column_stack([at.X[:, free]] + ([np.ones(T)] if has_intercept else []))
    rho = at.sample_weight * descent(loss, newton(loss, at, at.offset, U), at.y) / T
    return np.max(norms(rho @ at.X)[at.weights > 0] / at.weights[at.weights > 0])


def best_multiple(at: Instance, p):
    square = np.sum(at.sample_weight * p**2)
    return np.sum(at.sample_weight * p * (at.y - at.offset)) / square if square > 0 else 1.0


def newton(loss: str, at: Instance, z, U):
    """The predictions z + U d of least loss, by damped Newton steps."""
    if U.shape[1] == 0:
        return z
    lengths = np.linalg.norm(U, axis=0)
    left, singular, _ = np.linalg.svd(U / np.where(lengths > 0, lengths, 1), full_matrices=False)
    U = left[:, singular > 1e-12 * singular.max(initial=1e-300)]  # columns may be zero or dependent
    if U.shape[1] == 0:
        return z
    for _ in range(100):
        gradient = (at.sample_weight * descent(loss, z, at.y)) @ U
        hessian = (U * (at.sample_weight * second(loss, z, at.y))[:, None]).T @ U
        step = U @ np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0]
        value, size = loss_value(loss, z, at.y, at.sample_weight), 1.0
        while size > 1e-8 and not loss_value(
            loss, z + size * step, at.y, at.sample_weight
        ) <= value + 1e-14 * abs(value):
            size *= 0.5
        if size <= 1e-8 or np.abs(step).max() < 1e-14 * (1 + np.abs(z).max()):
            break
        z = z + size * step
    return z
