"""The object that a box means, and the grasp of it: from the points that depth shows, or from the box alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.box_solid import fit_solid
from edge.contract import Affordance
from edge.depth_points import MIN_PIXELS, depth_points, things
from edge.grasp import LEAST_PLAY_M, Grasp, GraspError
from edge.kinematics import MAX_OPENING_M
from edge.outline import Footprint, corner_share, fit_ball, fit_rectangle, half_turn, tangential
from edge.uncertainty import Uncertainty, depth_noise_m
from edge.view import View

Array = NDArray[np.float64]

TABLE_EXTENT_M = 0.60
"""What is further from the base is not on the table."""

_TOP_BAND_M = 0.004
_PART_OF_THING = 0.6
_BORDER_PX = 1.0
_SQUARE_ENOUGH = 1.2  # up to this ratio of sides, either may be grasped
_LONG_IN_BOX = 1.8  # without depth: what is this much longer across the line of sight is taken along it
_UNKNOWN_CALIBRATION = "how good the calibration is, is not known"
_FROM_BOX = "no depth: size and place are those of a solid that fits the box, its turn is unknown"


@dataclass(frozen=True, eq=False)
class Thing:
    """What depth shows of one thing: surface points (n, 3), base frame, and which share of them lies in the box."""

    points_m: Array
    in_box: float


def things_meant(affordance: Affordance, view: View) -> Iterator[Thing]:
    """What a box in a frame with depth may mean, the likeliest first."""
    centre_px = np.array([affordance.x, affordance.y]) * view.size_px - 0.5
    size_px = np.array([affordance.width, affordance.height]) * view.size_px
    # The window is wider than the box because the box may be off; the weights say which component is meant.
    reach_px = np.maximum(1.5 * size_px, 64.0)
    points, pixels = depth_points(view.frame, view.T_base_camera, centre_px - reach_px, centre_px + reach_px)
    sigma_px = np.maximum(0.35 * size_px, 8.0)
    weight = np.exp(-0.5 * (((pixels - centre_px) / sigma_px) ** 2).sum(-1))
    # Containers beside the object can be larger: only what lies in the grown box speaks for a component.
    inside = (np.abs(pixels - centre_px) / np.maximum(0.5 * size_px * 1.15, 8.0)).max(axis=-1) <= 1.0
    weight[~inside] = 0.0
    votes = [(float(weight[part].sum()), part) for part in things(points, view.table_z_m, view.T_base_camera)]
    votes = sorted((vote for vote in votes if vote[0] > 0.0), key=lambda vote: -vote[0])
    for k, (vote, part) in enumerate(votes):
        if k == 0 or vote > 0.25 * votes[0][0]:
            yield Thing(points[part], float(inside[part].mean()))


def grasp_of_thing(thing: Thing, view: View) -> Grasp:
    """The grasp of what depth shows, whether the jaws can take it or not."""
    table_z_m, points_m = view.table_z_m, thing.points_m
    notes = _notes(view)
    if len(points_m) < 4 * MIN_PIXELS:
        notes.append("few depth points")
    if thing.in_box < _PART_OF_THING:
        notes.append("the box covers only a part of what stands there; the grasp is of the whole")
    top = points_m[points_m[:, 2] > float(np.percentile(points_m[:, 2], 97.0)) - _TOP_BAND_M]
    ball = fit_ball(points_m, table_z_m, depth_noise_m(points_m.mean(axis=0), view.T_base_camera))
    if ball is not None:
        centre, radius_m = ball
        shape, footprint = "ball", Footprint(centre[:2], tangential(centre[:2]), (2.0 * radius_m, 2.0 * radius_m))
        top_m = float(centre[2] + radius_m)
    else:
        shape, footprint = _outline(top[:, :2])
        top_m = float(np.median(top[:, 2]))
    yaw_rad, width_m = _jaws(footprint)
    xy = footprint.centre_m
    seen_at = np.array([xy[0], xy[1], top_m])
    depth_m2, outline_m2 = view.depth_m2(seen_at, len(top)), view.outline_m2(seen_at)
    # The table's height is known: a top that is off by some moves the middle by half of it.
    halved = np.diag([1.0, 1.0, 0.5])
    axis = np.array([math.cos(yaw_rad), math.sin(yaw_rad), 0.0])
    known = Uncertainty(
        view.calibration_m2,
        halved @ depth_m2 @ halved,
        outline_m2,
        width_m=2.0 * math.sqrt(float(axis @ outline_m2 @ axis)),
        top_m=math.sqrt(float(depth_m2[2, 2])),
    )
    position = np.array([xy[0], xy[1], table_z_m + 0.5 * (top_m - table_z_m)])
    return Grasp(position, half_turn(yaw_rad), width_m, top_m, shape, tuple(notes), footprint, uncertainty=known)


def grasp_of_box(affordance: Affordance, view: View) -> Grasp:
    """The grasp of what fills a box in a frame without depth.

    Raises GraspError where the box is not on the table or what it holds is not wholly in the picture.
    """
    half = np.array([affordance.width, affordance.height]) / 2
    middle = np.array([affordance.x, affordance.y])
    edges_px = np.concatenate([(middle - half) * view.size_px, (middle + half) * view.size_px]) - 0.5
    if (edges_px[:2] < _BORDER_PX - 0.5).any() or (edges_px[2:] > view.size_px - 0.5 - _BORDER_PX).any():
        raise GraspError(
            "affordance: the box reaches the picture's border; without depth the whole object must be in sight: move "
            "it or the camera"
        )
    solid = fit_solid(edges_px, view.frame.intrinsics, view.T_base_camera, view.table_z_m)
    if solid is None or np.linalg.norm(solid.footprint.centre_m) > TABLE_EXTENT_M:
        raise GraspError("affordance: the box lies off the table; look again or say another object")
    footprint = solid.footprint
    # Across the line of sight the box itself gives centre and width; along it they hang on the height, a guess.
    side = 0 if _LONG_IN_BOX * footprint.sides_m[0] < footprint.sides_m[1] else 1
    yaw_rad = footprint.yaw_rad + side * math.pi / 2
    position = np.append(footprint.centre_m, view.table_z_m + solid.height_m / 2)
    known = Uncertainty(
        view.calibration_m2,
        box_m2=solid.position_covariance_m2,
        width_m=solid.side_sigma_m(side),
        top_m=solid.height_sigma_m,
    )
    top_m, notes = view.table_z_m + solid.height_m, (*_notes(view), _FROM_BOX)
    width_m = footprint.sides_m[side]
    return Grasp(position, half_turn(yaw_rad), width_m, top_m, "unknown", notes, footprint, uncertainty=known)


def _notes(view: View) -> list[str]:
    return [_UNKNOWN_CALIBRATION] if view.reach_covariance_m2 is None else []


def _outline(top_m: Array) -> tuple[str, Footprint]:
    """Which shape a top face (n, 2) is, "box" or "round", and what it covers."""
    rectangle = fit_rectangle(top_m)
    narrow, wide = sorted(rectangle.sides_m)
    if corner_share(top_m, rectangle) < 0.16 and wide < _SQUARE_ENOUGH * narrow:
        # Over a disc the mean square distance from the centre is half the square of the radius.
        centre = rectangle.centre_m
        diameter_m = 2.0 * math.sqrt(2.0 * float(((top_m - centre) ** 2).sum(axis=1).mean()))
        return "round", Footprint(centre, tangential(centre), (diameter_m, diameter_m))
    return "box", rectangle


def _jaws(footprint: Footprint) -> tuple[float, float]:
    """The yaw of the opening axis and the width there: across the narrow side, or level ones where both would do."""
    narrow, wide = sorted(footprint.sides_m)
    yaws = (footprint.yaw_rad, footprint.yaw_rad + math.pi / 2)
    side = int(np.argmin(footprint.sides_m))
    if wide < _SQUARE_ENOUGH * narrow and wide + 2 * LEAST_PLAY_M < MAX_OPENING_M:
        side = int(np.argmin([abs(half_turn(yaw - tangential(footprint.centre_m))) for yaw in yaws]))
    return yaws[side], footprint.sides_m[side]
