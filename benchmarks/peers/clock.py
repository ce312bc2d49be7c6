"""What the peers time themselves with."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def seconds(
    thunk: Callable[[], Any], *, min_repeats: int = 20, min_seconds: float = 2.0
) -> list[float]:
    """Times of repeated calls after one warm-up: at least `min_repeats`, or `min_seconds` in all
    (and 3 calls).
    """
    thunk()
    times: list[float] = []
    while len(times) < 3 or (len(times) < min_repeats and sum(times) < min_seconds):
        start = time.perf_counter()
        thunk()
        times.append(time.perf_counter() - start)
    return times


def timed_fits(
    fit: Callable[..., Any], problems: Any, lams: Any, settings: dict[str, Any], version: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `answer` returns of fit(X, y, lams, tol) on every problem at each of the tolerances
    `tols`: coefficients, seconds, the version.
    """
    coefs, times = [], []
    for tol in settings["tols"]:

        def solve(tol=tol):
            return [fit(X, y, at, tol) for (X, y), at in zip(problems, lams, strict=True)]

        coefs.append(solve())
        times.append(
            seconds(solve, min_repeats=settings["min_repeats"], min_seconds=settings["min_seconds"])
        )
    return {"coef": np.asarray(coefs)}, {"seconds": times, "version": version}
