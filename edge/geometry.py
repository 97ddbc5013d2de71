"""From pixels to the robot's base frame: where to grasp, how wide, how high, and which way to carry.

A box from the model is only roughly right, so it says which object is meant, and the depth image says where that
object is. The camera sees tops and fronts only: the outline is taken from the top face, which is seen whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from drivers.errors import UserError
from drivers.protocols import Frame, Intrinsics
from edge.contract import Affordance, Trajectory
from edge.kinematics import MAX_OPENING_M

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

RAISED_M = 0.006  # what stands higher above the table than depth noise does
_TALLEST_M = 0.070  # higher things are the arm or a person, not objects
_JUMP_M = 0.005  # neighbouring pixels of one surface differ by less, even on faces seen at a slant
_MIN_PIXELS = 40
_TOP_BAND_M = 0.004
_JAW_PLAY_M = 0.004  # room that each jaw needs beside the object on the way down
_SQUARE_ENOUGH = 1.2  # up to this ratio of sides, either may be grasped
_CONTAINER_MIN_M = 0.055  # anything narrower is no container
_CONTAINER_NEAR_M = 0.045  # how far outside a container's outline a point may fall and still mean it
_CORRIDOR_M = 0.06  # half the width of the way in which the arm and its load travel
_TABLE_EXTENT_M = 0.60


class GraspError(UserError):
    """Nothing there to grasp, or nothing that these jaws can hold; the message says which."""


@dataclass(frozen=True)
class Grasp:
    """How to take hold of one object.

    Attributes:
        position_base_m: (3,) the point midway between the jaws, base frame.
        yaw_rad: direction of the opening axis in the base xy plane, in [-pi/2, pi/2); either jaw may be on either side.
        width_m: what the jaws close across.
        height_m: height of the object's top in the base frame.
        shape: ``"box"``, ``"round"`` (upright cylinder) or ``"ball"``: which outline fitted the depth best.
        notes: what makes the estimate less sure, in plain words; empty when nothing does.
    """

    position_base_m: Array
    yaw_rad: float
    width_m: float
    height_m: float
    shape: str = "box"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Outline:
    """A footprint: ``centre_m`` (2,), ``sides_m`` along and across ``yaw_rad``."""

    centre_m: Array
    yaw_rad: float
    sides_m: tuple[float, float]


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


def transform(T: Array, points_m: Array) -> Array:
    """``T`` (4, 4) applied to points (n, 3)."""
    return points_m @ T[:3, :3].T + T[:3, 3]


def lift_affordance(affordance: Affordance, frame: Frame, T_base_camera: Array, table_z_m: float = 0.0) -> Grasp:
    """The grasp of the object that a box in the image means.

    Args:
        affordance: the box, normalized by image width and height.
        frame: the image it was decided on, with depth.
        T_base_camera: (4, 4) camera coordinates to base coordinates.
        table_z_m: height of the table in the base frame.

    Raises:
        GraspError: there is no depth, nothing stands on the table in the box, or it is too wide for the jaws.
    """
    width, height = frame.intrinsics.width, frame.intrinsics.height
    centre_px = np.array([affordance.x * width, affordance.y * height]) - 0.5
    size_px = np.array([affordance.width * width, affordance.height * height])
    # The window is wider than the box because the box may be off; the weights say which component is meant.
    reach_px = np.maximum(1.5 * size_px, 64.0)
    points, pixels = _points(frame, T_base_camera, centre_px - reach_px, centre_px + reach_px)
    raised = _raised(points, table_z_m)
    sigma_px = np.maximum(0.35 * size_px, 8.0)
    weight = np.exp(-0.5 * (((pixels - centre_px) / sigma_px) ** 2).sum(-1))
    # Containers beside the object can be larger: only what lies in the grown box speaks for a component.
    weight[(np.abs(pixels - centre_px) > np.maximum(0.5 * size_px * 1.15, 8.0)).any(-1)] = 0.0
    votes = [(float(weight[part].sum()), part) for part in _components(points, raised, T_base_camera)]
    votes = sorted((vote for vote in votes if vote[0] > 0.0), key=lambda vote: -vote[0])
    if not votes:
        raise GraspError("affordance: nothing stands on the table inside the box; look again or say another object")
    try:
        return _grasp_of(points[votes[0][1]], table_z_m)
    except GraspError:
        # A box between a bowl and a block means the block, if it covers a fair share of it.
        for vote, part in votes[1:]:
            if vote > 0.25 * votes[0][0]:
                return _grasp_of(points[part], table_z_m)
        raise


def lift_trajectory(
    trajectory: Trajectory,
    frame: Frame,
    T_base_camera: Array,
    clearance_m: float,
    *,
    grasp: Grasp | None = None,
    table_z_m: float = 0.0,
) -> Array:
    """Waypoints of the point between the jaws, for carrying an object along points of the image.

    Every point's ray is followed to the surface that the depth image shows there (the table where it shows none). If a
    container stands around the last point, its centre takes that point's place.

    Args:
        trajectory: at least one point, normalized by image width and height.
        clearance_m: free space to keep between the lowest point of the held object and everything on the way.
        grasp: of the held object: it hangs ``grasp.position_base_m[2] - table_z_m`` below the point between the jaws.

    Returns:
        (n + 1, 3) base frame: n points at travel height, then the one, below the last of them, at which to let go.

    Raises:
        GraspError: a point's ray leaves the table.
    """
    hang_m = 0.0 if grasp is None else float(grasp.position_base_m[2]) - table_z_m
    size = (frame.intrinsics.width, frame.intrinsics.height)
    pixels = np.array(trajectory.points, dtype=float).reshape(-1, 2) * size - 0.5
    hits = np.array([_surface(pixel, frame, T_base_camera, table_z_m) for pixel in pixels])
    hits[-1], release_z_m = _place(pixels[-1], hits[-1], frame, T_base_camera, table_z_m)
    highest_m = _highest_along(hits[:, :2], frame, T_base_camera, table_z_m)
    travel_z_m = highest_m + clearance_m + hang_m
    waypoints = np.vstack([hits, hits[-1:]])
    waypoints[:, 2] = travel_z_m
    waypoints[-1, 2] = min(release_z_m + hang_m, travel_z_m)
    return waypoints


# Depth to points


def _points(frame: Frame, T_base_camera: Array, low_px: Array, high_px: Array) -> tuple[Array, Array]:
    """Base-frame points (h, w, 3) of a window of the image, NaN where depth is unknown, and its pixels (h, w, 2)."""
    if frame.depth_m is None:
        raise GraspError(f"camera {frame.serial or '(no serial)'}: gives no depth; a grasp needs an RGB-D camera")
    height, width = frame.depth_m.shape
    x0, y0 = (int(np.clip(math.floor(v), 0, n - 1)) for v, n in zip(low_px, (width, height), strict=True))
    x1, y1 = (int(np.clip(math.ceil(v), 0, n - 1)) + 1 for v, n in zip(high_px, (width, height), strict=True))
    # A 3x3 median takes single wild pixels away and keeps edges where they are.
    depth = cv2.medianBlur(np.ascontiguousarray(frame.depth_m[y0:y1, x0:x1], dtype=np.float32), 3)
    u, v = np.meshgrid(np.arange(x0, x1, dtype=float), np.arange(y0, y1, dtype=float))
    pixels = np.stack([u, v], -1)
    points = transform(T_base_camera, deproject(pixels, depth, frame.intrinsics)).reshape(*depth.shape, 3)
    points[~(depth > 0.0) | ~np.isfinite(depth)] = np.nan
    return points, pixels


def _raised(points: Array, table_z_m: float) -> Mask:
    with np.errstate(invalid="ignore"):
        return (points[..., 2] > table_z_m + RAISED_M) & (points[..., 2] < table_z_m + _TALLEST_M)


def _components(points: Array, raised: Mask, T_base_camera: Array) -> list[Mask]:
    """The raised pixels (h, w) parted where the distance from the camera jumps: one mask for each visible thing."""
    axis = T_base_camera[:3, 2]
    depth = np.where(raised, np.nan_to_num(points) @ axis, 1e3)
    index = np.arange(raised.size).reshape(raised.shape)
    right = raised[:, :-1] & raised[:, 1:] & (np.abs(np.diff(depth, axis=1)) < _JUMP_M)
    down = raised[:-1] & raised[1:] & (np.abs(np.diff(depth, axis=0)) < _JUMP_M)
    rows = np.concatenate([index[:, :-1][right], index[:-1][down]])
    columns = np.concatenate([index[:, 1:][right], index[1:][down]])
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(raised.size, raised.size))
    _, label = connected_components(graph, directed=False)
    label = label.reshape(raised.shape)
    names, counts = np.unique(label[raised], return_counts=True)
    return [label == name for name in names[counts >= _MIN_PIXELS]]


# Points to a grasp


def _grasp_of(points_m: Array, table_z_m: float) -> Grasp:
    """The grasp of an object of which (n, 3) surface points are seen."""
    notes = ("few depth points",) if len(points_m) < 4 * _MIN_PIXELS else ()
    top_m = float(np.percentile(points_m[:, 2], 97.0))
    ball = _fit_ball(points_m, table_z_m)
    if ball is not None:
        centre, radius_m = ball
        shape, xy, width_m, yaw_rad = "ball", centre[:2], 2.0 * radius_m, _tangential(centre[:2])
        top_m = float(centre[2] + radius_m)
        z_m = float(centre[2])
    else:
        top = points_m[points_m[:, 2] > top_m - _TOP_BAND_M][:, :2]
        outline = _outline(top)
        xy = outline.centre_m
        narrow, wide = sorted(outline.sides_m)
        yaws = (outline.yaw_rad, outline.yaw_rad + math.pi / 2)
        if _corner_share(top, outline) < 0.16 and wide < _SQUARE_ENOUGH * narrow:
            # Over a disc the mean square distance from the centre is half the square of the radius.
            radius_m = math.sqrt(2.0 * float(((top - xy) ** 2).sum(axis=1).mean()))
            shape, width_m, yaw_rad = "round", 2.0 * radius_m, _tangential(xy)
        else:
            shape = "box"
            side = int(np.argmin(outline.sides_m))
            if wide < _SQUARE_ENOUGH * narrow and wide + 2 * _JAW_PLAY_M < MAX_OPENING_M:
                side = int(np.argmin([abs(_half_turn(yaw - _tangential(xy))) for yaw in yaws]))
            width_m, yaw_rad = outline.sides_m[side], yaws[side]
        z_m = table_z_m + 0.5 * (top_m - table_z_m)
    if width_m + 2 * _JAW_PLAY_M > MAX_OPENING_M:
        raise GraspError(
            f"affordance: the object is {width_m * 1e3:.0f} mm wide; the jaws take up to "
            f"{(MAX_OPENING_M - 2 * _JAW_PLAY_M) * 1e3:.0f} mm; ask for a narrower one"
        )
    return Grasp(np.array([xy[0], xy[1], z_m]), _half_turn(yaw_rad), width_m, top_m, shape, notes)


def _fit_ball(points_m: Array, table_z_m: float) -> tuple[Array, float] | None:
    """Centre (3,) and radius of the sphere through the points, if they lie on one that rests on the table.

    Linear least squares on |p|^2 = 2 c.p + (r^2 - |c|^2).
    """
    middle = points_m.mean(axis=0)
    p = points_m - middle
    A = np.column_stack([2.0 * p, np.ones(len(p))])
    solution, *_ = np.linalg.lstsq(A, (p**2).sum(axis=1), rcond=None)
    centre = solution[:3]
    radius_m = math.sqrt(max(float(solution[3] + centre @ centre), 0.0))
    residual_m = np.abs(np.linalg.norm(p - centre, axis=1) - radius_m)
    centre = centre + middle
    # A flat top misses the sphere by its sagitta, several millimetres for anything the jaws can hold.
    if (
        float(np.percentile(residual_m, 80.0)) > 0.08 * radius_m
        or abs(centre[2] - radius_m - table_z_m) > 0.25 * radius_m
    ):
        return None
    return centre, radius_m


def _outline(xy_m: Array) -> _Outline:
    """The smallest rectangle around points (n, 2), robust to a hundredth of them on each side.

    For evenly spread points the cut percentiles shorten a side by their share, which is put back.
    """
    yaws = np.radians(np.arange(0.0, 90.0, 1.5))
    for step in (math.radians(1.5), math.radians(0.3)):
        extents = [_extent(xy_m, yaw) for yaw in yaws]
        best = int(np.argmin([(high - low).prod() for low, high in extents]))
        yaws, yaw = yaws[best] + np.linspace(-step, step, 11), float(yaws[best])
    low, high = _extent(xy_m, yaw)
    c, s = math.cos(yaw), math.sin(yaw)
    centre = 0.5 * (low + high) @ np.array([[c, s], [-s, c]])
    sides = (high - low) / 0.98
    return _Outline(centre, yaw, (float(sides[0]), float(sides[1])))


def _corner_share(xy_m: Array, outline: _Outline) -> float:
    """The share of points (n, 2) outside the ellipse in the outline: over 0.22 for a rectangle, about 0.1 for a disc.

    (1 - pi/4, and for the disc what the outline's cut percentiles leave out.)
    """
    c, s = math.cos(outline.yaw_rad), math.sin(outline.yaw_rad)
    local = (xy_m - outline.centre_m) @ np.array([[c, -s], [s, c]]) / (np.array(outline.sides_m) / 2)
    return float(((local**2).sum(axis=1) > 1.0).mean())


def _extent(xy_m: Array, yaw_rad: float) -> tuple[Array, Array]:
    """Low and high (2,) ends of points (n, 2) along and across the yaw."""
    c, s = math.cos(yaw_rad), math.sin(yaw_rad)
    low, high = np.percentile(xy_m @ np.array([[c, -s], [s, c]]), (1.0, 99.0), axis=0)
    return low, high


def _tangential(xy_m: Array) -> float:
    """The yaw across the line from the base: a tilted hand then still keeps both jaws level."""
    return math.atan2(xy_m[1], xy_m[0]) + math.pi / 2


def _half_turn(angle_rad: float) -> float:
    """Into [-pi/2, pi/2): axes have no sign."""
    return (angle_rad + math.pi / 2) % math.pi - math.pi / 2


# Points of the image to the way


def _surface(pixel_px: Array, frame: Frame, T_base_camera: Array, table_z_m: float) -> Array:
    """Where a pixel's ray meets what depth shows, or the table: (3,) base frame."""
    points, _ = _points(frame, T_base_camera, pixel_px - 1.0, pixel_px + 1.0)
    seen = points[np.isfinite(points[..., 2])]
    if len(seen):
        point = np.asarray(np.median(seen, axis=0), dtype=float)
    else:
        ray = pixel_rays(pixel_px, frame.intrinsics)[0] @ T_base_camera[:3, :3].T
        eye = T_base_camera[:3, 3]
        distance = (table_z_m - eye[2]) / ray[2] if ray[2] < -1e-6 else math.inf
        point = eye + ray * distance if math.isfinite(distance) else np.full(3, math.inf)
    if not np.hypot(point[0], point[1]) < _TABLE_EXTENT_M or point[2] < table_z_m - 0.03:
        raise GraspError(
            f"trajectory: the point at pixel ({pixel_px[0]:.0f}, {pixel_px[1]:.0f}) lies off the table; look again"
        )
    return point


def _place(pixel_px: Array, hit_m: Array, frame: Frame, T_base_camera: Array, table_z_m: float) -> tuple[Array, float]:
    """Where to let go, (3,), and how high the object's lowest point is then.

    A container is a raised part at least ``_CONTAINER_MIN_M`` wide both ways whose outline the point falls in or near.
    Walls hide part of a container's inside but none of its rim, so the middle of its outline is its centre.
    """
    distance_m = float(np.linalg.norm(hit_m - T_base_camera[:3, 3]))
    reach_px = np.full(2, 0.12 * frame.intrinsics.fx / distance_m)
    points, _ = _points(frame, T_base_camera, pixel_px - reach_px, pixel_px + reach_px)
    best: tuple[float, Array, float] | None = None
    for part in _components(points, _raised(points, table_z_m), T_base_camera):
        outline = _outline(points[part][:, :2])
        if min(outline.sides_m) < _CONTAINER_MIN_M:
            continue
        c, s = math.cos(outline.yaw_rad), math.sin(outline.yaw_rad)
        local = np.array([[c, s], [-s, c]]) @ (hit_m[:2] - outline.centre_m)
        outside_m = float(np.linalg.norm(np.maximum(np.abs(local) - np.array(outline.sides_m) / 2, 0.0)))
        if outside_m < _CONTAINER_NEAR_M and (best is None or outside_m < best[0]):
            best = (outside_m, outline.centre_m, float(np.percentile(points[part][:, 2], 95.0)))
    if best is None:
        return hit_m, hit_m[2] + 0.004
    _, centre, rim_m = best
    # The fingers stay out of the container; the object drops the last part of the way.
    return np.array([centre[0], centre[1], rim_m]), max(rim_m - 0.010, table_z_m + 0.006)


def _highest_along(path_m: Array, frame: Frame, T_base_camera: Array, table_z_m: float) -> float:
    """Height of the highest thing within a corridor around a polyline (n, 2)."""
    size = np.array([frame.intrinsics.width, frame.intrinsics.height], dtype=float)
    points, _ = _points(frame, T_base_camera, np.zeros(2), size)
    seen = points[_raised(points, table_z_m)][::4]
    near = np.zeros(len(seen), dtype=bool)
    for a, b in zip(path_m[:-1], path_m[1:], strict=True):
        along = b - a
        t = np.clip((seen[:, :2] - a) @ along / max(float(along @ along), 1e-12), 0.0, 1.0)
        near |= np.linalg.norm(seen[:, :2] - a - t[:, None] * along, axis=1) < _CORRIDOR_M
    return float(np.percentile(seen[near][:, 2], 99.5)) if near.any() else table_z_m
