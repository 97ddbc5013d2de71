"""One frame, where it was taken from, and the table in it: what every lift from pixels to metres starts from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivers.protocols import Frame
from edge.rays import on_plane, project
from edge.uncertainty import depth_covariance, in_plane, outline_covariance

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """A frame in the arm's base frame.

    Attributes:
        T_base_camera: (4, 4) camera coordinates to base coordinates.
        table_z_m: height of the table in the base frame.
        reach_covariance_m2: (3, 3) of where the tip ends up for a point that the camera saw, base frame; None: unknown.
    """

    frame: Frame
    T_base_camera: Array
    table_z_m: float = 0.0
    reach_covariance_m2: Array | None = None

    @property
    def calibration_m2(self) -> Array:
        """``reach_covariance_m2``, zero where it is unknown."""
        return np.zeros((3, 3)) if self.reach_covariance_m2 is None else np.asarray(self.reach_covariance_m2, float)

    @property
    def size_px(self) -> Array:
        """(2,) width and height of the image."""
        return np.array([self.frame.intrinsics.width, self.frame.intrinsics.height], dtype=float)

    def pixel_of(self, point_m: Array) -> Array:
        """Where a point (3,) of the base frame is seen, (2,)."""
        return project(point_m[None], self.frame.intrinsics, self.T_base_camera)[0]

    def on_plane(self, pixels_px: ArrayLike, above_table_m: float = 0.0) -> Array:
        """Where pixels' rays come down to a height over the table: (n, 3) base frame, infinite where they do not."""
        return on_plane(pixels_px, self.frame.intrinsics, self.T_base_camera, self.table_z_m + above_table_m)

    def in_plane_m2(self, pixel_px: Array, covariance_px2: Array, above_table_m: float = 0.0) -> Array:
        """(3, 3) of the place at a height over the table that a pixel (2,) with covariance (2, 2) means."""
        z_m = self.table_z_m + above_table_m
        return in_plane(pixel_px, covariance_px2, self.frame.intrinsics, self.T_base_camera, z_m)

    def depth_m2(self, point_m: Array, n_pixels: int) -> Array:
        """(3, 3) of a point (3,) that is the mean of so many depth pixels."""
        return depth_covariance(point_m, self.T_base_camera, n_pixels)

    def outline_m2(self, point_m: Array) -> Array:
        """(3, 3) of a centre (3,) found between the edges of what depth shows at its height."""
        return outline_covariance(self.pixel_of(point_m), self.frame.intrinsics, self.T_base_camera, float(point_m[2]))
