"""The README is true: its examples run as written, its commands name what exists, and its test
command is what `.ci/run` runs.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(1, len(EXAMPLES) + 1))
def test_every_example_runs_as_a_user_would_run_it(number, tmp_path):
    """With jax's own defaults (float32, plain promotion), outside the checkout."""
    program = f"exec(compile({EXAMPLES[number - 1]!r}, 'README example {number}', 'exec'), {{}})"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_line_commands():
    assert len(EXAMPLES) >= 6
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2, "one for the main job, one for the tests"
    assert "jaxsac route" in commands[0] and "pytest" in commands[1]
    assert all("-c constraints.txt" in command for command in commands)


def test_benchmark_commands_name_rooms_that_exist():
    rooms = set(re.findall(r"python -m benchmarks (\w+)", README))
    assert rooms and all((ROOT / "benchmarks" / "rooms" / f"{room}.py").exists() for room in rooms)


def test_pins_name_versions_only():
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(
            r"#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.]+( ; python_version [<>=]+ \"[0-9.]+\")?", line
        ), line
