"""Where the gripper is, from the joints: forward kinematics by MuJoCo on the robot's own MJCF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from calib.rigid import invert
from drivers.errors import UserError


class GripperKinematics:
    """``fk(q_rad)`` -> T_base_gripper.

    Frames: MJCF bodies ``base`` and ``gripper`` (the link that carries the fixed jaw, moved by the wrist roll).
    """

    def __init__(self, model: str | Path | mujoco.MjModel, joint_names: Sequence[str]) -> None:
        """``joint_names`` gives the order of ``q_rad``. Raises UserError when the model lacks a joint or a body."""
        if isinstance(model, mujoco.MjModel):
            self.model = model
        else:
            try:
                self.model = mujoco.MjModel.from_xml_path(str(model))
            except ValueError as error:
                raise UserError(f"{model}: not a readable MJCF model ({str(error).splitlines()[0]})") from None
        self.data = mujoco.MjData(self.model)
        self._gripper = self._id(mujoco.mjtObj.mjOBJ_BODY, "gripper")
        mujoco.mj_kinematics(self.model, self.data)
        self._T_base_world = invert(self._in_world(self._id(mujoco.mjtObj.mjOBJ_BODY, "base")))  # the base stands still
        joints = [self._id(mujoco.mjtObj.mjOBJ_JOINT, name) for name in joint_names]
        self._qpos = self.model.jnt_qposadr[joints]
        self.limits_rad: NDArray[np.float64] = self.model.jnt_range[joints].copy()  # (n, 2) lower, upper

    def __call__(self, q_rad: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) joint angles -> (4, 4) T_base_gripper. Leaves ``data`` at that pose."""
        self.data.qpos[self._qpos] = q_rad
        mujoco.mj_kinematics(self.model, self.data)
        return self.pose()

    def pose(self) -> NDArray[np.float64]:
        """(4, 4) T_base_gripper at the joints last asked about."""
        return self._T_base_world @ self._in_world(self._gripper)

    def _in_world(self, body: int) -> NDArray[np.float64]:
        T = np.eye(4)
        T[:3, :3] = self.data.xmat[body].reshape(3, 3)
        T[:3, 3] = self.data.xpos[body]
        return T

    def _id(self, kind: mujoco.mjtObj, name: str) -> int:
        index = mujoco.mj_name2id(self.model, kind, name)
        if index < 0:
            raise UserError(f"robot model: no {kind.name.removeprefix('mjOBJ_').lower()} named '{name}'")
        return int(index)
