"""From pixels to the robot's base frame: where to grasp, how wide, how high, and which way to carry.

A box from the model is only roughly right, so it says which object is meant, and the depth image says where that
object is. The camera sees tops and fronts only: the outline is taken from the top face, which is seen whole. Without
depth the box itself has to do, with the table and what is known of things on tables (``edge.box_solid``).

What comes out says how well it is known (``edge.uncertainty``), and what is not known well enough for the jaws is
refused here, before anything moves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Frame
from edge.contract import Affordance, Trajectory
from edge.grasp import Grasp, GraspError, require_fits, require_known
from edge.object_grasp import grasp_of_box, grasp_of_thing, things_meant
from edge.outline import Footprint
from edge.rays import deproject, pixel_rays
from edge.view import View
from edge.way import highest_along, place, surface

__all__ = [
    "Footprint",
    "Grasp",
    "GraspError",
    "deproject",
    "lift_affordance",
    "lift_trajectory",
    "pixel_rays",
    "release_covariance_m2",
]

Array = NDArray[np.float64]


def lift_affordance(
    affordance: Affordance,
    frame: Frame,
    T_base_camera: Array,
    table_z_m: float = 0.0,
    *,
    reach_covariance_m2: Array | None = None,
) -> Grasp:
    """The grasp of the object that a box in the image means.

    Args:
        affordance: the box, normalized by image width and height.
        frame: the image it was decided on. Without depth the grasp is of a solid that fits the box; its ``notes`` and
            ``uncertainty`` say so.
        T_base_camera: (4, 4) camera coordinates to base coordinates.
        table_z_m: height of the table in the base frame.
        reach_covariance_m2: (3, 3) of where the tip ends up for a point that the camera saw, base frame
            (``Calibration.reach_covariance_m2``); None counts as none, with a note.

    Raises:
        GraspError: nothing stands on the table in the box, it is too wide for the jaws, or it is not known well enough
            for them.
    """
    view = View(frame, T_base_camera, table_z_m, reach_covariance_m2)
    if frame.depth_m is None:
        grasp = grasp_of_box(affordance, view)
        require_fits(grasp)
    else:
        grasp = _first_that_fits(affordance, view)
    require_known(grasp, table_z_m)
    return grasp


def lift_trajectory(
    trajectory: Trajectory,
    frame: Frame,
    T_base_camera: Array,
    clearance_m: float,
    *,
    grasp: Grasp | None = None,
    table_z_m: float = 0.0,
    reach_covariance_m2: Array | None = None,
) -> Array:
    """Waypoints of the point between the jaws, for carrying an object along points of the image.

    Every point's ray is followed to the surface that the depth image shows there (the table where it shows none). If a
    container stands around the last point, its centre takes that point's place.

    Without depth the points are of the table, the last of a container that may stand there (0 to ``edge.way.RIM_M``
    high), and everything on the way is taken to be as tall as things to grasp can be (``edge.depth_points.TALLEST_M``).

    Args:
        trajectory: at least one point, normalized by image width and height.
        clearance_m: free space to keep between the lowest point of the held object and everything on the way.
        grasp: of the held object: it hangs ``grasp.position_base_m[2] - table_z_m`` below the point between the jaws.
        reach_covariance_m2: as for ``lift_affordance``.

    Returns:
        (n + 1, 3) base frame: n points at travel height, then the one, below the last of them, at which to let go.

    Raises:
        GraspError: a point's ray leaves the table, or where to let go is not known to within the container.
    """
    hang_m = 0.0 if grasp is None else float(grasp.position_base_m[2]) - table_z_m
    view = View(frame, T_base_camera, table_z_m, reach_covariance_m2)
    pixels = _pixels(trajectory, view)
    hits = np.array([surface(pixel, view) for pixel in pixels])
    end = place(pixels[-1], hits[-1], view)
    end.require_inside()
    hits[-1] = end.point_m
    travel_z_m = highest_along(hits[:, :2], view) + clearance_m + hang_m
    waypoints = np.vstack([hits, hits[-1:]])
    waypoints[:, 2] = travel_z_m
    waypoints[-1, 2] = min(end.release_z_m + hang_m, travel_z_m)
    return waypoints


def release_covariance_m2(
    trajectory: Trajectory,
    frame: Frame,
    T_base_camera: Array,
    table_z_m: float = 0.0,
    *,
    reach_covariance_m2: Array | None = None,
) -> Array:
    """(3, 3) of the place where ``lift_trajectory`` lets go, base frame, against what the last point means.

    Raises:
        GraspError: the last point's ray leaves the table.
    """
    view = View(frame, T_base_camera, table_z_m, reach_covariance_m2)
    pixel = _pixels(trajectory, view)[-1]
    return place(pixel, surface(pixel, view), view).covariance_m2


def _first_that_fits(affordance: Affordance, view: View) -> Grasp:
    """A box between a bowl and a block means the block, if it covers a fair share of it."""
    too_wide: GraspError | None = None
    for thing in things_meant(affordance, view):
        grasp = grasp_of_thing(thing, view)
        try:
            require_fits(grasp)
            return grasp
        except GraspError as error:
            too_wide = too_wide or error
    raise too_wide or GraspError(
        "affordance: nothing stands on the table inside the box; look again or say another object"
    )


def _pixels(trajectory: Trajectory, view: View) -> Array:
    """(n, 2) pixels of a path's points."""
    return np.array(trajectory.points, dtype=float).reshape(-1, 2) * view.size_px - 0.5
