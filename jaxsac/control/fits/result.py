"""What a fit of either objective hands back, and where another may start."""

from typing import Any, NamedTuple

import numpy as np

from jaxsac.solution import Status, register


@register
class FitState(NamedTuple):
    """Where a later fit may start, on this log or another."""

    tools: np.ndarray  # int [k], ascending: those that look at the context
    coef: np.ndarray  # [k, q]
    intercept: np.ndarray  # [M]


class Result(NamedTuple):
    state: FitState
    status: Status
    stats: dict[str, Any]
