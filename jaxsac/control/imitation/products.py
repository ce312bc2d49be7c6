"""The imitation fit by products alone, for contexts too long for a q x q matrix of every tool:
quasi-Newton steps on a working set, each tool scaled by its largest curvature.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsac.control.data.digest import Digest
from jaxsac.control.data.families import omega
from jaxsac.control.imitation.forward_backward import ForwardBackward, curvatures, shrunk
from jaxsac.control.imitation.likelihood import Evaluation, Working
from jaxsac.control.imitation.working import Point, evaluate_point, to_host


class Products(NamedTuple):
    """The iteration on a working set, and the point of one of its vectors."""

    iteration: ForwardBackward
    point: Callable[[np.ndarray], Point]


def products(
    data: Digest,
    working: Working,
    point: Point,
    found: Evaluation,
    lam: float,
    ridge: float,
    floored: bool,
) -> Products:
    """The iteration from a point; `floored`: a tool that is not fitted yet has less probability
    where it will be used than it will get. Its vector is θ in units of the scales and, where tools
    have intercepts of their own, these at the contexts' mean.
    """
    shape, own = point.coef.shape, data.task.intercept == "per_tool"
    mean, contexts = np.zeros(shape[1]), data.contexts
    if own:
        weights = data.row_weights / jnp.sum(data.row_weights)
        center = jnp.matmul(weights, contexts, precision="highest")
        mean, contexts = to_host(center), contexts - center[None, :]
    floor = working.target * (floored / 2)
    found = curvatures(contexts, found.marginals, data.row_weights, floor)
    curvature, spread = (to_host(part)[: shape[0]] for part in found)
    label, share = np.arange(shape[0]), 0.0
    if data.families is not None:
        label = np.unique(data.families.label[point.tools], return_inverse=True)[1].reshape(-1)
        share = data.families.share
    together = np.zeros(shape[0])
    np.maximum.at(together, label, curvature)
    curvature = together[label] + ridge
    # One record has no curvature: nothing is to be scaled.
    scale, of_intercept = (1 / np.sqrt(np.maximum(one, 1e-12)) for one in (curvature, spread))
    latest = [point]  # the intercepts that are eliminated start where they were

    def parts(x: np.ndarray) -> Point:
        coef = x[: point.coef.size].reshape(shape) * scale[:, None]
        here = latest[0]._replace(coef=coef)
        if own:
            here = here._replace(intercept=x[point.coef.size :] * of_intercept - coef @ mean)
        return here

    def smooth(x: np.ndarray) -> tuple[float, np.ndarray]:
        latest[0], found = evaluate_point(data, working, parts(x))
        coef, excess = latest[0].coef, to_host(found.use - working.target)[: shape[0]]
        gradient = to_host(found.coef_gradient)[: shape[0]] + ridge * coef
        gradient = ((gradient - excess[:, None] * mean) * scale[:, None]).ravel()
        value = float(found.value) + ridge / 2 * float((coef**2).sum())
        return value, np.append(gradient, excess * of_intercept) if own else gradient

    def proximal(x: np.ndarray, size: float) -> tuple[np.ndarray, float]:
        coef = x[: point.coef.size].reshape(shape)
        coef, norms = shrunk(coef, size * lam * scale, label, share)
        return np.append(coef, x[point.coef.size :]), lam * omega(norms * scale, label, share)

    first = (point.coef / scale[:, None]).ravel()
    if own:
        first = np.append(first, (point.intercept + point.coef @ mean) / of_intercept)
    eps = float(np.finfo(data.contexts.dtype).eps)
    return Products(ForwardBackward(smooth, proximal, first, eps), parts)
