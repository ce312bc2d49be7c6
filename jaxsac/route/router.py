"""The deployed router: a pruned policy, the features of its contexts and its tools' names; on disk two npz files side by side."""

import os
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsac import _files, control, gibbs
from jaxsac.route.features import Features, NumberFeatures, TextFeatures, transform

KIND = "jaxsac.route.Features"
POLICY, FEATURES = "policy.npz", "features.npz"
_SHAPES: dict[str, dict[str, tuple[str, tuple[int | str | None, ...]]]] = {
    "text": {"idf": ("f", ("V",)), "components": ("f", ("q", "V")), "center": ("f", ("q",)), "scale": ("f", ())},
    "numbers": {"center": ("f", ("q",)), "scale": ("f", ("q",))},
}


class Router(NamedTuple):
    """`names` [K] of the policy's tools, in the order of its scores; `features` from contexts; `policy` on the K kept tools."""

    names: list[str]
    features: Features
    policy: control.SparsePolicy


class Choice(NamedTuple):
    """A tool, its score, and the probability that the policy's set holds it."""

    tool: str
    score: float
    probability: float


def choose(router: Router, contexts: list[str] | np.ndarray) -> list[list[Choice]]:
    """For each context the B best tools of the router, best first."""
    budget = min(router.policy.budget, len(router.names))
    choices = []
    for row in transform(router.features, contexts):
        scores = router.policy.scores(jnp.asarray(row, router.policy.weights.dtype))
        probabilities = np.asarray(gibbs.marginals(scores, budget=router.policy.budget))
        scores = np.asarray(scores)
        best = np.argsort(-scores, kind="stable")[:budget]
        choices.append([Choice(router.names[tool], float(scores[tool]), float(probabilities[tool])) for tool in best])
    return choices


def save_router(folder: pathlib.Path, router: Router) -> None:
    """Write policy.npz and features.npz into an existing folder."""
    router.policy.save(folder / POLICY)
    arrays = router.features._asdict()
    words = arrays.pop("words").tolist() if isinstance(router.features, TextFeatures) else []
    metadata = {"contexts": "text" if words else "numbers", "words": words, "names": router.names}
    if not words:
        arrays["scale"] = np.where(np.isinf(arrays["scale"]), 0, arrays["scale"])  # constant columns: plain numbers on disk
    _files.save(folder / FEATURES, KIND, arrays, metadata)


def load_router(path: str | os.PathLike[str]) -> Router:
    """Read a router from its folder or its policy file; raises FileError (a ValueError) naming the file for anything that is not one."""
    path = pathlib.Path(path)
    folder = path if path.is_dir() else path.parent
    try:
        policy = control.load_policy(path / POLICY if path.is_dir() else path)
        arrays, metadata = _files.load(folder / FEATURES, KIND)
    except OSError as error:
        raise _files.FileError(
            f"{error.filename}: cannot be read ({error.strerror}). --policy takes the folder that `jaxsac route --out` wrote, "
            f"or its {POLICY}, which needs {FEATURES} beside it."
        ) from None
    try:
        return _checked(policy, arrays, metadata)
    except (_files.FileError, KeyError, TypeError) as error:
        raise _files.FileError(f"{folder / FEATURES}: does not fit the policy ({error}): take both files from one run.") from None


def _checked(policy: control.SparsePolicy, arrays: dict[str, np.ndarray], metadata: dict) -> Router:
    kind, names, words = metadata["contexts"], metadata["names"], metadata["words"]
    if kind not in _SHAPES or not all(isinstance(name, str) for name in [*names, *words]):
        raise _files.FileError("unknown kind of contexts, or names that are no texts")
    _files.check(arrays, _SHAPES[kind])
    if len(names) != policy.num_actions or arrays["center"].size != policy.weights.shape[-1]:
        raise _files.FileError(f"{len(names)} tools and {arrays['center'].size} features against {policy.num_actions} and {policy.weights.shape[-1]}")
    if kind == "numbers":
        scale = np.where(arrays["scale"] == 0, np.inf, arrays["scale"])
        return Router(names, NumberFeatures(arrays["center"], scale), policy)
    if len(words) != arrays["idf"].size or len(set(words)) != len(words):
        raise _files.FileError(f"{len(words)} words against {arrays['idf'].size} weights")
    return Router(names, TextFeatures(np.asarray(words), **arrays), policy)
