"""What the depth image shows: points in the base frame, and the things on the table that they part into."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from drivers.protocols import Frame
from edge.rays import to_base

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

RAISED_M = 0.006  # what stands higher above the table than depth noise does
TALLEST_M = 0.070  # higher things are the arm or a person, not objects
MIN_PIXELS = 40
_JUMP_M = 0.005  # neighbouring pixels of one surface differ by less, even on faces seen at a slant


def depth_points(frame: Frame, T_base_camera: Array, low_px: Array, high_px: Array) -> tuple[Array, Array]:
    """Of a window of a frame with depth: base-frame points (h, w, 3), NaN where unknown, and pixels (h, w, 2)."""
    assert frame.depth_m is not None
    height, width = frame.depth_m.shape
    x0, y0 = (int(np.clip(math.floor(v), 0, n - 1)) for v, n in zip(low_px, (width, height), strict=True))
    x1, y1 = (int(np.clip(math.ceil(v), 0, n - 1)) + 1 for v, n in zip(high_px, (width, height), strict=True))
    # A 3x3 median takes single wild pixels away and keeps edges where they are.
    depth = cv2.medianBlur(np.ascontiguousarray(frame.depth_m[y0:y1, x0:x1], dtype=np.float32), 3)
    u, v = np.meshgrid(np.arange(x0, x1, dtype=float), np.arange(y0, y1, dtype=float))
    pixels = np.stack([u, v], -1)
    points = to_base(pixels, depth, frame.intrinsics, T_base_camera).reshape(*depth.shape, 3)
    points[~(depth > 0.0) | ~np.isfinite(depth)] = np.nan
    return points, pixels


def raised(points_m: Array, table_z_m: float) -> Mask:
    """Which of points (h, w, 3) are of something that stands on the table."""
    with np.errstate(invalid="ignore"):
        return (points_m[..., 2] > table_z_m + RAISED_M) & (points_m[..., 2] < table_z_m + TALLEST_M)


def things(points_m: Array, table_z_m: float, T_base_camera: Array) -> list[Mask]:
    """What is raised of points (h, w, 3), parted where the distance from the camera jumps: a mask a visible thing."""
    above = raised(points_m, table_z_m)
    axis = T_base_camera[:3, 2]
    depth = np.where(above, np.nan_to_num(points_m) @ axis, 1e3)
    index = np.arange(above.size).reshape(above.shape)
    right = above[:, :-1] & above[:, 1:] & (np.abs(np.diff(depth, axis=1)) < _JUMP_M)
    down = above[:-1] & above[1:] & (np.abs(np.diff(depth, axis=0)) < _JUMP_M)
    rows = np.concatenate([index[:, :-1][right], index[:-1][down]])
    columns = np.concatenate([index[:, 1:][right], index[1:][down]])
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(above.size, above.size))
    _, label = connected_components(graph, directed=False)
    label = label.reshape(above.shape)
    names, counts = np.unique(label[above], return_counts=True)
    return [label == name for name in names[counts >= MIN_PIXELS]]
