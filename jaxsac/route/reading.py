"""What a router makes of a text, with numpy alone: its similarity to records, channels to tools."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsac import _checks
from jaxsac.route.embeddings import Embedded
from jaxsac.route.texts import Index, Vector, Vocabulary

_ABOUT = "tool words", "tool pieces", "tool name", "tool embedding"
_TAUGHT = "words of its records"
_NEAR = "near by words", "near by pieces", "near by embedding"
NEIGHBOURS = 20
_POWER = 3  # of a similarity
_BLOCK = 256  # texts whose similarities are computed at a time


class Vectors(NamedTuple):
    """What a text is, by words, by pieces and by its embedding (None where nothing reads those)."""

    words: Vector
    pieces: Vector
    embedding: np.ndarray | None = None


class Reading(NamedTuple):
    """How M tools and T records look at a text.

    * `vocabularies`: of words and of pieces.
    * `tools`: the tools' texts by either; `names`: the tools' names, by words.
    * `taught`: the words that speak for a tool, as the log taught them (`fit_regression`).
    * `records`: the records' contexts by either.
    * `first` [T + 1], `used` [E]: the tools of record t are used[first[t] : first[t + 1]].
    * `worth` [T]: how much each record counts, of mean 1.
    * `anchors`: the records whose similarities say what the channels do not, int [m].
    * `embedded`: how they look at a text's embedding; None where nothing is embedded.
    """

    vocabularies: tuple[Vocabulary, Vocabulary]
    tools: tuple[Index, Index]
    names: Index
    taught: Index
    records: tuple[Index, Index]
    first: np.ndarray
    used: np.ndarray
    worth: np.ndarray
    anchors: np.ndarray
    embedded: Embedded | None = None

    @property
    def kinds(self) -> int:
        """In how many ways texts are compared."""
        return 2 if self.embedded is None else 3

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Of the C channels, what the log did not teach first."""
        return *_ABOUT[: self.kinds + 1], _TAUGHT, *_NEAR[: self.kinds]

    @property
    def learnt(self) -> np.ndarray:
        """Which channels the log taught, [C] of 0 and 1."""
        return np.repeat([0, 1], [self.kinds + 1, self.kinds + 1])

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

    def cosines(self, texts: Sequence[Vectors]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each text, how it speaks for the tools [4 or 5, M]: by words and by pieces with their
        texts, by words with their names, by embeddings, and by the words of their records; and how
        near it is to all records [2 or 3, T]: by words, by pieces and by embeddings.
        """
        indices = (*self.records, *self.tools, self.names, self.taught)
        kinds = 0, 1, 0, 1, 0, 0
        for first in range(0, len(texts), _BLOCK):
            block = texts[first : first + _BLOCK]
            words_and_pieces = [one.words for one in block], [one.pieces for one in block]
            pairs = zip(indices, kinds, strict=True)
            *found, taught = [index.cosines(words_and_pieces[kind]) for index, kind in pairs]
            near, about = found[:2], found[2:]
            if self.embedded is not None:
                own = np.array([one.embedding for one in block])
                near, about = (
                    [*near, own @ self.embedded.records.T],
                    [*about, own @ self.embedded.tools.T],
                )
            yield from zip(np.stack([*about, taught], axis=1), np.stack(near, axis=1), strict=True)

    def nearest(self, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest records and their weights, from the cosines with all of them."""
        count = min(NEIGHBOURS, near.size)
        best = np.argpartition(-near, count - 1)[:count] if count else np.zeros(0, int)
        best = best[near[best] > 0]
        return best, near[best] ** _POWER

    def used_near(self, near: np.ndarray) -> np.ndarray:
        """Σ worth · cosine³ over the nearest records that use each tool, [M], from one kind of
        cosines with all of them.
        """
        best, weights = self.nearest(near)
        weights = weights * self.worth[best]
        counts = self.first[best + 1] - self.first[best]
        offset = np.repeat(self.first[best] - np.cumsum(counts) + counts, counts)
        entry = offset + np.arange(int(counts.sum()))
        return np.bincount(self.used[entry], np.repeat(weights, counts), self.names.size)

    def channels(self, about: np.ndarray, near: np.ndarray) -> np.ndarray:
        """[C, M], in the order of `channel_names`."""
        return np.concatenate([about, [self.used_near(one) for one in near]])

    def similarities(self, near: np.ndarray) -> np.ndarray:
        """To the anchors, [..., m], from the cosines [2 or 3, ..., T]: all kinds together."""
        return near.sum(axis=0)[..., self.anchors]
