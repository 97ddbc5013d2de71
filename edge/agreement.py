"""How far answers to one question lie apart, and which of several lies nearest to all: consistency as confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import cdist

from edge.contract import Affordance, Output, Trajectory

Points = Sequence[tuple[float, float]]


def iou(a: Affordance, b: Affordance) -> float:
    """Intersection over union of two boxes clipped to the image, in [0, 1]; 0 where nothing of either is inside."""
    (a_left, a_top, a_right, a_bottom), (b_left, b_top, b_right, b_bottom) = a.corners, b.corners
    overlap = _area(max(a_left, b_left), max(a_top, b_top), min(a_right, b_right), min(a_bottom, b_bottom))
    union = _area(*a.corners) + _area(*b.corners) - overlap
    return overlap / union if union > 0.0 else 0.0


def discrete_frechet(a: Points, b: Points) -> float:
    """The discrete Fréchet distance of two paths of at least one point, in the points' unit.

    The shortest leash for which both can be walked from start to end, point by point and never back (Eiter and Mannila,
    Computing discrete Fréchet distance, 1994, table 1).
    """
    ground = cdist(np.asarray(a, np.float64), np.asarray(b, np.float64))
    leash = np.maximum.accumulate(ground[0])
    for row in ground[1:]:
        reach = np.minimum(leash, np.concatenate(([np.inf], leash[:-1])))
        leash = np.empty_like(reach)
        last = np.inf
        for j, (before, here) in enumerate(zip(reach, row, strict=True)):
            leash[j] = last = max(here, min(before, last))
    return float(leash[-1])


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


def _area(left: float, top: float, right: float, bottom: float) -> float:
    return max(0.0, right - left) * max(0.0, bottom - top)
