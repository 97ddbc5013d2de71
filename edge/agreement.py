"""How far two answers lie apart, boxes by overlap and paths by Fréchet distance, and which of several is the middle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from edge.contract import Affordance, Output, Trajectory

Points = NDArray[np.float64]
Corners = tuple[float, float, float, float]


def corners(box: Affordance) -> Corners:
    """(left, top, right, bottom) clipped to the image; negative width and height are taken absolute."""
    half_width, half_height = abs(box.width) / 2, abs(box.height) / 2
    sides = box.x - half_width, box.y - half_height, box.x + half_width, box.y + half_height
    left, top, right, bottom = (min(1.0, max(0.0, side)) for side in sides)
    return left, top, right, bottom


def areas(a: Affordance, b: Affordance) -> tuple[float, float, float]:
    """Area of the intersection, of the union, and of the smallest box around both."""
    ax0, ay0, ax1, ay1 = corners(a)
    bx0, by0, bx1, by1 = corners(b)
    overlap = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - overlap
    return overlap, union, (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))


def iou(a: Affordance, b: Affordance) -> float:
    """Intersection over union of two boxes, clipped to the image; 0 where both are empty."""
    overlap, union, _ = areas(a, b)
    return overlap / union if union > 0.0 else 0.0


def as_points(values: ArrayLike) -> Points:
    """(n, 2) float64. Raises ValueError for an empty list."""
    points = np.asarray(values, dtype=float).reshape(-1, 2)
    if not len(points):
        raise ValueError("a list of points is empty")
    return points


def ground_distances(a: ArrayLike, b: ArrayLike) -> Points:
    """(n, m) Euclidean distances of two point lists (n, 2), (m, 2). Raises ValueError where one is empty."""
    return np.asarray(cdist(as_points(a), as_points(b)))


def frechet_over(ground: Points) -> float:
    """Discrete Fréchet distance for a matrix (n, m) of ground costs.

    Eiter and Mannila, Computing discrete Fréchet distance, 1994: the recurrence of their table 1, by rows.
    """
    rows: list[list[float]] = ground.tolist()  # plain floats: a few times faster than indexing an array
    reach: list[float] = []
    for cost in rows[0]:
        reach.append(max(reach[-1], cost) if reach else cost)
    for row in rows[1:]:
        corner, left = reach[0], max(reach[0], row[0])
        reach[0] = left
        for j in range(1, len(row)):
            above = reach[j]
            left = max(min(above, corner, left), row[j])
            reach[j] = left
            corner = above
    return reach[-1]


def discrete_frechet(a: ArrayLike, b: ArrayLike) -> float:
    """Discrete Fréchet distance of two point lists (n, 2), (m, 2), Euclidean ground distance.

    Raises:
        ValueError: a list is empty.
    """
    return frechet_over(ground_distances(a, b))


def distance(a: Output | None, b: Output | None) -> float:
    """How far two outputs lie apart, in [0, 1].

    1 - IoU of two boxes; the discrete Fréchet distance of two trajectories over √2, the image's diagonal in fractions
    of its sides; 0 where neither found anything; 1 for outputs of two kinds.
    """
    if isinstance(a, Affordance) and isinstance(b, Affordance):
        return 1.0 - iou(a, b)
    if isinstance(a, Trajectory) and isinstance(b, Trajectory):
        return min(1.0, discrete_frechet(a.points, b.points) / math.sqrt(2.0))
    return 0.0 if a is None and b is None else 1.0


def medoid(outputs: Sequence[Output | None]) -> tuple[int, float]:
    """Which of the outputs (one at least) has the least mean `distance` to the others, the first of several, and that
    mean: the spread, in [0, 1]; 0 for a single output."""
    apart = np.array([[distance(a, b) for b in outputs] for a in outputs])
    means = apart.sum(axis=1) / max(1, len(outputs) - 1)
    best = int(means.argmin())
    return best, float(means[best])
