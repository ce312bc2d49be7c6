"""Bilevel problems as arrays, and upper and lower functions of (x, y, data): a smooth synthetic
one, and hyper-parameters on real data.

The data sets come with scikit-learn (the `route` extra); nothing is downloaded.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, prox
from jaxsac._arguments import anything, arguments, integer, real, record, size

_DTYPE, _UNREAD = anything("a floating dtype"), anything("not read")
_LOG_WEIGHTS = real("G", below=np.inf)


class Split(NamedTuple):
    """A data set in two: rows to fit on and rows to judge by."""

    train: Any  # features [T, p]
    train_targets: Any  # [T]; classes are int32
    valid: Any  # features [V, p]
    valid_targets: Any  # [V]

    @property
    def dtype(self) -> Any:
        return self.train.dtype


class Cleaning(NamedTuple):
    """A split whose training labels are partly wrong."""

    train: Any  # features [T, p]
    train_targets: Any  # int32 [T]
    valid: Any  # features [V, p]
    valid_targets: Any  # int32 [V]
    test: Any  # features [U, p]
    test_targets: Any  # int32 [U]
    corrupted: Any  # bool [T] which are wrong, to judge the learned weights; no function reads it

    @property
    def dtype(self) -> Any:
        return self.train.dtype


class Smooth(NamedTuple):
    """The smooth problem, and the x at which it is looked at."""

    curvature: Any  # [50, 50]
    linear_map: Any  # [50, 20]
    target: Any  # [50]
    x: Any  # [20]

    @property
    def dtype(self) -> Any:
        return self.x.dtype


_SPLIT = record(Split, sizes=lambda data: dict(zip("Tp", jnp.shape(data.train), strict=True)))
_CLEANING = record(Cleaning, sizes=lambda data: dict(zip("Tp", jnp.shape(data.train), strict=True)))


@arguments(dtype=_DTYPE)
def smooth(dtype: Any = jnp.float32) -> Smooth:
    """A 50-dimensional lower level that is not quadratic, for measuring the error of
    hypergradients.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(50, 50), (50, 20), (50,), (20,)]
    root, linear_map, target, x = (
        jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)
    )
    curvature = jnp.matmul(root, root.T, precision="highest") / 50 + 0.5 * jnp.eye(50, dtype=dtype)
    return Smooth(curvature, linear_map / 20**0.5, target, x)


@arguments(data=record(Smooth), x=real(20), y=real(50))
def smooth_lower(x: jax.Array, y: jax.Array, data: Smooth) -> jax.Array:
    """½ (y − B x)' Q (y − B x) + Σ_i log cosh(y_i)."""
    gap = y - data.linear_map @ x
    return 0.5 * gap @ data.curvature @ gap + jnp.sum(
        jnp.logaddexp(y, -y) - np.log(2.0).astype(y.dtype)
    )


@arguments(data=record(Smooth), x=real(20), y=real(50))
def smooth_upper(x: jax.Array, y: jax.Array, data: Smooth) -> jax.Array:
    """½ ‖y − target‖² + 0.05 ‖x‖² + Σ_i sin(y_i) / 10."""
    return 0.5 * jnp.sum((y - data.target) ** 2) + 0.05 * jnp.sum(x**2) + jnp.sum(jnp.sin(y)) / 10


@arguments(on_host=True, data=record(Smooth))
def smooth_hypergradient(data: Smooth) -> np.ndarray:
    """The implicit gradient of the smooth problem at its x, by Newton's method and a linear solve
    in float64 numpy.
    """
    curvature, linear_map, target, x = (np.asarray(part, np.float64) for part in data)
    y, hessian = np.zeros(50), curvature
    for _ in range(50):
        residual = curvature @ (y - linear_map @ x) + np.tanh(y)
        hessian = curvature + np.diag(1 / np.cosh(y) ** 2)
        y = y - np.linalg.solve(hessian, residual)
    return 0.1 * x + linear_map.T @ curvature @ np.linalg.solve(
        hessian, y - target + np.cos(y) / 10
    )


