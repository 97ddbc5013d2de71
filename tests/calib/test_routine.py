"""Choosing poses and the whole routine, with the shipped arm model, a camera that renders, and encoders with counts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from calib_rig import (
    BOARD,
    JOINTS,
    MODEL,
    START,
    T_BASE_BOARD,
    T_BASE_CAMERA,
    T_GRIPPER_BOARD,
    T_GRIPPER_CAMERA,
    T_GUESS,
    Rig,
    RigArm,
    RigCamera,
)
from calib_views import VGA, look_at, project, transform

import calib.routine as routine
from calib.board import T_gripper_board_nominal
from calib.explore import exploring_poses, rough_guess
from calib.hand_eye import rotation_spread_rad
from calib.kinematics import GripperKinematics
from calib.poses import choose_poses
from calib.routine import Observation, calibrate_hand_eye, observe, solve_again
from drivers.errors import UserError
from drivers.protocols import JointState


@pytest.fixture(scope="module")
def fk() -> GripperKinematics:
    return GripperKinematics(MODEL, JOINTS)


@pytest.fixture(scope="module")
def poses() -> np.ndarray:
    return choose_poses(MODEL, JOINTS, BOARD, VGA, T_GUESS, START)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(routine, "SETTLE_INTERVAL_S", 0.0)


def run(rig, poses, fk, **options):
    return calibrate_hand_eye(RigArm(rig), RigCamera(rig), poses, fk, BOARD, arm_name="so101", move=rig.move, **options)


def distance(A, B):
    turn = np.linalg.norm(cv2.Rodrigues(A[:3, :3].T @ B[:3, :3])[0])
    return 1e3 * float(np.linalg.norm(A[:3, 3] - B[:3, 3])), float(np.degrees(turn))


def test_kinematics_follow_the_joint_table(fk):
    """Against the joint frames of the robot's description, multiplied out."""
    table = [
        ((0.0388353, 0, 0.0624), (np.pi, 0, -np.pi)),
        ((-0.0303992, -0.0182778, -0.0542), (-np.pi / 2, -np.pi / 2, 0)),
        ((-0.11257, -0.028, 0), (0, 0, np.pi / 2)),
        ((-0.1349, 0.0052, 0), (0, 0, -np.pi / 2)),
        ((0, -0.0611, 0.0181), (np.pi / 2, 0.0486795, np.pi)),
    ]
    rng = np.random.default_rng(0)
    for q in rng.uniform(-1.6, 1.6, (20, 6)):
        T = np.eye(4)
        for (xyz, (roll, pitch, yaw)), angle in zip(table, q, strict=False):
            R = [transform(v, (0, 0, 0)) for v in ((0, 0, yaw), (0, pitch, 0), (roll, 0, 0), (0, 0, angle))]
            T = T @ transform((0, 0, 0), xyz) @ R[0] @ R[1] @ R[2] @ R[3]
        np.testing.assert_allclose(fk(q), T, atol=1e-6)


def test_unknown_joint_or_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="no joint named 'knee'"):
        GripperKinematics(MODEL, ["knee"])
    with pytest.raises(UserError, match="not a readable MJCF model"):
        GripperKinematics(tmp_path / "none.xml", JOINTS)


def test_chosen_poses_meet_their_conditions(poses, fk):
    assert poses.shape == (12, 6)
    assert (poses[:, -1] == 0.05).all()
    assert (poses > fk.limits_rad[:, 0]).all() and (poses < fk.limits_rad[:, 1]).all()
    for q in poses:
        T_base_board = fk(q) @ T_gripper_board_nominal(BOARD)
        plate = BOARD.plate_corners_m @ T_base_board[:3, :3].T + T_base_board[:3, 3]
        assert plate[:, 2].min() > 0.02
        px = project(plate, np.linalg.inv(T_GUESS), VGA)
        assert px.min() > 20 and (px < [620, 460]).all()
        to_camera = T_GUESS[:3, 3] - plate.mean(axis=0)
        assert -T_base_board[:3, 2] @ to_camera / np.linalg.norm(to_camera) > np.cos(np.radians(50))
    spread = np.degrees(rotation_spread_rad([fk(q) for q in poses]))
    assert spread[1] > 12 and spread[2] > 8
    assert len(np.unique(poses.round(3), axis=0)) == 12


