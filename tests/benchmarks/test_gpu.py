"""The run for the owner of a GPU, rehearsed: it compares, it keeps what it has, it ends in time."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.cases import gpu_cases, gpu_rows
from benchmarks.cases.gpu_cases import Answer


def command(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu", "--smoke", "--out", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text()), (folder / "results.md").read_text()


@pytest.mark.slow
def test_a_rehearsal(tmp_path):
    found, text = command(tmp_path, "--only", "soft_solve", "--only", "gibbs.log_partition, a mill")
    assert {row["dtype"] for row in found["tables"][gpu.RATES]} == {"float32", "float64"}
    cases, rows = (found["tables"][name] for name in (gpu.CASES, gpu.ROWS))
    assert [row["dtype"] for row in cases] == ["float32", "float64"]
    assert all(row["agrees"] and row["status"] == "CONVERGED" for row in cases)
    assert [row["dtype"] for row in rows] == ["float32", "float64"]
    assert all(row["finite"] and row["per second"] > 0 for row in rows)
    assert jax.default_backend() != "cpu" or "No GPU" in text
    assert "soft_solve" in text and found["machine"]["versions"]["jax"] == jax.__version__


def test_it_ends_in_time_and_keeps_what_it_has(tmp_path):
    found, text = command(tmp_path, "--minutes", "0.02")
    assert "Stopped when the time was over" in text
    assert all("not run" in row["failed"] for row in found["tables"][gpu.ROWS])


def test_a_row_that_is_interrupted_says_so(tmp_path, monkeypatch):
    results = gpu.Results(tmp_path, gpu.machine_record(), [])
    monkeypatch.setattr(gpu.os, "_exit", lambda code: None)
    results.measure(gpu.ROWS, {"row": "slow"}, lambda: results.stop() or {})
    rows = json.loads((tmp_path / "results.json").read_text())["tables"][gpu.ROWS]
    assert rows[0] == {"row": "slow", "failed": "not run: the time was over"}


def test_a_row_that_fails_is_a_row(tmp_path):
    results = gpu.Results(tmp_path, gpu.machine_record(), [])

    def fails():
        raise RuntimeError("no memory\nand a long story")

    results.measure(gpu.ROWS, {"row": "large"}, fails)
    results.measure(gpu.ROWS, {"row": "small"}, lambda: {"ms": 1.0})
    rows = json.loads((tmp_path / "results.json").read_text())["tables"][gpu.ROWS]
    assert rows == [
        {"row": "large", "failed": "RuntimeError: no memory"},
        {"row": "small", "ms": 1.0},
    ]
    assert "no memory" in (tmp_path / "results.md").read_text()


@pytest.fixture
def case(monkeypatch):
    tolerance = {"float32": 1e-3, "float64": 1e-6}
    case = type("Case", (), {"tolerance": tolerance})
    monkeypatch.setattr(gpu_cases, "registered", lambda: {"a": case})

    def answer(value=(1.0, 2.0), status=0, error=1e-8, gradient=(3.0,)):
        return Answer([np.array(value)], [status], error, [np.array(gradient)], 1.0, 0.1)

    return answer


def test_answers_are_held_to_the_contract(case):
    agrees = gpu_cases.compare("a", "float64", case((1.0, 2.0 + 1e-6)), case())
    assert agrees["agrees"] and agrees["value"] == pytest.approx(5e-7)
    assert gpu_cases.compare("a", "float64", case((np.nan, np.inf)), case((np.nan, np.inf)))[
        "agrees"
    ]
    for wrong in (
        case((1.0, 2.1)),
        case((1.0, np.nan)),
        case((1.0, np.inf)),
        case((1.0,)),
        case(gradient=(3.1,)),
        case(status=1),
        case(error=1e-5),
    ):
        assert not gpu_cases.compare("a", "float64", wrong, case())["agrees"]
    assert gpu_cases.compare("a", "float32", case((1.0, 2.001)), case())["agrees"]


def test_what_was_asked_for_alone_is_run():
    assert gpu.chosen(gpu_rows.ROWS, []) == list(gpu_rows.ROWS)
    assert gpu.chosen(gpu_rows.ROWS, ["logistic"]) == ["group_lasso.solve, logistic"]
