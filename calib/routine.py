"""A hand-eye calibration from start to end: move, wait, look, and solve."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from calib.adjust import adjust
from calib.board import Board, Detection
from calib.file import Calibration, View
from calib.workspace import workspace_poses
from drivers.errors import UserError
from drivers.protocols import Arm, Camera, Intrinsics

Array = NDArray[np.float64]

MIN_GOOD_VIEWS = 8
MAX_LEAVE_ONE_OUT_MM = 20.0
"""A result further off than this is refused: no grasp would succeed with it."""

STILL_RAD = 0.004  # two counts of a 4096-count servo are 0.003 rad
SETTLE_INTERVAL_S = 0.1
SETTLE_TIMEOUT_S = 3.0


def calibrate_hand_eye(
    arm: Arm,
    camera: Camera,
    poses_rad: Sequence[Array] | Array,
    fk: Callable[[Array], Array],
    board: Board,
    *,
    arm_name: str,
    move: Callable[[Array], None],
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    fit_zeros: bool | None = None,
) -> Calibration:
    """Take the arm through the poses, look at the board in each, and solve for where the camera stands.

    Args:
        poses_rad: joint poses in the arm's order (``calib.poses.choose_poses``), the board in the gripper throughout.
        fk: measured joints (n,) -> T_base_gripper (4, 4).
        arm_name: the robot file's name, stored in the result.
        move: brings the arm to a joint pose and returns when its setpoints have arrived there.
        progress: told (views done, views in all, what came of the last one).
        fit_zeros: solve for the joints' zeros too: True, False, or None for where the data need it.

    Returns:
        The calibration; the arm is left at its last pose.

    Raises:
        UserError: too few good views, or a result that is undetermined or too poor to grasp with.
        DeviceError: from the arm or the camera.
    """
    joints: list[Array] = []
    detections: list[Detection] = []
    intrinsics = camera.intrinsics
    for i, pose in enumerate(poses_rad):
        move(np.asarray(pose, dtype=float))
        before = _wait_until_still(arm)
        frame = camera.read()
        after = arm.read().position_rad
        if before is None or np.abs(after - before).max() > STILL_RAD:
            said = "skipped: the arm did not come to rest"
        elif (detection := board.detect(frame.rgb)) is None:
            said = "skipped: the board is not seen"
        else:
            intrinsics = frame.intrinsics
            joints.append((before + after) / 2)
            detections.append(detection)
            said = f"{len(detection.ids)} corners"
        progress(i + 1, len(poses_rad), said)
    if len(detections) < MIN_GOOD_VIEWS:
        raise UserError(
            f"calibration: the board was seen in {len(detections)} of {len(poses_rad)} arm poses, {MIN_GOOD_VIEWS} are "
            "needed; see that the board faces the camera, is lit evenly and lies still in the gripper"
        )
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return _solve(joints, detections, fk, board, intrinsics, camera.serial, arm_name, date, fit_zeros)


def solve_again(calibration: Calibration, fk: Callable[[Array], Array], fit_zeros: bool | None = None) -> Calibration:
    """The same calibration computed anew from its raw observations, say with a better ``fk``. Raises UserError."""
    return _solve(
        [view.joints_rad for view in calibration.views],
        [Detection(view.ids, view.corners_px) for view in calibration.views],
        fk,
        calibration.board,
        calibration.intrinsics,
        calibration.camera_serial,
        calibration.arm_name,
        calibration.date,
        fit_zeros,
    )


def _solve(
    joints: list[Array],
    detections: list[Detection],
    fk: Callable[[Array], Array],
    board: Board,
    intrinsics: Intrinsics,
    serial: str,
    arm_name: str,
    date: str,
    fit_zeros: bool | None,
) -> Calibration:
    reach_rad = workspace_poses(fk, len(joints[0]))
    result = adjust(joints, detections, fk, board, intrinsics, reach_rad=reach_rad, fit_zeros=fit_zeros)
    if result.leave_one_out_mm > MAX_LEAVE_ONE_OUT_MM:
        worst = int(np.argmax(result.leave_one_out_m))
        raise UserError(
            f"calibration: off by {result.leave_one_out_mm:.0f} mm at the board (at most {MAX_LEAVE_ONE_OUT_MM:.0f}; "
            f"worst in view {worst + 1} of {len(detections)}); measure a square of the print (it should be "
            f"{1e3 * board.square_m:.1f} mm), see that the board does not slip in the gripper, "
            "and check the arm's zero offsets"
        )
    return Calibration(
        date=date,
        arm_name=arm_name,
        camera_serial=serial,
        intrinsics=intrinsics,
        board=board,
        T_base_camera=result.T_base_camera,
        T_gripper_board=result.T_gripper_board,
        reprojection_px=result.reprojection_px,
        leave_one_out_mm=result.leave_one_out_mm,
        views=tuple(
            View(q, d.ids, d.corners_px, float(px), 1e3 * float(loo))
            for q, d, px, loo in zip(joints, detections, result.view_px, result.leave_one_out_m, strict=True)
        ),
        joint_zeros_rad=tuple(result.joint_zeros_rad.tolist()) if result.zeros_fitted else (),
        outliers=result.outliers,
        expected_mm=result.expected_mm,
        expected_reach_mm=result.expected_reach_mm,
        covariance=result.covariance,
        point_covariance_m2=result.point_covariance_m2,
    )


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
