"""Points of the image to the way an object is carried: where it passes, over what, and where it is let go."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.depth_points import TALLEST_M, depth_points, raised, things
from edge.grasp import GraspError
from edge.object_grasp import TABLE_EXTENT_M
from edge.outline import fit_rectangle
from edge.uncertainty import DISC
from edge.view import View

Array = NDArray[np.float64]

POINT_SIGMA = 0.008
"""What the last point of a path is off by, as a share of the image's width, either way: paths whose worst points are
0.02 off in the mean, turns and paces counted in (docs/training.md)."""

RIM_M = 0.030
"""Without depth: as high a container may stand around the last point."""

_CONTAINER_MIN_M = 0.055  # anything narrower is no container
_CONTAINER_NEAR_M = 0.045  # how far outside a container's outline a point may fall and still mean it
_CORRIDOR_M = 0.06  # half the width of the way in which the arm and its load travel
_INTO_RIM_M = 0.010  # the fingers stay out of the container; the object drops the last part of the way
_OVER_TABLE_M = 0.006
_ON_SURFACE_M = 0.004


@dataclass(frozen=True, eq=False)
class Place:
    """Where to let go.

    Attributes:
        point_m: (3,) base frame.
        release_z_m: how high the object's lowest point is then, base frame.
        covariance_m2: (3, 3) of the point against what was meant.
        room_m: how far off it may be and still be over the container; infinite where there is none.
    """

    point_m: Array
    release_z_m: float
    covariance_m2: Array
    room_m: float = math.inf

    def require_inside(self) -> None:
        """Raises GraspError where 95 % of the error are more than the room."""
        error_m = DISC * math.sqrt(float(np.linalg.eigvalsh(self.covariance_m2[:2, :2])[-1]))
        if error_m > self.room_m:
            raise GraspError(
                f"trajectory: where to let go is known to {error_m * 1e3:.0f} mm (95 %), the container allows "
                f"{self.room_m * 1e3:.0f} mm; run `vlar1 calibrate hand-eye` again, bring the camera nearer, or use "
                "one that gives depth"
            )


def surface(pixel_px: Array, view: View) -> Array:
    """Where a pixel's ray meets what depth shows, or the table: (3,) base frame. Raises GraspError off the table."""
    seen = np.zeros((0, 3))
    if view.frame.depth_m is not None:
        points, _ = depth_points(view.frame, view.T_base_camera, pixel_px - 1.0, pixel_px + 1.0)
        seen = points[np.isfinite(points[..., 2])]
    point = np.asarray(np.median(seen, axis=0), dtype=float) if len(seen) else view.on_plane(pixel_px)[0]
    if not np.hypot(point[0], point[1]) < TABLE_EXTENT_M or point[2] < view.table_z_m - 0.03:
        raise GraspError(
            f"trajectory: the point at pixel ({pixel_px[0]:.0f}, {pixel_px[1]:.0f}) lies off the table; look again"
        )
    return point


def place(pixel_px: Array, hit_m: Array, view: View) -> Place:
    """Where to let go for a last point (2,) whose ray meets ``hit_m`` (3,).

    A container is a raised part at least ``_CONTAINER_MIN_M`` wide both ways whose outline the point falls in or near.
    Walls hide part of a container's inside but none of its rim, so the middle of its outline is its centre.
    """
    point_px2 = (POINT_SIGMA * view.size_px[0]) ** 2 * np.eye(2)
    if view.frame.depth_m is None:
        return _unseen_place(pixel_px, view, point_px2)
    distance_m = float(np.linalg.norm(hit_m - view.T_base_camera[:3, 3]))
    reach_px = np.full(2, 0.12 * view.frame.intrinsics.fx / distance_m)
    points, _ = depth_points(view.frame, view.T_base_camera, pixel_px - reach_px, pixel_px + reach_px)
    best: tuple[float, Place] | None = None
    for part in things(points, view.table_z_m, view.T_base_camera):
        outline = fit_rectangle(points[part][:, :2])
        if min(outline.sides_m) < _CONTAINER_MIN_M:
            continue
        outside_m = outline.outside_m(hit_m[:2])
        if outside_m < _CONTAINER_NEAR_M and (best is None or outside_m < best[0]):
            rim_m = float(np.percentile(points[part][:, 2], 95.0))
            point = np.append(outline.centre_m, rim_m)
            release_m = max(rim_m - _INTO_RIM_M, view.table_z_m + _OVER_TABLE_M)
            seen_m2 = view.depth_m2(point, int(part.sum())) + view.outline_m2(point)
            best = outside_m, Place(point, release_m, view.calibration_m2 + seen_m2, min(outline.sides_m) / 2)
    if best is not None:
        return best[1]
    pointed_m2 = view.in_plane_m2(pixel_px, point_px2, hit_m[2] - view.table_z_m)
    covariance_m2 = view.calibration_m2 + view.depth_m2(hit_m, 1) + pointed_m2
    return Place(hit_m, hit_m[2] + _ON_SURFACE_M, covariance_m2)


def highest_along(path_m: Array, view: View) -> float:
    """Height of the highest thing within a corridor around a polyline (n, 2); without depth, of the tallest object."""
    if view.frame.depth_m is None:
        return view.table_z_m + TALLEST_M
    points, _ = depth_points(view.frame, view.T_base_camera, np.zeros(2), view.size_px)
    seen = points[raised(points, view.table_z_m)][::4]
    near = np.zeros(len(seen), dtype=bool)
    for a, b in zip(path_m[:-1], path_m[1:], strict=True):
        along = b - a
        t = np.clip((seen[:, :2] - a) @ along / max(float(along @ along), 1e-12), 0.0, 1.0)
        near |= np.linalg.norm(seen[:, :2] - a - t[:, None] * along, axis=1) < _CORRIDOR_M
    return float(np.percentile(seen[near][:, 2], 99.5)) if near.any() else view.table_z_m


def _unseen_place(pixel_px: Array, view: View, point_px2: Array) -> Place:
    """Without depth the point may be of the table or of a container's rim: any height from 0 to ``RIM_M``."""
    low, middle, high = (view.on_plane(pixel_px, height_m)[0] for height_m in (0.0, RIM_M / 2, RIM_M))
    slide = (high - low) / math.sqrt(12.0)  # evenly spread
    covariance_m2 = view.calibration_m2 + view.in_plane_m2(pixel_px, point_px2) + np.outer(slide, slide)
    return Place(middle, view.table_z_m + RIM_M - _INTO_RIM_M, covariance_m2, _CONTAINER_MIN_M / 2)
