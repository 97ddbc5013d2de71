"""Where camera and board roughly are, from a few small turns of the wrist about a pose that shows the board."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from calib.adjust import adjust
from calib.board import Board, Detection
from calib.rigid import invert
from drivers.errors import UserError
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]

TURN_RAD = float(np.radians(12.0))
MIN_SEEN = 5

# by the two joints before the gripper: turns about two axes, as a hand-eye solution needs
_TURNS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1))


def exploring_poses(start_rad: Array, limits_rad: Array) -> Array:
    """(7, n) joint poses about ``start_rad`` (n,), the wrist's two joints turned by TURN_RAD; within limits (n, 2)."""
    poses = np.tile(np.asarray(start_rad, dtype=float), (len(_TURNS), 1))
    poses[:, -3:-1] += TURN_RAD * np.array(_TURNS)
    return np.asarray(np.clip(poses, limits_rad[:, 0], limits_rad[:, 1]))


def rough_guess(
    joints_rad: Sequence[Array],
    detections: Sequence[Detection],
    fk: Callable[[Array], Array],
    board: Board,
    intrinsics: Intrinsics,
    mount: str,
) -> tuple[Array, Array]:
    """T_mount_camera and T_other_board (``calib.calibration``), good enough to choose poses by.

    Raises:
        UserError: the board was seen too rarely, or the turns were too small.
    """
    if len(detections) < MIN_SEEN:
        raise UserError(
            f"calibration: after small turns of the wrist the board was seen {len(detections)} times, {MIN_SEEN} are "
            "needed; start where the camera sees the whole board, facing it, with room around it in the image"
        )
    chain = fk if mount == "base" else lambda q: invert(fk(q))
    found = adjust(joints_rad, detections, chain, board, intrinsics, fit_zeros=False)
    return found.T_base_camera, found.T_gripper_board