@arguments(num_rows=size(1), dimension=size(1), dtype=_DTYPE)
def logistic(num_rows: int = 1000, dimension: int = 20, dtype: Any = jnp.float32) -> Split:
    """Normal features, and signs drawn by a logistic model with a normal parameter; as many rows to
    judge by as to fit on.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    features = jax.random.normal(keys[0], (2 * num_rows, dimension), dtype)
    scores = jnp.sum(features * jax.random.normal(keys[1], (1, dimension), dtype), axis=1)
    chosen = jax.random.uniform(keys[2], (2 * num_rows,), dtype) < jax.nn.sigmoid(scores)
    signs = jnp.where(chosen, 1.0, -1.0).astype(dtype)
    return Split(features[:num_rows], signs[:num_rows], features[num_rows:], signs[num_rows:])


@arguments(data=_SPLIT, x=real(), y=real("p"))
def ridge_logistic_lower(x: jax.Array, y: jax.Array, data: Split) -> jax.Array:
    """mean log(1 + exp(−t X y)) + ½ (0.01 + x) ‖y‖² on the training rows; x is a scalar.
    `feature_weights_upper` judges it.
    """
    return _logistic_loss(data.train, data.train_targets, y) + 0.5 * (0.01 + x) * jnp.sum(y**2)


def _data_set(name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "these data sets come with scikit-learn: pip install 'jaxsac[route]'."
        ) from error
    return getattr(datasets, f"load_{name}")(return_X_y=True)


@arguments(dtype=_DTYPE, seed=size())
def breast_cancer(dtype: Any = jnp.float32, seed: int = 0) -> Split:
    """569 tumours, 30 standardised features, targets ±1, split 284 / 285: for a regularisation
    weight per feature.
    """
    features, labels = _data_set("breast_cancer")
    features = (features - features.mean(0)) / features.std(0)
    return _halved(features, 2.0 * labels - 1.0, dtype, seed)


def _halved(features: np.ndarray, targets: np.ndarray, dtype: Any, seed: int) -> Split:
    """In random order, half of the rows to fit on and half to judge by."""
    order = np.random.default_rng(seed).permutation(len(targets))
    fit, judge = np.split(order, [len(order) // 2])
    parts = features[fit], targets[fit], features[judge], targets[judge]
    return Split(*(jnp.asarray(part, dtype) for part in parts))


def _logistic_loss(features: jax.Array, signs: jax.Array, coef: jax.Array) -> jax.Array:
    return jnp.mean(jax.nn.softplus(-signs * (features @ coef)))


@arguments(data=_SPLIT, x=real("p"), y=real("p"))
def feature_weights_lower(x: jax.Array, y: jax.Array, data: Split) -> jax.Array:
    """mean log(1 + exp(−t X y)) + ½ Σ_j exp(x_j) y_j² on the training rows; x [p] log-weights, y
    [p] coefficients.
    """
    return _logistic_loss(data.train, data.train_targets, y) + 0.5 * jnp.sum(jnp.exp(x) * y**2)


@arguments(data=_SPLIT, x=_UNREAD, y=real("p"))
def feature_weights_upper(x: jax.Array, y: jax.Array, data: Split) -> jax.Array:
    """mean log(1 + exp(−t X y)) on the validation rows."""
    return _logistic_loss(data.valid, data.valid_targets, y)


@arguments(on_host=True, dtype=_DTYPE, seed=size(), corruption=real(low=0, high=1))
def digits_cleaning(dtype: Any = jnp.float32, seed: int = 0, corruption: float = 0.5) -> Cleaning:
    """1,797 digits of 64 pixels in 10 classes, split 1000 / 300 / 497; `corruption` of the training
    labels are redrawn uniformly.
    """
    features, labels = _data_set("digits")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    features, labels = features[order] / 16.0, labels[order].astype(np.int32)
    corrupted = rng.random(1000) < corruption
    train_labels = np.where(corrupted, rng.integers(0, 10, 1000), labels[:1000]).astype(np.int32)
    corrupted &= train_labels != labels[:1000]

    def rows(start, stop):
        return jnp.asarray(features[start:stop], dtype)

    return Cleaning(
        rows(0, 1000),
        jnp.asarray(train_labels),
        rows(1000, 1300),
        jnp.asarray(labels[1000:1300]),
        rows(1300, None),
        jnp.asarray(labels[1300:]),
        jnp.asarray(corrupted),
    )


@arguments(features=real("T", "p"), classes=integer("T"), coef=real("p", "C"))
def cross_entropy(features: jax.Array, classes: jax.Array, coef: jax.Array) -> jax.Array:
    """−log softmax(X coef)[class] of each row; coef [p, number of classes]."""
    scores = features @ coef
    chosen = jnp.sum(
        jnp.where(
            classes[:, None] == jnp.arange(coef.shape[1], dtype=classes.dtype)[None, :], scores, 0.0
        ),
        axis=1,
    )
    return jax.nn.logsumexp(scores, axis=1) - chosen


@arguments(data=_CLEANING, x=real("T"), y=real("p", "C"), ridge=real(low=0))
def cleaning_lower(x: jax.Array, y: jax.Array, data: Cleaning, ridge: float = 1e-3) -> jax.Array:
    """mean_i sigmoid(x_i) loss_i(y) + ridge ‖y‖² on the training rows; x [T] weight logits, y [p,
    number of classes] coefficients.
    """
    return jnp.mean(
        jax.nn.sigmoid(x) * cross_entropy(data.train, data.train_targets, y)
    ) + ridge * jnp.sum(y**2)


@arguments(data=_CLEANING, x=_UNREAD, y=real("p", "C"))
def cleaning_upper(x: jax.Array, y: jax.Array, data: Cleaning) -> jax.Array:
    """mean loss on the validation rows, whose labels are right."""
    return jnp.mean(cross_entropy(data.valid, data.valid_targets, y))


@arguments(dtype=_DTYPE, seed=size(), degree=size(1, 9))
def diabetes(dtype: Any = jnp.float32, seed: int = 0, degree: int = 3) -> Split:
    """442 patients; each of 10 features is a group of `degree` standardised powers (columns g ·
    degree …); targets standardised; halved.
    """
    features, target = _data_set("diabetes")
    features = (features - features.mean(0)) / features.std(0)
    powers = np.stack([features**k for k in range(1, degree + 1)], axis=2).reshape(len(target), -1)
    powers = (powers - powers.mean(0)) / np.maximum(powers.std(0), 1e-12)
    target = (target - target.mean()) / target.std()
    return _halved(powers, target, dtype, seed)


@arguments(data=_SPLIT, x=_UNREAD, y=real("p"))
def group_weights_lower(x: jax.Array, y: jax.Array, data: Split) -> jax.Array:
    """½ mean (t − X y)² on the training rows: the smooth part of a group lasso with coefficients y
    [G · size].
    """
    return 0.5 * jnp.mean((data.train_targets - data.train @ y) ** 2)


@arguments(data=_SPLIT, x=_LOG_WEIGHTS, y=real("p"))
def group_weights_penalty(x: jax.Array, y: jax.Array, data: Split) -> jax.Array:
    """Σ_g exp(x_g) ‖y_g‖₂, the rest of it; x [G] log-weights."""
    return prox.group_norm(y, _equal_groups(x, y), jnp.exp(x))


@arguments(x=_LOG_WEIGHTS, y=real("p"), rate=real(low=0))
def group_weights_prox(x: jax.Array, y: jax.Array, rate: jax.Array) -> jax.Array:
    """arg min_u rate Σ_g exp(x_g) ‖u_g‖₂ + ½ ‖u − y‖²."""
    return prox.prox_group(y, _equal_groups(x, y), rate * jnp.exp(x))


def _equal_groups(x: jax.Array, y: jax.Array) -> prox.Groups:
    _checks.require(
        0 < x.shape[0] <= y.shape[0] and y.shape[0] % x.shape[0] == 0,
        f"x has {x.shape[0]} groups and y {y.shape[0]} coefficients: they must divide them evenly.",
    )
    return prox.Groups.equal(num_groups=x.shape[0], size=y.shape[0] // x.shape[0])


@arguments(data=_SPLIT, x=_UNREAD, y=real("p"))
def group_weights_upper(x: jax.Array, y: jax.Array, data: Split) -> jax.Array:
    """½ mean (t − X y)² on the validation rows."""
    return 0.5 * jnp.mean((data.valid_targets - data.valid @ y) ** 2)
