"""Contexts to numbers: TF-IDF and a truncated SVD for texts, standardised columns for numbers.
Fitted on training records.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from jaxsac.route.log_file import LogError


class TextFeatures(NamedTuple):
    """q features of a text: the TF-IDF vector (V words) projected on q singular directions, centred
    and scaled.
    """

    vectorizer: Any  # scikit-learn's, fitted: texts [T] -> TF-IDF [T, V]
    components: np.ndarray  # [q, V]
    centre: np.ndarray  # [q]
    scale: np.ndarray  # []


class NumberFeatures(NamedTuple):
    """q standardised numbers: (x − centre) / scale, columns that do not vary left at 0."""

    centre: np.ndarray  # [q]
    scale: np.ndarray  # [q]; inf where a column does not vary


Features = TextFeatures | NumberFeatures


def fit_features(contexts: list[str] | np.ndarray, size: int) -> Features:
    """Features of training contexts, at most `size` of them for texts; deterministic."""
    return fit_numbers(contexts) if isinstance(contexts, np.ndarray) else fit_text(contexts, size)


def fit_numbers(contexts: np.ndarray) -> NumberFeatures:
    """Columns that vary by more than rounding, standardised."""
    spread, rounding = contexts.std(axis=0), 1e-12 * np.maximum(1.0, np.abs(contexts).max(axis=0))
    return NumberFeatures(contexts.mean(axis=0), np.where(spread > rounding, spread, np.inf))


def fit_text(texts: list[str], size: int) -> TextFeatures:
    """Latent semantic features: words and word pairs that occur twice, TF-IDF, the `size` largest
    directions, mean square 1 overall.
    """
    from sklearn.decomposition import TruncatedSVD

    vectorizer = text_vectorizer()
    try:
        vectorizer.fit(texts)
    except ValueError:  # no word occurs twice: a tiny log
        vectorizer = text_vectorizer(min_df=1)
        if not any(map(words_of, texts)):
            raise LogError("no training text holds a word of two letters: give words.") from None
        vectorizer.fit(texts)
    matrix: Any = vectorizer.transform(texts)
    size = min(size, *(side - 1 for side in matrix.shape))
    alike = not (matrix.max(axis=0) - matrix.min(axis=0)).nnz
    if size < 1 or alike:
        raise LogError(
            "the training texts hold too few different words for features: give more records, or"
            " numeric contexts."
        )
    components = np.asarray(TruncatedSVD(size, random_state=0).fit(matrix).components_)
    raw = matrix @ components.T
    centre = raw.mean(axis=0)
    # One common scale: whitening the directions would blow up the noise of the small ones.
    scale = np.sqrt(np.mean((raw - centre) ** 2))
    return TextFeatures(vectorizer, components, centre, np.asarray(scale or 1.0))


def transform(features: Features, contexts: list[str] | np.ndarray) -> np.ndarray:
    """The feature rows [T, q] of contexts, in float64."""
    if isinstance(features, NumberFeatures):
        if (
            not isinstance(contexts, np.ndarray)
            or contexts.ndim != 2
            or contexts.shape[1] != features.centre.shape[0]
        ):
            raise LogError(
                f"contexts must be lists of {features.centre.shape[0]} numbers, as in the log that"
                " the features were fitted on."
            )
        return (contexts - features.centre) / features.scale
    if isinstance(contexts, np.ndarray):
        raise LogError("contexts must be texts, as in the log that the features were fitted on.")
    weights = features.vectorizer.transform(contexts)
    return (weights @ features.components.T - features.centre) / features.scale


def text_vectorizer(**options):
    """The TF-IDF of every text here: words of names split at underscores and capitals, word pairs,
    logarithmic counts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        **{
            "tokenizer": words_of,
            "token_pattern": None,
            "lowercase": False,
            "ngram_range": (1, 2),
            "min_df": 2,
            "sublinear_tf": True,
        }
        | options
    )


def words_of(text: str) -> list[str]:
    """Lower-case words of two letters or more; `read_csv` and `readCSV` are `read`, `csv`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", " ", text)
    return re.findall(r"[^\W_]{2,}", spaced.lower())
