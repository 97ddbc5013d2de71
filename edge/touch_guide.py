"""The touch test with a person: torque off, the tip put to one corner of a board after the other by hand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from calib.board import Board
from calib.moved import LIMIT_MM
from calib.rigid import apply
from calib.touch import board_in_base, corners_to_touch, shifted_mm, touch_errors
from drivers.arm.servo_arm import ServoArm
from drivers.errors import UserError
from drivers.protocols import Camera
from edge.arm_calibration import with_torque
from edge.arm_keys import CLOSED, Keys
from edge.picture_file import write_picture
from edge.rays import project

if TYPE_CHECKING:
    from edge.still_valid import Checked

Array = NDArray[np.float64]

PICTURE = Path("touch.png")
_READS = 5  # averaged for a touch
_STAYED_MM = 1.5  # a board that moved further while it was touched spoils the test
_COLOUR, _HALO = (255, 72, 160), (16, 18, 22)


def run_touch(args: argparse.Namespace, what: Checked, arm: ServoArm, camera: Camera, console: Console) -> int:
    """Guide the person, measure and tell; 0 when the tip and the camera agree, else 1.

    Raises UserError when torque is on, no board is seen, it was shifted, or too few corners were touched.
    """
    if joints := with_torque(what.robot, arm.bus):  # type: ignore[arg-type]
        raise UserError(f"touch test: torque is on ({joints[0].name}); park the arm first with `vlar1 arm park`")
    board = what.calibration.board
    with Keys("calibrate check --touch") as keys:
        console.print(
            "lay the calibration board flat on the table, whole in the picture, the arm out of its way; enter"
        )
        if not _entered(keys):
            return 1
        T_base_board, corners, picture = _seen(what, arm, camera, board)
        path = args.overlay or PICTURE
        write_picture(path, picture)
        console.print(f"the corners are numbered in {path}; the board must stay as it lies", markup=False)
        touched: list[int] = []
        tips: list[Array] = []
        for k, corner in enumerate(corners):
            x, y, _ = 1e3 * corner
            console.print(f"corner {k + 1} (x {x:.0f}, y {y:.0f} mm): tip of the fixed jaw to it, enter; s skips it")
            while (key := keys.key(1.0)) not in ("enter", "s", "q", CLOSED):
                pass
            if key in ("q", CLOSED):
                break
            if key == "enter":
                joints_rad = np.mean([arm.read().position_rad for _ in range(_READS)], axis=0)
                tips.append(what.arm.tip_m(joints_rad + what.zeros_rad))
                touched.append(k)
        touches = touch_errors(corners[touched], np.array(tips).reshape(-1, 3))
        console.print("take the arm away from the board; enter")
        if _entered(keys):
            later, _, _ = _seen(what, arm, camera, board)
            if (moved_mm := shifted_mm(T_base_board, later, board)) > _STAYED_MM:
                raise UserError(f"touch test: the board has been shifted by {moved_mm:.1f} mm meanwhile; start again")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("corner", "x mm", "y mm", "tip off by x", "y", "z", "mm"):
        table.add_column(name, justify="right", no_wrap=True)
    for k, error in zip(touched, touches.errors_mm, strict=True):
        x, y, _ = 1e3 * corners[k]
        table.add_row(
            str(k + 1),
            f"{x:.0f}",
            f"{y:.0f}",
            *(f"{value:+.1f}" for value in error),
            f"{float(np.linalg.norm(error)):.1f}",
        )
    console.print(table)
    console.print(f"rms {touches.rms_mm:.1f} mm; {touches.suggests()}", markup=False)
    limit_mm = max(LIMIT_MM, 2 * (what.calibration.expected_reach_mm or 0.0))
    return 0 if touches.rms_mm <= limit_mm else 1


def _entered(keys: Keys) -> bool:
    while (key := keys.key(1.0)) not in ("enter", "q", CLOSED):
        pass
    return key == "enter"


def _seen(what: Checked, arm: ServoArm, camera: Camera, board: Board) -> tuple[Array, Array, NDArray[np.uint8]]:
    """T_base_board, the corners to touch (5, 3) in the base frame, and the picture with their numbers."""
    frame = camera.read()
    T_base_camera = what.T_base_camera(arm.read().position_rad)
    T_base_board = board_in_base(frame, board, T_base_camera)
    corners = apply(T_base_board, board.corners_m(corners_to_touch(board)))
    picture = np.array(frame.rgb, order="C")
    for k, px in enumerate(np.rint(project(corners, frame.intrinsics, T_base_camera)).astype(int)):
        at = (int(px[0]), int(px[1]))
        for colour, thickness in ((_HALO, 4), (_COLOUR, 2)):
            cv2.drawMarker(picture, at, colour, cv2.MARKER_CROSS, 15, thickness, cv2.LINE_AA)
            beside = (at[0] + 8, at[1] - 8)
            cv2.putText(picture, str(k + 1), beside, cv2.FONT_HERSHEY_SIMPLEX, 0.6, colour, thickness, cv2.LINE_AA)
    return T_base_board, corners, picture
