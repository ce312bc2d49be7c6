"""`python -m benchmarks ROOM [--smoke] [--dtype float32|float64] [--out DIR] [--peers-python PATH]
[--certificates] [--quiet]`, and `python -m benchmarks gpu --minutes 5 --out DIR`.
"""

import argparse
import ast
import importlib
import os
import pathlib
import sys

from benchmarks.harness import Options, configure, machine_record, measured_rates, report as reports


def rooms() -> dict[str, str]:
    """The modules of `rooms/`, with their docstrings on one line."""
    return {
        path.stem: " ".join((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split())
        for path in sorted((pathlib.Path(__file__).parent / "rooms").glob("[!_]*.py"))
    }


def main(arguments: list[str] | None = None) -> int:
    available = rooms()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Time jaxsac and its peers on the same work."
    )
    parser.add_argument("name", nargs="?", help="one of: " + ", ".join(available))
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="the smallest sizes: does it run? (the figures mean nothing)",
    )
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument(
        "--out", type=pathlib.Path, help="folder for JSON, Markdown and PNG (default: print only)"
    )
    parser.add_argument(
        "--peers-python",
        default=os.environ.get("JAXSAC_PEERS_PYTHON"),
        help="the interpreter that has the peers (default: $JAXSAC_PEERS_PYTHON, else this one)",
    )
    parser.add_argument(
        "--logs",
        type=pathlib.Path,
        default=os.environ.get("JAXSAC_TOOL_LOGS"),
        help="for route: a folder of logs, each log.jsonl with its tools.json (default:"
        " $JAXSAC_TOOL_LOGS, else the mined log)",
    )
    parser.add_argument(
        "--certificates", action="store_true", help="for bilevel: only the tables of certificates"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["gpu"]:
        return importlib.import_module("benchmarks.gpu").main(arguments[1:])
    given = parser.parse_args(arguments)
    if given.name is None:
        print("\n".join(f"{name:20} {line}" for name, line in available.items()))
        print(f"{'gpu':20} One run for a GPU: cases against the CPU, then sizes that fill a card.")
        return 0
    if given.name not in available:
        print(
            f"no benchmark {given.name!r}; there are: {', '.join(available) or 'none'}",
            file=sys.stderr,
        )
        return 2

    configure(given.dtype)
    options = Options(
        given.smoke,
        given.dtype,
        given.out,
        given.peers_python,
        not given.quiet,
        given.logs,
        given.certificates,
    )
    machine = machine_record() | {
        "dtype": given.dtype,
        "smoke": given.smoke,
        "rates": measured_rates(given.dtype, smoke=given.smoke),
    }
    report = importlib.import_module(f"benchmarks.rooms.{given.name}").run(options)
    print(reports.markdown(given.name, report, machine))
    if given.out is not None:
        for path in reports.write(given.name, report, machine, given.out):
            print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
