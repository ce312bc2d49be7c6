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


def test_no_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2 and "COMMAND" in capsys.readouterr().err
