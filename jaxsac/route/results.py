"""The folder that a run writes: the report, its numbers, a plot, the router, and the page of the
diagnosis where it was asked for.
"""

import json
import math
import os
import pathlib
import shutil
import tempfile
import warnings
from typing import Any

from jaxsac.route import report
from jaxsac.route.job import Earlier, Result
from jaxsac.route.log_file import LogError
from jaxsac.route.router import Router, save_router

REPORT, NUMBERS, PLOT, DIAGNOSIS = "report.txt", "report.json", "route.png", "diagnosis.html"


def check_out(folder: pathlib.Path) -> None:
    """Raise LogError where a run could not be put at `folder`: something else is there. An earlier
    run's folder may be replaced.
    """
    if not folder.parent.is_dir():
        raise LogError(
            f"--out {folder}: the folder {folder.parent} does not exist: create it, or choose"
            " another."
        )
    earlier = (folder / NUMBERS).is_file()
    if folder.exists() and not earlier and (not folder.is_dir() or any(folder.iterdir())):
        raise LogError(
            f"--out {folder}: holds something else than an earlier run: choose another name."
        )


def write(folder: pathlib.Path, result: Result) -> list[pathlib.Path]:
    """Put a run's results at `folder`: written elsewhere first, then renamed whole, so that no run
    is ever half there. Returns the paths.
    """
    check_out(folder)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        (scratch / REPORT).write_text(report.text(result), encoding="utf-8")
        numbers = json.dumps(_plain(result.summary), indent=1, allow_nan=False)
        (scratch / NUMBERS).write_text(numbers + "\n", encoding="utf-8")
        with warnings.catch_warnings():  # scripts that the plot's font does not have
            warnings.filterwarnings("ignore", r"Glyph .* missing")
            report.figure(result).savefig(scratch / PLOT, dpi=130)
        if isinstance(result.router, Router):
            save_router(scratch, result.router)
        else:
            result.router.save(scratch)
        if result.diagnosis is not None:
            (scratch / DIAGNOSIS).write_text(report.page(result), encoding="utf-8")
        scratch.chmod(0o755)
        old = scratch.with_name(f"{scratch.name}.old")
        if folder.exists():
            os.replace(folder, old)
        os.replace(scratch, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sorted(folder.iterdir())


def read_earlier(folder: pathlib.Path) -> Earlier:
    """The penalty, the number of records and the kind of an earlier run."""
    path = folder / NUMBERS
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        lam, records = numbers["certificate"]["lam"], numbers["split"]["training"]
        if not 0 < lam < math.inf:
            raise ValueError
        return Earlier(float(lam), int(records), "router" in numbers)
    except (OSError, ValueError, KeyError, TypeError):
        raise LogError(
            f"{path}: not the numbers of an earlier run: --update takes the folder that --out"
            " wrote."
        ) from None


def _plain(value: Any) -> Any:
    """JSON without NaN: a number that does not exist is null."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
