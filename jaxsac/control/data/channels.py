"""What is known of pairs of a record and a tool, beside the record's own context."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, integer, real
from jaxsac.solution import Hashable


class Channels(Hashable):
    """C numbers for every pair of one of T records and one of M tools; a pytree.

    * `values` r [C, T, M], finite: similarities of the context to the tool's text, what near
      records used, how popular the tool is. Scale them to the order of 1.
    * `learnt`: C of 0 or 1 (None: all 0), whether the log taught the channel. Such a channel must
      be computed **out of fold** for the records of a fit: a record, and all of its group, must not
      have taught what stands in its own row, or it finds itself.
    * `fold`: int [T] ≥ 0, the fold of each record (None: there are none). Then every record has a
      second row, of `cold_weight` > 0: in it a tool that no record outside the record's fold uses
      is scored by the channels that are not learnt and one offset of all such tools. That is how a
      tool without records will be scored.

    Raises: ValueError for arrays that are not finite or do not fit each other.
    """

    values: np.ndarray
    learnt: np.ndarray
    fold: np.ndarray | None
    cold_weight: float

    @arguments(
        on_host=True,
        values=real("C", "T", "M"),
        learnt=integer("C", low=0, high=1),
        fold=integer("T", low=0),
        cold_weight=real(above=0, below=np.inf),
    )
    def __init__(
        self, values: Any, *, learnt: Any = None, fold: Any = None, cold_weight: float = 0.1
    ) -> None:
        _checks.require(bool(jnp.all(jnp.isfinite(values))), "values must be finite.")
        self.values = np.asarray(values)
        count = self.values.shape[0]
        self.learnt = np.zeros(count, bool) if learnt is None else np.asarray(learnt, bool)
        self.fold = None if fold is None else np.asarray(fold)
        self.cold_weight = float(cold_weight)


def sizes(channels: Channels) -> dict[str, int]:
    """The letters of channels."""
    return dict(zip("CTM", channels.values.shape, strict=True))


def hidden_tools(channels: Channels, chosen: np.ndarray) -> np.ndarray:
    """By fold, bool [F, M]: the tools that no record of another fold uses; `chosen` bool [T, M]."""
    assert channels.fold is not None
    uses = np.zeros((int(channels.fold.max()) + 1, chosen.shape[1]), int)
    np.add.at(uses, channels.fold, chosen)
    return uses.sum(0) - uses == 0
