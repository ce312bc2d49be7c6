"""What a router makes of a text, with numpy alone: channels to every tool, latent directions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxsac.route.texts import Index, Vector, Vocabulary

CHANNELS = ("tool words", "tool pieces", "tool name", "near by words", "near by pieces")
LEARNT = np.array([0, 0, 0, 1, 1])  # of the channels: taught by the log
NEIGHBOURS = 20
_POWER = 3  # of a similarity
LENGTH = 4.0  # of a vector of latent directions


class Reading(NamedTuple):
    """How M tools, T records and q directions look at a text.

    * `vocabularies`: of words and of pieces.
    * `tools`: the tools' texts by either; `names`: the tools' names, by words.
    * `records`: the records' contexts by either.
    * `first` [T + 1], `used` [E]: the tools of record t are used[first[t] : first[t + 1]].
    * `directions` [V, q]: of the words and then the pieces, q = 0 for none.
    """

    vocabularies: tuple[Vocabulary, Vocabulary]
    tools: tuple[Index, Index]
    names: Index
    records: tuple[Index, Index]
    first: np.ndarray
    used: np.ndarray
    directions: np.ndarray

    def vectors(self, text: str) -> tuple[Vector, Vector]:
        """Of a text, by words and by pieces."""
        first, second = self.vocabularies
        return first.vector(text), second.vector(text)

    def channels(
        self,
        vectors: tuple[Vector, Vector],
        left_out: np.ndarray | None = None,
        near: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """[C, M], in the order of CHANNELS; the records `left_out` (positions) do not count. `near`
        are the cosines with all records, by words and pieces, where they are known.
        """
        if near is None:
            pairs = zip(self.records, vectors, strict=True)
            near = [index.cosines(one) for index, one in pairs]
        about = [index.cosines(vector) for index, vector in zip(self.tools, vectors, strict=True)]
        about.append(self.names.cosines(vectors[0]))
        if left_out is not None:
            for one in near:
                one[left_out] = 0
        return np.stack([*about, *map(self._nearest, near)])

    def nearest(self, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest records and their weights, from the cosines with all of them."""
        count = min(NEIGHBOURS, near.size)
        best = np.argpartition(-near, count - 1)[:count] if count else np.zeros(0, int)
        best = best[near[best] > 0]
        return best, near[best] ** _POWER

    def _nearest(self, near: np.ndarray) -> np.ndarray:
        """Σ cosine³ over the nearest records that use each tool, [M]."""
        best, weights = self.nearest(near)
        counts = self.first[best + 1] - self.first[best]
        offset = np.repeat(self.first[best] - np.cumsum(counts) + counts, counts)
        entry = offset + np.arange(int(counts.sum()))
        return np.bincount(self.used[entry], np.repeat(weights, counts), self.names.size)

    def features(self, vectors: tuple[Vector, Vector]) -> np.ndarray:
        """ψ [q]: the text's latent directions, scaled to one length."""
        words, pieces = vectors
        term = np.concatenate([words.term, pieces.term + len(self.vocabularies[0].number)])
        value = np.concatenate([words.value, pieces.value])
        found = value.astype(np.float32) @ self.directions[term].astype(np.float32)
        length = float(np.linalg.norm(found))
        return found * (LENGTH / length) if length > 1e-6 else found * 0
