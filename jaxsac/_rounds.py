"""The one loop on the host: rounds whose arrays have sizes that depend on the data, each with a
check after it.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

from jaxsac._iterate import Certificate, Outcome
from jaxsac.solution import RUNNING, Status, verdict

State = TypeVar("State")


class Progress(NamedTuple):
    """How far the rounds are: how many were taken, and how many since the last that was of use."""

    num_steps: int
    fruitless: int


def rounds(
    step: Callable[[State, Progress], State],
    certify: Callable[[State], Certificate],
    state: State,
    *,
    tol: float,
    max_steps: int,
    patience: int,
    useful: Callable[[State, Certificate], bool] | None = None,
) -> Outcome:
    """`iterate` with the loop on the host: a round is `step(state, progress)`, and `certify` looks
    at every state, the first one too.

    It ends as `solution.verdict` says; STALLED when the last `patience` rounds were of no use.
    `useful(state, certificate)` says whether a round was; None: its error is 0.1 % below the least
    before it.
    """
    best, fruitless, num_steps = np.inf, 0, 0
    while True:
        certificate = certify(state)
        error = float(certificate.error)
        better = error < 0.999 * best if useful is None else useful(state, certificate)
        best, fruitless = min(best, error), 0 if better else fruitless + 1
        status = verdict(
            certificate, tol, progress=fruitless < patience, more=num_steps < max_steps
        )
        if status != RUNNING:
            return Outcome(state, certificate, Status(int(status)), num_steps)
        state = step(state, Progress(num_steps, fruitless))
        num_steps += 1
