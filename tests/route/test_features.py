"""Text and number features."""

import numpy as np
import pytest

from jaxsac.route import features as F

TEXTS = [
    f"{verb} the {noun} of {thing}"
    for verb in ("read", "write", "plot")
    for noun in ("table", "chart")
    for thing in ("alpha", "beta", "gamma")
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("read_csv readCSV HTTPServer2x", ["read", "csv", "read", "csv", "http", "server2x"]),
        ("scipy.stats _fit(x, data): Fit it!", ["scipy", "stats", "fit", "data", "fit", "it"]),
        ("größe a 1", ["größe"]),
    ],
)
def test_words(text, words):
    assert F.words_of(text) == words


def test_text_features_are_centred_scaled_and_deterministic():
    first, second = F.fit_text(TEXTS, 8), F.fit_text(TEXTS, 8)
    rows = F.transform(first, TEXTS)
    np.testing.assert_array_equal(rows, F.transform(second, TEXTS))
    assert rows.shape == (18, 8)
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.mean(rows**2), 1, rtol=1e-12)


def test_the_projection_is_the_one_of_a_plain_svd():
    found = F.fit_text(TEXTS, 4)
    matrix = F.text_vectorizer().fit_transform(TEXTS).toarray()
    sizes = np.linalg.svd(matrix, compute_uv=False)
    lost = matrix - matrix @ found.components.T @ found.components
    np.testing.assert_allclose(
        np.sum(lost**2), np.sum(sizes[4:] ** 2), rtol=1e-8
    )  # the least that 4 directions can lose


def test_features_see_training_texts_only():
    found = F.fit_text(TEXTS, 4)
    unseen = F.transform(found, ["zebra quagga", "okapi"])
    np.testing.assert_allclose(unseen, np.tile(-found.centre / found.scale, (2, 1)))


def test_tiny_logs_of_texts():
    assert F.transform(F.fit_text(["one two", "three four"], 8), ["one"]).shape == (1, 1)
    with pytest.raises(ValueError, match="too few different words"):
        F.fit_text(["word"], 8)


def test_numbers():
    values = np.random.default_rng(0).normal(3, 2, (50, 3))
    values[:, 1] = 7
    found = F.fit_features(values, size=128)
    rows = F.transform(found, values)
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(rows.std(axis=0), [1, 0, 1])
    np.testing.assert_array_equal(F.transform(found, np.full((1, 3), 99.0))[0, 1], 0)


def test_contexts_of_the_wrong_kind():
    numbers, text = F.fit_numbers(np.eye(3)), F.fit_text(TEXTS, 4)
    for wrong in (["text"], np.eye(2)):
        with pytest.raises(ValueError, match="lists of 3 numbers"):
            F.transform(numbers, wrong)
    with pytest.raises(ValueError, match="must be texts"):
        F.transform(text, np.eye(3))
