"""What a sparse router has to beat: popularity, and text retrieval over the tools' own descriptions
(the dense policy is in ridge.py).
"""

from collections.abc import Sequence

import numpy as np

from jaxsac.route.features import text_vectorizer, words_of
from jaxsac.route.ridge import RidgeFit, fit_ridge


def fit_popularity(
    features: np.ndarray, actions: np.ndarray, num_tools: int, budget: int
) -> RidgeFit:
    """The Gibbs policy that ignores the context: the intercepts of largest likelihood, which
    reproduce each tool's frequency.
    """
    return fit_ridge(features, actions, num_tools, budget, ridge=1.0, support=np.zeros(0, int))


class Retrieval:
    """Cosine similarity of TF-IDF vectors: a context against each tool's name and description.

    `pairs`: word pairs count beside words; `training_texts`: texts that share in the word weights
    (idf) beside the descriptions; `name_only`: names without descriptions.
    """

    def __init__(
        self,
        names: Sequence[str],
        descriptions: Sequence[str],
        training_texts: Sequence[str],
        *,
        pairs: bool,
        name_only: bool,
    ):
        documents = [
            name if name_only else f"{name} {text}"
            for name, text in zip(names, descriptions, strict=True)
        ]
        documents = [document if words_of(document) else "unnamed" for document in documents]
        self.vectorizer = text_vectorizer(ngram_range=(1, 2) if pairs else (1, 1), min_df=1).fit(
            [*documents, *training_texts]
        )
        self.documents = self.vectorizer.transform(documents)

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Cosines [n, M]."""
        return (self.vectorizer.transform(texts) @ self.documents.T).toarray()


RETRIEVAL_CHOICES = [
    {"pairs": pairs, "name_only": name_only, "weighted_on": weighted_on}
    for pairs in (False, True)
    for name_only in (False, True)
    for weighted_on in ("descriptions", "descriptions and training contexts")
]

RETRIEVAL_SCALES = (2.0, 4.0, 8.0, 16.0, 32.0)


def retrieval(
    names: Sequence[str], descriptions: Sequence[str], training_texts: Sequence[str], choice: dict
) -> Retrieval:
    """The retrieval of one of RETRIEVAL_CHOICES."""
    texts = training_texts if choice["weighted_on"].endswith("contexts") else ()
    return Retrieval(
        names, descriptions, texts, pairs=choice["pairs"], name_only=choice["name_only"]
    )
