"""``vlar1 calibrate hand-eye``: where the camera is on the robot, and the arm's joint zeros."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drivers.camera.source import KINDS
from drivers.robot import SO101_PATH

VIEWS = 15


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``vlar1 calibrate``."""
    parser = commands.add_parser("hand-eye", help="where the camera is on the robot, and the arm's joint zeros")
    source = f"which camera: {KINDS}".replace("%", "%%")
    parser.add_argument("source", metavar="SOURCE", nargs="?", help=source)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="calibration file; its intrinsics are used"
    )
    parser.add_argument("--robot", type=Path, default=SO101_PATH, metavar="FILE", help="default: the shipped so101")
    parser.add_argument("--port", metavar="P", help="serial port (default: the robot file's)")
    parser.add_argument(
        "--mount",
        choices=("base", "gripper"),
        default="base",
        help="what carries the camera: base (default; the gripper holds the board) or gripper (the board lies still)",
    )
    parser.add_argument("--square-mm", type=float, metavar="MM", help="side of a printed square, measured")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--by-hand", action="store_true", help="torque stays off; move the arm from view to view yourself")
    how.add_argument("--again", action="store_true", help="solve FILE's own views again, without camera and arm")
    how.add_argument(
        "--camera-at",
        type=_metres,
        nargs=2,
        metavar=("X,Y,Z", "TO_X,Y,Z"),
        help="where the camera is and what it looks at, base frame, metres, to 3 cm: spares showing it the board first",
    )
    parser.add_argument("--views", type=int, default=VIEWS, metavar="N", help=f"how many (default: {VIEWS})")
    parser.add_argument(
        "--yes", action="store_true", help="the board is in place and the arm's way is clear: do not ask"
    )
    parser.add_argument("--force", action="store_true", help="save a bad result, too")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    from edge.hand_eye import run

    return run(args)


def _metres(text: str) -> NDArray[np.float64]:
    try:
        point = np.array([float(part) for part in text.split(",")])
    except ValueError:
        point = np.zeros(0)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise argparse.ArgumentTypeError(
            f"'{text}': expected three numbers with commas between them, such as 0.5,0,0.4"
        )
    return point
