"""The benchmark harness: what it times, what it writes, and that an absent peer is "not run". Times
themselves are never judged here.
"""

import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.__main__ import rooms
from benchmarks.harness import (
    Options,
    Report,
    machine_record,
    measured_rates,
    process,
    ratio,
    run_peer,
    time_interleaved,
    timing,
)
from benchmarks.harness.report import markdown, markdown_table, paragraphs, plain, write
from benchmarks.harness.timing import summary


def python(*arguments, folder=None):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, cwd=folder
    )


@pytest.fixture
def clock(monkeypatch):
    """Every call takes 10 ms."""

    def seconds(thunk):
        thunk()
        return 0.01

    monkeypatch.setattr(timing, "_seconds", seconds)


def test_thunks_take_turns_and_first_calls_are_apart(clock):
    calls = []

    def thunk(name):
        def run():
            calls.append(name)
            return jnp.zeros(())

        return run

    times = time_interleaved({"a": thunk("a"), "b": thunk("b"), "c": thunk("c")})
    assert calls[:6] == ["a", "b", "c", "a", "b", "c"]
    assert {name: time.repeats for name, time in times.items()} == {"a": 20, "b": 20, "c": 20}
    repeats = calls[6:]
    assert all(set(repeats[start : start + 3]) == {"a", "b", "c"} for start in range(0, 60, 3))
    assert {tuple(repeats[start : start + 3]) for start in range(0, 60, 3)} == {
        ("a", "b", "c"),
        ("b", "c", "a"),
        ("c", "a", "b"),
    }


def test_work_is_waited_for():
    class Result:
        waited = 0

        def block_until_ready(self):
            Result.waited += 1
            return self

    time_interleaved({"a": Result}, min_repeats=5, max_repeats=5)
    assert Result.waited == 7


@pytest.mark.parametrize(
    "limits, repeats",
    [
        ((20, 2, 2000), 20),
        ((20, 10, 2000), 100),
        ((500, 0.5, 2000), 50),
        ((500, 9, 30), 30),
        ((5, 0.01, 9), 3),
    ],
)
def test_limits(clock, limits, repeats):
    min_repeats, min_seconds, max_repeats = limits
    times = time_interleaved(
        {"a": lambda: None},
        min_repeats=min_repeats,
        min_seconds=min_seconds,
        max_repeats=max_repeats,
    )
    assert abs(times["a"].repeats - repeats) <= 1  # sums of 0.01 round


def test_statistics_and_the_verdict():
    steady = summary(5.0, [1.0, 1.1, 1.2, 1.0, 1.1])
    assert (steady.median, steady.minimum, steady.repeats, steady.unstable) == (1.1, 1.0, 5, False)
    assert steady.compile == pytest.approx(3.9)
    np.testing.assert_allclose(
        (steady.p10, steady.p90), np.quantile([1.0, 1.1, 1.2, 1.0, 1.1], [0.1, 0.9])
    )
    jumpy = summary(1.0, [1.0, 1.0, 1.0, 2.0, 2.0])
    assert (
        jumpy.unstable
        and jumpy.row()["verdict"] == "unstable"
        and ratio(steady, jumpy) == pytest.approx(1.1)
    )


PEER = """
    import os
    from clock import seconds

    def answer(arrays, settings):
        {body}
        times = seconds(lambda: None, min_repeats=4)
        threads = os.environ["OMP_NUM_THREADS"]
        numbers = {{"threads": threads, "lam": settings["lam"], "calls": len(times)}}
        return {{"double": 2 * arrays["x"]}}, numbers
"""


@pytest.fixture
def peers(tmp_path, monkeypatch):
    for name in ("serve.py", "clock.py"):
        (tmp_path / name).write_text((process.PEERS / name).read_text())
    for name, body in {
        "good": "",
        "absent": "import a_package_nobody_has",
        "broken": "raise RuntimeError('no luck')",
    }.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(PEER.format(body=body)))
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(process, "PEERS", tmp_path)


def test_a_peer_answers_from_its_own_process(peers):
    x = np.array([[1.5, np.nan]], np.float32)
    result = run_peer("good", {"x": x}, {"lam": 0.1}, threads=2)
    assert result.ok and result.numbers == {"threads": "2", "lam": 0.1, "calls": 4}
    np.testing.assert_array_equal(result.arrays["double"], 2 * x)
    assert result.arrays["double"].dtype == np.float32


