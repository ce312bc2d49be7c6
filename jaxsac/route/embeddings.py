"""Embeddings of texts that a user's encoder made: how a router looks at them, with numpy alone."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsac import _checks
from jaxsac.route.texts import rounded
from jaxsac.route.tool_file import LogError


class Embedded(NamedTuple):
    """How M tools and T records look at an embedding of d numbers. Vectors are of length 1 from the
    records' mean, 0 for a tool without an embedding.

    * `centre` [d]; `tools` [M, d]; `records` [T, d].
    """

    centre: np.ndarray
    tools: np.ndarray
    records: np.ndarray

    def vector(self, embedding: Any) -> np.ndarray:
        """Of an embedding as the encoder gives it, [d].

        Raises: ValueError where it is not d finite numbers.
        """
        found, size = numbers("embedding", embedding, 1), self.centre.size
        _checks.require(
            found.size == size,
            f"embedding must be {size} numbers, as those learnt from, got {found.size}.",
        )
        return _units(found[None], self.centre)[0]


def fit_embedded(records: np.ndarray, tools: Sequence[Sequence[float]]) -> Embedded | None:
    """Of the embeddings of records [T, d] and of tools, () for one that has none. The centre is the
    tools' where there are no records. None where nothing is embedded.

    Raises: LogError where two are of different lengths.
    """
    known = np.array([len(one) > 0 for one in tools])
    lengths = {len(one) for one in tools if len(one)} | {len(one) for one in records[:1]}
    if not lengths:
        return None
    if len(lengths) > 1:
        raise LogError(f"embeddings of records and tools have {sorted(lengths)} numbers: give one.")
    (width,) = lengths
    records = records.reshape(-1, width)
    about = np.array([one if len(one) else (0.0,) * width for one in tools], float)
    given = records if len(records) else about[known]
    # From the first on, so that equal ones are exactly at their mean.
    centre = given[0] + (given - given[0]).mean(axis=0) if len(given) > 1 else np.zeros(width)
    return Embedded(centre, _units(about, centre) * known[:, None], _units(records, centre))


def numbers(name: str, value: Any, dimensions: int) -> np.ndarray:
    """`value` as an array of so many dimensions.

    Raises: ValueError where it is not one of finite numbers.
    """
    try:
        found = np.asarray(value, float)
    except (TypeError, ValueError):
        found = np.full((), np.nan)
    fits = found.ndim == dimensions and bool(np.isfinite(found).all())
    shape = ["[d]", "[n, d]"][dimensions - 1]
    _checks.require(fits, f"{name} must be an array {shape} of finite numbers.")
    return found


def _units(rows: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Rows from the centre, of length 1, or 0; float32, rounded to the float16 that is saved."""
    rows = rows - centre
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    rows = rows / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rounded(rows / np.where(length > 0, length, 1))
