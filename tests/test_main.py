"""The command line as a process of its own."""

import subprocess
import sys

import pytest

from jaxsac.__main__ import main


def test_devices(capsys):
    assert main(["devices"]) == 0
    assert "cpu" in capsys.readouterr().out


def test_help_names_the_commands_and_the_options():
    found = subprocess.run(
        [sys.executable, "-m", "jaxsac", "route", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for part in ("--budget", "--lam", "--out", "--policy", "tools.json", "examples:"):
        assert part in found.stdout


def test_it_starts_without_any_extra():
    """Of the third-party modules only what `pip install .` brings; `route` says what it needs."""
    program = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("matplotlib", "sklearn", "threadpoolctl", "tqdm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import jax  # brings scipy
sys.meta_path.insert(0, Absent())
from jaxsac.__main__ import main
assert main(["devices"]) == 0
assert main(["route", "--quiet"]) == 2
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "cpu" in found.stdout and "pip install 'jaxsac[route]'" in found.stderr


def test_no_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2 and "COMMAND" in capsys.readouterr().err
