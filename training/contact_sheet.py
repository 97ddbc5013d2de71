"""A picture of the worst answers: each image with the truth and the answer drawn on it, split by split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.contract import TASKS, Affordance, Output, Trajectory, parse_answer
from training.evaluate import Result

CASES = 12  # a split
COLUMNS = 4

_Image = NDArray[np.uint8]
_Color = tuple[int, int, int]

# RGB.
_PAPER, _INK, _FAINT, _HALO = (24, 27, 33), (232, 234, 238), (142, 150, 163), (16, 18, 22)
_TRUTH, _ANSWER = (70, 225, 120), (255, 150, 40)
_TILE_PX = (320, 240)  # width, height of a picture; its sides keep their ratio within
_CAPTION_PX, _GAP_PX, _HEADER_PX = 58, 12, 44
_FACE = cv2.FontFace("sans")


def badness(result: Result) -> float:
    """How bad an answer is, to sort by: within one task only, 0 for a right one.

    A box: 1 - IoU; a trajectory: its Fréchet distance, infinite where there is none; something named where the label is
    null: infinite.
    """
    if result.absent:
        return 0.0 if result.null else math.inf
    if result.task == "affordance":
        return 1.0 - (result.iou or 0.0)
    return math.inf if result.frechet is None else result.frechet


def worst(results: Sequence[Result], count: int = CASES) -> list[Result]:
    """The `count` worst results, worst first, the tasks taking turns; those that are right are left out."""
    by_task = [sorted((r for r in results if r.task == t), key=badness, reverse=True) for t in TASKS]
    turns = [result for pair in zip_longest(*by_task) for result in pair if result is not None and badness(result) > 0]
    return turns[:count]


def draw_sheet(cases: Sequence[tuple[Result, _Image]], title: str) -> _Image:
    """Draw results on their images, split by split.

    Args:
        cases: results and their images (h, w, 3) uint8, red first, any size.
        title: heads the sheet.

    Returns:
        (h, w, 3) uint8, red first.
    """
    width = COLUMNS * (_TILE_PX[0] + _GAP_PX) + _GAP_PX
    rows = [_header(width, f"{title}: the worst answers", "truth green, answer orange; a trajectory ends in a dot")]
    for split in dict.fromkeys(result.split for result, _ in cases):
        of_split = [case for case in cases if case[0].split == split]
        rows.append(_header(width, split, ""))
        for k in range(0, len(of_split), COLUMNS):
            row = np.full((_TILE_PX[1] + _CAPTION_PX + _GAP_PX, width, 3), _PAPER, np.uint8)
            for column, (result, rgb) in enumerate(of_split[k : k + COLUMNS]):
                left = _GAP_PX + column * (_TILE_PX[0] + _GAP_PX)
                row[: _TILE_PX[1] + _CAPTION_PX, left : left + _TILE_PX[0]] = _tile(result, rgb)
            rows.append(row)
    return np.ascontiguousarray(np.vstack(rows))


def _tile(result: Result, rgb: _Image) -> _Image:
    tile = np.full((_TILE_PX[1] + _CAPTION_PX, _TILE_PX[0], 3), _PAPER, np.uint8)
    scale = min(_TILE_PX[0] / rgb.shape[1], _TILE_PX[1] / rgb.shape[0])
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    picture = np.asarray(
        cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), np.uint8
    )
    _draw(picture, parse_answer(result.wanted, result.task).output, _TRUTH)
    _draw(picture, result.output, _ANSWER)
    tile[: size[1], : size[0]] = picture
    _text(tile, result.instruction, _TILE_PX[1] + 18, 14, _INK)
    _text(tile, f"{_verdict(result)}   item {result.index}", _TILE_PX[1] + 38, 13, _FAINT)
    return tile


def _verdict(result: Result) -> str:
    if result.fault is not None:
        return f"no answer: {result.fault}"
    if result.null:
        return "answered null, though it is there"
    if result.absent:
        return "answered, though it is not there"
    return f"IoU {result.iou:.2f}" if result.iou is not None else f"Fréchet {result.frechet:.3f}"


def _draw(picture: _Image, output: Output | None, color: _Color) -> None:
    height, width = picture.shape[:2]
    for ink, thickness in ((_HALO, 4), (color, 2)):
        if isinstance(output, Affordance):
            left, top, right, bottom = output.corners
            corner = round(left * width), round(top * height)
            cv2.rectangle(picture, corner, (round(right * width), round(bottom * height)), ink, thickness, cv2.LINE_AA)
        elif isinstance(output, Trajectory):
            points = np.rint(np.array(output.points) * (width, height)).astype(np.int32)
            cv2.polylines(picture, [points], False, ink, thickness, cv2.LINE_AA)
            x, y = points[-1]
            cv2.circle(picture, (int(x), int(y)), thickness + 3, ink, -1, cv2.LINE_AA)


def _header(width: int, text: str, more: str) -> _Image:
    header = np.full((_HEADER_PX, width, 3), _PAPER, np.uint8)
    _text(header, text, 29, 20, _INK, _GAP_PX)
    if more:
        _text(header, more, 29, 15, _FAINT, width // 2)
    return header


def _text(image: _Image, text: str, baseline: int, size: int, color: _Color, left: int = 2) -> None:
    """One line, cut with an ellipsis at the image's right side. A NUL would end the text in OpenCV."""
    line = "".join(char if char.isprintable() else " " for char in text)
    while _width(line, size) > image.shape[1] - left and len(line) > 1:
        line = line[: int(len(line) * 0.9)].rstrip("… ") + "…"
    cv2.putText(image, line, (left, baseline), color, _FACE, size, 400, cv2.PUT_TEXT_ALIGN_LEFT, (0, 1 << 20))


def _width(text: str, size: int) -> int:
    rect = cv2.getTextSize((0, 0), text, (0, 0), _FACE, size, 400, cv2.PUT_TEXT_ALIGN_LEFT, (0, 1 << 20))
    return int(rect[2])
