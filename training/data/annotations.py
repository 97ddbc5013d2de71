"""ShareRobot / RoboBrain annotations (pixel boxes, pixel paths) -> items of this contract.

What the layouts are and where that is written (looked up November 2026; the dataset itself is BAAI/ShareRobot on
Hugging Face, with ``affordance/affordance.json``, ``trajectory/trajectory.json`` and an ``images`` folder beside each):

- Affordance: ``{"id", "image_path", "meta_data": {"original_dataset", "original_width", "original_height"},
  "instruction", "affordance": {"x", "y", "width", "height"}}``, pixels, ``x``/``y`` the **top left** corner: the README
  of FlagOpen/ShareRobot shows the object, and its drawing script adds width and height to ``x`` and ``y``. The README's
  example lacks ``image_path``, and its script joins the image folder with ``id``; the script shipped in the dataset
  joins it with ``image_path``. Both are read.
- Trajectory: the same with a list of pixel points, called ``points`` in the README and ``trajectory`` in the released
  file (an object quoted from it in FlagOpen/ShareRobot issue 4). Both are read.
- ShareRobot-Bench (BAAI/ShareRobot-Bench, ``affordance/test.json`` and ``trajectory/test.json``): LLaVA turns,
  ``{"id", "image": path or [path], "conversations": [human, gpt]}``; the human turn is RoboBrain's question with the
  task in quotes, the gpt turn ``[x1, y1, x2, y2]`` (corners) or ``[[x, y], ...]``, normalized or in pixels: the
  evaluator in flageval-baai/FlagEvalMM (tasks/share_robot) reads so, and takes a value above 1 for pixels. So do we.
  Not seen: the files themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from drivers.errors import UserError
from edge.contract import MAX_POINTS, MIN_POINTS, Task, parse_answer, prompt_text
from training.data.sharegpt import Item, turns_of

# Annotation tools leave edges and points up to a pixel outside; those are put on the edge. Further out is a mistake.
SLACK_PX = 1.0
# Finer than the contract's two decimals, which would move the edges of ShareRobot's boxes (some 20 of 640 px) by 3 px.
DECIMALS = 3
LABELS: dict[str, Task] = {"affordance": "affordance", "trajectory": "trajectory", "points": "trajectory"}
_TASK_IN_QUESTION = re.compile(r"task is (?:to )?[\"'<\u201c](.+?)[\"'>\u201d]\s*\.", re.IGNORECASE | re.DOTALL)

Size = tuple[float, float]


def from_annotation(entry: dict[str, Any], size_of: Callable[[str], Size | None]) -> Item:
    """The item one annotation stands for, with empty reasoning.

    Args:
        entry: an object of one of the layouts above.
        size_of: (width, height) in pixels of the image with this path, or None where images are not at hand.

    Raises:
        ValueError: with the reason, where it is none of the layouts, or its label cannot be right.
    """
    image = _image_path(entry)
    instruction: Any
    turns = entry.get("conversations")
    if turns is not None:
        task, instruction, label = _question(turns)
        kept = {key: entry[key] for key in ("id",) if key in entry}
    else:
        named = [key for key in LABELS if key in entry]
        if len(named) != 1:
            raise ValueError(f"unknown layout: keys {sorted(map(str, entry))}; expected one of {', '.join(LABELS)}")
        task, instruction, label = LABELS[named[0]], entry.get("instruction"), entry[named[0]]
        kept = {key: entry[key] for key in ("id", "meta_data") if key in entry}
    if not isinstance(instruction, str):
        raise ValueError("instruction: is missing, or not text")
    try:
        prompt_text(task, instruction)
    except UserError as error:
        raise ValueError(str(error)) from None
    if turns is not None and _is_normalized(label):
        size, slack = (1.0, 1.0), 10.0**-DECIMALS
    else:
        size, slack = _image_size(entry, size_of(image)), SLACK_PX
    output = _box(label, size, slack) if task == "affordance" else _path(label, size, slack)
    answer = f"<think></think><output>{output}</output>"
    parse_answer(answer, task)
    return Item(image, task, instruction.strip(), answer, kept)


def _image_path(entry: dict[str, Any]) -> str:
    image = entry.get("image_path", entry.get("image"))
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if image is None and isinstance(entry.get("id"), str):
        image = entry["id"]
    if not isinstance(image, str) or not image:
        raise ValueError("image_path: is missing; expected the path of one image")
    return image


def _image_size(entry: dict[str, Any], real: Size | None) -> Size:
    """(width, height) of the picture the label was drawn on: as annotated, checked against the file where given."""
    meta = entry.get("meta_data")
    if isinstance(meta, dict) and "original_width" in meta and "original_height" in meta:
        said = (_number(meta["original_width"], "original_width"), _number(meta["original_height"], "original_height"))
        if min(said) < 1:
            raise ValueError(f"meta_data: image size {said[0]:g}x{said[1]:g}, expected at least one pixel a side")
        # A resized copy keeps the fractions; another shape does not, beyond the rounding of the resize.
        if real is not None and abs(said[0] * real[1] - said[1] * real[0]) > max(*said, *real):
            was = f"{said[0]:g}x{said[1]:g}"
            raise ValueError(f"the image is {real[0]:g}x{real[1]:g} pixels, the annotation was made on {was}")
        return said
    if real is None:
        raise ValueError("meta_data: no original_width and original_height; --images DIR takes the size from the file")
    return real


def _question(turns: object) -> tuple[Task, str, Any]:
    """Task, instruction and label of ShareRobot-Bench's two turns."""
    asked, said = turns_of(turns)
    found = _TASK_IN_QUESTION.search(asked[0])
    if found is None:
        raise ValueError('human turn: ends with neither task\'s format suffix nor asks: The task is "...".')
    try:
        label = json.loads(said[0])
    except (ValueError, RecursionError):
        raise ValueError(f"gpt turn: {said[0][:40]!r} is not a list of numbers") from None
    if not isinstance(label, list):
        raise ValueError(f"gpt turn: {said[0][:40]!r} is not a list of numbers")
    flat = label and not isinstance(label[0], list)
    if not flat:
        return "trajectory", found.group(1), label
    if len(label) != 4:
        raise ValueError(f"gpt turn: {len(label)} numbers, expected the four corners of a box")
    x1, y1, x2, y2 = (_number(value, "corner") for value in label)
    return "affordance", found.group(1), {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}


