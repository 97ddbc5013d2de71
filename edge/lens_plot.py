"""A picture of a lens: how far it bends the image, where corners of the board were seen, and how far off they were."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Intrinsics

Array = NDArray[np.float64]

RESIDUALS_TIMES = 50
_WIDTH_PX, _FOOT_PX = 1200, 58
_LEVELS_PX = (0.5, 1, 2, 5, 10, 20, 50, 100, 200)
# RGB.
_PAPER, _INK, _CONTOUR, _ARROW, _SEEN, _OFF = (
    (255, 255, 255),
    (40, 44, 52),
    (150, 175, 215),
    (30, 100, 200),
    (170, 174, 182),
    (220, 60, 40),
)
_SHIFT = 4  # drawn to 1/16 px


def plot_lens(intrinsics: Intrinsics, corners_px: Sequence[Array], residuals_px: Sequence[Array]) -> NDArray[np.uint8]:
    """Contours and arrows of the distortion, dots for corners, red lines for their residuals, fifty times as long.

    Args:
        corners_px, residuals_px: (m, 2) for each view: where corners were seen, and seen minus predicted.

    Returns:
        (h, 1200, 3) uint8 RGB.
    """
    scale = _WIDTH_PX / intrinsics.width
    height = round(intrinsics.height * scale)
    picture = np.full((height + _FOOT_PX, _WIDTH_PX, 3), _PAPER, np.uint8)
    image = picture[:height]

    x, y = np.meshgrid(np.linspace(0, intrinsics.width - 1, 241), np.linspace(0, intrinsics.height - 1, 181))
    length = np.linalg.norm(bend_px(np.stack([x, y], axis=-1).reshape(-1, 2), intrinsics), axis=1).reshape(x.shape)
    smooth = cv2.resize(length, (_WIDTH_PX, height), interpolation=cv2.INTER_CUBIC)
    row = smooth[int(np.clip(intrinsics.cy * scale, 0, height - 1))]
    for level in _LEVELS_PX:
        outlines, _ = cv2.findContours((smooth >= level).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.polylines(image, outlines, True, _CONTOUR, 1, cv2.LINE_AA)
        right = np.flatnonzero(row >= level)
        if len(right[right > intrinsics.cx * scale]):
            at = int(right[right > intrinsics.cx * scale][0])
            _text(picture, f"{level:g} px", min(at + 4, _WIDTH_PX - 50), int(intrinsics.cy * scale), _ARROW)
    cv2.rectangle(image, (0, 0), (_WIDTH_PX - 1, height - 1), _SEEN, 1)
    for corners, residuals in zip(corners_px, residuals_px, strict=True):
        for corner, residual in zip(corners, residuals, strict=True):
            start = _at((corner + 0.5) * scale)
            cv2.circle(image, start, 2 << _SHIFT, _SEEN, -1, cv2.LINE_AA, _SHIFT)
            end = _at((corner + 0.5 + RESIDUALS_TIMES * residual) * scale)
            cv2.line(image, start, end, _OFF, 1, cv2.LINE_AA, _SHIFT)
    grid = np.meshgrid(np.linspace(0.04, 0.96, 13) * intrinsics.width, np.linspace(0.04, 0.96, 10) * intrinsics.height)
    points = np.stack(grid, axis=-1).reshape(-1, 2)
    for point, bend in zip(points, bend_px(points, intrinsics), strict=True):
        if np.linalg.norm(bend) * scale >= 1.0:
            cv2.arrowedLine(
                image, _at((point - bend) * scale), _at(point * scale), _ARROW, 1, cv2.LINE_AA, _SHIFT, 0.25
            )

    centre = _at((np.array([intrinsics.cx, intrinsics.cy]) + 0.5) * scale)
    cv2.drawMarker(image, (centre[0] >> _SHIFT, centre[1] >> _SHIFT), _INK, cv2.MARKER_CROSS, 17, 1, cv2.LINE_AA)
    sizes = f"fx {intrinsics.fx:.1f}  fy {intrinsics.fy:.1f}  cx {intrinsics.cx:.1f}  cy {intrinsics.cy:.1f} px"
    coefficients = "  ".join(f"{d:.4g}" for d in intrinsics.distortion) or "none"
    _text(picture, f"{sizes}   k1 k2 p1 p2 k3: {coefficients}", 12, height + 22, _INK)
    _text(picture, f"distortion: up to {length.max():.1f} px (arrows)", 12, height + 44, _ARROW)
    _text(picture, "corners seen", 420, height + 44, (130, 134, 142))
    _text(picture, f"their residuals, {RESIDUALS_TIMES} times", 620, height + 44, _OFF)
    return picture


def bend_px(points_px: Array, intrinsics: Intrinsics) -> Array:
    """(n, 2) by how much the lens shifts what is seen at ``points_px`` (n, 2) from where a pinhole would show it."""
    if not intrinsics.distortion:
        return np.zeros_like(points_px)
    criteria = (cv2.TERM_CRITERIA_COUNT, 50, 0.0)
    K, lens = intrinsics.matrix, np.array(intrinsics.distortion)
    straight = cv2.undistortPoints(np.ascontiguousarray(points_px)[:, None], K, lens, P=K, criteria=criteria)
    return points_px - np.asarray(straight, dtype=np.float64).reshape(-1, 2)


def _at(point: Array) -> tuple[int, int]:
    x, y = np.rint(np.clip(point, -1e6, 1e6) * (1 << _SHIFT)).astype(int)
    return int(x), int(y)


def _text(picture: NDArray[np.uint8], text: str, x: int, y: int, color: tuple[int, int, int]) -> None:
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, color, 1, cv2.LINE_AA)
