"""What a room reports, and how it is written: JSON for programs, Markdown for people, PNG for the
eye. Never pickle.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Row = Mapping[str, Any]


class Report(NamedTuple):
    """`tables`: rows (dicts of plain numbers, texts, booleans) under a heading each; `notes`:
    sentences; `plot(figure)` draws on a figure.

    What was not measured is the text "not run"; nothing is extrapolated.
    """

    tables: Mapping[str, Sequence[Row]]
    notes: Sequence[str] = ()
    plot: Callable[[Any], None] | None = None


def paragraphs(text: str) -> list[str]:
    """Notes from one text: a blank line between two, line breaks within one dropped."""
    return [" ".join(part.split()) for part in text.strip().split("\n\n")]


def markdown(room: str, report: Report, machine: Mapping[str, Any]) -> str:
    """The report as Markdown: tables, notes, and one line about the machine."""
    parts = [f"# {room}"]
    for heading, rows in report.tables.items():
        parts += [f"## {heading}", markdown_table(rows)]
    if report.notes:
        parts.append("\n".join(f"- {note}" for note in report.notes))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    rates = ", ".join(f"{name} {_cell(rate)}" for name, rate in machine.get("rates", {}).items())
    parts.append(
        f"Machine: {machine['device']} ({machine['num_devices']} device(s)); {machine['cpu']}, "
        f"{machine['cores']} cores; {machine.get('dtype', '')}; {rates}; {versions}; commit "
        f"{machine['commit'][:12]}."
    )
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[Row]) -> str:
    """A Markdown table whose columns are the keys in order of first appearance."""
    if not rows:
        return "(no rows)"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += [
        "| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows
    ]
    return "\n".join(lines)


def write(room: str, report: Report, machine: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ROOM-DTYPE-DEVICE.json, .md and, where the room draws, .png under `folder`; returns the
    paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", str(machine["device"]).lower()).strip("-")
    stem = "-".join(
        [room, machine.get("dtype", "any"), device] + (["smoke"] if machine.get("smoke") else [])
    )
    document = {
        "room": room,
        "machine": machine,
        "tables": report.tables,
        "notes": list(report.notes),
    }
    paths = [folder / f"{stem}.json", folder / f"{stem}.md"]
    paths[0].write_text(
        json.dumps(plain(document), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    paths[1].write_text(markdown(room, report, machine), encoding="utf-8")
    if report.plot is not None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 5), layout="constrained")
        FigureCanvasAgg(figure)
        report.plot(figure)
        paths.append(folder / f"{stem}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def plain(value: Any) -> Any:
    """`value` in JSON's types: numpy and jax scalars and arrays become numbers and lists, what is
    not finite becomes text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return plain(np.asarray(value).tolist())


def _cell(value: Any) -> str:
    value = plain(value)
    if isinstance(value, float):
        return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
