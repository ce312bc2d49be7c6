"""Tools that stand in for each other, and tools that are always used together: pairs, and the
families they suggest.
"""

from typing import NamedTuple

import numpy as np

from jaxsac.control.data.digest import Digest

_MIN_USES = 10  # fewer uses give directions that are mostly noise
_MOST = 2_000  # tools compared, the most used first


class Duplicates(NamedTuple):
    """Pairs of tools that stand in for each other or go together, most alike first."""

    alike: list[tuple[int, int, float]]  # (tool, tool, cosine): used in the same kind of context
    together: list[tuple[int, int, float]]  # (tool, tool, cosine): used in the same records
    families: list[tuple[int, ...]]  # connected components of both, each ascending


def near_duplicates(data: Digest, threshold: float) -> Duplicates:
    """Pairs of tools whose similarity exceeds `threshold`, among the tools with at least 10 uses.

        alike     ⟨d_j, d_l⟩ / (e_j e_l),  d_j = mean of ψ over the uses of j − mean of all records,
                  e_j² = ‖d_j‖² − tr(C) / n_j
        together  n_jl / (n_j n_l)^½,  n_jl the records that use both

    The first is a cosine without the share that a mean of n_j draws has by chance, C the covariance
    of ψ: such tools are substitutes, a log cannot tell which of them matters, and their uses are
    shared out among them. The second is the cosine of their columns in the design: least squares
    cannot tell their effects apart.

    A pair is listed as alike only if both ‖d‖ exceed what chance gives to any of the tools with
    probability 1 %, so that two tools without a taste are no pair: n ‖d‖² > tr C + 2 (x tr C²)^½ +
    2 x λ_max(C), x = log(100 · tools) (Laurent & Massart 2000).
    """
    contexts = np.asarray(data.contexts, np.float64)[: data.task.num_records]
    uses = np.bincount(data.entry_tool, minlength=data.used.size)
    chosen = np.flatnonzero(uses >= _MIN_USES)
    chosen = np.sort(chosen[np.argsort(-uses[chosen], kind="stable")[:_MOST]])
    if chosen.size < 2:
        return Duplicates([], [], [])
    place = np.full(data.used.size, -1)
    place[chosen] = np.arange(chosen.size)
    inside = place[data.entry_tool] >= 0
    tool, record = place[data.entry_tool[inside]], data.entry_record[inside]
    sums = np.stack(
        [np.bincount(tool, contexts[record, i], chosen.size) for i in range(contexts.shape[1])],
        axis=1,
    )
    means = sums / uses[chosen][:, None] - contexts.mean(0)
    squares = (means**2).sum(1)
    spectrum = np.maximum(np.linalg.eigvalsh(np.atleast_2d(np.cov(contexts.T, bias=True))), 0)
    x = np.log(100 * chosen.size)
    most = spectrum.sum() + 2 * np.sqrt(x * (spectrum**2).sum()) + 2 * x * spectrum[-1]
    signal = squares - spectrum.sum() / uses[chosen]
    clear = squares * uses[chosen] > most
    length = np.sqrt(np.where(clear, signal, np.inf))
    alike = np.minimum(means @ means.T / length[:, None] / length[None, :], 1.0)
    # Records by tools, only to count how many records a pair shares.
    shared = np.zeros((chosen.size, chosen.size))
    order = np.argsort(record, kind="stable")
    for members in np.split(tool[order], np.flatnonzero(np.diff(record[order])) + 1):
        shared[np.ix_(members, members)] += 1
    together = shared / np.sqrt(np.outer(uses[chosen], uses[chosen]))
    names = data.used[chosen]
    pairs = {
        "alike": _pairs(alike, names, threshold),
        "together": _pairs(together, names, threshold),
    }
    return Duplicates(**pairs, families=_components([*pairs["alike"], *pairs["together"]]))


def _pairs(
    similarity: np.ndarray, names: np.ndarray, threshold: float
) -> list[tuple[int, int, float]]:
    first, second = np.nonzero(np.triu(similarity > threshold, 1))
    order = np.argsort(-similarity[first, second], kind="stable")
    return [
        (int(names[first[i]]), int(names[second[i]]), float(similarity[first[i], second[i]]))
        for i in order
    ]


def _components(pairs: list[tuple[int, int, float]]) -> list[tuple[int, ...]]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array([pair[:2] for pair in pairs], int).reshape(-1, 2)
    tools, place = np.unique(ends, return_inverse=True)
    edges = np.ones(len(ends)), place.reshape(-1, 2).T
    number, label = connected_components(coo_array(edges, shape=(tools.size, tools.size)), False)
    return sorted(tuple(tools[label == family].tolist()) for family in range(number))
