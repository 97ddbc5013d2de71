"""``vlar1 deploy``: a bundle and a robot file onto a board over ssh, built, examined and measured there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edge.shipped import SHIPPED_BUNDLE

FOLDER = "~/.local/share/vlar1"
REPORTS = Path("runs/deploy")


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "deploy",
        help="put a bundle and a robot file onto a board over ssh, and measure it there",
        description="Over ssh: installs this vlar1 on the board where it is missing or another, copies a bundle and a "
        "robot file, builds TensorRT engines where it can, runs doctor and profile there and prints what they found. "
        "Only what differs is copied, and no arm moves. Exit code 1: something is missing there, or failed.",
    )
    parser.add_argument("host", metavar="HOST", help="as ssh takes it, for example user@jetson.local")
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="model bundle (default: the shipped one)")
    parser.add_argument("--robot", type=Path, metavar="FILE", help="robot file; the model that it names goes along")
    parser.add_argument("--to", default=FOLDER, metavar="DIR", help=f"folder on the board (default: {FOLDER})")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Deploy and print; 0, or 1 where the board lacks something, or building or measuring failed there."""
    from edge.deploy import steps

    return steps.deploy(args.host, args.bundle, args.robot, args.to, REPORTS)
