"""Write docs/arguments.md, the arguments of every public function as it declares them:
`python docs/make_arguments.py`.
"""

import importlib
import inspect
import pathlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import jaxsac
from jaxsac._arguments import declared

PAGE = pathlib.Path(__file__).with_name("arguments.md")
HEAD = """# Arguments

Every call is converted and checked by this table; what it does not fit raises a ValueError that
names the argument. Integers and booleans are taken as real numbers, half precision is computed in
float32, and all real arrays of a call have one dtype. A letter is a size: the same one wherever a
call has it. Ranges are looked at where a value is concrete; a traced number out of its range is NaN
from then on, and NaN is in no range. `None` may stand where it is the default. Written by `python
docs/make_arguments.py`.
"""


def modules() -> Iterator[Any]:
    """The public modules, in the order of their names."""
    yield jaxsac
    for found in sorted(pkgutil.walk_packages(jaxsac.__path__, "jaxsac."), key=lambda m: m.name):
        inner = found.name.split(".")[1:]
        hidden = any(part.startswith("_") for part in inner)
        if found.ispkg and not hidden and inner[0] != "numpyro":  # an extra
            yield importlib.import_module(found.name)


def page() -> str:
    """The text of the page: each function once, under its shortest name."""
    lines, seen = [HEAD], set()
    for module in modules():
        rows = []
        for name, function in sorted(vars(module).items()):
            if name.startswith("_") or not callable(function) or not declared(function):
                continue
            if id(function) not in seen:
                seen.add(id(function))
                rows += table(f"{module.__name__}.{name}", function)
        lines += rows
    return "\n".join(lines) + "\n"


def table(name: str, function: Any) -> list[str]:
    parameters = inspect.signature(function).parameters
    lines = [
        f"## {name.removeprefix('jaxsac.')}",
        "",
        "| argument | what | default |",
        "|---|---|---|",
    ]
    for argument, kind in declared(function).items():
        known = parameters.get(argument)
        default = "" if known is None or known.default is known.empty else shown(known.default)
        what = str(kind).replace("|", "\\|")
        lines.append(f"| `{argument}` | {what} | {default} |")
    return [*lines, ""]


def shown(default: Any) -> str:
    """A default in a table: functions, and what holds them, by their name, since their repr has an
    address.
    """
    text = getattr(default, "__name__", None) or repr(default)
    return f"`{type(default).__name__ if ' at 0x' in text else text}`"


if __name__ == "__main__":
    PAGE.write_text(page())