def _is_normalized(label: Any) -> bool:
    if isinstance(label, dict):
        return max(label["x"] + label["width"], label["y"] + label["height"]) <= 1
    return all(_number(v, "coordinate") <= 1 for point in label if isinstance(point, list) for v in point)


def _box(label: object, size: Size, slack: float) -> str:
    """The contract's box (normalized, centre) of one given by its top left corner."""
    if not isinstance(label, dict):
        raise ValueError("affordance: expected an object with x, y, width, height")
    missing = [name for name in ("x", "y", "width", "height") if name not in label]
    if missing:
        raise ValueError(f"affordance: lacks {', '.join(missing)}")
    x, y, width, height = (_number(label[name], name) for name in ("x", "y", "width", "height"))
    if width <= 0 or height <= 0:
        raise ValueError(f"affordance: the box is empty ({width:g} x {height:g})")
    left, right = (_inside(value, size[0], slack, "affordance: left or right edge") for value in (x, x + width))
    top, bottom = (_inside(value, size[1], slack, "affordance: top or bottom edge") for value in (y, y + height))
    values = {"x": (left + right) / 2, "y": (top + bottom) / 2, "width": right - left, "height": bottom - top}
    return "{" + ", ".join(f'"{name}": {value:.{DECIMALS}f}' for name, value in values.items()) + "}"


def _path(label: object, size: Size, slack: float) -> str:
    """The contract's list of points; more than MAX_POINTS are thinned evenly, both ends kept."""
    if not isinstance(label, list) or not label:
        raise ValueError("trajectory: has no points")
    if len(label) < MIN_POINTS:
        raise ValueError(f"trajectory: {len(label)} point, expected at least {MIN_POINTS}")
    points = []
    for index, point in enumerate(label):
        if not isinstance(point, list) or len(point) != 2:
            raise ValueError(f"trajectory: point {index} is not a pair [x, y]")
        pair = [_number(value, f"coordinate of point {index}") for value in point]
        where = f"trajectory: point {index}"
        points.append((_inside(pair[0], size[0], slack, where), _inside(pair[1], size[1], slack, where)))
    return "[" + ", ".join(f"[{x:.{DECIMALS}f}, {y:.{DECIMALS}f}]" for x, y in thinned(points)) + "]"


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` of the points (what the robot's grammar can answer), evenly by index, both ends kept."""
    if len(points) <= MAX_POINTS:
        return list(points)
    step = (len(points) - 1) / (MAX_POINTS - 1)
    return [points[round(k * step)] for k in range(MAX_POINTS)]


def _inside(value: float, extent: float, slack: float, what: str) -> float:
    """The coordinate as a fraction of the image's extent; on the edge where it is at most `slack` outside."""
    if not -slack <= value <= extent + slack:
        raise ValueError(f"{what} at {value:g} lies outside the image (0 to {extent:g})")
    return min(max(value / extent, 0.0), 1.0)


def _number(value: object, name: str) -> float:
    # The comparison is False for NaN and infinity, and safe for integers too large for a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        raise ValueError(f"{name}: {str(value)[:40]} is not a finite number")
    return float(value)
