"""What the owner of a GPU runs first: the machine's rates, every contract case against the CPU of
the same run, then each part at sizes that fill a card. `results.json` and `results.md` are written
anew after each row, so that a run that is killed loses one.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from benchmarks.cases import gpu_cases, gpu_rows
from benchmarks.harness import NOT_RUN, Report, configure, machine_record, paragraphs
from benchmarks.harness.machine import card_rates
from benchmarks.harness.report import markdown, plain
from benchmarks.harness.timing import summary

DTYPES = ("float32", "float64")
SHARE_OF_CASES = 0.5  # of the time; what is left of the cases then waits for the rows
CASES, ROWS, RATES = "Contract cases, the device against the CPU", "Sizes that fill a card", "Rates"
NOTES = """
    Cases: value and gradient are the largest difference of any array from the CPU's, over the CPU's
    largest number in it; allowed: what the contract allows two certified answers.

    Rows: medians of repeats, first calls apart (they compile); nothing is extrapolated. GB_per_s:
    scores read and answers written once, the least that could be.
"""


class Clock:
    """Seconds that are left of a run."""

    def __init__(self, seconds: float):
        self.seconds, self.start = seconds, time.monotonic()

    def spent(self) -> float:
        return time.monotonic() - self.start

    def left(self) -> float:
        return self.seconds - self.spent()


class Results:
    """Tables that are on disk, whole, after each row."""

    def __init__(self, folder: pathlib.Path, machine: dict[str, Any], notes: list[str]):
        self.folder, self.machine, self.notes = folder, machine, notes
        self.tables: dict[str, list[dict[str, Any]]] = {RATES: [], CASES: [], ROWS: []}
        self.now: tuple[str, dict[str, Any]] | None = None
        self.lock = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)
        self.write()

    def measure(self, table: str, name: dict[str, Any], row: Callable[[], dict[str, Any]]) -> None:
        """Add the row, or the first line of what it raises."""
        with self.lock:
            self.now = (table, name)
        try:
            found = row()
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            found = {"failed": f"{type(error).__name__}: {first}"[:300]}
        with self.lock:
            self.now = None
            self.add(table, name | found)

    def add(self, table: str, row: dict[str, Any]) -> None:
        with self.lock:
            self.tables[table].append(row)
            self.write()
            print(json.dumps(plain(row)), flush=True)

    def write(self) -> None:
        report = Report(self.tables, self.notes)
        document = {"machine": self.machine, "tables": self.tables, "notes": self.notes}
        for name, text in (
            ("results.json", json.dumps(plain(document), indent=1, allow_nan=False) + "\n"),
            ("results.md", markdown("gpu", report, self.machine)),
        ):
            temporary = self.folder / f"{name}.tmp"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self.folder / name)

    def stop(self) -> None:
        """The time is over: nothing else than an exit interrupts a compiler."""
        with self.lock:
            self.notes.append("Stopped when the time was over; what is not here was not run.")
            if self.now is not None:
                table, name = self.now
                self.tables[table].append(name | {"failed": f"{NOT_RUN}: the time was over"})
            self.write()
            print(f"{self.notes[-1]} {self.folder / 'results.json'}", flush=True)
            os._exit(0)


@contextlib.contextmanager
def cpu_process() -> Iterator[Any]:
    """A pool of one process in which JAX has the CPU alone; it ends with the block, whatever it
    does then.
    """
    before = dict(os.environ)
    os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    try:
        pool = multiprocessing.get_context("spawn").Pool(1, configure, ("float64",))
    finally:
        os.environ.clear()
        os.environ.update(before)
    with pool:
        yield pool


def chosen(names: Any, only: list[str]) -> list[str]:
    return [name for name in names if not only or any(part in name for part in only)]


def run(results: Results, clock: Clock, *, small: bool, only: list[str]) -> None:
    """Everything in turn, the cases for their share of the time, what is left of them last."""
    for dtype in DTYPES:
        results.measure(RATES, {"dtype": dtype}, lambda dtype=dtype: card_rates(dtype, smoke=small))
    copy_rates = {row["dtype"]: row.get("copy_gb_per_s") for row in results.tables[RATES]}
    cases = [(name, dtype) for dtype in DTYPES for name in chosen(gpu_cases.registered(), only)]
    rows = [(name, dtype) for dtype in DTYPES for name in chosen(gpu_rows.ROWS, only)]
    with cpu_process() as pool:
        on_cpu = {case: pool.apply_async(gpu_cases.answer, case) for case in cases}

        def compared(case: tuple[str, str]) -> dict[str, Any]:
            device = gpu_cases.answer(*case)
            return gpu_cases.compare(*case, device, on_cpu[case].get(max(clock.left(), 1)))

        def measure_case(case: tuple[str, str]) -> None:
            name = {"case": case[0], "dtype": case[1]}
            results.measure(CASES, name, lambda: compared(case))

        waiting = list(cases)
        while waiting and clock.spent() < SHARE_OF_CASES * clock.seconds:
            measure_case(waiting.pop(0))
        for name, dtype in rows:
            if clock.left() > 0:
                results.measure(
                    ROWS,
                    {"row": name, "dtype": dtype},
                    lambda name=name, dtype=dtype: timed(
                        name, dtype, clock, small, copy_rates.get(dtype)
                    ),
                )
        while waiting and clock.left() > 0:
            measure_case(waiting.pop(0))
    done = {(row["case"], row["dtype"]) for row in results.tables[CASES]}
    done |= {(row["row"], row["dtype"]) for row in results.tables[ROWS]}
    for missing in [case for case in cases + rows if case not in done]:
        results.notes.append(f"{NOT_RUN}, the time was over: {', '.join(missing)}.")
    results.notes.append(f"{clock.spent():.0f} of {clock.seconds:.0f} s were used.")
    results.write()


def timed(
    name: str, dtype: str, clock: Clock, small: bool, copy_rate: float | None = None
) -> dict[str, Any]:
    """A row's first call, and its repeats for at most 2 s or a tenth of the time that is left."""
    work = gpu_rows.ROWS[name](small, dtype)

    def seconds() -> tuple[float, Any]:
        start = time.perf_counter()
        result = jax.block_until_ready(work.call())
        return time.perf_counter() - start, result

    first, result = seconds()
    limit = 0.05 if small else min(2.0, clock.left() / 10)
    samples = [seconds()[0]]
    while len(samples) < 20 and sum(samples) < limit:
        samples.append(seconds()[0])
    timing = summary(first, samples)
    traffic: dict[str, Any] = {}
    if work.moved:
        traffic["GB_per_s"] = work.moved / timing.median / 1e9
        if copy_rate:
            traffic["share of copy rate"] = traffic["GB_per_s"] / copy_rate
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "size": work.size,
        "per second": work.number / timing.median,
        "of": work.unit,
        **timing.row(),
        **traffic,
        **gpu_rows.judged(result),
        "peak memory so far GB": "" if memory is None else memory / 1e9,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="the whole run, at most")
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="folder of results.json and results.md"
    )
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, as without a GPU")
    parser.add_argument(
        "--only", action="append", default=[], help="cases and rows with this in their names"
    )
    given = parser.parse_args(arguments)
    clock = Clock(60 * given.minutes)
    configure("float64")
    on_cpu = jax.default_backend() == "cpu"
    notes = paragraphs(NOTES)
    if on_cpu:
        notes.insert(0, "No GPU: a rehearsal on the CPU with small sizes; its times mean nothing.")
        print(notes[0], flush=True)
    machine = machine_record() | {"dtype": "float32 and float64", "smoke": given.smoke or on_cpu}
    results = Results(given.out, machine, notes)
    timer = threading.Timer(max(clock.left(), 0), results.stop)
    timer.daemon = True
    timer.start()
    run(results, clock, small=given.smoke or on_cpu, only=given.only)
    timer.cancel()
    print(f"wrote {given.out / 'results.json'} and {given.out / 'results.md'}", flush=True)
    return 0
