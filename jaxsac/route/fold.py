"""One training set as arrays: its catalogue of tools, its features, and the held-out records that
judge what is learned from it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxsac import control
from jaxsac.control.data.sample_weight import sample_weight
from jaxsac.route import split
from jaxsac.route.features import Features, transform
from jaxsac.route.log_file import LogError, RouteLog, Tool


class Judged(NamedTuple):
    """Held-out records.

    * `features`: rows [n, q].
    * `actions`: sets, int32 [n, B] (M and above: tools unseen here).
    * `groups`: names [n].
    * `contexts`: texts [n], or numbers [n, d], for retrieval.
    * `weights`: how much each counts by its utility, of mean 1, [n].
    * `embeddings`: of the texts [n, d], or None.
    """

    features: np.ndarray
    actions: np.ndarray
    groups: list[str]
    contexts: list[str] | np.ndarray
    weights: np.ndarray
    embeddings: np.ndarray | None = None


class Fold(NamedTuple):
    """One training set of T records over M tools.

    * `names`: the catalogue [M].
    * `features`: from contexts to rows.
    * `rows`: feature rows [T, q].
    * `actions`: sets, int32 [T, B].
    * `contexts`: texts [T], or numbers [T, d].
    * `validation`, `test`: the records to judge on.
    * `families`: of the tools, int [M] (-1: none), or None where no tool has one.
    * `utilities`: of the training records [T].
    * `shown`: the tools that each could choose, bool [T, M], or None for all.
    """

    names: list[str]
    features: Features
    rows: np.ndarray
    actions: np.ndarray
    contexts: list[str] | np.ndarray
    validation: Judged
    test: Judged
    families: np.ndarray | None
    utilities: np.ndarray
    shown: np.ndarray | None = None

    @property
    def uses(self) -> np.ndarray:
        """How many training records use each tool, int [M]."""
        return np.bincount(self.actions[self.actions >= 0], minlength=len(self.names))


def make_fold(
    parts: split.Parts,
    training: RouteLog,
    catalogue: Sequence[str],
    features: Features,
    budget: int,
) -> Fold:
    """The fold of some of the training records; `catalogue` is that of all of them."""
    names = split.catalogue(training)
    validation, test = (
        _judged(part, names, catalogue, features, budget) for part in (parts.validation, parts.test)
    )
    rows, actions = (
        transform(features, training.contexts),
        split.action_table(training, names, budget),
    )
    families = _families(names, training)
    contexts, utilities = training.contexts, training.utilities
    shown = split.shown_table(training, names)
    judged = validation, test
    return Fold(names, features, rows, actions, contexts, *judged, families, utilities, shown)


def _judged(
    part: RouteLog, names: list[str], catalogue: Sequence[str], features: Features, budget: int
) -> Judged:
    known = names + sorted(set(catalogue) - set(names))
    actions = split.action_table(part, known, budget)
    used = (actions >= 0).any(axis=1)
    if not used.any():
        raise LogError(
            "no held-out record uses a tool that the training records use: give more records, or"
            " coarser tools."
        )
    part = part.take(np.flatnonzero(used))
    weights = sample_weight(control.Log((), (), part.utilities), "advantage", None, 10.0)
    features_of = transform(features, part.contexts)
    columns = actions[used], part.groups, part.contexts, weights, part.embeddings
    return Judged(features_of, *columns)


def _families(names: list[str], log: RouteLog) -> np.ndarray | None:
    named = [log.tools.get(name, Tool()).family for name in names]
    numbers = {family: number for number, family in enumerate(sorted(set(named) - {""}))}
    return np.array([numbers.get(family, -1) for family in named]) if numbers else None
