"""Which views of the board are still missing for a camera's intrinsics: where in the image, and tilted which way."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.board import Board, Detection
from calib.intrinsics import MIN_VIEWS, rough_intrinsics
from calib.rigid import rotation
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]

COLUMNS, ROWS = 5, 4
"""Parts of the image; corners must have been seen in each."""

TILTS = ("left", "right", "top", "bottom")
"""Which edge of the board is nearer to the camera."""

MIN_TILT_RAD = float(np.radians(18.0))
WANTED = 2
"""Views with corners in each part of the image, and of each tilt."""

LEAST_VIEWS = MIN_VIEWS + 4  # some may turn out to be outliers
_SAME_VIEW = 0.03  # of the image's width: views nearer to one another say the same
_SMALL = 0.06  # of the image's area
_ROUGH_FROM = 6  # views

_UP_DOWN, _ACROSS = ("top", "", "", "bottom"), ("left", "left", "", "right", "right")


class Coverage:
    """The views kept so far, and what they lack.

    Args:
        intrinsics: of the camera, nominal ones if it does not know its own; the views soon tell better ones.
    """

    def __init__(self, board: Board, intrinsics: Intrinsics) -> None:
        self.board, self._intrinsics = board, intrinsics
        self.kept: list[Detection] = []
        self._outlines: list[Array] = []
        self.cell_views: NDArray[np.int64] = np.zeros((ROWS, COLUMNS), dtype=np.int64)
        self.tilt_views: NDArray[np.int64] = np.zeros(len(TILTS), dtype=np.int64)

    @property
    def share(self) -> float:
        """How much of what is wanted is there, 0 to 1; half of it are the parts of the image, half the tilts."""
        shares = [np.mean(np.minimum(views, WANTED)) / WANTED for views in (self.cell_views, self.tilt_views)]
        return float(np.mean(shares))

    @property
    def complete(self) -> bool:
        return self.share >= 1.0 and len(self.kept) >= LEAST_VIEWS

    def adds(self, detection: Detection) -> bool:
        """Whether this view shows what is missing, and is not one that was kept already."""
        outline = outline_px(detection, self.board)
        apart = _SAME_VIEW * self._intrinsics.width
        if any(_distance(outline, other) < apart for other in self._outlines):
            return False
        if self.share >= 1.0:
            return True
        cells, tilt = self._cells(detection), self._tilt(detection)
        return bool((cells & (self.cell_views < WANTED)).any()) or (tilt >= 0 and self.tilt_views[tilt] < WANTED)

    def keep(self, detection: Detection) -> None:
        """Count this view. The focal length by which tilts are told gets better with it."""
        self.kept.append(detection)
        self._outlines.append(outline_px(detection, self.board))
        if self._intrinsics.nominal and len(self.kept) >= _ROUGH_FROM:
            self._intrinsics = rough_intrinsics(self.kept, self.board, self._intrinsics)
        self.cell_views = np.sum([self._cells(kept) for kept in self.kept], axis=0)
        tilts = np.array([self._tilt(kept) for kept in self.kept])
        self.tilt_views = np.array([np.sum(tilts == tilt) for tilt in range(len(TILTS))])

    def advice(self, detection: Detection | None) -> str:
        """What to do next, in a few words; ``detection`` is what is seen now."""
        if detection is None:
            return "show the board to the camera, well lit and flat"
        outline = outline_px(detection, self.board)
        area = cv2.contourArea(outline.astype(np.float32)) / (self._intrinsics.width * self._intrinsics.height)
        if area < _SMALL:
            return "come closer: the board is small"
        if self.adds(detection):
            return "hold it still"
        if self.share >= 1.0:
            return "move it a little: another distance, another angle"
        places = int(np.sum(self.cell_views < WANTED))
        tilts = int(np.sum(self.tilt_views < WANTED))
        if tilts / len(TILTS) >= places / self.cell_views.size:
            nearer = TILTS[int(np.argmin(self.tilt_views))]
            return f"tilt it, so that its {nearer} edge in the picture is nearer to the camera"
        row, column = np.unravel_index(int(np.argmin(self.cell_views)), self.cell_views.shape)
        where = " ".join(word for word in (_UP_DOWN[row], _ACROSS[column]) if word) or "middle"
        return f"move it to the {where} of the picture"

    def _cells(self, detection: Detection) -> NDArray[np.bool_]:
        """(ROWS, COLUMNS) which parts of the image hold a corner."""
        cells = np.zeros((ROWS, COLUMNS), dtype=bool)
        share = (detection.corners_px + 0.5) / [self._intrinsics.width, self._intrinsics.height]
        column, row = (share * [COLUMNS, ROWS]).astype(int).T
        cells[np.clip(row, 0, ROWS - 1), np.clip(column, 0, COLUMNS - 1)] = True
        return cells

    def _tilt(self, detection: Detection) -> int:
        """Index into TILTS; -1 for a board that is nearly parallel to the image."""
        mine = self._intrinsics
        lens = np.array(mine.distortion) if mine.distortion else np.zeros(5)
        points_m = self.board.corners_m(detection.ids)
        found, rvec, _ = cv2.solvePnP(points_m, detection.corners_px, mine.matrix, lens, flags=cv2.SOLVEPNP_IPPE)
        if not found:
            return -1
        away = rotation(rvec)[:, 2]  # the board's normal, into the board
        if np.arccos(np.clip(away[2], -1.0, 1.0)) < MIN_TILT_RAD:
            return -1
        # The plane recedes against its normal: one that points to the right has its right edge nearer.
        if abs(away[0]) >= abs(away[1]):
            return TILTS.index("right" if away[0] > 0 else "left")
        return TILTS.index("bottom" if away[1] > 0 else "top")


class Stillness:
    """Whether the board rests in the image: its corners stay where they were for ``frames`` frames in a row.

    Args:
        limit_px: how far the corners may move, in the median, from the first of these frames. From that one, not from
            frame to frame: a slow drift is a motion, too.
    """

    def __init__(self, limit_px: float, frames: int = 5) -> None:
        self._limit_px, self._frames = limit_px, frames
        self._first: Detection | None = None
        self._count = 0

    def see(self, detection: Detection | None) -> bool:
        """Take the next frame in; whether the board has been still up to it."""
        if detection is None:
            self._first, self._count = None, 0
            return False
        moved_px = np.inf if self._first is None else _moved_px(self._first, detection)
        if moved_px > self._limit_px:
            self._first, self._count = detection, 1
        else:
            self._count += 1
        return self._count >= self._frames


def outline_px(detection: Detection, board: Board) -> Array:
    """(4, 2) where the corners of the board's squares are, or would be, by the homography of those seen."""
    plane = board.corners_m(detection.ids)[:, :2]
    H, _ = cv2.findHomography(plane, detection.corners_px)
    width_m, height_m = board.squares_size_m
    outer = np.array([[0.0, 0.0], [width_m, 0.0], [width_m, height_m], [0.0, height_m]])
    if H is None:
        return np.repeat(detection.corners_px.mean(axis=0)[None], 4, axis=0)
    return np.asarray(cv2.perspectiveTransform(outer[:, None], H), dtype=float).reshape(4, 2)


