"""Notebooks: the sources run from top to bottom, without a warning, and show what their text says;
beside each lies the same notebook executed, with pictures and with nothing of the machine.
"""

import ast
import base64
import getpass
import os
import pathlib
import re
import socket
import subprocess
import sys

import jupytext
import nbformat
import pytest

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"

# Runs a notebook's source as its cells would and counts what is drawn on the figures that it shows.
# Checks on its names follow.
RUNNER = """
import runpy, sys
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

figures = []
plt.show = lambda: (figures.append([axes.has_data() for axes in plt.gcf().axes]), plt.close())
names = runpy.run_path(sys.argv[1])
locals().update(names)
"""


# What the text of a notebook claims, as assertions on its names; `figures` has, per figure, whether
# each of its axes shows data.
CLAIMS = {
    "gibbs.py": """
assert len(figures) == 2 and deviation < 0.02 and spent.max() <= budget
assert scores[best].sum() >= scores[np.array(greedy)].sum()
""",
    "bilevel.py": """
assert len(figures) == 3 and area > 0.95 and spread[-1, 0] > 20 * spread[-1, 1]
even, ours, exact = (float(preferences(x, taught(x))) for x in rewards.values())
assert abs(ours - exact) < 1e-4 < 0.1 < even - exact
assert abs(value(path[-1]) - value(best)) < 1e-3 < 0.4 < value(best) - value(path[0])
""",
    "group_lasso.py": """
assert len(figures) == 2 and set(range(true)) <= set(kept.tolist())
assert share[:true].min() > 0.9 and np.mean(share[true:]) < 0.2
""",
    "route.py": """
assert recall["learnt from the log"][3] > 0.9 > recall["descriptions alone"][9]
assert why.tool == "mail_send" and seen.learn_again and (best[has] > at_least).mean() > 0.9
value = float(report.split("\\nvalue")[1].split()[0])
assert abs(value - mean) < 0.06
""",
    "subset_layer.py": """
last = {name: curve[:, -1].mean() for name, curve in curves.items()}
ours = [value for name, value in last.items() if "exactly 3" in name or "at most 3" in name]
others = [value for name, value in last.items() if value not in ours]
assert len(figures) == 1 and len(ours) == 2 and max(ours) < min(others) - 0.1
""",
    "subsample_q.py": """
gaps = [float(bound.gap) for bound in bounds.values()]
assert len(figures) == 2 and gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.6
assert np.all(found.global_visits > 0) and np.abs(paid - 3.6) < 1
""",
    "sparse_tool_router.py": """
assert [len(axes) for axes in figures] == [2, 1]
assert policy.support.tolist() == truth.support.tolist() and int(sol.status) == 0
assert deployed.kept.tolist() == policy.kept.tolist()
assert np.abs(np.asarray(fitted) - np.asarray(true)).max() < 0.12
for curve in curves.values():
    assert curve.mean[0] < 0.1 and curve.mean[-1] > 0.9 and int(curve.num_nonfinite.sum()) == 0
few, many = curves.values()  # fall together
assert np.all(np.abs(few.mean - many.mean) < 0.1 + 4 * (few.standard_error + many.standard_error))
""",
}

SOURCES = [path for path in sorted(NOTEBOOKS.glob("*.py")) if not path.stem.startswith("_")]
by_name = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)


@pytest.mark.slow  # half a minute each
@by_name
def test_notebooks_run_and_show_what_they_say(path):
    claims = "\nassert figures and all(all(axes) for axes in figures), figures\n" + CLAIMS.get(
        path.name, ""
    )
    root = NOTEBOOKS.parent
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "JAX_COMPILATION_CACHE_DIR": str(root / ".cache" / "jax"),
    }
    command = [sys.executable, "-W", "error", "-c", RUNNER + claims, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@by_name
def test_notebooks_are_short_and_in_the_percent_format(path):
    source = path.read_text(encoding="utf-8")
    assert source.startswith("# ---\n# jupyter:") and "format_name: percent" in source
    assert "# %%\n" in source and "# %% [markdown]\n" in source
    ast.parse(source)
    code = [
        line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")
    ]
    assert len(code) <= 130


@by_name
def test_the_executed_notebook_is_that_of_the_source(path):
    """Code and text, cell by cell: after a change run `python -m notebooks NAME`."""
    source = jupytext.read(path)
    executed = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    assert [(cell.cell_type, cell.source) for cell in executed.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ]
    nbformat.validate(executed)


@by_name
def test_the_executed_notebook_has_pictures_and_nothing_of_the_machine(path):
    executed = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    pictures = []
    for cell in executed.cells:
        assert cell.metadata == {} and cell.get("execution_count") is None
        for output in cell.get("outputs", ()):
            assert output.output_type != "error" and output.get("name") != "stderr"
            pictures += [output.data[kind] for kind in output.get("data", ()) if "image" in kind]
    sizes = [len(base64.b64decode(picture)) for picture in pictures]
    assert sizes and max(sizes) < 150_000
    text = path.with_suffix(".ipynb").read_text(encoding="utf-8")
    text = re.sub(r'"image/png": "[^"]*"', "", text)
    machine = {socket.gethostname(), str(NOTEBOOKS.parent), str(pathlib.Path.home())}
    machine |= {f"{getpass.getuser()}@", "/tmp/", "site-packages", "iopub"}
    assert not [name for name in machine if len(name) > 3 and name in text]
