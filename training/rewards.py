"""The three verifiable rewards of VLA-R1, and their sum in verl's custom-reward form.

Equations and constants are those of the released training code (RFT_training/train_utils/robot_bbox_traj_norm.py of
GigaAI-research/VLA-R1), read leniently as there: tags in any case, values outside the image clipped instead of refused.
Two things are ours: ``null`` (what was named is not in the picture), and that a number which is not finite scores 0.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge.agreement import frechet_over, ground_distances, iou
from edge.contract import Affordance
from training.metrics import giou

TASK_WEIGHT, FORMAT_WEIGHT = 0.9, 0.1
ANGLE_WEIGHT = 0.25  # per radian between local directions
LENGTH_WEIGHT = 0.10  # per e-fold between local step lengths
DIAGONAL = math.sqrt(2.0)  # the farthest two points of the unit square
WORST = DIAGONAL + ANGLE_WEIGHT * math.pi + LENGTH_WEIGHT * math.log(10.0)
EPS = 1e-12  # shorter than this is no length

Points = NDArray[np.float64]

_TAGS = {
    name: (re.compile(f"<{name}>", re.IGNORECASE | re.ASCII), re.compile(f"</{name}>", re.IGNORECASE | re.ASCII))
    for name in ("think", "output")
}
_UNREADABLE = object()  # not None, which is what JSON's null reads as


def region_alignment(got: Affordance, want: Affordance) -> float:
    """Reward of a box, in [0, 1]: (GIoU + 1) / 2 of the boxes clipped to the image."""
    return (giou(got, want) + 1.0) / 2.0


def trajectory_consistency(got: ArrayLike, want: ArrayLike) -> float:
    """Reward of a trajectory, in [0, 1]: 1 - min(1, D / N), D the discrete Fréchet distance aware of way and pace.

    The ground cost of two points is their distance + 0.25 · the angle (rad) between their local directions + 0.10 · the
    absolute logarithm of the ratio of their local step lengths; N = √2 + 0.25 π + 0.10 ln 10.

    Args:
        got: (n, 2) points, normalized, in order of travel; clipped to the image.
        want: (m, 2) likewise.

    Returns:
        0 where either list is empty or holds a number that is not finite.
    """
    p, q = _clipped(got), _clipped(want)
    if p is None or q is None:
        return 0.0
    (p_way, p_pace), (q_way, q_pace) = _local_steps(p), _local_steps(q)
    cross = p_way[:, None, 0] * q_way[None, :, 1] - p_way[:, None, 1] * q_way[None, :, 0]
    angles = np.arctan2(np.abs(cross), p_way @ q_way.T)  # exact near 0, where an arccosine is not
    angles[~p_way.any(axis=1)] = 0.0
    angles[:, ~q_way.any(axis=1)] = 0.0
    rows, columns = p_pace[:, None], q_pace[None]
    shift = np.where((rows > EPS) & (columns > EPS), 0.0, EPS)
    ratios = np.abs(np.log((rows + shift) / (columns + shift)))
    distance = frechet_over(ground_distances(p, q) + ANGLE_WEIGHT * angles + LENGTH_WEIGHT * ratios)
    return 1.0 - min(1.0, distance / WORST)


def plain_frechet_consistency(got: ArrayLike, want: ArrayLike) -> float:
    """`trajectory_consistency` without direction and pace: 1 - min(1, D / √2), D with Euclidean ground distance."""
    p, q = _clipped(got), _clipped(want)
    if p is None or q is None:
        return 0.0
    return 1.0 - min(1.0, frechet_over(ground_distances(p, q)) / DIAGONAL)


def format_reward(text: str) -> float:
    """1 where there is a think block and an output block that holds JSON (``null`` is JSON), else 0."""
    return float(_block(text, "think") is not None and _output(text) is not _UNREADABLE)


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None
) -> dict[str, float]:
    """The reward of one answer, in verl's custom-reward form. It never raises, whatever the texts are.

    Args:
        data_source: of the dataset's row; no reward depends on it.
        solution_str: the answer of the model.
        ground_truth: the answer wanted, with its output block.
        extra_info: ``{"frechet": "plain"}`` scores trajectories by `plain_frechet_consistency` instead.

    Returns:
        ``score`` = 0.9 · ``task`` + 0.1 · ``format``; for boxes also ``iou`` and ``giou``, for trajectories
        ``frechet`` (1 - task). Always all keys, NaN where one does not apply.
    """
    plain = isinstance(extra_info, dict) and extra_info.get("frechet") == "plain"
    got, want = _output(solution_str), _output(ground_truth)
    task, nan = 0.0, math.nan
    figures = {"iou": nan, "giou": nan, "frechet": nan}
    if got is None and want is None:
        task = 1.0
    elif (got_box := _box(got)) is not None and (want_box := _box(want)) is not None:
        figures |= {"iou": iou(got_box, want_box), "giou": giou(got_box, want_box)}
        task = region_alignment(got_box, want_box)
    elif (got_points := _points(got)) is not None and (want_points := _points(want)) is not None:
        task = (plain_frechet_consistency if plain else trajectory_consistency)(got_points, want_points)
        figures["frechet"] = 1.0 - task
    form = format_reward(solution_str)
    return {"score": TASK_WEIGHT * task + FORMAT_WEIGHT * form, "task": task, "format": form, **figures}


def _clipped(points: ArrayLike) -> Points | None:
    p = np.asarray(points, dtype=float).reshape(-1, 2)
    return np.clip(p, 0.0, 1.0) if len(p) and np.isfinite(p).all() else None


def _local_steps(p: Points) -> tuple[Points, Points]:
    """Unit direction (n, 2) and step length (n,) at each point; zero where there is none.

    Inside, the direction is that of the sum of both unit steps (of the first where they cancel), the length that of the
    following step; at the ends those of the one step there.
    """
    if len(p) == 1:
        return np.zeros((1, 2)), np.zeros(1)
    steps = np.diff(p, axis=0)
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    ways = np.where(lengths[:, None] < EPS, 0.0, steps / np.maximum(lengths, EPS)[:, None])
    both = ways[:-1] + ways[1:]
    norms = np.hypot(both[:, 0], both[:, 1])[:, None]
    inner = np.where(norms < EPS, ways[:-1], both / np.maximum(norms, EPS))
    return np.concatenate([ways[:1], inner, ways[-1:]]), np.append(lengths, lengths[-1])


def _block(text: object, name: str) -> str | None:
    """What stands in the first ``<name>…</name>``; None where there is none."""
    if not isinstance(text, str):
        return None
    opening, closing = _TAGS[name]
    if (start := opening.search(text)) is None or (end := closing.search(text, start.end())) is None:
        return None
    return text[start.end() : end.start()]


def _output(text: object) -> object:
    body = _block(text, "output")
    if body is None:
        return _UNREADABLE
    try:
        return json.loads(body.strip())
    except (ValueError, RecursionError):
        return _UNREADABLE


def _box(value: object) -> Affordance | None:
    if not isinstance(value, dict):
        return None
    numbers = [_number(value.get(name)) for name in ("x", "y", "width", "height")]
    return None if any(math.isnan(n) for n in numbers) else Affordance(*numbers)


def _points(value: object) -> Points | None:
    """(n, 2), n >= 1; None for anything but a list of pairs of finite numbers."""
    if not isinstance(value, list) or not value or not all(isinstance(p, list) and len(p) == 2 for p in value):
        return None
    points = np.array([[_number(x), _number(y)] for x, y in value])
    return None if np.isnan(points).any() else points


def _number(value: object) -> float:
    """The number a JSON value stands for, a text such as "0.5" too, as in the released code; NaN for none."""
    if not isinstance(value, int | float | str):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
