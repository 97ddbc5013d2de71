"""Pixels to rays, to points by their depth, and to places on a level plane."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from calib.rigid import apply
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]

_LEVEL = 1e-6  # rays that sink less meet no table
_STEP_PX = 0.5


def pixel_rays(pixels_px: ArrayLike, intrinsics: Intrinsics) -> Array:
    """Rays of pixels (n, 2), distortion undone: (n, 3) in the camera frame with z = 1.

    Raises UserError where the intrinsics are nominal.
    """
    intrinsics.require_measured()
    pixels = np.asarray(pixels_px, dtype=float).reshape(-1, 2)
    if any(intrinsics.distortion):
        distortion = np.array(intrinsics.distortion, dtype=float)
        xy = cv2.undistortPoints(pixels[:, None], intrinsics.matrix, distortion).reshape(-1, 2).astype(float)
    else:
        xy = (pixels - (intrinsics.cx, intrinsics.cy)) / (intrinsics.fx, intrinsics.fy)
    return np.column_stack([xy, np.ones(len(xy))])


def deproject(pixels_px: ArrayLike, depth_m: ArrayLike, intrinsics: Intrinsics) -> Array:
    """Points (n, 3) in the camera frame of pixels (n, 2) with depth (n,) along the optical axis."""
    return pixel_rays(pixels_px, intrinsics) * np.asarray(depth_m, dtype=float).reshape(-1, 1)


def project(points_m: Array, intrinsics: Intrinsics, T_base_camera: Array) -> Array:
    """Pixels (n, 2) of base-frame points (n, 3) in front of the camera, distortion included."""
    in_camera = (points_m - T_base_camera[:3, 3]) @ T_base_camera[:3, :3]
    distortion = np.array(intrinsics.distortion, dtype=float) if intrinsics.distortion else None
    pixels, _ = cv2.projectPoints(in_camera, np.zeros(3), np.zeros(3), intrinsics.matrix, distortion)
    return np.asarray(pixels, dtype=float).reshape(-1, 2)


def on_plane(pixels_px: ArrayLike, intrinsics: Intrinsics, T_base_camera: Array, z_m: float) -> Array:
    """Where rays of pixels (n, 2) meet the level plane ``z_m``: (n, 3) base frame, infinite where they do not."""
    rays = pixel_rays(pixels_px, intrinsics) @ T_base_camera[:3, :3].T
    drop_m = z_m - T_base_camera[2, 3]
    points = np.full(rays.shape, np.inf)
    down = rays[:, 2] * np.sign(drop_m) > _LEVEL
    points[down] = T_base_camera[:3, 3] + rays[down] * (drop_m / rays[down, 2])[:, None]
    return points


def plane_derivative(pixel_px: Array, intrinsics: Intrinsics, T_base_camera: Array, z_m: float) -> Array:
    """(2, 2) metres a pixel: how the place on the level plane ``z_m`` moves with the pixel (2,); not finite off it."""
    steps = _STEP_PX * np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    right, left, down, up = on_plane(pixel_px + steps, intrinsics, T_base_camera, z_m)[:, :2]
    with np.errstate(invalid="ignore"):  # infinite beside the horizon
        return np.column_stack([right - left, down - up]) / (2.0 * _STEP_PX)


def to_base(pixels_px: Array, depth_m: ArrayLike, intrinsics: Intrinsics, T_base_camera: Array) -> Array:
    """Base-frame points (n, 3) of pixels (n, 2) with depth (n,)."""
    return apply(T_base_camera, deproject(pixels_px, depth_m, intrinsics))
