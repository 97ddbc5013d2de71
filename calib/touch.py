"""The touch test: corners of a board as the calibrated camera sees them, beside where the arm's tip was put to them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from calib.board import Board
from calib.rigid import apply, invert, rigid, rms_length, rotation
from drivers.errors import UserError
from drivers.protocols import Frame

Array = NDArray[np.float64]

HAND_MM = 1.0
"""How well a person puts a tip to a printed corner."""

MIN_TOUCHES = 3
MIN_BOARD_PX = 60.0
_EXPLAINED = 0.5  # a cause explains an error when it leaves less than this part of it


@dataclass(frozen=True, eq=False)
class Touches:
    """What a touch test measured, millimetres, base frame.

    Attributes:
        errors_mm: (n, 3) tip minus corner: where the arm says it is, less where the camera says it is.
        rms_mm: of their lengths.
        bias_mm: (3,) their mean.
        rest_mm: rms of what is left without the mean.
        turned_mm: rms of what is left after the best rotation and shift.
        turn_deg: that rotation.
    """

    errors_mm: Array
    rms_mm: float
    bias_mm: Array
    rest_mm: float
    turned_mm: float
    turn_deg: float

    def suggests(self) -> str:
        """What that points to, in one sentence."""
        if self.rms_mm <= HAND_MM:
            return "as good as a hand can put a tip to a corner: the calibration holds"
        if self.rest_mm <= max(_EXPLAINED * self.rms_mm, HAND_MM):
            way = ", ".join(f"{name} {value:+.1f}" for name, value in zip("xyz", self.bias_mm, strict=True))
            if abs(self.bias_mm[2]) > 2 * np.linalg.norm(self.bias_mm[:2]):
                return f"all the same way, up or down ({way} mm): the length of the tip, or the camera's height"
            return f"all the same way ({way} mm): the camera's position, or another tip than the model's"
        if self.turned_mm <= max(_EXPLAINED * self.rest_mm, HAND_MM):
            return f"turned by {self.turn_deg:.1f} deg and shifted: the camera's rotation, or the zero of a joint"
        return "each another way: the joints' zeros or play, the lens, or the corners were not met; calibrate again"


def touch_errors(corners_m: Array, tips_m: Array) -> Touches:
    """Compare corners (n, 3) as the camera sees them with the tip (n, 3) put to each, both in the base frame, metres.

    Raises UserError with fewer than MIN_TOUCHES.
    """
    corners, tips = np.asarray(corners_m, dtype=float), np.asarray(tips_m, dtype=float)
    if len(corners) < MIN_TOUCHES:
        raise UserError(f"touch test: {len(corners)} corners were touched, {MIN_TOUCHES} are needed")
    errors = 1e3 * (tips - corners)
    bias = errors.mean(axis=0)
    a, b = corners - corners.mean(axis=0), tips - tips.mean(axis=0)
    turn, _ = Rotation.align_vectors(b, a)
    left = 1e3 * (b - turn.apply(a))
    return Touches(
        errors,
        rms_length(errors),
        bias,
        rms_length(errors - bias),
        rms_length(left),
        float(np.degrees(turn.magnitude())),
    )


def corners_to_touch(board: Board) -> NDArray[np.int64]:
    """(5,) ids of inner corners that lie far apart: those at the ends, and one in the middle."""
    across, down = board.squares_x - 1, board.squares_y - 1
    middle = (down // 2) * across + across // 2
    return np.array([0, across - 1, middle, across * (down - 1), across * down - 1], dtype=np.int64)


def board_in_base(frame: Frame, board: Board, T_base_camera: Array) -> Array:
    """(4, 4) T_base_board of a board that the frame shows.

    Raises UserError where it is not seen, or too small to be placed well.
    """
    detection = board.detect(frame.rgb)
    if detection is None:
        raise UserError(
            "touch test: the board is not seen; lay it flat on the table, whole in the picture, with no arm before it"
        )
    if np.ptp(detection.corners_px, axis=0).max() < MIN_BOARD_PX:
        raise UserError("touch test: the board is seen too small; lay it nearer to the camera")
    points = board.corners_m(detection.ids)
    K = frame.intrinsics.matrix
    lens = np.array(frame.intrinsics.distortion or [0.0] * 5)
    # a plane has two poses that look much alike; the first has the smaller error
    found, rvecs, shifts, _ = cv2.solvePnPGeneric(points, detection.corners_px, K, lens, flags=cv2.SOLVEPNP_IPPE)
    if not found:
        raise UserError("touch test: the board's place cannot be told from this picture; lay it nearer to the camera")
    rvec, shift = cv2.solvePnPRefineLM(points, detection.corners_px, K, lens, rvecs[0], shifts[0])
    return T_base_camera @ rigid(rotation(rvec), shift)


def shifted_mm(T_base_board: Array, T_base_board_later: Array, board: Board) -> float:
    """How far the board's inner corners have moved in between, rms."""
    corners = board.corners_m()
    return 1e3 * rms_length(apply(invert(T_base_board) @ T_base_board_later, corners) - corners)
