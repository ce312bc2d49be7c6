"""What a sparse router has to beat: popularity, and text retrieval over the tools' own descriptions
(the dense policy is in ridge.py).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsac.route import evaluate
from jaxsac.route.features import text_vectorizer, words_of
from jaxsac.route.fold import Fold, Judged
from jaxsac.route.ridge import RidgeFit, fit_ridge


def fit_popularity(
    features: np.ndarray,
    actions: np.ndarray,
    num_tools: int,
    budget: int,
    weights: np.ndarray | None = None,
) -> RidgeFit:
    """The Gibbs policy that ignores the context: the intercepts of largest likelihood, which
    reproduce each tool's (weighted) frequency.
    """
    none = np.zeros(0, int)
    return fit_ridge(features, actions, num_tools, budget, 1.0, none, weights=weights)


RETRIEVAL_CHOICES = [
    {"pairs": pairs, "name_only": name_only, "weighted_on": weighted_on}
    for pairs in (False, True)
    for name_only in (False, True)
    for weighted_on in ("descriptions", "descriptions and training contexts")
]

RETRIEVAL_SCALES = (2.0, 4.0, 8.0, 16.0, 32.0)


def retrieval(
    names: Sequence[str],
    descriptions: Sequence[str],
    training_texts: Sequence[str],
    choice: dict,
    texts: Sequence[str],
) -> np.ndarray:
    """Cosines [n, M] of the TF-IDF vectors of n texts and of M tools' names and descriptions.

    * `choice`: one of RETRIEVAL_CHOICES. `pairs`: word pairs count beside words; `name_only`: names
      without descriptions; `weighted_on`: whether the training texts share in the word weights
      (idf) beside the tools.
    """
    given = zip(names, descriptions, strict=True)
    documents = [name if choice["name_only"] else f"{name} {text}" for name, text in given]
    documents = [document if words_of(document) else "unnamed" for document in documents]
    others = training_texts if choice["weighted_on"].endswith("contexts") else ()
    words = (1, 2) if choice["pairs"] else (1, 1)
    vectorizer = text_vectorizer(ngram_range=words, min_df=1).fit([*documents, *others])
    return (vectorizer.transform(texts) @ vectorizer.transform(documents).T).toarray()


def tuned_retrieval(
    fold: Fold, descriptions: list[str], popularity: RidgeFit, budget: int
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Retrieval at its best setting, alone and as a policy on top of popularity, and what was
    tried: z = scale · cosine + popularity's intercepts.
    """

    def cosines_of(judged: Judged, choice: dict[str, Any]) -> np.ndarray:
        assert isinstance(fold.contexts, list) and isinstance(judged.contexts, list)
        texts = fold.contexts, choice, judged.contexts
        return retrieval(fold.names, descriptions, *texts)

    def quality(scores: np.ndarray) -> float:
        measured = evaluate.measure(scores, fold.validation.actions, budget, policy=False)
        return float(measured.ndcg.mean())

    tried = []
    for choice in RETRIEVAL_CHOICES:
        cosines = cosines_of(fold.validation, choice)
        scaled = [
            (quality(scale * cosines + popularity.intercept), scale) for scale in RETRIEVAL_SCALES
        ]
        best, scale = max(scaled, key=lambda row: row[0])
        found = {"validation": quality(cosines), "scale": scale, "with_popularity": best}
        tried.append(choice | found)
    alone = max(tried, key=lambda row: row["validation"])
    mixed = max(tried, key=lambda row: row["with_popularity"])
    with_popularity = mixed["scale"] * cosines_of(fold.test, mixed) + popularity.intercept
    scores = {"retrieval": cosines_of(fold.test, alone), "retrieval + popularity": with_popularity}
    return scores, tried
