"""What a router makes of a text, with numpy alone: channels to every tool, latent directions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsac import _checks
from jaxsac.route.embeddings import Embedded
from jaxsac.route.texts import Index, Vector, Vocabulary

CHANNELS = ("tool words", "tool pieces", "tool name", "near by words", "near by pieces")
EMBEDDED = ("tool embedding", "near by embedding")  # further channels, where there are embeddings
LEARNT = np.array([0, 0, 0, 1, 1, 0, 1])  # of all these: taught by the log
NEIGHBOURS = 20
_POWER = 3  # of a similarity
LENGTH = 4.0  # of a vector of latent directions


class Vectors(NamedTuple):
    """What a text is, by words, by pieces and by its embedding (None where nothing reads those)."""

    words: Vector
    pieces: Vector
    embedding: np.ndarray | None = None


class Reading(NamedTuple):
    """How M tools, T records and q directions look at a text.

    * `vocabularies`: of words and of pieces.
    * `tools`: the tools' texts by either; `names`: the tools' names, by words.
    * `records`: the records' contexts by either.
    * `first` [T + 1], `used` [E]: the tools of record t are used[first[t] : first[t + 1]].
    * `directions` [V, q]: of the words and then the pieces, q = 0 for none.
    * `embedded`: how they look at a text's embedding; None where nothing is embedded.
    """

    vocabularies: tuple[Vocabulary, Vocabulary]
    tools: tuple[Index, Index]
    names: Index
    records: tuple[Index, Index]
    first: np.ndarray
    used: np.ndarray
    directions: np.ndarray
    embedded: Embedded | None = None

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Of the C channels."""
        return CHANNELS if self.embedded is None else CHANNELS + EMBEDDED

    def vectors(self, text: str, embedding: Any = None) -> Vectors:
        """Of a text and its embedding.

        Raises: ValueError where the one needed is not there, or not asked for.
        """
        words, pieces = (one.vector(text) for one in self.vocabularies)
        if self.embedded is None:
            _checks.require(embedding is None, "embedding: this router has learnt from none.")
            return Vectors(words, pieces)
        _checks.require(
            embedding is not None,
            "this router reads embeddings: give embedding=, or the encoder as embed= where the"
            " router is made or loaded.",
        )
        return Vectors(words, pieces, self.embedded.vector(embedding))

    def near(self, vectors: Vectors) -> list[np.ndarray]:
        """Cosines with all records [T], by words, pieces and embeddings."""
        found = [index.cosines(one) for index, one in zip(self.records, vectors[:2], strict=True)]
        if self.embedded is not None:
            found.append(self.embedded.records @ vectors.embedding)
        return found

    def channels(
        self,
        vectors: Vectors,
        left_out: np.ndarray | None = None,
        near: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """[C, M], in the order of `channel_names`; the records `left_out` (positions) do not count.
        `near`: `self.near(vectors)`, where it is known.
        """
        near = self.near(vectors) if near is None else near
        if left_out is not None:
            for one in near:
                one[left_out] = 0
        about = [index.cosines(one) for index, one in zip(self.tools, vectors[:2], strict=True)]
        found = [*about, self.names.cosines(vectors.words), *map(self._nearest, near[:2])]
        if self.embedded is not None:
            found += [self.embedded.tools @ vectors.embedding, self._nearest(near[2])]
        return np.stack(found)

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

    def features(self, vectors: Vectors) -> np.ndarray:
        """ψ [q]: the text's latent directions and its embedding's, each scaled to one length."""
        words, pieces, embedding = vectors
        term = np.concatenate([words.term, pieces.term + len(self.vocabularies[0].number)])
        value = np.concatenate([words.value, pieces.value])
        found = _scaled(value.astype(np.float32) @ self.directions[term].astype(np.float32))
        if self.embedded is None:
            return found
        return np.concatenate([found, _scaled(embedding @ self.embedded.directions)])


def _scaled(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector * (LENGTH / length) if length > 1e-6 else vector * 0
