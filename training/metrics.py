"""How good answers are: boxes by overlap, trajectories by distance, normalized to the image; and how sure we are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist, directed_hausdorff

from edge.contract import Affordance

RMSE_POINTS = 32  # a path is resampled to so many points before it is compared with another point by point
TINY = 1e-12  # smaller than this is no area and no length

Points = NDArray[np.float64]
Corners = tuple[float, float, float, float]


def corners(box: Affordance) -> Corners:
    """(left, top, right, bottom) clipped to the image; negative width and height are taken absolute."""
    half_width, half_height = abs(box.width) / 2, abs(box.height) / 2
    sides = box.x - half_width, box.y - half_height, box.x + half_width, box.y + half_height
    left, top, right, bottom = (min(1.0, max(0.0, side)) for side in sides)
    return left, top, right, bottom


def iou(a: Affordance, b: Affordance) -> float:
    """Intersection over union of two boxes, clipped to the image; 0 where both are empty."""
    overlap, union, _ = _areas(a, b)
    return overlap / union if union > 0.0 else 0.0


def giou(a: Affordance, b: Affordance) -> float:
    """Generalized IoU of two boxes clipped to the image, in [-1, 1]: IoU less the share of the hull that is neither's.

    Rezatofighi et al., Generalized intersection over union, 2019, algorithm 1; areas below 1e-12 count as that, so that
    two equal empty boxes have 0.
    """
    overlap, union, hull = _areas(a, b)
    hull = max(hull, TINY)
    return max(-1.0, min(1.0, (overlap / union if union > 0.0 else 0.0) - (hull - max(union, TINY)) / hull))


def _areas(a: Affordance, b: Affordance) -> tuple[float, float, float]:
    """Area of the intersection, of the union, and of the smallest box around both."""
    ax0, ay0, ax1, ay1 = corners(a)
    bx0, by0, bx1, by1 = corners(b)
    overlap = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - overlap
    return overlap, union, (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))


def ground_distances(a: ArrayLike, b: ArrayLike) -> Points:
    """(n, m) Euclidean distances of two point lists (n, 2), (m, 2). Raises ValueError where one is empty."""
    return np.asarray(cdist(_points(a), _points(b)))


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


def hausdorff(a: ArrayLike, b: ArrayLike) -> float:
    """Hausdorff distance of two point lists (n, 2), (m, 2), both ways. Raises ValueError where one is empty."""
    p, q = _points(a), _points(b)
    return float(max(directed_hausdorff(p, q)[0], directed_hausdorff(q, p)[0]))


def rmse(a: ArrayLike, b: ArrayLike) -> float:
    """Root mean square distance of two paths (n, 2), (m, 2), point by point.

    Paths of equal numbers of points are compared as they are; others are first resampled, each to the same 32 points
    evenly spaced along its polyline. Raises ValueError where one is empty.
    """
    p, q = _points(a), _points(b)
    if len(p) != len(q):
        p, q = resample(p, RMSE_POINTS), resample(q, RMSE_POINTS)
    return float(np.sqrt(np.mean(np.sum((p - q) ** 2, axis=1))))


def resample(points: ArrayLike, count: int) -> Points:
    """`count` points (count, 2) evenly spaced by arc length along a polyline (n, 2), its ends kept."""
    p = _points(points)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(p, axis=0).T))])
    stations = np.linspace(0.0, along[-1], count)
    return np.stack([np.interp(stations, along, p[:, 0]), np.interp(stations, along, p[:, 1])], axis=1)


def end_point_error(got: ArrayLike, want: ArrayLike) -> float:
    """Distance of the last points of two point lists (n, 2), (m, 2). Raises ValueError where one is empty."""
    return float(np.hypot(*(_points(got)[-1] - _points(want)[-1])))


def bootstrap_interval(
    values: ArrayLike, statistic: Callable[[Points], float] = np.mean, seed: int = 0, n: int = 1000
) -> tuple[float, float]:
    """95 % interval (low, high) of a statistic by the percentile bootstrap (Efron and Tibshirani, 1993, chapter 13).

    Args:
        values: (k,) one figure an item.
        statistic: of an array (k,).
        seed: of the resampling; the same values give the same interval.
        n: number of resamples.

    Returns:
        (NaN, NaN) of no value. Values that are all equal, a share of 0 or 1 among them, give an interval of no width.
    """
    sample = np.asarray(values, dtype=float)
    if not len(sample):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = [float(statistic(sample[rng.integers(len(sample), size=len(sample))])) for _ in range(n)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def _points(values: ArrayLike) -> Points:
    points = np.asarray(values, dtype=float).reshape(-1, 2)
    if not len(points):
        raise ValueError("a list of points is empty")
    return points
