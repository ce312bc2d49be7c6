"""The command line: `jaxsac route` (the main job) and `jaxsac devices`."""

import argparse
import sys

import jax

from jaxsac import _canary
from jaxsac.route import command


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="jaxsac", description="Decision making over huge action spaces."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command.add_parser(commands)
    devices = commands.add_parser(
        "devices",
        help="list the devices that JAX has",
        description="List the devices that JAX has.",
    )
    devices.set_defaults(run=list_devices)
    given = parser.parse_args(arguments)
    return given.run(given)


def list_devices(given: argparse.Namespace) -> int:
    """Print one line for each device, which backend is the default, and sums that it gets
    wrong.
    """
    for device in jax.devices():
        print(f"{device.id}  {device.platform}  {device.device_kind}")
    print(f"default: {jax.default_backend()}, JAX {jax.__version__}")
    wrong = list(_canary.wrong_sums())
    for name in wrong:
        print(f"WRONG: {name}. Install another jaxlib (0.10.2 is known to be wrong on CPUs).")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
