"""An object's place and size from its box in one image and the table it stands on, without depth.

The near side of an object meets the table where the bottom edge of its box is, left and right edges give its width, and
the top edge mixes what is left: how deep it is and how high. One image can't part these two, so what things on a table
are like decides, as a prior. A solid (an upright elliptic cylinder) is fitted to the four edges and the prior by least
squares; the covariance of what comes out is the inverse of the normal equations, J^T J.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from drivers.protocols import Intrinsics
from edge.outline import Footprint
from edge.rays import on_plane, plane_derivative, project

Array = NDArray[np.float64]

EDGE_SIGMA = 0.05
"""What an edge of a box is off by, as a share of the box: that of boxes with a mean IoU of 0.85 (docs/training.md)."""

EDGE_SIGMA_PX = 1.0
"""And at least: the model sees a smaller picture than the camera takes."""

HEIGHT_M, HEIGHT_LOG = 0.032, 0.385
"""Prior of heights, log-normal: 95 of 100 things to grasp are 15 to 70 mm high."""

_HIGH_LOG = 0.35  # height against the footprint's narrow side: a cube and a lying bar have 0
_LONG_LOG = 0.50  # a bar three times as long as wide is two of these away
_SHAPE = 0.04  # how far top and bottom move, as a share of the box, for a cube or a ball where a cylinder is fitted
_TURNS = np.linspace(0.0, 2.0 * math.pi, 32, endpoint=False)
_RIM = np.column_stack([np.cos(_TURNS), np.sin(_TURNS)])
_SIDES_M = (0.002, 0.5)
_TALLEST_M = 0.2


@dataclass(frozen=True, eq=False)
class Solid:
    """An upright elliptic cylinder on the table.

    Attributes:
        footprint: base frame; its first side leads away from the camera, up the image.
        height_m: over the table.
        covariance: (5, 5) of x, y (base frame, m), the log of both sides, the log of the height.
    """

    footprint: Footprint
    height_m: float
    covariance: Array

    def side_sigma_m(self, side: int) -> float:
        """Standard deviation of one of the footprint's sides, 0 or 1."""
        return self.footprint.sides_m[side] * math.sqrt(float(self.covariance[2 + side, 2 + side]))

    @property
    def height_sigma_m(self) -> float:
        """Standard deviation of the height."""
        return self.height_m * math.sqrt(float(self.covariance[4, 4]))

    @property
    def position_covariance_m2(self) -> Array:
        """(3, 3) of the middle of the solid, half its height above the table."""
        J = np.zeros((3, 5))
        J[0, 0] = J[1, 1] = 1.0
        J[2, 4] = self.height_m / 2
        return J @ self.covariance @ J.T


def fit_solid(edges_px: Array, intrinsics: Intrinsics, T_base_camera: Array, table_z_m: float) -> Solid | None:
    """The solid whose picture fills a box.

    Args:
        edges_px: (4,) left, top, right, bottom, pixel centres at integers.
        T_base_camera: (4, 4) camera coordinates to base coordinates.
        table_z_m: height of the table in the base frame.

    Returns:
        None where the box does not lie on the table.
    """
    size_px, middle_px = edges_px[2:] - edges_px[:2], (edges_px[:2] + edges_px[2:]) / 2
    eye, z_m = T_base_camera[:3, 3], table_z_m + HEIGHT_M / 2
    middle = on_plane(middle_px, intrinsics, T_base_camera, z_m)[0]
    if not (eye[2] > z_m and np.isfinite(middle).all()):
        return None
    by_pixel = plane_derivative(middle_px, intrinsics, T_base_camera, z_m)
    if not np.isfinite(by_pixel).all():
        return None
    behind = -by_pixel[:, 1] / np.linalg.norm(by_pixel[:, 1])  # up a column of the image, as the box's sides go
    axes = np.array([behind, [-behind[1], behind[0]]])
    range_m = float((middle - eye) @ T_base_camera[:3, 2])
    side_m = max(float(size_px[0]), 1.0) * range_m / intrinsics.fx
    sigma_px = np.hypot(np.hypot(EDGE_SIGMA, [0.0, _SHAPE]) * size_px, EDGE_SIGMA_PX)[[0, 1, 0, 1]]

    def residuals(x: Array) -> Array:
        sides, height_m = np.exp(x[2:4]), math.exp(x[4])
        narrow_m = math.sqrt(2.0 / float((sides**-2.0).sum()))  # a smooth least
        rim = x[:2] + (_RIM * sides / 2) @ axes
        foot = np.column_stack([rim, np.full(len(rim), table_z_m)])
        seen = project(np.vstack([foot, foot + (0.0, 0.0, height_m)]), intrinsics, T_base_camera)
        edges = np.concatenate([seen.min(axis=0), seen.max(axis=0)])
        prior = [
            (x[4] - math.log(HEIGHT_M)) / HEIGHT_LOG,
            (x[4] - math.log(narrow_m)) / _HIGH_LOG,
            (x[2] - x[3]) / _LONG_LOG,
        ]
        return np.concatenate([(edges - edges_px) / sigma_px, prior])

    start = np.array([*middle[:2], *np.log([side_m, side_m, HEIGHT_M])])
    tallest_m = max(min(_TALLEST_M, 0.8 * float(eye[2] - table_z_m)), 1.01 * HEIGHT_M)
    low = np.array([*(middle[:2] - _SIDES_M[1]), *np.log([_SIDES_M[0]] * 3)])
    high = np.array([*(middle[:2] + _SIDES_M[1]), *np.log([_SIDES_M[1], _SIDES_M[1], tallest_m])])
    start = np.clip(start, low + 1e-6, high - 1e-6)
    found = least_squares(residuals, start, x_scale=(0.01, 0.01, 0.3, 0.3, 0.3), bounds=(low, high), max_nfev=60)
    covariance = np.linalg.inv(found.jac.T @ found.jac)
    sides = (float(np.exp(found.x[2])), float(np.exp(found.x[3])))
    yaw_rad = math.atan2(behind[1], behind[0])
    return Solid(Footprint(found.x[:2], yaw_rad, sides), float(np.exp(found.x[4])), covariance)
