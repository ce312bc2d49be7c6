"""Families of tools: a norm over each family beside the norm of each tool, and its dual, from the
tools' gradient norms alone.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxsac import _checks

_ROUNDS = 100


class Families(NamedTuple):
    """Ω(θ) = (1 − share) Σ_j ‖θ_j‖ + share Σ_F ‖θ_F‖; a tool without a family is one."""

    label: np.ndarray  # int [M], 0..F-1
    share: float  # in [0, 1)

    def of(self, used: np.ndarray) -> "Split":
        """As a fit sees them. All unused tools have one gradient, so that of the families without a
        used tool the largest stands for all.
        """
        label = np.asarray(self.label)
        inside, number = label[used], int(label.max()) + 1
        counts = np.bincount(label, minlength=number) - np.bincount(inside, minlength=number)
        named, label = np.unique(inside, return_inverse=True)
        unused = np.append(counts[named], np.delete(counts, named).max(initial=0))
        return Split(label.reshape(-1), unused.astype(float), float(self.share))


def omega(norms: np.ndarray, label: np.ndarray, share: float) -> float:
    """Ω of tools of norms [U] in the families `label` [U]."""
    together = np.sqrt(np.bincount(label, norms**2)).sum()
    return float((1 - share) * norms.sum() + share * together)


class Split(NamedTuple):
    """Families as a fit sees them: those of the U used tools, and how many tools are not used."""

    label: np.ndarray  # int [U], 0..F-1
    unused: np.ndarray  # [F + 1]: unused tools by family; last, the largest family that is all so
    share: float  # in [0, 1)

    def dual_norm(
        self, norms: np.ndarray, unused_norm: float | np.ndarray, chosen: np.ndarray | None = None
    ) -> np.ndarray:
        """Ω*: the least t at which ‖((‖g_j‖ − t (1 − share))₊)_{j ∈ F}‖ ≤ t share in every family,
        [...] for norms [..., U].

        `unused_norm` ([...] too) is that of every unused tool. With `chosen` the norms are those of
        these used tools (positions), and no other tool counts. By bisection to a relative 1e-13,
        returned from above: a feasible dual point stays one.
        """
        labels = self.label if chosen is None else self.label[chosen]
        norms = np.atleast_2d(norms)
        unused = np.zeros_like(self.unused) if chosen is not None else self.unused
        beside = np.broadcast_to(np.asarray(unused_norm, float), norms.shape[:1])
        largest = np.maximum(norms.max(1, initial=0.0), beside * unused.any())
        if self.share == 0:
            return largest
        families, label = np.unique(np.append(labels, np.flatnonzero(unused)), return_inverse=True)
        label, count = label[: labels.size], unused[families]

        def over(t: np.ndarray) -> np.ndarray:
            inside = np.maximum(norms - t[:, None] * (1 - self.share), 0) ** 2
            sums = np.stack([np.bincount(label, row, families.size) for row in inside])
            sums += count * np.maximum(beside - t * (1 - self.share), 0)[:, None] ** 2
            return np.sqrt(sums.max(1, initial=0.0)) > t * self.share

        # Ω ≥ the largest single tool's share; Ω* is at most that of the family norm alone with the
        # other weight dropped.
        members = np.bincount(label, minlength=families.size).max(initial=1)
        low, high = largest, largest * np.sqrt(members + count.max(initial=0)) / self.share
        for _ in range(_ROUNDS):
            if not (high - low > 1e-13 * high).any():
                break
            middle = (low + high) / 2
            above = over(middle)
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return high

    def excess(self, norms: np.ndarray, alive: np.ndarray, lam: float) -> np.ndarray:
        """‖g_j‖ − lam (1 − share) of the used tools that may enter, -1 of the others: a family that
        is not zero lets in every tool above lam (1 − share); one that is, only if ‖((‖g_j‖ − lam (1
        − share))₊)_F‖ > lam share. `alive` are positions of tools that are not zero.
        """
        over = np.maximum(norms - lam * (1 - self.share), 0)
        open_ = np.sqrt(np.bincount(self.label, over**2, self.unused.size)) > lam * self.share
        open_[self.label[alive]] = True
        return np.where(open_[self.label] & (over > 0), over, -1.0)

    def unused_enter(
        self, norms: np.ndarray, unused_norm: float, alive: np.ndarray, lam: float
    ) -> bool:
        """Whether a family has to let in tools that no record uses."""
        over = max(unused_norm - lam * (1 - self.share), 0.0)
        inside = np.bincount(
            self.label, np.maximum(norms - lam * (1 - self.share), 0) ** 2, self.unused.size
        )
        open_ = np.sqrt(inside + self.unused * over**2) > lam * self.share
        open_[self.label[alive]] = True
        return over > 0 and bool((open_ & (self.unused > 0)).any())


def checked_families(labels: Any, share: float, num_actions: int) -> Families | None:
    """Checked and numbered 0..F-1; negative labels are tools without a family. None where nothing
    is shared.
    """
    if labels is None:
        return None
    labels = np.asarray(labels)
    _checks.require(
        labels.shape == (num_actions,) and np.issubdtype(labels.dtype, np.integer),
        f"families must be integers [{num_actions}], one for each tool (negative: none),"
        f" got {labels.dtype} {list(labels.shape)}.",
    )
    share = float(share)
    alone = labels < 0
    labels = np.where(alone, labels.max(initial=0) + 1 + np.arange(num_actions), labels)
    numbers = np.unique(labels, return_inverse=True)[1].reshape(-1)
    return Families(numbers, share) if share > 0 and np.bincount(numbers).max() > 1 else None
