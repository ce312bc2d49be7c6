"""Logs on disk: one JSON object a line, and beside it an optional `tools.json` that says what each
tool does, costs and belongs to.
"""

import difflib
import functools
import gzip
import hashlib
import json
import math
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxsac.route.tool_file import (
    LARGEST,
    LogError,
    Tool,
    is_number,
    named_once,
    read_embedding,
    read_tool_file,
    type_name,
)

_FIELDS = ("context", "tools", "utility", "group", "shown", "propensity", "embedding")


class RouteLog(NamedTuple):
    """T records of tool uses.

    * `contexts`: all texts [T], or floats [T, q].
    * `sets`: the tools used in each [T].
    * `utilities`: how well each went, floats [T].
    * `groups`: names [T] of related records, which stay on one side of a split.
    * `tools`: what is known about tools; may describe more or fewer than the records use.
    * `notes`: goes into the report.
    * `shown`: the tools that each record could choose from, None for all; None where none says.
    * `propensities`: chances with which the sets were chosen, floats [T], NaN where a record does
      not say; None where none does.
    * `embeddings`: of the texts, by the user's encoder, floats [T, d]; None where there are none.
    """

    contexts: list[str] | np.ndarray
    sets: list[tuple[str, ...]]
    utilities: np.ndarray
    groups: list[str]
    tools: dict[str, Tool]
    notes: dict[str, Any]
    shown: list[tuple[str, ...] | None] | None = None
    propensities: np.ndarray | None = None
    embeddings: np.ndarray | None = None

    def names(self) -> set[str]:
        """Every tool that is described, used or shown."""
        named = [*self.sets, *(tools for tools in self.shown or () if tools)]
        return set(self.tools).union(*named)

    def take(self, rows: Any) -> "RouteLog":
        """The records at the given positions, in that order."""
        rows = np.asarray(rows, int)

        def of(column):
            return column[rows] if isinstance(column, np.ndarray) else [column[row] for row in rows]

        fields = *self._fields[:4], "shown", "propensities", "embeddings"
        columns = {name: getattr(self, name) for name in fields}
        return self._replace(
            **{name: of(column) for name, column in columns.items() if column is not None}
        )


def read_log(path: str | os.PathLike[str], tools: str | os.PathLike[str] | None = None) -> RouteLog:
    """The log of a JSON-lines file: `{"context": "text" or [numbers], "tools": ["name", ...],
    "utility": 1.0, "group": "name", "shown": ["name", ...], "propensity": 0.5, "embedding":
    [numbers]}` a line. Packed with gzip where its name ends in `.gz`.

    `utility` defaults to 1, and `group` (records that must not be split between training and test:
    a session, a file) to one group per distinct context. `shown` names the tools that could be
    chosen, by default all; `propensity` in (0, 1] is the chance with which the set was chosen,
    where it was drawn; `embedding` is the text's by the user's encoder, in all records or in none,
    and a tool's may be in the tools file. Other fields are ignored, but for what looks like a
    misspelling of one that is not there; blank lines are skipped; a tool named twice in a record
    counts once.

    * `tools`: the path of a tools file, by default `tools.json` in the log's folder where there is
      one: `{"name": {"description": "text", "cost": 1.0, "family": "name"}}`, each field optional.

    Raises: LogError with the line numbers of whatever is anything else.
    """
    path = pathlib.Path(path)
    records, problems, first = [], [], ()
    for number, line in _lines(path):
        try:
            record = _record(line)
            kind = _kind(record)
            first = first or kind
            for name, own, other in zip(("context", "embedding"), kind, first, strict=True):
                if own != other:
                    message = f'"{name}" must be {other} as in the records before it, got {own}'
                    raise LogError(message)
            records.append(record)
        except LogError as error:
            problems.append(f"{path}, line {number}: {error}.")
            if len(problems) == 5:
                problems.append("(the first five problems; there may be more)")
                break
    if problems:
        raise LogError("\n".join(problems))
    if not records:
        raise LogError(
            f'{path}: no records. Each line is {{"context": "text" or [numbers],'
            ' "tools": ["name", ...], "utility": 1.0}.'
        )
    contexts = [record[0] for record in records]
    return RouteLog(
        contexts=contexts if isinstance(contexts[0], str) else np.asarray(contexts, float),
        sets=[record[1] for record in records],
        utilities=np.asarray([record[2] for record in records]),
        groups=[record[3] for record in records],
        tools=read_tool_file(
            path.parent / "tools.json" if tools is None else pathlib.Path(tools),
            needed=tools is not None,
        ),
        notes={"source": path.name},
        shown=[record[4] for record in records]
        if any(one[4] is not None for one in records)
        else None,
        propensities=(
            np.asarray([record[5] for record in records])
            if any(math.isfinite(one[5]) for one in records)
            else None
        ),
        embeddings=np.asarray([record[6] for record in records]) if records[0][6] else None,
    )


