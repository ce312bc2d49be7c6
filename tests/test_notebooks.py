"""Notebooks run from top to bottom, without a warning, and show what their text says."""

import ast
import os
import pathlib
import subprocess
import sys

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
    "sparse_tool_router.py": """
assert [len(axes) for axes in figures] == [2, 1]
assert policy.support.tolist() == truth.support.tolist() and int(sol.status) == 0
assert deployed.kept.tolist() == policy.kept.tolist()
assert np.abs(np.asarray(fitted) - np.asarray(true)).max() < 0.12
for curve in curves.values():
    assert curve.mean[0] < 0.1 and curve.mean[-1] > 0.9 and int(curve.num_nonfinite.sum()) == 0
few, many = curves.values()  # fall together
assert np.all(np.abs(few.mean - many.mean) < 0.1 + 4 * (few.standard_error + many.standard_error))
"""
}

SOURCES = sorted(NOTEBOOKS.glob("*.py"))
# The main job's notebook runs always, the other rooms' with the slow tests: each takes half a
# minute.
RUNS = [
    pytest.param(path, marks=() if path.name in CLAIMS else pytest.mark.slow, id=path.stem)
    for path in SOURCES
]


@pytest.mark.parametrize("path", RUNS)
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_notebooks_are_short_and_in_the_percent_format(path):
    source = path.read_text(encoding="utf-8")
    assert source.startswith("# ---\n# jupyter:") and "format_name: percent" in source
    assert "# %%\n" in source and "# %% [markdown]\n" in source
    ast.parse(source)
    code = [
        line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")
    ]
    assert len(code) <= 80
    assert not list(NOTEBOOKS.glob("*.ipynb")), "only the percent-format source is kept"
