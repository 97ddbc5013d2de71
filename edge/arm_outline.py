"""The arm's own model as a calibrated camera should see it: which link is where in the image, and a drawing of that."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import mujoco
import numpy as np
from numpy.typing import NDArray

from calib.kinematics import GripperKinematics
from calib.rigid import apply, invert, rigid
from drivers.errors import UserError
from drivers.protocols import Intrinsics
from drivers.robot import Robot
from edge.rays import pixel_rays, project

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

DRAW_STEP_PX = 2
"""Links are looked for at every second pixel when they are drawn."""

_LINK, _JAWS, _TIP = (64, 224, 255), (255, 176, 32), (255, 72, 160)
_HALO = (16, 18, 22)
_SHIFT = 4  # positions are drawn to 1/16 px
_CROSS_PX = 12


@dataclass(frozen=True, eq=False)
class ArmInImage:
    """What the model says each pixel shows.

    Attributes:
        body: (h, w) int32 MuJoCo body of the link, 0 where there is no arm.
        depth_m: (h, w) float32 of it along the optical axis, 0 where there is no arm.
        T_base_body: (bodies, 4, 4) where every link is.
        step_px: distance of the looked-at pixels; pixel (i, j) here is (i, j) * step_px of the image.
    """

    body: NDArray[np.int32]
    depth_m: NDArray[np.float32]
    T_base_body: Array
    step_px: int = 1


class ArmModel:
    """The robot's MJCF, posed and looked at. Not thread-safe: it holds one MuJoCo state.

    Raises:
        UserError: the model cannot be read, or lacks a body ``base`` or ``gripper``, a site ``tool``, or a joint.
    """

    def __init__(self, robot: Robot) -> None:
        self.fk = GripperKinematics(robot.model, robot.joint_names)
        self._data = self.fk.data
        self._tool = mujoco.mj_name2id(self.fk.model, mujoco.mjtObj.mjOBJ_SITE, "tool")
        if self._tool < 0:
            raise UserError(f"{robot.model}: no site named 'tool'")
        self._base = self.fk.model.body("base").id
        self.jaws = _from(self.fk.model, self.fk.model.body("gripper").id)
        self._rays: tuple[Intrinsics, int, Array] | None = None

    def tip_m(self, joints_rad: Array) -> Array:
        """(3,) the tool's tip in the base frame, at true joints (n,)."""
        self.fk(joints_rad)
        T_base_world = invert(self._pose(self._base))
        return np.asarray(T_base_world[:3, :3] @ self._data.site_xpos[self._tool] + T_base_world[:3, 3], dtype=float)

    def look(self, joints_rad: Array, T_base_camera: Array, intrinsics: Intrinsics, step_px: int = 1) -> ArmInImage:
        """What a camera at ``T_base_camera`` sees of the arm at true joints (n,), lens distortion included.

        Raises UserError where the intrinsics are nominal.
        """
        self.fk(joints_rad)
        T_world_camera = self._pose(self._base) @ T_base_camera
        rays = self._rays_of(intrinsics, step_px)
        count = len(rays)
        geom, distance = np.empty(count, np.int32), np.empty(count)
        vectors = np.ascontiguousarray(rays @ T_world_camera[:3, :3].T).ravel()
        eye = np.ascontiguousarray(T_world_camera[:3, 3])
        mujoco.mj_multiRay(
            self.fk.model, self._data, eye, vectors, None, True, -1, geom, distance, None, count, mujoco.mjMAXVAL
        )
        shape = (-(-intrinsics.height // step_px), -(-intrinsics.width // step_px))
        hit = geom >= 0
        body = np.where(hit, self.fk.model.geom_bodyid[geom], 0).astype(np.int32).reshape(shape)
        # rays have z = 1, so MuJoCo's distance, in lengths of the ray, is the depth
        depth = np.where(hit, distance, 0.0).astype(np.float32).reshape(shape)
        T_base_world = invert(self._pose(self._base))
        T_base_body = np.array([T_base_world @ self._pose(b) for b in range(self.fk.model.nbody)])
        return ArmInImage(body, depth, T_base_body, step_px)

    def _rays_of(self, intrinsics: Intrinsics, step_px: int) -> Array:
        if self._rays is None or self._rays[:2] != (intrinsics, step_px):
            u, v = np.meshgrid(
                np.arange(0, intrinsics.width, step_px, dtype=float),
                np.arange(0, intrinsics.height, step_px, dtype=float),
            )
            self._rays = (intrinsics, step_px, pixel_rays(np.stack([u, v], -1), intrinsics))
        return self._rays[2]

    def _pose(self, body: int) -> Array:
        return rigid(self._data.xmat[body].reshape(3, 3), self._data.xpos[body])


def draw_arm(rgb: Image, arm: ArmModel, joints_rad: Array, T_base_camera: Array, intrinsics: Intrinsics) -> Image:
    """A copy of the picture (h, w, 3) with every link's outline, those of the jaws in another colour, and a cross at
    the tip of the gripper.

    Args:
        joints_rad: (n,) true joints: measured plus the calibration's zeros.
        T_base_camera: (4, 4) camera to base coordinates, as calibrated.
        intrinsics: of the picture, measured ones.
    """
    drawn = np.array(rgb, dtype=np.uint8, order="C")
    seen = arm.look(joints_rad, T_base_camera, intrinsics, DRAW_STEP_PX)
    for thickness in (3, 1):
        for body in np.unique(seen.body[seen.body > 0]):
            colour = _HALO if thickness == 3 else _JAWS if body in arm.jaws else _LINK
            outlines, _ = cv2.findContours(
                (seen.body == body).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            fixed = [np.asarray(outline * (seen.step_px << _SHIFT), dtype=np.int32) for outline in outlines]
            cv2.polylines(drawn, fixed, True, colour, thickness, cv2.LINE_AA, _SHIFT)
    tip_px = _pixel(arm.tip_m(joints_rad), T_base_camera, intrinsics)
    if tip_px is not None:
        x, y = (round(value * (1 << _SHIFT)) for value in tip_px)
        size = _CROSS_PX << _SHIFT
        for colour, thickness in ((_HALO, 4), (_TIP, 2)):
            cv2.line(drawn, (x - size, y), (x + size, y), colour, thickness, cv2.LINE_AA, _SHIFT)
            cv2.line(drawn, (x, y - size), (x, y + size), colour, thickness, cv2.LINE_AA, _SHIFT)
    return drawn


def _pixel(point_m: Array, T_base_camera: Array, intrinsics: Intrinsics) -> tuple[float, float] | None:
    """Where a point of the base frame is seen; None for one that is not in the picture."""
    if apply(invert(T_base_camera), point_m)[2] <= 0:
        return None
    x, y = project(point_m[None], intrinsics, T_base_camera)[0]
    return (float(x), float(y)) if 0 <= x < intrinsics.width and 0 <= y < intrinsics.height else None


def _from(model: mujoco.MjModel, body: int) -> frozenset[int]:
    """The body and whatever hangs on it."""
    found = {body}
    for b in range(body + 1, model.nbody):  # parents come before their children
        if int(model.body_parentid[b]) in found:
            found.add(b)
    return frozenset(found)
