"""A sparse iterate on the host and its padded form on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.control.data.digest import Digest
from jaxsac.control.imitation.likelihood import Evaluation, Working, evaluate
from jaxsac.control.imitation.offered import evaluate_offered


class Point(NamedTuple):
    """`tools` are positions in digest.used, ascending, with their parameters; one intercept per
    group stands for all other tools.
    """

    tools: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray
    group_intercept: np.ndarray

    @property
    def norms(self) -> np.ndarray:
        return np.sqrt(np.einsum("wq,wq->w", self.weights, self.weights))


def capacity(size: int) -> int:
    """Working sets are padded to 32, 64, 128, 192, 256, ... so that few shapes are compiled."""
    return 32 if size <= 32 else -(-size // 64) * 64


def group_capacity(size: int) -> int:
    return max(32, 1 << (size - 1).bit_length())


def working_set(data: Digest, tools: np.ndarray) -> Working:
    dtype = data.contexts.dtype
    counts = data.group_size.copy()
    np.subtract.at(counts, data.group[tools], 1)
    width = capacity(tools.size)
    groups = group_capacity(counts.size) if data.slots is None else counts.size
    return Working(
        feature_sums=jax.device_put(pad(data.feature_sums[tools], width).astype(dtype)),
        target=jax.device_put(pad(data.frequency[tools] + data.prior_use, width).astype(dtype)),
        present=jax.device_put(np.arange(width) < tools.size),
        counts=jax.device_put(pad_groups(counts, groups).astype(dtype)),
        group_target=jax.device_put(
            pad_groups(data.group_frequency + data.prior_use, groups, 0.5).astype(dtype)
        ),
        prior_weight=jax.device_put(np.asarray(data.prior_weight, dtype)),
    )


def evaluate_point(
    data: Digest, working: Working, point: Point, budget: int, mode: str
) -> tuple[Point, Evaluation]:
    """The likelihood at a point, and the point with the intercepts that the evaluation has
    optimised.
    """
    dtype = data.contexts.dtype
    width, groups = working.present.size, working.counts.size
    # numpy arrays: a jitted call takes them at a tenth of the cost of making jax arrays first.
    parameters = (
        working,
        pad(point.weights, width).astype(dtype),
        pad(point.intercept, width).astype(dtype),
        pad_groups(point.group_intercept, groups).astype(dtype),
    )
    if data.slots is None:
        found = evaluate(data.contexts, data.row_weights, *parameters, budget=budget, mode=mode)
    else:
        place = np.full(groups, width, np.int32)
        place[point.tools] = np.arange(point.tools.size)
        found = evaluate_offered(
            data.contexts,
            data.row_weights,
            data.slots,
            place,
            *parameters,
            budget=budget,
            mode=mode,
        )
    intercept = to_host(found.intercept)[: point.tools.size]
    return point._replace(
        intercept=intercept,
        group_intercept=unpad_groups(to_host(found.group_intercept), data.group_size.size),
    ), found


def null_point(data: Digest, budget: int, mode: str) -> tuple[Point, Evaluation]:
    """No weights, intercepts fitted. All rows are alike then (unless each offers its own tools), so
    one with the mean context stands for them: free of T and of M.
    """
    weights = np.asarray(data.row_weights, np.float64)
    dtype = data.contexts.dtype
    mean_context = weights @ np.asarray(data.contexts, np.float64) / weights.sum()
    one_row = data
    if data.slots is None:
        one_row = data._replace(
            contexts=jnp.asarray(mean_context[None, :], dtype),
            row_weights=jnp.asarray(weights.sum()[None], dtype),
        )
    if mode == "per_tool":
        rate = (data.group_frequency + data.prior_use) / (1 + data.prior_weight)
    elif mode == "shared":
        rate = np.full(
            data.group_size.size,
            min(max(data.mean_size, 0.5), data.num_actions - 0.5) / data.num_actions,
        )
    else:
        rate = np.full(data.group_size.size, 0.5)
    rate = np.minimum(rate, 0.99)
    none = np.zeros(0, int)
    start = Point(
        none, np.zeros((0, mean_context.size)), np.zeros(0), np.log(rate) - np.log1p(-rate)
    )
    return evaluate_point(one_row, working_set(one_row, none), start, budget, mode)


def regroup(data: Digest, point: Point, keep: np.ndarray, new: np.ndarray) -> Point:
    """Keep some of the working set and add new tools, which start at no weights and at their
    group's intercept.
    """
    tools = np.concatenate([point.tools[keep], new])
    weights = np.concatenate([point.weights[keep], np.zeros((new.size, point.weights.shape[1]))])
    intercept = np.concatenate([point.intercept[keep], point.group_intercept[data.group[new]]])
    order = np.argsort(tools, kind="stable")
    return Point(tools[order], weights[order], intercept[order], point.group_intercept)


def to_host(array) -> np.ndarray:
    return np.asarray(array, np.float64)


def pad(values: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([values, np.zeros((size - values.shape[0], *values.shape[1:]))])


def pad_groups(values: np.ndarray, groups: int, fill: float = 0.0) -> np.ndarray:
    """Room for more groups before the last one, which holds the unused tools."""
    return np.concatenate([values[:-1], np.full(groups - values.size, fill), values[-1:]])


def unpad_groups(values: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([values[: size - 1], values[-1:]])
