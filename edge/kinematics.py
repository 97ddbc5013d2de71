"""Where the arm's frames are for given joints, and which joints put the jaws around a point of the table.

The tool frame (site ``tool``) sits at the tip of the fixed jaw, on its inner face: +z is the approach direction, and
the moving jaw opens towards -x. The fixed jaw does not move, so the point ``g`` midway between the jaws, ``width``
apart and ``depth`` behind the tips, follows the width:

    T_base_grasp = T_base_tool . Trans(-width / 2, 0, -depth)

``solve`` steers that point, not the tool frame, so a target is simply where the object's centre is.

Five joints reach a position, a jaw yaw and one more: the tilt of the approach direction in the vertical plane through
the shoulder. The position costs most, the yaw less, the tilt least: the hand points down as well as it can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mink
import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivers.errors import UserError

Array = NDArray[np.float64]

MAX_OPENING_M = 0.070  # beyond this the jaw faces lean too far apart to hold anything
FINGER_DEPTH_M = 0.010  # the pads' contact points (sites jaw_fixed and jaw_moving) lie this far behind the tips
_POSITION_TOLERANCE_M = 0.002
_YAW_TOLERANCE_RAD = math.radians(4.0)
_MAX_TILT_RAD = math.radians(75.0)
# Costs per metre and per radian of the least-squares problem. A tilt of 1 rad then weighs as little as 4 mm off the
# target, and the last pass of `solve`, which aims at the tilt that was reached, removes those.
_POSITION_COST = 1.0
_TILT_COST = 0.004
_YAW_COST = 0.1
_STEP_LIMIT_RAD = 0.35


class ReachError(UserError):
    """A point that the arm cannot reach, or not with the jaws turned as asked."""


class _HasModel(Protocol):
    @property
    def model(self) -> str | Path: ...


@dataclass(frozen=True)
class Solution:
    """Joints found for a grasp point.

    Attributes:
        position_rad: (5,) arm joints, without the gripper.
        position_error_m: distance from the target that is left.
        yaw_error_rad: angle left between the opening axis asked for and reached, seen along the approach direction.
        tilt_rad: angle between the approach direction and straight down.
        reason: why it does not serve, in plain words; empty when it does.
    """

    position_rad: Array
    position_error_m: float
    yaw_error_rad: float
    tilt_rad: float
    reason: str = ""

    @property
    def reached(self) -> bool:
        return not self.reason


class Kinematics:
    """Forward and inverse kinematics of one arm, read from its MJCF. Not thread-safe: it holds one MuJoCo state.

    Args:
        robot: path of the MJCF, or anything whose ``model`` is that path. The model has the sites ``tool``,
            ``jaw_fixed`` and ``jaw_moving``, the box geoms ``fixed_jaw`` and ``moving_jaw``, and the gripper last.

    Raises:
        UserError: the file is missing, is no MJCF, or lacks a name it must have.
    """

    def __init__(self, robot: str | Path | _HasModel) -> None:
        path = Path(robot if isinstance(robot, str | Path) else robot.model)
        if not path.is_file():
            raise UserError(f"{path}: no such robot model; expected an MJCF file")
        try:
            spec = mujoco.MjSpec.from_file(str(path))
            tool = spec.site("tool")
            if tool is None:
                raise ValueError("no site named 'tool'")
            grasp = tool.parent.add_site(name="_grasp", pos=tool.pos, quat=tool.quat)
            grasp.alt = tool.alt
            self.model = spec.compile()
        except ValueError as error:
            raise UserError(f"{path}: cannot be used as a robot model: {error}") from error
        for kind, names in (("site", ("tool", "jaw_fixed", "jaw_moving")), ("geom", ("fixed_jaw", "moving_jaw"))):
            for name in names:
                if mujoco.mj_name2id(self.model, getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}"), name) < 0:
                    raise UserError(f"{path}: the robot model has no {kind} named '{name}'")
        self.joint_names: tuple[str, ...] = tuple(self.model.joint(i).name for i in range(self.model.njnt))
        self.lower_rad: Array = self.model.jnt_range[:, 0].copy()
        self.upper_rad: Array = self.model.jnt_range[:, 1].copy()
        self._configuration = mink.Configuration(self.model)
        self._limits = [mink.ConfigurationLimit(self.model)]
        self._task = mink.FrameTask(
            "_grasp", "site", _POSITION_COST, (_TILT_COST, _TILT_COST, _YAW_COST), lm_damping=1e-3
        )
        self._grasp_site = self.model.site("_grasp").id
        self._tool_pos = self.model.site("tool").pos.copy()
        self._R_gripper_tool = _matrix(self.model.site("tool").quat)
        self._jaw_corners = [self._corners(name) for name in ("fixed_jaw", "moving_jaw")]
        self._opening_rad, self._opening_m = self._measure_openings()

    # Forward

    def fk(self, position_rad: ArrayLike, frame: str = "tool") -> Array:
        """``T_base_frame`` (4, 4) of a site or body. ``position_rad`` is (6,), or (5,) with the gripper at 0."""
        data = self._forward(position_rad)
        T = np.eye(4)
        site = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, frame)
        if site >= 0:
            T[:3, :3], T[:3, 3] = data.site_xmat[site].reshape(3, 3), data.site_xpos[site]
            return T
        body = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, frame)
        if body < 0:
            raise KeyError(f"the robot model has neither a site nor a body named '{frame}'")
        T[:3, :3], T[:3, 3] = data.xmat[body].reshape(3, 3), data.xpos[body]
        return T

    def grasp_point(self, position_rad: ArrayLike, width_m: float, depth_m: float = FINGER_DEPTH_M) -> Array:
        """``T_base_grasp`` (4, 4): the frame midway between jaws ``width_m`` apart, axes as the tool frame's."""
        T_base_tool = self.fk(position_rad, "tool")
        T_base_tool[:3, 3] += T_base_tool[:3, :3] @ (-width_m / 2, 0.0, -depth_m)
        return T_base_tool

    def lowest_tip_m(self, position_rad: ArrayLike) -> float:
        """Height of the lowest corner of both jaws over the base plane, for joints (6,)."""
        data = self._forward(position_rad)
        return min(
            float((data.geom_xpos[geom] + corners @ data.geom_xmat[geom].reshape(3, 3).T)[:, 2].min())
            for geom, corners in self._jaw_corners
        )

    def tips_beyond_tool_m(self, gripper_rad: float) -> float:
        """How far the jaws reach past the tool frame's origin along the approach direction, at a gripper angle."""
        q = np.zeros(self.model.nq)
        q[-1] = gripper_rad
        T_base_tool = self.fk(q, "tool")
        data = self._configuration.data
        corners = [data.geom_xpos[g] + c @ data.geom_xmat[g].reshape(3, 3).T for g, c in self._jaw_corners]
        return float(((np.vstack(corners) - T_base_tool[:3, 3]) @ T_base_tool[:3, 2]).max())

    def within_limits(self, position_rad: ArrayLike, tolerance_rad: float = 1e-6) -> bool:
        """Whether joints (..., 6) all lie within their limits."""
        q = np.asarray(position_rad, dtype=float)
        return bool(np.all(q >= self.lower_rad - tolerance_rad) and np.all(q <= self.upper_rad + tolerance_rad))

    # Gripper

    def opening_to_angle(self, width_m: float) -> float:
        """Gripper joint angle at which the contact points of the jaws are ``width_m`` apart; clipped to its range."""
        return float(np.interp(width_m, self._opening_m, self._opening_rad))

    def angle_to_opening(self, angle_rad: float) -> float:
        """The inverse of ``opening_to_angle``; angles below closed count as closed."""
        return float(np.interp(angle_rad, self._opening_rad, self._opening_m))

    # Inverse

    def solve(
        self,
        position_m: ArrayLike,
        yaw_rad: float | None,
        q0_rad: ArrayLike,
        *,
        width_m: float = 0.0,
        depth_m: float = FINGER_DEPTH_M,
        either_way: bool = True,
    ) -> Solution:
        """Joints that put the point between the jaws at ``position_m``, pointing down as well as the arm can.

        Args:
            position_m: (3,) target in the base frame.
            yaw_rad: direction of the opening axis (tool x) in the base xy plane; None leaves the wrist's roll as it is.
            q0_rad: (5,) or (6,) joints to stay near: among solutions that serve, the nearest is taken.
            width_m: distance between the jaws for which the midpoint is meant.
            depth_m: how far behind the tips the point lies.
            either_way: also try the opening axis turned by half a turn, so that the jaws change sides.

        Returns:
            The best solution found; ``reason`` says why when it does not serve.
        """
        target_m = np.asarray(position_m, dtype=float)
        start = self._full(q0_rad)
        if yaw_rad is None:
            yaw_rad, either_way = self._yaw_kept(target_m, start), False
        yaws = (yaw_rad, yaw_rad + math.pi) if either_way else (yaw_rad,)
        found: list[Solution] = []
        for yaw in yaws:
            for seed in self._seeds(target_m, yaw, start):
                solution = self._descend(target_m, yaw, seed, width_m, depth_m, iterations=60)
                found.append(solution)
                if solution.reached:
                    break  # the other seeds are for when this one gets stuck
        served = [s for s in found if s.reached]
        if served:
            # A turn of the wrist is cheap beside a tilt: 10 degrees of tilt count as much as 60 of travel.
            return min(served, key=lambda s: 6.0 * s.tilt_rad + float(np.abs(s.position_rad - start[:5]).max()))
        return min(found, key=lambda s: s.position_error_m + 0.05 * s.yaw_error_rad)

    def track(
        self,
        position_m: ArrayLike,
        yaw_rad: float,
        q_near_rad: ArrayLike,
        *,
        width_m: float = 0.0,
        depth_m: float = FINGER_DEPTH_M,
    ) -> Solution:
        """As ``solve``, from one start only: for a target a few millimetres from where ``q_near_rad`` (5,) is."""
        target_m = np.asarray(position_m, dtype=float)
        return self._descend(target_m, yaw_rad, self._full(q_near_rad), width_m, depth_m, iterations=15)

    def yaw_of(self, position_rad: ArrayLike) -> float:
        """Direction of tool x in the base xy plane after the tilt is undone, for joints (5,) or (6,)."""
        R = self.fk(self._full(position_rad))[:3, :3]
        R = _upright(R) @ R
        return math.atan2(R[1, 0], R[0, 0])

    # Inside

    def _descend(
        self, target_m: Array, yaw_rad: float, seed: Array, width_m: float, depth_m: float, iterations: int
    ) -> Solution:
        """Gauss-Newton on the frame task from one seed."""
        offset = self._R_gripper_tool @ (-width_m / 2, 0.0, -depth_m)
        self.model.site_pos[self._grasp_site] = self._tool_pos + offset
        configuration = self._configuration
        configuration.update(np.clip(seed, self.lower_rad, self.upper_rad))
        R_down = _down(yaw_rad)
        R_target = R_down
        settled = 0
        for _ in range(iterations):
            self._task.set_target(mink.SE3.from_rotation_and_translation(mink.SO3.from_matrix(R_target), target_m))
            dq = mink.solve_ik(configuration, [self._task], 1.0, "daqp", damping=1e-7, limits=self._limits)
            step = float(np.abs(dq).max())
            configuration.integrate_inplace(dq * min(1.0, _STEP_LIMIT_RAD / max(step, 1e-9)), 1.0)
            if step < 1e-3:
                settled += 1
                if settled > 2 or step < 1e-6:
                    break
                # Aim at the tilt reached: what is left of the position error has no reason to stay.
                R_now = configuration.data.site_xmat[self._grasp_site].reshape(3, 3)
                R_target = _upright(R_now).T @ R_down
        data = configuration.data
        R = data.site_xmat[self._grasp_site].reshape(3, 3)
        error_m = float(np.linalg.norm(data.site_xpos[self._grasp_site] - target_m))
        x_level = (_upright(R) @ R)[:, 0]
        yaw_error = abs(_wrap(math.atan2(x_level[1], x_level[0]) - yaw_rad))
        tilt = math.acos(float(np.clip(-R[2, 2], -1.0, 1.0)))
        q = np.clip(configuration.q[:5], self.lower_rad[:5], self.upper_rad[:5])
        return Solution(q, error_m, yaw_error, tilt, self._reason(target_m, error_m, yaw_error, tilt))

    def _reason(self, target_m: Array, error_m: float, yaw_error_rad: float, tilt_rad: float) -> str:
        where = f"({target_m[0]:.3f}, {target_m[1]:.3f}, {target_m[2]:.3f}) m"
        if error_m > _POSITION_TOLERANCE_M:
            return f"out of reach: the jaws come no nearer than {error_m * 1e3:.0f} mm to {where}"
        if tilt_rad > _MAX_TILT_RAD:
            return f"out of reach: at {where} the hand would lie {math.degrees(tilt_rad):.0f} degrees off vertical"
        if yaw_error_rad > _YAW_TOLERANCE_RAD:
            return (
                f"the wrist cannot turn the jaws as asked at {where}: {math.degrees(yaw_error_rad):.0f} degrees short"
            )
        return ""

    def _seeds(self, target_m: Array, yaw_rad: float, start: Array) -> Sequence[Array]:
        """Starting joints: a bent arm turned towards the target with the wrist turned to the yaw, then ``start``."""
        bent = start.copy()
        anchor, axis = self._pan_axis()
        bent[0] = math.atan2(target_m[1] - anchor[1], target_m[0] - anchor[0]) * np.sign(axis[2])
        far = float(np.hypot(target_m[0] - anchor[0], target_m[1] - anchor[1])) > 0.22
        bent[1:4] = (0.3, 0.0, 1.2) if far else (-0.4, 0.7, 1.2)
        bent[4] = 0.0
        bent[4] = self._turn(bent, yaw_rad)
        return (np.clip(bent, self.lower_rad, self.upper_rad), start)

    def _turn(self, q: Array, yaw_rad: float) -> float:
        """The wrist roll that turns tool x to the yaw, whole turns chosen to lie within the limits if one does."""
        at_zero, at_small = self.yaw_of(q), self.yaw_of(q + np.array([0, 0, 0, 0, 0.1, 0]))
        sign = math.copysign(1.0, _wrap(at_small - at_zero))
        return _wrap(sign * (yaw_rad - at_zero))

    def _yaw_kept(self, target_m: Array, start: Array) -> float:
        """The yaw at the target that leaves the wrist roll of ``start``."""
        bent = self._seeds(target_m, 0.0, start)[0].copy()
        bent[4] = start[4]
        return self.yaw_of(bent)

    def _pan_axis(self) -> tuple[Array, Array]:
        data = self._configuration.data
        return data.xanchor[0].copy(), data.xaxis[0].copy()

    def _full(self, position_rad: ArrayLike) -> Array:
        q = np.zeros(self.model.nq)
        given = np.asarray(position_rad, dtype=float)
        q[: given.size] = given
        return q

    def _forward(self, position_rad: ArrayLike) -> mujoco.MjData:
        self._configuration.update(self._full(position_rad))
        return self._configuration.data

    def _corners(self, geom: str) -> tuple[int, Array]:
        signs = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
        return self.model.geom(geom).id, signs * self.model.geom(geom).size

    def _measure_openings(self) -> tuple[Array, Array]:
        """Angles and jaw distances, both increasing, from closed (angle 0) to the joint's limit."""
        angles = np.linspace(0.0, self.upper_rad[-1], 120)
        q = np.zeros(self.model.nq)
        distances = []
        for angle in angles:
            q[-1] = angle
            data = self._forward(q)
            gap = data.site("jaw_moving").xpos - data.site("jaw_fixed").xpos
            distances.append(float(np.linalg.norm(gap)))
        return angles, np.maximum.accumulate(distances)


def _matrix(quat: Array) -> Array:
    R = np.zeros(9)
    mujoco.mju_quat2Mat(R, quat)
    return R.reshape(3, 3)


def _down(yaw_rad: float) -> Array:
    """Tool axes in the base frame when pointing straight down with x towards ``yaw_rad``."""
    c, s = math.cos(yaw_rad), math.sin(yaw_rad)
    return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])


def _upright(R: Array) -> Array:
    """The shortest rotation, in the base frame, that turns the approach direction of ``R`` (its z) straight down."""
    z = R[:, 2]
    axis = np.cross(z, (0.0, 0.0, -1.0))
    sine, cosine = float(np.linalg.norm(axis)), float(-z[2])
    if sine < 1e-9:
        return np.eye(3)
    x, y, w = axis / sine
    K = np.array([[0.0, -w, y], [w, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + sine * K + (1.0 - cosine) * (K @ K)


def _wrap(angle_rad: float) -> float:
    """Into [-pi, pi)."""
    return (angle_rad + math.pi) % (2.0 * math.pi) - math.pi
