"""Times of several thunks, interleaved so that what else the machine does falls on all of them
alike.
"""

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

UNSTABLE = 1.25  # p90 over median above which a time is not judged


class Timing(NamedTuple):
    """Seconds of one thunk: the first call apart (it traces and compiles), then statistics of the
    repeats.
    """

    first_call: float
    median: float
    p10: float
    p90: float
    minimum: float
    repeats: int

    @property
    def unstable(self) -> bool:
        return self.p90 > UNSTABLE * self.median

    @property
    def compile(self) -> float:
        """Seconds that only the first call took: tracing, compiling, and for some thunks
        loading.
        """
        return max(self.first_call - self.median, 0.0)

    def row(self) -> dict[str, Any]:
        """The timing as columns of a report's row."""
        return {
            "median_ms": 1e3 * self.median,
            "p10_ms": 1e3 * self.p10,
            "p90_ms": 1e3 * self.p90,
            "min_ms": 1e3 * self.minimum,
            "first_call_ms": 1e3 * self.first_call,
            "repeats": self.repeats,
            "verdict": "unstable" if self.unstable else "stable",
        }


def time_interleaved(
    thunks: Mapping[str, Callable[[], Any]],
    *,
    min_repeats: int = 20,
    min_seconds: float = 2.0,
    max_repeats: int = 2000,
) -> dict[str, Timing]:
    """Time each thunk: a first call, a warm-up call, then rounds of one call each in turn until
    every thunk has had its share.

    A thunk is done after `min_repeats` calls and a tenth of `min_seconds`, after `min_seconds` in
    all (and 3 calls), or after `max_repeats` calls. Every call ends with `jax.block_until_ready` on
    what the thunk returned; return the whole result, or parts of it may be left out of the
    computation.
    """
    first = {name: _seconds(thunk) for name, thunk in thunks.items()}
    for thunk in thunks.values():
        _seconds(thunk)
    samples: dict[str, list[float]] = {name: [] for name in thunks}

    def done(times: list[float]) -> bool:
        total = sum(times)
        enough = len(times) >= min_repeats and total >= min_seconds / 10
        return enough or (total >= min_seconds and len(times) >= 3) or len(times) >= max_repeats

    collecting = gc.isenabled()
    gc.disable()
    try:
        waiting = list(thunks)
        while waiting:
            for name in waiting:
                samples[name].append(_seconds(thunks[name]))
            waiting = [name for name in waiting if not done(samples[name])]
            waiting = waiting[1:] + waiting[:1]  # nobody always runs after the same neighbour
    finally:
        if collecting:
            gc.enable()
    return {name: summary(first[name], samples[name]) for name in thunks}


def summary(first_call: float, samples: list[float]) -> Timing:
    p10, median, p90 = np.quantile(samples, [0.1, 0.5, 0.9]).tolist()
    return Timing(first_call, median, p10, p90, min(samples), len(samples))


def ratio(numerator: Timing, denominator: Timing) -> float:
    """How many times longer the first takes, by medians; take both from one call of
    `time_interleaved`.
    """
    return numerator.median / denominator.median


def _seconds(thunk: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(thunk())
    return time.perf_counter() - start
