"""Notebooks run from top to bottom, without a warning, and show what their text says."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"

# Runs a notebook's source as its cells would and counts what is drawn on the figures that it shows. Checks on its names follow.
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


def execute(name, checks):
    environment = os.environ | {"PYTHONPATH": str(NOTEBOOKS.parent)}
    command = [sys.executable, "-W", "error", "-c", RUNNER + checks, str(NOTEBOOKS / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_log_becomes_a_small_set_of_tools():
    checks = """
assert figures == [[True, True], [True]]
assert policy.support.tolist() == truth.support.tolist() and int(sol.status) == 0
assert deployed.kept.tolist() == policy.kept.tolist()
assert np.abs(np.asarray(fitted) - np.asarray(true)).max() < 0.2
for curve in curves.values():
    assert curve.mean[0] < 0.1 and curve.mean[-1] > 0.9 and int(curve.num_nonfinite.sum()) == 0
few, many = curves.values()  # fall together
assert np.all(np.abs(few.mean - many.mean) < 0.1 + 4 * (few.standard_error + many.standard_error))
"""
    execute("sparse_tool_router.py", checks)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.name)
def test_notebooks_are_short_and_in_the_percent_format(path):
    source = path.read_text(encoding="utf-8")
    assert source.startswith("# ---\n# jupyter:") and "format_name: percent" in source
    assert "# %%\n" in source and "# %% [markdown]\n" in source
    ast.parse(source)
    code = [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(code) <= 80
    assert not list(NOTEBOOKS.glob("*.ipynb")), "only the percent-format source is kept"
