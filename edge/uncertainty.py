"""How well a place is known, by cause: the calibration, the depth image, the box or outline in the picture.

All covariances are of places in the base frame, where the jaws end up against where the thing is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Intrinsics
from edge.rays import plane_derivative

Array = NDArray[np.float64]

CONFIDENT = 1.96
"""So many standard deviations hold an error in 95 of 100 cases, along one direction."""

DISC = 2.45
"""The same for the distance in a plane: the root of chi-square's 95 % of two degrees of freedom."""

DEPTH_NOISE_PER_M = 0.004
"""Stereo depth scatters by this times the squared range: 0.1 px of disparity, 60 mm baseline, 420 px focal length."""

DEPTH_BIAS = 0.003
"""Share of the range by which all of a depth image may be off, which no averaging takes away (standard deviation)."""

_PATCH_PX = 25.0  # depth pixels this many to a patch share their noise: stereo matches windows
_OUTLINE_PX = 0.5  # of the middle between two edges seen in a depth image, each to 0.7 px
_OUTLINE_M = 0.0005  # what fitting a rectangle or disc to a top face leaves


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Of a grasp: covariances (3, 3) in m^2 of its point, base frame, and standard deviations in metres.

    Attributes:
        calibration_m2: of where the tip ends up for a point that the camera saw.
        depth_m2: from the depth image's noise and bias.
        box_m2: from the box, or the outline, in the picture.
        width_m: of the width between the jaws; ``top_m``: of the object's height, calibration left out.
    """

    calibration_m2: Array = field(default_factory=lambda: np.zeros((3, 3)))
    depth_m2: Array = field(default_factory=lambda: np.zeros((3, 3)))
    box_m2: Array = field(default_factory=lambda: np.zeros((3, 3)))
    width_m: float = 0.0
    top_m: float = 0.0

    @property
    def covariance_m2(self) -> Array:
        """All causes together, (3, 3)."""
        return self.calibration_m2 + self.depth_m2 + self.box_m2

    def along_m(self, axis: Array) -> float:
        """Standard deviation along a unit vector (3,)."""
        return math.sqrt(max(float(axis @ self.covariance_m2 @ axis), 0.0))

    def main_cause(self, axis: Array) -> str:
        """Which of "calibration", "depth" and "box" gives the most along a unit vector (3,)."""
        shares = {"calibration": self.calibration_m2, "depth": self.depth_m2, "box": self.box_m2}
        return max(shares, key=lambda cause: float(axis @ shares[cause] @ axis))


def depth_noise_m(point_m: Array, T_base_camera: Array) -> float:
    """Standard deviation of one depth pixel that shows a point (3,) of the base frame."""
    return DEPTH_NOISE_PER_M * float((point_m - T_base_camera[:3, 3]) @ T_base_camera[:3, 2]) ** 2


def depth_covariance(point_m: Array, T_base_camera: Array, n_pixels: int) -> Array:
    """(3, 3) of a place (3,) found as the mean of ``n_pixels`` of a depth image: noise averages out, bias does not.

    An error of depth moves a point along its ray.
    """
    to_point = point_m - T_base_camera[:3, 3]
    range_m = float(to_point @ T_base_camera[:3, 2])
    noise_m = depth_noise_m(point_m, T_base_camera) / math.sqrt(max(n_pixels / _PATCH_PX, 1.0))
    ray = to_point / range_m
    return ((DEPTH_BIAS * range_m) ** 2 + noise_m**2) * np.outer(ray, ray)


def outline_covariance(pixel_px: Array, intrinsics: Intrinsics, T_base_camera: Array, z_m: float) -> Array:
    """(3, 3) of a centre found between the edges of what a depth image shows at a height: as fine as its pixels are."""
    return in_plane(pixel_px, _OUTLINE_PX**2 * np.eye(2), intrinsics, T_base_camera, z_m) + np.diag(
        [_OUTLINE_M**2, _OUTLINE_M**2, 0.0]
    )


def in_plane(pixel_px: Array, covariance_px2: Array, intrinsics: Intrinsics, T_base_camera: Array, z_m: float) -> Array:
    """(3, 3) of the place on the level plane ``z_m`` that a pixel (2,) with covariance (2, 2) means."""
    J = plane_derivative(pixel_px, intrinsics, T_base_camera, z_m)
    covariance = np.zeros((3, 3))
    covariance[:2, :2] = J @ covariance_px2 @ J.T
    return covariance