def spread(detections: Sequence[Detection], board: Board, count: int) -> list[int]:
    """Indices of ``count`` views that lie far from one another, in order; all of them if they are no more than that.

    Each next one is the farthest from those chosen (farthest-point sampling, Gonzalez 1985).
    """
    if len(detections) <= count:
        return list(range(len(detections)))
    outlines = np.array([outline_px(detection, board) for detection in detections]).reshape(len(detections), -1)
    chosen = [int(np.argmin(np.linalg.norm(outlines - np.median(outlines, axis=0), axis=1)))]
    nearest = np.linalg.norm(outlines - outlines[chosen[0]], axis=1)
    while len(chosen) < count:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.linalg.norm(outlines - outlines[chosen[-1]], axis=1))
    return sorted(chosen)


def _distance(outline_a: Array, outline_b: Array) -> float:
    return float(np.mean(np.linalg.norm(outline_a - outline_b, axis=1)))


def _moved_px(a: Detection, b: Detection) -> float:
    """Median way of the corners that are in both; infinite when there are none."""
    _, in_a, in_b = np.intersect1d(a.ids, b.ids, return_indices=True)
    if len(in_a) == 0:
        return float("inf")
    return float(np.median(np.linalg.norm(a.corners_px[in_a] - b.corners_px[in_b], axis=1)))
