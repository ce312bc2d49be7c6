"""What a benchmark room needs, in one import. A room is a module of this package with `run(options:
Options) -> Report`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks.harness.machine import (
    machine_record as machine_record,
    measured_rates as measured_rates,
)
from benchmarks.harness.process import (
    NOT_RUN as NOT_RUN,
    PeerResult as PeerResult,
    configure as configure,
    in_new_process as in_new_process,
    run_peer as run_peer,
)
from benchmarks.harness.report import Report as Report, paragraphs as paragraphs
from benchmarks.harness.timing import (
    Timing as Timing,
    ratio as ratio,
    time_interleaved as time_interleaved,
)

Item = TypeVar("Item")


class Options(NamedTuple):
    """How a room is to run.

    `smoke`: the smallest sizes that touch every line; the figures mean nothing. `dtype`: "float32"
    (x64 is off then; an oracle uses numpy in float64) or "float64". `out`: a folder for JSON,
    Markdown and PNG, or None to print only. `peers_python`: the interpreter that has the peers, or
    None for this one. `logs`: a folder of tool logs, for `route`. `certificates`: for `bilevel`,
    only the tables of certificates.
    """

    smoke: bool = False
    dtype: str = "float64"
    out: Path | None = None
    peers_python: str | None = None
    show_progress: bool = True
    logs: Path | None = None
    certificates: bool = False

    def progress(self, items: Iterable[Item], label: str) -> Iterable[Item]:
        """`items` with a progress bar on stderr, when that is wanted."""
        if not self.show_progress:
            return items
        from tqdm import tqdm

        return tqdm(items, desc=label)

    def time(self, thunks, **keywords) -> dict[str, Timing]:
        """`time_interleaved(thunks)`, cut short in a smoke run."""
        limits = {"min_repeats": 3, "min_seconds": 0.05} if self.smoke else {}
        return time_interleaved(thunks, **(limits | keywords))
