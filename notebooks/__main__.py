"""`python -m notebooks [NAME ...]`: executes the percent-format sources and writes each as an
.ipynb beside it, with its outputs.
"""

import argparse
import base64
import pathlib
import re
import sys
from collections.abc import Iterable

import jupytext
import nbclient
import nbformat

HERE = pathlib.Path(__file__).parent
SOURCES = [path for path in sorted(HERE.glob("*.py")) if not path.stem.startswith("_")]
LARGEST = 150_000  # bytes of a picture

# Before the first cell, and not kept: small pictures, no bars, no warnings about a missing display.
SETUP = """
import matplotlib_inline.backend_inline as backend
backend.set_matplotlib_formats("png", bbox_inches="tight")
import matplotlib.pyplot as plt
plt.rcParams["figure.dpi"] = 90
"""


def executed(path: pathlib.Path) -> nbformat.NotebookNode:
    """A source's notebook after a run from top to bottom, with nothing in it that changes from run
    to run or that names the machine.
    """
    notebook = jupytext.read(path)
    setup = nbformat.v4.new_code_cell(SETUP)
    notebook.cells.insert(0, setup)
    client = nbclient.NotebookClient(
        notebook, timeout=900, record_timing=False, resources={"metadata": {"path": str(HERE)}}
    )
    client.execute()
    notebook.cells.remove(setup)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook.metadata = nbformat.from_dict(metadata)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = joined(kept for output in cell.outputs if (kept := cleaned(output)))
    return notebook


def cleaned(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """An output without bars, counters, addresses of objects and other metadata; None if nothing is
    left.
    """
    if output.output_type == "stream":
        return None if output.name == "stderr" else output
    output.metadata = nbformat.from_dict({})
    if output.output_type == "execute_result":
        output.execution_count = None
    if "image/png" in output.data:
        size = len(base64.b64decode(output.data["image/png"]))
        if size > LARGEST:
            raise ValueError(f"a picture of {size:,} bytes: make it smaller.")
        output.data = nbformat.from_dict({"image/png": output.data["image/png"]})
    elif re.search(r"<.* at 0x|<Figure|\[<|Text\(", str(output.data.get("text/plain", ""))):
        return None
    return output


def joined(outputs: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """What a cell prints as one output: where the kernel cuts it changes from run to run."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m notebooks", description=__doc__)
    parser.add_argument("names", nargs="*", help="all, if none is given")
    wanted = parser.parse_args(arguments).names or [path.stem for path in SOURCES]
    for name in wanted:
        path = HERE / f"{name}.py"
        nbformat.write(executed(path), path.with_suffix(".ipynb"))
        print(f"wrote {path.with_suffix('.ipynb').name}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
