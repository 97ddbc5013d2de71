"""Which arm poses to take for a hand-eye calibration: board in view, nothing touched, as telling as possible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import mujoco
import numpy as np
from numpy.typing import NDArray

from calib.board import HOLDING_GRIPPER_RAD, PLATE_THICKNESS_M, Board, T_gripper_board_nominal
from calib.hand_eye import information
from calib.kinematics import GripperKinematics
from calib.rigid import apply, invert
from drivers.errors import UserError
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]

MAX_TILT_RAD = float(np.radians(45.0))  # between board normal and line of sight; markers still decode there
IMAGE_MARGIN_PX = 25.0  # the whole plate stays this far inside the image, since the camera's place is only a guess
MIN_SQUARE_PX = 18.0  # smallest foreshortened square: three pixels for a module of a 4x4 marker that fills 3/4 of it
LIMIT_MARGIN_RAD = 0.05
SELF_CLEARANCE_M = 0.008
PATH_STEP_RAD = 0.08

_AROUND_RAD = 0.45
_CANDIDATES = 200
_MAX_SAMPLES = 60_000
_HIDDEN_GROUP = 5  # geoms of ours (plate, table) that no line of sight is tested against


def choose_poses(
    model: str | Path,
    joint_names: Sequence[str],
    board: Board,
    intrinsics: Intrinsics,
    T_mount_camera_guess: Array,
    start_rad: Array,
    *,
    mount: str = "base",
    T_other_board: Array | None = None,
    count: int = 12,
    seed: int = 0,
    gripper_rad: float = HOLDING_GRIPPER_RAD,
    clearance_m: float = 0.02,
) -> Array:
    """Arm poses for ``calibrate_hand_eye``, in the order to take them.

    In every pose the whole plate is in the image, within 45 degrees of facing the camera and hidden by no link; arm,
    and plate where it is in the gripper, stay ``clearance_m`` above the table (base z = 0). The straight way in joint
    space to the next pose, and from ``start_rad`` to every pose, is as free: the arm can go home from anywhere. Of what
    a seeded random search finds, the set is grown greedily to the largest determinant of the Gauss-Newton information
    about camera and board (D-optimal design), which spreads rotation axes, depths and image positions by itself.

    Args:
        model: MJCF of the robot, its base on the table; joints and bodies as in drivers/arm/so101.xml.
        joint_names: order of the returned joints; the last is the gripper.
        T_mount_camera_guess: (4, 4), good to about 3 cm and 3 degrees; where it is worse, some views miss the board.
        start_rad: (n,) where the arm stands, the plate in its jaws or the camera on it, which then sees the board.
        mount: what carries the camera: "base", and the gripper holds the board; or "gripper", and the board lies still.
        T_other_board: (4, 4) T_gripper_board, by default the nominal mount; for a camera in the gripper T_base_board.
        seed: of the search; the same seed gives the same poses.
        clearance_m: for a camera in the gripper it must cover what the camera adds to the gripper.

    Returns:
        (count, n) radians; the gripper's column is ``gripper_rad``.

    Raises:
        UserError: fewer than ``count`` such poses were found.
    """
    if T_other_board is None:
        if mount == "gripper":
            raise ValueError("a camera in the gripper needs T_other_board, where the board lies in the base frame")
        T_other_board = T_gripper_board_nominal(board)
    scene = _Scene(model, joint_names, board, intrinsics, mount, T_mount_camera_guess, T_other_board, clearance_m)
    start_rad = np.asarray(start_rad, dtype=float).copy()
    start_rad[-1] = gripper_rad
    if not scene.is_clear(start_rad):
        raise UserError(
            f"calibration: {'with the board in its jaws ' if mount == 'base' else ''}the arm's start pose is within "
            f"{1e3 * clearance_m:.0f} mm of the table or touches itself; start from a pose with the gripper held high"
        )
    # from where a camera in the gripper sees the board already, it sees it after most turns that are not large
    around_rad = start_rad if mount == "gripper" else None
    candidates = _search(scene, gripper_rad, np.random.default_rng(seed), around_rad)
    infos = np.array([scene.information(q) for q in candidates]).reshape(-1, 12, 12)
    alive = np.ones(len(candidates), dtype=bool)
    chosen: list[int] = []
    total = np.eye(12)  # a weak prior (1 px^-2 for a metre or a radian) that makes the first determinants finite
    while len(chosen) < count:
        if not alive.any():
            raise UserError(
                f"calibration: found {len(chosen)} arm poses that show the board to the camera and touch nothing, "
                f"{count} are needed; check the guessed camera position, or move the camera so that it faces the arm"
                if mount == "base"
                else f"calibration: found {len(chosen)} arm poses from which the camera sees the board and touches "
                f"nothing, {count} are needed; put the board nearer to the middle of the arm's reach"
            )
        gain = np.where(alive, np.linalg.slogdet(total + infos)[1], -np.inf)
        best = int(np.argmax(gain))
        alive[best] = False
        if not scene.is_path_clear(start_rad, candidates[best]):
            continue
        chosen.append(best)
        total = total + infos[best]
        if len(chosen) == count:
            order = _order(start_rad, candidates[chosen], scene)
            if len(order) < count:  # some cannot be reached from their neighbours: others take their place
                chosen = [chosen[i] for i in order]
                total = np.eye(12) + infos[chosen].sum(axis=0)
    return candidates[chosen][order]


def _search(scene: _Scene, gripper_rad: float, rng: np.random.Generator, around_rad: Array | None) -> Array:
    """(m, n) random joint poses that show the board, m up to _CANDIDATES, from the whole range or about a pose."""
    lower, upper = scene.fk.limits_rad[:, 0] + LIMIT_MARGIN_RAD, scene.fk.limits_rad[:, 1] - LIMIT_MARGIN_RAD
    found = []
    for _ in range(_MAX_SAMPLES):
        q = rng.uniform(lower, upper)
        if around_rad is not None:
            q = np.clip(rng.normal(around_rad, _AROUND_RAD), lower, upper)
        q[-1] = gripper_rad
        if scene.shows_board(q) and scene.is_clear(q) and scene.is_unhidden():
            found.append(q)
            if len(found) == _CANDIDATES:
                break
    return np.array(found).reshape(-1, len(lower))


def _order(start_rad: Array, poses: Array, scene: _Scene) -> list[int]:
    """Nearest free neighbour first, by the largest joint difference (which sets the travel time)."""
    order: list[int] = []
    at = start_rad
    left = list(range(len(poses)))
    while left:
        left.sort(key=lambda i: float(np.abs(poses[i] - at).max()))
        step = next((i for i in left if scene.is_path_clear(at, poses[i])), None)
        if step is None:
            break
        order.append(step)
        left.remove(step)
        at = poses[step]
    return order


class _Scene:
    """The robot, a plate in its jaws or before its camera, a table, and the guessed camera."""

    def __init__(
        self,
        model: str | Path,
        joint_names: Sequence[str],
        board: Board,
        intrinsics: Intrinsics,
        mount: str,
        T_mount_camera: Array,
        T_other_board: Array,
        clearance_m: float,
    ) -> None:
        compiled = _with_table(model, board, T_other_board if mount == "base" else None)
        self.fk = GripperKinematics(compiled, joint_names)
        self.board, self.intrinsics, self.clearance_m = board, intrinsics, clearance_m
        self.mount, self.T_mount_camera, self.T_other_board = mount, T_mount_camera, T_other_board
        self._centre, self._plate = board.centre_m, board.plate_corners_m
        self._distortion = np.array(intrinsics.distortion or [0.0] * 5)
        self._to_table, self._to_self = _pairs(compiled)
        groups = np.ones(6, dtype=np.uint8)
        groups[_HIDDEN_GROUP] = 0
        self._groups = groups

    def places(self, T_base_gripper: Array) -> tuple[Array, Array]:
        """T_base_camera and T_base_board."""
        if self.mount == "base":
            return self.T_mount_camera, T_base_gripper @ self.T_other_board
        return T_base_gripper @ self.T_mount_camera, self.T_other_board

    def information(self, q_rad: Array) -> Array:
        """(12, 12) what a view tells of camera and board, per px^2."""
        chain = self.fk(q_rad) if self.mount == "base" else invert(self.fk(q_rad))
        corners = self.board.corners_m()
        return information(invert(self.T_mount_camera), chain, self.T_other_board, corners, self.intrinsics)

    def shows_board(self, q_rad: Array) -> bool:
        """Plate above the table, in the image, large enough and facing the camera, if nothing hides it."""
        T_base_camera, T_base_board = self.places(self.fk(q_rad))
        T_camera_board = invert(T_base_camera) @ T_base_board
        centre = T_camera_board[:3, :3] @ self._centre + T_camera_board[:3, 3]
        # board z points away from the viewer, so it is along the line of sight when the print faces the camera
        if centre[2] <= 0 or T_camera_board[:3, 2] @ centre < np.cos(MAX_TILT_RAD) * np.sqrt(centre @ centre):
            return False
        held = self.mount == "base"
        if held and (self._plate @ T_base_board[2, :3] + T_base_board[2, 3]).min() < self.clearance_m:
            return False
        px = self._project(self._plate, T_camera_board)
        size = np.array([self.intrinsics.width - 1, self.intrinsics.height - 1])
        if px.min() < IMAGE_MARGIN_PX or (px > size - IMAGE_MARGIN_PX).any():
            return False
        grid = self._project(self.board.corners_m(), T_camera_board)
        grid = grid.reshape(self.board.squares_y - 1, self.board.squares_x - 1, 2)
        sides = [np.linalg.norm(np.diff(grid, axis=axis), axis=2).min() for axis in (0, 1)]
        return min(sides) >= MIN_SQUARE_PX

    def is_unhidden(self) -> bool:
        """Whether the camera sees every inner corner and plate corner past the arm, at the last pose asked about."""
        T_base_camera, T_base_board = self.places(self.fk.pose())
        eye = np.ascontiguousarray(T_base_camera[:3, 3])
        hit = np.zeros(1, dtype=np.int32)
        for ray in apply(T_base_board, np.concatenate([self.board.corners_m(), self._plate])) - eye:
            distance = mujoco.mj_ray(self.fk.model, self.fk.data, eye, ray, self._groups, 1, -1, hit, None)
            if 0.0 <= distance < 1.0:  # in lengths of the ray
                return False
        return True

    def is_clear(self, q_rad: Array, share: float = 1.0) -> bool:
        """Whether arm and plate keep ``share`` of their clearances from the table and from the arm itself."""
        self.fk(q_rad)
        return all(
            mujoco.mj_geomDistance(self.fk.model, self.fk.data, a, b, 2 * distance, None) >= distance
            for pairs, distance in (
                (self._to_table, share * self.clearance_m),
                (self._to_self, share * SELF_CLEARANCE_M),
            )
            for a, b in pairs
        )

    def is_path_clear(self, from_rad: Array, to_rad: Array) -> bool:
        """Whether the straight line in joint space keeps half of the clearances."""
        steps = int(np.ceil(np.abs(to_rad - from_rad).max() / PATH_STEP_RAD))
        return all(self.is_clear(from_rad + (to_rad - from_rad) * k / steps, share=0.5) for k in range(1, steps))

    def _project(self, points_m: Array, T_camera_points: Array) -> Array:
        rvec = cv2.Rodrigues(T_camera_points[:3, :3])[0]
        px, _ = cv2.projectPoints(points_m, rvec, T_camera_points[:3, 3], self.intrinsics.matrix, self._distortion)
        return np.asarray(px, dtype=float).reshape(-1, 2)


def _with_table(model: str | Path, board: Board, T_gripper_board: Array | None) -> mujoco.MjModel:
    """The robot's model above a table at base z = 0, the plate fixed to body ``gripper`` if that holds it."""
    try:
        spec = mujoco.MjSpec.from_file(str(model))
    except ValueError as error:
        raise UserError(f"{model}: not a readable MJCF model ({str(error).splitlines()[0]})") from None
    gripper = spec.body("gripper")
    if gripper is None:
        raise UserError(f"{model}: no body named 'gripper'")
    box = mujoco.mjtGeom.mjGEOM_BOX
    if T_gripper_board is not None:
        centre = T_gripper_board @ np.append(board.centre_m + np.array([0, 0, PLATE_THICKNESS_M / 2]), 1.0)
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, np.ascontiguousarray(T_gripper_board[:3, :3]).ravel())
        size = [*(0.5 * np.array(board.plate_size_m)), PLATE_THICKNESS_M / 2]
        gripper.add_geom(name="calibration_plate", type=box, pos=centre[:3], quat=quat, size=size, group=_HIDDEN_GROUP)
    spec.worldbody.add_geom(name="calibration_table", type=box, pos=[0, 0, -0.5], size=[2, 2, 0.5], group=_HIDDEN_GROUP)
    return spec.compile()


def _pairs(model: mujoco.MjModel) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Geom pairs to keep apart: moving links and the table; links too far along the chain to be meant to touch."""
    table = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, "calibration_table")
    plate = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, "calibration_plate")
    depth = {0: -1}  # place in the chain: base 0, shoulder 1, ... gripper 5; the jaw counts as the gripper
    for body in range(1, model.nbody):
        depth[body] = min(depth[int(model.body_parentid[body])] + 1, 5)
    arm = [g for g in range(model.ngeom) if g != table]
    place = {g: depth[int(model.geom_bodyid[g])] for g in arm}
    to_table = [(table, g) for g in arm if place[g] >= 2]
    to_self = [
        (a, b)
        for a in arm
        for b in arm
        # neighbours and next neighbours are kept apart by the joint limits, save for what the gripper carries
        if place[b] - place[a] >= (2 if b == plate else 3)
    ]
    return to_table, to_self