def test_choice_is_repeatable_and_follows_the_seed(monkeypatch):
    monkeypatch.setattr("calib.poses._CANDIDATES", 15)
    first, again, other = (choose_poses(MODEL, JOINTS, BOARD, VGA, T_GUESS, START, count=4, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_camera_that_cannot_see_the_arm_is_refused(monkeypatch):
    monkeypatch.setattr("calib.poses._MAX_SAMPLES", 2_000)
    away = look_at((0.52, 0.0, 0.42), (1.5, 0.0, 0.4))
    with pytest.raises(UserError, match="found 0 arm poses"):
        choose_poses(MODEL, JOINTS, BOARD, VGA, away, START)


def test_start_with_the_board_in_the_table_is_refused():
    with pytest.raises(UserError, match="start pose"):
        choose_poses(MODEL, JOINTS, BOARD, VGA, T_GUESS, np.array([0.0, 0.9, 0.3, 0.6, 0.0, 0.05]))


def test_routine_finds_the_camera(poses, fk):
    said = []
    result = run(Rig(fk), poses, fk, progress=lambda done, total, text: said.append((done, total, text)))
    error_mm, error_deg = distance(result.T_base_camera(), T_BASE_CAMERA)
    assert error_mm < 2.0 and error_deg < 0.3
    # what counts is where a point of the workspace ends up
    points = np.array([[0.15, -0.1, 0.0], [0.25, 0.1, 0.0], [0.2, 0.0, 0.1]])
    seen = (points - T_BASE_CAMERA[:3, 3]) @ T_BASE_CAMERA[:3, :3]
    lifted = seen @ result.T_base_camera()[:3, :3].T + result.T_base_camera()[:3, 3]
    assert 1e3 * np.linalg.norm(lifted - points, axis=1).max() < 1.5
    assert distance(result.T_other_board, T_GRIPPER_BOARD)[0] < 2.0
    assert result.leave_one_out_mm < 3.0 and result.reprojection_px < 1.5
    assert result.joint_zeros_rad == () and result.outliers == () and result.expected_mm < 2.0
    assert len(result.views) >= 10 and result.camera.serial == "rig" and result.arm_name == "so101"
    assert [s[:2] for s in said] == [(i, 12) for i in range(1, 13)] and "corners" in said[0][2]

    again = solve_again(result, fk)
    np.testing.assert_allclose(again.T_base_camera(), result.T_base_camera(), atol=1e-9)


def test_zeros_that_are_off_come_back_with_the_calibration(poses, fk):
    zeros = np.radians([0.0, 1.5, -1.2, 1.8, 0.0, 0.0])

    class Off(RigArm):
        def read(self):
            return JointState(super().read().position_rad - zeros)

    rig = Rig(fk)
    result = calibrate_hand_eye(Off(rig), RigCamera(rig), poses, fk, BOARD, arm_name="so101", move=rig.move)
    np.testing.assert_allclose(result.joint_zeros_rad, zeros, atol=np.radians(0.4))
    assert distance(result.T_base_camera(), T_BASE_CAMERA)[0] < 4.0
    assert 0 < result.expected_mm < result.expected_reach_mm < 4.0 and result.covariance.shape == (6, 6)
    unasked = solve_again(result, fk, fit_zeros=False)
    assert unasked.joint_zeros_rad == () and unasked.leave_one_out_mm > 2 * result.leave_one_out_mm


def test_views_without_board_or_rest_are_skipped_and_said(poses, fk, monkeypatch):
    monkeypatch.setattr(routine, "SETTLE_TIMEOUT_S", 0.01)
    said = []
    result = run(Rig(fk, blind=(0, 5), restless=(3,)), poses, fk, progress=lambda *a: said.append(a[2]))
    assert said[0] == said[5] == "skipped: the board is not seen"
    assert said[3] == "skipped: the arm did not come to rest"
    assert len(result.views) == 9
    assert distance(result.T_base_camera(), T_BASE_CAMERA)[0] < 3.0


def test_too_few_good_views_are_refused(poses, fk):
    with pytest.raises(UserError, match="seen in 7 of 12 arm poses, 8 are needed"):
        run(Rig(fk, blind=range(5)), poses, fk)


def test_an_arm_that_contradicts_itself_is_refused(poses, fk):
    def wrong_fk(q_rad):
        return fk(q_rad + np.array([0.0, 0.0, 0.6, -0.4, 0.0, 0.0]) * (q_rad > 0.5))

    with pytest.raises(UserError, match="views contradict the others"):
        run(Rig(fk), poses, wrong_fk)


def test_an_arm_that_is_off_everywhere_is_refused(poses, fk):
    rng = np.random.default_rng(0)

    class Loose(RigArm):
        def read(self):
            state = super().read()
            return JointState(state.position_rad + loose)

    loose = np.zeros(6)
    rig = Rig(fk)

    def move(q_rad):
        rig.move(q_rad)
        loose[:] = rng.normal(0, 0.06, 6)

    with pytest.raises(UserError, match="encoders in reaching"):
        calibrate_hand_eye(Loose(rig), RigCamera(rig), poses, fk, BOARD, arm_name="so101", move=move)


LOOK_DOWN = np.array([0.0, -0.76, 0.43, 1.45, 0.0, 0.3])


@pytest.fixture(scope="module")
def explored(fk):
    """A camera in the gripper, and a board on the table that nobody has said the place of."""
    rig = Rig(fk, mount="gripper")
    arm, camera, seen = RigArm(rig), RigCamera(rig), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routine, "SETTLE_INTERVAL_S", 0.0)
        for pose in exploring_poses(LOOK_DOWN, fk.limits_rad):
            rig.move(pose)
            if isinstance(one := observe(arm, camera, BOARD), Observation):
                seen.append(one)
    joints, detections = [one.joints_rad for one in seen], [one.detection for one in seen]
    return rough_guess(joints, detections, fk, BOARD, VGA, "gripper")


def test_small_turns_find_camera_and_board_roughly(explored):
    T_gripper_camera, T_base_board = explored
    assert distance(T_gripper_camera, T_GRIPPER_CAMERA)[0] < 20 and distance(T_gripper_camera, T_GRIPPER_CAMERA)[1] < 2
    assert distance(T_base_board, T_BASE_BOARD)[0] < 20


def test_camera_in_the_gripper_is_calibrated_by_poses_chosen_from_what_small_turns_found(fk, explored):
    poses = choose_poses(
        *(MODEL, JOINTS, BOARD, VGA, explored[0], LOOK_DOWN),
        mount="gripper",
        T_other_board=explored[1],
        count=12,
        gripper_rad=0.3,
        clearance_m=0.04,
    )
    rig = Rig(fk, mount="gripper")
    camera = RigCamera(rig, depth_off=1.02)
    result = calibrate_hand_eye(
        *(RigArm(rig), camera, poses, fk, BOARD), arm_name="so101", move=rig.move, mount="gripper"
    )
    error_mm, error_deg = distance(result.T_mount_camera, T_GRIPPER_CAMERA)
    assert error_mm < 2.0 and error_deg < 0.4
    assert distance(result.T_other_board, T_BASE_BOARD)[0] < 3.0
    assert result.depth_scale == pytest.approx(1 / 1.02, abs=0.003)
    # a point of the table, seen from one of the poses, is placed where it is
    q = result.views[3].joints_rad
    point = np.array([0.2, 0.02, 0.01, 1.0])
    placed = result.T_base_camera(fk(q)) @ np.linalg.inv(T_GRIPPER_CAMERA) @ np.linalg.inv(fk(q)) @ point
    assert 1e3 * np.linalg.norm((placed - point)[:3]) < 2.5
    again = solve_again(result, fk)
    np.testing.assert_allclose(again.T_mount_camera, result.T_mount_camera, atol=1e-9)
    assert 0 < result.expected_mm < result.expected_reach_mm < 5.0


def test_depth_that_is_right_is_left_alone(poses, fk):
    rig = Rig(fk)
    result = calibrate_hand_eye(
        *(RigArm(rig), RigCamera(rig, depth_off=1.0), poses, fk, BOARD), arm_name="so101", move=rig.move
    )
    assert abs(result.depth_scale - 1.0) < 0.002 and result.views[0].depth_m is not None
