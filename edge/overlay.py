"""A picture of a decision: the frame with the box and the trajectory on it, the reasoning beside it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.contract import Affordance, Trajectory

_Image = NDArray[np.uint8]
_Color = tuple[int, int, int]

# RGB.
_PAPER, _INK, _FAINT = (24, 27, 33), (232, 234, 238), (142, 150, 163)
_BOX, _START, _END, _NONE = (255, 176, 32), (64, 224, 255), (255, 72, 160), (255, 110, 90)
_HALO = (16, 18, 22)
_FRAME_HEIGHT_PX = 480
_PANEL_PX = 320
_MARGIN_PX = 18
# Positions are drawn to 1/16 px.
_SHIFT = 4


def draw_decision(
    rgb: _Image,
    affordance: Affordance | None,
    trajectory: Trajectory | None,
    instruction: str,
    reasoning: str,
    not_found: bool = False,
) -> _Image:
    """Draw what was asked, what was thought and what was decided.

    Args:
        rgb: (h, w, 3) uint8; it is shown 480 px high.
        affordance, trajectory: what to draw on the frame; None for nothing.
        instruction: heads the panel.
        reasoning: wrapped under it; what does not fit ends in an ellipsis.
        not_found: the answer was that what was named is not there: said on the frame and under the reasoning.

    Returns:
        (480, w * 480 / h + 320, 3) uint8, red first; the frame is at least a pixel wide.
    """
    width = max(1, round(rgb.shape[1] * _FRAME_HEIGHT_PX / rgb.shape[0]))
    shrinks = rgb.shape[0] > _FRAME_HEIGHT_PX
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    frame = np.asarray(cv2.resize(rgb, (width, _FRAME_HEIGHT_PX), interpolation=method), np.uint8)
    if trajectory is not None:
        _draw_trajectory(frame, trajectory)
    if affordance is not None:
        _draw_box(frame, affordance)
    facts = _facts(affordance, trajectory)
    if not_found:
        _label(frame, "not found", (10, 22), _NONE)
        facts.append(("not found", _NONE))
    panel = np.full((_FRAME_HEIGHT_PX, _PANEL_PX, 3), _PAPER, np.uint8)
    _write_panel(panel, facts, instruction, reasoning)
    return np.ascontiguousarray(np.hstack((frame, panel)), dtype=np.uint8)


def _draw_box(frame: _Image, box: Affordance) -> None:
    height, width = frame.shape[:2]
    left, top, right, bottom = (
        round(value * side) for value, side in zip(box.corners, (width, height, width, height), strict=True)
    )
    right, bottom = min(right, width - 1), min(bottom, height - 1)
    tint = frame[top : bottom + 1, left : right + 1]
    tint[:] = (0.82 * tint + 0.18 * np.array(_BOX)).astype(np.uint8)
    for color, thickness in ((_HALO, 5), (_BOX, 2)):
        cv2.rectangle(frame, (left, top), (right, bottom), color, thickness, cv2.LINE_AA)
    center = (round(box.x * width), round(box.y * height))
    for color, thickness in ((_HALO, 4), (_BOX, 2)):
        cv2.drawMarker(frame, center, color, cv2.MARKER_CROSS, 13, thickness, cv2.LINE_AA)
    _label(frame, "grasp", (left, top - 8 if top > 30 else bottom + 20), _BOX)


def _draw_trajectory(frame: _Image, trajectory: Trajectory) -> None:
    height, width = frame.shape[:2]
    points = np.array(trajectory.points) * (width, height)
    fixed = np.rint(points * (1 << _SHIFT)).astype(int)
    last = max(len(points) - 1, 1)
    for i in range(len(points) - 1):
        cv2.line(frame, _at(fixed[i]), _at(fixed[i + 1]), _HALO, 7, cv2.LINE_AA, _SHIFT)
    for i in range(len(points) - 1):
        # Short pieces, so that the colour runs from start to end.
        pieces = np.rint(np.linspace(fixed[i], fixed[i + 1], 9)).astype(int)
        for j in range(8):
            color = _blend((i + j / 8) / last)
            cv2.line(frame, _at(pieces[j]), _at(pieces[j + 1]), color, 3, cv2.LINE_AA, _SHIFT)
    for i, point in enumerate(fixed):
        for color, radius in ((_HALO, 7), (_blend(i / last), 5)):
            cv2.circle(frame, _at(point), radius << _SHIFT, color, -1, cv2.LINE_AA, _SHIFT)
    x, y = points[-1]
    _label(frame, "end", (round(x) + 10, round(y) - 8), _END)


def _facts(affordance: Affordance | None, trajectory: Trajectory | None) -> list[tuple[str, _Color]]:
    facts = []
    if affordance is not None:
        box = affordance
        facts.append((f"box {box.x:.2f}, {box.y:.2f}   {box.width:.2f} x {box.height:.2f}", _BOX))
    if trajectory is not None:
        (x0, y0), (x1, y1) = trajectory.points[0], trajectory.points[-1]
        facts.append((f"path {x0:.2f}, {y0:.2f} to {x1:.2f}, {y1:.2f}", _END))
    return facts


def _write_panel(panel: _Image, facts: list[tuple[str, _Color]], instruction: str, reasoning: str) -> None:
    bottom = _FRAME_HEIGHT_PX - _MARGIN_PX
    for text, color in reversed(facts):
        _write(panel, [text], bottom, 14, color, bold=True)
        bottom -= 22
    y = _write(panel, _wrap(instruction, 19, True)[:4], _MARGIN_PX + 18, 19, _INK, bold=True) + 10
    y = _write(panel, ["reasoning"], y, 13, _FAINT)
    lines = _wrap(reasoning, 15, False)
    room = max(0, (bottom - 8 - y) // _line_px(15) + 1)
    if len(lines) > room:
        lines = lines[:room]
        if lines:
            lines[-1] = lines[-1].rstrip(" .,;") + "…"
    _write(panel, lines, y + 2, 15, _INK)


def _write(panel: _Image, lines: list[str], y: int, size: int, color: _Color, bold: bool = False) -> int:
    """Write lines from the baseline `y` on; the baseline after the last."""
    for line in lines:
        _text(panel, line, (_MARGIN_PX, y), size, color, bold)
        y += _line_px(size)
    return y


def _label(frame: _Image, text: str, origin: tuple[int, int], color: _Color) -> None:
    width = _text_width(text, 13, True)
    x = min(max(origin[0], 4), frame.shape[1] - width - 6)
    y = min(max(origin[1], 18), frame.shape[0] - 8)
    cv2.rectangle(frame, (x - 4, y - 13), (x + width + 4, y + 5), _HALO, -1)
    _text(frame, text, (x, y), 13, color, True)


def _wrap(text: str, size: int, bold: bool) -> list[str]:
    """Lines no wider than the panel; a word that is wider is broken."""
    limit = _PANEL_PX - 2 * _MARGIN_PX
    lines, line = [], ""
    # A NUL would end the text in OpenCV.
    for word in "".join(char if char.isprintable() else " " for char in text).split():
        while _text_width(word, size, bold) > limit:
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or _text_width(word[:n], size, bold) <= limit)
            if line:
                lines.append(line)
                line = ""
            lines.append(word[:fits])
            word = word[fits:]
        longer = f"{line} {word}" if line else word
        if _text_width(longer, size, bold) <= limit:
            line = longer
        else:
            lines.append(line)
            line = word
    return [*lines, line] if line else lines


def _line_px(size: int) -> int:
    return round(size * 1.4)


def _at(point: NDArray[np.int_]) -> tuple[int, int]:
    return int(point[0]), int(point[1])


def _blend(part: float) -> _Color:
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(_START, _END, strict=True))
    return red, green, blue


# OpenCV 5 brings real fonts; OpenCV 4 has only the stroke fonts, and those only ASCII.
if hasattr(cv2, "FontFace"):
    _FACE = cv2.FontFace("sans")
    _NO_WRAP = (0, 1 << 20)

    def _text(image: _Image, text: str, origin: tuple[int, int], size: int, color: _Color, bold: bool) -> None:
        cv2.putText(image, text, origin, color, _FACE, size, 700 if bold else 400, cv2.PUT_TEXT_ALIGN_LEFT, _NO_WRAP)

    def _text_width(text: str, size: int, bold: bool) -> int:
        weight = 700 if bold else 400
        rect = cv2.getTextSize((0, 0), text, (0, 0), _FACE, size, weight, cv2.PUT_TEXT_ALIGN_LEFT, _NO_WRAP)
        return int(rect[2])

else:

    def _text(image: _Image, text: str, origin: tuple[int, int], size: int, color: _Color, bold: bool) -> None:
        plain = text.replace("…", "...").encode("ascii", "replace").decode()
        cv2.putText(image, plain, origin, cv2.FONT_HERSHEY_SIMPLEX, size / 34, color, 1 + bold, cv2.LINE_AA)

    def _text_width(text: str, size: int, bold: bool) -> int:
        (width, _), _ = cv2.getTextSize(text.replace("…", "..."), cv2.FONT_HERSHEY_SIMPLEX, size / 34, 1 + bold)
        return int(width)
