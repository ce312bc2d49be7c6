"""Texts to sparse vectors and back to what resembles them, with numpy alone: words and characters,
TF-IDF, and an inverted index.
"""

import collections
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

_LENGTHS = (2, 3, 4, 5)  # of pieces of words, in characters
_COMMON = 0.1  # of the texts hold a term that is common
_LARGEST = 2**24  # numbers in the rows of common terms


def words(text: str) -> list[str]:
    """Lower-case words and pairs of neighbours; `read_csv` and `readCSV` are `read`, `csv`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", " ", text)
    found = re.findall(r"[^\W_]+", spaced.lower())
    return found + [f"{a} {b}" for a, b in itertools.pairwise(found)]


def pieces(text: str) -> list[str]:
    """Pieces of two to five characters of every word with a space on either side: also of scripts
    that have no spaces.
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", text).lower()
    found = []
    for word in re.findall(r"[^\W_]+", spaced):
        padded = f" {word} "
        for length in _LENGTHS:
            found += [padded[i : i + length] for i in range(len(padded) - length + 1)]
    return found


ANALYSERS: dict[str, Callable[[str], list[str]]] = {"words": words, "pieces": pieces}


class Vector(NamedTuple):
    """A sparse vector of length 1, or 0 where no term is known."""

    term: np.ndarray  # int [n]
    value: np.ndarray  # float32 [n], `rounded`


def rounded(values: np.ndarray) -> np.ndarray:
    """In float32, to what the float16 that is saved can hold."""
    return values.astype(np.float16).astype(np.float32)


class Vocabulary(NamedTuple):
    """The terms of an analyser that count, and their weights."""

    analyser: str  # one of ANALYSERS
    number: dict[str, int]  # of each of the V terms
    weight: np.ndarray  # inverse document frequencies [V]

    def vector(self, text: str) -> Vector:
        """(1 + log count) · weight of the terms of a text, scaled to length 1."""
        counts = collections.Counter(ANALYSERS[self.analyser](text))
        number = self.number
        term = np.fromiter((number.get(term, -1) for term in counts), np.int64, len(counts))
        known = term >= 0
        times = np.fromiter(counts.values(), float, len(counts))[known]
        value = (1 + np.log(times)) * self.weight[term[known]]
        return Vector(
            term[known], rounded(value / math.sqrt(value @ value) if value.size else value)
        )


def fit_vocabulary(analyser: str, tools: Iterable[str], records: Iterable[str] = ()) -> Vocabulary:
    """The terms of the tools' texts, and those that two texts of records hold; weights 1 + log((1 +
    n) / (1 + texts with the term)) of all n texts.
    """
    documents, kept, size = collections.Counter(), set(), 0
    for texts, once in ((tools, True), (records, False)):
        for text in texts:
            found, size = set(ANALYSERS[analyser](text)), size + 1
            documents.update(found)
            kept |= found if once else set()
    terms = sorted(term for term, n in documents.items() if n > 1 or term in kept)
    times = np.array([documents[term] for term in terms], float)
    weight = 1 + np.log((1 + size) / (1 + times))
    number = {term: n for n, term in enumerate(terms)}
    return Vocabulary(analyser, number, weight.astype(np.float32))


class Index(NamedTuple):
    """The vectors of N texts, by term; those of common terms as whole rows too, which are faster
    than long lists.
    """

    start: np.ndarray  # int [V + 1]: where each term's entries begin
    row: np.ndarray  # int32 [E]: the texts that hold the term
    value: np.ndarray  # float32 [E], `rounded`
    size: int  # N
    place: np.ndarray  # int [V]: of a common term in `common`, -1 for the others
    common: np.ndarray  # [F, N]

    @classmethod
    def of(cls, start: np.ndarray, row: np.ndarray, value: np.ndarray, size: int) -> "Index":
        """With the rows of the common terms."""
        counts = np.diff(start)
        terms = np.argsort(-counts, kind="stable")[: _LARGEST // max(size, 1)]
        terms = terms[counts[terms] > _COMMON * size]
        place, common = np.full(counts.size, -1), np.zeros((terms.size, size), np.float32)
        place[terms] = np.arange(terms.size)
        for number, term in enumerate(terms):
            entries = slice(start[term], start[term + 1])
            common[number, row[entries]] = value[entries]
        return cls(start, row, value, size, place, common)

    def cosines(self, vectors: Sequence[Vector]) -> np.ndarray:
        """Of n vectors with each text, [n, N]; several by a sparse product, which takes a third of
        the time of one after the other.
        """
        if len(vectors) == 1:
            return self._one(vectors[0])[None]
        return (matrix_of_vectors(vectors, self.start.size - 1) @ self.matrix()).toarray()

    def matrix(self) -> Any:
        """[V, N], sparse."""
        import scipy.sparse

        size = self.start.size - 1, self.size
        return scipy.sparse.csr_matrix((self.value, self.row, self.start), size)

    def _one(self, vector: Vector) -> np.ndarray:
        place = self.place[vector.term]
        whole, rare = place >= 0, place < 0
        found = vector.value[whole] @ self.common[place[whole]]
        first = self.start[vector.term[rare]]
        counts = self.start[vector.term[rare] + 1] - first
        ends = np.cumsum(counts)
        entry = np.arange(int(counts.sum())) + np.repeat(first - ends + counts, counts)
        weights = np.repeat(vector.value[rare], counts) * self.value[entry]
        return found + np.bincount(self.row[entry], weights, self.size)


def matrix_of_vectors(vectors: Sequence[Vector], terms: int) -> Any:
    """[n, V], sparse."""
    import scipy.sparse

    start = np.cumsum([0, *(one.term.size for one in vectors)])
    term, value = (np.concatenate(part) for part in zip(*vectors, strict=True))
    return scipy.sparse.csr_matrix((value, term, start), (len(vectors), terms))


def index_of(vectors: Sequence[Vector], terms: int) -> Index:
    """The inverted index of vectors over a vocabulary of so many terms."""
    counts = [vector.term.size for vector in vectors]
    term = np.concatenate([vector.term for vector in vectors] or [np.zeros(0, np.int64)])
    value = np.concatenate([vector.value for vector in vectors] or [np.zeros(0)])
    order = np.argsort(term, kind="stable")
    start = np.searchsorted(term[order], np.arange(terms + 1))
    row = np.repeat(np.arange(len(vectors)), counts)[order].astype(np.int32)
    return Index.of(start, row, value[order].astype(np.float32), len(vectors))
