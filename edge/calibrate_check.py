"""``vlar1 calibrate check``: whether a hand-eye calibration still holds, seen and touched."""

from __future__ import annotations

import argparse
from pathlib import Path

from drivers.camera.source import KINDS
from drivers.robot import SO101_PATH


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``vlar1 calibrate``."""
    parser = commands.add_parser(
        "check",
        help="whether the camera has moved since the hand-eye calibration (exit code 0: still valid; 1: no, or unsure)",
    )
    parser.add_argument("calibration", type=Path, metavar="CALIBRATION", help="the hand-eye calibration's file")
    source = f"which camera: {KINDS}".replace("%", "%%")
    parser.add_argument("--camera", required=True, metavar="SOURCE", help=source)
    parser.add_argument("--robot", type=Path, default=SO101_PATH, metavar="FILE", help="default: the shipped so101")
    parser.add_argument("--port", metavar="P", help="serial port (default: the robot file's)")
    parser.add_argument(
        "--overlay", type=Path, metavar="FILE.png", help="write the picture with the arm's own model drawn on it"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--go", action="store_true", help="the arm goes where it stood for the calibration's picture; parks"
    )
    how.add_argument("--live", action="store_true", help="show the arm's model on the picture until q or Ctrl-C")
    how.add_argument("--touch", action="store_true", help="put the tip to a board's corners by hand, and measure")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    from edge.still_valid import run

    return run(args)
