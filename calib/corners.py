"""How well the corners of a board were seen, told from the pictures alone: a plane maps to the image by a homography.

Nothing of the arm enters, so what the arm gets wrong cannot pass for noise of the camera, nor the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.board import MIN_CORNERS, Board, Detection
from drivers.protocols import Intrinsics

FLOOR_PX = 0.02
"""Corners are never taken to be seen better than this."""

_MEDIAN_LENGTH = 1.1774  # median length of a two-dimensional normal vector, in sigmas
_TOO_FAR = 6.0  # sigmas
_FREE = 8  # of a homography


def corner_noise(
    detections: Sequence[Detection], board: Board, intrinsics: Intrinsics
) -> tuple[float, list[NDArray[np.bool_]]]:
    """Sigma of a corner's coordinate in pixels over all views, and for each view (n,) which corners fit the others.

    A corner more than 6 sigma from where the rest of its view puts it (a homography by least median of squares) does
    not fit. A view that would keep fewer than MIN_CORNERS keeps all: it is for the solve to drop.
    """
    K, lens = intrinsics.matrix, np.array(intrinsics.distortion or [0.0] * 5)
    planes = [board.corners_m(d.ids)[:, :2].astype(np.float64) for d in detections]
    straight = [_straight(d.corners_px, K, lens) for d in detections]
    lengths = [_distances(plane, px, cv2.LMEDS) for plane, px in zip(planes, straight, strict=True)]
    together = np.concatenate(lengths)
    # a homography follows the noise with 8 of a view's 2 n numbers
    left = max(1 - _FREE * len(detections) / (2 * len(together)), 0.2)
    rough_px = float(np.median(together)) / _MEDIAN_LENGTH / np.sqrt(left)
    fits = [length <= _TOO_FAR * max(rough_px, FLOOR_PX) for length in lengths]
    fits = [fit if fit.sum() >= MIN_CORNERS else np.ones(len(fit), dtype=bool) for fit in fits]
    squares, freedom = 0.0, 0
    for plane, px, fit in zip(planes, straight, fits, strict=True):
        squares += float(np.sum(_distances(plane[fit], px[fit], 0) ** 2))
        freedom += 2 * int(fit.sum()) - _FREE
    return max(float(np.sqrt(squares / freedom)), FLOOR_PX), fits


def _straight(px: NDArray[np.float64], K: NDArray[np.float64], lens: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) pixels as a lens without distortion would show them."""
    straight = cv2.undistortPoints(np.ascontiguousarray(px, dtype=float), K, lens, P=K)
    return np.asarray(straight, dtype=float).reshape(-1, 2)


def _distances(plane_m: NDArray[np.float64], px: NDArray[np.float64], method: int) -> NDArray[np.float64]:
    """(n,) pixels between the corners and where their homography puts them; 0 where there is none."""
    H, _ = cv2.findHomography(plane_m, px, method)
    if H is None:
        return np.zeros(len(px))
    mapped = cv2.perspectiveTransform(plane_m[:, None], H).reshape(-1, 2)
    return np.asarray(np.linalg.norm(mapped - px, axis=1))
