"""Plots draw on the axes they are given and touch nothing else."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxsac import plotting


@pytest.fixture
def axes():
    return Figure().subplots()


def test_learning_curves(axes):
    curves = {"sparse": ([0.1, 0.2], [0.01, 0.02]), "new": ([0.1, np.nan], [0.01, np.nan])}
    assert plotting.learning_curves(axes, [800, 2000], curves, "nDCG@8") is axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["sparse", "new"]
    assert axes.get_ylabel() == "nDCG@8" and [
        label.get_text() for label in axes.get_xticklabels()
    ] == ["800", "2,000"]
    np.testing.assert_allclose(axes.containers[0].lines[0].get_ydata(), [0.1, 0.2])
    axes.figure.canvas.draw()


def test_strengths_show_the_largest_on_top(axes):
    assert plotting.strengths(axes, ["a", "b", "c" * 60], [1.0, 3.0, 2.0], limit=2) is axes
    assert [patch.get_width() for patch in axes.patches] == [3.0, 2.0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == "b" and len(labels[1]) == 44 and axes.yaxis_inverted()
    axes.figure.canvas.draw()


def test_no_strengths(axes):
    plotting.strengths(axes, [], []).figure.canvas.draw()


def test_methods_are_sorted(axes):
    plotting.methods(axes, {"dense": (0.2, 0.01), "sparse": (0.3, 0.02)}, "recall")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dense", "sparse"]


def test_reliability_has_its_diagonal(axes):
    assert plotting.reliability(axes, [0.1, 0.8], [0.2, 0.7]) is axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), axes.lines[0].get_xdata())
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[0.1, 0.2], [0.8, 0.7]])
    with pytest.raises(ValueError, match=r"used must have shape \[2\]"):
        plotting.reliability(axes, [0.1, 0.8], [0.2])


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, jaxsac.plotting; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
