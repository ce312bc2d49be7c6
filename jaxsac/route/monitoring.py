"""Whether a router still sees what it learnt from: records of now against held-out ones of then."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsac import _checks

_LIMIT = 3.0  # standard errors
_WORSE = np.array([-1, -1, 1])  # which way is worse: a lower hit rate, similarity; more new tools


class Change(NamedTuple):
    """A mean over records."""

    now: float
    then: float  # over the held-out records of the log
    z: float  # how much worse it got, in standard errors


class Monitoring(NamedTuple):
    """What `Router.monitor` finds on n records.

    * `hit_rate`: share of the used tools among the first B.
    * `similarity`: of a text and the nearest one learnt from, in [0, 1].
    * `new_tools`: share of the uses that are of tools without records.
    * `learn_again`: whether one of them got worse by more than three standard errors.
    """

    records: int
    hit_rate: Change
    similarity: Change
    new_tools: Change
    learn_again: bool


def seen(
    router: Any,
    texts: Sequence[str] | np.ndarray,
    tools: Sequence[Collection[str]],
    answers: Sequence[Any],
) -> np.ndarray:
    """The three measures of records, [n, 3], from the router's answers, of B choices or more; NaN
    where one has no tools.
    """
    _checks.require(
        not any(isinstance(used, str) for used in tools), "tools must be lists of names."
    )
    known = {name for name, cold in zip(router.names, router.weights.cold, strict=True) if not cold}
    rows, budget = [], router.weights.budget
    words = [router.reading.vocabularies[0].vector(text) for text in texts]
    for vector, used, answer in zip(words, map(set, tools), answers, strict=True):
        near = float(router.reading.records[0].cosines([vector]).max(initial=0.0))
        found = len(used.intersection(choice.tool for choice in answer[:budget]))
        shares = (found / len(used), len(used - known) / len(used)) if used else (np.nan, np.nan)
        rows.append((shares[0], near, shares[1]))
    return np.array(rows)


def moments(seen: np.ndarray) -> np.ndarray:
    """Mean, variance and number of the three measures of records [n, 3], as [3, 3]."""
    counts = np.isfinite(seen).sum(axis=0)
    means = np.nansum(seen, axis=0) / np.maximum(counts, 1)
    squares = np.nansum((seen - means) ** 2, axis=0) / np.maximum(counts - 1, 1)
    return np.stack([means, squares, counts])


def compare(reference: np.ndarray, seen: np.ndarray) -> Monitoring:
    """Records of now [n, 3] against the moments of then."""
    then, now = reference, moments(seen)
    # One part in a count is the least that a mean over records can vary.
    variances = [
        one[1] / np.maximum(one[2], 1) + 1 / np.maximum(one[2], 1) ** 2 for one in (then, now)
    ]
    z = _WORSE * (now[0] - then[0]) / np.sqrt(sum(variances))
    z = np.where((then[2] > 0) & (now[2] > 0), z, 0.0)
    changes = [Change(*map(float, one)) for one in zip(now[0], then[0], z, strict=True)]
    return Monitoring(len(seen), *changes, learn_again=bool((z > _LIMIT).any()))
