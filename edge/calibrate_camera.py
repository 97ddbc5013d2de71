"""``vlar1 calibrate camera``: a camera's intrinsics from a printed board, with guidance; or the factory's, checked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from calib.board import BOARDS
from drivers.camera.source import KINDS
from drivers.robot import SO101_PATH


def register(commands: Any) -> None:
    """Add ``camera`` to the commands of ``vlar1 calibrate``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "camera",
        help="a camera's intrinsics, from a printed board",
        epilog="`vlar1 calibrate board --out board.pdf` makes the board to print.",
    )
    source = f"which camera: {KINDS}".replace("%", "%%")
    parser.add_argument("source", metavar="SOURCE", help=source)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.yaml", help="calibration file to write")
    parser.add_argument(
        "--board", choices=list(BOARDS), default="camera", help="the board that is shown (default: camera)"
    )
    parser.add_argument("--square-mm", type=float, metavar="MM", help="side of a printed square, measured")
    parser.add_argument("--check", action="store_true", help="check the intrinsics that the camera knows of itself")
    parser.add_argument(
        "--robot",
        type=Path,
        default=SO101_PATH,
        metavar="FILE",
        help="of the hand-eye calibration in FILE.yaml, if any",
    )
    parser.add_argument("--force", action="store_true", help="save a bad result, too")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    from edge.camera_calibration import run

    return run(args)
