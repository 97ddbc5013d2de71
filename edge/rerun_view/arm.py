"""The arm in 3D: the shapes of its MJCF, drawn once, under the frames of its links, which move."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from calib.kinematics import GripperKinematics
from calib.rigid import invert, rigid
from drivers.robot import Robot
from edge.rerun_view.layout import ARM

Array = NDArray[np.float64]

_SHOWN_GROUPS = 3
"""MuJoCo's viewer shows the geom groups below this one; the others are for collisions only."""
_STILL_RAD = 1e-4  # a link is drawn anew when a joint has moved by this


class DrawnArm:
    """Logs the arm to a `rerun.RecordingStream`: its shapes at once, its pose with `pose`."""

    def __init__(self, stream: Any, robot: Robot) -> None:
        import rerun as rr

        self._rr, self._stream = rr, stream
        self._fk = GripperKinematics(robot.model, robot.joint_names)
        self._model, self._data = self._fk.model, self._fk.data
        self._posed_rad: Array | None = None
        base = self._model.body("base").id
        T_base_world = invert(rigid(self._data.xmat[base].reshape(3, 3), self._data.xpos[base]))
        stream.log(ARM, rr.Transform3D(translation=T_base_world[:3, 3], mat3x3=T_base_world[:3, :3]), static=True)
        for body in range(self._model.nbody):
            self._draw(body)

    def pose(self, position_rad: Array) -> None:
        """Log where the links are for joints (n,), at the stream's time; nothing where they stand still."""
        if self._posed_rad is not None and np.abs(position_rad - self._posed_rad).max() < _STILL_RAD:
            return
        first, self._posed_rad = self._posed_rad is None, position_rad.copy()
        self._fk(position_rad)
        for body in range(1, self._model.nbody):
            if first or self._model.body_weldid[body]:  # the others are fixed to the world
                position_m, xyzw = self._data.xpos[body], np.roll(self._data.xquat[body], -1)
                self._stream.log(self._path(body), self._rr.Transform3D(translation=position_m, quaternion=xyzw))

    def _path(self, body: int, *more: str) -> list[object]:
        return [*ARM.split("/"), self._model.body(body).name or f"body {body}", *more]

    def _draw(self, body: int) -> None:
        first, count = int(self._model.body_geomadr[body]), int(self._model.body_geomnum[body])
        for geom in range(first, first + count):
            shape = self._shape(geom) if self._model.geom_group[geom] < _SHOWN_GROUPS else None
            if shape is not None:
                self._stream.log(self._path(body, f"shape {geom - first}"), shape, static=True)

    def _shape(self, geom: int) -> Any:
        """One geom in its link's frame; None for a kind that an arm is not made of."""
        rr, model = self._rr, self._model
        size, position_m, wxyz = model.geom_size[geom], model.geom_pos[geom], model.geom_quat[geom]
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, wxyz)
        colour = np.round(255 * model.geom_rgba[geom]).astype(np.uint8)
        placed = {"quaternions": [np.roll(wxyz, -1)], "colors": [colour], "fill_mode": "solid"}
        match int(model.geom_type[geom]):
            case mujoco.mjtGeom.mjGEOM_BOX:
                return rr.Boxes3D(half_sizes=[size], centers=[position_m], **placed)
            case mujoco.mjtGeom.mjGEOM_CAPSULE:  # Rerun's begins at its origin, MuJoCo's has it in the middle
                end_m = position_m - size[1] * rotation.reshape(3, 3)[:, 2]
                return rr.Capsules3D(lengths=[2 * size[1]], radii=[size[0]], translations=[end_m], **placed)
            case mujoco.mjtGeom.mjGEOM_CYLINDER:
                return rr.Cylinders3D(lengths=[2 * size[1]], radii=[size[0]], centers=[position_m], **placed)
            case mujoco.mjtGeom.mjGEOM_SPHERE:
                return rr.Ellipsoids3D(half_sizes=[np.repeat(size[0], 3)], centers=[position_m], **placed)
            case mujoco.mjtGeom.mjGEOM_ELLIPSOID:
                return rr.Ellipsoids3D(half_sizes=[size], centers=[position_m], **placed)
            case mujoco.mjtGeom.mjGEOM_MESH:
                mesh = int(model.geom_dataid[geom])
                vertices, faces = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
                points = model.mesh_vert[vertices : vertices + model.mesh_vertnum[mesh]]
                return rr.Mesh3D(
                    vertex_positions=points @ rotation.reshape(3, 3).T + position_m,
                    triangle_indices=model.mesh_face[faces : faces + model.mesh_facenum[mesh]],
                    albedo_factor=colour,
                )
        return None
