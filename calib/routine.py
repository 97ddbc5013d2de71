"""A hand-eye calibration from start to end: move, wait, look, and solve."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calib.adjust import Adjustment, Disagreement, adjust
from calib.board import Board, Detection
from calib.calibration import Calibration, CameraCalibration, Reference, View, now_iso
from calib.depth import depth_at, depth_scale
from calib.diagnosis import Diagnosis, diagnose
from calib.hand_eye import Pinhole, board_pose, first_guess
from calib.rigid import apply, invert, rms_length
from calib.workspace import workspace_poses
from drivers.errors import UserError
from drivers.protocols import Arm, Camera

Array = NDArray[np.float64]
Forward = Callable[[Array], Array]

MIN_GOOD_VIEWS = 8

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
    factory = CameraCalibration(now_iso(), camera.serial, camera.intrinsics)
    if len(seen) < MIN_GOOD_VIEWS:
        raise UserError(
            f"calibration: the board was seen in {len(seen)} of {len(poses_rad)} arm poses, {MIN_GOOD_VIEWS} are "
            "needed; see that the board is in full view, is lit evenly and lies still"
        )
    calibration, diagnosis = solve(
        seen, fk, board, factory, arm_name, mount=mount, joint_names=arm.joint_names, fit_zeros=fit_zeros
    )
    if diagnosis.bad:
        raise UserError(f"calibration: {' '.join(diagnosis.sentences)}")
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
    joint_names: Sequence[str] = (),
    fit_zeros: bool | None = None,
    date: str = "",
) -> tuple[Calibration, Diagnosis]:
    """What the observations say, and how good that is: ``Diagnosis.bad`` tells whether it had better not be used.

    Where the views contradict each other too much for an answer, the transforms are a rough guess, so that the
    observations can be kept.

    Args:
        observations: in order of time.
        fk, mount, fit_zeros: as for `calibrate_hand_eye`.
        joint_names: for the diagnosis.
        date: ISO 8601; now, if left out.

    Raises:
        UserError: the camera's intrinsics are not measured.
    """
    observations = [_as_stored(one) for one in observations]
    joints = [one.joints_rad for one in observations]
    detections = [one.detection for one in observations]
    chain = fk if mount == "base" else _inverse(fk)
    reach_rad = workspace_poses(fk, len(joints[0])) if joints else np.zeros((0, 0))
    given = (joints, detections, chain, board, camera.intrinsics)
    result: Adjustment | None = None
    try:
        result = adjust(*given, mount=mount, reach_rad=reach_rad, fit_zeros=fit_zeros)
    except Disagreement:
        pass  # the diagnosis says why
    except UserError:  # too few views, or turns: so it says
        camera.intrinsics.require_measured()
    diagnosis = diagnose(*given, result, mount=mount, reach_rad=reach_rad, joint_names=joint_names)
    known = Calibration(
        date=date or now_iso(),
        arm_name=arm_name,
        camera=camera,
        board=board,
        mount=mount,
        T_mount_camera=np.eye(4),
        T_other_board=np.eye(4),
        reprojection_px=0.0,
        leave_one_out_mm=0.0,
        diagnosis=diagnosis.sentences,
    )
    if result is None:
        return _unsolved(known, observations, chain), diagnosis
    calibration = replace(
        known,
        T_mount_camera=result.T_base_camera,
        T_other_board=result.T_gripper_board,
        reprojection_px=result.reprojection_px,
        leave_one_out_mm=result.leave_one_out_mm,
        views=_views(observations, result.view_px, 1e3 * result.leave_one_out_m),
        joint_zeros_rad=tuple(result.joint_zeros_rad.tolist()) if result.zeros_fitted else (),
        outliers=result.outliers,
        expected_mm=result.expected_mm,
        expected_reach_mm=result.expected_reach_mm,
        covariance=result.covariance,
        point_covariance_m2=result.point_covariance_m2,
        depth_scale=_depth_scale(observations, result, chain, board),
    )
    return calibration, diagnosis


def _as_stored(one: Observation) -> Observation:
    """With the digits that the file keeps, so that solving a stored file gives the same."""
    return Observation(
        np.round(one.joints_rad, 6),
        Detection(one.detection.ids, np.round(one.detection.corners_px, 3)),
        None if one.depth_m is None else np.round(one.depth_m, 5),
    )


def observations_of(calibration: Calibration) -> list[Observation]:
    """The raw observations that a calibration was computed from."""
    return [Observation(v.joints_rad, Detection(v.ids, v.corners_px), v.depth_m) for v in calibration.views]


def solve_again(calibration: Calibration, fk: Forward, fit_zeros: bool | None = None) -> Calibration:
    """The same calibration computed anew from its raw observations, say with other intrinsics."""
    again, _ = solve(
        observations_of(calibration),
        fk,
        calibration.board,
        calibration.camera,
        calibration.arm_name,
        mount=calibration.mount,
        fit_zeros=fit_zeros,
        date=calibration.date,
    )
    return replace(again, reference=calibration.reference)


def _unsolved(known: Calibration, observations: Sequence[Observation], chain: Forward) -> Calibration:
    """The observations with a closed-form guess where there is one, and by how much that misses them."""
    joints, detections = [one.joints_rad for one in observations], [one.detection for one in observations]
    board, intrinsics = known.board, known.camera.intrinsics
    X = Y = np.eye(4)
    try:
        X, Y = first_guess([chain(q) for q in joints], detections, board, intrinsics)
    except UserError:
        pass
    camera = Pinhole(intrinsics)
    missed_px, missed_mm = [], []
    for q, detection in zip(joints, detections, strict=True):
        points, T = board.corners_m(detection.ids), invert(X) @ chain(q) @ Y
        missed_px.append(rms_length(camera.project(apply(T, points))[0] - detection.corners_px))
        seen = board_pose(detection, board, camera, T)
        missed_mm.append(1e3 * rms_length(apply(T, points) - apply(seen, points)))
    return replace(
        known,
        T_mount_camera=X,
        T_other_board=Y,
        reprojection_px=float(np.sqrt(np.mean(np.square(missed_px)))) if missed_px else 0.0,
        leave_one_out_mm=float(np.sqrt(np.mean(np.square(missed_mm)))) if missed_mm else 0.0,
        views=_views(observations, np.array(missed_px), np.array(missed_mm)),
    )


def _views(observations: Sequence[Observation], missed_px: Array, missed_mm: Array) -> tuple[View, ...]:
    return tuple(
        View(one.joints_rad, one.detection.ids, one.detection.corners_px, float(px), float(mm), one.depth_m)
        for one, px, mm in zip(observations, missed_px, missed_mm, strict=True)
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
