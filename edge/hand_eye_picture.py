"""A picture of a hand-eye calibration: where the board was seen and by how much it was missed, view by view."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.calibration import Calibration
from calib.hand_eye import Pinhole
from calib.rigid import apply, invert

Array = NDArray[np.float64]

MAGNIFIED = 20.0
"""Residuals are drawn so many times as long."""

_HEIGHT_PX, _BARS_PX, _PAD_PX, _ROW_PX = 480, 400, 16, 22
_PAPER, _INK, _FRAME, _GOOD, _BAD = (255, 255, 255), (40, 44, 52), (205, 208, 214), (30, 100, 200), (225, 60, 50)
_SHIFT = 4  # positions are drawn to 1/16 px


def draw_hand_eye(calibration: Calibration, fk: Callable[[Array], Array]) -> NDArray[np.uint8]:
    """(480, w, 3) uint8 RGB: the image with every corner's residual, then a bar a view for its leave-one-out error.

    ``fk`` maps measured joints plus zeros (n,) to T_base_gripper (4, 4). Views that do not count are red.
    """
    intrinsics = calibration.camera.intrinsics
    scale = (_HEIGHT_PX - 2 * _PAD_PX) / intrinsics.height
    width = round(intrinsics.width * scale)
    picture = np.full((_HEIGHT_PX, width + 3 * _PAD_PX + _BARS_PX, 3), _PAPER, np.uint8)
    corner = (_PAD_PX + width, _HEIGHT_PX - _PAD_PX)
    cv2.rectangle(picture, (_PAD_PX, _PAD_PX), corner, _FRAME, 1)
    for i, view in enumerate(calibration.views):
        colour = _BAD if i in calibration.outliers else _GOOD
        seen = view.corners_px
        ends = seen + MAGNIFIED * (predicted_px(calibration, fk, i) - seen)
        for a, b in zip(_at(seen, scale), _at(ends, scale), strict=True):
            cv2.line(picture, a, b, colour, 1, cv2.LINE_AA, _SHIFT)
            cv2.circle(picture, a, 2 << _SHIFT, colour, -1, cv2.LINE_AA, _SHIFT)
    _text(picture, f"corners seen, and what they miss x {MAGNIFIED:.0f}", _PAD_PX + 6, _HEIGHT_PX - _PAD_PX - 8)
    _draw_bars(picture, calibration, width + 2 * _PAD_PX)
    return picture


def predicted_px(calibration: Calibration, fk: Callable[[Array], Array], i: int) -> Array:
    """(m, 2) where the calibration puts the corners that view ``i`` shows."""
    view = calibration.views[i]
    zeros = np.array(calibration.joint_zeros_rad) if calibration.joint_zeros_rad else 0.0
    T = fk(view.joints_rad + zeros)
    chain = T if calibration.mount == "base" else invert(T)
    T_camera_board = invert(calibration.T_mount_camera) @ chain @ calibration.T_other_board
    points = apply(T_camera_board, calibration.board.corners_m(view.ids))
    return Pinhole(calibration.camera.intrinsics).project(points)[0]


def _draw_bars(picture: NDArray[np.uint8], calibration: Calibration, left: int) -> None:
    errors = np.array([view.leave_one_out_mm for view in calibration.views])
    rows = min(len(errors), (_HEIGHT_PX - 4 * _PAD_PX) // _ROW_PX)
    counted = np.delete(errors, calibration.outliers)
    most = 1.2 * max(float(counted.max()) if len(counted) else 0.0, 0.5)
    room = _BARS_PX - 150
    _text(picture, "left out and predicted by the others, mm", left, _PAD_PX + 12)
    for i in range(rows):
        y = 2 * _PAD_PX + 12 + i * _ROW_PX
        colour = _BAD if i in calibration.outliers else _GOOD
        length = round(room * min(errors[i] / most, 1.0))
        _text(picture, f"view {i + 1}", left, y + 10)
        cv2.rectangle(picture, (left + 62, y), (left + 62 + length, y + 12), colour, -1)
        _text(
            picture,
            f"{errors[i]:.1f}" + ("  left out" if i in calibration.outliers else ""),
            left + 68 + length,
            y + 10,
        )
    if rows < len(errors):
        _text(picture, f"and {len(errors) - rows} more", left, _HEIGHT_PX - _PAD_PX)


def _at(px: Array, scale: float) -> list[tuple[int, int]]:
    points = np.rint(np.clip(_PAD_PX + (px + 0.5) * scale, -4000, 8000) * (1 << _SHIFT)).astype(int)
    return [(int(x), int(y)) for x, y in points]


def _text(picture: NDArray[np.uint8], text: str, x: int, y: int) -> None:
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
