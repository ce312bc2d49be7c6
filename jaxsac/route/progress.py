"""What a run shows while it works, and how long its parts took."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any


def bar(total: int, label: str, *, shown: bool) -> Any:
    """A progress bar on stderr, a context manager: `update()` is one step of `total`."""
    from tqdm import tqdm

    return tqdm(total=total, desc=label, file=sys.stderr, disable=not shown)


@contextlib.contextmanager
def clock(times: dict[str, float], label: str) -> Iterator[None]:
    """Add the seconds that the block takes to `times[label]`."""
    start = time.perf_counter()
    yield
    times[label] = times.get(label, 0.0) + time.perf_counter() - start
