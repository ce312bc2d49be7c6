"""The words that speak for a tool, against dense linear algebra."""

import numpy as np
import scipy.sparse

from jaxsac.route.regression import fit_regression, out_of_fold, weighed


def texts(records: int = 60, terms: int = 40, tools: int = 7):
    """Rows of length 1 [T, V], and which tools each uses [T, M]; the last tool is never used."""
    generator = np.random.default_rng(0)
    rows = generator.exponential(size=(records, terms)) * (generator.random((records, terms)) < 0.2)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    used = (generator.random((records, tools)) < 0.3).astype(np.float32)
    used[:, -1] = 0
    return scipy.sparse.csr_matrix(rows.astype(np.float32)), used


def weights(rows, used):
    """[V, M], by the normal equations, without those that are left out."""
    rows = rows.toarray().astype(float)
    found = np.linalg.solve(rows.T @ rows + 0.5 * np.eye(rows.shape[1]), rows.T @ used)
    return found, np.abs(found) > 0.01


def test_the_weights_are_those_of_the_normal_equations():
    rows, used = texts()
    exact, kept = weights(rows, used)
    found = fit_regression(rows, scipy.sparse.csr_matrix(used)).matrix().toarray()
    assert found.shape == exact.shape and kept.mean() > 0.5
    np.testing.assert_allclose(found, np.where(kept, exact, 0), atol=0.0105)
    clear = np.abs(exact) > 0.011
    np.testing.assert_allclose(found[clear], exact[clear], atol=1e-3)
    assert not found[:, -1].any()


def test_a_record_does_not_teach_what_is_said_of_itself():
    rows, used = texts()
    fold = np.arange(60) // 3 % 4
    found = out_of_fold(rows, scipy.sparse.csr_matrix(used), np.ones(60), fold)
    for number in range(4):
        exact, kept = weights(rows[fold != number], used[fold != number])
        expected = rows[fold == number] @ np.where(kept, exact, 0)
        np.testing.assert_allclose(found[fold == number], expected, atol=0.03)


def test_one_fold_alone_has_learnt_nothing():
    rows, used = texts()
    assert not out_of_fold(
        rows, scipy.sparse.csr_matrix(used), np.ones(60), np.zeros(60, int)
    ).any()


def test_records_count_by_their_worth():
    """As so many copies of a record; those of no worth teach nothing."""
    rows, used = texts()
    times = np.arange(60) % 3
    copies = np.repeat(np.arange(60), times)
    used = scipy.sparse.csr_matrix(used)
    found = fit_regression(weighed(rows, times), weighed(used, times)).matrix().toarray()
    truth = fit_regression(rows[copies], used[copies]).matrix().toarray()
    np.testing.assert_allclose(found, truth, atol=0.011)
    assert np.abs(found - fit_regression(rows, used).matrix().toarray()).max() > 0.1
