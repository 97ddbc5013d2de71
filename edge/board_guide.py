"""What is still missing of a camera calibration, drawn: over the camera's picture, and in the terminal."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from calib.board import Detection
from calib.guidance import COLUMNS, ROWS, TILTS, WANTED, Coverage, outline_px

# RGB, for none, some and all of the views wanted.
_STATES = ((220, 70, 60), (245, 190, 60), (70, 180, 90))
_HALO, _TEXT, _BOARD = (16, 18, 22), (255, 255, 255), (64, 224, 255)
_EDGE_PX = 10


def draw_guide(
    rgb: NDArray[np.uint8], coverage: Coverage, detection: Detection | None, advice: str
) -> NDArray[np.uint8]:
    """The camera's picture with its parts tinted red, yellow or green, the same for each tilt along its edges.

    Args:
        rgb: (h, w, 3) uint8, the camera's frame.
        detection: the board in it, or None.
        advice: written on it.

    Returns:
        (h, w, 3) uint8 RGB, a copy.
    """
    picture = rgb.copy()
    height, width = rgb.shape[:2]
    x, y = (np.linspace(0, side, count + 1).round().astype(int) for side, count in ((width, COLUMNS), (height, ROWS)))
    for row in range(ROWS):
        for column in range(COLUMNS):
            part = picture[y[row] : y[row + 1], x[column] : x[column + 1]]
            part[:] = (0.75 * part + 0.25 * np.array(_state(coverage.cell_views[row, column]))).astype(np.uint8)
    edges = {"left": (0, 0, _EDGE_PX, height), "right": (width - _EDGE_PX, 0, width, height)}
    edges |= {"top": (0, 0, width, _EDGE_PX), "bottom": (0, height - _EDGE_PX, width, height)}
    for tilt, views in zip(TILTS, coverage.tilt_views, strict=True):
        left, top, right, bottom = edges[tilt]
        picture[top:bottom, left:right] = _state(views)
    if detection is not None:
        outline = np.rint(outline_px(detection, coverage.board)).astype(np.int32)
        cv2.polylines(picture, [outline], True, _BOARD, 2, cv2.LINE_AA)
        for corner in np.rint(detection.corners_px).astype(int):
            cv2.circle(picture, (int(corner[0]), int(corner[1])), 3, _BOARD, -1, cv2.LINE_AA)
    text = f"{100 * coverage.share:.0f} %  {advice}"
    (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.55, 1)
    cv2.rectangle(picture, (14, 16), (24 + wide, 30 + high), _HALO, -1)
    cv2.putText(picture, text, (18, 22 + high), cv2.FONT_HERSHEY_SIMPLEX, 0.55, _TEXT, 1, cv2.LINE_AA)
    return picture


def show_guide(coverage: Coverage, advice: str) -> Group:
    """The same for a terminal: parts of the image as blocks, tilts by name, the advice."""
    parts = Table.grid()
    for row in coverage.cell_views:
        parts.add_row(*(Text("███ ", style=_style(views)) for views in row))
    tilts = Text("nearer edge: ")
    for tilt, views in zip(TILTS, coverage.tilt_views, strict=True):
        tilts.append(f"{tilt} {min(int(views), WANTED)}/{WANTED}  ", style=_style(views))
    done = Text(f"{100 * coverage.share:.0f} % covered, {len(coverage.kept)} views")
    return Group(parts, tilts, done, Text(advice, style="bold"))


def _state(views: int) -> tuple[int, int, int]:
    return _STATES[0 if views == 0 else 1 if views < WANTED else 2]


def _style(views: int) -> str:
    red, green, blue = _state(views)
    return f"rgb({red},{green},{blue})"
