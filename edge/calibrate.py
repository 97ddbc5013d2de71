"""``vlar1 calibrate``: whatever a robot must have measured of it before it is used, one command each."""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points
from typing import Any

# name = "module:register"; register(commands) adds the command's parser and sets its func(args) -> exit code.
GROUP = "vlar1.calibrate"


def register(subparsers: Any) -> None:
    """Add the subcommand, with the commands that the rooms have under `GROUP`; their modules are quick to import."""
    parser: argparse.ArgumentParser = subparsers.add_parser("calibrate", help="measure what the robot relies on")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        entry.load()(commands)
