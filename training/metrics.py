"""How good answers are: boxes by overlap, trajectories by distance, normalized to the image; and how sure we are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import directed_hausdorff

from edge.agreement import Points, areas, as_points
from edge.contract import Affordance

RMSE_POINTS = 32  # a path is resampled to so many points before it is compared with another point by point
TINY = 1e-12  # smaller than this is no area and no length


def giou(a: Affordance, b: Affordance) -> float:
    """Generalized IoU of two boxes clipped to the image, in [-1, 1]: IoU less the share of the hull that is neither's.

    Rezatofighi et al., Generalized intersection over union, 2019, algorithm 1; areas below 1e-12 count as that, so that
    two equal empty boxes have 0.
    """
    overlap, union, hull = areas(a, b)
    hull = max(hull, TINY)
    return max(-1.0, min(1.0, (overlap / union if union > 0.0 else 0.0) - (hull - max(union, TINY)) / hull))


def hausdorff(a: ArrayLike, b: ArrayLike) -> float:
    """Hausdorff distance of two point lists (n, 2), (m, 2), both ways. Raises ValueError where one is empty."""
    p, q = as_points(a), as_points(b)
    return float(max(directed_hausdorff(p, q)[0], directed_hausdorff(q, p)[0]))


def rmse(a: ArrayLike, b: ArrayLike) -> float:
    """Root mean square distance of two paths (n, 2), (m, 2), point by point.

    Paths of equal numbers of points are compared as they are; others are first resampled, each to the same 32 points
    evenly spaced along its polyline. Raises ValueError where one is empty.
    """
    p, q = as_points(a), as_points(b)
    if len(p) != len(q):
        p, q = resample(p, RMSE_POINTS), resample(q, RMSE_POINTS)
    return float(np.sqrt(np.mean(np.sum((p - q) ** 2, axis=1))))


def resample(points: ArrayLike, count: int) -> Points:
    """`count` points (count, 2) evenly spaced by arc length along a polyline (n, 2), its ends kept."""
    p = as_points(points)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(p, axis=0).T))])
    stations = np.linspace(0.0, along[-1], count)
    return np.stack([np.interp(stations, along, p[:, 0]), np.interp(stations, along, p[:, 1])], axis=1)


def end_point_error(got: ArrayLike, want: ArrayLike) -> float:
    """Distance of the last points of two point lists (n, 2), (m, 2). Raises ValueError where one is empty."""
    return float(np.hypot(*(as_points(got)[-1] - as_points(want)[-1])))


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
