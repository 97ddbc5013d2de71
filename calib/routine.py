"""A hand-eye calibration from start to end: move, wait, look, and solve."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from calib.adjust import Adjustment, adjust
from calib.board import Board, Detection
from calib.calibration import Calibration, CameraCalibration, Reference, View
from calib.depth import depth_at, depth_scale
from calib.rigid import invert
from calib.workspace import workspace_poses
from drivers.errors import UserError
from drivers.protocols import Arm, Camera

Array = NDArray[np.float64]
Forward = Callable[[Array], Array]

MIN_GOOD_VIEWS = 8
MAX_LEAVE_ONE_OUT_MM = 20.0
"""A result further off than this is refused: no grasp would succeed with it."""

STILL_RAD = 0.004  # two counts of a 4096-count servo are 0.003 rad
SETTLE_INTERVAL_S = 0.1
SETTLE_TIMEOUT_S = 3.0


@dataclass(frozen=True, eq=False)
class Observation:
    """One arm pose: ``joints_rad`` (n,) measured, the board as seen, (m,) metres of depth at its corners or None."""

    joints_rad: Array
    detection: Detection
    depth_m: Array | None = None


def calibrate_hand_eye(
    arm: Arm,
    camera: Camera,
    poses_rad: Sequence[Array] | Array,
    fk: Forward,
    board: Board,
    *,
    arm_name: str,
    move: Callable[[Array], None],
    mount: str = "base",
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    fit_zeros: bool | None = None,
) -> Calibration:
    """Take the arm through the poses, look at the board in each, and solve for where the camera is.

    Args:
        camera: one that knows its intrinsics (``calib.camera.CalibratedCamera`` otherwise).
        poses_rad: joint poses in the arm's order (``calib.poses.choose_poses``).
        fk: measured joints (n,) -> T_base_gripper (4, 4).
        arm_name: the robot file's name, stored in the result.
        move: brings the arm to a joint pose and returns when its setpoints have arrived there.
        mount: what carries the camera, "base" (the board is in the gripper) or "gripper" (it lies still).
        progress: told (views done, views in all, what came of the last one).
        fit_zeros: solve for the joints' zeros too: True, False, or None for where the data need it.

    Returns:
        The calibration; the arm is left at its last pose.

    Raises:
        UserError: too few good views, or a result that is undetermined or too poor to grasp with.
        DeviceError: from the arm or the camera.
    """
    seen: list[Observation] = []
    for i, pose in enumerate(poses_rad):
        move(np.asarray(pose, dtype=float))
        observed = observe(arm, camera, board)
        if isinstance(observed, Observation):
            seen.append(observed)
        said = f"{len(observed.detection.ids)} corners" if isinstance(observed, Observation) else f"skipped: {observed}"
        progress(i + 1, len(poses_rad), said)
    factory = CameraCalibration(_now(), camera.serial, camera.intrinsics)
    calibration = solve(seen, fk, board, factory, arm_name, mount=mount, tried=len(poses_rad), fit_zeros=fit_zeros)
    require_good(calibration)
    return calibration


def observe(arm: Arm, camera: Camera, board: Board) -> Observation | str:
    """Wait until the arm rests and look at the board; or why that came to nothing. Raises DeviceError."""
    before = _wait_until_still(arm)
    frame = camera.read()
    after = arm.read().position_rad
    if before is None or np.abs(after - before).max() > STILL_RAD:
        return "the arm did not come to rest"
    detection = board.detect(frame.rgb)
    if detection is None:
        return "the board is not seen"
    depth_m = None if frame.depth_m is None else depth_at(frame.depth_m, detection.corners_px)
    return Observation((before + after) / 2, detection, depth_m)


def take_reference(arm: Arm, camera: Camera) -> Reference:
    """What the camera sees now, and where the arm stands meanwhile. Raises DeviceError."""
    frame = camera.read()
    return Reference(arm.read().position_rad, frame.rgb, frame.depth_m)


def solve(
    observations: Sequence[Observation],
    fk: Forward,
    board: Board,
    camera: CameraCalibration,
    arm_name: str,
    *,
    mount: str = "base",
    tried: int = 0,
    fit_zeros: bool | None = None,
    date: str = "",
) -> Calibration:
    """What the observations say, good or not; ``require_good`` tells.

    Args:
        fk, mount, fit_zeros: as for `calibrate_hand_eye`.
        tried: how many poses were looked at, for the message when too few show the board.
        date: ISO 8601; now, if left out.

    Raises:
        UserError: too few views, too few that agree, or rotations that leave the answer open.
    """
    if len(observations) < MIN_GOOD_VIEWS:
        raise UserError(
            f"calibration: the board was seen in {len(observations)} of {max(tried, len(observations))} arm poses, "
            f"{MIN_GOOD_VIEWS} are needed; see that the board is in full view, is lit evenly and lies still"
        )
    joints = [one.joints_rad for one in observations]
    detections = [one.detection for one in observations]
    chain = fk if mount == "base" else _inverse(fk)
    reach_rad = workspace_poses(fk, len(joints[0]))
    result = adjust(joints, detections, chain, board, camera.intrinsics, reach_rad=reach_rad, fit_zeros=fit_zeros)
    return Calibration(
        date=date or _now(),
        arm_name=arm_name,
        camera=camera,
        board=board,
        mount=mount,
        T_mount_camera=result.T_base_camera,
        T_other_board=result.T_gripper_board,
        reprojection_px=result.reprojection_px,
        leave_one_out_mm=result.leave_one_out_mm,
        views=tuple(
            View(one.joints_rad, one.detection.ids, one.detection.corners_px, float(px), 1e3 * float(loo), one.depth_m)
            for one, px, loo in zip(observations, result.view_px, result.leave_one_out_m, strict=True)
        ),
        joint_zeros_rad=tuple(result.joint_zeros_rad.tolist()) if result.zeros_fitted else (),
        outliers=result.outliers,
        expected_mm=result.expected_mm,
        expected_reach_mm=result.expected_reach_mm,
        covariance=result.covariance,
        point_covariance_m2=result.point_covariance_m2,
        depth_scale=_depth_scale(observations, result, chain, board),
    )


def solve_again(calibration: Calibration, fk: Forward, fit_zeros: bool | None = None) -> Calibration:
    """The same calibration computed anew from its raw observations, say with other intrinsics. Raises UserError."""
    observations = [Observation(v.joints_rad, Detection(v.ids, v.corners_px), v.depth_m) for v in calibration.views]
    return solve(
        observations,
        fk,
        calibration.board,
        calibration.camera,
        calibration.arm_name,
        mount=calibration.mount,
        fit_zeros=fit_zeros,
        date=calibration.date,
    )


def require_good(calibration: Calibration) -> None:
    """Raise UserError where no grasp would succeed with it."""
    if calibration.leave_one_out_mm > MAX_LEAVE_ONE_OUT_MM:
        worst = int(np.argmax([view.leave_one_out_mm for view in calibration.views]))
        raise UserError(
            f"calibration: off by {calibration.leave_one_out_mm:.0f} mm at the board (at most "
            f"{MAX_LEAVE_ONE_OUT_MM:.0f}; worst in view {worst + 1} of {len(calibration.views)}); measure a square of "
            f"the print (it should be {1e3 * calibration.board.square_m:.1f} mm), see that the board does not slip, "
            "and check the arm's zero offsets"
        )


def _inverse(fk: Forward) -> Forward:
    return lambda q: invert(fk(q))


def _depth_scale(observations: Sequence[Observation], result: Adjustment, chain: Forward, board: Board) -> float:
    """By how much the depth image is off, from the corners of the views that count; 1 without depth."""
    seen_m, true_m = [], []
    for i, one in enumerate(observations):
        if one.depth_m is not None and i not in result.outliers:
            T = invert(result.T_base_camera) @ chain(one.joints_rad + result.joint_zeros_rad) @ result.T_gripper_board
            seen_m.append(one.depth_m)
            true_m.append(board.corners_m(one.detection.ids) @ T[2, :3] + T[2, 3])
    return depth_scale(seen_m, true_m)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _wait_until_still(arm: Arm) -> Array | None:
    """Measured joints once two reads agree; None if they do not within SETTLE_TIMEOUT_S."""
    deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
    last = arm.read().position_rad
    while time.monotonic() < deadline_s:
        time.sleep(SETTLE_INTERVAL_S)
        now = arm.read().position_rad
        if np.abs(now - last).max() <= STILL_RAD:
            return now
        last = now
    return None
