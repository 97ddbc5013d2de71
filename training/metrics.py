"""How good answers are: IoU of boxes, discrete Fréchet distance of trajectories. Everything normalized to the image."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge.contract import Affordance


def iou(a: Affordance, b: Affordance) -> float:
    """Intersection over union of two boxes, clipped to the image; 0 where both are empty."""
    ax0, ay0, ax1, ay1 = a.corners
    bx0, by0, bx1, by1 = b.corners
    overlap = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - overlap
    return overlap / union if union > 0.0 else 0.0


def discrete_frechet(a: ArrayLike, b: ArrayLike) -> float:
    """Discrete Fréchet distance of two point lists (n, 2), (m, 2), Euclidean ground distance.

    Eiter and Mannila, Computing discrete Fréchet distance, 1994: the recurrence of their table 1, by rows.

    Raises:
        ValueError: a list is empty.
    """
    p, q = np.asarray(a, dtype=float).reshape(-1, 2), np.asarray(b, dtype=float).reshape(-1, 2)
    if not len(p) or not len(q):
        raise ValueError("discrete Fréchet distance: a list of points is empty")
    ground: NDArray[np.float64] = np.linalg.norm(p[:, None] - q[None], axis=-1)
    reach = np.empty_like(ground)
    reach[0] = np.maximum.accumulate(ground[0])
    for i in range(1, len(p)):
        reach[i, 0] = max(reach[i - 1, 0], ground[i, 0])
        for j in range(1, len(q)):
            reach[i, j] = max(min(reach[i - 1, j], reach[i - 1, j - 1], reach[i, j - 1]), ground[i, j])
    return float(reach[-1, -1])
