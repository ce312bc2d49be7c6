"""One training set as arrays: its catalogue of tools, its features, and the held-out records that
judge what is learned from it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxsac import control
from jaxsac.control.data.sample_weight import sample_weight
from jaxsac.route import evaluate, split
from jaxsac.route.features import Features, transform
from jaxsac.route.log_file import LogError, RouteLog, Tool
from jaxsac.route.ridge import Scores


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

    @property
    def objective(self) -> str:
        """Of `control.Task`."""
        return "weighted" if np.ptp(self.utilities) > 0 else "imitation"

    @property
    def weights(self) -> np.ndarray:
        """How much each record counts by its utility, of mean 1, [T]."""
        return worth_of(self.utilities)

    def beyond(self, budget: int) -> int:
        """One more where every record is full: the likelihood of sets within the budget has no
        finite optimum there.
        """
        return budget + int((self.actions >= 0).all())

    def quality(self, budget: int, scores: Scores) -> float:
        """The validation records' mean log-likelihood."""
        judged = self.validation
        values = evaluate.log_likelihood(scores(judged.features), judged.actions, budget)
        known = ~np.isnan(values)
        if not known.any():
            raise LogError(
                "no validation record uses a tool that the training records use: give more records."
            )
        return float(np.average(values[known], weights=judged.weights[known]))


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
    families = families_of(names, training.tools)
    contexts, utilities = training.contexts, training.utilities
    shown = split.shown_table(training, names)
    judged = validation, test
    fold = Fold(names, features, rows, actions, contexts, *judged, families, utilities, shown)
    _require_lessons(fold)
    return fold


def worth_of(utilities: np.ndarray) -> np.ndarray:
    """How much records count by their utility, of mean 1, [n]."""
    return sample_weight(control.Log((), (), utilities), "advantage", None, 10.0)


def _require_lessons(fold: Fold) -> None:
    """Raise LogError where no tool's uses depend on the context."""
    apart, (row, slot) = fold.rows - fold.rows.mean(axis=0), np.nonzero(fold.actions >= 0)
    sums = np.zeros((len(fold.names), apart.shape[1]))
    np.add.at(sums, fold.actions[row, slot], apart[row])
    if not np.abs(sums).max(initial=0.0) > 1e-12 * len(apart):
        raise LogError(
            "the contexts of the training records teach nothing: they are alike, or every record"
            " uses the same tools."
        )


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
    features_of = transform(features, part.contexts)
    columns = actions[used], part.groups, part.contexts, worth_of(part.utilities), part.embeddings
    return Judged(features_of, *columns)


def families_of(names: list[str], tools: Mapping[str, Tool]) -> np.ndarray | None:
    """The number of each tool's family, int [M], -1 where it has none; None where no tool has."""
    named = [tools.get(name, Tool()).family for name in names]
    numbers = {family: number for number, family in enumerate(sorted(set(named) - {""}))}
    return np.array([numbers.get(family, -1) for family in named]) if numbers else None
