"""What is known of tools, and the files and lists that say it: our own form, MCP's and OpenAI's."""

import json
import math
import os
import pathlib
import warnings
from typing import Any, NamedTuple


class LogError(ValueError):
    """A log or a tools file that cannot be used; the message names the file, the line and what is
    wrong.
    """


class Tool(NamedTuple):
    """What is known about a tool beside its name; all optional."""

    description: str = ""  # a sentence or two
    cost: float = 0.0  # tokens, seconds: the user's unit; >= 0
    family: str = ""  # the tools of one family have one name here
    parameters: str = ""  # the names and descriptions of its parameters, as one text
    embedding: tuple[float, ...] = ()  # of all that, by the user's encoder

    def text(self, name: str) -> str:
        """All of it as one text: family, name, description, parameters."""
        known = self.family, name, self.description, self.parameters
        return " ".join(part for part in known if part)


LARGEST = 1e100  # of a number in a log: squares and sums of them are numbers
_FORM = '{"tool name": {"description": "text", "cost": 1.0, "family": "name"}}'
_SCHEMAS = "inputSchema", "input_schema", "parameters"  # MCP's, Anthropic's, OpenAI's
_KNOWN = {*Tool._fields, *_SCHEMAS, "name", "type", "title", "annotations", "strict"}
_KNOWN |= {"outputSchema", "_meta", "icons", "execution"}


def read_tools(source: Any) -> dict[str, Tool]:
    """Tools by name, of a file or of what it would hold: an object {"name": {"description", "cost",
    "family", "inputSchema"}}, an MCP `tools/list` answer, or a list of OpenAI tool definitions.

    Raises: LogError for anything else; unknown keys are ignored with one warning.
    """
    if isinstance(source, str | os.PathLike):
        return read_tool_file(pathlib.Path(source), needed=True)
    return _tools_of(source, "tools")


def read_tool_file(path: pathlib.Path, needed: bool) -> dict[str, Tool]:
    """The tools of a file; none where it is not `needed` and not there."""
    if not needed and not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=named_once)
        json.dumps(data, ensure_ascii=False).encode()
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise LogError(f"{path}: not UTF-8 at byte {error.start + 1}.") from None
    except UnicodeEncodeError:
        raise LogError(f"{path}: holds half of a character (a lone surrogate).") from None
    except LogError as error:
        raise LogError(f"{path}: {error}.") from None
    except (json.JSONDecodeError, RecursionError) as error:
        where = (
            f" at line {error.lineno}, column {error.colno}: {error.msg}"
            if isinstance(error, json.JSONDecodeError)
            else ": too deeply nested"
        )
        raise LogError(f"{path}: not JSON{where}.") from None
    return _tools_of(data, str(path))


def _tools_of(data: Any, source: str) -> dict[str, Tool]:
    if isinstance(data, dict):
        data = data.get("result", data) if "jsonrpc" in data else data
        if isinstance(data, dict) and isinstance(data.get("tools"), list):
            data = data["tools"]
    pairs = list(data.items()) if isinstance(data, dict) else []
    if isinstance(data, list):
        for number, one in enumerate(data, start=1):
            one = one.get("function", one) if isinstance(one, dict) else one
            if not isinstance(one, dict) or not isinstance(one.get("name"), str):
                raise LogError(
                    f'{source}: item {number} of the list must be an object with a "name", as in an'
                    " MCP tools/list answer or OpenAI tool definitions."
                )
            pairs.append((one["name"], one))
    elif not isinstance(data, dict):
        raise LogError(f"{source}: must be an object {_FORM}, got {type_name(data)}.")
    tools, ignored = {}, set()
    for name, fields in pairs:
        if not isinstance(name, str) or not name.strip():
            raise LogError(f"{source}: a tool's name must be a non-empty text, got {name!r}.")
        if name in tools:
            raise LogError(f'{source}: tool "{name}" is there twice: keep one.')
        tools[name] = _tool(f'{source}, tool "{name}":', fields)
        ignored |= set(fields) - _KNOWN
    if ignored:
        names = ", ".join(sorted(ignored)[:5])
        warnings.warn(f"{source}: ignored what is said as {names}.", stacklevel=4)
    return tools


def _tool(about: str, fields: Any) -> Tool:
    if not isinstance(fields, dict):
        raise LogError(
            f"{about} must be an object with description, cost or family, got {type_name(fields)}."
        )
    schemas = [fields[name] for name in _SCHEMAS if name in fields]
    told = " ".join(filter(None, map(_parameters, schemas)))
    own = {name: fields[name] for name in ("description", "cost", "family") if name in fields}
    embedding = read_embedding(fields.get("embedding"), about)
    tool = Tool(**own, parameters=told, embedding=embedding)
    for field in ("description", "family"):
        if not isinstance(value := getattr(tool, field), str):
            raise LogError(f'{about} "{field}" must be a text, got {type_name(value)}.')
    if not is_number(tool.cost) or tool.cost < 0:
        raise LogError(f'{about} "cost" must be a finite number >= 0, got {tool.cost!r}.')
    return tool._replace(cost=float(tool.cost))


def read_embedding(value: Any, about: str = "") -> tuple[float, ...]:
    """The numbers of an embedding, () for none."""
    value = () if value is None else value
    numbers = isinstance(value, list | tuple) and all(map(is_number, value))
    if not numbers or any(abs(number) > LARGEST for number in value):
        raise LogError(f'{about} "embedding" must be a list of finite numbers'.strip())
    return tuple(map(float, value))


def _parameters(schema: Any, depth: int = 0) -> str:
    """The names and descriptions of a JSON schema's properties, those inside them too."""
    if isinstance(schema, str):
        return schema
    if not isinstance(schema, dict) or depth > 8:
        return ""
    inside = schema.get("properties")
    parts = []
    for name, one in inside.items() if isinstance(inside, dict) else ():
        about = one.get("description") if isinstance(one, dict) else None
        parts += [str(name), about if isinstance(about, str) else "", _parameters(one, depth + 1)]
    parts.append(_parameters(schema.get("items"), depth + 1))
    return " ".join(part for part in parts if part)


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON that names nothing twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise LogError(f'"{twice}" is there twice: keep one')
    return found


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    try:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(float(value))
        )
    except OverflowError:
        return False


def type_name(value: Any) -> str:
    """What JSON calls it."""
    return {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a boolean",
        type(None): "null",
    }.get(type(value), "a number")