def test_a_peer_that_is_not_there_is_not_run(peers, tmp_path):
    x = np.zeros(2)
    assert run_peer("absent", {"x": x}).status == "not run: No module named 'a_package_nobody_has'"
    assert run_peer("good", {"x": x}, python=str(tmp_path / "nowhere")).status.startswith(
        "not run: no such interpreter"
    )
    assert run_peer("broken", {"x": x}).status == "failed: RuntimeError: no luck"
    assert run_peer("slow", {"x": x}, timeout=0.5).status == "failed: over 0.5 s"


def test_the_machine_is_named_and_measured():
    machine = machine_record()
    assert {"cpu", "cores", "device", "versions", "commit"} <= machine.keys() and machine[
        "versions"
    ]["jax"] == jax.__version__
    assert json.loads(json.dumps(machine)) == machine
    rates = measured_rates("float32", smoke=True)
    assert set(rates) == {"copy_gb_per_s", "read_gb_per_s", "gemm_gflop_per_s"} and all(
        rate > 0 for rate in rates.values()
    )


def test_reports_are_written_for_programs_people_and_eyes(tmp_path):
    rows = [
        {"name": "ours", "ms": np.float32(1.5), "steps": jnp.int32(3)},
        {"name": "peer|x", "gap": float("nan"), "ms": "not run"},
    ]
    report = Report(
        {"times": rows, "empty": []},
        ["a note"],
        lambda figure: figure.subplots().plot([0, 1], [0, 1]),
    )
    machine = machine_record() | {"dtype": "float32", "rates": {"copy_gb_per_s": 12.0}}
    paths = write("probe", report, machine, tmp_path / "new" / "out")
    assert [path.name for path in paths] == [
        f"probe-float32-cpu.{suffix}" for suffix in ("json", "md", "png")
    ]
    document = json.loads(
        paths[0].read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON")
    )
    assert document["tables"]["times"] == [
        {"name": "ours", "ms": 1.5, "steps": 3},
        {"name": "peer|x", "gap": "nan", "ms": "not run"},
    ]
    assert document["machine"]["versions"]["jax"] == jax.__version__ and document["notes"] == [
        "a note"
    ]
    text = paths[1].read_text()
    assert text == markdown("probe", report, machine) and "- a note" in text and "(no rows)" in text
    assert markdown_table(rows).splitlines() == [
        "| name | ms | steps | gap |",
        "|---|---|---|---|",
        "| ours | 1.5 | 3 |  |",
        "| peer\\|x | not run |  | nan |",
    ]
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert paragraphs("""\n    one\n    two\n\n    three\n    """) == ["one two", "three"]
    assert plain({1: (np.arange(2), None, True)}) == {"1": [[0, 1], None, True]}


def test_options_keep_progress_off_stdout(capsys):
    assert list(Options().progress([1, 2], "rows")) == [1, 2]
    assert list(Options(show_progress=False).progress([1, 2], "rows")) == [1, 2]
    out, error = capsys.readouterr()
    assert out == "" and "rows" in error
    assert Options(smoke=True).time({"a": lambda: None})["a"].repeats >= 3


def test_the_command_runs_a_room_and_lists_them(tmp_path):
    program = f"""
        import sys, types
        import benchmarks.__main__ as command
        from benchmarks.harness import Report
        import jax.numpy as jnp

        def run(options):
            assert options.smoke and options.out is not None
            row = {{"dtype": str(jnp.ones(()).dtype), "peers": options.peers_python}}
            return Report({{"t": [row]}})

        sys.modules["benchmarks.rooms.probe"] = types.SimpleNamespace(run=run)
        command.rooms = lambda: {{"probe": "A probe."}}
        assert command.main([]) == 0
        assert command.main(["absent"]) == 2
        for dtype in ("float32", "float64"):
            options = ["--smoke", "--dtype", dtype, "--out", {str(tmp_path)!r}]
            assert command.main(["probe", *options, "--peers-python", "other"]) == 0
    """
    done = python("-W", "error", "-c", textwrap.dedent(program))
    assert done.returncode == 0, done.stderr
    assert (
        "A probe." in done.stdout
        and "| float32 | other |" in done.stdout
        and "| float64 | other |" in done.stdout
    )
    assert "no benchmark 'absent'; there are: probe" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"probe-{dtype}-cpu-smoke.{suffix}"
        for dtype in ("float32", "float64")
        for suffix in ("json", "md")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("room", rooms())
def test_every_room_runs(room, dtype, tmp_path):
    done = python(
        "-m", "benchmarks", room, "--smoke", "--quiet", "--dtype", dtype, "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"# {room}") and list(tmp_path.glob(f"{room}-{dtype}-*.json"))
