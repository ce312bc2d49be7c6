"""What a run shows while it works, and how long its parts took."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple


def bar(total: int, label: str, *, shown: bool) -> Any:
    """A progress bar on stderr, a context manager: `update()` is one step of `total`."""
    from tqdm import tqdm

    return tqdm(total=total, desc=label, file=sys.stderr, disable=not shown)


class Stages(NamedTuple):
    """What a run has done: seconds by stage, and the bar that shows which one it is at."""

    seconds: dict[str, float]
    bar: Any

    @classmethod
    def unseen(cls) -> "Stages":
        """Without a bar."""
        return cls({}, bar(0, "", shown=False))

    @contextlib.contextmanager
    def clock(self, label: str) -> Iterator[None]:
        """The stage of the block."""
        self.tell(label)
        start = time.perf_counter()
        yield
        self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - start
        self.bar.update()

    def tell(self, text: str) -> None:
        """What it does now."""
        self.bar.set_postfix_str(text)
