"""Which words speak for a tool, from the records that used it: ridge regressions, all tools' at
once.
"""

from typing import Any

import numpy as np

from jaxsac.route.texts import Index, rounded

_RIDGE = 0.5  # of texts of length 1
_STEPS = 12
_TOOLS = 512  # at a time
_WEAK = 0.01  # weights below it are left out: a thirtieth of them stay, and rank as all do


def fit_regression(rows: Any, used: Any) -> Index:
    """The index of M tools by term, in which tool j has the weights w_j that minimise
    Σ_t (⟨w_j, x_t⟩ − [t uses j])² + ridge ‖w_j‖².

    Twelve steps of conjugate gradients on the T records' side: w_j = Σ_t α_tj x_t, with
    (X Xᵀ + ridge I) α_j = y_j (Saunders, Gammerman & Vovk 1998).

    * `rows`: x of the records, sparse [T, V], of length 1; `used`: y, sparse [T, M], of 0 and 1.
    """
    import scipy.sparse

    turned, used = rows.T.tocsr(), used.tocsc()
    found = [scipy.sparse.csr_matrix((rows.shape[1], 0), dtype=np.float32)]
    for first in range(0, used.shape[1], _TOOLS):
        left = used[:, first : first + _TOOLS].toarray().astype(np.float32)
        alpha, along = np.zeros_like(left), left.copy()
        norm = np.sum(left * left, axis=0)
        for _ in range(_STEPS):
            product = rows @ (turned @ along) + np.float32(_RIDGE) * along
            step = norm / np.maximum(np.sum(along * product, axis=0), 1e-30)
            alpha, left = alpha + step * along, left - step * product
            before, norm = norm, np.sum(left * left, axis=0)
            along = left + norm / np.maximum(before, 1e-30) * along
        weights = turned @ alpha
        found.append(scipy.sparse.csr_matrix(np.where(np.abs(weights) > _WEAK, weights, 0)))
    whole: Any = scipy.sparse.hstack(found, "csr", dtype=np.float32)
    return Index.of(whole.indptr, whole.indices, rounded(whole.data), whole.shape[1])


def out_of_fold(rows: Any, used: Any, worth: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """What the regression on the records of other folds, of their worth [T], says of every record,
    [T, M].
    """
    known, used = weighed(rows, worth), weighed(used, worth)
    found = np.zeros(used.shape, np.float32)
    for number in np.unique(fold):
        own = fold == number
        others = fit_regression(known[~own], used[~own])
        found[own] = (rows[own] @ others.matrix()).toarray()
    return found


def weighed(rows: Any, worth: np.ndarray) -> Any:
    """Sparse [T, n], by the roots of the records' worth: what makes the squares count so."""
    import scipy.sparse

    return (scipy.sparse.diags(np.sqrt(worth)) @ rows).astype(np.float32).tocsr()


def uses(first: np.ndarray, used: np.ndarray, tools: int) -> Any:
    """Which tools each record uses, sparse [T, M], of 0 and 1: those of record t are
    used[first[t] : first[t + 1]].
    """
    import scipy.sparse

    ones = np.ones(used.size, np.float32)
    return scipy.sparse.csr_matrix((ones, used, first), (first.size - 1, tools))