def write_log(folder: str | os.PathLike[str], log: RouteLog) -> None:
    """Write `log.jsonl` and `tools.json` into an existing folder; `read_log` reads the same log
    back.
    """
    folder = pathlib.Path(folder)
    with open(folder / "log.jsonl", "w", encoding="utf-8") as stream:
        stream.writelines(line + "\n" for line in log_lines(log))
    tools = {
        name: {field: value for field, value in tool._asdict().items() if value}
        for name, tool in sorted(log.tools.items())
    }
    (folder / "tools.json").write_text(
        json.dumps(tools, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )


def log_lines(log: RouteLog) -> Iterator[str]:
    """The log's records as JSON lines, without line ends."""
    for row, (context, tools, utility, group) in enumerate(
        zip(log.contexts, log.sets, log.utilities, log.groups, strict=True)
    ):
        text = context if isinstance(context, str) else np.asarray(context, float).tolist()
        record = {"context": text, "tools": list(tools), "utility": float(utility), "group": group}
        if log.shown is not None and (shown := log.shown[row]) is not None:
            record["shown"] = list(shown)
        if log.propensities is not None and math.isfinite(log.propensities[row]):
            record["propensity"] = float(log.propensities[row])
        if log.embeddings is not None:
            record["embedding"] = np.asarray(log.embeddings[row], float).tolist()
        yield json.dumps(record, ensure_ascii=False)


def log_hash(log: RouteLog) -> str:
    """Sixteen hexadecimal digits that two logs share if and only if (collisions aside) their
    records are equal.
    """
    digest = hashlib.sha256()
    for line in log_lines(log):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:16]


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise LogError(f"{path}: cannot be read ({why}).") from None


def _record(line: bytes) -> tuple[Any, ...]:
    """Context, tools, utility, group, tools shown or None, propensity or NaN, embedding or ()."""
    try:
        data = json.loads(line.decode("utf-8").rstrip(), object_pairs_hook=named_once)
        if b"\\ud" in line.lower():
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise LogError(f"not UTF-8 at byte {error.start + 1}") from None
    except UnicodeEncodeError:
        raise LogError("holds half of a character (a lone surrogate)") from None
    except json.JSONDecodeError as error:
        raise LogError(f"not JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise LogError("not a record: too deeply nested") from None
    if not isinstance(data, dict):
        raise LogError(f"must be an object with context and tools, got {type_name(data)}")
    for field in data:
        meant = _meant(field)
        if meant and meant not in data:
            raise LogError(f'"{field}" is no field: did you mean "{meant}"?')
    for field in ("context", "tools"):
        if field not in data:
            raise LogError(f'"{field}" is missing')
    context, utility = data["context"], data.get("utility", 1.0)
    if isinstance(context, list):
        if not context or not all(is_number(number) for number in context):
            raise LogError('"context" must be a text or a non-empty list of finite numbers')
        context = [float(number) for number in context]
    elif not isinstance(context, str) or not context.strip():
        raise LogError(
            f'"context" must be a non-empty text or a list of numbers, got {type_name(context)}'
        )
    used, shown = _names("tools", data["tools"]), data.get("shown")
    shown = None if shown is None else _names("shown", shown)
    if shown is not None and (others := set(used).difference(shown)):
        raise LogError(f'"shown" must hold the tools that were used: {min(others)} is not there')
    if not is_number(utility):
        raise LogError(f'"utility" must be a finite number, got {utility!r}')
    if abs(utility) > LARGEST:
        raise LogError(f'"utility" must be at most {LARGEST:g} in size, got {utility!r}')
    propensity = math.nan if data.get("propensity") is None else data["propensity"]
    if propensity is not math.nan and not (is_number(propensity) and 0 < propensity <= 1):
        raise LogError(f'"propensity" must be a number in (0, 1], got {propensity!r}')
    group = data.get("group", None)
    if group is None:
        group = (
            " ".join(context.split()).casefold()
            if isinstance(context, str)
            else json.dumps(context)
        )
    elif not isinstance(group, str):
        raise LogError(f'"group" must be a text, got {type_name(group)}')
    embedding = read_embedding(data.get("embedding"))
    if embedding and not isinstance(context, str):
        raise LogError('"embedding" goes with a text as "context"')
    return context, used, float(utility), group, shown, float(propensity), embedding


def _names(field: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(
        isinstance(name, str) and name.strip() for name in value
    ):
        raise LogError(f'"{field}" must be a list of names (non-empty texts)')
    return tuple(sorted(set(value)))


@functools.lru_cache
def _meant(field: str) -> str:
    """The field that one which is none may be a misspelling of, or ""."""
    near = difflib.get_close_matches(field, _FIELDS, 1, 0.8) if field not in _FIELDS else []
    return near[0] if near else ""


def _kind(record: tuple[Any, ...]) -> tuple[str, str]:
    """Of the context and of the embedding."""
    context, embedding = record[0], record[6]
    text = "a text" if isinstance(context, str) else f"a list of {len(context)} numbers"
    return text, f"a list of {len(embedding)} numbers" if embedding else "absent"
