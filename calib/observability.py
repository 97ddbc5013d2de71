"""How well views of a board tell where the camera is: what a camera's least visible motion moves the corners by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from calib.board import Board, Detection
from calib.hand_eye import information
from calib.rigid import invert
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]

DIRECTIONS = (
    *(f"turning about the camera's {axis}" for axis in ("x axis", "y axis", "line of sight")),
    *(f"moving along the camera's {axis}" for axis in ("x axis", "y axis", "line of sight")),
)


def least_told(H: Array, corners: int) -> tuple[float, str]:
    """The smallest singular value of the corners' derivative by the camera's pose, and its direction in words.

    Args:
        H: (6 + k, 6 + k) information about the camera (rad, m) and k other unknowns that follow it as well as they can,
            px^-2.
        corners: how many went into it.

    Returns:
        px per mrad or mm, rms over the corners. A direction that is told by less than noise moves the corners is open.
    """
    camera, cross, others = H[:6, :6], H[:6, 6:], H[6:, 6:]
    told = 1e-6 * (camera - cross @ np.linalg.pinv(others, hermitian=True) @ cross.T) / max(corners, 1)
    values, directions = np.linalg.eigh(told)
    return float(np.sqrt(max(values[0], 0.0))), DIRECTIONS[int(np.argmax(np.abs(directions[:, 0])))]


def views_tell(
    joints_rad: Sequence[Array],
    detections: Sequence[Detection],
    fk: Callable[[Array], Array],
    board: Board,
    intrinsics: Intrinsics,
    mount: str,
    T_mount_camera: Array,
    T_other_board: Array,
) -> tuple[float, str]:
    """`least_told` of views about a guess of where camera and board are; the arm's zeros taken as good."""
    H = np.zeros((12, 12))
    for q, detection in zip(joints_rad, detections, strict=True):
        T = fk(q) if mount == "base" else invert(fk(q))
        H += information(invert(T_mount_camera), T, T_other_board, board.corners_m(detection.ids), intrinsics)
    return least_told(H, sum(len(detection.ids) for detection in detections))
