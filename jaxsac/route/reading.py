"""What a router makes of a text, with numpy alone: its similarity to records, channels to tools."""

from typing import NamedTuple

import numpy as np

from jaxsac.route.texts import Index, Vector, Vocabulary

CHANNELS = ("tool words", "tool pieces", "tool name", "near by words", "near by pieces")
LEARNT = np.array([0, 0, 0, 1, 1])  # of the channels: taught by the log
NEIGHBOURS = 20
_POWER = 3  # of a similarity


class Reading(NamedTuple):
    """How M tools and T records look at a text.

    * `vocabularies`: of words and of pieces.
    * `tools`: the tools' texts by either; `names`: the tools' names, by words.
    * `records`: the records' contexts by either.
    * `first` [T + 1], `used` [E]: the tools of record t are used[first[t] : first[t + 1]].
    * `anchors`: the records whose similarities say what the channels do not, int [m].
    """

    vocabularies: tuple[Vocabulary, Vocabulary]
    tools: tuple[Index, Index]
    names: Index
    records: tuple[Index, Index]
    first: np.ndarray
    used: np.ndarray
    anchors: np.ndarray

    def vectors(self, text: str) -> tuple[Vector, Vector]:
        """Of a text, by words and by pieces."""
        first, second = self.vocabularies
        return first.vector(text), second.vector(text)

    def near(self, vectors: tuple[Vector, Vector]) -> np.ndarray:
        """Cosines with all records, by words and by pieces, [2, T]."""
        pairs = zip(self.records, vectors, strict=True)
        return np.stack([index.cosines(one) for index, one in pairs])

    def about(self, vectors: tuple[Vector, Vector]) -> np.ndarray:
        """Cosines with the tools' texts, by words and by pieces, and their names, [3, M]."""
        pairs = zip((*self.tools, self.names), (*vectors, vectors[0]), strict=True)
        return np.stack([index.cosines(one) for index, one in pairs])

    def nearest(self, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest records and their weights, from the cosines with all of them."""
        count = min(NEIGHBOURS, near.size)
        best = np.argpartition(-near, count - 1)[:count] if count else np.zeros(0, int)
        best = best[near[best] > 0]
        return best, near[best] ** _POWER

    def taught(self, near: np.ndarray) -> np.ndarray:
        """Σ cosine³ over the nearest records that use each tool, [M], from one kind of cosines with
        all of them.
        """
        best, weights = self.nearest(near)
        counts = self.first[best + 1] - self.first[best]
        offset = np.repeat(self.first[best] - np.cumsum(counts) + counts, counts)
        entry = offset + np.arange(int(counts.sum()))
        return np.bincount(self.used[entry], np.repeat(weights, counts), self.names.size)

    def channels(self, about: np.ndarray, near: np.ndarray) -> np.ndarray:
        """[C, M], in the order of CHANNELS."""
        return np.concatenate([about, [self.taught(one) for one in near]])

    def similarities(self, near: np.ndarray) -> np.ndarray:
        """To the anchors, [..., m], from the cosines [2, ..., T]: those by words and by pieces
        together.
        """
        return near.sum(axis=0)[..., self.anchors]
