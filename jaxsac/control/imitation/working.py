"""A sparse iterate on the host and its padded form on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac._sizes import padded
from jaxsac.control.data.digest import Digest
from jaxsac.control.imitation.likelihood import Evaluation, Working, evaluate
from jaxsac.control.imitation.offered import Offers, evaluate_offered
from jaxsac.solution import register


class Point(NamedTuple):
    """Parameters of the working set, and one intercept per group for all other tools."""

    tools: np.ndarray  # int [W]: positions in digest.used, ascending
    coef: np.ndarray  # [W, q]
    intercept: np.ndarray  # [W]
    group_intercept: np.ndarray  # [G]

    @property
    def norms(self) -> np.ndarray:
        return np.sqrt(np.einsum("wq,wq->w", self.coef, self.coef))

    @property
    def alive(self) -> np.ndarray:
        """Positions of the tools that are not zero."""
        return self.tools[self.norms > 0]


@register
class FitState(NamedTuple):
    """Where a later fit may start, on this log or another."""

    tools: np.ndarray  # int [k], ascending: those that look at the context
    coef: np.ndarray  # [k, q]
    intercept: np.ndarray  # [M]


def capacity(size: int) -> int:
    """Working sets are padded to 32, 64, 128, 192, 256, ... so that few shapes are compiled."""
    return padded(size, 32, 1.0, 64)


def working_set(data: Digest, tools: np.ndarray) -> Working:
    dtype = data.contexts.dtype
    counts = data.group_size.copy()
    np.subtract.at(counts, data.group[tools], 1)
    width = capacity(tools.size)
    groups = padded(counts.size, 32) if data.slots is None else counts.size
    group_target = data.group_frequency + data.prior_use
    return Working(
        feature_sums=jax.device_put(pad(data.feature_sums[tools], width).astype(dtype)),
        target=jax.device_put(pad(data.frequency[tools] + data.prior_use, width).astype(dtype)),
        present=jax.device_put(np.arange(width) < tools.size),
        counts=jax.device_put(pad_groups(counts, groups).astype(dtype)),
        group_target=jax.device_put(pad_groups(group_target, groups, 0.5).astype(dtype)),
        prior_weight=jax.device_put(np.asarray(data.prior_weight, dtype)),
    )


def evaluate_point(data: Digest, working: Working, point: Point) -> tuple[Point, Evaluation]:
    """The likelihood at a point, and the point with the intercepts that the evaluation has
    optimised.
    """
    dtype, size = data.contexts.dtype, point.tools.size
    width, groups = working.present.size, working.counts.size
    # numpy arrays: a jitted call takes them at a tenth of the cost of making jax arrays first.
    parameters = (
        pad(point.coef, width).astype(dtype),
        pad(point.intercept, width).astype(dtype),
        pad_groups(point.group_intercept, groups).astype(dtype),
    )
    given = {"budget": data.task.budget, "mode": data.task.intercept}
    if data.slots is None:
        found = evaluate(data.contexts, data.row_weights, working, *parameters, **given)
    else:
        place = np.full(groups, width, np.int32)
        place[point.tools] = np.arange(size)
        offers = Offers(working, data.slots, place)  # pyright: ignore[reportArgumentType]
        found = evaluate_offered(data.contexts, data.row_weights, offers, *parameters, **given)
    return point._replace(
        intercept=to_host(found.intercept)[:size],
        group_intercept=unpad_groups(to_host(found.group_intercept), data.group_size.size),
    ), found


def null_point(data: Digest) -> tuple[Point, Evaluation]:
    """No coefficients, intercepts fitted. All rows are alike then (unless each offers its own
    tools), so one with the mean context stands for them: free of T and of M.
    """
    one_row = data
    if data.slots is None:
        weights, dtype = to_host(data.row_weights), data.contexts.dtype
        mean_context = weights @ to_host(data.contexts) / weights.sum()
        one_row = data._replace(
            contexts=jnp.asarray(mean_context[None, :], dtype),
            row_weights=jnp.asarray(weights.sum()[None], dtype),
        )
    groups, mode = data.group_size.size, data.task.intercept
    rate = np.full(groups, 0.5)
    if mode == "per_tool":
        rate = (data.group_frequency + data.prior_use) / (1 + data.prior_weight)
    elif mode == "shared":
        size = min(max(data.mean_size, 0.5), data.task.num_actions - 0.5)
        rate = np.full(groups, size / data.task.num_actions)
    rate = np.minimum(rate, 0.99)
    none = np.zeros(0, int)
    coef = np.zeros((0, data.task.num_features))
    start = Point(none, coef, np.zeros(0), np.log(rate) - np.log1p(-rate))
    return evaluate_point(one_row, working_set(one_row, none), start)


def point_from(data: Digest, tools: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> Point:
    """A point of this problem from parameters by number: tools int [k], coef [k, q], intercept [M].
    Tools that this log does not use are dropped, groups take their members' mean intercept.
    """
    if data.task.intercept == "none":
        intercept = np.zeros(data.task.num_actions)
    known = np.isin(tools, data.used)
    place = np.searchsorted(data.used, tools[known])
    groups = data.group_size.size
    outside = np.ones(data.used.size, bool)
    outside[place] = False
    sums = np.bincount(data.group[outside], intercept[data.used[outside]], groups)
    counts = np.bincount(data.group[outside], minlength=groups)
    unused = np.ones(data.task.num_actions, bool)
    unused[data.used] = False
    unused[tools] = False
    fallback = float(intercept[unused][0]) if unused.any() else float(intercept.mean())
    group_intercept = np.where(counts > 0, sums / np.maximum(counts, 1), fallback)
    own = intercept[data.used[place]].astype(np.float64)
    return Point(place, coef[known].astype(np.float64), own, group_intercept)


def intercepts(data: Digest, point: Point) -> np.ndarray:
    """One number per tool, [M]."""
    found = np.full(data.task.num_actions, point.group_intercept[-1])
    found[data.used] = point.group_intercept[data.group]
    found[data.used[point.tools]] = point.intercept
    return found


def regroup(data: Digest, point: Point, keep: np.ndarray, new: np.ndarray) -> Point:
    """Keep some of the working set and add new tools, which start at zero and at their group's
    intercept.
    """
    tools = np.concatenate([point.tools[keep], new])
    coef = np.concatenate([point.coef[keep], np.zeros((new.size, point.coef.shape[1]))])
    intercept = np.concatenate([point.intercept[keep], point.group_intercept[data.group[new]]])
    order = np.argsort(tools, kind="stable")
    return Point(tools[order], coef[order], intercept[order], point.group_intercept)


def to_host(array) -> np.ndarray:
    return np.asarray(array, np.float64)


def pad(values: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([values, np.zeros((size - values.shape[0], *values.shape[1:]))])


def pad_groups(values: np.ndarray, groups: int, fill: float = 0.0) -> np.ndarray:
    """Room for more groups before the last one, which holds the unused tools."""
    return np.concatenate([values[:-1], np.full(groups - values.size, fill), values[-1:]])


def unpad_groups(values: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([values[: size - 1], values[-1:]])
