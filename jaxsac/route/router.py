"""The router of a log of numbers: a pruned policy, the features of its contexts and its tools'
names; on disk two npz files side by side.
"""

import os
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsac import _files, control, gibbs
from jaxsac.route.deployed import Choice
from jaxsac.route.features import NumberFeatures, transform

KIND = "jaxsac.route.Features"
POLICY, FEATURES = "policy.npz", "features.npz"
COST_UNITS = 256
_SHAPES = {"centre": ("f", ("q",)), "scale": ("f", ("q",))}


class Router(NamedTuple):
    """A policy over K tools that have names; it reads numbers."""

    names: list[str]  # of the tools [K], in the order of the policy's scores
    features: NumberFeatures  # from contexts to the policy's q numbers
    policy: control.SparsePolicy  # on the K kept tools
    costs: list[float]  # of the tools [K], >= 0, in the user's unit


def choose(
    router: Router, contexts: np.ndarray, cost_limit: float | None = None
) -> list[list[Choice]]:
    """For each context the B best tools of the router, best first; with `cost_limit` > 0 the tools
    of total cost within it that hold the largest expected number of the policy's own (costs are
    rounded up to COST_UNITS-ths of the limit), as many as fit.
    """
    budget = min(router.policy.budget, len(router.names))
    choices = []
    for row in transform(router.features, contexts):
        scores = router.policy.scores(jnp.asarray(row, router.policy.coef.dtype))
        probabilities = np.asarray(gibbs.marginals(scores, budget=router.policy.budget))
        scores = np.asarray(scores)
        best = np.argsort(-scores, kind="stable")[:budget]
        if cost_limit is not None:
            units = np.minimum(
                np.ceil(np.asarray(router.costs) / cost_limit * COST_UNITS - 1e-9), COST_UNITS + 1
            ).astype(np.int32)
            fitting = np.asarray(
                gibbs.mode(jnp.asarray(probabilities), budget=COST_UNITS, costs=units)
            )
            fitting = fitting[fitting >= 0]
            best = fitting[np.argsort(-scores[fitting], kind="stable")]
        choices.append(
            [
                Choice(router.names[tool], float(scores[tool]), float(probabilities[tool]))
                for tool in best
            ]
        )
    return choices


def save_router(folder: pathlib.Path, router: Router) -> None:
    """Write policy.npz and features.npz into an existing folder."""
    router.policy.save(folder / POLICY)
    arrays = router.features._asdict()
    # Constant columns: plain numbers on disk.
    arrays["scale"] = np.where(np.isinf(arrays["scale"]), 0, arrays["scale"])
    _files.save(folder / FEATURES, KIND, arrays, {"names": router.names, "costs": router.costs})


def load_router(path: str | os.PathLike[str]) -> Router:
    """Read a router from its folder or its policy file; raises FileError (a ValueError) naming the
    file for anything that is not one.
    """
    path = pathlib.Path(path)
    folder = path if path.is_dir() else path.parent
    try:
        policy = control.load_policy(path / POLICY if path.is_dir() else path)
        arrays, metadata = _files.load(folder / FEATURES, KIND)
    except OSError as error:
        raise _files.FileError(
            f"{error.filename}: cannot be read ({error.strerror}). --policy takes the folder that"
            f" `jaxsac route --out` wrote, or its {POLICY}, which needs {FEATURES} beside it."
        ) from None
    try:
        return _checked(policy, arrays, metadata)
    except (ValueError, KeyError, TypeError) as error:
        raise _files.FileError(
            f"{folder / FEATURES}: does not fit the policy ({error}): take both files from one run."
        ) from None


def _checked(policy: control.SparsePolicy, arrays: dict[str, np.ndarray], metadata: dict) -> Router:
    names = metadata["names"]
    costs = [float(cost) for cost in metadata["costs"]]
    if len(costs) != len(names) or not all(0 <= cost < float("inf") for cost in costs):
        raise _files.FileError("the costs are not one number >= 0 for each tool")
    if not all(isinstance(name, str) for name in names):
        raise _files.FileError("names that are no texts")
    _files.check(arrays, _SHAPES)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise _files.FileError("features that are not finite")
    found = len(names), arrays["centre"].size
    needed = policy.num_actions, policy.coef.shape[-1]
    if found != needed:
        raise _files.FileError(
            f"{found[0]} tools and {found[1]} features against {needed[0]} and {needed[1]}"
        )
    scale = np.where(arrays["scale"] == 0, np.inf, arrays["scale"])
    return Router(names, NumberFeatures(arrays["centre"], scale), policy, costs)
